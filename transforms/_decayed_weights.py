"""u + λ w: the arithmetic that both kinds of weight decay share. What tells them apart is where they stand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._check import Number, Schedule
from ._leaves import at_step, increment, like, map_updates, scalar, wide


class WeightDecayState(NamedTuple):
    """State of `add_l2_to_grad` and `decoupled_weight_decay`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken, which a scheduled decay depends on


def add_decayed_weights(
    where: str, weight_decay: Number | Schedule, mask: Any, factor: Number = 1.0
) -> optax.GradientTransformation:
    """Adds factor · weight_decay · w to every leaf that `mask` selects; `where` is named in errors."""

    def init(params):
        del params
        return WeightDecayState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(f"{where}: params must be given to update, because the weights decay; got None")
        strength = at_step(weight_decay, state.count)
        selected = _selected(where, mask, params)

        def add(u, w, select):
            if not select:
                return u
            total = wide(u)
            return like(total + scalar(factor, total) * scalar(strength, total) * wide(w), u)

        return map_updates(add, updates, params, selected), WeightDecayState(increment(state.count))

    return optax.GradientTransformation(init, update)


def _selected(where: str, mask: Any, params: optax.Params) -> Any:
    """A tree of booleans like `params`, from a mask that may be missing, a prefix, or a function of the parameters."""
    tree = True if mask is None else mask(params) if callable(mask) else mask
    for flag in jax.tree.leaves(tree):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"{where}: mask must be a tree of True and False, got a leaf {flag!r}")
    return jax.tree.map(lambda flag, subtree: jax.tree.map(lambda _: flag, subtree), tree, params)
