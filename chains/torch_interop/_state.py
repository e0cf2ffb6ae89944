"""The state of a PyTorch optimizer in a chain, and the other way round, by the parameters' names."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from ..algebra._paths import KeyPath
from ..algebra._states import Groups, StateArray, state_arrays, with_arrays
from ._names import Layout, Names, TorchParam, names_by_group, refuse, to_numpy, torch_name, torch_params
from ._spec import from_torch

# What PyTorch calls the fields of the links' states.
_KEYS = {
    ("scale_by_momentum", "mu"): "momentum_buffer",
    ("scale_by_nesterov", "mu"): "momentum_buffer",
    ("scale_by_rss", "second/sum_of_squares"): "sum",
    ("scale_by_rms", "second/nu"): "square_avg",
    ("scale_by_stddev", "second/nu"): "square_avg",
    ("scale_by_stddev", "second/mu"): "grad_avg",
    ("scale_by_adadelta", "0/second/nu"): "square_avg",
    ("scale_by_adadelta", "1/mean_square_step"): "acc_delta",
    ("first.scale_by_momentum", "mu"): "exp_avg",
    ("first.scale_by_nesterov", "mu"): "exp_avg",
    ("second.mean_square", "nu"): "exp_avg_sq",
    ("second.running_max", "nu_max"): "max_exp_avg_sq",
}
_EARLY = {"sum"}  # what PyTorch keeps before the first step
_PRODUCT = ("first.scale_by_nesterov", "correction")  # 1 minus PyTorch's mu_product
_SGD = {"momentum_buffer"}  # all that PyTorch's SGD keeps, from the first step on; the others count steps, too


def import_state(
    tx: optax.GradientTransformation,
    params: Any,
    state_dict: Mapping[str, Any],
    *,
    names: Names = torch_name,
    order: Sequence[str] | None = None,
    layouts: Mapping[str, Layout] | None = None,
    steps: int | None = None,
) -> Any:
    """Makes the state of a chain from that of a PyTorch optimizer, so that training goes on where it was.

    Every moment, buffer, running maximum and step count is taken over, parameter by parameter, by name.

    Args:
        tx: The chain, such as `from_torch` makes it, or any other that keeps the same things.
        params: The parameters, already those of PyTorch's model (`import_params`).
        state_dict: What `optimizer.state_dict()` gave, with tensors or arrays; a file of it is read by
            `torch.load(path, weights_only=True)`.
        names: From the parameters' paths to their names in PyTorch: a function, or a dictionary.
        order: The parameters' names in the order in which the optimizer got them. Only if it was not made from
            `model.named_parameters()`, which lets PyTorch keep the names itself.
        layouts: How to turn the elements of the parameters at some paths; others go by `kernel` in Flax's name.
        steps: How many steps PyTorch has taken, if its state does not say so: SGD's does not, and a schedule needs it.

    Returns:
        The chain's state.

    Raises:
        ValueError: If anything does not fit: parameters that one side lacks, shapes, a state of another optimizer,
            groups that do not correspond, different step counts in a group. All of it in one message.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from linkax.chains import adam
        >>> from linkax.chains.torch_interop import import_state
        >>> moments = {"step": 7.0, "exp_avg": np.ones((3, 2)), "exp_avg_sq": np.ones((3, 2))}
        >>> state_dict = {"state": {0: moments}, "param_groups": [{"params": [0], "param_names": ["fc.weight"]}]}
        >>> params = {"params": {"fc": {"kernel": jnp.ones((2, 3))}}}
        >>> state = import_state(adam(), params, state_dict)
        >>> state[0].first[0].mu["params"]["fc"]["kernel"].shape, int(state[0].first[1].count)
        ((2, 3), 7)

    Source:
        `torch.optim.Optimizer.state_dict`.
    """
    _check_state_dict("import_state: state_dict", state_dict)
    problems: list[str] = []
    fresh = tx.init(params)
    arrays = state_arrays("import_state: tx", tx, fresh, params)
    groups = names_by_group("import_state", state_dict["param_groups"], order)
    found = torch_params(params, names, layouts or {}, groups, problems)
    states = {
        name: {key: value for key, value in state_dict["state"].get(index, {}).items() if value is not None}
        for group in groups
        for name, index in group.items()
    }
    known = {index for group in groups for index in group.values()}
    problems += [f"the state has an entry {key!r} of no group" for key in state_dict["state"] if key not in known]
    placed = {found[array.param].name for array in arrays if array.param in found}
    idle = [name for name in states if states[name] and name not in placed]
    problems += [f"{name} has a state, but the chain keeps none for it" for name in idle]
    values: dict[Any, Any] = {}
    for own in _by_group(arrays, found, problems):
        values |= _group_values(own, found, states, steps, problems)
    refuse("import_state: the state must fit the chain and the parameters", problems)
    return with_arrays("import_state: tx", tx, fresh, values)


def _check_state_dict(where: str, state_dict: Any) -> None:
    """Raises if it is not what an optimizer's `state_dict()` gives."""
    is_one = isinstance(state_dict, Mapping) and {"state", "param_groups"} <= state_dict.keys()
    if not is_one or not all(isinstance(one, Mapping) for one in state_dict["state"].values()):
        what = (
            f"a dictionary of {', '.join(map(repr, state_dict))}"
            if isinstance(state_dict, Mapping)
            else repr(state_dict)
        )
        raise ValueError(f"{where} must be an optimizer's state_dict(), with 'state' and 'param_groups', got {what}")


def _by_group(
    arrays: list[StateArray], found: Mapping[KeyPath | None, TorchParam], problems: list[str]
) -> list[list[StateArray]]:
    """The arrays of each of the chain's groups, which must be PyTorch's."""
    by_group: dict[Groups, list[StateArray]] = {}
    for array in arrays:
        by_group.setdefault(array.site.groups, []).append(array)
    taken: dict[int, str] = {}
    for groups, own in by_group.items():
        label = ".".join(groups) or "the chain"
        theirs = sorted({found[array.param].group for array in own if array.param in found})
        if len(theirs) > 1:
            problems.append(f"the parameters of {label} are in several groups of PyTorch's, {theirs}")
        for group in theirs:
            if taken.setdefault(group, label) != label:
                problems.append(f"the parameters of PyTorch's group {group} are in both {taken[group]} and {label}")
    lacking = {array.param: str(array) for array in arrays if array.param is not None and array.param not in found}
    problems += [f"PyTorch's optimizer has no parameter for {array}" for array in lacking.values()]
    return list(by_group.values())


def _group_values(
    own: list[StateArray],
    found: Mapping[KeyPath | None, TorchParam],
    states: Mapping[str, Mapping[str, Any]],
    steps: int | None,
    problems: list[str],
) -> dict[Any, Any]:
    """The values of one group's arrays."""
    keys = _keys(own, problems)
    members = dict.fromkeys(found[array.param].name for array in own if array.param in found)
    begun = [name for name in members if states[name]]
    for name in members if begun else ():
        if missing := sorted(keys - states[name].keys()):
            problems.append(f"the state of {name} has no {', '.join(missing)}")
        if extra := sorted(states[name].keys() - keys):
            problems.append(f"the state of {name} has {', '.join(extra)}, for which the chain has no place")
    count = _common("step", begun, states, problems)
    if count is not None and steps is not None and count != steps:
        problems.append(f"steps is {steps}, but PyTorch has taken {count:g}")
    is_untold = (keys == _SGD and bool(begun)) or not keys
    if count is None and steps is None and is_untold and any(map(_has_schedule, own)):
        problems.append("steps must be given: PyTorch's SGD does not count them, and the chain has a schedule")
    if count is None:
        count = steps if steps is not None else int(bool(begun))
    product = _common("mu_product", begun, states, problems)
    values: dict[Any, Any] = {}
    for array in own:
        if array.is_count:
            values[array.place] = jnp.asarray(count, array.value.dtype)
        elif _is_product(array) and product is not None:
            values[array.place] = jnp.asarray(1 - product, array.value.dtype)
        elif array.param in found and (key := _key(array)) in states[found[array.param].name]:
            param = found[array.param]
            value = param.to_jax(f"{key} of {param.name}", states[param.name][key], problems)
            values[array.place] = jnp.asarray(value, array.value.dtype)
    return values


def _key(array: StateArray) -> str:
    """What PyTorch calls the array of a parameter; nothing, if it has none like it."""
    return _KEYS.get((array.site.name, array.field), "")


def _keys(own: list[StateArray], problems: list[str]) -> set[str]:
    """What PyTorch keeps for every parameter of a group that has such arrays."""
    arrays = [array for array in own if array.param is not None]
    problems += dict.fromkeys(f"PyTorch keeps nothing like {array.name}" for array in arrays if not _key(array))
    keys = {_key(array) for array in arrays} - {""}
    keys |= {"mu_product"} if any(map(_is_product, own)) else set()
    return keys | {"step"} if keys - _SGD else keys


def _is_product(array: StateArray) -> bool:
    return (array.site.name, array.field) == _PRODUCT


def _has_schedule(array: StateArray) -> bool:
    link = array.site.link
    return link is not None and any(callable(link.hyperparams[name]) for name in link.numbers)


def _common(key: str, names: list[str], states: Mapping[str, Mapping[str, Any]], problems: list[str]) -> float | None:
    """The number that all parameters of a group have in common, or `None` if they have none."""
    found = {name: float(np.mean(to_numpy(states[name][key]))) for name in names if key in states[name]}
    if len(set(found.values())) > 1:
        each = ", ".join(f"{name}: {value:g}" for name, value in found.items())
        problems.append(f"the parameters of a group must have the same {key}, a chain has one for all of them ({each})")
    return next(iter(found.values()), None)


def export_state(
    tx: optax.GradientTransformation,
    params: Any,
    state: Any,
    template: Any,
    *,
    names: Names = torch_name,
    order: Sequence[str] | None = None,
    layouts: Mapping[str, Layout] | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Makes the `state_dict` with which a PyTorch optimizer goes on where a chain was.

    Args:
        tx: The chain.
        params: Its parameters.
        state: Its state.
        template: The PyTorch optimizer that is to go on, with its hyperparameters and groups; or its `state_dict`.
        names: As for `import_state`.
        order: As for `import_state`.
        layouts: As for `import_state`.
        steps: How many steps were taken, if the chain does not count them: RMSprop's and Adadelta's do not; PyTorch's
            do, without making use of it.

    Returns:
        What `optimizer.load_state_dict` takes: of tensors if `template` is an optimizer, otherwise of NumPy arrays. The
        hyperparameters are the template's.

    Raises:
        ValueError: If anything does not fit: parameters that one side lacks, shapes, another optimizer, groups that do
            not correspond. All of it in one message.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.chains import adam
        >>> from linkax.chains.torch_interop import export_state
        >>> params = {"params": {"fc": {"kernel": jnp.ones((2, 3))}}}
        >>> _, state = adam().update(params, adam().init(params), params)
        >>> template = {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0], "param_names": ["fc.weight"]}]}
        >>> moments = export_state(adam(), params, state, template)["state"][0]
        >>> moments["exp_avg"].shape, float(moments["step"])
        ((3, 2), 1.0)

    Source:
        `torch.optim.Optimizer.load_state_dict`.
    """
    problems: list[str] = []
    target = template.state_dict() if hasattr(template, "param_groups") else template
    _check_state_dict("export_state: template", target)
    arrays = state_arrays("export_state: state", tx, state, params)
    groups = names_by_group("export_state", target["param_groups"], order)
    found = torch_params(params, names, layouts or {}, groups, problems)
    indices = {name: index for group in groups for name, index in group.items()}
    states: dict[str, dict[str, Any]] = {name: {} for name in indices}
    for own in _by_group(arrays, found, problems):
        keys = _keys(own, problems)
        counts = [int(array.value) for array in own if array.is_count] or [steps or 0]
        has_begun = max(counts) > 0 or not any(array.is_count for array in own)
        scalars: dict[str, Any] = {"step": np.asarray(max(counts), np.float32)} if "step" in keys else {}
        for array in filter(_is_product, own):
            scalars["mu_product"] = 1 - np.asarray(array.value)
        for array in own:
            if array.param in found and (has_begun or _key(array) in _EARLY):
                param = found[array.param]
                states[param.name] |= {**scalars, _key(array): param.to_torch(array.value)}
    if hasattr(template, "param_groups"):
        _check_template(template, indices, states, problems)
    refuse("export_state: template must fit the chain and the parameters", problems)
    tensor = sys.modules["torch"].tensor if hasattr(template, "param_groups") else np.asarray
    return {
        "state": {
            indices[name]: {key: tensor(value) for key, value in one.items()} for name, one in states.items() if one
        },
        "param_groups": target["param_groups"],
    }


def _check_template(
    optimizer: Any, indices: Mapping[str, Any], states: Mapping[str, Mapping[str, Any]], problems: list[str]
) -> None:
    """What PyTorch does not check when it loads a state: which optimizer it is from, and the shapes."""
    names, dummy = iter(indices), {"w": jnp.zeros(())}
    for group in optimizer.param_groups:
        like = from_torch((type(optimizer).__name__, group), learning_rate=0.0)
        wanted = _keys(state_arrays("export_state: template", like, like.init(dummy), dummy), problems)
        for tensor, name in zip(group["params"], names):
            given = states[name]
            if given and given.keys() != wanted:
                has, needs = ", ".join(sorted(given)), ", ".join(sorted(wanted)) or "nothing"
                problems.append(f"the chain keeps {has} of {name}, but this {type(optimizer).__name__} keeps {needs}")
            for key, value in given.items():
                if value.ndim and value.shape != tuple(tensor.shape):
                    problems.append(f"{key} of {name} is {value.shape}, but its parameter {tuple(tensor.shape)}")
