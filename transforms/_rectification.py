"""Rectification: a second moment of few gradients divides less, and one of hardly any not at all.

a_t = the mean age of the gradients in the average, 0 for the newest one
ρ_t = 1 + 2 a_t,   ρ_∞ = 2 / (1 − decay) − 1
f(ρ) = (ρ − 4)(ρ − 2) / ρ
V_t · f(ρ_∞) / f(ρ_t)   if ρ_t > threshold, else 1
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._check import Interval, Number, ProperFraction
from ._leaves import compensated, complement, gathered, like, map_updates, on_reals, scalar_dtype, times, wide
from ._link import InFront, link
from ._meaning import Gathered
from ._schedules import age_gathered, at_steps, weight_gathered


class RectificationState(NamedTuple):
    """State of `rectification`."""

    weight: jax.Array  # () real: the weight of an average that started from zero, 1 − decay_1 decay_2 … decay_t
    lost: jax.Array  # () real: what rounding has lost of the weight
    age: jax.Array  # () real: the ages of the gradients in the average, each times its weight
    lost_age: jax.Array  # () real: what rounding has lost of that


def _weight_after(steps: int, decay: Any, **_: object) -> float:
    return weight_gathered(steps, lambda counts: at_steps(decay, counts))


def _age_after(steps: int, decay: Any, **_: object) -> float:
    return age_gathered(steps, lambda counts: at_steps(decay, counts))


@link(
    "moment",
    is_leafwise=True,
    state={
        "weight": Gathered(_weight_after),
        "lost": Gathered(lambda steps, **_: 0.0),
        "age": Gathered(_age_after),
        "lost_age": Gathered(lambda steps, **_: 0.0),
    },
    out="rectified {}",
    knobs={"decay": InFront("second")},
)
def rectification(
    decay: ProperFraction, threshold: Annotated[Number, Interval("[4, inf)")] = 5.0
) -> optax.GradientTransformation:
    """Rectifies a second moment for the few gradients that it is made of at first.

    An average of t squared gradients is about as good as a plain mean of the last ρ_t, where ρ_t = 1 + 2 a_t and a_t is
    the mean age of a gradient in the average; ρ_t rises from 1 to ρ_∞ = 2 / (1 − β) − 1. With few gradients the root of
    their mean square varies too much to be a good divisor. So V is multiplied by f(ρ_∞) / f(ρ_t), with f(ρ) =
    (ρ − 4)(ρ − 2) / ρ, which falls to 1, and up to a `threshold` of ρ_t the link returns 1: nothing is divided.

    It comes last in the second moment. Put there instead of into the learning rate, it needs no other optimizer for the
    first steps.

    The mean age is gathered step by step, so that nothing cancels. The formula ρ_t = ρ_∞ − 2 t β^t / (1 − β^t) is wrong
    by 1e-4 in float32 at β = 0.999. If β changes by a schedule, the age is that in the average with these decays.

    Args:
        decay: The decay of the average, β, in [0, 1), or the same schedule of it. If ρ_∞ is not above the threshold,
            nothing is ever divided.
        threshold: The largest ρ_t at which nothing is divided, at least 4.

    Returns:
        A link at the place `"moment"` with state `RectificationState(weight, lost, age, lost_age)`.

    Raises:
        ValueError: If a number is outside its range.

    Differences:
        The paper has a threshold of 4; PyTorch and Optax have 5.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import rectification
        >>> link = rectification(0.999)
        >>> state = link.init(jnp.float32(0))
        >>> for step in range(1, 1001):
        ...     v, state = link.update(jnp.float32(4.0), state)
        ...     if step in (1, 5, 6, 10, 1000):
        ...         print(f"{v:.2f}")
        1.00
        1.00
        5999.43
        1666.11
        9.61

    Source:
        Liu et al., "On the variance of the adaptive learning rate and beyond", 2020; `torch.optim.RAdam`.
    """

    def init(params):
        dtype = scalar_dtype(params)
        return RectificationState(*(jnp.zeros((), dtype) for _ in range(4)))  # each its own array, for donation

    def update(updates, state, params=None):
        del params
        rest = jnp.asarray(complement(decay), state.weight.dtype)
        # Every gradient is a step older: the sum of ages becomes decay · (age + weight).
        older = state.weight - rest * (state.weight + state.age + state.lost_age)
        age, lost_age = compensated(state.age, state.lost_age, older)
        weight, lost = gathered(state.weight, state.lost, rest)
        length, longest = 1 + 2 * age / weight, 2 / rest - 1
        is_long = (length > threshold) & (longest > threshold)
        factor = _share(jnp.where(is_long, longest, 6)) / _share(jnp.where(is_long, length, 6))
        rectified = on_reals(lambda v: lax.select(is_long, times(factor, v), lax.full_like(v, 1)))
        state = RectificationState(weight, lost, age, lost_age)
        return map_updates(lambda v: like(rectified(wide(v)), v), updates), state

    return optax.GradientTransformation(init, update)


def _share(length: jax.Array) -> jax.Array:
    return (length - 4) * (length - 2) / length
