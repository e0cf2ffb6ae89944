"""Trees that accompany the parameters (masks, labels), and the names of parameters: their paths in the tree.

Such a tree is like the parameters, or like the upper part of their tree, where a leaf applies to everything below it.
The types of its nodes do not matter: a dictionary matches a `FrozenDict`, an `nnx.State` or an Equinox module if its
keys have the same names as theirs.
"""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import jax
import optax

from ._rows import is_rows

KeyPath = tuple[Any, ...]

_LONGEST_LIST = 10


def is_function(value: Any) -> bool:
    """Whether a value, where a tree is allowed too, should be called: an Equinox module is callable, but is a tree."""
    if isinstance(value, jax.tree_util.Partial):  # a tree of its arguments, but meant to be called
        return True
    return callable(value) and (jax.tree_util.all_leaves([value]) or not jax.tree.leaves(value))


def bare(path: KeyPath) -> KeyPath:
    """The path without the last step into a variable of Flax NNX, an extra node around every array."""
    return path[:-1] if path and path[-1] == jax.tree_util.GetAttrKey("value") else path


def leaves_with_path(tree: Any) -> list[tuple[KeyPath, Any]]:
    """The leaves with their bare paths; a row-sparse gradient is one leaf."""
    return [(bare(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_rows)]


def words(path: KeyPath) -> tuple[str, ...]:
    """The keys of a path as strings."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in bare(path))


def path_text(path: KeyPath) -> str:
    """A path as a string, such as `"params/Dense_0/kernel"`; the empty string for a tree that is one array."""
    return jax.tree_util.keystr(bare(path), simple=True, separator="/")


def is_missing(leaf: Any) -> bool:
    """Whether a parameter, or its gradient, is missing: `None`, or masked out."""
    return leaf is None or isinstance(leaf, optax.MaskedNode)


class Said(NamedTuple):
    """What a tree says about the parameters."""

    values: dict[KeyPath, Any]  # for every parameter, by its bare path; `None` where it says nothing
    missing: list[str]  # the parameters about which it says nothing
    strangers: list[str]  # where it says something, but there is no parameter

    def like(self, params: Any) -> Any:
        """The values as a tree like the parameters."""
        return jax.tree_util.tree_map_with_path(lambda path, _: self.values[bare(path)], params, is_leaf=is_rows)


def said_of(params: Any, tree: Any) -> Said:
    """What a tree says about every parameter.

    It may also say something about missing parameters and, if the tree has no parameters at all, anything.
    """
    given = {words(path): (path_text(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    paths = [path for path, _ in leaves_with_path(params)]
    found = {path: _nearest(words(path), given) for path in paths}
    used = set(found.values())
    if paths and not given.keys() <= used:
        used |= {_nearest(words(path), given) for path in _empty_paths(params)}
    values = {path: None if keys is None else given[keys][1] for path, keys in found.items()}
    missing = [path_text(path) or "the parameter" for path, keys in found.items() if keys is None]
    strangers = sorted(text for keys, (text, _) in given.items() if paths and keys not in used)
    return Said(values, missing, strangers)


def _nearest(keys: tuple[str, ...], given: Collection[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The path of the leaf that a parameter's path starts with: the parameter itself, or a node above it."""
    return next((keys[:count] for count in range(len(keys), -1, -1) if keys[:count] in given), None)


def _empty_paths(tree: Any) -> list[KeyPath]:
    """The paths of nodes without leaves: `None`, masked-out nodes, empty dictionaries."""

    def is_empty(node: Any) -> bool:
        return not is_rows(node) and not jax.tree.leaves(node)

    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: is_rows(node) or is_empty(node))
    return [path for path, node in nodes if is_empty(node)]


def spread(where: str, must: str, tree: Any, params: Any) -> Any:
    """What a tree says about every parameter, as a tree like the parameters; raises if it does not fit."""
    if jax.tree.structure(tree) == jax.tree.structure(params):
        return tree
    said = said_of(params, tree)
    if said.missing or said.strangers:
        nothing = f"nothing for {listed(said.missing)}" if said.missing else ""
        nowhere = f"something for {listed(said.strangers)}, where there is no parameter" if said.strangers else ""
        raise ValueError(f"{where} must {must}, got {' and '.join(filter(None, (nothing, nowhere)))}")
    return said.like(params)


def listed(texts: Iterable[str]) -> str:
    """Strings on one line; only the first ones if there are many."""
    every = [text or "the only leaf" for text in texts]
    rest = len(every) - _LONGEST_LIST
    return ", ".join(every[:_LONGEST_LIST]) + (f" and {rest} more" if rest > 0 else "")
