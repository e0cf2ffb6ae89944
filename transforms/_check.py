"""What an argument may be: declared in the signature, checked when a link is built.

A factory says what it accepts through its annotations (`decay: Fraction`, `eps: NonNegative`,
`first_step: Literal["zeros", "gradient"]`); `checked` reads them once and refuses everything else with
a message that names the function, the argument, the allowed range and the value. Values that JAX is
tracing have no value yet, so they pass.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A range of real numbers, written as mathematicians do: "[0, 1)" holds 0 but not 1.

    With `schedule`, a function of the step count may stand for the number.
    """

    text: str
    schedule: bool = False

    def __contains__(self, value: float) -> bool:
        low, high = (float(bound) for bound in self.text[1:-1].split(","))
        above = value >= low if self.text[0] == "[" else value > low
        return above and (value <= high if self.text[-1] == "]" else value < high)

    def __str__(self) -> str:
        return f"a number in {self.text}" + (" or a schedule" if self.schedule else "")


Number = float | jax.Array
"""A number: a Python one, or a JAX array of shape (), traced or not."""

Schedule = Callable[[jax.typing.ArrayLike], Any]
"""A function from the step count, from 0, to a number, such as Optax's schedules."""

NonNegative = Annotated[Number, Interval("[0, inf)")]
"""A finite number of at least 0: ε, an initial accumulator, a decay over time."""

Positive = Annotated[Number, Interval("(0, inf)")]
"""A finite number above 0: what something is divided by."""

Fraction = Annotated[Number, Interval("[0, 1]")]
"""A number in [0, 1]: a decay at which 1 still has a meaning (nothing is forgotten)."""

ProperFraction = Annotated[Number, Interval("[0, 1)")]
"""A number in [0, 1): a decay that is also divided by, as 1 − decay^t."""

Rate = Annotated[Number | Schedule, Interval("[0, inf)", schedule=True)]
"""A finite number of at least 0, or a schedule of such numbers: a learning rate, a weight decay."""


def is_traced(value: Any) -> bool:
    """Whether `value` stands for a number that JAX does not know yet."""
    return isinstance(value, Tracer)


def known(value: Any) -> float | None:
    """A hyperparameter's value, or `None` while it is traced.

    (Comparing the hyperparameter itself would make a traced value of a JAX array that is known, inside `jax.jit`.)
    """
    return None if is_traced(value) else float(value)


def is_absent(value: Any) -> bool:
    """Whether a hyperparameter is the plain Python number 0, which leaves its link out of a chain.

    A JAX array never does, not even a concrete zero: which links a chain has must not depend on whether it is
    built inside or outside `jax.jit` (`optax.inject_hyperparams` does both).
    """
    return isinstance(value, numbers.Real) and value == 0


class Arguments:
    """Turns the arguments of a call into all of a function's arguments by name, each checked.

    Attributes:
        defaults: The function's optional arguments and their default values.
        numbers: The arguments that are numbers or schedules.
    """

    def __init__(self, function: Callable):
        self._name = function.__name__
        self._signature = inspect.signature(function)
        self._hints = get_type_hints(function, include_extras=True)
        parameters = self._signature.parameters.values()
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        options = {name: (hint, *get_args(hint)) for name, hint in self._hints.items()}  # the hint may be `… | None`
        self.numbers = tuple(name for name, hints in options.items() if any(map(_interval, hints)))

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            names = ", ".join(self._signature.parameters)
            raise TypeError(f"{self._name}: {error}; its arguments are {names}") from None
        bound.apply_defaults()
        return {
            name: _check_one(f"{self._name}: {name}", value, self._hints.get(name, Any))
            for name, value in bound.arguments.items()
        }


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Checks the arguments of `function` against its annotations whenever it is called."""
    arguments = Arguments(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return function(**arguments(*args, **kwargs))  # type: ignore[call-arg]

    return call


def _interval(hint: Any) -> Interval | None:
    """The interval that a hint annotates a number with."""
    return get_args(hint)[1] if get_origin(hint) is Annotated else None


def _check_one(what: str, value: Any, hint: Any) -> Any:
    """Returns `value` as the factories want it, or raises if `hint` does not allow it."""
    if get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
        if value is None:
            return None
        hint = next(option for option in get_args(hint) if option is not type(None))
    if hint is bool:
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{what} must be True or False, got {value!r}")
        return bool(value)
    if get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            allowed = " or ".join(map(repr, get_args(hint)))
            raise ValueError(f"{what} must be {allowed}, got {value!r}")
        return value
    interval = _interval(hint)
    return value if interval is None else _check_number(what, value, interval)


def _check_number(what: str, value: Any, interval: Interval) -> Any:
    if callable(value) and interval.schedule:
        return value
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()  # a Python number follows the precision of what it meets, a NumPy one imposes its own
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            value = number = float(value)  # JAX has no arithmetic for fractions, and 1 and 1.0 are to be the same
        except OverflowError:
            number = math.inf
    elif isinstance(value, jax.Array | np.ndarray):
        if value.shape != ():
            raise ValueError(f"{what} must be {interval}, got an array of shape {value.shape}")
        if not jnp.issubdtype(value.dtype, jnp.floating) and not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"{what} must be {interval}, got an array of dtype {value.dtype}")
        if is_traced(value):
            return value
        number = float(value)
    else:
        raise TypeError(f"{what} must be {interval}, got {value!r}")
    if number not in interval:
        rounded, shown = "", repr(number if isinstance(value, jax.Array | np.ndarray) else value)
        if isinstance(value, jax.Array) and jnp.finfo(jnp.result_type(value, jnp.bfloat16)).bits < 32:
            rounded = f" (as {value.dtype}: give hyperparameters in float32, e.g. hyperparam_dtype=jnp.float32)"
        raise ValueError(f"{what} must be {interval}, got {shown}{rounded}")
    return value
