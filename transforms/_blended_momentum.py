"""Momentum blended with the gradient in one proportion, and updated by it in another.

blend · mu_{t−1} + (1 − blend) · g_t     returned
mu_t = decay · mu_{t−1} + (1 − decay) · g_t
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import optax

from ._check import Fraction
from ._leaves import accumulators, average, like, map_state, map_updates, on_reals, wide
from ._link import Alternative, link
from ._meaning import Moment
from ._momentum import scale_by_momentum


class ScaleByBlendedMomentumState(NamedTuple):
    """State of `scale_by_blended_momentum`."""

    mu: optax.Updates  # shapes of the parameters, at least float32: the average


def _alternatives(decay: Any, **_: Any) -> Iterator[Alternative]:
    yield Alternative("scale_by_momentum for {}", (scale_by_momentum(decay, dampening=decay),))


@link(
    "moment",
    is_leafwise=True,
    state={"mu": Moment("average of {}", lambda decay, **_: 1 - decay, lambda **_: True, torch="exp_avg")},
    out="average of {}",
    alternatives=_alternatives,
    knobs={"blend": "b1", "decay": "b2"},
)
def scale_by_blended_momentum(blend: Fraction, decay: Fraction) -> optax.GradientTransformation:
    """Replaces the gradient by a blend of it and the average of the gradients before it.

    Returns blend · mu_{t−1} + (1 − blend) · g_t, and then updates mu_t = decay · mu_{t−1} + (1 − decay) · g_t, from
    mu_0 = 0. With `decay` above `blend`, the gradient counts for more in the step than in the memory. With
    `blend=decay` it is `scale_by_momentum(decay, dampening=decay)`, and with `blend=decay ** 2` it is
    `scale_by_nesterov(decay, form="averaged")`.

    Args:
        blend: The share of the average in the output, β1, in [0, 1], or a schedule of it.
        decay: How much of the past the average keeps, β2, in [0, 1], or a schedule of it.

    Returns:
        A link at the place `"moment"` with state `ScaleByBlendedMomentumState(mu)`; `mu` has the parameters' shapes
        and is at least float32.

    Raises:
        ValueError: If a number is outside its range.

    Differences:
        In quasi-hyperbolic momentum the new average is blended with the gradient, in the proportion blend / decay,
        which is the same.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_blended_momentum
        >>> link = scale_by_blended_momentum(0.5, 0.75)
        >>> state = link.init(jnp.float32(0))
        >>> for g in (4.0, 4.0):
        ...     step, state = link.update(jnp.float32(g), state)
        ...     print(step, state.mu)
        2.0 1.0
        2.5 1.75

    Source:
        Chen et al., "Symbolic discovery of optimization algorithms", 2023; Ma and Yarats, "Quasi-hyperbolic momentum
        and Adam for deep learning", 2019.
    """

    def init(params):
        return ScaleByBlendedMomentumState(accumulators(params))

    def update(updates, state, params=None):
        del params
        blended = on_reals(lambda g, m: average(m, g, blend))
        averaged = on_reals(lambda g, m: average(m, g, decay))
        direction = map_updates(lambda g, m: like(blended(wide(g), m), g), updates, state.mu)
        mu = map_state(lambda g, m: averaged(wide(g), m), updates, state.mu)
        return direction, ScaleByBlendedMomentumState(mu)

    return optax.GradientTransformation(init, update)
