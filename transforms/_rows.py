"""Gradients for a few rows of a large table, such as an embedding: only these rows are read and written.

Such a leaf is a `jax.experimental.sparse.BCOO` array with one sparse dimension, the first: the indices of the touched
rows and their gradients. A row may appear several times; its gradients are summed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.sparse import BCOO


class _Rows:
    """The indices of the touched rows of an array, or all. JAX sees a leaf, which can stand for an array in a tree."""

    def __init__(self, numbers: jax.Array | None, shape: tuple[int, ...] = ()):
        self._numbers, self._shape = numbers, shape

    def take(self, array: jax.Array) -> jax.Array:
        """The touched rows; for the padding of `sum_duplicates`, which is beyond the last row, any row."""
        if self._numbers is None:
            return array
        if array.shape != self._shape:
            raise ValueError(f"a row-sparse gradient must have its table's shape {array.shape}, got {self._shape}")
        return array.at[self._numbers].get(mode="clip")

    def put(self, array: jax.Array, rows: jax.Array) -> jax.Array:
        """The array with other values in the touched rows."""
        return rows if self._numbers is None else array.at[self._numbers].set(rows, mode="drop", unique_indices=True)


_ALL = _Rows(None)


def has_rows(updates: Any) -> bool:
    """Whether any leaf of the updates is row-sparse."""
    return any(isinstance(leaf, BCOO) for leaf in jax.tree.leaves(updates, is_leaf=is_rows))


def update_rows(
    tx: optax.GradientTransformationExtraArgs, updates: Any, state: Any, params: Any, **extra_args: Any
) -> tuple[Any, Any]:
    """Applies `tx.update` to the touched rows, as if they were the whole parameter; the others stay unchanged."""
    updates = jax.tree.map(lambda u: unique_rows(u) if is_rows(u) else u, updates, is_leaf=is_rows)
    rows = jax.tree.map(
        lambda u: _Rows(u.indices[:, 0], u.shape) if is_rows(u) else _ALL, updates, is_leaf=_is_rows_or_none
    )
    few = jax.tree.map(lambda u: u.data if is_rows(u) else u, updates, is_leaf=is_rows)
    few_params = params if params is None else jax.tree.map(lambda p, r: r.take(p), params, rows)
    few_state = optax.tree.map_params(tx, lambda s, r: r.take(s), state, rows)
    found, new = tx.update(few, few_state, few_params, **extra_args)
    places = optax.tree.map_params(tx, lambda _, r: r, state, rows, transform_non_params=lambda _: _ALL)
    state = jax.tree.map(lambda old, its, r: r.put(old, its), state, new, places)

    def sparse(u: Any, its: Any) -> Any:
        return BCOO((its, u.indices), shape=u.shape, unique_indices=True) if is_rows(u) else its

    return jax.tree.map(sparse, updates, found, is_leaf=_is_rows_or_none), state


def unique_rows(gradient: BCOO) -> BCOO:
    """The gradient with every row once, under a nonnegative index."""
    if (gradient.n_batch, gradient.n_sparse) != (0, 1):
        raise ValueError(
            "a row-sparse gradient must have one sparse dimension, the first, and no batch dimensions, got "
            f"n_batch={gradient.n_batch}, n_sparse={gradient.n_sparse}; row_gradient(table, ids, gradient) makes one"
        )
    if gradient.unique_indices:
        return gradient
    indices = jnp.where(gradient.indices < 0, gradient.indices + gradient.shape[0], gradient.indices)
    return BCOO((gradient.data, indices), shape=gradient.shape).sum_duplicates(nse=gradient.nse)


def is_rows(leaf: Any) -> bool:
    """Whether it is a row-sparse gradient."""
    return isinstance(leaf, BCOO)


def _is_rows_or_none(leaf: Any) -> bool:
    return leaf is None or is_rows(leaf)


def row_gradient(table: Any, ids: jax.typing.ArrayLike, gradient: jax.typing.ArrayLike) -> BCOO:
    """The gradient of a table from that of the rows that were looked up in it.

    Where the rows are x = table[ids], the table's gradient is G[r] = Σ_{i: ids_i = r} ∂L/∂x_i, and 0 in all other rows.

    Args:
        table: The table, (rows, *shape), or anything of its shape.
        ids: The indices of the rows, integers in any shape; a row may appear several times. Negative ones count from
            the end, as in `table[ids]`.
        gradient: The gradient of `table[ids]`, of that shape.

    Returns:
        A row-sparse gradient, which takes the place of the table's gradient in the tree of gradients.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If `ids` are not integers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from linkax import adagrad, apply_updates
        >>> from linkax.transforms import row_gradient
        >>> table, ids = jnp.zeros((1000, 2)), jnp.array([7, 3, 7])
        >>> gradient = row_gradient(table, ids, jax.grad(lambda x: x.sum())(table[ids]))
        >>> tx = adagrad(0.5)
        >>> updates, state = tx.update(gradient, tx.init(table))
        >>> print(apply_updates(table, updates)[jnp.array([3, 7, 8])])
        [[-0.5 -0.5]
         [-0.5 -0.5]
         [ 0.   0. ]]

    Source:
        `torch.nn.Embedding(sparse=True)`.
    """
    shape, ids, gradient = jnp.shape(table), jnp.asarray(ids), jnp.asarray(gradient)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"row_gradient: ids must be integers, got an array of dtype {ids.dtype}")
    if not shape or gradient.shape != (*ids.shape, *shape[1:]):
        raise ValueError(
            f"row_gradient: gradient must have the shape of table[ids], got {gradient.shape} for a table {shape} and "
            f"ids {ids.shape}"
        )
    numbers = ids.astype(jnp.promote_types(ids.dtype, jnp.int32)).reshape(-1, 1)  # narrower ones cannot index all rows
    return BCOO((gradient.reshape(-1, *shape[1:]), numbers), shape=shape)
