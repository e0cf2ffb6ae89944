"""The average of the parameters over the steps, next to the parameters themselves.

average_t = average_{t−1} + (w_t − average_{t−1}) / max(1, t − 1 − start)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._check import NonNegative
from ._leaves import accumulators, increment, map_state, on_reals, times, wide
from ._link import link
from ._meaning import Count, Moment


class AverageWeightsState(NamedTuple):
    """State of `average_weights`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken
    average: optax.Params  # shapes of the parameters, at least float32: zeros before the first step


@link(
    "update",
    is_leafwise=True,
    state={
        "count": Count(),
        "average": Moment("average of the parameters", power=0, torch="ax", is_subtracted=True),
    },
)
def average_weights(start: NonNegative = 0.0) -> optax.GradientTransformation:
    """Averages the parameters that the updates lead to, and leaves the updates unchanged.

    average_t = average_{t−1} + (w_t − average_{t−1}) / max(1, t − 1 − start), where w_t are the parameters after step
    t, counted from 1. Up to step start + 2 the average is w_t itself, and from then on the mean of all parameters
    since. It is in the state: `optax.tree.get(state, "average")`. The noise of single steps cancels in it.

    It must be the last link, because it adds the updates to the parameters to know what they become.

    Args:
        start: After how many steps the mean starts, at least 0; or a schedule of it.

    Returns:
        A link at the place `"update"` with state `AverageWeightsState(count, average)`; `average` has the parameters'
        shapes and is at least float32. `update` needs the parameters.

    Raises:
        ValueError: If `start` is negative or not finite; from `update`, if no parameters are given.

    Differences:
        `optax.ema` averages updates. Averages of parameters outside of the optimizer, such as those of
        `torch.optim.swa_utils`, may skip steps.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import average_weights
        >>> link = average_weights()
        >>> w, state = jnp.float32(0), link.init(jnp.float32(0))
        >>> for _ in range(4):
        ...     update, state = link.update(jnp.float32(1), state, w)
        ...     w = w + update
        ...     print(w, state.average)
        1.0 1.0
        2.0 2.0
        3.0 2.5
        4.0 3.0

    Source:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; `torch.optim.ASGD`.
    """

    def init(params):
        return AverageWeightsState(jnp.zeros((), jnp.int32), accumulators(params))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("average_weights: params must be given to update, because they are averaged; got None")
        dtype = jnp.result_type(float)
        share = 1 / jnp.maximum(1, state.count.astype(dtype) - jnp.asarray(start, dtype))
        # Where the share is 1, what has been before leaves no rounding behind.
        kept = 1 - share

        @on_reals
        def mean(u, average, w):
            return lax.add(times(kept, average), times(share, lax.add(w, u)))

        average = map_state(lambda u, average, w: mean(wide(u), average, wide(w)), updates, state.average, params)
        return updates, AverageWeightsState(increment(state.count), average)

    return optax.GradientTransformation(init, update)
