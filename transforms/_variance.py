"""The running variance of the gradients: the mean of their squares minus the square of their mean.

mu_t = decay · mu_{t−1} + (1 − decay) · g_t
nu_t = decay · nu_{t−1} + (1 − decay) · g_t²
variance_t = nu_t − mu_t²
"""

from typing import NamedTuple

import optax
from jax import lax

from ._check import Fraction
from ._leaves import accumulators, average, like, map_state, map_updates, on_reals, scalar, wide
from ._link import Alternative, link
from ._meaning import Moment
from ._running_max import running_max


class VarianceState(NamedTuple):
    """State of `variance`."""

    mu: optax.Updates  # shapes of the parameters, at least float32: the mean
    nu: optax.Updates  # shapes of the parameters, at least float32: the mean of squares


@link(
    "moment",
    is_leafwise=True,
    is_second_moment=True,
    state={
        "mu": Moment("average of {}", lambda decay: 1 - decay, lambda **_: True, torch="grad_avg", is_subtracted=True),
        "nu": Moment(
            "mean square of {}", power=2, torch={"": "square_avg", "second": "exp_avg_sq"}, is_subtracted=True
        ),
    },
    out="variance of {}",
    alternatives=lambda decay, **_: iter([Alternative("with running_max", (variance(decay), running_max()))]),
    knobs={"decay": "decay"},
)
def variance(decay: Fraction) -> optax.GradientTransformation:
    """Replaces the gradient by its running variance.

    nu_t − mu_t², with mu and nu the running means of g and of g², both from 0. Its root is meant as a divisor: use it
    as the second argument of `moment_ratio`.

    Args:
        decay: How much of the past is kept in both means, in [0, 1], or a schedule of it.

    Returns:
        A link at the place `"moment"` with state `VarianceState(mu, nu)`; both have the parameters' shapes and are
        at least float32. Complex gradients count as pairs of real ones, as in PyTorch.

    Raises:
        ValueError: If `decay` is outside [0, 1].

    Differences:
        Rounding can make nu − mu² slightly negative when the gradient hardly changes; PyTorch's centered RMSprop
        then takes the root of a negative number and the parameters become NaN. Here the variance is 0 there.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import variance
        >>> link = variance(0.5)
        >>> state = link.init(jnp.float32(0))
        >>> for g in (2.0, -2.0):
        ...     v, state = link.update(jnp.float32(g), state)
        ...     print(v)
        1.0
        2.75

    Source:
        Graves, "Generating sequences with recurrent neural networks", 2013; `torch.optim.RMSprop(centered=True)`.
    """

    def init(params):
        return VarianceState(accumulators(params), accumulators(params))

    def update(updates, state, params=None):
        del params

        mean = on_reals(lambda g, mu: average(mu, g, decay))
        mean_square = on_reals(lambda g, nu: average(nu, lax.mul(g, g), decay))
        centered = on_reals(lambda mu, nu: lax.max(lax.sub(nu, lax.mul(mu, mu)), scalar(0.0, nu)))
        mu = map_state(lambda g, mu: mean(wide(g), mu), updates, state.mu)
        nu = map_state(lambda g, nu: mean_square(wide(g), nu), updates, state.nu)
        out = map_updates(lambda g, mu, nu: like(centered(mu, nu), g), updates, mu, nu)
        return out, VarianceState(mu, nu)

    return optax.GradientTransformation(init, update)
