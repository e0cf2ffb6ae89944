"""A learning rate that is limited by a power of the time.

u_t · min(1, t^−power / α)      so that the step is min(α, t^−power) · u_t
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._check import NonNegative, Rate
from ._leaves import increment, like, map_updates, times, wide
from ._link import link
from ._meaning import Count


class LimitLearningRateState(NamedTuple):
    """State of `limit_learning_rate`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken


@link(
    "step",
    is_leafwise=True,
    is_row_local=True,
    state={"count": Count()},
    factor=None,
    knobs={"learning_rate": "learning_rate"},
)
def limit_learning_rate(learning_rate: Rate, power: NonNegative = 0.5) -> optax.GradientTransformation:
    """Makes steps smaller where the learning rate is above a power of the time.

    u ← u · min(1, t^−power / α), with t counting the steps from 1. Multiplied by the learning rate α afterwards, the
    step has the size min(α, t^−power). What is added to the step after this link, such as weight decay, is multiplied
    by α itself.

    Args:
        learning_rate: α ≥ 0, the same as that of `scale_by_learning_rate` in the chain, or the same schedule of it.
        power: How fast the limit falls, at least 0, or a schedule of it.

    Returns:
        A link at the place `"step"` with state `LimitLearningRateState(count)`.

    Raises:
        ValueError: If a number is negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import limit_learning_rate
        >>> link = limit_learning_rate(0.6)
        >>> state = link.init(jnp.float32(0))
        >>> for _ in range(4):
        ...     u, state = link.update(jnp.float32(1.0), state)
        >>> print(f"{0.6 * u:.2f}")  # 1/√4
        0.50

    Source:
        Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018, section 8;
        `torch.optim.Adafactor`.
    """

    def init(params):
        del params
        return LimitLearningRateState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        count, dtype = increment(state.count), jnp.result_type(float)
        grown = count.astype(dtype) ** jnp.asarray(power, dtype)
        factor = 1 / jnp.maximum(1, jnp.asarray(learning_rate, dtype) * grown)
        return map_updates(lambda u: like(times(factor, wide(u)), u), updates), LimitLearningRateState(count)

    return optax.GradientTransformation(init, update)
