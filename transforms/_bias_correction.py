"""Bias correction: an average that starts from zero, divided by the weight it has gathered so far.

u_t / (1 − decay^t), or behind a ratio u_t · √(1 − decay^t)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._check import ProperFraction
from ._leaves import increment, like, map_updates, one_minus_power, wide
from ._link import link


class BiasCorrectionState(NamedTuple):
    """State of `bias_correction`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken


@link("moment", is_row_local=True)
def bias_correction(decay: ProperFraction, *, behind_ratio: bool = False) -> optax.GradientTransformation:
    """Divides what comes in by 1 − decay^t, t counting the steps from 1.

    After t steps an exponential average that started from zero has gathered the weight 1 − decay^t; dividing by it
    makes it a true average from the first step on. The same link serves the first and the second moment.

    1 − decay^t is computed as −expm1(t · log decay), with the logarithm in float64 when `decay` is a Python number:
    in float32 the plain form is wrong by 1e-5 at decay = 0.999.

    Args:
        decay: The decay of the average that comes in, β, in [0, 1).
        behind_ratio: Whether it stands behind the `moment_ratio` whose second moment it corrects, instead of inside.
            It then multiplies by √(1 − β^t), and ε was added to the uncorrected root ("ε-hat").

    Returns:
        A link at the place `"moment"` with state `BiasCorrectionState(count)`.

    Raises:
        ValueError: If `decay` is outside [0, 1).

    Differences:
        PyTorch divides the root of the second moment by √(1 − β2^t), which is the same; TensorFlow folds both
        corrections into the learning rate, which changes what ε means: the second one moved behind the ratio.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from linkax.transforms import bias_correction, scale_by_momentum
        >>> tx = optax.chain(scale_by_momentum(0.7, dampening=0.7), bias_correction(0.7))
        >>> state = tx.init(jnp.float32(0))
        >>> for g in (100.0, 114.0):
        ...     average, state = tx.update(jnp.float32(g), state)
        ...     print(f"{average:.2f}")
        100.00
        108.24

    Source:
        Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 3; `torch.optim.Adam`.
    """

    def init(params):
        del params
        return BiasCorrectionState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        count = increment(state.count)

        def correct(u):
            value = wide(u)
            weight = one_minus_power(decay, count, jnp.finfo(value.dtype).dtype)
            return like(value * jnp.sqrt(weight) if behind_ratio else value / weight, u)

        return map_updates(correct, updates), BiasCorrectionState(count)

    return optax.GradientTransformation(init, update)
