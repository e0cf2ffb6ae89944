"""Adding updates to parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from linkax.transforms._leaves import check_leaves, dtype_of, is_one_leaf
from linkax.transforms._rows import add_rows, is_rows
from linkax.transforms._trees import is_missing


def apply_updates(params: optax.Params, updates: optax.Updates) -> Any:
    """Adds the updates to the parameters: `optax.apply_updates`, also for row-sparse and missing updates.

    w ← w + u, in the parameter's dtype. For a row-sparse update only the touched rows are read and written (inside
    `jax.jit`, with the parameters donated). A parameter whose update is `None` stays unchanged.

    Args:
        params: The parameters.
        updates: The updates, in a tree like the parameters.

    Returns:
        The new parameters, in their own dtypes.

    Raises:
        ValueError: If an update has a different shape from its parameter, or the trees differ.
        TypeError: If an update is complex and its parameter is not.

    Differences:
        `optax.apply_updates` turns a row-sparse update into a dense table, accepts neither `None` nor the `float0` that
        JAX returns as the gradient of integers, and changes the shape of a parameter if the update's is larger.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax import apply_updates
        >>> new = apply_updates({"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": jnp.ones(2), "b": None})
        >>> print(new["a"], new["b"])
        [2. 2.] [1. 1.]

    Source:
        `optax.apply_updates`.
    """

    check_leaves("apply_updates: an update", updates, params, whole=True)

    def add(u: Any, p: Any) -> Any:
        if is_missing(u) or is_missing(p) or dtype_of(u) == jax.dtypes.float0:
            return p
        p = jnp.asarray(p)
        if is_rows(u):
            return add_rows(p, u)
        return (p + u).astype(p.dtype)

    return jax.tree.map(add, updates, params, is_leaf=is_one_leaf)
