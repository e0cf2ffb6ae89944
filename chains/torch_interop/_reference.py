"""PyTorch's own optimizer as the equivalent chain: what the arrays of its state mean, and in which units."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from linkax.transforms import Count, Gathered, Link, Moment, Stream
from linkax.transforms._link import through

from ..algebra._structure import Groups, StateArray, state_arrays
from ..running._devices import put_like
from ..running._migrate import factor_between
from ._spec import (
    class_of,
    dummy_shapes,
    from_torch,
    is_early,
    is_known,
    kept_keys,
    kept_shape,
    known_hyperparams,
    numbers_after,
)


class Reference(NamedTuple):
    """What PyTorch's optimizer is, in our terms."""

    name: str  # its class's
    links: tuple[Link, ...]
    hyperparams: Mapping[str, Any]
    moments: Mapping[str, StateArray]  # what it stores for a parameter, by PyTorch's names
    numbers: frozenset[str]  # what else it stores: the step, NAdam's product
    is_early: bool  # whether its state exists before the first step
    counts: bool  # whether its updates depend on the step
    follows: frozenset[str] = frozenset()  # those of the numbers that are computed from the steps

    @property
    def keeps(self) -> set[str]:
        """Everything it may store for each parameter."""
        return {*self.moments, *self.numbers}

    def keeps_for(self, shape: tuple[int, ...] | None) -> set[str]:
        """What it stores for a parameter that has this shape in PyTorch."""
        shaped = {key for key in self.moments if shape is None or kept_shape(self.name, key, shape) is not None}
        return {*shaped, *self.numbers}


def reference_of(
    where: str, group: Mapping[str, Any], problems: list[str], name: str | None = None
) -> Reference | None:
    """The reference for one of PyTorch's groups; `None` if its class, by name or hyperparameters, is not supported."""
    name = class_of(group) if name is None or not is_known(name) else name
    if name is None:
        return None
    try:
        hyperparams = known_hyperparams(name, group)
        tx = build(name, hyperparams)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: PyTorch's, for a tensor of several numbers
        problems.append(f"{where} must have hyperparameters of {name}: {str(error).removeprefix('from_torch: ')}")
        return None
    dummy = {f"w{len(shape)}": jnp.zeros(shape) for shape in dummy_shapes(name)}
    arrays = state_arrays(where, tx, tx.init(dummy), dummy)
    keys = kept_keys(name)
    moments = {
        next(key for key in array.field.torch_names if key in keys): array
        for array in arrays
        if isinstance(array.field, Moment)
    }
    fields = [array.field for array in arrays]
    gathered = {field.torch for field in fields if isinstance(field, Gathered)}
    counts = any(isinstance(field, Gathered) or (isinstance(field, Count) and field.is_needed) for field in fields)
    follows = frozenset(numbers_after(name, 0, hyperparams))
    numbers = frozenset((gathered | {"step"} | follows).intersection(keys))
    return Reference(name, tx.links, hyperparams, moments, numbers, is_early(name), counts, follows)


def build(name: str, hyperparams: Mapping[str, Any]) -> Any:
    """The chain for a class's name and hyperparameters."""
    return from_torch((name, hyperparams), learning_rate=hyperparams.get("lr"))


class Partner(NamedTuple):
    """PyTorch's equivalent of one of our arrays."""

    key: str
    factor: float  # the factor from PyTorch's to ours
    is_known: bool  # whether it is known from the reference and not only from the name


Fields = Mapping[tuple[Groups, str, tuple[Any, ...]], Partner | None]
"""PyTorch's equivalents of the fields of a state; `None` for those that cannot be made from PyTorch's."""


def field_of(array: StateArray) -> tuple[Groups, str, tuple[Any, ...]]:
    """What identifies the field of an array in the state."""
    return array.site.groups, array.site.name, array.field_path


def partners(
    arrays: Iterable[StateArray],
    reference: Reference | None,
    has: Collection[str],
    problems: list[str],
    *,
    is_export: bool = False,
) -> Fields:
    """PyTorch's equivalents of the moments of one group, by their meaning, or by their names if nothing more is known.

    Args:
        arrays: The group's arrays.
        reference: What PyTorch's optimizer is, if that is known.
        has: What PyTorch's state has.
        problems: Where the reasons go why something cannot be made from PyTorch's.
        is_export: Whether a name is required, because it will be written.
    """
    found: dict[tuple[Groups, str, tuple[Any, ...]], Partner | None] = {}
    taken: set[str] = set()
    moments = reference.moments if reference else {}
    for array in arrays:
        if not (isinstance(array.field, Moment) and array.field.torch_names) or field_of(array) in found:
            continue
        own = array.field.torch_name(array.slot)
        names = sorted(array.field.torch_names, key=lambda name: name != own)  # the slot's own name comes first
        free = [key for key in names if key not in taken]
        known = [(key, *_factor(array, moments[key])) for key in free if key in moments]
        by_name = [key for key in free if key not in moments]
        in_file = [key for key in by_name if key in has]
        partner = next((Partner(key, factor, True) for key, factor, _ in known if factor), None)
        if partner is None and in_file:
            partner = Partner(in_file[0], 1.0, False)
        if partner is None:
            if known:
                key, factor, why = known[0]
                why = "it is multiplied by 0" if factor == 0 else why or "it means something else"
                problems.append(f"{array.name} cannot be made from PyTorch's {key}: {why}")
                taken.add(key)
            elif free:
                partner = Partner(free[0], 1.0, False)
            else:
                problems.append(f"PyTorch has no equivalent of {array.name}, or only one")
        found[field_of(array)] = partner
        taken |= {partner.key} if partner else set()
    return found


def _factor(array: StateArray, theirs: StateArray) -> tuple[float | None, str]:
    """The factor from PyTorch's array to ours, in whichever slot: PyTorch's name says which slot it is."""
    assert isinstance(array.field, Moment)
    assert isinstance(theirs.field, Moment)
    field = dataclasses.replace(array.field, slot=theirs.field.slot)
    their = theirs.site
    site = array.site._replace(name=their.name, is_alone=their.is_alone, is_short=their.is_short)
    return factor_between(array._replace(value=theirs.value, field=field, site=site), theirs)


def after(array: StateArray, steps: int, problems: list[str]) -> Any:
    """A count, or a number that follows from it, after this many steps."""
    if isinstance(array.field, Count):
        return put_like(steps, array.value)
    assert isinstance(array.field, Gathered)
    try:
        value = array.field.after(steps, **array.site.link.hyperparams)
    except Exception as error:  # the link may be the user's
        problems.append(f"{array.name} cannot be computed after {steps} steps ({error})")
        return array.value
    return put_like(value, array.value)


def line(links: Iterable[Link], groups: Groups = ()) -> Iterator[Link]:
    """The links that the parameters of a group go through, in sequence, whatever they are wrapped in."""
    for link in links:
        wrapped = [slot for slot in link.slots.values() if slot.kind in ("around", "label")]
        if any(slot.kind == "group" for slot in link.slots.values()):
            if groups and groups[0] in link.slots:
                yield from line(link.slots[groups[0]].links, groups[1:])
        elif wrapped:
            for slot in wrapped:
                yield from line(slot.links, groups)
        else:
            yield link


def within(links: Iterable[Link], groups: Groups) -> Iterator[Link]:
    """The links that the parameters of a group go through, in sequence, with everything that wraps them."""
    for link in links:
        wrapped = [slot for slot in link.slots.values() if slot.kind in ("around", "label")]
        if groups and any(slot.kind == "group" for slot in link.slots.values()):
            if groups[0] in link.slots:
                yield from within(link.slots[groups[0]].links, groups[1:])
        elif groups and wrapped and any(_has_groups(slot.links) for slot in wrapped):
            for slot in wrapped:
                yield from within(slot.links, groups)
        else:
            yield link


def _has_groups(links: Iterable[Link]) -> bool:
    return any(slot.kind == "group" or _has_groups(slot.links) for link in links for slot in link.slots.values())


def sign_of(links: Iterable[Link]) -> int | None:
    """Whether an optimizer minimises, −1, or maximises, 1; `None` if that is unknown."""
    sign = 1
    for link in links:
        out = link.out(Stream())
        if link.sets_sign and not link.is_foreign:
            sign = -sign
        elif out.unknown and link.is_foreign:
            return None
        elif out.factor <= 0:
            sign = -sign if out.factor else 0
    return sign or None


def size_of(links: Iterable[Link]) -> tuple[float, Any]:
    """The size of the steps: a known factor, and unknown ones."""
    out = through(tuple(links), Stream())
    return abs(out.factor), out.unknown
