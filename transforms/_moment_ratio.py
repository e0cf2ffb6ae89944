"""The ratio of two moments of the same gradient.

m_t / (√V_t + ε)   or   m_t / √(V_t + ε)   or, of a norm,   m_t / (N_t + ε)
"""

from typing import Any, NamedTuple

import optax
from jax import lax

from ._check import NonNegative
from ._leaves import map_updates, on_reals, safe_sqrt, scalar
from ._link import link, links_of
from ._precision import at_least_float32, wide_inside


class MomentRatioState(NamedTuple):
    """State of `moment_ratio`."""

    first: Any  # state of the link or chain that computes m
    second: Any  # state of the link or chain that computes V


@link("moment", is_leafwise=True, is_row_local=True, out="direction of {}", knobs={"first": "b1", "second": "b2"})
def moment_ratio(
    first: optax.GradientTransformation,
    second: optax.GradientTransformation,
    eps: NonNegative | None,
    eps_in_sqrt: bool = False,
) -> optax.GradientTransformation:
    """Feeds the same gradient to two links and divides the output of one by the root of the other's output.

    m / (√V + ε), or m / √(V + ε) with `eps_in_sqrt`, or m / √V without ε, where m comes from `first` and V from
    `second`. At the end of `second`, an `infinity_norm` N divides as it is, as m / (N + ε).

    This is the one place where an optimizer is not a straight sequence: in a chain, momentum followed by RMS would
    divide by the RMS *of the momentum*. Adam is

        moment_ratio(chain(scale_by_momentum(b1, dampening=b1), bias_correction(b1)),
                     chain(mean_square(b2), bias_correction(b2)), eps)

    Inside, everything is at least float32; the result is in the dtype of the gradient, or of the parameter if wider.

    Args:
        first: A link, a chain, or any Optax transformation: the numerator m.
        second: The same for V, which must not be negative. It must contain `mean_square`, `factored_mean_square`,
            `sum_of_squares`, `variance`, or `infinity_norm` at its end, or an Optax transformation, which is not
            checked.
        eps: ε ≥ 0, in the units of √V, or of V with `eps_in_sqrt`. `None` for none, where
            `second` has one itself. Without any ε, an element whose gradients were all exactly 0 becomes 0/0 = NaN, as
            in PyTorch.
        eps_in_sqrt: Whether ε is added under the root (most textbooks, TensorFlow's RMSprop) or to it (PyTorch).

    Returns:
        A link at the place `"moment"` with state `MomentRatioState(first, second)`. Complex gradients count as pairs
        of real ones, as in PyTorch.

    Raises:
        TypeError: If `first` or `second` is not a gradient transformation.
        ValueError: If `eps` is negative or not finite, if `first` or `second` contains a link that belongs after the
            moments, or if `second` contains no second moment.

    Differences:
        The derivative through the root is 0, not infinite, where all gradients were exactly 0.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from linkax.transforms import mean_square, moment_ratio
        >>> tx = moment_ratio(optax.identity(), mean_square(0.75), eps=0.0)
        >>> direction, state = tx.update(jnp.float32(-3.0), tx.init(jnp.float32(0)))
        >>> print(direction)  # −3 / √(0.25 · 9)
        -2.0

    Source:
        The form m/√V is that of Reddi et al., 2018, table 1.
    """
    numerators, denominators = links_of("moment_ratio: first", first), links_of("moment_ratio: second", second)
    for name, links in (("first", numerators), ("second", denominators)):
        for inner in links:
            if inner.place in ("step", "update"):
                raise ValueError(
                    f"moment_ratio: {name} must hold links of the places 'gradient' and 'moment', got {inner.name} of "
                    f"the place {inner.place!r}; put it after the moment_ratio"
                )
    if not any(inner.is_second_moment or inner.place is None for inner in denominators):
        raise ValueError(
            "moment_ratio: second must contain mean_square, factored_mean_square, sum_of_squares, variance or "
            f"infinity_norm, because its root divides, got {list(denominators)!r}; without a second moment, use first "
            "alone"
        )
    is_root = any(inner.is_root for inner in denominators)
    if is_root and not denominators[-1].is_root:
        norm, behind = next(inner for inner in denominators if inner.is_root), denominators[-1]
        raise ValueError(
            f"moment_ratio: second must end with {norm.name}, which is the divisor itself and no square, got "
            f"{behind.name} after it"
        )
    if any(inner.is_second_moment for inner in numerators):
        raise ValueError(f"moment_ratio: first must not contain a second moment, got {first!r}; it belongs in second")
    first, second = wide_inside(first), wide_inside(second)

    root = (lambda v: v) if is_root else safe_sqrt

    @on_reals
    def ratio(m, v):
        if eps is None:
            return lax.div(m, root(v))
        epsilon = scalar(eps, v)
        if eps_in_sqrt:
            return lax.div(m, safe_sqrt(lax.add(lax.mul(v, v) if is_root else v, epsilon)))
        return lax.div(m, lax.add(root(v), epsilon))

    def init(params):
        return MomentRatioState(first.init(params), second.init(params))

    def update(updates, state, params=None, **extra_args):
        m, first_state = first.update(updates, state.first, params, **extra_args)
        v, second_state = second.update(updates, state.second, params, **extra_args)
        return map_updates(ratio, m, v), MomentRatioState(first_state, second_state)

    return at_least_float32(optax.GradientTransformationExtraArgs(init, update))
