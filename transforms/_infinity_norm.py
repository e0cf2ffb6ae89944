"""The largest size that the gradients have had, where past ones fade.

nu_t = max(decay · nu_{t−1}, |g_t| + ε)
"""

from typing import NamedTuple

import optax
from jax import lax

from ._check import Fraction, NonNegative
from ._leaves import accumulators, faded, like, map_state, map_updates, on_reals, scalar, wide
from ._link import link
from ._meaning import Moment


class InfinityNormState(NamedTuple):
    """State of `infinity_norm`."""

    nu: optax.Updates  # shapes of the parameters, at least float32: the norm itself, not its square


@link(
    "moment",
    is_leafwise=True,
    is_second_moment=True,
    is_root=True,
    state={"nu": Moment("infinity norm of {}", torch="exp_inf", is_absolute=True)},
    out="infinity norm of {}",
    knobs={"decay": "decay"},
)
def infinity_norm(decay: Fraction, eps: NonNegative = 0.0) -> optax.GradientTransformation:
    """Replaces the gradient by the largest size that it has had, where past sizes fade.

    nu_t = max(decay · nu_{t−1}, |g_t| + ε), from nu_0 = 0; returns nu_t. Like a mean of squares it is meant as the
    second argument of `moment_ratio`, which divides by it as it is, without a root. It is the limit of the p-th root of
    a mean of p-th powers, as p grows.

    Args:
        decay: How much of a past size is left after each step, β2, in [0, 1], or a schedule of it.
        eps: ε ≥ 0, in the gradient's units, below which nu never falls; or a schedule of it.

    Returns:
        A link at the place `"moment"` with state `InfinityNormState(nu)`; `nu` has the parameters' shapes and is at
        least float32. Complex gradients count as pairs of real ones, as in PyTorch.

    Raises:
        ValueError: If a number is outside its range.

    Differences:
        PyTorch and Optax add ε to the size of the gradient, as here; Keras adds it to nu, which is the `eps` of
        `moment_ratio`. The paper has no ε.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import infinity_norm
        >>> link = infinity_norm(0.5)
        >>> state = link.init(jnp.float32(0))
        >>> for g in (-4.0, 1.0, 3.0):
        ...     nu, state = link.update(jnp.float32(g), state)
        ...     print(nu)
        4.0
        2.0
        3.0

    Source:
        Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 7.1; `torch.optim.Adamax`.
    """

    def init(params):
        return InfinityNormState(accumulators(params))

    def update(updates, state, params=None):
        del params
        largest = on_reals(lambda g, nu: lax.max(faded(nu, decay), lax.add(lax.abs(g), scalar(eps, g))))
        nu = map_state(lambda g, nu: largest(wide(g), nu), updates, state.nu)
        return map_updates(lambda g, nu: like(nu, g), updates, nu), InfinityNormState(nu)

    return optax.GradientTransformation(init, update)
