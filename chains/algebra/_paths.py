"""How parameters are called: by their path in the tree, as text."""

from typing import Any

import jax
import optax

from linkax.transforms._rows import is_rows

KeyPath = tuple[Any, ...]


def bare(path: KeyPath) -> KeyPath:
    """The path without the last step into a variable of Flax NNX, which is a node of its own around every array."""
    return path[:-1] if path and path[-1] == jax.tree_util.GetAttrKey("value") else path


def leaves_with_path(tree: Any) -> list[tuple[KeyPath, Any]]:
    """The leaves with their bare paths; a row-sparse gradient is one."""
    return [(bare(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_rows)]


def words(path: KeyPath) -> tuple[str, ...]:
    """The keys of a path as texts."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in bare(path))


def path_text(path: KeyPath) -> str:
    """A path as text, such as `"params/Dense_0/kernel"`; the empty text for a tree that is one array."""
    return jax.tree_util.keystr(bare(path), simple=True, separator="/")


def missing_paths(tree: Any) -> list[KeyPath]:
    """The paths of parameters that are not there: `None`, or masked out."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: is_rows(leaf) or _is_missing(leaf))
    return [path for path, leaf in leaves if _is_missing(leaf)]


def _is_missing(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, optax.MaskedNode)
