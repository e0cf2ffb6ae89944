"""The largest value so far.

nu_max_t = max(nu_max_{t−1}, u_t)
"""

from typing import NamedTuple

import optax
from jax import lax

from ._leaves import accumulators, like, map_state, map_updates, on_reals, wide
from ._link import link
from ._meaning import Moment


class RunningMaxState(NamedTuple):
    """State of `running_max`."""

    nu_max: optax.Updates  # shapes of the parameters, at least float32


@link(
    "moment",
    is_leafwise=True,
    state={"nu_max": Moment("maximum of {}", torch="max_exp_avg_sq", is_nonnegative=True)},
    out="maximum of {}",
)
def running_max() -> optax.GradientTransformation:
    """Replaces its input by the largest value so far, element by element.

    nu_max_t = max(nu_max_{t−1}, u_t), from 0; returns nu_max_t. After `mean_square` it turns Adam into AMSGrad. Before
    `bias_correction` it takes the maximum of the raw second moment, after it that of the corrected one.

    Returns:
        A link at the place `"moment"` with state `RunningMaxState(nu_max)`, which has the parameters' shapes and is at
        least float32. Real and imaginary parts have separate maxima.

    Differences:
        PyTorch takes the maximum before the bias correction, Optax's `amsgrad` after it. A NaN stays, as in PyTorch.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import running_max
        >>> link = running_max()
        >>> state = link.init(jnp.float32(0))
        >>> for u in (1.0, 3.0, 2.0):
        ...     largest, state = link.update(jnp.float32(u), state)
        ...     print(largest)
        1.0
        3.0
        3.0

    Source:
        Reddi, Kale and Kumar, "On the convergence of Adam and beyond", 2018; `torch.optim.Adam(amsgrad=True)`.
    """

    def init(params):
        return RunningMaxState(accumulators(params))

    def update(updates, state, params=None):
        del params
        largest = on_reals(lax.max)
        nu_max = map_state(lambda u, nu_max: largest(nu_max, wide(u)), updates, state.nu_max)
        return map_updates(lambda u, nu_max: like(nu_max, u), updates, nu_max), RunningMaxState(nu_max)

    return optax.GradientTransformation(init, update)
