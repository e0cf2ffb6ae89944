"""The running mean of the squared gradients.

nu_t = decay · nu_{t−1} + (1 − decay) · g_t²
"""

from typing import NamedTuple

import optax
from jax import lax

from ._check import Fraction
from ._leaves import accumulators, average, like, map_state, map_updates, on_reals, wide
from ._link import Alternative, link
from ._meaning import Moment
from ._running_max import running_max


class MeanSquareState(NamedTuple):
    """State of `mean_square`."""

    nu: optax.Updates  # shapes of the parameters, at least float32: the mean of squares


@link(
    "moment",
    is_leafwise=True,
    is_second_moment=True,
    state={"nu": Moment("mean square of {}", power=2, torch={"": "square_avg", "second": "exp_avg_sq"})},
    out="mean square of {}",
    alternatives=lambda decay, **_: iter([Alternative("with running_max", (mean_square(decay), running_max()))]),
    knobs={"decay": "decay"},
)
def mean_square(decay: Fraction) -> optax.GradientTransformation:
    """Replaces the gradient by the running mean of its square.

    nu_t = decay · nu_{t−1} + (1 − decay) · g_t², from nu_0 = 0; returns nu_t. Its root is meant as a divisor: use it as
    the second argument of `moment_ratio`.

    Args:
        decay: How much of the past is kept (Adam's β2, RMSprop's α, Adadelta's ρ), in [0, 1], or a schedule of it.

    Returns:
        A link at the place `"moment"` with state `MeanSquareState(nu)`; `nu` has the parameters' shapes and is at
        least float32. Complex gradients count as pairs of real ones, as in PyTorch.

    Raises:
        ValueError: If `decay` is outside [0, 1].

    Differences:
        Optax keeps a bfloat16 mean for bfloat16 parameters, which stops moving once (1 − decay) g² is less than
        its spacing. Optax and PyTorch differ for complex gradients: Optax squares the absolute value.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import mean_square
        >>> link = mean_square(0.75)
        >>> nu, state = link.update(jnp.float32(2.0), link.init(jnp.float32(0)))
        >>> print(nu)
        1.0

    Source:
        Tieleman and Hinton, Coursera lecture 6.5, 2012; `torch.optim.RMSprop`.
    """

    def init(params):
        return MeanSquareState(accumulators(params))

    def update(updates, state, params=None):
        del params

        mean = on_reals(lambda g, nu: average(nu, lax.mul(g, g), decay))
        nu = map_state(lambda g, nu: mean(wide(g), nu), updates, state.nu)
        return map_updates(lambda g, nu: like(nu, g), updates, nu), MeanSquareState(nu)

    return optax.GradientTransformation(init, update)
