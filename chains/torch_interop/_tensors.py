"""Reading tensors from somebody else's file: anything that is not an array of numbers is a problem, not a crash."""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

LAST_STEP = int(np.iinfo(np.int32).max)
"""The largest step that a chain counts."""


def as_numpy(what: str, value: Any, problems: list[str]) -> np.ndarray | None:
    """A tensor or array as a NumPy array, possibly in the same memory; `None`, with a problem added, if not numeric."""
    if hasattr(value, "detach"):
        if (kind := _unreadable(value)) is not None:
            problems.append(f"{what} must be an ordinary tensor of numbers, got {kind}")
            return None
        try:
            value = _as_array(value.detach().cpu().resolve_conj().resolve_neg())
        except Exception as error:  # an unknown kind of tensor
            problems.append(f"{what} must be an ordinary tensor of numbers, got one that cannot be read ({error})")
            return None
    try:
        array = np.asarray(value)
    except Exception as error:  # such as lists of different lengths
        problems.append(f"{what} must be an array of numbers, got one that cannot be read ({error})")
        return None
    if array.dtype.kind not in "biufc" and not is_short(array.dtype):
        problems.append(f"{what} must be an array of numbers, got {_shown(value)}")
        return None
    return array


def is_short(dtype: Any) -> bool:
    """Whether numbers are bfloat16 or float8, which NumPy knows from JAX alone."""
    return dtype.kind == "V" and jnp.issubdtype(dtype, jnp.floating)


def _unreadable(tensor: Any) -> str | None:
    """Why a PyTorch tensor is not an array of numbers."""
    if getattr(tensor, "is_meta", False):
        return "one on the device meta, which has no values"
    if getattr(tensor, "is_quantized", False):
        return f"a quantised one of {tensor.dtype}"
    layout = str(getattr(tensor, "layout", "torch.strided"))
    return None if layout == "torch.strided" else f"one with the layout {layout}"


def _as_array(tensor: Any) -> np.ndarray:
    """The tensor's numbers as NumPy sees them, in the same memory if its dtype allows."""
    torch, dtype = sys.modules["torch"], str(tensor.dtype).removeprefix("torch.")
    if dtype == "bfloat16" or dtype.startswith("float8"):
        bits = tensor.view(torch.uint16 if dtype == "bfloat16" else torch.uint8)
        return bits.numpy().view(jnp.dtype(dtype))
    return (tensor.to(torch.complex64) if dtype == "complex32" else tensor).numpy()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def as_moment(what: str, value: Any, problems: list[str]) -> np.ndarray | None:
    """An array of finite real or complex numbers; `None`, with a problem added, if it is not one."""
    array = as_numpy(what, value, problems)
    if array is None:
        return None
    if array.dtype.kind not in "fc" and not is_short(array.dtype):
        problems.append(f"{what} must be of floating-point numbers, got {array.dtype}")
        return None
    wrong = int(np.count_nonzero(~np.isfinite(array)))
    if wrong:
        problems.append(f"{what} must be finite, got {wrong} of {array.size} that are infinite or NaN")
        return None
    return array


def as_number(what: str, value: Any, problems: list[str]) -> float | None:
    """One finite real number; several equal ones count as one."""
    if isinstance(value, str | bytes) or value is None:
        problems.append(f"{what} must be a number, got {value!r}")
        return None
    array = as_numpy(what, value, problems)
    if array is None:
        return None
    if (array.dtype.kind not in "iuf" and not is_short(array.dtype)) or array.size == 0:
        problems.append(f"{what} must be a number, got {_shown(value)}")
        return None
    different = np.unique(array.astype(np.float32) if is_short(array.dtype) else array)  # NaN counts once
    if different.size > 1:
        shown = ", ".join(f"{one:g}" for one in different[:3])
        problems.append(f"{what} must be one number, got an array of {different.size} different ones ({shown}, …)")
        return None
    number = different[0].item()
    if not np.isfinite(number):
        problems.append(f"{what} must be a finite number, got {number}")
        return None
    return number


def as_steps(what: str, value: Any, problems: list[str]) -> int | None:
    """A number of steps; `None`, with a problem added, if a chain cannot count it."""
    number = as_number(what, value, problems)
    if number is None:
        return None
    if number < 0 or number > LAST_STEP or number != int(number):
        problems.append(f"{what} must be an integer number of steps from 0 to {LAST_STEP}, got {number:.12g}")
        return None
    return int(number)


def checked_steps(steps: Any, problems: list[str]) -> int | None:
    """The argument, if it is an integer."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        problems.append(f"steps must be an integer, got {steps!r}")
        return None
    return as_steps("steps", steps, problems)
