"""Tracing the arithmetic of a leaf only once for all leaves of the same shape and dtype.

While JAX traces a step, links do not do their arithmetic on the leaves of a chain's updates; they only record it
(`deferred`). At the end it is done for every leaf (`settled`), by one jitted function for all leaves of the same kind,
which is traced once and called for each of them. The compiler gets the same arithmetic, and inlines the calls.
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.interpreters.partial_eval import DynamicJaxprTracer

_WORTH_IT = 3
"""How many leaves of a kind are needed: for fewer, a separate function costs more than it saves."""


class Deferred:
    """An array of one leaf that has not been computed yet: an entry in that leaf's notes."""

    __slots__ = ("index", "notes")

    def __init__(self, notes: "_Notes", index: int):
        self.notes, self.index = notes, index

    @property
    def shape(self) -> tuple[int, ...]:
        return self.notes.shape

    @property
    def gradient_dtype(self) -> Any:
        """The dtype of the leaf at the start of its notes."""
        return self.notes.dtype


class _Notes:
    """What to do for one leaf: the arrays it starts from, and functions of entries further up in the list.

    Attributes:
        plan: An entry is `None` for an external array; otherwise a function and its arguments, which are indices of
            entries, or values that are known while tracing.
        arrays: The external arrays, in the order of their entries.
    """

    __slots__ = ("arrays", "dtype", "places", "plan", "shape")

    def __init__(self, array: Any):
        self.shape, self.dtype = array.shape, array.dtype
        self.plan: list[Any] = []
        self.arrays: list[Any] = []
        self.places: dict[int, int] = {}  # of the external arrays, by their identity

    def take(self, array: Any) -> int:
        """The index of an external array."""
        index = self.places.get(id(array))
        if index is None:
            self.places[id(array)] = index = len(self.plan)
            self.plan.append(None)
            self.arrays.append(array)
        return index

    def note(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Deferred:
        """The result of a function that is called later."""
        noted = []
        for one in arguments:
            if type(one) is Deferred:
                if one.notes is not self:
                    raise ValueError("linkax: a leafwise link must take one leaf at a time, got two in one function")
                noted.append((True, one.index))
            elif isinstance(one, jax.Array | np.ndarray):
                noted.append((True, self.take(one)))
            else:
                noted.append((False, one))
        self.plan.append((function, tuple(noted)))
        return Deferred(self, len(self.plan) - 1)


def apply(function: Callable[..., Any], *arguments: Any) -> Any:
    """Applies `function` to a leaf and its arrays: now, or later if one of them has not been computed yet."""
    for one in arguments:
        if type(one) is Deferred:
            return one.notes.note(function, arguments)
    return function(*arguments)


def deferred(updates: Any) -> Any:
    """The updates, with leaves that only record their arithmetic where there are enough of the same kind."""
    leaves, structure = jax.tree.flatten(updates)
    kinds = [_kind(leaf) for leaf in leaves]
    counts = collections.Counter(kinds)
    if not any(count >= _WORTH_IT for kind, count in counts.items() if kind is not None):
        return updates
    return structure.unflatten(
        leaf if kind is None or counts[kind] < _WORTH_IT else _start(leaf) for leaf, kind in zip(leaves, kinds)
    )


def _kind(leaf: Any) -> Any:
    """What leaves must have in common; `None` for leaves whose arithmetic is done at once.

    Outside of tracing, every step would compile the function again.
    """
    return (leaf.shape, leaf.dtype) if isinstance(leaf, DynamicJaxprTracer) else None


def _start(leaf: Any) -> Deferred:
    notes = _Notes(leaf)
    return Deferred(notes, notes.take(leaf))


def is_deferred(updates: Any) -> bool:
    """Whether some of the updates have not been computed yet."""
    return any(type(leaf) is Deferred for leaf in jax.tree.leaves(updates))


def settled(tree: Any) -> Any:
    """The tree with everything computed."""
    leaves, structure = jax.tree.flatten(tree)
    wanted: dict[_Notes, list[int]] = {}  # positions in `leaves`, by leaf of the updates
    for place, leaf in enumerate(leaves):
        if type(leaf) is Deferred:
            wanted.setdefault(leaf.notes, []).append(place)
    if not wanted:
        return tree
    functions: dict[Any, Callable[..., Any]] = {}
    for notes, places in wanted.items():
        plan = (*notes.plan, *(leaves[place].index for place in places))
        if plan not in functions:
            functions[plan] = jax.jit(_function(tuple(notes.plan), tuple(leaves[place].index for place in places)))
        for place, value in zip(places, functions[plan](*notes.arrays)):
            leaves[place] = value
    return structure.unflatten(leaves)


def _function(plan: tuple[Any, ...], results: tuple[int, ...]) -> Callable[..., Any]:
    def one_leaf(*arrays):
        values, given = [], iter(arrays)
        for entry in plan:
            if entry is None:
                values.append(next(given))
            else:
                function, arguments = entry
                values.append(function(*(values[one] if is_index else one for is_index, one in arguments)))
        return [values[index] for index in results]

    return one_leaf
