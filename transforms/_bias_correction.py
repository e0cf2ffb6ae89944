"""Bias correction: an average that starts from zero, divided by the weight it has accumulated so far.

u_t / (1 − decay^t), or after a ratio u_t · √(1 − decay^t)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._check import ProperFraction
from ._leaves import complement, gathered, like, map_updates, over, scalar_dtype, times, wide
from ._link import InFront, link
from ._meaning import Gathered
from ._schedules import at_steps, weight_gathered


class BiasCorrectionState(NamedTuple):
    """State of `bias_correction`."""

    weight: jax.Array  # () real: 1 − decay_1 decay_2 … decay_t, the weight of an average that started from zero
    lost: jax.Array  # () real: what rounding has lost of the weight


def _weight_after(steps: int, decay: Any, **_: object) -> float:
    if callable(decay):
        return weight_gathered(steps, lambda counts: at_steps(decay, counts))
    return 1.0 if decay == 0 and steps else -math.expm1(steps * math.log(decay)) if steps else 0.0


@link(
    "moment",
    is_leafwise=True,
    is_row_local=True,
    state={"weight": Gathered(_weight_after), "lost": Gathered(lambda steps, **_: 0.0)},
    out="corrected {}",
    knobs=lambda behind_ratio, **_: {"decay": InFront("second" if behind_ratio else "first")},
)
def bias_correction(decay: ProperFraction, *, behind_ratio: bool = False) -> optax.GradientTransformation:
    """Divides its input by 1 − decay^t, with t counting the steps from 1.

    After t steps an exponential average that started from zero has accumulated the weight 1 − decay^t; dividing by it
    makes it a true average from the first step on. The same link works for the first and the second moment.

    The link stores the weight and adds (1 − weight) · (1 − decay) to it at every step. Nothing cancels, whereas the
    direct formula is wrong by 1e-5 in float32 at decay = 0.999. If the decay changes, by a schedule or by hand, the
    weight is 1 − decay_1 ⋯ decay_t, which is what the average with these decays has accumulated.

    Args:
        decay: The decay of the incoming average, β, in [0, 1), or the same schedule of it.
        behind_ratio: Whether it comes after the `moment_ratio` whose second moment it corrects, instead of inside it.
            It then multiplies by √(1 − β^t), and ε was added to the uncorrected root ("ε-hat").

    Returns:
        A link at the place `"moment"` with state `BiasCorrectionState(weight, lost)`.

    Raises:
        ValueError: If `decay` is outside [0, 1).

    Differences:
        PyTorch divides the root of the second moment by √(1 − β2^t), which is the same; TensorFlow folds both
        corrections into the learning rate, which changes the meaning of ε: it amounts to moving the second correction
        after the ratio. Where β changes, PyTorch and Optax divide by 1 − β_t^t, which is not the weight of the average;
        `power_bias_correction` does that.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from linkax.transforms import bias_correction, scale_by_momentum
        >>> tx = optax.chain(scale_by_momentum(0.7, dampening=0.7), bias_correction(0.7))
        >>> state = tx.init(jnp.float32(0))
        >>> for g in (100.0, 114.0):
        ...     average, state = tx.update(jnp.float32(g), state)
        ...     print(f"{average:.2f}")
        100.00
        108.24

    Source:
        Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 3; `torch.optim.Adam`.
    """

    def init(params):
        dtype = scalar_dtype(params)  # two arrays: one array in two places could not be donated
        return BiasCorrectionState(jnp.zeros((), dtype), jnp.zeros((), dtype))

    def update(updates, state, params=None):
        del params
        weight, lost = gathered(state.weight, state.lost, jnp.asarray(complement(decay), state.weight.dtype))

        root = jnp.sqrt(weight) if behind_ratio else weight

        def correct(u):
            return like(times(root, wide(u)) if behind_ratio else over(wide(u), weight), u)

        return map_updates(correct, updates), BiasCorrectionState(weight, lost)

    return optax.GradientTransformation(init, update)
