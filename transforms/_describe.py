"""How a link and its hyperparameters are written down for people."""

import contextlib
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from ._check import is_traced


def call_text(name: str, described: Mapping[str, str]) -> str:
    """Writes a call with keyword arguments on one line."""
    return f"{name}({', '.join(f'{key}={text}' for key, text in described.items())})"


def describe(value: Any) -> str:
    """Writes one hyperparameter on one line: a number plainly, a schedule as the call that made it, a tracer as one."""
    if is_traced(value):
        return f"<traced {value.dtype}>"
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.item():.6g}" if value.ndim == 0 else f"<{value.dtype}{list(value.shape)}>"
    if isinstance(value, float):
        return repr(float(f"{value:.12g}"))  # 1 - 0.9 is shown as 0.1
    if isinstance(value, optax.GradientTransformation):
        if (links := getattr(value, "links", None)) is not None:
            return f"chain({', '.join(map(repr, links))})"
        return repr(value) if hasattr(value, "place") else describe_function(value.update)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(describe, value))}]"
    if callable(value):
        return describe_function(value)
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"<{type(value).__name__}>"


def describe_function(function: Callable) -> str:
    """Writes a function; one made by a call, like Optax's schedules, as that call and what it was given."""
    if getattr(function, "__qualname__", "").startswith("with_extra_args_support."):
        return describe(closed_over(function)["tx"])
    maker, nested, own = getattr(function, "__qualname__", type(function).__name__).partition(".<locals>")
    if not nested or "<lambda>" in (maker, own.removeprefix(".")):
        return getattr(function, "__name__", repr(function))
    return call_text(maker, {name: describe(value) for name, value in _given(function).items()})


def describe_transformation(update: Callable) -> tuple[str, dict[str, Any]]:
    """Returns the name of the function that made a foreign transformation, and what it was given."""
    name = getattr(update, "__qualname__", type(update).__name__).partition(".<locals>")[0]
    if name == "with_extra_args_support":  # Optax's adapter; what it adapts is what people know
        return describe_transformation(closed_over(update)["tx"].update)
    return name, _given(update)


def _given(function: Callable) -> dict[str, Any]:
    """What of the values a function closed over is worth showing: numbers, other transformations, lists of them."""
    shown = numbers.Real | jax.Array | np.ndarray | optax.GradientTransformation | list | tuple
    return {name: value for name, value in closed_over(function).items() if isinstance(value, shown)}


def closed_over(function: Callable) -> dict[str, Any]:
    """The variables that a function has from the one it was defined in, as far as they have values yet."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    contents = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or ()):
        with contextlib.suppress(ValueError):  # the cell is still empty
            contents[name] = cell.cell_contents
    return contents
