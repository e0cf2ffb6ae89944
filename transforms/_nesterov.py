"""Nesterov's momentum: the step is taken along the momentum one step ahead.

    mu_t = decay · mu_{t−1} + w · g_t,   returned: a_t · g_t + b_t · mu_t

Three forms of it are in use; they differ in the weights w, a_t and b_t.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._check import Fraction, NonNegative, known
from ._leaves import (
    accumulators,
    complement,
    increment,
    like,
    map_state,
    map_updates,
    on_reals,
    scalar_dtype,
    times,
    weighted,
    wide,
)
from ._link import link
from ._meaning import Count, Gathered, Moment
from ._schedules import at_steps, weight_gathered


class ScaleByNesterovState(NamedTuple):
    """State of `scale_by_nesterov`; the same for every form, so they can be swapped for each other mid-run."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken
    mu: optax.Updates  # shapes of the parameters, at least float32: the sum or average
    correction: jax.Array  # () real: 1 − μ_1 μ_2 … μ_t, the weight of an average that started from zero


def weight_after(steps: int, decay: Any, momentum_decay: Any = None, **_: object) -> float:
    """1 − μ_1 μ_2 … μ_steps: the value of `ScaleByNesterovState.correction` after this many steps from the start."""

    def mu(counts):
        rises = 1.0
        if momentum_decay is not None:
            rises = 1 - 0.5 * 0.96 ** ((counts + 1) * at_steps(momentum_decay, counts))
        return at_steps(decay, counts) * rises

    return weight_gathered(steps, mu)


@link(
    "moment",
    is_leafwise=True,
    state={
        "count": Count(),
        "mu": Moment(
            "average of {}",
            lambda decay, form, **_: 1.0 if form == "accumulated" else 1 - decay,
            lambda form, **_: form != "accumulated",
            torch={"": "momentum_buffer", "first": "exp_avg"},
        ),
        "correction": Gathered(weight_after, torch="mu_product", from_torch=lambda product: 1 - product),
    },
    out="average of {}",
    knobs={"decay": "momentum"},
)
def scale_by_nesterov(
    decay: Fraction,
    *,
    form: Literal["accumulated", "averaged", "corrected"] = "accumulated",
    momentum_decay: NonNegative | None = None,
) -> optax.GradientTransformation:
    """Replaces the gradient by Nesterov's momentum: the momentum as it will be one step ahead.

    - `"accumulated"` (PyTorch's SGD): mu ← β mu + g; returns g + β mu.
    - `"averaged"`: mu ← β mu + (1 − β) g; returns (1 − β) g + β mu.
    - `"corrected"` (NAdam): the averaged form with each term divided by the weight it has accumulated by then,
      (1 − μ_t) / (1 − Π_t) · g + μ_{t+1} / (1 − Π_{t+1}) · mu, where Π_t = μ_1 ⋯ μ_t and μ_t = β, or μ_t = β
      (1 − ½ · 0.96^{t ψ}) when ψ = `momentum_decay` is given. The average mu itself uses β.

    The first form is Nesterov's method after a change of variables. With the velocity v and gradients taken at the
    look-ahead point w' = w − α β v, the points w' follow exactly these steps.

    Args:
        decay: How much of the past is kept, β, in [0, 1]; below 1 for `form="corrected"`. Or a schedule of it: μ_{t+1}
            then uses the β of step t, as in PyTorch if β is set before every step.
        form: The weights of the two terms; see above.
        momentum_decay: ψ ≥ 0, how fast μ_t rises from near β/2 to β, per step (PyTorch's NAdam: 4e-3); `None` keeps
            μ_t = β (Optax's NAdam). Only for `form="corrected"`.

    Returns:
        A link at the place `"moment"` with state `ScaleByNesterovState(count, mu, correction)`; `mu` has the
        parameters' shapes and is at least float32.

    Raises:
        ValueError: If a number is outside its range, `form` is none of its values, or `momentum_decay` is given with
            another form.

    Differences:
        `optax.nadam` is `"corrected"` with μ_t = β; `optax.trace(nesterov=True)` is `"accumulated"`.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_nesterov
        >>> link = scale_by_nesterov(0.5)
        >>> state = link.init(jnp.float32(0))
        >>> for g in (1.0, 1.0, 1.0):
        ...     step, state = link.update(jnp.float32(g), state)
        ...     print(step)
        1.5
        1.75
        1.875

    Source:
        Nesterov, 1983; Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013;
        Dozat, "Incorporating Nesterov momentum into Adam", 2016; `torch.optim.SGD`, `torch.optim.NAdam`.
    """
    if momentum_decay is not None and form != "corrected":
        raise ValueError(
            f"scale_by_nesterov: momentum_decay is only for form='corrected', got {momentum_decay!r} with {form=}"
        )

    if form == "corrected" and known(decay) == 1:
        raise ValueError(f"scale_by_nesterov: decay must be below 1 for form='corrected', got {decay!r}")

    def init(params):
        correction = jnp.zeros((), scalar_dtype(params))
        return ScaleByNesterovState(jnp.zeros((), jnp.int32), accumulators(params), correction)

    def rest(count, dtype):
        """1 − μ_t, written so that nothing cancels when β is close to 1."""
        one_minus_decay, beta = (jnp.asarray(value, dtype) for value in (complement(decay), decay))
        if momentum_decay is None:
            return one_minus_decay
        exponent = count.astype(dtype) * jnp.asarray(momentum_decay, dtype)
        return one_minus_decay + beta * 0.5 * 0.96**exponent

    def update(updates, state, params=None):
        del params
        count = increment(state.count)
        dtype = state.correction.dtype
        rest_now, rest_next = rest(count, dtype), rest(increment(count), dtype)
        # 1 − Π μ = (1 − Π) + Π (1 − μ): only positive terms, where 1 − Π itself would cancel.
        now = state.correction + (1 - state.correction) * rest_now
        ahead = now + (1 - now) * rest_next
        if form == "accumulated":
            gain, on_gradient, on_momentum = 1.0, 1.0, decay
        elif form == "averaged":
            gain, on_gradient, on_momentum = complement(decay), complement(decay), decay
        else:
            gain, on_gradient, on_momentum = complement(decay), rest_now / now, (1 - rest_next) / ahead

        add = on_reals(lambda g, m: weighted(m, g, decay, gain))
        look_ahead = on_reals(lambda g, m: lax.add(times(on_gradient, g), times(on_momentum, m)))
        mu = map_state(lambda g, m: add(wide(g), m), updates, state.mu)
        direction = map_updates(lambda g, m: like(look_ahead(wide(g), m), g), updates, mu)
        return direction, ScaleByNesterovState(count, mu, now)

    return optax.GradientTransformation(init, update)
