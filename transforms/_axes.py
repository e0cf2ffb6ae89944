"""Axes of parameters that a link treats differently: the same for all of them, or found from their paths and shapes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._describe import describe
from ._leaves import shape_of
from ._trees import path_text


def by_leaf(given: Any, read: Callable[[str, tuple[int, ...], Any], Any], tree: Any) -> Any:
    """A tree like `tree` of `read(path, shape, value)`; missing leaves stay missing.

    `given` is the value for all leaves, or a function from a leaf's path and shape (a `jax.ShapeDtypeStruct`) to it.
    """

    def one(keys, leaf):
        if leaf is None:
            return None
        path, shape = path_text(keys), shape_of(leaf)
        value = given(path, jax.ShapeDtypeStruct(shape, jnp.float32)) if callable(given) else given
        return read(path, shape, value)

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=lambda leaf: leaf is None)


def place_of(what: str, axis: Any, ndim: int) -> int:
    """The axis as an index from 0; raises unless there is such an axis."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not -ndim <= axis < ndim:
        raise ValueError(f"{what} must be an integer from {-ndim} to {ndim - 1}, got {describe(axis)}")
    return axis % ndim
