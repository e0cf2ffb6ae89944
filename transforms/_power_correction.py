"""Bias correction as PyTorch computes it where a decay changes: by a power of the present one.

u_t / (1 − decay_t^t)
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._check import ProperFraction
from ._leaves import increment, like, map_updates, over, scalar_dtype, wide
from ._link import InFront, link
from ._meaning import Count


class PowerBiasCorrectionState(NamedTuple):
    """State of `power_bias_correction`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken


@link(
    "moment",
    is_leafwise=True,
    is_row_local=True,
    state={"count": Count()},
    out="corrected {}",
    knobs={"decay": InFront("first")},
)
def power_bias_correction(decay: ProperFraction) -> optax.GradientTransformation:
    """Divides its input by 1 − decay_t^t, with the decay of the present step t, counted from 1.

    For a decay that stays the same this is `bias_correction`. For one that changes, such as the first beta of Adam
    under a scheduler that cycles it, the weight that the average has accumulated is 1 − decay_1 ⋯ decay_t, which
    `bias_correction` divides by; this link divides by what PyTorch does.

    Args:
        decay: The decay of the incoming average, β, in [0, 1), or the same schedule of it.

    Returns:
        A link at the place `"moment"` with state `PowerBiasCorrectionState(count)`.

    Raises:
        ValueError: If `decay` is outside [0, 1).

    Differences:
        PyTorch's Adam and Optax's, with a scheduled β, do this. Keras's β cannot change.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import power_bias_correction
        >>> link = power_bias_correction(lambda count: 0.5 + 0.25 * count)
        >>> state = link.init(jnp.float32(0))
        >>> for _ in range(2):
        ...     u, state = link.update(jnp.float32(1.0), state)
        ...     print(f"{u:.4f}")  # 1 / (1 − 0.5), then 1 / (1 − 0.75²)
        2.0000
        2.2857

    Source:
        `torch.optim.Adam`, which stores the steps and takes β from the parameter group.
    """

    def init(params):
        del params
        return PowerBiasCorrectionState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        dtype = scalar_dtype(updates if params is None else params)
        count = increment(state.count)
        # The logarithm of a Python number is in float64; of an array, it is safe where the decay is 0.
        if isinstance(decay, jax.Array):
            now = jnp.asarray(decay, jnp.promote_types(decay.dtype, dtype))
            log = jnp.where(now > 0, jnp.log(jnp.where(now > 0, now, 1)), -jnp.inf)
        else:
            log = math.log(decay) if decay > 0 else -math.inf  # pyright: ignore[reportOperatorIssue, reportArgumentType]  # a number by now
        weight = -jnp.expm1(count.astype(dtype) * log)
        return map_updates(lambda u: like(over(wide(u), weight), u), updates), PowerBiasCorrectionState(count)

    return optax.GradientTransformation(init, update)
