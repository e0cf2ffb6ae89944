"""Points that fail: they are found by dividing the call in which they ran, and the others go on."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

LONGEST = 500  # characters of a message


class Failure(RuntimeError):
    """An error of another host or process, whose text is a short message already."""


class Computed(NamedTuple):
    """The metrics of some points, and the messages of those that failed, by flat index; their metrics are zeros."""

    metrics: dict[str, np.ndarray]
    errors: dict[int, str]


def divide(
    compute: Callable[[np.ndarray], dict[str, np.ndarray]],
    indices: np.ndarray,
    likes: Mapping[str, jax.ShapeDtypeStruct],
) -> Computed:
    """Computes the points; if that fails, each half of them, down to the single points at fault.

    A single point takes the place of its whole batch, so the others are computed by the program that would have
    computed them without it. A failure for want of memory is no point's fault, because all need the same: it is raised.
    """
    try:
        return Computed(compute(indices), {})
    except Exception as error:
        if is_for_memory(error):
            raise
        if len(indices) == 1:
            return failed(indices, likes, message_of(error))
    half = len(indices) // 2
    return joined(divide(compute, indices[:half], likes), divide(compute, indices[half:], likes))


def failed(indices: np.ndarray, likes: Mapping[str, jax.ShapeDtypeStruct], message: str) -> Computed:
    """What there is of points that failed with a message."""
    zeros = {name: np.zeros((len(indices), *like.shape), like.dtype) for name, like in likes.items()}
    return Computed(zeros, dict.fromkeys(indices.tolist(), message))


def joined(first: Computed, second: Computed) -> Computed:
    """Two halves as one."""
    metrics = {name: np.concatenate([values, second.metrics[name]]) for name, values in first.metrics.items()}
    return Computed(metrics, {**first.errors, **second.errors})


def raise_together(error: Exception | None) -> None:
    """Raises the error of this host, or another's: a host that goes on alone would wait for the others for ever."""
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return
    own = np.zeros(4 * LONGEST, np.uint8)  # a character is at most four bytes
    text = b"" if error is None else message_of(error).encode()
    own[: len(text)] = np.frombuffer(text, np.uint8)
    for other in np.asarray(multihost_utils.process_allgather(own)):
        if message := other.tobytes().rstrip(b"\0").decode():
            raise Failure(message) from error


def is_for_memory(error: BaseException) -> bool:
    """Whether a device or this machine ran out of memory."""
    signs = ("RESOURCE_EXHAUSTED", "CompileTimeHbmOom", "Out of memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def message_of(error: BaseException) -> str:
    """What an error says, without the frames of JAX: an exception in a callback arrives as the text of a traceback."""
    text = str(error)
    if isinstance(error, Failure):
        return text
    if "Traceback (most recent call last):" in text:
        text = re.split(r"\n  File .*\n", text)[-1]
        text = re.sub(r"^ .*\n", "", text, flags=re.MULTILINE)  # the line of code, in Pythons that print it
    else:
        text = f"{type(error).__name__}: {text}"
    return " ".join(text.split())[:LONGEST]
