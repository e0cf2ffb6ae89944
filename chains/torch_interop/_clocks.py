"""Whether the schedulers in a chain have taken the steps that fit those of the optimizer."""

from collections.abc import Iterator
from typing import NamedTuple

from linkax.transforms import Link, Plateau

from ..algebra._structure import parts
from ._chain_groups import Group
from ._schedules import TorchSchedule


class Clock(NamedTuple):
    """When a scheduler steps."""

    epochs: int  # the steps that it has taken
    steps_per_epoch: int


def check_clocks(group: Group, steps: int | None, problems: list[str]) -> None:
    """Adds schedulers that cannot have been stepped once an epoch, unless an offset says when their clock began."""
    if steps is None:
        return
    called = ".".join(group.label) or "the chain"
    for clock in dict.fromkeys(_clocks(tuple(group.links))):
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


def _clocks(links: tuple[Link, ...]) -> Iterator[Clock]:
    for part in parts(links):
        given = part.link.hyperparams
        for value in given.values():
            if isinstance(value, TorchSchedule) and value.offset is None:
                yield Clock(value.last_epoch, value.steps_per_epoch)
        if isinstance(start := given.get("start"), Plateau) and given.get("offset") is None:
            yield Clock(start.epochs, given["steps_per_epoch"])
