"""Checks of a PyTorch optimizer's `state_dict`, before anything is done with it.

Such a file comes from elsewhere: another version, another program, a broken download. All of its problems are listed at
once, by the parameters' names if these are known.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ._tensors import as_moment, as_number, as_steps
from ._torch_groups import names_by_group, read_groups, shown


class TorchFile(NamedTuple):
    """A PyTorch optimizer's `state_dict`, by the parameters' names."""

    groups: list[dict[str, Any]]  # from the parameters' names to their keys in the state
    hyperparams: list[Mapping[str, Any]]  # what else each group has
    states: dict[str, dict[str, Any]]  # by name: valid arrays and numbers; anything else is left out
    keys: dict[str, set[str]]  # by name: what the file has, valid or not

    @property
    def has_begun(self) -> bool:
        """Whether it has state from any steps."""
        return any(self.keys.values())


def read_file(
    where: str, state_dict: Any, order: Sequence[str] | None, problems: list[str], *, with_values: bool = True
) -> TorchFile:
    """Reads a state_dict; what is wrong with its values is added to the problems, if these are needed.

    Raises:
        ValueError: If it is not one, or its parameters' names are unknown. The message includes everything else that is
            wrong.
    """
    structure: list[str] = []
    entries, groups = _read_structure(state_dict, structure)
    values = entries if with_values else {}
    if structure:
        _check_entries(values, {}, problems)
        raise ValueError(
            f"{where} must be an optimizer's state_dict(), with 'state' and 'param_groups', got {shown(state_dict)}:"
            + "".join(f"\n  {one}" for one in [*structure, *problems])
        )
    unnamed: list[str] = []
    named = names_by_group(groups, order, unnamed)
    names = {key: name for group in named for name, key in group.items()}
    states = _check_entries(values, names, problems)
    if unnamed:
        first, *rest = [*unnamed, *problems]
        raise ValueError(f"{where.partition(':')[0]}: {first}" + "".join(f"\n  {one}" for one in rest))
    problems += [f"the state has an entry {key!r} that belongs to no group" for key in values if key not in names]
    return TorchFile(
        named,
        [{key: value for key, value in group.items() if key not in ("params", "param_names")} for group in groups],
        {name: states.get(key, {}) for key, name in names.items()},
        {
            name: {one for one, value in entries.get(key, {}).items() if value is not None}
            for key, name in names.items()
        },
    )


def _read_structure(state_dict: Any, problems: list[str]) -> tuple[dict[Any, Mapping[str, Any]], list[dict[str, Any]]]:
    """The entries of the state, and the groups; misplaced items are added to the problems."""
    if not isinstance(state_dict, Mapping):
        problems.append(f"it must be a dictionary, got a {type(state_dict).__name__}")
        return {}, []
    entries: dict[Any, Mapping[str, Any]] = {}
    state = state_dict.get("state")
    if not isinstance(state, Mapping):
        problems.append(f"'state' must be a dictionary of the parameters' states, got {_kind(state_dict, 'state')}")
    else:
        for key, entry in state.items():
            if not isinstance(entry, Mapping) or not all(isinstance(one, str) for one in entry):
                problems.append(f"'state' must have a dictionary of names and tensors for {key!r}, got {shown(entry)}")
            else:
                entries[key] = entry
    if "param_groups" not in state_dict:
        problems.append("'param_groups' must be a list of groups, got none")
        return entries, []
    return entries, read_groups(state_dict["param_groups"], problems)


def _kind(parent: Mapping[str, Any], key: str) -> str:
    return f"a {type(parent[key]).__name__}" if parent.get(key) is not None else "None" if key in parent else "none"


def _check_entries(
    entries: Mapping[Any, Mapping[str, Any]], names: Mapping[Any, str], problems: list[str]
) -> dict[Any, dict[str, Any]]:
    """The valid values of the state's entries; the others are added to the problems."""
    found: dict[Any, dict[str, Any]] = {}
    for key, entry in entries.items():
        of = names.get(key, f"the state's entry {key!r}")
        found[key] = {
            what: read
            for what, value in entry.items()
            if value is not None and (read := _read(what, f"{what} of {of}", value, problems)) is not None
        }
    return found


def _read(key: str, what: str, value: Any, problems: list[str]) -> Any:
    if key == "step":
        return as_steps(what, value, problems)
    if isinstance(value, bool | int | float | str | bytes):
        return as_number(what, value, problems)
    return as_moment(what, value, problems)
