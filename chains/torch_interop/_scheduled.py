"""PyTorch's schedulers in a chain: the schedules of each group, and what `from_torch` has understood."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from linkax.transforms import Plateau, power_bias_correction, scale_by_plateau
from linkax.transforms._describe import describe

from ..algebra._chain import Chain
from ..algebra._structure import parts
from ._read_scheduler import PLATEAU, Told
from ._scheduler_forms import Chained, Form
from ._schedules import GroupSchedules, TorchSchedule, checked_clock, groups_of, raise_all, read_schedulers, schedules
from ._tensors import as_number

_WITHOUT = {
    "ASGD": "its rate decays by itself, and PyTorch's takes the scheduler's value one step late",
    "Rprop": "PyTorch's reads the learning rate only before the first step",
}


class Plan(NamedTuple):
    """What the schedulers do with one group."""

    rate: float | TorchSchedule
    momentum: TorchSchedule | None
    plateau: Mapping[str, Any] | None  # the arguments of `scale_by_plateau`

    def arguments(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The group's hyperparameters, with the schedule of its momentum."""
        if self.momentum is None:
            return dict(group)
        if "betas" in group:
            return {**group, "betas": (self.momentum, group["betas"][1])}
        return {**group, "momentum": self.momentum}

    def applied(self, tx: Chain) -> Chain:
        """The chain with PyTorch's correction of a bias whose decay changes, and the rate on the plateau."""
        if self.momentum is not None:
            corrections = [
                part.path
                for part in parts(tx.links)
                if part.link.name == "bias_correction" and part.link.hyperparams["decay"] is self.momentum
            ]
            tx = tx._rewrite(dict.fromkeys(corrections, (power_bias_correction(self.momentum),)))
        if self.plateau is not None:
            tx = tx.swap("scale_by_learning_rate", scale_by_plateau(self.rate, **self.plateau))
        return tx


def plans(
    name: str,
    groups: Sequence[Mapping[str, Any]],
    is_live: bool,
    scheduler: Any,
    steps_per_epoch: int | Sequence[int],
    offset: int | None,
    total_steps: int | None,
    lambdas: Any,
    milestones: Sequence[int] | None,
) -> list[Plan]:
    """What the schedulers do with each group of an optimizer."""
    where = "from_torch"
    problems: list[str] = [f"{name} has no schedule: {_WITHOUT[name]}"] if name in _WITHOUT else []
    found = read_schedulers(scheduler, problems)
    theirs = groups_of(scheduler)
    if is_live and theirs is not None and theirs is not groups:
        problems.append("the schedulers must be those of the optimizer, got those of another one")
    raise_all(where, problems)
    clocks = list(steps_per_epoch) if isinstance(steps_per_epoch, Sequence) else [steps_per_epoch] * len(found)
    for clock in clocks:
        checked_clock(where, clock, offset, total_steps)
    *others, last = found
    if len(clocks) != len(found):
        problems.append(f"steps_per_epoch must be one or {len(found)}, for the schedulers, got {len(clocks)}")
    if any(one.name == PLATEAU for one in others):
        problems.append(f"{PLATEAU} must be the last of the schedulers, because it acts on what the others set")
    plateau = last if last.name == PLATEAU else None
    if plateau is not None and name == "Adafactor":
        problems.append(f"{name} has no {PLATEAU}: it is the smaller of the reduced rate and 1/√t, as in no chain")
    others = others if plateau else found
    if len(set(clocks[: len(others)])) > 1:
        problems.append(f"steps_per_epoch must be the same for all schedulers but {PLATEAU}, got {clocks}")
    raise_all(where, problems)
    made: list[GroupSchedules] = []
    if others:
        made = schedules(others, groups, clocks[0], offset, total_steps, lambdas, milestones, problems)
        raise_all(where, problems)
    every: list[Plan] = []
    for index, group in enumerate(groups):
        lr, momentum = made[index] if made else (_present(index, group, problems), None)
        if momentum is not None:
            _check_momentum(name, index, momentum, group, problems)
        stopped = None
        if plateau is not None:
            if isinstance(lr, TorchSchedule) and not _scales(lr.form):
                problems.append(
                    f"{PLATEAU} must come with schedulers that scale the learning rate they find, because any other "
                    f"one overwrites what it has reduced, got {lr.form!r}"
                )
            stopped = _stopped(plateau, index, clocks[-1], offset, problems)
        every.append(Plan(lr, momentum, stopped))
    raise_all(where, problems)
    return every


def _present(index: int, group: Mapping[str, Any], problems: list[str]) -> float:
    now = as_number(f"lr of group {index}", group.get("lr"), problems)
    return math.nan if now is None else now


def _scales(form: Form) -> bool:
    return all(map(_scales, form.schedulers)) if isinstance(form, Chained) else form.kind == "scales"


def _check_momentum(
    name: str, index: int, momentum: TorchSchedule, group: Mapping[str, Any], problems: list[str]
) -> None:
    """Rejects what PyTorch does not do either, or does in another way."""
    if "betas" not in group and "momentum" not in group:
        problems.append(f"the scheduler cycles the momentum of group {index}, but {name} has none")
    ends = [group[key] for key in ("base_momentum", "max_momentum") if key in group]
    if "momentum" in group and any(float(end) == 0 for end in ends):
        problems.append(
            f"the momentum of group {index} must stay above 0: at 0, PyTorch's {name} leaves its buffer as it is, and "
            "no chain does"
        )


def _stopped(
    plateau: Told, index: int, steps_per_epoch: int, offset: int | None, problems: list[str]
) -> dict[str, Any]:
    """The arguments of `scale_by_plateau` for one group."""
    state = plateau.state
    numbers = {
        key: as_number(f"{key} of {PLATEAU}", state[key], problems)
        for key in (
            "factor",
            "patience",
            "threshold",
            "cooldown",
            "eps",
            "num_bad_epochs",
            "cooldown_counter",
            "last_epoch",
        )
    }
    least = state["min_lrs"]
    min_lr = least[index] if isinstance(least, list | tuple) and len(least) > index else None
    if min_lr is None:
        problems.append(f"min_lrs of {PLATEAU} must have a number for group {index}, got {least!r}")
    best: Any = state["best"]
    if not (isinstance(best, float | int) and math.isinf(best)):
        best = as_number(f"best of {PLATEAU}", best, problems)
    if problems:
        return {}
    for key, allowed in (("mode", ("min", "max")), ("threshold_mode", ("rel", "abs"))):
        if state[key] not in allowed:
            problems.append(f"{key} of {PLATEAU} must be one of {', '.join(allowed)}, got {state[key]!r}")
    whole = {key: int(numbers[key] or 0) for key in ("num_bad_epochs", "cooldown_counter", "last_epoch")}
    return {
        "mode": state["mode"],
        "factor": numbers["factor"],
        "patience": int(numbers["patience"] or 0),
        "threshold": numbers["threshold"],
        "threshold_mode": state["threshold_mode"],
        "cooldown": int(numbers["cooldown"] or 0),
        "min_lr": as_number(f"min_lrs of {PLATEAU}", min_lr, problems),
        "eps": numbers["eps"],
        "steps_per_epoch": int(steps_per_epoch),
        "offset": offset,
        "start": Plateau(None if math.isinf(best) else best, *whole.values()),
    }


def report(name: str, groups: Sequence[Mapping[str, Any]], every: Sequence[Plan]) -> str:
    """What has been understood, group by group."""
    lines = [f"from_torch: {name}, {len(groups)} group{'s' * (len(groups) > 1)}"]
    for index, (group, plan) in enumerate(zip(groups, every)):
        count = len(group["params"]) if "params" in group else None
        size = "" if count is None else f", {count} parameter{'s' * (count != 1)}"
        lines.append(f"group {index}{size}")
        lines += [f"  {line}" for line in _lines(plan, group)]
    return "\n".join(lines)


def _lines(plan: Plan, group: Mapping[str, Any]) -> list[str]:
    lines = []
    if isinstance(plan.rate, TorchSchedule):
        lines.append(f"lr        {plan.rate.now:.6g} now, {plan.rate.form!r}")
    else:
        lines.append(f"lr        {plan.rate:.6g} now")
    if plan.momentum is not None:
        what = "b1      " if "betas" in group else "momentum"
        lines.append(f"{what}  {plan.momentum.now:.6g} now, {plan.momentum.form!r}")
    if plan.plateau is not None:
        shown = ", ".join(f"{key}={describe(value)}" for key, value in plan.plateau.items() if key not in _CLOCK)
        lines.append(f"plateau   {shown}, read from value=")
    clock = plan.momentum or (plan.rate if isinstance(plan.rate, TorchSchedule) else None)
    if clock is not None:
        lines.append(f"clock     {_clock(clock.last_epoch, clock.steps_per_epoch, clock.offset)}")
    if plan.plateau is not None:
        epochs = plan.plateau["start"].epochs
        lines.append(f"plateau's clock  {_clock(epochs, plan.plateau['steps_per_epoch'], plan.plateau['offset'])}")
    return lines


_CLOCK = ("steps_per_epoch", "offset")


def _clock(last_epoch: int, steps_per_epoch: int, offset: int | None) -> str:
    first = last_epoch * steps_per_epoch + (offset or 0)
    each = "every step" if steps_per_epoch == 1 else f"every {steps_per_epoch} steps"
    fits = f"{first}" if steps_per_epoch == 1 else f"{first} to {first + steps_per_epoch - 1}"
    return f"{last_epoch} steps taken, one for {each} of the optimizer, which has taken {fits}"
