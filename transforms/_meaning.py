"""What the arrays in a link's state mean, declared beside the link so that no other file has to know.

A link's state is a named tuple. `@link(..., state={"mu": Moment(...), "count": Count()})` says of each of its fields
what it is; `migrate`, the exchange with PyTorch, and whatever else acts on the state of whole optimizers read it.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Moment:
    """A field with an array for every parameter: a statistic of what comes into the link, gathered over the steps.

    Attributes:
        of: What it is, in words, with `{}` for what comes in: `"average of {}"`. Two moments are the same quantity if
            these words are.
        weight: What a new value is multiplied by when it comes in, from the link's hyperparameters by name:
            1 − dampening for a dampened sum. `None` for 1. Two sums of one quantity that differ in the weight differ by
            a factor.
        is_average: Whether the weights of the old and the new add up to 1, from the hyperparameters by name; such
            moments are of one size, whatever their memory, and are never rescaled for another decay. An exponential
            average has to say so.
        power: In which power what comes in goes into it: 2 for a mean of squares.
        torch: What PyTorch's optimizers call it in their `state_dict`; where that depends on the slot the link is in,
            a dictionary from slots (`"first"`, `""` for all others) to names.
        if_unchanged: Whether it makes no sense in a link with other hyperparameters: half a sum of gradients.
        slot: If the link is a whole optimizer in one, the slot in which the chain that does the same has it: `"first"`.
        is_nonnegative: Whether none of its values is ever below 0, if that does not follow from `power`.
        is_subtracted: Whether it is subtracted from another moment of about its size, or that from it, so that all of
            its digits count.
        is_fed_back: Whether what it scales goes into it, so that the noise of what comes in grows from step to step.

    Example:
        >>> from linkax.transforms import Moment
        >>> Moment("mean square of {}", power=2, torch={"": "square_avg", "second": "exp_avg_sq"}).torch_name("second")
        'exp_avg_sq'
    """

    of: str
    weight: Callable[..., Any] | None = None
    is_average: Callable[..., bool] | None = None
    power: int = 1
    torch: str | Mapping[str, str] = ""
    if_unchanged: bool = False
    slot: str = ""
    is_nonnegative: bool = False
    is_subtracted: bool = False
    is_fed_back: bool = False

    @property
    def has_sign(self) -> bool:
        """Whether its values may be negative: a square's never are."""
        return self.power != 2 and not self.is_nonnegative

    @property
    def torch_names(self) -> tuple[str, ...]:
        """All names that PyTorch has for it."""
        names = (self.torch,) if isinstance(self.torch, str) else tuple(self.torch.values())
        return tuple(name for name in names if name)

    def torch_name(self, slot: str) -> str:
        """PyTorch's name for it where the link is in a slot; empty if there is none."""
        return self.torch if isinstance(self.torch, str) else self.torch.get(slot, self.torch.get("", ""))


@dataclasses.dataclass(frozen=True)
class Count:
    """A field with one whole number: how many steps the optimizer has taken.

    Attributes:
        is_inside: Whether it counts the steps of what is inside the link, which may rest in some of the link's own.
        is_needed: Whether the updates depend on it.

    Example:
        >>> from linkax.transforms import Count
        >>> Count().is_needed
        True
    """

    is_inside: bool = False
    is_needed: bool = True


@dataclasses.dataclass(frozen=True)
class Gathered:
    """A field with one number that follows from the steps taken, such as the weight that an average has gathered.

    It belongs to the moments of its own link, or to those of the links in front of it, and starts anew where they do.

    Attributes:
        after: Its value after so many steps from the start: a function of the number of steps, and of the link's
            hyperparameters by name.
        torch: What PyTorch calls it, if it keeps it.
        from_torch: From PyTorch's number to ours; the same function leads back.

    Example:
        >>> from linkax.transforms import Gathered
        >>> weight = Gathered(lambda steps, decay: 1 - decay**steps)
        >>> weight.after(2, decay=0.5)
        0.75
    """

    after: Callable[..., float]
    torch: str = ""
    from_torch: Callable[[float], float] = lambda value: value


@dataclasses.dataclass(frozen=True)
class Own:
    """A field that means something only to the link itself; it is kept where a link of that name goes on.

    Attributes:
        if_unchanged: Whether it makes no sense in a link with other hyperparameters.
        is_value: Whether it holds a hyperparameter that somebody may set while training runs.
        is_scheduled: Whether that hyperparameter is a schedule, which has its value computed anew in every step.

    Example:
        >>> from linkax.transforms import Own
        >>> Own().is_value
        False
    """

    if_unchanged: bool = False
    is_value: bool = False
    is_scheduled: bool = False


@dataclasses.dataclass(frozen=True)
class Weights:
    """A field with what parameters of low precision lack, an array for each of these, and `None` for all others.

    A parameter with its array is a float32 weight.

    Attributes:
        full: From a parameter and its array to the float32 weight.
        kept: From a parameter and the float32 weight to the array.
        nearest: From a float32 weight, and an array of the parameter's dtype, to the parameter that stands for it.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import Weights
        >>> residue = Weights(lambda p, r: p + r, lambda p, w: w - p, lambda w, p: w.astype(p.dtype))
        >>> p = residue.nearest(jnp.float32(1.001), jnp.ones((), jnp.bfloat16))
        >>> float(p), f"{residue.full(p, residue.kept(p, jnp.float32(1.001))):.3f}"
        (1.0, '1.001')
    """

    full: Callable[[Any, Any], Any]
    kept: Callable[[Any, Any], Any]
    nearest: Callable[[Any, Any], Any]


Field = Moment | Count | Gathered | Own | Weights


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
        quantity = out.replace("{}", self.quantity)
        if isinstance(factor, int | float):
            return Stream(quantity, self.factor * factor, self.unknown)
        return Stream(quantity, self.factor, (*self.unknown, factor))

    def squared(self) -> "Stream":
        """The same quantity, with everything it was multiplied by squared."""
        return Stream(self.quantity, self.factor**2, self.unknown * 2)
