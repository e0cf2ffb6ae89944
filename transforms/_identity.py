"""When two hyperparameters are the same, so that links built alike compare and hash alike.

Numbers, strings and tuples know it themselves. Arrays are the same when dtype, shape and bytes are; functions
(schedules, masks, Optax's transformations) when they run the same code on the same closed-over values, defaults
and globals. All else is the same only as itself.
"""

import dis
import functools
import types
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._check import is_traced
from ._describe import closed_over


class _Self:
    """Equal to nothing but the same object, which it keeps alive so that its id is not reused."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Self) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def identity_of(value: Any, _seen: tuple[int, ...] = ()) -> Hashable:
    """Returns something hashable that is equal for two values exactly when they mean the same."""
    if id(value) in _seen:  # a function that closes over itself
        return "recursion"
    seen = (*_seen, id(value))
    if is_traced(value):
        return _Self(value)
    if isinstance(value, jax.Array | np.ndarray):
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            return _Self(value)
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        return ("array", str(array.dtype), array.shape, array.tobytes())
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if isinstance(value, types.MethodType):
        return ("method", identity_of(value.__func__, seen), identity_of(value.__self__, seen))
    if isinstance(value, functools.partial):
        return ("partial", *(identity_of(part, seen) for part in (value.func, value.args, value.keywords)))
    if isinstance(value, tuple) and type(value).__hash__ not in (tuple.__hash__, None):
        return value  # a link or a chain: it defines its own equality
    if isinstance(value, dict):
        return ("dict", frozenset((key, identity_of(item, seen)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return (type(value).__name__, *(identity_of(item, seen) for item in value))
    if isinstance(value, types.ModuleType | type):
        return value
    try:
        hash(value)
    except TypeError:
        return _Self(value)
    return (type(value).__name__, value) if isinstance(value, bool) else value


def _function(function: types.FunctionType, seen: tuple[int, ...]) -> Hashable:
    # A function that can be imported is the one its name says. What a call made, or a notebook, needs looking into.
    if "<" not in function.__qualname__ and function.__module__ != "__main__":
        return ("function", function.__module__, function.__qualname__, function.__code__)
    names = _names(function.__code__)
    globals_ = tuple(
        (name, identity_of(function.__globals__[name], seen)) for name in sorted(names & function.__globals__.keys())
    )
    defaults = identity_of((function.__defaults__, function.__kwdefaults__), seen)
    return ("function", function.__code__, identity_of(closed_over(function), seen), globals_, defaults)


def _names(code: types.CodeType) -> set[str]:
    """The global names that `code` and the functions defined inside it read."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return own.union(*map(_names, inner))
