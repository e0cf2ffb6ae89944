"""The structure of a whole optimizer: its links, including those inside other links and inside Optax's combinators.

Everything that acts on whole optimizers uses this file: `parts` lists the links, `rewrite` rebuilds the optimizer with
other links, and `map_states`, `state_arrays` and `with_arrays` do the same for the state. Each link declares what it
holds, where the state of that is, and what its own state means.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linkax.transforms import Count, Link, Moment, Own, Slot, Stream, Weights
from linkax.transforms._link import Live, is_sequence, links_of, through
from linkax.transforms._meaning import Field

from ._paths import KeyPath, bare, labels_by_path, leaves_with_path, words

Path = tuple[int | str, ...]
"""Where a link is: its index in the chain, then alternately the slot it is inside of and its index there."""

Groups = tuple[str, ...]
"""The names of the groups of parameters that a link is inside of; none without groups."""


class Part(NamedTuple):
    """A link and where it is."""

    path: Path
    name: str  # the link's name, prefixed with the names of what it is inside of: "first.bias_correction"
    link: Link


def flatten(where: str, *transformations: Any) -> tuple[Link, ...]:
    """The links that all the transformations consist of, in order; `where` starts the error message."""
    return tuple(link for tx in transformations for link in links_of(where, tx))


def parts(links: tuple[Link, ...], path: Path = (), names: str = "") -> Iterator[Part]:
    """Yields every link that can be reached, in the order in which they are printed."""
    for index, link in enumerate(links):
        yield Part((*path, index), names + link.name, link)
        for name, slot in link.slots.items():
            prefix = names if slot.kind == "around" else f"{names}{name}."
            yield from parts(slot.links, (*path, index, name), prefix)


def part_at(links: tuple[Link, ...], path: Path) -> Link:
    """The link at a path."""
    link = links[int(path[0])]
    return link if len(path) == 1 else part_at(link.slots[str(path[1])].links, path[2:])


def rewrite(
    links: tuple[Link, ...],
    changes: Mapping[Path, tuple[Link, ...]],
    chain: Callable[..., optax.GradientTransformation],
    path: Path = (),
) -> Iterator[Link]:
    """Yields the links with some replaced by none, one or several others; `chain` joins those inside a link."""
    for index, link in enumerate(links):
        here = (*path, index)
        if here in changes:
            yield from changes[here]
            continue
        touched = {}
        for name, slot in link.slots.items():
            if any(change[: len(here) + 1] == (*here, name) for change in changes):
                new = tuple(rewrite(slot.links, changes, chain, (*here, name)))
                touched[name] = joined(slot, new, chain)
        yield link.with_slots(touched)


def joined(
    slot: Slot, links: tuple[Link, ...], chain: Callable[..., optax.GradientTransformation]
) -> optax.GradientTransformation:
    """Links as the one transformation that a slot holds.

    A chain of one link keeps its state in a tuple, so a chain stays a chain, and so does a whole optimizer.
    """
    remains = slot.is_sequence and (slot.kind != "moment" or len(slot.links) == 1)
    return links[0] if len(links) == 1 and not remains else chain(*links)


class Site(NamedTuple):
    """A link with state, described in a way that stays valid when other links are added or removed."""

    groups: Groups
    name: str  # its name after that of its moment: "second.mean_square"; numbered if it is not the first one
    link: Link
    stream: Stream  # its input
    is_flat: bool = False  # whether all its parameters are one vector
    is_alone: bool = False  # whether its moment has no other next to it
    is_short: bool = False  # whether it is inside an abbreviation, such as RMSprop's scale_by_rms
    is_live: Live = False  # whose hyperparameters may be set during training
    clock: tuple[str, ...] = ()  # the wrappers that let it skip some steps, so that it counts fewer


def map_states(
    fn: Callable[[Site, Any], Any],
    where: str,
    tx: optax.GradientTransformation,
    state: Any,
    *,
    is_as_stored: bool = False,
) -> Any:
    """The state of `tx` with `fn(site, state)` for the state of every link; `where` starts the error message.

    `fn` gets the link's own state, with `None` in place of the state of what the link holds. With `is_as_stored`, a
    state that a link keeps in another form stays in that form.
    """
    seen: Counter[tuple[Groups, str]] = Counter()

    def visit_all(links: tuple[Link, ...], sequence: bool, state: Any, site: Site) -> Any:
        if not sequence:
            return visit(links[0], state, site)
        if not links:  # an empty chain is Optax's identity
            return state
        if not isinstance(state, tuple) or len(state) != len(links):
            names = ", ".join(link.name for link in links)
            raise ValueError(f"{where} must have a state for each of the links {names}, got {_kind(state)}")
        found = []
        for link, own in zip(links, state):
            found.append(visit(link, own, site))
            site = site._replace(stream=link.out(site.stream, is_live=site.is_live))
        return tuple(found)

    def visit(link: Link, state: Any, site: Site) -> Any:
        inner = {}
        for name, slot in _held(link).items():
            try:
                held = get_at(state, slot.path)
            except (AttributeError, KeyError, IndexError, TypeError):
                raise ValueError(
                    f"{where} must have a state of {link.name} with {', '.join(_held(link))}, got {_kind(state)}"
                ) from None
            within = site
            if slot.kind == "group":
                within = site._replace(groups=(*site.groups, name))
            elif slot is link.definition:
                within = site._replace(is_short=True)
            elif slot.kind == "moment":
                others = [other for other in link.slots.values() if other is not slot]
                alone = all(one.is_identity for other in others for one in other.links)
                within = site._replace(name=f"{site.name}{name}.", is_alone=alone)
            within = within._replace(
                is_flat=site.is_flat or slot.is_flat,
                is_live=_both(site.is_live, slot.is_live),
                clock=(*site.clock, link.name) if slot.gates else site.clock,
            )
            view = None if is_as_stored else slot.view
            opened = held if view is None else view.open(held)
            new = visit_all(slot.links, slot.is_sequence, opened, within)
            inner[slot.path] = new if view is None else view.close(new, opened, held)
            if slot.kind == "label":
                site = site._replace(stream=through(slot.links, site.stream, is_live=site.is_live))
        own = state
        for path in inner:
            own = put_at(own, path, None)
        name = site.name + link.name
        if jax.tree.leaves(own) or not inner:
            seen[site.groups, name] += 1
            count = seen[site.groups, name]
            own = fn(site._replace(name=name if count == 1 else f"{name} ({count})", link=link), own)
        for path, new in inner.items():
            own = put_at(own, path, new)
        return own

    start: Any = Site((), "", None, Stream())  # pyright: ignore[reportArgumentType]  # `fn` gets it with a link
    return visit_all(flatten(where, tx), is_sequence(tx), state, start)


def _both(one: Live, other: Live) -> Live:
    if one is True or other is True:
        return True
    return (one or frozenset()) | (other or frozenset())


def _held(link: Link) -> Mapping[str, Slot]:
    """What a link holds, or what it is an abbreviation for."""
    return link.slots if link.definition is None else {link.name: link.definition}


def _kind(state: Any) -> str:
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        return f"a tuple of {', '.join(type(one).__name__ for one in state) or 'nothing'}"
    return type(state).__name__


def get_at(tree: Any, path: tuple[Any, ...]) -> Any:
    """The part of a tree at a path of field names, keys and indices."""
    for step in path:
        tree = getattr(tree, step) if _is_record(tree, step) else tree[step]
    return tree


def put_at(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The tree with the part at a path replaced."""
    if not path:
        return value
    step, *rest = path
    new = put_at(get_at(tree, (step,)), tuple(rest), value)
    if _is_record(tree, step):
        return tree._replace(**{step: new})
    if isinstance(tree, tuple):
        return tuple(new if index == step else one for index, one in enumerate(tree))
    copy = dict(tree)
    copy[step] = new
    return copy if type(tree) is dict else type(tree)(copy)


def _is_record(tree: Any, step: Any) -> bool:
    return isinstance(tree, tuple) and isinstance(step, str)


class StateArray(NamedTuple):
    """An array in the state of a link."""

    site: Site
    keys: KeyPath  # its path in the link's own state
    value: Any
    field_path: tuple[Any, ...]  # the field it belongs to
    field: Field
    param: tuple[str, ...] | None  # the path of its parameter, as words; None for counts and the like

    @property
    def place(self) -> tuple[Groups, str, KeyPath]:
        """What identifies it in the state."""
        return self.site.groups, self.site.name, self.keys

    @property
    def field_words(self) -> tuple[Any, ...]:
        """The names that lead to its field, whether the link is scheduled or not."""
        if not self.site.link.is_scheduled:
            return self.field_path
        if self.field_path == ("count",) and ("inner", "count") in self.site.link.fields:  # it has the shorter name
            return ("schedule", "count")
        return self.field_path[1:] if self.field_path[:1] == ("inner",) else self.field_path

    @property
    def slot(self) -> str:
        """The moment that it is inside of: "second", or "second alone" in an abbreviation that has no other moment."""
        inside = self.site.name.rpartition(".")[0]
        if not inside:
            return self.field.slot if isinstance(self.field, Moment) else ""
        return f"{inside} alone" if self.site.is_short and self.site.is_alone else inside

    def has_slot_of(self, other: "StateArray") -> bool:
        """Whether both are inside the same moment; a moment that is alone may be written out or abbreviated."""

        def slots(array: StateArray) -> set[str]:
            return (
                {array.slot, f"{array.slot} alone"} if array.site.is_alone and not array.site.is_short else {array.slot}
            )

        return bool(slots(self) & slots(other))

    @property
    def is_moment(self) -> bool:
        """Whether it belongs to a parameter."""
        return self.param is not None

    @property
    def is_count(self) -> bool:
        """Whether it counts the steps of its optimizer."""
        return isinstance(self.field, Count)

    @property
    def clock(self) -> tuple[str, ...]:
        """The wrappers that let it skip some steps."""
        inside = isinstance(self.field, Count) and self.field.is_inside
        return (*self.site.clock, self.site.link.name) if inside else self.site.clock

    @property
    def quantity(self) -> str:
        """What it is, in words."""
        of = self.field.of if isinstance(self.field, Moment) else ""
        return of.replace("{}", self.site.stream.quantity)

    @property
    def name(self) -> str:
        """Its name, whichever parameter it belongs to: "head.second.mean_square.nu"."""
        return ".".join(map(str, [*self.site.groups, self.site.name, *self.field_words]))

    def __str__(self) -> str:
        return self.name if self.param is None else f"{self.name} {'/'.join(self.param)}".rstrip()


def state_arrays(
    where: str, tx: optax.GradientTransformation, state: Any, params: Any, *, is_as_stored: bool = False
) -> list[StateArray]:
    """All arrays of a state, with what they mean and the parameters they belong to.

    A vector of all parameters (`optax.flatten`) counts as one array per parameter. With `is_as_stored`, a moment that
    is stored in several arrays (codes and scales) counts as these, which belong to one parameter.
    """
    shapes = {words(path): np.shape(leaf) for path, leaf in leaves_with_path(params)}
    members = groups_of(flatten(where, tx), params)
    found: list[StateArray] = []

    def note(site: Site, own: Any) -> Any:
        fields = site.link.fields
        for keys, value in leaves_with_path(own):
            texts = words(keys)
            path = next((texts[:at] for at in range(1, len(texts) + 1) if texts[:at] in fields), None)
            field = Own() if path is None else fields[path]
            if site.is_flat and np.ndim(value) == 1 and (pieces := _pieces(site, shapes, members, np.size(value))):
                for param, at, shape in pieces:
                    piece = _piece(value, at, shape)
                    found.append(StateArray(site, (*keys, param), piece, path or texts, field, param))
            elif isinstance(field, Moment | Weights) and path is not None:
                param = texts[len(path) :]
                if is_as_stored:
                    param = next((param[:at] for at in range(len(param) + 1) if param[:at] in shapes), param)
                found.append(StateArray(site, keys, value, path, field, param))
            else:
                # Without a declaration, an array whose path ends like a parameter's belongs to that parameter.
                count = 0 if path else len(list(itertools.takewhile(_is_field, keys)))
                at = next((at for at in range(1, count + 1) if texts[at:] in shapes), None)
                if at is not None and (texts[at:] or np.shape(value) == shapes[()]):
                    found.append(StateArray(site, keys, value, texts[:at], field, texts[at:]))
                else:
                    found.append(StateArray(site, keys, value, path or texts, field, None))
        return own

    map_states(note, where, tx, state, is_as_stored=is_as_stored)
    return found


def _piece(vector: Any, at: int, shape: tuple[int, ...]) -> Any:
    if isinstance(vector, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, vector.dtype)
    return vector[at : at + math.prod(shape)].reshape(shape)


def _pieces(
    site: Site, shapes: Mapping[Any, tuple[int, ...]], members: Mapping[Any, Groups], size: int
) -> list[tuple[Any, int, tuple[int, ...]]]:
    """The parameters in a vector of all of them, with offsets and shapes; none if it is no such vector."""
    own = {path: shape for path, shape in shapes.items() if members.get(path) == site.groups}
    starts = list(itertools.accumulate((math.prod(shape) for shape in own.values()), initial=0))
    return [(path, at, shape) for (path, shape), at in zip(own.items(), starts)] if starts[-1] == size else []


def groups_of(links: tuple[Link, ...], params: Any) -> dict[tuple[str, ...], Groups]:
    """The group of every parameter, as far as the labels say; frozen parameters have none."""
    if through(links, Stream()).factor == 0:
        return {}
    for link in links:
        groups = {name: slot for name, slot in link.slots.items() if slot.kind == "group"}
        if groups:
            inner = {name: groups_of(slot.links, params) for name, slot in groups.items()}
            found = labels_by_path(params, link.labels_for(params))
            labels = {words(path): str(label) for path, label in found.items()}
            return {
                path: (label, *inner[label][path])
                for path, label in labels.items()
                if label in inner and path in inner[label]
            }
        for slot in link.slots.values():
            inside = groups_of(slot.links, params) if slot.kind != "moment" else {}
            if any(inside.values()):
                return inside
    return {words(path): () for path, _ in leaves_with_path(params)}


def _is_field(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey | jax.tree_util.SequenceKey)


def with_arrays(
    where: str, tx: optax.GradientTransformation, state: Any, values: Mapping[Any, Any], params: Any = None
) -> Any:
    """The state with other arrays at some places (`StateArray.place`); `params` are needed for `optax.flatten`."""
    shapes = {words(path): np.shape(leaf) for path, leaf in leaves_with_path(params)}
    members = groups_of(flatten(where, tx), params) if shapes else {}

    def fill(site: Site, own: Any) -> Any:
        def replaced(keys: KeyPath, leaf: Any) -> Any:
            place = (site.groups, site.name, bare(keys))
            if site.is_flat and np.ndim(leaf) == 1 and (pieces := _pieces(site, shapes, members, np.size(leaf))):
                for param, at, shape in pieces:
                    new = values.get((*place[:2], (*place[2], param)))
                    if new is not None:
                        leaf = leaf.at[at : at + math.prod(shape)].set(jnp.ravel(new))
                return leaf
            return values.get(place, leaf)

        return jax.tree_util.tree_map_with_path(replaced, own)

    return map_states(fill, where, tx, state)


def opaque_parts(links: tuple[Link, ...]) -> list[Part]:
    """The links that hold something that cannot be looked into."""
    return [part for part in parts(links) if part.link.is_opaque]


def param_text(param: tuple[str, ...]) -> str:
    """A parameter's path as a string."""
    return "/".join(param) or "the parameter"


def explain_state(where: str, error: Exception, tx: optax.GradientTransformation, state: Any, params: Any) -> None:
    """If an update failed because its state is another optimizer's, raises an error that says so.

    `params` may also be the gradients, if there are no parameters.
    """
    try:
        expected = jax.eval_shape(tx.init, params)
    except Exception:  # something else is wrong, and `error` says what
        return
    different = _first_difference(expected, state, "state")
    if different is None:
        for (path, wanted), got in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(state)):
            if np.shape(wanted) != np.shape(got):
                raise ValueError(
                    f"{where}: state must be one for these parameters: state{jax.tree_util.keystr(path)} has the shape "
                    f"{np.shape(got)} instead of {np.shape(wanted)}; linkax.migrate makes one for others"
                ) from error
    if different is not None and different[1] != different[2]:  # the same type with other keys: from other parameters
        place, wanted, got = different
        links = flatten(where, tx)
        index = re.match(r"state\[(\d+)\]", place)
        whose = f"{links[int(index[1])].name} keeps" if index and len(links) > int(index[1]) else "this chain keeps"
        raise ValueError(
            f"{where}: state must be one that this chain's init has made: {place} is {got} where {whose} {wanted}; "
            "linkax.migrate converts the state of one chain into that of another"
        ) from error


def _first_difference(expected: Any, state: Any, place: str) -> tuple[str, str, str] | None:
    """Where two states first differ in structure, and what is there."""
    if jax.tree.structure(expected) == jax.tree.structure(state):
        return None
    if type(expected) is type(state) and isinstance(state, tuple) and len(expected) == len(state):
        names = getattr(state, "_fields", None) or [f"[{index}]" for index in range(len(state))]
        for name, wanted, got in zip(names, expected, state):
            step = name if name.startswith("[") else f".{name}"
            if (found := _first_difference(wanted, got, place + step)) is not None:
                return found
    return place, _kind(expected), _kind(state)
