"""How far the gradient is from its running average.

mu_t = decay · mu_{t−1} + (1 − decay) · g_t
g_t − mu_t = decay · (g_t − mu_{t−1})
"""

from typing import NamedTuple

import optax
from jax import lax

from ._check import Fraction
from ._leaves import accumulators, average, like, map_state, map_updates, on_reals, times, wide
from ._link import InFront, link
from ._meaning import Moment


class DeviationState(NamedTuple):
    """State of `deviation`."""

    mu: optax.Updates  # shapes of the parameters, at least float32: the average


@link(
    "moment",
    is_leafwise=True,
    state={"mu": Moment("average of {}", lambda decay: 1 - decay, lambda **_: True, is_subtracted=True)},
    out="deviation of {}",
    knobs={"decay": InFront("first")},
)
def deviation(decay: Fraction) -> optax.GradientTransformation:
    """Replaces the gradient by its deviation from its running average.

    mu_t = decay · mu_{t−1} + (1 − decay) · g_t, from mu_0 = 0; returns g_t − mu_t. In front of `mean_square` it makes a
    second moment that is small where gradients are as expected, so that the step is large there, even if the gradients
    are large themselves. It is computed as decay · (g_t − mu_{t−1}), where less cancels.

    Args:
        decay: How much of the past the average keeps, β1, in [0, 1], or a schedule of it.

    Returns:
        A link at the place `"moment"` with state `DeviationState(mu)`; `mu` has the parameters' shapes and is at least
        float32. It is an average of its own: where the first moment keeps the same one, it is kept twice.

    Raises:
        ValueError: If `decay` is outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import deviation
        >>> link = deviation(0.5)
        >>> state = link.init(jnp.float32(0))
        >>> for g in (4.0, 4.0, 4.0):
        ...     d, state = link.update(jnp.float32(g), state)
        ...     print(d)
        2.0
        1.0
        0.5

    Source:
        Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients", 2020.
    """

    def init(params):
        return DeviationState(accumulators(params))

    def update(updates, state, params=None):
        del params
        away = on_reals(lambda g, m: times(decay, lax.sub(g, m)))
        averaged = on_reals(lambda g, m: average(m, g, decay))
        out = map_updates(lambda g, m: like(away(wide(g), m), g), updates, state.mu)
        mu = map_state(lambda g, m: averaged(wide(g), m), updates, state.mu)
        return out, DeviationState(mu)

    return optax.GradientTransformation(init, update)
