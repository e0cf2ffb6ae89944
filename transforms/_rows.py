"""Gradients for a few rows of a large table, such as an embedding: only these rows are read and written.

Such a leaf is a `jax.experimental.sparse.BCOO` array with one sparse dimension, the first: the indices of the touched
rows and their gradients. A row may appear several times; its gradients are summed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.sparse import BCOO
from jax.sharding import AxisType, NamedSharding, PartitionSpec


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
        return jnp.asarray(array).at[self._numbers].get(mode="clip", out_sharding=_of_rows(array))

    def put(self, array: jax.Array, rows: jax.Array) -> jax.Array:
        """The array with other values in the touched rows."""
        if self._numbers is None:
            return rows
        return array.at[self._numbers].set(rows, mode="drop", unique_indices=True, out_sharding=_explicit(array))


_ALL = _Rows(None)


def has_rows(updates: Any) -> bool:
    """Whether any leaf of the updates is row-sparse."""
    return any(isinstance(leaf, BCOO) for leaf in jax.tree.leaves(updates, is_leaf=is_rows))


def update_rows(
    tx: optax.GradientTransformationExtraArgs, updates: Any, state: Any, params: Any, **extra_args: Any
) -> tuple[Any, Any]:
    """Applies `tx.update` to the touched rows, as if they were the whole parameter; the others stay unchanged."""
    updates = jax.tree.map(lambda u: unique_rows(u) if is_rows(u) else u, updates, is_leaf=is_rows)
    updates = _like_tables(updates, params)
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
    data, numbers = _whole(gradient.data), _whole(gradient.indices)
    if gradient.unique_indices:
        return BCOO((data, numbers), shape=gradient.shape, unique_indices=True)
    count, numbers = gradient.shape[0], numbers[:, 0]
    numbers = jnp.where(numbers < 0, numbers + count, numbers)
    numbers = jnp.where((numbers < 0) | (numbers > count), count, numbers)  # of no row; the padding has the same number
    numbers, places = jnp.unique(numbers, size=len(numbers), fill_value=count, return_inverse=True)
    data = jnp.zeros_like(data).at[places].add(data, out_sharding=_explicit(data))
    return BCOO((data, numbers[:, None]), shape=gradient.shape, unique_indices=True)


def add_rows(table: jax.Array, update: BCOO) -> jax.Array:
    """The table with a row-sparse update added to it."""
    rows = unique_rows(update)
    data = _put(rows.data.astype(table.dtype), _of_rows(table))
    return table.at[rows.indices[:, 0]].add(data, mode="drop", unique_indices=True, out_sharding=_explicit(table))


# On a mesh with explicit axes, JAX has to be told where the results lie. (On any other, the compiler finds the same.)
# Some rows of a table are on all devices that have any part of it, each with the columns that it has of the table.


def _explicit(array: Any) -> NamedSharding | None:
    """The sharding of an array on a mesh with explicit axes; `None` on any other."""
    if not isinstance(array, jax.Array | jax.ShapeDtypeStruct):
        return None
    sharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def _of_rows(table: Any, axes: int = 1) -> NamedSharding | None:
    """The sharding of a table without that of its rows, the first axis (or the first few)."""
    sharding = _explicit(table)
    return sharding and sharding.update(spec=PartitionSpec(*[None] * axes, *sharding.spec[axes:]))


def _whole(array: jax.Array, axes: int = 1) -> jax.Array:
    """The array with its first axes not sharded any more."""
    return _put(array, _of_rows(array, axes))


def _put(array: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    return array if sharding is None else jax.sharding.reshard(array, sharding)


def _like_tables(updates: Any, params: Any) -> Any:
    """The updates, with rows that lie as those of their tables do, if these are known."""
    if params is None:
        return updates

    def one(u: Any, p: Any) -> Any:
        return BCOO((_put(u.data, _of_rows(p)), u.indices), shape=u.shape, unique_indices=True) if is_rows(u) else u

    return jax.tree.map(one, updates, params, is_leaf=_is_rows_or_none)


def is_rows(leaf: Any) -> bool:
    """Whether it is a row-sparse gradient."""
    return isinstance(leaf, BCOO)


def _is_rows_or_none(leaf: Any) -> bool:
    return leaf is None or is_rows(leaf)


def row_gradient(table: Any, ids: jax.typing.ArrayLike, gradient: jax.typing.ArrayLike) -> BCOO:
    """The gradient of a table from that of the rows that were looked up in it.

    Where the rows are x = table[ids], the table's gradient is G[r] = Σ_{i: ids_i = r} ∂L/∂x_i, and 0 in all other rows.

    The table may be sharded by rows, by columns, or by both, on a mesh with automatic or explicit axes, and so are its
    state and its updates. A step never sends the table, or anything of its size, from device to device: if the ids and
    the gradient are sharded, it gathers these; if the table is sharded by rows, it adds up the touched rows of each
    moment.

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
    numbers = ids.astype(jnp.promote_types(ids.dtype, jnp.int32))  # narrower ones cannot index all rows
    numbers, gradient = _whole(numbers, ids.ndim), _whole(gradient, ids.ndim)  # their sharded axes cannot be joined
    return BCOO((gradient.reshape(-1, *shape[1:]), numbers.reshape(-1, 1)), shape=shape)
