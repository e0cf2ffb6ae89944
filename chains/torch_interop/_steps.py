"""How many steps PyTorch has taken, and what in a chain counts them or depends on them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from linkax.transforms import Count, Gathered, Link

from ..algebra._structure import Groups, StateArray
from ._chain_groups import Group
from ._check_file import TorchFile
from ._reference import Fields, Reference, after
from ._tensors import as_number


class Age(NamedTuple):
    """How many steps PyTorch has taken with a group."""

    steps: int | None  # `None` if unknown
    has_begun: bool


def age_of(
    part: Group,
    reference: Reference | None,
    fields: Fields,
    file: TorchFile,
    steps: int | None,
    problems: list[str],
) -> Age:
    """The number of steps PyTorch has taken with a group, if its state or the caller says so."""
    begun = [name for name in part.members if file.keys[name]]
    told = _common("step", begun, file, problems)
    keeps = reference.keeps if reference else {partner.key for partner in fields.values() if partner is not None}
    if told is None and not begun and keeps and ("step" in keeps or not file.has_begun):
        told = 0  # PyTorch creates the state in the first step
    if told is not None and steps is not None and told != steps and (begun or not file.has_begun):
        problems.append(f"steps is {steps}, but PyTorch has taken {told:g}")
    return Age(steps if told is None else int(told), bool(begun))


def _common(key: str, names: list[str], file: TorchFile, problems: list[str]) -> float | None:
    """The number that all parameters of a group share, or `None` if they have none."""
    given = {name: file.states[name][key] for name in names if key in file.states[name]}
    every = {name: as_number(f"{key} of {name}", value, problems) for name, value in given.items()}
    numbers = {name: number for name, number in every.items() if number is not None}
    if len(set(numbers.values())) > 1:
        each = ", ".join(f"{name}: {number:g}" for name, number in numbers.items())
        problems.append(f"the parameters of a group must have the same {key}, as a chain has only one ({each})")
    return next(iter(numbers.values()), None)


def counts_of(
    arrays: list[StateArray],
    age: Age,
    reference: Reference | None,
    members: list[str],
    file: TorchFile,
    problems: list[str],
) -> dict[Any, Any]:
    """The counts of a group, and the numbers that follow from them."""
    values: dict[Any, Any] = {}
    missing: list[str] = []
    begun = [name for name in members if file.keys[name]]
    # If PyTorch's optimizer counts no steps, the count of the same link makes no difference.
    needless = {array.site.link for array in arrays if reference and _does_without(array.site.link, reference)}
    for array in arrays:
        if isinstance(array.field, Gathered) and array.field.torch:
            given = _common(array.field.torch, begun, file, problems)
            if given is not None:
                values[array.place] = jnp.asarray(array.field.from_torch(given), array.value.dtype)
                continue
        if not isinstance(array.field, Count | Gathered):
            continue
        if age.steps is not None:
            values[array.place] = after(array, age.steps, problems)
        elif isinstance(array.field, Count) and (not array.field.is_needed or array.site.link in needless):
            values[array.place] = jnp.asarray(int(age.has_begun), array.value.dtype)
        elif array.site.link not in needless:
            missing.append(array.name)
    is_told = (
        reference is not None and bool(begun) and "step" in reference.numbers
    )  # if it is not in the file, that is a problem already
    if missing and not is_told:
        whose = reference.name if reference else "optimizer"
        problems.append(f"steps must be given: PyTorch's {whose} does not count them, and {', '.join(missing)} does")
    return values


def _does_without(link: Link, reference: Reference) -> bool:
    return "step" not in reference.numbers and link in reference.links


def counts_around(arrays: Iterable[StateArray], ages: Mapping[Groups, Age], problems: list[str]) -> dict[Any, Any]:
    """The counts of links around groups, which follow the groups' counts."""
    values: dict[Any, Any] = {}
    for array in arrays:
        groups = array.site.groups
        if groups in ages or not isinstance(array.field, Count | Gathered):
            continue
        inside = [age for label, age in ages.items() if label[: len(groups)] == groups]
        told = {age.steps for age in inside}
        known = [steps for steps in told if steps is not None]
        if len(told) == 1 and known:
            values[array.place] = after(array, known[0], problems)
        elif isinstance(array.field, Count) and not array.field.is_needed:
            most = max(known, default=int(any(age.has_begun for age in inside)))
            values[array.place] = jnp.asarray(most, array.value.dtype)
        elif told:
            problems.append(
                f"steps must be given, one number for all groups: {array.name} counts for all of them, and PyTorch has "
                f"taken {', '.join('an unknown number' if one is None else str(one) for one in told)}"
            )
    return values
