"""A model with several PyTorch optimizers, such as Muon for its matrices and AdamW for the rest, as one optimizer."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._torch_groups import read_groups


def join_state_dicts(*state_dicts: Mapping[str, Any]) -> dict[str, Any]:
    """Joins the `state_dict`s of several PyTorch optimizers of one model to one that has all of their groups.

    The groups are numbered on: with two optimizers of one group each, they are groups 0 and 1 of the result, as
    `torch_labels` and `import_state` take it.

    Args:
        *state_dicts: The results of `optimizer.state_dict()`.

    Returns:
        A `state_dict` with all groups, in order. Tensors are not copied.

    Raises:
        ValueError: If one of them is not an optimizer's `state_dict`.

    Example:
        >>> from linkax.chains.torch_interop import join_state_dicts, torch_labels
        >>> muon = {"state": {}, "param_groups": [{"lr": 0.02, "params": [0], "param_names": ["fc.weight"]}]}
        >>> adamw = {"state": {}, "param_groups": [{"lr": 3e-4, "params": [0], "param_names": ["fc.bias"]}]}
        >>> both = join_state_dicts(muon, adamw)
        >>> torch_labels(both["param_groups"])("params/fc/bias", None)
        '1'

    Source:
        `torch.optim.Optimizer.state_dict`.
    """
    state: dict[Any, Any] = {}
    groups: list[dict[str, Any]] = []
    for index, one in enumerate(state_dicts):
        its, start = _groups_of(one), len(_keys(groups))
        numbers = {key: start + at for at, key in enumerate(_keys(its))}
        # (An entry that belongs to no group keeps a key of its own, and import_state reports it.)
        state |= {numbers.get(key, f"{key} of {index}"): value for key, value in one["state"].items()}
        groups += [{**group, "params": [numbers[key] for key in group["params"]]} for group in its]
    return {"state": state, "param_groups": groups}


def split_state_dict(state_dict: Mapping[str, Any], templates: Sequence[Any]) -> list[dict[str, Any]]:
    """Takes apart what `join_state_dicts` has joined, such as the result of `export_state` for it.

    Args:
        state_dict: The joined `state_dict`.
        templates: The PyTorch optimizers, or their `state_dict`s, in the order in which they were joined.

    Returns:
        A `state_dict` for each of them: with tensors for an optimizer, as its `load_state_dict` takes it.

    Raises:
        ValueError: If the groups are not those of the templates.

    Example:
        >>> from linkax.chains.torch_interop import join_state_dicts, split_state_dict
        >>> one = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.02, "params": [0]}]}
        >>> split_state_dict(join_state_dicts(one, one), [one, one]) == [one, one]
        True

    Source:
        `torch.optim.Optimizer.load_state_dict`.
    """
    rest = list(_groups_of(state_dict))
    theirs = [_groups_of(one.state_dict() if _is_optimizer(one) else one) for one in templates]
    sizes = [len(group["params"]) for its in theirs for group in its]
    if sizes != [len(group["params"]) for group in rest]:
        raise ValueError(
            f"split_state_dict: state_dict must have the groups of the templates, of {sizes} parameters, got groups of "
            f"{[len(group['params']) for group in rest]}"
        )
    found = []
    for template, its in zip(templates, theirs):
        own, rest = rest[: len(its)], rest[len(its) :]
        numbers = dict(zip(_keys(own), _keys(its)))
        tensor = sys.modules["torch"].tensor if _is_optimizer(template) else lambda value: value
        state = {
            numbers[key]: {name: tensor(one) if isinstance(one, np.ndarray) else one for name, one in value.items()}
            for key, value in state_dict["state"].items()
            if key in numbers
        }
        groups = [{**group, "params": [numbers[key] for key in group["params"]]} for group in own]
        found.append({"state": state, "param_groups": groups})
    return found


def _keys(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [key for group in groups for key in group["params"]]


def _is_optimizer(template: Any) -> bool:
    return hasattr(template, "param_groups") and hasattr(template, "state_dict")


def _groups_of(state_dict: Any) -> list[dict[str, Any]]:
    problems: list[str] = []
    if not isinstance(state_dict, Mapping) or not isinstance(state_dict.get("state"), Mapping):
        problems.append("it must be a dictionary with 'state' and 'param_groups'")
    else:
        groups = read_groups(state_dict.get("param_groups"), problems)
        if not problems:
            return groups
    raise ValueError(f"join_state_dicts: every state_dict must be an optimizer's, got one that is not: {problems[0]}")
