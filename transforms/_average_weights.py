"""The average of the parameters over the steps, next to the parameters themselves.

average ← d · average + (1 − d) · w, where d is a number, or n / (n + 1) for the mean of all of them
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ._check import Interval, NonNegative, Number, whole_number
from ._leaves import (
    accumulator_dtype,
    accumulators,
    at_step,
    average,
    dtype_of,
    increment,
    like,
    map_state,
    on_reals,
    split_alike,
    times,
    wide,
)
from ._link import link
from ._meaning import Averages, Count, Gathered

Decay = Annotated[Number | Callable[[Any], Any], Interval("[0, 1]", schedule=True, own_count=True)]


class AverageWeightsState(NamedTuple):
    """State of `average_weights`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken
    n_averaged: jax.Array  # () int32: how many weights are in the average; while it is 0, the average is the weights
    average: optax.Params  # shapes of the parameters, at least float32


def _averaged_after(steps: int, *, start: float, every: int, **_: Any) -> int:
    return max(0, steps - math.ceil(start)) // every


@link(
    "update",
    is_observer=True,
    is_leafwise=True,
    state={
        "count": Count(),
        "n_averaged": Gathered(_averaged_after),
        "average": Averages("average of the parameters", power=0, torch="ax", is_subtracted=True),
    },
    too_late="put it at the end",
)
def average_weights(
    decay: Decay | None = None, *, start: NonNegative = 0.0, every: int = 1
) -> optax.GradientTransformation:
    """Averages the parameters that the updates lead to, and leaves the updates unchanged.

    The parameters after the steps start + every, start + 2 every, … go into the average. The first are copied; then
    average ← d · average + (1 − d) · w with d = `decay` (exponential moving average, EMA), or d = n / (n + 1) after n
    of them for the mean of all (stochastic weight averaging, SWA; `linkax.asgd`). Before the first, the average is w.
    `linkax.averaged_weights` reads it for evaluation; the noise of single steps cancels in it.

    It must come after everything that changes the updates, because it adds these to the parameters to know what they
    become: last in the chain; inside `optax.MultiSteps`, where it sees whole steps only; inside `precise_weights`,
    where it sees the full float32 weights. `chain` rejects links after it. What is applied to the updates outside of
    linkax's chains it cannot know.

    To average once per epoch from an epoch on, as `torch.optim.swa_utils` suggests (`if epoch >= swa_start:
    swa_model.update_parameters(model)` at the end of an epoch), take `start=swa_start * steps_per_epoch,
    every=steps_per_epoch`.

    Args:
        decay: d in [0, 1]; `None` for the mean. Or a function from n, the number of weights in the average so far, to
            d: `lambda n: jnp.minimum(0.999, (1 + n) / (10 + n))` is a common warm-up.
        start: After how many steps the averaging starts, at least 0; or a schedule of it.
        every: Every how many steps the parameters go into the average, an integer of at least 1.

    Returns:
        A link at the place `"update"` with state `AverageWeightsState(count, n_averaged, average)`; `average` has the
        parameters' shapes and is at least float32, also for bfloat16 parameters. `update` needs the parameters. A
        parameter without a gradient (`None`) does not change, and goes into the average as it is.

    Raises:
        ValueError: If a number is outside its range; from `update`, if no parameters are given.

    Differences:
        PyTorch: `AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))`, and without a function for the mean,
        which averages whenever `update_parameters` is called, in the dtype of the parameters. `optax.ema` averages
        updates, `optax.incremental_update` one step outside of the optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import average_weights
        >>> mean, moving = average_weights(every=2), average_weights(0.5)
        >>> w = jnp.float32(0)
        >>> states = mean.init(w), moving.init(w)
        >>> for _ in range(4):
        ...     states = tuple(tx.update(jnp.float32(1), s, w)[1] for tx, s in zip((mean, moving), states))
        ...     w = w + 1
        ...     print(w, *(state.average for state in states))
        1.0 1.0 1.0
        2.0 2.0 1.5
        3.0 2.0 2.25
        4.0 3.0 3.125

    Source:
        `torch.optim.swa_utils.AveragedModel`; `torch.optim.ASGD`; Polyak and Juditsky, "Acceleration of stochastic
        approximation by averaging", 1992; Izmailov et al., "Averaging weights leads to wider optima and better
        generalization", 2018.
    """
    every = whole_number("average_weights: every", every, least=1)

    def init(params):
        # Zeros, not the parameters themselves: as long as no weights are in it, nobody reads the average.
        zero = jnp.zeros((), jnp.int32)
        return AverageWeightsState(zero, zero.copy(), accumulators(params))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("average_weights: params must be given to update, because they are averaged; got None")
        count, n = increment(state.count), state.n_averaged
        since = count - _whole(start)
        is_due = (since > 0) & (since % every == 0)
        is_empty = n == 0
        share = 1 / (n.astype(jnp.result_type(float)) + 1)
        kept = at_step(decay, n)

        @on_reals
        def step(old, w):
            old, w = split_alike(old, w)
            mean = lax.add(old, times(share, lax.sub(w, old))) if decay is None else average(old, w, kept)
            # Selected, because a sum with the weights 0 and 1 would turn an infinity into NaN.
            return lax.select(is_empty, w, lax.select(is_due, mean, old))

        def averaged(u, old, w):
            return step(old, like(_next(w, u), old))

        # Without a gradient, a parameter stays as it is.
        full = jax.tree.map(
            lambda u, w: jnp.zeros_like(w) if u is None and w is not None else u, updates, params, is_leaf=_is_none
        )
        found = map_state(averaged, full, state.average, params)
        return updates, AverageWeightsState(count, jnp.where(is_due, increment(n), n), found)

    return optax.GradientTransformation(init, update)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _whole(start: Any) -> Any:
    """The first whole number that is not below a number of steps, as far as a step count reaches."""
    most = np.iinfo(np.int32).max
    if isinstance(start, float):
        return min(math.ceil(start), most)
    return jnp.minimum(jnp.ceil(start), 2.0**30).astype(jnp.int32)


def _next(w: Any, u: Any) -> jax.Array:
    """The parameter after its update, rounded as `optax.apply_updates` does, but in at least float32."""
    w = jnp.asarray(w)
    dtype = accumulator_dtype(w)
    u = like(wide(u), wide(w))
    if dtype_of(w) == dtype:
        return lax.add(w, u)
    info = jnp.finfo(w.dtype)

    def rounded(x):  # a cast there and back is one that a compiler may leave out
        return lax.reduce_precision(x, info.nexp, info.nmant)

    return rounded(lax.add(wide(w), rounded(u)))
