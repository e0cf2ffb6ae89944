"""What schedules have given over many steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def over_steps(value: Any, steps: int) -> np.ndarray:
    """A hyperparameter at the steps 0 … steps − 1, in float64."""
    if not callable(value):
        return np.full(steps, float(value))
    if steps == 0:
        return np.zeros(0)
    try:
        found: Any = jax.vmap(lambda count: jnp.asarray(value(count)))(jnp.arange(steps))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):  # Python decides on the count
        found = [value(np.asarray(count)) for count in range(steps)]
    return np.asarray(found, np.float64)


def weight_gathered(decays: np.ndarray) -> float:
    """1 − d_1 d_2 …: the weight that an average from zero with these decays has gathered."""
    with np.errstate(divide="ignore"):  # a decay of 0 keeps nothing: the logarithm is −∞, and the weight 1
        return float(-np.expm1(np.sum(np.log(decays))))
