"""A learning rate that falls when a metric stops improving.

−α · s_t · u_t, where s_t is multiplied by a factor after too many epochs without a better metric
"""

import math
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._check import Interval, Number, Rate, whole_number
from ._leaves import increment, like, map_updates, times, wide
from ._link import link
from ._meaning import Count, Own

_Amount = Annotated[Number, Interval("[0, inf)")]


class Plateau(NamedTuple):
    """Where `scale_by_plateau` stands between two epochs.

    Attributes:
        best: The best metric so far; `None` before the first.
        bad_epochs: The epochs since then without a better one.
        cooldown: For how many more epochs the metric does not count.
        epochs: The metrics seen.

    Example:
        >>> from linkax.transforms import Plateau
        >>> Plateau(best=0.25, bad_epochs=2, epochs=10).cooldown
        0
    """

    best: float | None = None
    bad_epochs: int = 0
    cooldown: int = 0
    epochs: int = 0


class ScaleByPlateauState(NamedTuple):
    """State of `scale_by_plateau`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken
    scale: jax.Array  # () float: what the learning rate is multiplied by
    best: jax.Array  # () float: the best metric so far, ±∞ before the first
    bad_epochs: jax.Array  # () int32: epochs without a better one
    cooldown: jax.Array  # () int32: epochs for which the metric does not count any more
    epochs: jax.Array  # () int32: metrics seen


@link(
    "step",
    is_leafwise=True,
    sets_sign=True,
    is_row_local=True,
    factor=None,
    state={"count": Count(), **dict.fromkeys(("scale", "best", "bad_epochs", "cooldown", "epochs"), Own())},
)
def scale_by_plateau(
    learning_rate: Rate,
    *,
    mode: Literal["min", "max"] = "min",
    factor: Annotated[Number, Interval("[0, 1)")] = 0.1,
    patience: int = 10,
    threshold: _Amount = 1e-4,
    threshold_mode: Literal["rel", "abs"] = "rel",
    cooldown: int = 0,
    min_lr: _Amount = 0.0,
    eps: _Amount = 1e-8,
    steps_per_epoch: int = 1,
    offset: int | None = None,
    start: Plateau | None = None,
) -> optax.GradientTransformation:
    """Multiplies by minus a learning rate that is reduced when a metric has stopped improving.

    u ← −α s u, in place of `scale_by_learning_rate`. The metric, such as the validation loss, is the extra argument
    `value` of `update`. It is read once an epoch: in the first update of the next epoch, before it is used, as if
    PyTorch's `scheduler.step(metric)` had been called between the two epochs. So the loop passes the latest metric to
    every update: `tx.update(grads, state, params, value=validation_loss)`, and any number, such as ∞, in the first
    epoch.

    The metric counts as better if it is below best · (1 − threshold), or below best − threshold in the mode `"abs"`;
    mirrored for `mode="max"`. After more than `patience` epochs without a better one, the rate becomes
    max(rate · factor, min_lr), if that differs by more than `eps`, and the next `cooldown` epochs do not count.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        mode: Whether the metric should fall, `"min"`, or rise, `"max"`.
        factor: What the rate is multiplied by, in [0, 1).
        patience: The epochs without improvement that are tolerated, at least 0.
        threshold: How much better the metric must be to count, at least 0.
        threshold_mode: Whether the threshold is a share of the best metric, `"rel"`, or a difference, `"abs"`.
        cooldown: The epochs after a reduction in which nothing is counted, at least 0.
        min_lr: The smallest rate, at least 0.
        eps: The smallest reduction, at least 0.
        steps_per_epoch: The updates in an epoch, at least 1.
        offset: How many updates came before the first epoch; may be negative. `None` for 0, or not known for sure:
            `torch_interop.import_state` then checks that the steps taken fit the epochs.
        start: Where to start, such as where PyTorch's scheduler stopped; `None` for the beginning.

    Returns:
        A link at the place `"step"`, the last one there, with state
        `ScaleByPlateauState(count, scale, best, bad_epochs, cooldown, epochs)`.

    Raises:
        ValueError: If an argument is outside its range. From `update`, if `value` is not one number.
        TypeError: From `update`, if `value` is missing.

    Differences:
        PyTorch keeps the rate in the parameter group, and all groups share one count. `optax.contrib.reduce_on_plateau`
        reads every value, as the average over `accumulation_size` updates, counts a cooldown otherwise, and comes after
        the learning rate.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_plateau
        >>> link = scale_by_plateau(1.0, factor=0.5, patience=1, steps_per_epoch=2)
        >>> state = link.init(jnp.float32(0))
        >>> for loss in (jnp.inf, 3.0, 2.0, 2.0, 2.0):  # one an epoch
        ...     for _ in range(2):
        ...         u, state = link.update(jnp.float32(1.0), state, value=loss)
        ...     print(u)
        -1.0
        -1.0
        -1.0
        -1.0
        -0.5

    Source:
        `torch.optim.lr_scheduler.ReduceLROnPlateau`.
    """
    patience, cooldown = (
        whole_number(f"scale_by_plateau: {name}", value)
        for name, value in (("patience", patience), ("cooldown", cooldown))
    )
    if whole_number("scale_by_plateau: steps_per_epoch", steps_per_epoch) < 1:
        raise ValueError(f"scale_by_plateau: steps_per_epoch must be an integer of at least 1, got {steps_per_epoch!r}")
    if isinstance(offset, bool) or not isinstance(offset, int | None):
        raise ValueError(f"scale_by_plateau: offset must be an integer or None, got {offset!r}")
    if start is not None and not isinstance(start, Plateau):
        raise ValueError(f"scale_by_plateau: start must be a Plateau(...) or None, got {start!r}")
    first, worst = start or Plateau(), math.inf if mode == "min" else -math.inf

    def init(params):
        del params
        dtype = jnp.result_type(float)
        best = jnp.asarray(worst if first.best is None else first.best, dtype)
        counters = (jnp.asarray(one, jnp.int32) for one in first[1:])
        return ScaleByPlateauState(jnp.zeros((), jnp.int32), jnp.ones((), dtype), best, *counters)

    def update(updates, state, params=None, *, value=None, **_):
        del params
        if value is None:
            raise TypeError(
                "scale_by_plateau: value must be given to update, the latest metric: update(..., value=loss); got None"
            )
        if jnp.shape(value) != ():
            raise ValueError(f"scale_by_plateau: value must be one number, got shape {jnp.shape(value)}")
        dtype = state.scale.dtype
        metric, rate = jnp.asarray(value, dtype), jnp.asarray(learning_rate, dtype)
        epoch = (state.count - (offset or 0)) // steps_per_epoch
        is_due = epoch > state.epochs
        sign = -1 if mode == "min" else 1
        aim = state.best * (1 + sign * threshold) if threshold_mode == "rel" else state.best + sign * threshold
        is_better = metric < aim if mode == "min" else metric > aim
        bad = jnp.where(is_better | (state.cooldown > 0), 0, state.bad_epochs + 1)
        is_reduced = bad > patience
        old = rate * state.scale
        new = jnp.maximum(old * factor, min_lr)
        scale = jnp.where(is_reduced & (old - new > eps), new / jnp.where(rate == 0, 1, rate), state.scale)
        rest = jnp.where(is_reduced, cooldown, jnp.maximum(state.cooldown - 1, 0))
        after = (
            jnp.asarray(scale, dtype),
            jnp.where(is_better, metric, state.best),
            jnp.where(is_reduced, 0, bad).astype(jnp.int32),
            rest.astype(jnp.int32),
            epoch.astype(jnp.int32),
        )
        scale, best, bad, rest, epochs = (jnp.where(is_due, one, old) for one, old in zip(after, state[1:]))
        size = -rate * scale
        updates = map_updates(lambda u: like(times(size, wide(u)), u), updates)
        return updates, ScaleByPlateauState(increment(state.count), scale, best, bad, rest, epochs)

    return optax.GradientTransformationExtraArgs(init, update)
