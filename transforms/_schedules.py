"""The values of schedules over many steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 2**16  # steps at a time


def at_steps(value: Any, counts: np.ndarray) -> np.ndarray:
    """A hyperparameter at some steps, in float64."""
    if not callable(value):
        return np.full(len(counts), float(value))
    try:
        found: Any = jax.vmap(lambda count: jnp.asarray(value(count)))(jnp.asarray(counts))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):  # Python branches on the count
        found = [value(count) for count in counts]
    return np.asarray(found, np.float64)


def weight_gathered(steps: int, decays: Callable[[np.ndarray], np.ndarray]) -> float:
    """1 − d_1 d_2 … d_steps: the weight that an average with these decays has accumulated from zero.

    `decays` gives them at steps counted from 0. Once the weight is 1, the remaining steps are skipped.
    """
    log = 0.0
    for start in range(0, steps, _BLOCK):
        with np.errstate(divide="ignore"):  # a decay of 0 keeps nothing: the logarithm is −∞, and the weight 1
            log += float(np.sum(np.log(decays(np.arange(start, min(steps, start + _BLOCK))))))
        if log < -40:  # 1 − e⁻⁴⁰ is 1 in float64
            return 1.0
    return -float(np.expm1(log))


def age_gathered(steps: int, decays: Callable[[np.ndarray], np.ndarray]) -> float:
    """The ages of the values in an average with these decays, each times its weight: the newest has age 0.

    `decays` gives them at steps counted from 0. Values of which e⁻⁶⁰ is left are skipped.
    """
    total, log = 0.0, 0.0  # of what is left of a value at the end of the block
    for end in range(steps, 0, -_BLOCK):
        counts = np.arange(max(0, end - _BLOCK), end)
        now = decays(counts)
        with np.errstate(divide="ignore"):
            logs = np.log(now)[::-1]
        left = np.exp(log + np.concatenate([[0.0], np.cumsum(logs[:-1])]))  # of the newest value first
        total += float(np.sum((1 - now[::-1]) * left * (steps - 1 - counts[::-1])))
        log += float(np.sum(logs))
        if log < -60:
            break
    return total
