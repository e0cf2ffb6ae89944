"""A scheduler of PyTorch's, live or saved, as the formulas of `_scheduler_forms`, for one group at a time."""

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _scheduler_forms as forms
from ._scheduler_forms import Chained, Form, SequentialLR, Unchanged
from ._tensors import as_number

PLATEAU = "ReduceLROnPlateau"
_LARGEST = 2**30  # steps: twice as many still fit into 32 bits
_MOST = 1000  # factors at one milestone: more make the rate 0, or infinite
TURNS = "schedulers in turns"
"""Several schedulers of which one at a time steps, each from its milestone on; PyTorch has no class for that."""
_HOLDING = ("SequentialLR", "ChainedScheduler")
_MODES = ("triangular", "triangular2", "exp_range")
_LAMBDAS = ("LambdaLR", "MultiplicativeLR")
_NEEDS = {
    "LambdaLR": "base_lrs lr_lambdas",
    "MultiplicativeLR": "base_lrs lr_lambdas",
    "StepLR": "base_lrs step_size gamma",
    "MultiStepLR": "base_lrs milestones gamma",
    "ConstantLR": "base_lrs factor total_iters",
    "LinearLR": "base_lrs start_factor end_factor total_iters",
    "ExponentialLR": "base_lrs gamma",
    "PolynomialLR": "base_lrs total_iters power",
    "CosineAnnealingLR": "base_lrs T_max eta_min _step_count",
    "CosineAnnealingWarmRestarts": "base_lrs T_i T_cur T_mult eta_min",
    "CyclicLR": "base_lrs max_lrs total_size step_ratio mode gamma scale_mode cycle_momentum _scale_fn_custom",
    "OneCycleLR": "total_steps _schedule_phases _anneal_func_type cycle_momentum",
    "SWALR": "_step_count anneal_epochs _anneal_strategy",
    "SequentialLR": "_schedulers _milestones",
    "ChainedScheduler": "_schedulers",
    PLATEAU: "mode factor patience threshold threshold_mode cooldown min_lrs eps best num_bad_epochs cooldown_counter",
}
"""The attributes that each class must have, live or in its `state_dict`; but for ChainedScheduler also `last_epoch`."""
KNOWN = tuple(_NEEDS)


class Told(NamedTuple):
    """What is known of a scheduler."""

    name: str  # its class's
    state: Mapping[str, Any]  # its attributes
    inner: tuple["Told", ...] = ()

    @property
    def last_epoch(self) -> int:
        """How many steps it has taken; of schedulers that step together, the one with the most."""
        if self.name == "ChainedScheduler":
            return max((one.last_epoch for one in self.inner), default=0)
        return int(self.state["last_epoch"])


def told(where: str, scheduler: Any, problems: list[str]) -> Told | None:
    """What is known of a live scheduler, or of a pair of its class's name and its `state_dict`."""
    if isinstance(scheduler, tuple) and len(scheduler) == 2 and isinstance(scheduler[0], str):
        try:
            tree = ast.parse(scheduler[0], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            tree = None
        if tree is None or not isinstance(scheduler[1], Mapping):
            problems.append(f"{where} must be a class's name and a state_dict(), got {scheduler!r}"[:300])
            return None
        return _saved(where, tree, scheduler[1], problems)
    if not hasattr(scheduler, "optimizer") or not hasattr(scheduler, "state_dict"):
        problems.append(
            f"{where} must be a scheduler of torch.optim.lr_scheduler, or a pair such as ('StepLR', state_dict), "
            f"got {scheduler!r}"[:300]
        )
        return None
    name, module = type(scheduler).__name__, type(scheduler).__module__
    if name not in _NEEDS or not module.startswith("torch."):
        problems.append(
            f"{where} must be one of {', '.join(KNOWN)}, got {module}.{name}; any other one can be given as a LambdaLR "
            "of the factors that it gives"
        )
        return None
    inner = [told(f"{where}._schedulers[{i}]", one, problems) for i, one in enumerate(_list(scheduler, "_schedulers"))]
    return _checked(where, Told(name, vars(scheduler), tuple(one for one in inner if one is not None)), problems)


def _list(scheduler: Any, key: str) -> Sequence[Any]:
    return getattr(scheduler, key, ())


def _saved(where: str, tree: ast.AST, state: Any, problems: list[str]) -> Told | None:
    """A `state_dict` of a class whose name has been parsed: `SequentialLR(LinearLR, CosineAnnealingLR)`."""
    given = tree.args if isinstance(tree, ast.Call) else []
    head = tree.func if isinstance(tree, ast.Call) else tree
    name = head.id if isinstance(head, ast.Name) else ast.unparse(tree) if isinstance(tree, ast.expr) else "?"
    if name not in _NEEDS:
        problems.append(f"{where} must be one of {', '.join(KNOWN)}, got {name}")
        return None
    if not isinstance(state, Mapping):
        problems.append(f"the state of {where} must be a dictionary, got {state!r}"[:300])
        return None
    inner: list[Told | None] = []
    if name in _HOLDING and isinstance(held := state.get("_schedulers"), list | tuple):
        if len(given) != len(held):
            such = ", ".join(["LinearLR", *["CosineAnnealingLR"] * (len(held) - 1)])
            problems.append(
                f"{where} is a {name} of {len(held)} schedulers, whose state_dict does not say their classes; write "
                f"them behind its name, such as '{name}({such})'"
            )
            return None
        inner = [
            _saved(f"{where}._schedulers[{i}]", one, its, problems) for i, (one, its) in enumerate(zip(given, held))
        ]
    return _checked(where, Told(name, state, tuple(one for one in inner if one is not None)), problems)


def _checked(where: str, found: Told, problems: list[str]) -> Told | None:
    needed = [*_NEEDS[found.name].split(), *(["last_epoch"] if found.name != "ChainedScheduler" else [])]
    if missing := [key for key in needed if key not in found.state]:
        problems.append(f"the state of {where}, a {found.name}, has no {', '.join(missing)}")
        return None
    if found.name != "ChainedScheduler":
        epoch = as_number(f"last_epoch of {where}", found.state["last_epoch"], problems)
        if epoch is None:
            return None
        if epoch != int(epoch) or abs(epoch) > 2**31:
            problems.append(f"last_epoch of {where} must be an integer, got {epoch:g}")
            return None
        found = found._replace(state={**found.state, "last_epoch": int(epoch)})
    if found.name == "SequentialLR" and not _are_whole(found.state["_milestones"]):
        problems.append(f"_milestones of {where} must be a list of integers, got {found.state['_milestones']!r}"[:300])
        return None
    if found.name in _HOLDING:
        if not isinstance(found.state["_schedulers"], list | tuple):
            problems.append(f"_schedulers of {where} must be a list, got {found.state['_schedulers']!r}"[:300])
            return None
        if any(one.name == PLATEAU for one in found.inner):
            problems.append(f"{where}, a {found.name}, must not hold a {PLATEAU}, as in PyTorch")
            return None
        if not found.state["_schedulers"]:
            problems.append(f"{where}, a {found.name}, must hold at least one scheduler, got none")
        return found if len(found.inner) == len(found.state["_schedulers"]) and found.inner else None
    return found


def _are_whole(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(isinstance(one, int | np.integer) for one in given)


class Reader:
    """Reads one number of one group: the learning rate, or the momentum that a scheduler cycles."""

    def __init__(
        self,
        index: int,
        group: Mapping[str, Any] | None,
        function: Callable[[Any], Any] | None,
        tabulated: bool,
        problems: list[str],
    ):
        self._index, self._group, self._function = index, group, function
        self._tabulated, self._problems = tabulated, problems

    def rate(self, found: Told) -> Form:
        """The learning rate."""
        self._is_for_lambdas = any(one.name in _LAMBDAS for one in every(found))
        return self._form(found, False)

    def momentum(self, found: Told) -> Form:
        """The momentum, or Adam's first beta; `Unchanged` where it is not cycled."""
        self._is_for_lambdas = any(one.name in _LAMBDAS for one in every(found))
        return self._form(found, True)

    def _form(self, found: Told, cycled: bool) -> Form:
        if found.name == "ChainedScheduler":
            inner = tuple(self._form(one, cycled) for one in found.inner)
            return Unchanged() if all(isinstance(one, Unchanged) for one in inner) else Chained(inner)
        if found.name in ("SequentialLR", TURNS):
            return self._sequential(found, cycled)
        if cycled and found.name not in ("CyclicLR", "OneCycleLR"):
            return Unchanged()
        if cycled and found.state["cycle_momentum"] is not True:
            if found.state["cycle_momentum"] is not False:
                self._problems.append(f"cycle_momentum of {found.name} must be True or False")
            return Unchanged()
        return getattr(self, f"_{found.name}")(found, cycled)

    def _sequential(self, found: Told, cycled: bool) -> Form:
        milestones = self._all(found, "_milestones")
        if list(milestones) != sorted(milestones) or len(milestones) != len(found.inner) - 1:
            self._problems.append(
                f"the milestones of {found.name} must be {len(found.inner) - 1} integers in ascending order, got "
                f"{list(milestones)}"
            )
            return Unchanged()
        for late in found.inner[1:]:
            if late.name in _HOLDING and found.name != TURNS:
                self._problems.append(
                    f"{found.name} must not hold a {late.name} but as its first scheduler: PyTorch cannot start it "
                    "later"
                )
        inner = tuple(self._form(one, cycled) for one in found.inner)
        if all(isinstance(one, Unchanged) for one in inner):
            return Unchanged()
        starts = tuple(int(one) for one in milestones)
        return SequentialLR(found.last_epoch, inner, starts, found.name != TURNS)

    # What each class is, by its name in PyTorch.

    def _LambdaLR(self, found: Told, cycled: bool) -> Form:
        function = self._called(found)
        return forms.LambdaLR(found.last_epoch, self._base(found), function, not self._tabulated and _traces(function))

    def _MultiplicativeLR(self, found: Told, cycled: bool) -> Form:
        return forms.MultiplicativeLR(found.last_epoch, self._base(found), self._called(found))

    def _StepLR(self, found: Told, cycled: bool) -> Form:
        size, gamma = self._positive(found, "step_size"), self._number(found, "gamma", 0)
        if size != int(size):
            self._problems.append(f"step_size of {found.name} must be an integer, got {size:g}")
        return forms.StepLR(found.last_epoch, self._base(found), size, gamma)

    def _MultiStepLR(self, found: Told, cycled: bool) -> Form:
        given = found.state["milestones"]
        try:
            pairs = given.items() if isinstance(given, Mapping) else [(one, 1) for one in given]
            counts = {float(one): int(count) for one, count in pairs}  # in JSON, keys are strings
            every = sorted(int(one) for one, count in counts.items() for _ in range(min(count, _MOST)) if one % 1 == 0)
        except (TypeError, ValueError, OverflowError):
            self._problems.append(f"milestones of {found.name} must be numbers, got {given!r}"[:300])
            every = []
        return forms.MultiStepLR(found.last_epoch, self._base(found), tuple(every), self._number(found, "gamma", 0))

    def _ConstantLR(self, found: Told, cycled: bool) -> Form:
        numbers = (self._number(found, key) for key in ("factor", "total_iters"))
        return forms.ConstantLR(found.last_epoch, self._base(found), *numbers)

    def _LinearLR(self, found: Told, cycled: bool) -> Form:
        numbers = (self._number(found, key) for key in ("start_factor", "end_factor", "total_iters"))
        return forms.LinearLR(found.last_epoch, self._base(found), *numbers)

    def _ExponentialLR(self, found: Told, cycled: bool) -> Form:
        return forms.ExponentialLR(found.last_epoch, self._base(found), self._number(found, "gamma", 0))

    def _PolynomialLR(self, found: Told, cycled: bool) -> Form:
        numbers = self._positive(found, "total_iters"), self._number(found, "power")
        return forms.PolynomialLR(found.last_epoch, self._base(found), *numbers)

    def _CosineAnnealingLR(self, found: Told, cycled: bool) -> Form:
        numbers = self._positive(found, "T_max"), self._number(found, "eta_min")
        return forms.CosineAnnealingLR(found.last_epoch, self._base(found), *numbers)

    def _CosineAnnealingWarmRestarts(self, found: Told, cycled: bool) -> Form:
        T_i, T_cur = self._positive(found, "T_i"), self._number(found, "T_cur")
        if not -1 <= T_cur < T_i:
            self._problems.append(f"T_cur of {found.name} must be below T_i, which is {T_i:g}, got {T_cur:g}")
        if T_cur != int(T_cur):
            self._problems.append(
                f"T_cur of {found.name} must be an integer, got {T_cur:g}: it was stepped by fractions of an epoch; "
                "give T_cur, T_i and last_epoch in steps of the optimizer instead"
            )
        T_mult, eta_min = int(self._number(found, "T_mult", 1)), self._number(found, "eta_min")
        return forms.CosineAnnealingWarmRestarts(found.last_epoch, self._base(found), T_i, T_cur, T_mult, eta_min)

    def _CyclicLR(self, found: Told, cycled: bool) -> Form:
        total = self._positive(found, "total_size")
        scale = found.state["mode"]
        is_own = found.state["_scale_fn_custom"] is not None or str(scale) not in _MODES
        if is_own or (self._function is not None and not self._is_for_lambdas):
            given = found.state["_scale_fn_custom"]
            scale = given if callable(given) else self._needed(found, "scale_fn")
        low, high = ("max_momentums", "base_momentums") if cycled else ("base_lrs", "max_lrs")
        return forms.CyclicLR(
            found.last_epoch,
            self._own(found, low),
            self._own(found, high),
            self._number(found, "step_ratio") * total,
            total,
            scale,
            self._number(found, "gamma", 0),
            self._one_of(found, "scale_mode", "cycle", "iterations"),
        )

    def _OneCycleLR(self, found: Told, cycled: bool) -> Form:
        what, ends, starts, stops = "momentum" if cycled else "lr", [], [], []
        phases = found.state["_schedule_phases"]
        keys = {"end_step", f"start_{what}", f"end_{what}"}
        is_list = isinstance(phases, list | tuple) and phases
        if not is_list or not all(isinstance(phase, Mapping) and keys <= phase.keys() for phase in phases):
            self._problems.append(f"_schedule_phases of {found.name} must be its phases, got {phases!r}"[:300])
            return Unchanged()
        for phase in phases:
            end = as_number(f"end_step of {found.name}", phase["end_step"], self._problems)
            ends.append(1.0 if end is None else end)
            starts.append(self._of_group(found, phase[f"start_{what}"]))
            stops.append(self._of_group(found, phase[f"end_{what}"]))
        anneal, steps = (
            self._one_of(found, "_anneal_func_type", "cos", "linear"),
            int(self._positive(found, "total_steps")),
        )
        return forms.OneCycleLR(found.last_epoch, tuple(ends), tuple(starts), tuple(stops), anneal, steps)

    def _SWALR(self, found: Told, cycled: bool) -> Form:
        steps, epochs = int(self._positive(found, "_step_count")), int(self._number(found, "anneal_epochs"))
        rate, anneal = self._of_group(found, "swa_lr"), self._one_of(found, "_anneal_strategy", "cos", "linear")
        return forms.SWALR(found.last_epoch, steps, rate, epochs, anneal)

    def _number(self, found: Told, key: str, least: float | None = None) -> float:
        number = as_number(f"{key} of {found.name}", found.state[key], self._problems)
        if number is not None and least is not None and number < least:
            self._problems.append(f"{key} of {found.name} must be at least {least}, got {number:g}")
        if number is not None and abs(number) > _LARGEST:
            self._problems.append(f"{key} of {found.name} must be at most {_LARGEST}, got {number:g}")
            return 1.0
        if number is None:
            return 1.0
        return int(number) if number == int(number) and isinstance(found.state[key], int) else number

    def _one_of(self, found: Told, key: str, *allowed: str) -> Any:
        value = found.state[key]
        if not isinstance(value, str) or value not in allowed:
            self._problems.append(f"{key} of {found.name} must be one of {', '.join(allowed)}, got {value!r}"[:300])
        return value

    def _positive(self, found: Told, key: str) -> float:
        number = self._number(found, key)
        if number <= 0:
            self._problems.append(f"{key} of {found.name} must be above 0, got {number:g}")
            return 1.0
        return number

    def _all(self, found: Told, key: str) -> list[float]:
        given = found.state[key]
        if not isinstance(given, list | tuple):
            self._problems.append(f"{key} of {found.name} must be a list of numbers, got {given!r}")
            return []
        numbers = [as_number(f"{key} of {found.name}", one, self._problems) for one in given]
        return [one for one in numbers if one is not None]

    def _own(self, found: Told, key: str) -> float:
        """The group's entry in a list with one for each group."""
        given = found.state.get(key)
        if not isinstance(given, list | tuple) or len(given) <= self._index:
            self._problems.append(f"{key} of {found.name} must have a number for group {self._index}, got {given!r}")
            return 1.0
        number = as_number(f"{key} of {found.name}", given[self._index], self._problems)
        return 1.0 if number is None else number

    def _base(self, found: Told) -> float:
        return self._own(found, "base_lrs")

    def _of_group(self, found: Told, key: str) -> float:
        """What PyTorch keeps in the optimizer's group."""
        if self._group is None or not isinstance(key, str) or key not in self._group:
            self._problems.append(
                f"groups must be the optimizer's param_groups, of which {found.name} needs {key}, got "
                f"{'none' if self._group is None else 'a group without it'}"
            )
            return 1.0
        number = as_number(f"{key} of group {self._index}", self._group[key], self._problems)
        return 1.0 if number is None else number

    def _called(self, found: Told) -> Callable[[Any], Any]:
        """The group's function."""
        given = found.state["lr_lambdas"]
        own = given[self._index] if isinstance(given, list | tuple) and len(given) > self._index else None
        return own if callable(own) else self._needed(found, "lr_lambda")

    def _needed(self, found: Told, what: str) -> Callable[[Any], Any]:
        if self._function is None:
            self._problems.append(
                f"lambdas must give the {what} of {found.name}, because its state_dict has no functions, got None"
            )
            return lambda epoch: 1.0
        return self._function


def _traces(function: Callable[[Any], Any]) -> bool:
    """Whether a function takes tracers, and gives the same numbers for them: integers overflow in JAX."""
    epochs = np.asarray([0, 1, 7, 1000, 50_000, 3_000_001])
    try:
        found = jax.vmap(lambda epoch: jnp.asarray(function(epoch), float))(jnp.asarray(epochs, jnp.int32))
        wanted = [function(int(one)) for one in epochs[:4]] + [_or_nan(function, int(one)) for one in epochs[4:]]
        is_told = ~np.isnan(wanted)  # the function may end before the last ones
        return found.shape == epochs.shape and np.allclose(found[is_told], np.asarray(wanted)[is_told], rtol=1e-3)
    except Exception:  # it is the user's
        return False


def _or_nan(function: Callable[[Any], Any], epoch: int) -> float:
    try:
        return float(function(epoch))
    except Exception:  # it is the user's
        return math.nan


def every(found: Told) -> Iterator[Told]:
    """A scheduler, and all that it holds."""
    yield found
    for one in found.inner:
        yield from every(one)


def present(found: Told, index: int) -> float | None:
    """The learning rate that a scheduler has set last, in a group."""
    given = found.state.get("_last_lr")
    return float(np.asarray(given[index])) if isinstance(given, list | tuple) and len(given) > index else None


def latest(found: Told) -> Told:
    """The scheduler whose `_last_lr` is the latest: of a list the last one, of those in turns the running one."""
    if found.name == TURNS:
        begun = sum(one <= found.last_epoch for one in found.state["_milestones"])
        return found.inner[min(begun, len(found.inner) - 1)]
    return found.inner[-1] if not found.state else found
