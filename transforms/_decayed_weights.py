"""u + λ w: the arithmetic that both kinds of weight decay share. What tells them apart is where they stand."""

from typing import Any

import jax
import optax

from ._check import Number
from ._leaves import like, map_updates, scalar, wide
from ._masks import check_flags, selected
from ._trees import is_function


def add_decayed_weights(where: str, weight_decay: Any, mask: Any, factor: Number = 1.0) -> optax.GradientTransformation:
    """Adds factor · weight_decay · w to every leaf that `mask` selects; `where` is named in errors."""
    if not is_function(mask):
        check_flags(where, mask)

    def init(params):
        if jax.tree.leaves(params):  # there are none where Optax only wants to know which arrays belong to parameters
            selected(where, mask, params)
        return optax.EmptyState()

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(f"{where}: params must be given to update, because the weights decay; got None")

        def add(u, w, select):
            if not select:
                return u
            total = wide(u)
            return like(total + scalar(factor, total) * scalar(weight_decay, total) * wide(w), u)

        return map_updates(add, updates, params, selected(where, mask, params)), state

    return optax.GradientTransformation(init, update)
