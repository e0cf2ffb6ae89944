"""What an argument may be: it is declared in the signature and checked when a link is built.

A factory declares what it accepts through its annotations (`decay: Fraction`, `eps: NonNegative`,
`first_step: Literal["zeros", "gradient"]`); `checked` reads them once and rejects everything else with a message that
names the function, the argument, the allowed range and the value. Traced values are not known yet, so they pass.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Collection, Sequence
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

    With `schedule`, a function of the step count may take the number's place; with `own_count` as well, it is one of a
    count of the link's own, and the link itself calls it. With `constant`, the number is read only once.
    """

    text: str
    schedule: bool = False
    constant: bool = False
    own_count: bool = False

    def __contains__(self, value: float) -> bool:
        low, high = (float(bound) for bound in self.text[1:-1].split(","))
        above = value >= low if self.text[0] == "[" else value > low
        return above and (value <= high if self.text[-1] == "]" else value < high)

    def __str__(self) -> str:
        return f"a number in {self.text}" + (" or a schedule" if self.schedule else "")


Number = float | jax.Array
"""A number: a Python number, or a JAX array of shape (), traced or not."""

Schedule = Callable[[jax.typing.ArrayLike], Any]
"""A function from the step count, which starts at 0, to a number, such as Optax's schedules."""

Constant = Annotated[Number, Interval("[0, inf)", constant=True)]
"""A finite number of at least 0 that stays the same throughout training, such as an initial accumulator."""

NonNegative = Annotated[Number | Schedule, Interval("[0, inf)", schedule=True)]
"""A finite number of at least 0, or a schedule of such numbers: ε, a decay over time."""

Positive = Annotated[Number, Interval("(0, inf)")]
"""A finite number above 0: what something is divided by."""

Fraction = Annotated[Number | Schedule, Interval("[0, 1]", schedule=True)]
"""A number in [0, 1], or a schedule of such numbers: a decay for which 1 is still meaningful (nothing is forgotten)."""

ProperFraction = Annotated[Number | Schedule, Interval("[0, 1)", schedule=True)]
"""A number in [0, 1), or a schedule of such numbers: a decay β where something is divided by 1 − β^t."""

Rate = Annotated[Number | Schedule, Interval("[0, inf)", schedule=True)]
"""A finite number of at least 0, or a schedule of such numbers: a learning rate, a weight decay."""

Limit = Annotated[Number | Schedule, Interval("[0, inf]", schedule=True)]
"""A number of at least 0, also infinity, or a schedule of such numbers: what is allowed at most."""


def whole_number(what: str, value: Any, most: int | None = None, *, least: int = 0) -> int:
    """The value as a Python integer; raises unless it is one of at least `least`, and at most `most` if given."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{what} must be an integer {allowed}, got {value!r}")
    return int(value)


def is_traced(value: Any) -> bool:
    """Whether `value` stands for a number that JAX does not know yet."""
    return isinstance(value, Tracer)


def known(value: Any) -> float | None:
    """A hyperparameter's value, or `None` if it is traced or a schedule.

    (Inside `jax.jit`, comparing the hyperparameter itself would turn a known JAX array into a traced value.)
    """
    return None if is_traced(value) or callable(value) else float(value)


def is_absent(value: Any) -> bool:
    """Whether a hyperparameter is the plain Python number 0, in which case its link is left out of the chain.

    A JAX array never counts, not even a concrete zero: which links a chain has must not depend on whether it is built
    inside or outside `jax.jit` (`optax.inject_hyperparams` does both).
    """
    return isinstance(value, numbers.Real) and value == 0


class Arguments:
    """Turns the arguments of a call into all of a function's arguments by name, each checked.

    Attributes:
        defaults: The function's optional arguments and their default values.
        numbers: The arguments that are numbers or schedules.
        constants: Those of them that are read only once, before the first step.
        own_counts: Those of them whose schedules the function itself calls.
    """

    def __init__(self, function: Callable):
        self._name = function.__name__
        self._signature = inspect.signature(function)
        self._hints = get_type_hints(function, include_extras=True)
        parameters = self._signature.parameters.values()
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        options = {name: (hint, *get_args(hint)) for name, hint in self._hints.items()}  # the hint may be `… | None`
        found = {name: next(filter(None, map(_interval, hints)), None) for name, hints in options.items()}
        intervals = {name: interval for name, interval in found.items() if interval is not None}
        self.numbers = tuple(intervals)
        self.constants = tuple(name for name, interval in intervals.items() if interval.constant)
        self.own_counts = tuple(name for name, interval in intervals.items() if interval.own_count)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            names = tuple(self._signature.parameters)
            meant = list(dict.fromkeys(name for one in kwargs if one not in names for name in alike(one, names)))
            known_names = f"its arguments are {', '.join(names)}{did_you_mean(meant)}"
            raise TypeError(f"{self._name}: {error}; {known_names}") from None
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


_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "alpha": ("decay", "learning_rate"),
    "beta": ("decay", "momentum", "b1"),
    "beta1": ("b1", "decay"),
    "beta2": ("b2", "decay"),
    "beta_1": ("b1", "decay"),
    "beta_2": ("b2", "decay"),
    "betas": ("b1 b2",),
    "b1": ("decay",),
    "b2": ("decay",),
    "epsilon": ("eps",),
    "l2": ("weight_decay",),
    "lr": ("learning_rate",),
    "mask": ("weight_decay_mask",),
    "momentum": ("decay",),
    "mu": ("momentum", "decay"),
    "rho": ("decay",),
    "step_size": ("learning_rate",),
    "wd": ("weight_decay",),
}
"""What PyTorch, Keras, Optax and the papers call arguments, and what they may be called here, the most likely first."""


def alike(name: str, names: Collection[str]) -> list[str]:
    """Those of the names that a user who wrote another name may have meant."""
    for meant in _ELSEWHERE.get(name, ()):
        if all(one in names for one in meant.split()):
            return meant.split()
    return difflib.get_close_matches(name, names, n=1)


def did_you_mean(names: Sequence[str]) -> str:
    """The end of an error message about an unknown name, if a similar name is known."""
    return f"; did you mean {' and '.join(filter(None, (', '.join(names[:-1]), *names[-1:])))}?" if names else ""


def _interval(hint: Any) -> Interval | None:
    """The interval that a hint annotates a number with."""
    return get_args(hint)[1] if get_origin(hint) is Annotated else None


def _check_one(what: str, value: Any, hint: Any) -> Any:
    """Returns `value` in the form that factories expect, or raises if `hint` does not allow it."""
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
        _check_schedule(what, value, interval)
        return value
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()  # Python numbers adopt the precision of the other operand, NumPy ones impose their own
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            value = number = float(value)  # JAX has no arithmetic for fractions, and 1 and 1.0 should be the same
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


def _check_schedule(what: str, schedule: Schedule, interval: Interval) -> None:
    """Raises if a schedule is not a function from the step count to one real number, or starts outside the interval."""
    from ._describe import describe  # which itself imports this file

    refusal = f"{what} must be {interval}, got {describe(schedule)}"
    name = getattr(schedule, "__name__", "")
    hint = f"; call it: {name}(...)" if name.isidentifier() else ""
    try:
        inspect.signature(schedule).bind(0)
    except TypeError:
        arguments = ", ".join(inspect.signature(schedule).parameters) or "nothing"
        raise TypeError(f"{refusal}, which takes {arguments} instead of the step count alone{hint}") from None
    except ValueError:  # a built-in function without a signature
        pass
    try:
        first = _first(schedule)
    except Exception as error:
        raise ValueError(f"{refusal}, which fails at step 0: {type(error).__name__}: {error}") from error
    if callable(first):
        raise TypeError(f"{refusal}, which returns a function and not a number{hint}")
    arrays = jax.Array | np.ndarray | np.number | jax.ShapeDtypeStruct
    if isinstance(first, bool) or not isinstance(first, int | float | arrays):
        raise TypeError(f"{refusal}, which returns {first!r}")
    if np.shape(first) != ():
        raise ValueError(f"{refusal}, which returns an array of shape {np.shape(first)}")
    dtype = jnp.result_type(first)
    if not jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{refusal}, which returns an array of dtype {dtype}")
    if not isinstance(first, jax.ShapeDtypeStruct) and float(first) not in interval:
        raise ValueError(f"{refusal}, which starts at {float(first)!r}")


def _first(schedule: Schedule) -> Any:
    """The value of a schedule at step 0, as far as it is known without running (and so compiling) its operations."""
    dtype = jax.dtypes.canonicalize_dtype(jnp.int64)
    found: list[Any] = []

    def note(count: jax.Array) -> None:
        first = schedule(count)
        found.append(jax.ShapeDtypeStruct(first.shape, first.dtype) if is_traced(first) else first)

    try:
        jax.eval_shape(note, jax.ShapeDtypeStruct((), dtype))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):  # Python branches on the count
        return schedule(np.zeros((), dtype))
    return found[0]
