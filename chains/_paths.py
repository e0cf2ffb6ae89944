"""How parameters are called: by their path in the tree, as text."""

from typing import Any

import jax
import optax

KeyPath = tuple[Any, ...]


def bare(path: KeyPath) -> KeyPath:
    """The path without the last step into a variable of Flax NNX, which is a node of its own around every array."""
    return path[:-1] if path and path[-1] == jax.tree_util.GetAttrKey("value") else path


def leaves_with_path(tree: Any) -> list[tuple[KeyPath, Any]]:
    """The leaves with their bare paths."""
    return [(bare(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def path_text(path: KeyPath) -> str:
    """A path as text, such as `"params/Dense_0/kernel"`; the empty text for a tree that is one array."""
    return jax.tree_util.keystr(bare(path), simple=True, separator="/")


def paths(tree: Any) -> list[str]:
    """The paths of all parameters, those without a gradient (`None`) or masked out included."""
    return [path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_missing)]


def _is_missing(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, optax.MaskedNode)
