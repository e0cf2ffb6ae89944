"""Steps that grow while the gradient keeps its sign, and shrink when it changes.

agreement_t = sign(g_t) · sign_{t−1}
step_size_t = step_size_{t−1} · (grow, 1 or shrink), within [smallest, largest]
sign_t      = sign(g_t), but 0 where the signs disagree
returned: step_size_t · sign_t
"""

from typing import Annotated, NamedTuple

import jax
import optax
from jax import lax

from ._check import Constant, Interval, NonNegative, Number, Schedule
from ._leaves import accumulators, like, map_state, map_updates, on_reals, scalar, split_alike, wide
from ._link import link
from ._meaning import Moment

Shrink = Annotated[Number | Schedule, Interval("(0, 1)", schedule=True)]
"""A number between 0 and 1, or a schedule of such numbers."""

Grow = Annotated[Number | Schedule, Interval("(1, inf)", schedule=True)]
"""A finite number above 1, or a schedule of such numbers."""


class ScaleBySignAgreementState(NamedTuple):
    """State of `scale_by_sign_agreement`."""

    sign: optax.Updates  # shapes of the parameters, at least float32: of the last gradient, or 0 where that disagreed
    step_size: optax.Updates  # shapes of the parameters, at least float32


@link(
    "moment",
    is_leafwise=True,
    state={
        "sign": Moment("last sign of {}", torch="prev"),
        "step_size": Moment("step size of {}", power=0, torch="step_size", is_nonnegative=True, is_fed_back=True),
    },
    out="step of {}",
)
def scale_by_sign_agreement(
    initial_step_size: Constant,
    shrink: Shrink = 0.5,
    grow: Grow = 1.2,
    smallest: NonNegative = 1e-6,
    largest: NonNegative = 50.0,
) -> optax.GradientTransformation:
    """Replaces the gradient by its sign times a step size that every element has for itself.

    Where the sign of the gradient is that of the step before, the step size is multiplied by `grow`; where it is the
    opposite, the last step went too far, so the step size is multiplied by `shrink`, and the element stays where it is
    for this step. After that, and where one of the two gradients is 0, the step size stays the same. The size of the
    gradient makes no difference, so gradients must not be noisy: it is for full batches.

    Args:
        initial_step_size: The step size of every element before the first step, at least 0, in the units of the
            parameters.
        shrink: What it is multiplied by where signs disagree, η−, in (0, 1), or a schedule of it.
        grow: What it is multiplied by where signs agree, η+ > 1, or a schedule of it.
        smallest: What it is at least, from the first step on; or a schedule of it.
        largest: What it is at most; or a schedule of it.

    Returns:
        A link at the place `"moment"` with state `ScaleBySignAgreementState(sign, step_size)`, both of the parameters'
        shapes and at least float32. Complex gradients count as pairs of real ones, as in PyTorch.

    Raises:
        ValueError: If a number is outside its range.

    Differences:
        PyTorch keeps the gradient itself; only its sign is used.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_sign_agreement
        >>> link = scale_by_sign_agreement(1.0, shrink=0.5, grow=2.0)
        >>> state = link.init(jnp.float32(0))
        >>> for g in (0.3, 0.7, -0.1, -0.2, -0.2):
        ...     step, state = link.update(jnp.float32(g), state)
        ...     print(step)
        1.0
        2.0
        0.0
        -1.0
        -2.0

    Source:
        Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", 1993;
        `torch.optim.Rprop`.
    """

    @on_reals
    def resized(g: jax.Array, size: jax.Array, sign: jax.Array) -> jax.Array:
        g, size, sign = split_alike(g, size, sign)
        agreement, zero = lax.mul(lax.sign(g), sign), lax.full_like(g, 0)
        larger, smaller = (lax.mul(size, lax.full_like(g, scalar(factor, g))) for factor in (grow, shrink))
        size = lax.select(lax.gt(agreement, zero), larger, lax.select(lax.lt(agreement, zero), smaller, size))
        return lax.max(lax.min(size, scalar(largest, g)), scalar(smallest, g))

    @on_reals
    def kept(g: jax.Array, sign: jax.Array) -> jax.Array:
        g, sign = split_alike(g, sign)
        own, zero = lax.sign(g), lax.full_like(g, 0)
        return lax.select(lax.lt(lax.mul(own, sign), zero), zero, own)

    product = on_reals(lax.mul)

    def init(params):
        return ScaleBySignAgreementState(accumulators(params), accumulators(params, initial_step_size))

    def update(updates, state, params=None):
        del params
        size = map_state(lambda g, size, sign: resized(wide(g), size, sign), updates, state.step_size, state.sign)
        sign = map_state(lambda g, sign: kept(wide(g), sign), updates, state.sign)
        out = map_updates(lambda g, sign, size: like(product(sign, size), g), updates, sign, size)
        return out, ScaleBySignAgreementState(sign, size)

    return optax.GradientTransformation(init, update)
