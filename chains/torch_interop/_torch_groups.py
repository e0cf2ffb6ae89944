"""PyTorch's groups of parameters, and the names of their parameters."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

_ORDER = (
    "order must list the parameters' names in the optimizer's order, because the optimizer was not made from named "
    "parameters; build it from the same lists that the optimizer was given, group after group, such as "
    "[name for group in groups for name, _ in group] with groups of model.named_parameters(), or make the optimizer "
    "from named parameters, whose names it then stores: torch.optim.AdamW(model.named_parameters())"
)


def names_by_group(
    groups: Sequence[Mapping[str, Any]], order: Sequence[str] | None, problems: list[str]
) -> list[dict[str, Any]]:
    """For every PyTorch group, a dictionary from its parameters' names to their keys in the state.

    If neither the groups nor `order` name the parameters, that is added to the problems, and the result is empty.
    """
    count, before = sum(len(group["params"]) for group in groups), len(problems)
    given = None
    if order is not None:
        given = list(order) if isinstance(order, Iterable) and not isinstance(order, str) else [order]
        if not all(isinstance(name, str) for name in given) or len(given) != count or len(set(given)) != count:
            problems.append(f"order must have {count} different names, got {order}")
            return []
    if all("param_names" in group for group in groups):
        seen: dict[str, int] = {}
        for index, group in enumerate(groups):
            own = group["param_names"]
            is_list = isinstance(own, list | tuple) and all(isinstance(name, str) for name in own)
            if not is_list or len(set(own)) != len(own) or len(own) != len(group["params"]):
                problems.append(
                    f"param_names must name each of the {len(group['params'])} parameters of its group, got {own}"
                )
                continue
            problems += [
                f"groups {seen[name]} and {index} both have a parameter {name}" for name in own if name in seen
            ]
            seen |= dict.fromkeys(own, index)
        if given is not None and len(problems) == before and given != list(seen):
            problems.append(f"order must be that of the names that the optimizer stores, {list(seen)}, got {given}")
        if len(problems) > before:
            return []
        return [dict(zip(group["param_names"], group["params"])) for group in groups]
    if given is None:
        problems.append(f"{_ORDER}; got None")
        return []
    rest = iter(given)
    return [{next(rest): key for key in group["params"]} for group in groups]


def read_groups(param_groups: Any, problems: list[str]) -> list[dict[str, Any]]:
    """The groups of parameters; anything else is added to the problems."""
    if not isinstance(param_groups, list | tuple):
        problems.append(f"'param_groups' must be a list of groups, got {shown(param_groups)}")
        return []
    groups: list[dict[str, Any]] = []
    keys: dict[Any, int] = {}
    for index, group in enumerate(param_groups):
        if not isinstance(group, Mapping):
            problems.append(f"'param_groups' must hold dictionaries, got {shown(group)} for group {index}")
            continue
        params = group.get("params")
        if not isinstance(params, list | tuple) or not all(isinstance(key, Hashable) for key in params):
            got = shown(params) if "params" in group else "none"
            problems.append(f"group {index} must have a list of the parameters' indices as 'params', got {got}")
            continue
        for key in params:
            if key in keys:
                problems.append(f"groups {keys[key]} and {index} both have the parameter {key!r}")
            keys[key] = index
        groups.append(dict(group))
    return groups


def shown(value: Any) -> str:
    """A value, in a few words."""
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(repr, value)) or 'nothing'}"
    return repr(value) if len(repr(value)) <= 200 else f"a {type(value).__name__}"
