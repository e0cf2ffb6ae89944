"""u + λ w: the arithmetic that both kinds of weight decay share. They differ in their place in the chain."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._check import Number
from ._leaves import like, map_updates, on_reals, times, wide
from ._masks import check_mask, selected


def add_decayed_weights(where: str, weight_decay: Any, mask: Any, factor: Number = 1.0) -> optax.GradientTransformation:
    """Adds factor · weight_decay · w to every leaf that `mask` selects; `where` is named in errors."""
    check_mask(where, mask)

    # Arrays may have half precision, in which 1/α would be rounded.
    share = jnp.asarray(weight_decay, jnp.result_type(float)) if isinstance(weight_decay, jax.Array) else weight_decay
    share = factor * share if isinstance(factor, jax.Array) or factor != 1 else share

    def init(params):
        if jax.tree.leaves(params):  # none if Optax only asks which arrays belong to parameters
            selected(where, mask, params)
        return optax.EmptyState()

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(f"{where}: params must be given to update, because the weights decay; got None")

        add = on_reals(lambda u, w: lax.add(u, times(share, w)))

        def decay(u, w, is_selected):
            return like(add(wide(u), wide(w)), u) if is_selected else u

        return map_updates(decay, updates, params, selected(where, mask, params)), state

    return optax.GradientTransformation(init, update)
