"""What may be set while an optimizer runs: its numbers, and knobs that set several of them together.

Which numbers belong together follows from the links alone: each declares the names of its decays, and which of them
must equal that of an average before it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from linkax.transforms import InFront, Link
from linkax.transforms._check import alike, did_you_mean
from linkax.transforms._identity import identity_of

from ..algebra._structure import Path, opaque_parts, parts

Target = tuple[Path, str]
"""A number: the path of its link, and the argument's name there."""


class Knob(NamedTuple):
    """A number, or several that are only meaningful together."""

    name: str  # prefixed by its groups: "head.b1"; a single number's full name contains its link's
    targets: tuple[Target, ...]
    value: Any  # the same for all of them: a number, or a schedule


class Panel:
    """All knobs of an optimizer, by name."""

    def __init__(self, links: tuple[Link, ...]):
        self._opaque = [part.name for part in opaque_parts(links)]
        self._numbers = [
            Knob(f"{part.name}.{argument}", ((part.path, argument),), part.link.hyperparams[argument])
            for part in parts(links)
            for argument in part.link.numbers
            if argument not in part.link.constants
        ]
        drafts: list[_Draft] = []
        _draft(links, drafts, [])
        self._knobs = [Knob(draft.name, tuple(draft.targets), draft.value) for draft in drafts]

    def find(self, name: str) -> Knob:
        """Finds the one knob or number for a name: some of the words of its own name in order, including the last.

        Only its full name selects a single number; otherwise knobs take precedence.

        Raises:
            ValueError: If there is none, or there are several.
        """
        for candidates in (
            [one for one in self._numbers if one.name == name],
            [one for one in self._knobs if one.name == name],
            [one for one in self._knobs if _is_short_for(name, one.name)],
            alone := [one for one in self._numbers if _is_short_for(name, one.name)],
        ):
            if len(candidates) > 1:
                raise ValueError(
                    f"live: {name!r} must be the name of one hyperparameter of the chain; {len(candidates)} have "
                    f"this name: {', '.join(self._told_apart(candidates))}"
                )
            if candidates:
                break
        else:
            names = list(dict.fromkeys(one.name for one in (*self._knobs, *self._numbers)))
            short = list(dict.fromkeys(one.rpartition(".")[2] for one in names))
            hidden = f" ({', '.join(self._opaque)} cannot be looked into)" if self._opaque else ""
            raise ValueError(
                f"live: {name!r} must be the name of one hyperparameter of the chain; there are "
                f"{', '.join(names) or 'none'}{hidden}{did_you_mean(alike(name, short))}"
            )
        (found,) = candidates
        together = [knob for knob in self._knobs if len(knob.targets) > 1 and found.targets[0] in knob.targets]
        if candidates is alone and together:
            raise ValueError(
                f"live: {name!r} must be the name of one hyperparameter of the chain; {found.name} is part of "
                f"{together[0].name!r}, which sets {', '.join(self.names_of(together[0]))} together; its full name "
                "sets it alone"
            )
        return found

    def named(self, argument: str) -> Iterator[tuple[str, Knob]]:
        """Every number that is this argument of a link, with the shortest name by which `find` finds it."""
        for one in self._numbers:
            ((_, own),) = one.targets
            if own != argument:
                continue
            together = [knob for knob in self._knobs if len(knob.targets) > 1 and one.targets[0] in knob.targets]
            if together:
                yield together[0].name, together[0]
                continue
            *around, _, _ = one.name.split(".")
            for name in (argument, ".".join([*around, argument]), one.name):
                try:
                    found = self.find(name)
                except ValueError:
                    continue
                if found.targets == one.targets:
                    yield name, one
                    break
            else:
                raise ValueError(f"live: {one.name!r} must be the name of one hyperparameter of the chain, got several")

    def names_of(self, knob: Knob) -> list[str]:
        """The full names of the numbers that a knob sets."""
        return [number.name for number in self._numbers if number.targets[0] in knob.targets]

    def _told_apart(self, knobs: Sequence[Knob]) -> list[str]:
        """The knobs' names; if these are equal, with what they set."""
        if len({knob.name for knob in knobs}) == len(knobs):
            return [knob.name for knob in knobs]
        return [f"{knob.name} (of {', '.join(self.names_of(knob))})" for knob in knobs]


def _is_short_for(name: str, full: str) -> bool:
    words, rest = name.split("."), iter(full.split("."))
    return words[-1] == full.split(".")[-1] and all(word in rest for word in words)


@dataclasses.dataclass
class _Draft:
    """A knob to which numbers may still be added."""

    name: str
    value: Any
    targets: list[Target]


_Front = list[tuple[_Draft, str | None]]
"""The averages before a link, each with its slot if it is inside another link or in another moment."""


def _draft(
    links: tuple[Link, ...],
    found: list[_Draft],
    front: _Front,
    path: Path = (),
    prefix: str = "",
    called: str | None = None,
) -> None:
    """Adds the knobs of a sequence of links; `called` is the name of a decay in this moment."""
    for index, link in enumerate(links):
        here = (*path, index)
        own: dict[str, _Draft] = {}
        for argument, name in link.knobs.items():
            if argument not in link.numbers:
                continue
            value = link.hyperparams[argument]
            if not isinstance(name, InFront):
                is_decay = called is not None and name in ("decay", "momentum")
                name = called if is_decay and called else name
                own.setdefault(name, _Draft(prefix + name, value, [])).targets.append((here, argument))
                continue
            for knob, slot in reversed(front):
                is_meant = slot in (None, name.slot) and name.knob in ("", knob.name.rpartition(".")[2])
                if is_meant and identity_of(knob.value) == identity_of(value):
                    knob.targets.append((here, argument))
                    break
        found += own.values()
        front += [(knob, None) for knob in own.values()]
        earlier: _Front = []  # in the moments before
        for name, slot in link.slots.items():
            if slot.kind == "around":
                _draft(slot.links, found, front, (*here, name), prefix, called)
            elif slot.kind == "label":
                _draft(slot.links, found, front, (*here, name), f"{prefix}{name}.", called)
            elif slot.kind == "group":
                _draft(slot.links, found, [], (*here, name), f"{prefix}{name}.", called)
            else:
                inside = [*earlier]
                its = link.knobs.get(name)
                within = prefix if isinstance(its, str) else f"{prefix}{name}."
                _draft(slot.links, found, inside, (*here, name), within, its if isinstance(its, str) else None)
                new: _Front = [(knob, name) for knob, _ in inside[len(earlier) :]]
                earlier += new
                front += new
