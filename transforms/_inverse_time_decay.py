"""A step size that decays with the inverse of time.

u_t / (1 + (t − 1) · decay)   or   u_t / (1 + (t − 1) · decay)^power
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._check import NonNegative
from ._leaves import increment, like, map_updates, over, wide
from ._link import link
from ._meaning import Count


class InverseTimeDecayState(NamedTuple):
    """State of `scale_by_inverse_time_decay`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken


@link("step", is_leafwise=True, is_row_local=True, state={"count": Count()}, factor=None, knobs={"decay": "lr_decay"})
def scale_by_inverse_time_decay(decay: NonNegative, power: NonNegative | None = None) -> optax.GradientTransformation:
    """Divides by 1 + (t − 1) · decay, or a power of it, with t counting the steps from 1.

    u ← u / (1 + (t − 1) · decay) is Adagrad's `lr_decay` in PyTorch; ASGD's rate decays with a power of 0.75.

    It combines with whatever learning rate follows, including a schedule.

    Args:
        decay: How fast the step size decays, per step, at least 0, or a schedule of it; 1 divides step t by t.
        power: The power of the divisor, at least 0, or a schedule of it; `None` for 1.

    Returns:
        A link at the place `"step"` with state `InverseTimeDecayState(count)`.

    Raises:
        ValueError: If a number is negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_inverse_time_decay
        >>> link = scale_by_inverse_time_decay(1.0)
        >>> state = link.init(jnp.float32(0))
        >>> for _ in range(2):
        ...     u, state = link.update(jnp.float32(1.0), state)
        ...     print(u)
        1.0
        0.5

    Source:
        `torch.optim.Adagrad`, argument `lr_decay`; `torch.optim.ASGD`, argument `alpha`.
    """

    def init(params):
        del params
        return InverseTimeDecayState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params

        dtype = jnp.result_type(float)
        divisor = 1 + state.count.astype(dtype) * jnp.asarray(decay, dtype)
        if power is not None:
            divisor = divisor ** jnp.asarray(power, dtype)
        return map_updates(lambda u: like(over(wide(u), divisor), u), updates), InverseTimeDecayState(
            increment(state.count)
        )

    return optax.GradientTransformation(init, update)
