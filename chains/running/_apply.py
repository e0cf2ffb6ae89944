"""Adding updates to parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from linkax.transforms._rows import is_rows, unique_rows


def apply_updates(params: optax.Params, updates: optax.Updates) -> Any:
    """Adds the updates to the parameters: `optax.apply_updates`, also for row-sparse and missing updates.

    w ← w + u, in the parameter's dtype. Of a row-sparse update only the touched rows are read and written (inside
    `jax.jit`, with the parameters donated); a parameter whose update is `None` stays as it is.

    Args:
        params: The parameters.
        updates: The updates, in a tree like the parameters.

    Returns:
        The new parameters, in their own dtypes.

    Raises:
        ValueError: If a row-sparse update has another shape than its parameter.

    Differences:
        `optax.apply_updates` turns a row-sparse update into a whole table, and does not take `None`.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.chains import apply_updates
        >>> new = apply_updates({"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": jnp.ones(2), "b": None})
        >>> print(new["a"], new["b"])
        [2. 2.] [1. 1.]

    Source:
        `optax.apply_updates`.
    """

    def add(u: Any, p: Any) -> Any:
        if u is None or p is None:
            return p
        p = jnp.asarray(p)
        if is_rows(u):
            if u.shape != p.shape:
                raise ValueError(
                    f"apply_updates: a row-sparse update must have its table's shape {p.shape}, got {u.shape}"
                )
            rows = unique_rows(u)
            return p.at[rows.indices[:, 0]].add(rows.data.astype(p.dtype), mode="drop", unique_indices=True)
        return (p + u).astype(p.dtype)

    return jax.tree.map(add, updates, params, is_leaf=lambda u: u is None or is_rows(u))
