"""PyTorch's learning-rate schedulers as schedules: functions of the step."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linkax.transforms._identity import identity_of

from . import _scheduler_forms as forms
from ._read_scheduler import PLATEAU, TURNS, Reader, Told, every, latest, present, told
from ._scheduler_forms import Chained, Form, Table, Unchanged, values_after
from ._tensors import as_number


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TorchSchedule:
    """A number that one of PyTorch's schedulers sets, as a function of the optimizer's step; see `schedule_from_torch`.

    Schedules of the same numbers are equal and hash equal. They can be pickled, as far as the functions in them can;
    `spec` gives what a file of JSON can hold.

    Attributes:
        form: The scheduler, in formulas.
        now: The value that it has reached.
        last_epoch: The steps that it has taken.
        steps_per_epoch: How many steps of the optimizer come before each of its own.
        offset: How many steps of the optimizer came before its clock began; `None` for 0 if nobody said so, in which
            case `import_state` checks it.
        hyperparam: What it is a schedule of: `"lr"`, or `"momentum"`, which for Adam and the like is its first beta.

    Example:
        >>> from linkax.chains.torch_interop import TorchSchedule, schedule_from_torch
        >>> state = {"step_size": 2, "gamma": 0.5, "base_lrs": [0.1], "last_epoch": 0, "_last_lr": [0.1]}
        >>> schedule = schedule_from_torch(("StepLR", state))[0].lr
        >>> schedule
        TorchSchedule(now=0.1, last_epoch=0, form=StepLR(epoch=0, base=0.1, step_size=2, gamma=0.5))
        >>> [schedule(step) for step in range(5)]
        [0.1, 0.1, 0.05, 0.05, 0.025]
        >>> TorchSchedule.from_spec(schedule.spec()) == schedule
        True
    """

    form: Form
    now: float
    last_epoch: int
    steps_per_epoch: int = 1
    offset: int | None = None
    hyperparam: str = "lr"

    def __call__(self, step: Any) -> Any:
        """The value at a step, counted from 0: a float for an integer, an array for an array, traced or not."""
        xp = jnp if isinstance(step, jax.Array) else np
        step = xp.asarray(step, int)
        ahead = (step - (self.offset or 0)) // self.steps_per_epoch - self.last_epoch
        with np.errstate(all="ignore"):  # as in JAX, whose overflows are silent
            value = self.form.after(xp.maximum(ahead, 0), self.now, xp)
        # Wrappers such as optax.inject_hyperparams ask for the value at step 0 when they start.
        value = xp.where((ahead < 0) & (step != 0), math.nan, value)
        return float(value) if xp is np and step.ndim == 0 else xp.asarray(value, float)

    def spec(self) -> dict[str, Any]:
        """Returns a description of numbers, strings, lists and dictionaries, such as `json.dump` takes.

        Raises:
            ValueError: If there is a Python function in it; `total_steps` makes a table of its values instead.

        Example:
            >>> from linkax.chains.torch_interop import schedule_from_torch
            >>> state = {"gamma": 0.5, "base_lrs": [0.1], "last_epoch": 3, "_last_lr": [0.0125]}
            >>> schedule_from_torch(("ExponentialLR", state))[0].lr.spec()["form"]
            {'class': 'ExponentialLR', 'epoch': 3, 'base': 0.1, 'gamma': 0.5}
        """
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**plain, "form": _spec(self.form)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "TorchSchedule":
        """Returns the schedule that a `spec` describes.

        Args:
            spec: What `spec` has returned, also after a round trip through JSON.

        Raises:
            ValueError: If it is anything else.

        Example:
            >>> from linkax.chains.torch_interop import TorchSchedule
            >>> form = {"class": "ExponentialLR", "epoch": 0, "base": 0.1, "gamma": 0.5}
            >>> TorchSchedule.from_spec({"form": form, "now": 0.1, "last_epoch": 0})(2)
            0.025
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(spec, Mapping) or not {"form", "now", "last_epoch"} <= spec.keys() <= names:
            raise ValueError(f"TorchSchedule.from_spec: spec must have {', '.join(sorted(names))}, got {spec!r}"[:300])
        plain = {key: value for key, value in spec.items() if key not in ("form", "hyperparam")}
        wrong = [key for key, value in plain.items() if not _is_number(value) and (key, value) != ("offset", None)]
        if wrong or spec.get("hyperparam", "lr") not in ("lr", "momentum"):
            raise ValueError(f"TorchSchedule.from_spec: spec must hold numbers and a hyperparam, got {spec!r}"[:300])
        return cls(**{**spec, "form": _form(spec["form"])})

    def __repr__(self) -> str:
        shown = {"now": float(f"{self.now:.12g}"), "last_epoch": self.last_epoch}
        if self.steps_per_epoch != 1:
            shown["steps_per_epoch"] = self.steps_per_epoch
        if self.offset is not None:
            shown["offset"] = self.offset
        if self.hyperparam != "lr":
            shown["hyperparam"] = self.hyperparam
        shown["form"] = self.form
        return f"TorchSchedule({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchSchedule) and identity_of(self) == identity_of(other)

    def __hash__(self) -> int:
        return hash(identity_of(self))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_FORMS = {
    kind.__name__: kind
    for kind in vars(forms).values()
    if isinstance(kind, type) and issubclass(kind, Form) and kind not in (Form, forms.Scaling)
}


def _spec(value: Any) -> Any:
    if isinstance(value, Form):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **{name: _spec(one) for name, one in fields.items()}}
    if isinstance(value, bytes):
        return np.frombuffer(value).tolist()
    if isinstance(value, tuple):
        return [_spec(one) for one in value]
    if callable(value):
        raise ValueError(
            "TorchSchedule.spec: the schedule must have no Python function in it; give total_steps to "
            f"schedule_from_torch for a table of its values, got {value!r}"
        )
    return value


def _form(spec: Any) -> Form:
    """The form that a description is of."""
    kind = _FORMS.get(str(spec.get("class"))) if isinstance(spec, Mapping) else None
    names = {field.name for field in dataclasses.fields(kind)} if kind else set()
    if kind is None or not isinstance(spec, Mapping) or spec.keys() - {"class"} != names:
        raise ValueError(f"TorchSchedule.from_spec: form must be one of {', '.join(_FORMS)}, got {spec!r}"[:400])
    fields: dict[str, Any] = {}
    for name in names:
        value = spec[name]
        if name == "schedulers" and isinstance(value, list | tuple):
            fields[name] = tuple(_form(one) for one in value)
        elif isinstance(value, list | tuple) and all(map(_is_number, value)):
            fields[name] = np.asarray(value, np.float64).tobytes() if kind is Table else tuple(value)
        elif isinstance(value, int | float | str):
            fields[name] = value
        else:
            raise ValueError(
                f"TorchSchedule.from_spec: {name} must be a number, a string or a list, got {value!r}"[:300]
            )
    return kind(**fields)


class GroupSchedules(NamedTuple):
    """The schedules of one of PyTorch's groups.

    Attributes:
        lr: That of the learning rate.
        momentum: That of the momentum, or of Adam's first beta, if the scheduler cycles it; otherwise `None`.
    """

    lr: TorchSchedule
    momentum: TorchSchedule | None


def schedule_from_torch(
    scheduler: Any,
    groups: Sequence[Mapping[str, Any]] | None = None,
    *,
    steps_per_epoch: int = 1,
    offset: int | None = None,
    total_steps: int | None = None,
    lambdas: Callable[[int], Any] | Sequence[Callable[[int], Any]] | None = None,
    milestones: Sequence[int] | None = None,
) -> list[GroupSchedules]:
    """Turns a scheduler of PyTorch's into schedules: for each parameter group, the learning rate at every step.

    PyTorch's schedulers mostly change the learning rate that they find, step by step. So the schedules start from the
    present rate and the scheduler's present counters, and follow PyTorch's recursion from there, also if the rate or
    `last_epoch` were set by hand, or if several schedulers act on one optimizer. Before the present step they are NaN:
    what the rate was then is not known, and an optimizer that starts from step 0 by mistake should not go unnoticed.
    Only step 0, for which wrappers ask when they start, has the present value.

    At step s of the optimizer, counted from 0, the scheduler is in epoch ⌊(s − offset) / steps_per_epoch⌋.

    Args:
        scheduler: A scheduler of `torch.optim.lr_scheduler`, or `SWALR`; a pair of its class's name and its
            `state_dict()`, as in `("StepLR", state_dict)`; or a list of them, which step one after another, as in
            `ChainedScheduler`. The classes inside a `SequentialLR` or `ChainedScheduler` are not in its `state_dict`,
            so they stand behind its name: `("SequentialLR(LinearLR, CosineAnnealingLR)", state_dict)`.
        groups: The optimizer's `param_groups`, whose present `lr` counts. Without them, a live scheduler's optimizer
            tells, and for a pair the rates that the scheduler has set last. OneCycleLR and SWALR keep numbers only
            there.
        steps_per_epoch: How many steps of the optimizer come before each step of the scheduler, at least 1.
        offset: How many steps of the optimizer came before the scheduler's clock began; negative if the optimizer has
            skipped steps (`GradScaler`) while the scheduler went on, or if a new optimizer starts in the middle of the
            schedule. With `None` it is 0, and `import_state` refuses a
            state whose step does not fit the scheduler's `last_epoch`.
        total_steps: The steps of the whole run, counted from 0. Only needed where there is no formula: for Python
            functions that JAX cannot trace (LambdaLR, a `scale_fn`), for MultiplicativeLR, and for a ChainedScheduler
            that is no product. Then the schedule is a table with 8 bytes for each step of the scheduler still to come,
            and NaN beyond it.
        lambdas: For a pair, the functions of a LambdaLR, MultiplicativeLR or CyclicLR (`scale_fn`): one, or one for
            each group. A `state_dict` does not contain functions; that of CyclicLR does not even say that there was
            one.
        milestones: For a list of schedulers of which one steps at a time, such as a main one and then `SWALR`: the
            first step of each but the first, counted from 1 over all of them.

    Returns:
        One `GroupSchedules(lr, momentum)` for each group. `momentum` is that of SGD or the first beta of Adam, if the
        scheduler cycles it, and belongs into the chain as well; `from_torch(..., schedulers=...)` does that.

    Raises:
        ValueError: If the scheduler is unknown, its state is broken or lacks something; one message lists everything.
            For `ReduceLROnPlateau`, whose rate is no function of the step: see `from_torch`.
        TypeError: If `steps_per_epoch`, `offset` or `total_steps` are no integers, or `groups` is no list of groups.

    Differences:
        PyTorch's CosineAnnealingLR loses digits at every restart, a relative T_max² · 1e-16; that is reproduced for the
        first 64 restarts. Beyond its last step OneCycleLR raises in PyTorch, and is NaN here.

    Example:
        >>> from linkax import sgd
        >>> from linkax.chains.torch_interop import schedule_from_torch
        >>> state = {"T_max": 100, "eta_min": 0.0, "base_lrs": [0.1], "last_epoch": 50, "_step_count": 51}
        >>> [(rate, _)] = schedule_from_torch(("CosineAnnealingLR", state | {"_last_lr": [0.05]}))
        >>> f"{rate(50):.3f} {rate(75):.3f} {rate(100):.3f}"
        '0.050 0.015 0.000'
        >>> tx = sgd(rate, momentum=0.9)

    Source:
        `torch.optim.lr_scheduler` and `torch.optim.swa_utils`, PyTorch 2.13.
    """
    where = "schedule_from_torch"
    checked_clock(where, steps_per_epoch, offset, total_steps)
    problems: list[str] = []
    found = read_schedulers(scheduler, problems)
    if plateaus := [one for one in found if one.name == PLATEAU]:
        problems += [f"{one.name} is no function of the step: from_torch(..., schedulers=...)" for one in plateaus]
    raise_all(where, problems)
    if groups is not None and not (
        isinstance(groups, list | tuple) and all(isinstance(group, Mapping) for group in groups)
    ):
        raise TypeError(f"{where}: groups must be a list of param_groups, got {groups!r}"[:300])
    own = groups if groups is not None else groups_of(scheduler)
    made = schedules(found, own, steps_per_epoch, offset, total_steps, lambdas, milestones, problems)
    raise_all(where, problems)
    return made


def raise_all(where: str, problems: Sequence[str]) -> None:
    """Raises one error with all problems."""
    if problems:
        every = dict.fromkeys(problems)
        raise ValueError(
            f"{where}: scheduler must be one of PyTorch's, whole:" + "".join(f"\n  {one}" for one in every)
        )


def checked_clock(where: str, steps_per_epoch: Any, offset: Any, total_steps: Any) -> None:
    """Raises unless they are integers, in their ranges."""
    for name, value, least in (
        ("steps_per_epoch", steps_per_epoch, 1),
        ("offset", offset, None),
        ("total_steps", total_steps, 1),
    ):
        if value is None and name != "steps_per_epoch":
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{where}: {name} must be an integer, got {value!r}")
        if least is not None and value < least:
            raise ValueError(f"{where}: {name} must be an integer of at least {least}, got {value!r}")


def read_schedulers(scheduler: Any, problems: list[str]) -> list[Told]:
    """What is known of one scheduler or several."""
    given = scheduler if isinstance(scheduler, list) else [scheduler]
    if not given:
        problems.append("there must be at least one scheduler, got an empty list")
    named = [(f"schedulers[{i}]" if isinstance(scheduler, list) else "scheduler", one) for i, one in enumerate(given)]
    return [known for where, one in named if (known := told(where, one, problems)) is not None]


def groups_of(scheduler: Any) -> Sequence[Mapping[str, Any]] | None:
    """The groups of the optimizer of live schedulers."""
    for one in scheduler if isinstance(scheduler, list) else [scheduler]:
        if hasattr(one, "optimizer"):
            return one.optimizer.param_groups
    return None


def schedules(
    found: Sequence[Told],
    groups: Sequence[Mapping[str, Any]] | None,
    steps_per_epoch: int,
    offset: int | None,
    total_steps: int | None,
    lambdas: Any,
    milestones: Sequence[int] | None,
    problems: list[str],
) -> list[GroupSchedules]:
    """The schedules of all groups, of schedulers that step one after another."""
    whole = found[0] if len(found) == 1 else Told("ChainedScheduler", {}, tuple(found))
    if milestones is not None:
        if not all(isinstance(one, int) for one in milestones):
            problems.append(f"milestones must be integers, got {milestones!r}")
            return []
        whole = Told(
            TURNS, {"last_epoch": sum(one.last_epoch for one in found), "_milestones": milestones}, tuple(found)
        )
    running = _running(whole)
    problems += [
        f"{one.name} has not begun: its last_epoch is {one.last_epoch}" for one in running if one.last_epoch < 0
    ]
    count = len(groups) if groups is not None else _group_count(whole)
    sizes = {len(one.state["base_lrs"]) for one in every(whole) if isinstance(one.state.get("base_lrs"), list | tuple)}
    if sizes - {count}:
        problems.append(f"the scheduler has {max(sizes - {count})} groups, but the optimizer {count}")
    functions = list(lambdas) if isinstance(lambdas, Sequence) else [lambdas] * count
    if len(functions) != count:
        problems.append(f"lambdas must be one or {count}, for the groups, got {len(functions)}")
        return []
    if count == 0:
        problems.append(
            "groups must be the optimizer's param_groups, because the scheduler does not know them, got none"
        )
    made: list[GroupSchedules] = []
    for index in range(count):
        group = None if groups is None else groups[index]
        reader = Reader(index, group, functions[index], total_steps is not None, problems)
        rate, momentum = reader.rate(whole), reader.momentum(whole)
        if problems:
            continue
        clock = whole.last_epoch, int(steps_per_epoch), None if offset is None else int(offset)
        now = _present(latest(whole), index, group, problems)
        form = _closed(rate, now, clock, total_steps, problems)
        lr = TorchSchedule(form, now, *clock)
        if isinstance(momentum, Unchanged):
            made.append(GroupSchedules(lr, None))
            continue
        now = _present_momentum(momentum, index, group, problems)
        form = _closed(momentum, now, clock, total_steps, problems)
        made.append(GroupSchedules(lr, TorchSchedule(form, now, *clock, hyperparam="momentum")))
    return made


def _running(found: Told) -> list[Told]:
    """The schedulers that step next."""
    if found.name == "ChainedScheduler":
        return [one for inner in found.inner for one in _running(inner)]
    if found.name in ("SequentialLR", TURNS):
        passed = sum(one <= found.last_epoch for one in found.state["_milestones"])
        next_one = found.last_epoch + 1 in found.state["_milestones"]
        return [] if next_one or passed >= len(found.inner) else _running(found.inner[passed])
    return [found]


def _group_count(found: Told) -> int:
    for one in every(found):
        for key in ("base_lrs", "_last_lr"):
            if isinstance(one.state.get(key), list | tuple):
                return len(one.state[key])
    return 0


def _present(found: Told, index: int, group: Mapping[str, Any] | None, problems: list[str]) -> float:
    """The group's learning rate; if the group is not known, the rate that was set last."""
    if group is not None and "lr" in group:
        now = as_number(f"lr of group {index}", group["lr"], problems)
    else:
        now = present(found, index)
        if now is None:
            problems.append(f"the state of {found.name} has no _last_lr for group {index}; give groups")
    return math.nan if now is None else now


def _present_momentum(form: Form, index: int, group: Mapping[str, Any] | None, problems: list[str]) -> float:
    """The group's momentum or first beta; if the group is not known, what the scheduler sets in this epoch."""
    if group is not None:
        given = group["betas"][0] if "betas" in group else group.get("momentum")
        now = as_number(f"the momentum of group {index}", given, problems)
        return math.nan if now is None else now
    if form.kind == "sets":
        return float(form.value(0, np))
    problems.append(f"groups must be the optimizer's param_groups, for the momentum of group {index}, got none")
    return math.nan


def _closed(form: Form, now: float, clock: tuple[int, int, int | None], total: int | None, problems: list[str]) -> Form:
    """The form, as a table if it has no formula."""
    if form.is_closed:
        return form
    epoch, steps_per_epoch, offset = clock
    if total is None:
        problems.append(
            f"total_steps must say how many steps the run has, because there is no formula for {_reason(form)}: a "
            "table takes its place; got None"
        )
        return form
    steps = (int(total) - (offset or 0)) // steps_per_epoch - epoch
    if steps < 0:
        problems.append(f"total_steps must be beyond the steps already taken, got {total}")
        return form
    with np.errstate(all="ignore"):
        values = values_after(form, steps, now)
    if _has_end(form):  # beyond which PyTorch raises, and a table is NaN, too
        numbers = np.flatnonzero(~np.isnan(values))
        values = values[: numbers[-1] + 1] if len(numbers) else values
    if not np.isfinite(values).all():
        problems.append(f"the values of {form!r} must be finite, got {values[~np.isfinite(values)][0]}")
    return Table(np.asarray(values, np.float64).tobytes())


def _has_end(form: Form) -> bool:
    inner = form.schedulers if isinstance(form, Chained | forms.SequentialLR) else ()
    return isinstance(form, forms.OneCycleLR) or any(map(_has_end, inner))


def _reason(form: Form) -> str:
    """What has no formula."""
    inner = form.schedulers if isinstance(form, Chained | forms.SequentialLR) else ()
    open_ones = [_reason(one) for one in inner if not one.is_closed]
    if open_ones:
        return ", ".join(dict.fromkeys(open_ones))
    if isinstance(form, Chained):
        return f"{' and '.join(type(one).__name__ for one in inner)} together"
    if isinstance(form, forms.MultiplicativeLR):
        return "MultiplicativeLR, a product of what a Python function gives at every step"
    return f"{type(form).__name__}, whose Python function JAX cannot trace"
