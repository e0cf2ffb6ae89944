"""When two hyperparameters are the same, so that links built in the same way compare and hash equal.

A chain may be a key in a compilation cache, so "the same" has to be safe rather than clever. A function made by a call
(one of Optax's schedules, a lambda) is the same as another if both run the same code on the same plain values. If it
reaches anything that could change without the function changing (an object, a class, a user's module), it equals only
itself.
"""

import dataclasses
import dis
import functools
import types
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._check import is_traced
from ._describe import closed_over

_STEADY_MODULES = frozenset(
    ("jax", "jaxlib", "numpy", "optax", "chex", "flax", "linkax", "math", "operator", "functools", "builtins")
)
_LARGEST_ARRAY = 2**16  # bytes; a larger array is compared as an object and not copied into a key


class _Unsure(Exception):
    """Something may change without the function that reaches it changing."""


class _Self:
    """Equal to nothing but the same object, which it keeps alive so that its id is not reused."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Self) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def identity_of(value: Any) -> Hashable:
    """Returns something hashable that is equal for two values only if they mean the same."""
    if isinstance(value, dict):
        return ("dict", frozenset((key, identity_of(item)) for key, item in value.items()))
    try:
        return _identity(value, ())
    except _Unsure:
        return _Self(value)


def _identity(value: Any, seen: tuple[int, ...]) -> Hashable:
    if id(value) in seen:  # a function that closes over itself
        return "recursion"
    seen = (*seen, id(value))
    if value is None or isinstance(value, str | bytes | bool | int | float | complex | np.generic | np.dtype):
        return (type(value).__name__, value)
    if is_traced(value):
        return _Self(value)
    if isinstance(value, jax.Array | np.ndarray):
        return _array(value)
    if isinstance(value, types.FunctionType):
        return vars(value).get("_linkax") or _function(value, seen)
    if isinstance(value, functools.partial):
        return ("partial", *(_identity(part, seen) for part in (value.func, value.args, value.keywords)))
    if isinstance(value, dict):
        return ("dict", frozenset((_identity(key, seen), _identity(item, seen)) for key, item in value.items()))
    if _is_steady(type(value)) and getattr(getattr(type(value), "__dataclass_params__", None), "frozen", False):
        return (type(value), *(_identity(getattr(value, field.name), seen) for field in dataclasses.fields(value)))
    if isinstance(value, optax.GradientTransformation):
        if type(value).__hash__ is not tuple.__hash__:
            return value  # a link, a chain or the like: these define their own equality
        from ._link import as_one_link  # which imports this file

        if (link := as_one_link(value)).slots:
            return link
    if isinstance(value, list | tuple):
        return (type(value).__name__, *(_identity(item, seen) for item in value))
    if _is_steady(value):
        return _Self(value)
    raise _Unsure


def _array(array: Any) -> Hashable:
    if isinstance(array, jax.Array):
        if array.is_deleted() or not array.is_fully_addressable:
            raise _Unsure
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
    if array.nbytes > _LARGEST_ARRAY:
        raise _Unsure
    plain = np.asarray(array)
    return ("array", str(plain.dtype), plain.shape, plain.tobytes())


def _is_steady(value: Any) -> bool:
    """Whether a module, class or compiled function belongs to a library whose names do not change."""
    if isinstance(value, np.ufunc):  # it cannot change, and older NumPy does not say where it is from
        return True
    module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    kind = isinstance(value, types.ModuleType | type | types.BuiltinFunctionType | jnp.ufunc) or (
        type(value).__module__.partition(".")[0] in ("jax", "jaxlib") and callable(value)
    )
    return kind and isinstance(module, str) and module.partition(".")[0] in _STEADY_MODULES


def _function(function: types.FunctionType, seen: tuple[int, ...]) -> Hashable:
    if (function.__module__ or "").partition(".")[0] in _STEADY_MODULES and "<locals>" not in function.__qualname__:
        return _Self(function)
    if function.__closure__ is None and "<" not in function.__qualname__:
        return _Self(function)  # it has a name; after a reload, or when run again in a notebook, it is another function
    if vars(function).keys() - {"__wrapped__"}:
        raise _Unsure
    names = _names(function.__code__)
    globals_ = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
    reached = (closed_over(function), globals_, function.__defaults__, function.__kwdefaults__)
    return ("function", function.__code__, *(_identity(values, seen) for values in reached))


def _names(code: types.CodeType) -> set[str]:
    """The global names that `code` and the functions defined inside it read."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return own.union(*map(_names, inner))
