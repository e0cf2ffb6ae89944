"""What the arrays in a link's state mean, declared beside the link so that no other file has to know.

A link's state is a named tuple. `@link(..., state={"mu": Moment(...), "count": Count()})` says of each of its fields what it
is; `migrate`, the exchange with PyTorch, and whatever else acts on the state of a whole optimizer read it there.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Moment:
    """A field with an array for every parameter: a statistic of what comes into the link, gathered over the steps.

    Attributes:
        of: What it is, in words, with `{}` for what comes in: `"average of {}"`. Two moments are the same quantity if
            these words are.
        weight: What a new value is multiplied by when it comes in, from the link's hyperparameters by name: 1 − dampening
            for a dampened sum. `None` for 1. Moments of one quantity that differ in the weight differ by a factor.
        power: In which power what comes in goes into it: 2 for a mean of squares.
        torch: What PyTorch's optimizers call it in their `state_dict`; several names if that depends on the optimizer.

    Example:
        >>> from linkax.transforms import Moment
        >>> Moment("mean square of {}", power=2, torch=("exp_avg_sq", "square_avg")).of.format("gradient")
        'mean square of gradient'
    """

    of: str
    weight: Callable[..., Any] | None = None
    power: int = 1
    torch: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "torch", (self.torch,) if isinstance(self.torch, str) else tuple(self.torch))


@dataclasses.dataclass(frozen=True)
class Count:
    """A field with one whole number: how many steps the optimizer has taken.

    Example:
        >>> from linkax.transforms import Count
        >>> Count()
        Count()
    """


@dataclasses.dataclass(frozen=True)
class Gathered:
    """A field with one number that follows from the steps taken, such as the weight that an average has gathered.

    Attributes:
        after: Its value after so many steps from the start: a function of the number of steps, and of the link's
            hyperparameters by name.
        of: The moment that it belongs to, as in `Moment.of`: it starts anew where that does.
        torch: What PyTorch calls it, if it keeps it.
        from_torch: From PyTorch's number to ours; the same function leads back.

    Example:
        >>> from linkax.transforms import Gathered
        >>> weight = Gathered(lambda steps, decay: 1 - decay**steps, of="average of {}")
        >>> weight.after(2, decay=0.5)
        0.75
    """

    after: Callable[..., float]
    of: str
    torch: str = ""
    from_torch: Callable[[float], float] = lambda value: value


Field = Moment | Count | Gathered


@dataclasses.dataclass(frozen=True)
class Stream:
    """What passes between two links: a quantity, times a known factor, times what nobody knows before it happens.

    Attributes:
        quantity: What it is, in words: "gradient", "ratio", "average of gradient".
        factor: A number it has been multiplied by, such as minus the learning rate.
        unknown: What else it has been multiplied by: schedules, and links whose effect is not known.
    """

    quantity: str = "gradient"
    factor: float = 1.0
    unknown: tuple[Hashable, ...] = ()

    def through(self, out: str, factor: Any) -> "Stream":
        """What leaves a link that turns `{}` into `out` and multiplies by `factor`: a number, or anything unknown."""
        quantity = out.format(self.quantity)
        if isinstance(factor, int | float):
            return Stream(quantity, self.factor * factor, self.unknown)
        return Stream(quantity, self.factor, (*self.unknown, factor))
