"""The links of a chain, those inside other links included: listing them, and rebuilding the chain from others."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import optax

from linkax.transforms import Link
from linkax.transforms._link import links_of

Path = tuple[int | str, ...]
"""Where a link stands: its index in the chain, then by turns the slot it is inside of and its index there."""


class Part(NamedTuple):
    """A link and where it stands."""

    path: Path
    name: str  # the link's name, behind the slots it is inside of: "first.bias_correction"
    link: Link


def flatten(where: str, *transformations: Any) -> tuple[Link, ...]:
    """The links that all the transformations consist of, in order; `where` begins an error's message."""
    return tuple(link for tx in transformations for link in links_of(where, tx))


def inside(link: Link) -> dict[str, optax.GradientTransformation]:
    """The transformations inside a link, by slot: the argument that holds one, or its name in a dictionary of them."""
    found = {}
    for argument in holders(link):
        value = link.hyperparams[argument]
        found.update({argument: value} if isinstance(value, optax.GradientTransformation) else value)
    return found


def holders(link: Link) -> list[str]:
    """The arguments of a link that hold transformations."""

    def holds(value: Any) -> bool:
        if isinstance(value, Mapping):
            return bool(value) and all(isinstance(tx, optax.GradientTransformation) for tx in value.values())
        return isinstance(value, optax.GradientTransformation)

    return [argument for argument, value in link.hyperparams.items() if holds(value)]


def is_partition(link: Link) -> bool:
    """Whether it is the link of `param_groups`, and not Optax's own `partition`."""
    return link.name == "partition" and not link.is_foreign


def with_inside(link: Link, new: Mapping[str, optax.GradientTransformation]) -> Link:
    """The link with other transformations in some of its slots."""
    changes = {}
    for argument in holders(link):
        value = link.hyperparams[argument]
        if isinstance(value, optax.GradientTransformation):
            changes |= {argument: new[argument]} if argument in new else {}
        elif value.keys() & new.keys():
            changes[argument] = {slot: new.get(slot, tx) for slot, tx in value.items()}
    return link.replace(**changes) if changes else link


def parts(links: tuple[Link, ...], path: Path = (), slots: str = "") -> Iterator[Part]:
    """Yields every link that can be reached, in the order in which they are printed: a foreign link is not rebuilt."""
    for index, link in enumerate(links):
        yield Part((*path, index), slots + link.name, link)
        held = {} if link.is_foreign else inside(link)
        for slot, tx in held.items():
            yield from parts(flatten(link.name, tx), (*path, index, slot), f"{slots}{slot}.")


def rewrite(
    links: tuple[Link, ...],
    changes: Mapping[Path, tuple[Link, ...]],
    chain: Callable[..., optax.GradientTransformation],
    path: Path = (),
) -> Iterator[Link]:
    """Yields the links with others in the place of some: none, one, or several; `chain` joins those inside a link."""
    for index, link in enumerate(links):
        here = (*path, index)
        if here in changes:
            yield from changes[here]
            continue
        touched = {}
        for slot, tx in inside(link).items():
            if any(change[: len(here) + 1] == (*here, slot) for change in changes):
                new = tuple(rewrite(flatten(link.name, tx), changes, chain, (*here, slot)))
                touched[slot] = new[0] if len(new) == 1 else chain(*new)
        yield with_inside(link, touched)
