"""Adadelta: the gradient over its RMS, times the RMS of the steps taken so far.

u_t = g_t / √(nu_t + ε)            scale_by_rms with ε in the root
Δ_t = √(A_{t−1} + ε) · u_t         scale_by_past_rms
A_t = ρ A_{t−1} + (1 − ρ) Δ_t²
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._check import Fraction, NonNegative
from ._leaves import accumulators, average, like, map_state, map_updates, on_reals, safe_sqrt, scalar, wide
from ._link import Slot, link
from ._meaning import Moment
from ._precision import at_least_float32, wide_inside
from ._rms import scale_by_rms


class ScaleByPastRmsState(NamedTuple):
    """State of `scale_by_past_rms`."""

    mean_square_step: optax.Updates  # shapes of the parameters, at least float32: the mean of squares of past outputs


@link(
    "moment",
    is_leafwise=True,
    state={
        "mean_square_step": Moment(
            "mean square of step of {}", power=0, torch="acc_delta", is_nonnegative=True, is_fed_back=True
        )
    },
    out="step of {}",
    knobs={"decay": "decay"},
)
def scale_by_past_rms(decay: Fraction, eps: NonNegative) -> optax.GradientTransformation:
    """Multiplies its input by the RMS of the link's own past outputs.

    Δ_t = √(A_{t−1} + ε) · u_t, then A_t = decay · A_{t−1} + (1 − decay) · Δ_t², from A_0 = 0; returns Δ_t. It gives a
    unitless direction (a gradient over its RMS) the units of the parameters.

    Args:
        decay: How much of the past the mean keeps, ρ, in [0, 1], or a schedule of it.
        eps: ε ≥ 0, in squared units of the parameters; with ε = 0 the parameters never move.

    Returns:
        A link at the place `"moment"` with state `ScaleByPastRmsState(mean_square_step)`, which has the parameters'
        shapes and is at least float32.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_past_rms
        >>> link = scale_by_past_rms(0.9, eps=0.25)
        >>> step, state = link.update(jnp.float32(1.0), link.init(jnp.float32(0)))
        >>> print(step)
        0.5

    Source:
        Zeiler, "ADADELTA: an adaptive learning rate method", 2012; `torch.optim.Adadelta`.
    """

    def init(params):
        return ScaleByPastRmsState(accumulators(params))

    def update(updates, state, params=None):
        del params
        scale = on_reals(lambda u, a: safe_sqrt(a + scalar(eps, a)) * u)
        mean = on_reals(lambda step, a: average(a, step * step, decay))
        past = state.mean_square_step
        steps = map_updates(lambda u, a: scale(wide(u), a), updates, past)
        past = map_state(mean, steps, past)
        return map_updates(lambda u, step: like(step, u), updates, steps), ScaleByPastRmsState(past)

    return optax.GradientTransformation(init, update)


@link("moment", is_leafwise=True, knobs={"rho": "rho"})
def scale_by_adadelta(rho: Fraction = 0.9, eps: NonNegative = 1e-6) -> optax.GradientTransformation:
    """Replaces the gradient by Adadelta's step: its ratio to its own RMS, times the RMS of past steps.

    Δ_t = √(A_{t−1} + ε) / √(nu_t + ε) · g_t, with nu the running mean of g² and A that of Δ². It is
    `scale_by_rms(rho, eps, eps_in_sqrt=True)` followed by `scale_by_past_rms(rho, eps)`.

    Args:
        rho: How much of the past both means keep, ρ, in [0, 1], or a schedule of it.
        eps: ε ≥ 0, under both roots. It makes the first steps nonzero and bounds the division.

    Returns:
        A link at the place `"moment"`; its state is the pair of its two links' states.

    Raises:
        ValueError: If a number is outside its range.

    Differences:
        PyTorch, Optax and Keras agree except in their defaults: learning rate 1 in PyTorch, 0.001 in Keras.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_adadelta
        >>> link = scale_by_adadelta(rho=0.0, eps=1.0)
        >>> step, state = link.update(jnp.float32(0.75), link.init(jnp.float32(0)))
        >>> print(step)  # √1 / √(0.75² + 1) · 0.75
        0.6

    Source:
        Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1; `torch.optim.Adadelta`.
    """
    links = scale_by_rms(rho, eps, eps_in_sqrt=True), scale_by_past_rms(rho, eps)
    inner = optax.chain(*map(wide_inside, links))

    def update(updates, state, params=None, **extra_args):
        result: Any = inner.update(updates, state, params, **extra_args)
        updates, (rms, past) = result
        nu = map_updates(on_reals(_apart), rms.second.nu)
        return updates, (rms._replace(second=rms.second._replace(nu=nu)), past)

    return at_least_float32(
        optax.GradientTransformationExtraArgs(inner.init, update), definition=Slot(links, True, (), "moment")
    )


def _apart(x: jax.Array) -> jax.Array:
    """Returns the same number, but XLA for the TPU does not know that.

    Where a mean of squares is a result and the step is computed from it, XLA makes two loops. One computes the means.
    The other computes the parameters: it reads the new mean again, and needs a copy of the other mean's old value. That
    is 48 bytes per parameter instead of 28.
    """
    return jax.lax.platform_dependent(x, tpu=lambda x: jnp.where(x == x, x, jnp.nan), default=lambda x: x)
