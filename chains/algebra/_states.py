"""The states of a chain's links: which part of the chain's state belongs to which link, and to which parameter."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from linkax.transforms import Link

from ..running._live import Live
from ._parts import flatten, inside
from ._paths import KeyPath, bare, leaves_with_path, path_text

Groups = tuple[str, ...]
"""The names of the groups of parameters that a link is inside of; none without groups."""


class Site(NamedTuple):
    """Where a link stands, in words that survive when other links come and go."""

    groups: Groups
    name: str  # its name behind the slots it is inside of: "second.mean_square"; numbered, if it is not the first one
    link: Link | None  # None for what `live` keeps itself


def map_states(fn: Callable[[Site, Any], Any], where: str, tx: optax.GradientTransformation, state: Any) -> Any:
    """The state of `tx` with `fn(site, state)` for the state of every link; `where` begins an error's message."""
    seen: Counter[tuple[Groups, str]] = Counter()

    def visit(tx: optax.GradientTransformation, state: Any, groups: Groups, slots: str) -> Any:
        if isinstance(tx, Live):
            own = fn(Site(groups, "live", None), state._replace(inner=()))
            return own._replace(inner=visit(tx.chain, state.inner, groups, slots))
        links = flatten(where, tx)
        if not hasattr(tx, "links"):
            return visit_link(links[0], state, groups, slots)
        if not links:  # an empty chain is Optax's identity
            return state
        if not isinstance(state, tuple) or len(state) != len(links):
            names = ", ".join(link.name for link in links)
            raise ValueError(f"{where} must have a state for each of the links {names}, got {type(state).__name__}")
        return tuple(visit_link(link, own, groups, slots) for link, own in zip(links, state))

    def visit_link(link: Link, state: Any, groups: Groups, slots: str) -> Any:
        held = {} if link.is_foreign else inside(link)
        fields = {"partition": ["inner_states"], "lazy": []}.get(link.name, list(held)) if held else []
        labels = getattr(state, "inner_states", held).keys() if link.name == "partition" and held else held.keys()
        if not all(hasattr(state, field) for field in fields) or labels != held.keys():
            raise ValueError(
                f"{where} must have a state of {link.name} with {', '.join(held)}, got {type(state).__name__}"
            )
        if link.name == "lazy" and held:
            return visit(held["inner"], state, groups, slots)
        if link.name == "partition" and held:
            inner = {
                label: masked._replace(inner_state=visit(held[label], masked.inner_state, (*groups, label), slots))
                for label, masked in state.inner_states.items()
            }
            return state._replace(inner_states=inner)
        if held:
            inner = {slot: visit(tx, getattr(state, slot), groups, f"{slots}{slot}.") for slot, tx in held.items()}
            return state._replace(**inner)
        name = slots + link.name
        seen[groups, name] += 1
        count = seen[groups, name]
        return fn(Site(groups, name if count == 1 else f"{name} ({count})", link), state)

    return visit(tx, state, (), "")


class StateArray(NamedTuple):
    """An array in the state of a link."""

    site: Site
    keys: KeyPath  # where it is in the link's state
    value: Any
    param: KeyPath | None  # the parameter it belongs to; None for counts and the like

    @property
    def place(self) -> tuple[Groups, str, KeyPath]:
        """What tells it from all others in the state."""
        return self.site.groups, self.site.name, self.keys

    @property
    def field(self) -> str:
        """Its path in the link's state, up to the parameter: "mu"."""
        return path_text(self.keys[: len(self.keys) - len(self.param or ())])

    @property
    def is_count(self) -> bool:
        """Whether it counts steps; every link that does calls it so."""
        return self.param is None and self.field == "count"

    @property
    def name(self) -> str:
        """What it is called, whichever parameter it belongs to: "head.second.mean_square.nu"."""
        return ".".join([*self.site.groups, self.site.name, *self.field.split("/")])

    def __str__(self) -> str:
        return self.name if self.param is None else f"{self.name} {path_text(self.param)}".rstrip()


def state_arrays(where: str, tx: optax.GradientTransformation, state: Any, params: Any) -> list[StateArray]:
    """All arrays of a state; those that belong to parameters are recognised by the end of their path."""
    shapes = {path: np.shape(leaf) for path, leaf in leaves_with_path(params)}
    found: list[StateArray] = []

    def note(site: Site, state: Any) -> Any:
        for keys, value in leaves_with_path(state):
            # In front of a parameter's path stand only the fields of named tuples, at least one.
            fields = len(list(itertools.takewhile(_is_field, keys)))
            param = next((keys[at:] for at in range(1, fields + 1) if keys[at:] in shapes), None)
            if param == () and np.shape(value) != shapes[()]:  # the parameters are a single array, and this is not its
                param = None
            found.append(StateArray(site, keys, value, param))
        return state

    map_states(note, where, tx, state)
    return found


def _is_field(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey | jax.tree_util.SequenceKey)


def with_arrays(where: str, tx: optax.GradientTransformation, state: Any, values: dict[Any, Any]) -> Any:
    """The state with other arrays at some places (`StateArray.place`)."""

    def fill(site: Site, state: Any) -> Any:
        at = (site.groups, site.name)
        return jax.tree_util.tree_map_with_path(lambda keys, leaf: values.get((*at, bare(keys)), leaf), state)

    return map_states(fill, where, tx, state)
