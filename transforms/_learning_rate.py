"""The learning rate: the size of the step, and its sign.

−α_t · u_t
"""

import optax

from ._check import Rate
from ._leaves import like, map_updates, times, wide
from ._link import InFront, link


@link(
    "step",
    is_leafwise=True,
    sets_sign=True,
    is_row_local=True,
    factor=lambda learning_rate: None if callable(learning_rate) else -learning_rate,
    knobs={"learning_rate": InFront("", knob="learning_rate")},
)
def scale_by_learning_rate(learning_rate: Rate) -> optax.GradientTransformation:
    """Multiplies by minus the learning rate, so that adding the result to the parameters goes downhill.

    u ← −α_t u. It is `optax.scale_by_learning_rate`, except that the learning rate is not rounded to the dtype of
    half-precision updates.

    Args:
        learning_rate: α ≥ 0, or a schedule of it (a function of the step count, from 0), such as Optax's.

    Returns:
        A link at the place `"step"`, the last one there, without state (with a schedule,
        `ScheduledState(count, inner)`).

    Raises:
        ValueError: If the learning rate is negative or not finite.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from linkax.transforms import scale_by_learning_rate
        >>> link = scale_by_learning_rate(0.5)
        >>> print(link.update(jnp.float32(3.0), link.init(jnp.float32(0)))[0])
        -1.5
        >>> scale_by_learning_rate(optax.exponential_decay(0.1, transition_steps=10, decay_rate=0.5)).name
        'scale_by_learning_rate'

    Source:
        `optax.scale_by_learning_rate`.
    """
    factor = -learning_rate  # pyright: ignore[reportOperatorIssue]  # a number by now

    def update(updates, state, params=None):
        del params
        return map_updates(lambda u: like(times(factor, wide(u)), u), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)
