"""How a link and its hyperparameters are written down for people."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ._check import is_traced


def call_text(name: str, described: Mapping[str, str]) -> str:
    """Writes a call with keyword arguments on one line."""
    return f"{name}({', '.join(f'{key}={text}' for key, text in described.items())})"


def describe(value: Any) -> str:
    """Writes one hyperparameter: a number plainly, a schedule as the call that made it, a tracer as what it is."""
    if is_traced(value):
        return f"<traced {value.dtype}>"
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.item():.6g}" if value.ndim == 0 else f"<{value.dtype}{list(value.shape)}>"
    if isinstance(value, float):
        return repr(float(f"{value:.12g}"))  # 1 - 0.9 is shown as 0.1
    if isinstance(value, dict | list) or (isinstance(value, tuple) and type(value) is tuple):
        text = repr(value)
        return text if len(text) <= 40 else f"<{type(value).__name__} of {len(jax.tree.leaves(value))} leaves>"
    if callable(value):
        return describe_function(value)
    return repr(value)


def describe_function(function: Callable) -> str:
    """Writes a function; one made by a call, like Optax's schedules, as that call and the numbers it closed over."""
    maker, nested, _ = getattr(function, "__qualname__", type(function).__name__).partition(".<locals>")
    if not nested or maker == "<lambda>" or function.__qualname__.endswith("<lambda>"):
        return getattr(function, "__name__", repr(function))
    return call_text(maker, {name: describe(value) for name, value in _numbers_closed_over(function).items()})


def describe_transformation(update: Callable) -> tuple[str, dict[str, Any]]:
    """Returns the name of the function that made a foreign transformation, and the numbers it was given."""
    name = getattr(update, "__qualname__", type(update).__name__).partition(".<locals>")[0]
    if name == "with_extra_args_support":  # Optax's adapter; what it adapts is what people know
        adapted = dict(_closed_over(update))["tx"]
        return describe_transformation(adapted.update)
    return name, _numbers_closed_over(update)


def _numbers_closed_over(function: Callable) -> dict[str, Any]:
    return {
        name: value
        for name, value in _closed_over(function)
        if isinstance(value, numbers.Real | jax.Array | np.ndarray)
    }


def _closed_over(function: Callable) -> list[tuple[str, Any]]:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return [(name, cell.cell_contents) for name, cell in zip(names, getattr(function, "__closure__", None) or ())]
