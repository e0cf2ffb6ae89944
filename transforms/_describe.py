"""How a link and its hyperparameters are printed."""

import contextlib
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from ._check import is_traced
from ._trees import is_function

_LONGEST_LINE = 88


def call_text(name: str, described: Mapping[str, str]) -> str:
    """Writes a call with keyword arguments on one line."""
    return f"{name}({', '.join(f'{key}={text}' for key, text in described.items())})"


def describe(value: Any) -> str:
    """Writes one hyperparameter on one line: a number as is, a schedule as the call that made it, a tracer as such."""
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
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
        return call_text(type(value).__name__, {name: describe(one) for name, one in zip(fields, value)})
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(describe, value))}]"
    if is_function(value):
        return describe_function(value)
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"<{type(value).__name__}>"


def describe_function(function: Callable) -> str:
    """Writes a function; one made by a call, like Optax's schedules, is written as that call with its arguments."""
    if getattr(function, "__qualname__", "").startswith("with_extra_args_support."):
        return describe(closed_over(function)["tx"])
    maker, nested, own = getattr(function, "__qualname__", type(function).__name__).partition(".<locals>")
    if not nested or "<lambda>" in (maker, own.removeprefix(".")):
        return getattr(function, "__name__", repr(function))
    given = closed_over(function)
    if maker == "join_schedules" and {"schedules", "boundaries"} <= given.keys():
        return _joined(given["schedules"], given["boundaries"])
    shown = numbers.Real | jax.Array | np.ndarray | optax.GradientTransformation | list | tuple
    return call_text(maker, {name: describe(value) for name, value in given.items() if isinstance(value, shown)})


def _joined(schedules: Sequence[Callable], boundaries: Sequence[Any]) -> str:
    """Joined schedules, in words that fit on one line."""
    texts = [describe(schedule) for schedule in schedules]
    for parts in (texts, [text.partition("(")[0] for text in texts]):
        steps = [f"{part} until step {describe(step)}" for part, step in zip(parts, boundaries)]
        line = f"<{', '.join([*steps, f'then {parts[-1]}'])}>"
        if len(line) <= _LONGEST_LINE:
            return line
    return f"<{len(texts)} schedules until step {describe(boundaries[-1])}, then {texts[-1].partition('(')[0]}>"


def closed_over(function: Callable) -> dict[str, Any]:
    """The variables that a function closes over, as far as they have values yet."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    contents = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or ()):
        with contextlib.suppress(ValueError):  # the cell is still empty
            contents[name] = cell.cell_contents
    return contents
