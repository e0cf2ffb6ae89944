"""Momentum: the running sum, or the running average, of the gradients.

mu_t = decay · mu_{t−1} + (1 − dampening) · g_t
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._check import Fraction
from ._identity import identity_of
from ._leaves import (
    accumulators,
    complement,
    increment,
    like,
    map_state,
    map_updates,
    on_reals,
    scalar_dtype,
    weighted,
    wide,
)
from ._link import Alternative, link
from ._meaning import Count, Moment
from ._nesterov import scale_by_nesterov


class ScaleByMomentumState(NamedTuple):
    """State of `scale_by_momentum`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken
    mu: optax.Updates  # shapes of the parameters, at least float32: the sum or average


def _alternatives(decay: Any, dampening: Any, is_corrected: bool, **_: Any) -> Iterator[Alternative]:
    name = "scale_by_nesterov for {}"
    if identity_of(dampening) == identity_of(0.0):
        yield Alternative(name, (scale_by_nesterov(decay),))
    elif identity_of(dampening) == identity_of(decay):
        form = "corrected" if is_corrected else "averaged"
        yield Alternative(name, (scale_by_nesterov(decay, form=form),), replaces_correction=True)


def _weight(dampening: Any, first_step: str, **_: Any) -> Any:
    # In PyTorch's form the first gradient is not dampened, so there is no single factor.
    return 1.0 if identity_of(dampening) == identity_of(0.0) else None if first_step == "gradient" else 1 - dampening


def _is_average(decay: Any, dampening: Any, first_step: str, **_: Any) -> bool:
    return first_step == "zeros" and identity_of(decay) == identity_of(dampening)


def _knobs(decay: Any, dampening: Any, first_step: str) -> dict[str, str]:
    # An average remains one only if its two numbers change together.
    tied = {"dampening": "momentum"} if _is_average(decay, dampening, first_step) else {}
    return {"decay": "momentum", **tied}


@link(
    "moment",
    is_leafwise=True,
    state={
        "count": Count(is_needed=False),
        "mu": Moment("average of {}", _weight, _is_average, torch={"": "momentum_buffer", "first": "exp_avg"}),
    },
    out="average of {}",
    alternatives=_alternatives,
    knobs=_knobs,
)
def scale_by_momentum(
    decay: Fraction, *, dampening: Fraction = 0.0, first_step: Literal["zeros", "gradient"] = "zeros"
) -> optax.GradientTransformation:
    """Replaces the gradient by the running sum, or the running average, of the gradients.

    mu_t = decay · mu_{t−1} + (1 − dampening) · g_t, from mu_0 = 0; returns mu_t. With `dampening=0` this is the
    accumulating form (PyTorch's `momentum`), with `dampening=decay` the exponential average (Adam's first moment),
    which is biased towards zero until `bias_correction(decay)` divides by 1 − decay^t.

    Its position relative to the learning rate decides what a schedule does to it. Before the learning rate (PyTorch), a
    new rate multiplies the whole buffer; after it, as in v ← decay · v + α g, w ← w − v, only future gradients.

    Args:
        decay: How much of the past is kept, μ or β, in [0, 1], or a schedule of it.
        dampening: What is subtracted from the new gradient's weight of 1, in [0, 1], or a schedule of it.
        first_step: `"zeros"` starts from mu_0 = 0. `"gradient"` starts from mu_1 = g_1: the first gradient is not
            dampened, as in PyTorch's SGD.

    Returns:
        A link at the place `"moment"` with state `ScaleByMomentumState(count, mu)`; `mu` has the parameters' shapes
        and is at least float32.

    Raises:
        ValueError: If a number is outside its range, or `first_step` is neither of its values.

    Differences:
        `optax.trace` has no dampening; `optax.ema` is the averaged form. Keras's SGD applies the learning rate inside
        the momentum.

    Example:
        The running average of 100, 114, 118 with β = 0.7:

        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_momentum
        >>> link = scale_by_momentum(0.7, dampening=0.7)
        >>> state = link.init(jnp.float32(0))
        >>> for g in (100.0, 114.0, 118.0):
        ...     average, state = link.update(jnp.float32(g), state)
        ...     print(f"{average:.2f}")
        30.00
        55.20
        74.04

    Source:
        Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; `torch.optim.SGD`.
    """

    def init(params):
        return ScaleByMomentumState(jnp.zeros((), jnp.int32), accumulators(params))

    def update(updates, state, params=None):
        del params
        weight = complement(dampening)
        if first_step == "gradient" and not (isinstance(weight, float) and weight == 1):
            # A scalar choice: mu_0 = 0, so only the gradient's weight differs.
            weight = jnp.where(state.count == 0, 1, jnp.asarray(weight, scalar_dtype(state.mu)))
        add = on_reals(lambda g, m: weighted(m, g, decay, weight))
        mu = map_state(lambda g, m: add(wide(g), m), updates, state.mu)
        direction = map_updates(lambda g, m: like(m, g), updates, mu)
        return direction, ScaleByMomentumState(increment(state.count), mu)

    return optax.GradientTransformation(init, update)
