"""What the arrays in a link's state mean, declared next to the link so that no other file has to know.

A link's state is a named tuple. `@link(..., state={"mu": Moment(...), "count": Count()})` says what each of its fields
is. `migrate`, the exchange with PyTorch, and everything else that acts on the state of whole optimizers reads these
declarations.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Moment:
    """A field with an array for every parameter: a statistic of the link's inputs, accumulated over the steps.

    Attributes:
        of: What it is, in words, with `{}` for the link's input: `"average of {}"`. Two moments are the same quantity
            if their words are the same.
        weight: The factor of a new value as it is added, a function of the link's hyperparameters by name:
            1 − dampening for a dampened sum. `None` for 1. Two sums of one quantity with different weights differ by a
            factor.
        is_average: Whether the weights of the old and the new value add up to 1, a function of the hyperparameters by
            name. Such moments have the same scale, whatever their decay, and are never rescaled for another one. An
            exponential average must declare this.
        power: The power of the input that is accumulated: 2 for a mean of squares.
        torch: Its name in the `state_dict` of PyTorch's optimizers; if that depends on the slot the link is in, a
            dictionary from slots (`"first"`, `""` for all others) to names.
        if_unchanged: Whether it is meaningless in a link with other hyperparameters, such as a partial sum of
            gradients.
        slot: If the link is a whole optimizer in one, the slot that holds this moment in the equivalent chain:
            `"first"`.
        is_nonnegative: Whether its values are never below 0, if that does not follow from `power`.
        is_absolute: Whether it is made from the size of the link's input, so that it has no sign, and that of the input
            makes no difference.
        is_subtracted: Whether it is subtracted from another moment of about its size, or the other from it, so that all
            of its digits count.
        is_fed_back: Whether it accumulates what it scales itself, so that noise in the input grows from step to step.

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
    is_absolute: bool = False
    is_subtracted: bool = False
    is_fed_back: bool = False

    @property
    def has_sign(self) -> bool:
        """Whether its values may be negative; squares never are."""
        return self.power != 2 and not self.is_nonnegative and not self.is_absolute

    @property
    def is_of_weights(self) -> bool:
        """Whether it is an average of the parameters themselves."""
        return self.of.endswith("of the parameters")

    @property
    def torch_names(self) -> tuple[str, ...]:
        """All names that PyTorch uses for it."""
        names = (self.torch,) if isinstance(self.torch, str) else tuple(self.torch.values())
        return tuple(name for name in names if name)

    def torch_name(self, slot: str) -> str:
        """PyTorch's name for it if the link is in a given slot; empty if there is none."""
        return self.torch if isinstance(self.torch, str) else self.torch.get(slot, self.torch.get("", ""))


@dataclasses.dataclass(frozen=True)
class Averages(Moment):
    """A moment that is an average of the parameters themselves; `linkax.averaged_weights` reads it.

    Attributes:
        number: The field of the same link that says how many weights are in it; where it is 0, the parameters count.

    Example:
        >>> from linkax.transforms import Averages
        >>> Averages("average of the parameters", power=0).number
        'n_averaged'
    """

    number: str = "n_averaged"


@dataclasses.dataclass(frozen=True)
class Count:
    """A field with one integer: the number of steps the optimizer has taken.

    Attributes:
        is_inside: Whether it counts the steps of what is inside the link, which may skip some of the link's own steps.
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
    """A field with one number that follows from the steps taken, such as the weight that an average has accumulated.

    It belongs to the moments of its own link, or to those of the links before it, and restarts when they do.

    Attributes:
        after: Its value after a number of steps from the start: a function of that number, and of the link's
            hyperparameters by name.
        torch: PyTorch's name for it, if PyTorch stores it.
        from_torch: Converts PyTorch's number to ours; the same function converts back.

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
    """A field that means something only to the link itself; `migrate` keeps it where a link of the same name remains.

    Attributes:
        if_unchanged: Whether it is meaningless in a link with other hyperparameters.
        is_value: Whether it holds a hyperparameter that may be set during training.
        is_scheduled: Whether that hyperparameter is a schedule, whose value is recomputed at every step.

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
    """A field with what low-precision parameters lack: an array for each of them, and `None` for all others.

    A parameter together with its array is a float32 weight.

    Attributes:
        full: Maps a parameter and its array to the float32 weight.
        kept: Maps a parameter and the float32 weight to the array.
        nearest: Maps a float32 weight, and an array of the parameter's dtype, to the parameter that represents it.

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
    """What passes between two links: a quantity, times a known factor, times factors that are not known in advance.

    Attributes:
        quantity: What it is, in words: "gradient", "ratio", "average of gradient".
        factor: The number it has been multiplied by, such as minus the learning rate.
        unknown: What else it has been multiplied by: schedules, and links whose effect is not known.
    """

    quantity: str = "gradient"
    factor: float = 1.0
    unknown: tuple[Hashable, ...] = ()

    def through(self, out: str, factor: Any) -> "Stream":
        """The output of a link that turns `{}` into `out` and multiplies by `factor`: a number, or anything unknown."""
        quantity = out.replace("{}", self.quantity)
        if isinstance(factor, int | float):
            return Stream(quantity, self.factor * factor, self.unknown)
        return Stream(quantity, self.factor, (*self.unknown, factor))

    def squared(self) -> "Stream":
        """The same quantity, with all of its factors squared."""
        return Stream(self.quantity, self.factor**2, self.unknown * 2)
