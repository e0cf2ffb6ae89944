"""Whether the schedulers in a chain have taken the steps that fit those of the optimizer."""

import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import optax

from linkax.transforms import Link, Plateau
from linkax.transforms._describe import closed_over

from ..algebra._structure import Groups, flatten
from ._schedules import TorchSchedule


class Clock(NamedTuple):
    """When a scheduler steps."""

    epochs: int  # the steps that it has taken
    steps_per_epoch: int


def check_clocks(tx: optax.GradientTransformation, groups: Groups, steps: int | None, problems: list[str]) -> None:
    """Adds schedulers that cannot have been stepped once an epoch, unless an offset says when their clock began."""
    if steps is None:
        return
    called = ".".join(groups) or "the chain"
    found = (clock for link in _links(flatten("torch_interop: tx", tx), groups) for clock in _clocks(link))
    for clock in dict.fromkeys(found):
        if steps // clock.steps_per_epoch == clock.epochs:
            continue
        should = "" if clock.steps_per_epoch == 1 else f" every {clock.steps_per_epoch}"
        problems.append(
            f"PyTorch's optimizer has taken {steps} steps, and the scheduler of {called} {clock.epochs}, one"
            f"{should or ' each'}: if that is so (skipped steps, a scheduler that began later), give offset="
            f"{steps - steps % clock.steps_per_epoch - clock.epochs * clock.steps_per_epoch} to from_torch or "
            "schedule_from_torch, so that it goes on from its present value; if the scheduler is to be evaluated at "
            "the optimizer's step, offset=0"
        )


def _links(links: tuple[Link, ...], groups: Groups) -> Iterator[Link]:
    """Every link that the parameters of a group go through, and what these are inside of."""
    for link in links:
        yield link
        for name, slot in link.slots.items():
            if slot.kind != "group":
                yield from _links(slot.links, groups)
            elif groups and groups[0] == name:
                yield from _links(slot.links, groups[1:])


def _clocks(link: Link) -> Iterator[Clock]:
    given = link.hyperparams
    for value in given.values():
        for schedule in _schedules(value):
            if schedule.offset is None:
                yield Clock(schedule.last_epoch, schedule.steps_per_epoch)
    if isinstance(start := given.get("start"), Plateau) and given.get("offset") is None:
        yield Clock(start.epochs, given["steps_per_epoch"])


def _schedules(value: Any, depth: int = 3) -> Iterator[TorchSchedule]:
    """A schedule, also inside functions: Optax wraps that of a learning rate into one with the other sign."""
    if isinstance(value, TorchSchedule):
        yield value
    elif isinstance(value, types.FunctionType) and depth:
        for inner in closed_over(value).values():
            yield from _schedules(inner, depth - 1)
