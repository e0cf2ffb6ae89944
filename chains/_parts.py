"""The links of a chain, those inside a `moment_ratio` included: listing them, and rebuilding the chain from others."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import optax

from linkax.transforms import Link
from linkax.transforms._link import links_of

Path = tuple[int | str, ...]
"""Where a link stands: its index in the chain, then by turns the argument it is inside of and its index there."""


class Part(NamedTuple):
    """A link and where it stands."""

    path: Path
    name: str  # the link's name, behind the arguments it is inside of: "first.bias_correction"
    link: Link


def flatten(where: str, *transformations: Any) -> tuple[Link, ...]:
    """The links that all the transformations consist of, in order; `where` begins an error's message."""
    return tuple(link for tx in transformations for link in links_of(where, tx))


def inside(link: Link) -> dict[str, tuple[Link, ...]]:
    """The links inside a link, by the argument that holds them."""
    return {
        slot: flatten(link.name, value)
        for slot, value in link.hyperparams.items()
        if isinstance(value, optax.GradientTransformation)
    }


def parts(links: tuple[Link, ...], path: Path = (), slots: str = "") -> Iterator[Part]:
    """Yields every link, in the order in which they are printed."""
    for index, link in enumerate(links):
        yield Part((*path, index), slots + link.name, link)
        for slot, inner in inside(link).items():
            yield from parts(inner, (*path, index, slot), f"{slots}{slot}.")


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
        for slot, inner in inside(link).items():
            if any(change[: len(here) + 1] == (*here, slot) for change in changes):
                new = tuple(rewrite(inner, changes, chain, (*here, slot)))
                touched[slot] = new[0] if len(new) == 1 else chain(*new)
        yield link.replace(**touched) if touched else link
