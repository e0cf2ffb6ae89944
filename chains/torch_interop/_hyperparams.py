"""Whether the hyperparameters in PyTorch's file are those of the chain.

There is no table of which of a link's numbers comes from which of PyTorch's. Instead PyTorch's number is changed, to
see what changes in the equivalent chain.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from linkax.transforms import Link
from linkax.transforms._check import is_traced
from linkax.transforms._describe import describe
from linkax.transforms._identity import identity_of

from ._chain_groups import Group
from ._reference import Reference, build, line, sign_of, size_of
from ._spec import PAIRS, argument_name

_OTHERWISE = {"lr", "maximize", "weight_decay", "decoupled_weight_decay"}  # compared separately
_NO_MORE = {"initial_accumulator_value"}  # irrelevant after the first step


class Named(NamedTuple):
    """A link by its name; abbreviations are replaced by the links they stand for."""

    name: str  # "second.mean_square"
    link: Link
    within: tuple[Link, ...] = ()  # the links that abbreviate it


class Ours(NamedTuple):
    """The chain, or one of its groups."""

    group: Group
    twins: Sequence[tuple[Link, Link]]  # a link of the reference, and our link whose moment is made from its

    def is_live(self, link: Link, argument: str, within: tuple[Link, ...] = ()) -> bool:
        """Whether an argument of a link may be set at any time."""
        if self.group.is_injected and isinstance(link.hyperparams.get(argument), jax.Array):
            return True
        return (link, argument) in self.group.live or any(one in within for one, _ in self.group.live)


def compare_hyperparams(ours: Ours, reference: Reference, where: str, problems: list[str], warnings: list[str]) -> None:
    """Adds contradictions to the problems, and differences that may be intended to the warnings.

    Args:
        ours: The chain.
        reference: What PyTorch's group does.
        where: The group's name in messages.
        problems: Where contradictions go.
        warnings: Where different learning rates and weight decays go.
    """
    theirs = reference.hyperparams
    if list(ours.group.links) == list(line(reference.links)):
        return
    compare_direction(ours.group.links, reference, where, problems)
    if "lr" in theirs and not ours.group.has_live_rate:
        (rate, unknown), (our_rate, our_unknown) = size_of(line(reference.links)), size_of(ours.group.links)
        if unknown == our_unknown and not _are_same(rate, our_rate):
            warnings.append(f"lr is {describe(float(rate))} in {where}, and {describe(float(our_rate))} in the chain")
    if "weight_decay" in theirs and (decay := _other_decay(ours, reference)) is not None:
        warnings.append(f"weight_decay is {_decay_text(reference)} in {where}, and {decay} in the chain")
    for key in sorted(theirs.keys() - _OTHERWISE - _NO_MORE):
        if (difference := _difference(ours, reference, key)) is not None:
            problems.append(f"{key} is {theirs[key]} in {where}, but the chain has {difference}")


def compare_direction(links: Sequence[Link], reference: Reference, where: str, problems: list[str]) -> None:
    """Adds a problem if one minimises and the other maximises."""
    up, ours_up = (sign_of(line(every)) for every in (reference.links, links))
    if "maximize" in reference.hyperparams and up is not None and ours_up is not None and up != ours_up:
        direction = "minimises" if ours_up < 0 else "maximises"
        problems.append(f"maximize is {reference.hyperparams['maximize']} in {where}, but the chain {direction}")


def _decaying(links: Iterable[Link]) -> dict[str, Named]:
    return {name: one for name, one in _named(links).items() if "weight_decay" in one.link.hyperparams}


def _decay_text(reference: Reference) -> str:
    """PyTorch's weight decay, and its name here."""
    names = _decaying(line(reference.links)) if reference.hyperparams["weight_decay"] else {}
    return f"{reference.hyperparams['weight_decay']}" + "".join(f" ({name})" for name in names)


def _other_decay(ours: Ours, reference: Reference) -> str | None:
    """The chain's weight decay, if it differs from PyTorch's or is in a different place."""
    mine, theirs = _decaying(ours.group.links), _decaying(line(reference.links))
    value = next((one.link.hyperparams["weight_decay"] for one in theirs.values()), 0)
    decays = {name: one.link.hyperparams["weight_decay"] for name, one in mine.items()}
    if any(_is_unknown(decay) or ours.is_live(mine[name].link, "weight_decay") for name, decay in decays.items()):
        return None
    # State_dicts of Adam and AdamW from older versions do not say which of the two they are.
    is_told = "betas" not in reference.hyperparams or "decoupled_weight_decay" in reference.hyperparams
    if value == 0:
        is_same = all(_are_same(0.0, decay) for decay in decays.values())
    else:
        is_same = any(
            _are_same(value, decay) and (name in theirs or mine[name].link.is_foreign or not is_told)
            for name, decay in decays.items()
        )
    return None if is_same else ", ".join(repr(one.link) for one in mine.values()) or "0"


def _difference(ours: Ours, reference: Reference, key: str) -> str | None:
    """What the chain has instead of what one of PyTorch's hyperparameters means; `None` if they agree."""
    theirs, mine = _named(line(reference.links)), _named(ours.group.links)
    for name, value, changed in _variants(reference.hyperparams, key):
        try:
            other = _named(line(build(reference.name, changed).links))
        except (TypeError, ValueError):  # such as nesterov without momentum
            continue
        for link in sorted(theirs.keys() - other.keys() - mine.keys()):
            if (found := _instead(ours, theirs[link].link, {key: value, name: value}, missing=link)) is not None:
                return found
        for link in sorted((other.keys() - theirs.keys()) & mine.keys()):
            return repr(mine[link].link)
        for link in sorted(theirs.keys() & other.keys()):
            # If one number sets several arguments, the first is the number itself. The others, such as the dampening of
            # an average, only set the units, and moments are converted.
            argument = next(iter(_changed(theirs[link].link, other[link].link)), None)
            if argument is None:
                continue
            wanted = theirs[link].link.hyperparams[argument]
            if link not in mine:
                found = _instead(ours, theirs[link].link, {name: value}, {argument: wanted})
                if found is not None:
                    return found
            elif not _agree(ours, mine[link], argument, wanted):
                return f"{argument}={describe(mine[link].link.hyperparams.get(argument))} in {link}"
    return None


def _agree(ours: Ours, one: Named, argument: str, wanted: Any) -> bool:
    """Whether a link of the chain has a value, or one that may be set during training."""
    return ours.is_live(one.link, argument, one.within) or _are_same(wanted, one.link.hyperparams.get(argument))


def _variants(hyperparams: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Our factories' name for a hyperparameter, its value, and the hyperparameters with another value for it."""
    value = hyperparams[key]
    if isinstance(value, list | tuple) and key in PAIRS:  # such as the betas
        for index, one in enumerate(value):
            for other in _others(one):
                yield PAIRS[key][index], one, {**hyperparams, key: [*value[:index], other, *value[index + 1 :]]}
    else:
        for other in _others(value):
            yield argument_name(key), value, {**hyperparams, key: other}


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, list | tuple):
        return [[*value[:-1], 2 * value[-1]]]
    if value is None or isinstance(value, str):  # those of them that are not allowed are left out
        return [other for other in ("original", "match_rms_adamw", 1e-3) if other != value]
    if not isinstance(value, int | float):
        return []
    return [0.5] if value == 0 else [0.0, value / 2, value * 2]  # some of which may not be allowed


def _named(links: Iterable[Link]) -> dict[str, Named]:
    """All links by name."""
    return {one.name: one for one in _each(links)}


def _each(links: Iterable[Link], prefix: str = "", within: tuple[Link, ...] = ()) -> Iterator[Named]:
    seen: dict[str, int] = {}
    for link in links:
        if link.definition is not None:
            yield from _each(link.definition.links, prefix, (*within, link))
            continue
        seen[link.name] = seen.get(link.name, 0) + 1
        yield Named(prefix + link.name + (f" ({seen[link.name]})" if seen[link.name] > 1 else ""), link, within)
        for name, slot in link.slots.items():
            yield from _each(line(slot.links), f"{prefix}{name}.", within)


def _changed(link: Link, other: Link) -> list[str]:
    """The arguments in which two links of one factory differ."""
    held = link.holders()
    return [
        name
        for name, value in link.hyperparams.items()
        if name not in held and identity_of(value) != identity_of(other.hyperparams.get(name))
    ]


def _instead(
    ours: Ours, theirs: Link, own: Mapping[str, Any], inner: Mapping[str, Any] | None = None, missing: str = ""
) -> str | None:
    """What the chain has in place of a link it lacks by that name, if it differs; `missing` is that name.

    Optax's transformations have other names, so they are compared by arguments of the same name: the hyperparameter's
    own names and, for a link with the same moment, the name of our link's argument.
    """
    every = list(_named(ours.group.links).values())
    twins = [one for one in every if any(link == theirs and mine == one.link for link, mine in ours.twins)]
    wanted = {**own, **(inner or {})} if twins else own
    for one in twins or [one for one in every if one.link.is_foreign]:
        for argument, value in wanted.items():
            if argument in one.link.hyperparams:
                return None if _agree(ours, one, argument, value) else repr(one.link)
    if not missing or any(one.link.is_foreign for one in twins):
        return None
    return ", ".join(repr(one.link) for one in twins) or f"no {missing}"


def _is_unknown(value: Any) -> bool:
    return callable(value) or is_traced(value)


def _are_same(theirs: Any, ours: Any) -> bool:
    """Whether two values are the same; a value that is not known yet, or changes, contradicts nothing."""
    if _is_unknown(theirs) or _is_unknown(ours):
        return True
    if isinstance(theirs, list | tuple) or isinstance(ours, list | tuple):
        several = isinstance(theirs, list | tuple) and isinstance(ours, list | tuple)
        return several and len(theirs) == len(ours) and all(map(_are_same, theirs, ours))
    if theirs is None or ours is None or isinstance(theirs, str | bool) or isinstance(ours, str | bool):
        return theirs == ours
    return math.isclose(float(theirs), float(ours), rel_tol=1e-6)  # ours may be an array in float32
