"""The names of a checkpoint's tensors without those of wrappers, in weights and optimizers alike."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ._checkpoint_files import shown
from ._spec import class_of

_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Modules of `torch.compile`, FSDP and activation checkpointing, each of which holds the module that it wraps."""
_AROUND = "module."  # of DistributedDataParallel, which only ever wraps whole models


def clean_names(names: Iterable[str], strip: str = "") -> dict[str, str]:
    """The names without the wrappers', by the names in the file."""
    cleaned = {name: ".".join(word for word in name.split(".") if word not in _INSIDE) for name in names}
    while cleaned and all(name.startswith(_AROUND) for name in cleaned.values()):
        cleaned = {name: own.removeprefix(_AROUND) for name, own in cleaned.items()}
    return {name: own.removeprefix(strip) for name, own in cleaned.items()}


def removed_from(cleaned: Mapping[str, str]) -> list[str]:
    """What has been removed from the names."""
    found = {word: None for name in cleaned for word in name.split(".") if word in _INSIDE}
    for name, own in cleaned.items():
        rest = ".".join(word for word in name.split(".") if word not in _INSIDE)
        if rest != own:
            found[rest.removesuffix(own)] = None
    return [word if word.endswith(".") else f"{word}." for word in found]


def doubles(cleaned: Mapping[str, str]) -> list[str]:
    """The names that two tensors have after cleaning."""
    seen: dict[str, str] = {}
    problems = []
    for name, own in cleaned.items():
        if own in seen:
            problems.append(f"{shown(name)} and {shown(seen[own])} are both called {shown(own)} without their wrappers")
        seen[own] = name
    return problems


def tied_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """The names of tensors that share the memory of one before them, and the name of that one."""
    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        if str(getattr(tensor, "layout", "torch.strided")) != "torch.strided":
            continue  # sparse tensors have several arrays
        if hasattr(tensor, "data_ptr"):
            place = (tensor.data_ptr(), tuple(tensor.shape), str(tensor.dtype), tuple(tensor.stride()))
            is_empty = tensor.numel() == 0 or tensor.data_ptr() == 0
        else:
            place, is_empty = id(tensor), np.size(tensor) == 0
        if not is_empty and first.setdefault(place, name) != name:
            tied[name] = first[place]
    return tied


def is_flat(value: Mapping[Any, Any]) -> bool:
    """Whether an optimizer's state is one level of names, as `torch.distributed.checkpoint` flattens it."""
    return any(isinstance(key, str) and key.startswith("param_groups.") for key in value) and all(
        isinstance(key, str) and key.startswith(("state.", "param_groups.")) for key in value
    )


def unflattened(flat: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """An optimizer's state of several levels, its parameters known by name; equal hyperparameters make a group."""
    hyperparams: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        if key.startswith("param_groups."):
            name, _, argument = key.removeprefix("param_groups.").rpartition(".")
            if argument not in ("params", "param_names"):
                hyperparams.setdefault(name, {})[argument] = value
    states: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        if key.startswith("state."):
            name, _, what = key.removeprefix("state.").rpartition(".")
            if name in hyperparams:
                states.setdefault(name, {})[what] = value
            else:
                problems.append(f"{shown(key)} belongs to no parameter of param_groups")
    groups: dict[str, dict[str, Any]] = {}
    for name, given in hyperparams.items():
        plain = {key: plain_number(value) for key, value in given.items()}
        groups.setdefault(repr(sorted(plain.items())), {**given, "params": []})["params"].append(name)
    return {"state": states, "param_groups": list(groups.values())}


def named_groups(groups: Sequence[Mapping[str, Any]], strip: str, problems: list[str]) -> list[dict[str, Any]]:
    """The groups, with their parameters' names where the file has them."""
    copies = [dict(group) for group in groups]
    for group in copies:
        if "param_names" not in group and _are_names(group["params"]):
            group["param_names"] = list(group["params"])  # FSDP's full state knows its parameters by name
    named = [group for group in copies if _are_names(group.get("param_names"))]
    cleaned = clean_names([name for group in named for name in group["param_names"]], strip)
    problems += doubles(cleaned)
    for group in named:
        group["param_names"] = [cleaned[name] for name in group["param_names"]]
    return copies


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def plain_number(value: Any) -> Any:
    """A tensor of one number as that number."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0 and not getattr(value, "is_meta", False):
        return value.item()
    return [plain_number(one) for one in value] if isinstance(value, list | tuple) else value


def class_told(groups: Sequence[Mapping[str, Any]]) -> tuple[str | None, str]:
    """The optimizer's class, if its hyperparameters tell it, and what to print."""
    names = {class_of(group) for group in groups}
    name = names.pop() if len(names) == 1 else None
    if name == "Adam" and not all("decoupled_weight_decay" in group for group in groups):
        return None, "Adam or AdamW (the file does not tell)"
    return name, name or "an unknown class"
