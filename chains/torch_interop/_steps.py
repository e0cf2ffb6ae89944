"""How many steps PyTorch has taken, and what in a chain counts them or depends on them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from linkax.transforms import Count, Gathered, Link
from linkax.transforms._trees import listed

from ..algebra._structure import Groups, StateArray
from ..running._devices import put_like
from ._chain_groups import Group
from ._check_file import TorchFile
from ._reference import Fields, Reference, after
from ._spec import numbers_after
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
                values[array.place] = put_like(array.field.from_torch(given), array.value)
                continue
        if not isinstance(array.field, Count | Gathered):
            continue
        if age.steps is not None:
            values[array.place] = after(array, age.steps, problems)
        elif isinstance(array.field, Count) and (not array.field.is_needed or array.site.link in needless):
            values[array.place] = put_like(int(age.has_begun), array.value)
        elif array.site.link not in needless:
            missing.append(array.name)
    is_told = (
        reference is not None and bool(begun) and "step" in reference.numbers
    )  # if it is not in the file, that is a problem already
    if missing and not is_told:
        whose = reference.name if reference else "optimizer"
        verb = "does" if len(missing) == 1 else "do"
        problems.append(f"steps must be given: PyTorch's {whose} does not count them, and {listed(missing)} {verb}")
    return values


def other_counts(part: Group, age: Age, reference: Reference | None, file: TorchFile) -> list[str]:
    """What PyTorch counts parameter by parameter, and the chain, which has one count for all, continues otherwise."""
    if not age.steps:
        return []
    notes: list[str] = []
    idle = [name for name in part.members if not file.keys[name]]
    fields = [array.field for array in part.arrays]
    counts = any(isinstance(field, Gathered) or (isinstance(field, Count) and field.is_needed) for field in fields)
    if idle and age.has_begun and (reference.counts if reference else counts):
        notes.append(
            f"{listed(idle)} never stepped in PyTorch, where the first step is yet to come, and the chain counts "
            f"{age.steps} steps for all of the group: if there will be gradients, give what never stepped a group of "
            "its own (param_groups)"
        )
    following = numbers_after(reference.name, age.steps, reference.hyperparams) if reference else {}
    for key, number in following.items():
        given = [state[key] for name in part.members if key in (state := file.states[name])]
        if any(abs(float(one) - number) > 1e-3 * abs(number) + 1e-6 for one in given):  # PyTorch's may be in float32
            notes.append(
                f"{key} is {float(given[0]):.6g} in the file, but {number:.6g} after {age.steps} steps with the "
                "hyperparameters of its group, with which the chain continues"
            )
    return notes


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
            values[array.place] = put_like(most, array.value)
        elif told:
            problems.append(
                f"steps must be given, one number for all groups: {array.name} counts for all of them, and PyTorch has "
                f"taken {', '.join('an unknown number' if one is None else str(one) for one in told)}"
            )
    return values
