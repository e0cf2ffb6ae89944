"""The state of a chain for a PyTorch optimizer, by the parameters' names; for the reverse see `import_state`."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from linkax.transforms import Count, Gathered, Link, Moment

from ..algebra._structure import StateArray, state_arrays
from ._averages import averages_apart
from ._axes import check_output_axes
from ._chain_groups import Group, chain_groups, check_kept, check_signs
from ._check_file import read_file
from ._group_matches import check_equal
from ._hyperparams import compare_direction
from ._names import Names, every_counterpart, incomplete, places, refuse, torch_name
from ._reference import Fields, Reference, after, field_of, partners, reference_of
from ._rules import Layouts
from ._spec import has_whole_step, is_known, kept_shape, numbers_after
from ._tensors import checked_steps


def export_state(
    tx: optax.GradientTransformation,
    params: Any,
    state: Any,
    template: Any,
    *,
    names: Names = torch_name,
    order: Sequence[str] | None = None,
    layouts: Layouts | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Creates the `state_dict` with which a PyTorch optimizer continues where a chain stopped.

    The arrays may be sharded, also over several processes. Then all processes must call this together, with the same
    arguments, and each gets the whole result. It is gathered one parameter at a time, so a device needs memory for
    one whole parameter besides its shards.

    Args:
        tx: The chain, in any wrappers. The wrappers' own state is left out, but partially accumulated gradients are an
            error.
        params: Its parameters.
        state: Its state.
        template: The PyTorch optimizer that will continue, with its hyperparameters and groups; or its `state_dict`.
        names: As for `import_state`.
        order: As for `import_state`.
        layouts: As for `import_state`.
        steps: The number of steps taken, if the chain does not count them: the chains of RMSprop and Adadelta do not.
            PyTorch's optimizers do, but do not use the count.

    Returns:
        What `optimizer.load_state_dict` takes: with tensors if `template` is an optimizer, otherwise with NumPy arrays.
        The hyperparameters are the template's. Moments are converted to PyTorch's units. The averages of
        `average_weights` are not in it, except ASGD's; see `export_averages`.

    Raises:
        ValueError: If anything does not fit: parameters that one side lacks, shapes, a different optimizer, groups that
            do not correspond, moments without an equivalent in PyTorch or without a common step count, gradients of a
            step that has not been taken yet. One message lists everything.

    Differences:
        PyTorch loads a state of another optimizer or of other shapes, and then fails in the next step, or does not even
        fail.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax import adam
        >>> from linkax.chains.torch_interop import export_state
        >>> params = {"params": {"fc": {"kernel": jnp.ones((2, 3))}}}
        >>> _, state = adam().update(params, adam().init(params), params)
        >>> group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
        >>> group |= {"params": [0], "param_names": ["fc.weight"]}
        >>> moments = export_state(adam(), params, state, {"state": {}, "param_groups": [group]})["state"][0]
        >>> moments["exp_avg"].shape, float(moments["step"])
        ((3, 2), 1.0)

    Source:
        `torch.optim.Optimizer.load_state_dict`.
    """
    problems: list[str] = []
    if steps is not None:
        steps = checked_steps(steps, problems)
    is_optimizer = hasattr(template, "param_groups") and hasattr(template, "state_dict")
    target = template.state_dict() if is_optimizer else template
    file = read_file("export_state: template", target, order, problems, with_values=False)
    arrays = state_arrays("export_state: state", tx, state, params)
    found = places(every_counterpart(params, names, layouts, file.groups, problems), params)
    name = type(template).__name__ if is_optimizer else None
    references = [
        reference_of(f"PyTorch's group {index}", group, problems, name) for index, group in enumerate(file.hyperparams)
    ]
    apart, arrays = averages_apart(arrays, references, file)
    separate = {(array.site.groups, array.site.name) for array in apart}
    arrays = [array for array in arrays if (array.site.groups, array.site.name) not in separate]  # their counts too
    problems += _half_done(arrays)
    states: dict[str, dict[str, Any]] = {name: {} for name in file.keys}
    gathered: dict[Any, dict[int, Any]] = {}  # by PyTorch's key and counterpart, the leaves' arrays
    parts = chain_groups(tx, arrays, params, found, file.hyperparams, problems)
    shapes = {name: shape for place in found.values() for name, shape in place.whole.torch_shapes.items()}
    check_equal(((".".join(part.label), part.links, part.members) for part in parts), file.groups, problems)
    for part in parts:
        reference = None if part.group is None else references[part.group]
        has = {key for member in part.members for key in file.keys[member]}
        fields = partners(part.arrays, reference, has, problems, is_export=True)
        check_kept(part.arrays, problems)
        if reference is not None:
            check_signs(part, fields, problems)
            _check_rates(part, fields, problems)
            compare_direction(part.links, reference, f"PyTorch's group {part.group}", problems)
        params_of = dict.fromkeys(array.param for array in part.arrays)
        check_output_axes(part.links, [found[one] for one in params_of if one is not None and one in found], problems)
        count, has_begun = _count(part, reference, steps, problems)
        scalars = _scalars(part, reference, count, problems)
        early = reference is not None and reference.is_early
        for array in part.arrays:
            partner = fields.get(field_of(array))
            place = None if array.param is None else found.get(array.param)
            if partner is None or place is None or not (has_begun or early):
                continue
            whole = place.whole
            own = gathered.setdefault((partner.key, id(whole)), {})
            own[place.part] = array.value
            if len(own) < len(whole.shapes):
                continue
            assert isinstance(array.field, Moment)
            leaves = [own[index] for index in sorted(own)]
            gathered[partner.key, id(whole)] = dict.fromkeys(own)  # the arrays are no longer needed
            if not whole.is_plain and [np.shape(leaf) for leaf in leaves] != list(whole.shapes):
                problems.append(whole.cannot_be_factored(partner.key))
                continue
            for tensor, value in whole.to_torch(leaves, are_weights=array.field.is_of_weights).items():
                states[tensor] |= {**scalars, partner.key: value if partner.factor == 1 else value / partner.factor}
        for member in part.members:
            _check_kept(member, states[member], reference, shapes.get(member), problems)
    problems += incomplete(gathered, found)
    if is_optimizer:
        _check_shapes(template, states, problems)
    refuse("export_state: template must fit the chain and the parameters", problems)
    tensor = sys.modules["torch"].tensor if is_optimizer else np.asarray
    indices = {name: key for group in file.groups for name, key in group.items()}
    return {
        "state": {
            indices[name]: {key: value if isinstance(value, int) else tensor(value) for key, value in one.items()}
            for name, one in states.items()
            if one
        },
        "param_groups": target["param_groups"],
    }


def _half_done(arrays: Iterable[StateArray]) -> list[str]:
    """What would be lost: gradients that a wrapper has accumulated and no optimizer has seen yet."""
    found = dict.fromkeys(
        array.name
        for array in arrays
        if isinstance(array.field, Moment) and array.field.if_unchanged and bool(jnp.any(array.value != 0))
    )
    return [
        f"{name} holds gradients of a step that has not been taken yet, which PyTorch's optimizer has no place for: "
        "export right after a step"
        for name in found
    ]


def _check_rates(part: Group, fields: Fields, problems: list[str]) -> None:
    """Rejects moments after a learning rate that may have been set to anything while they accumulated."""
    for array in part.arrays:
        if part.has_live_rate and fields.get(field_of(array)) is not None and abs(array.site.stream.factor) != 1:
            problems.append(
                f"{array.name} comes after a learning rate that is live, so what it was multiplied by is unknown"
            )


def _count(part: Group, reference: Reference | None, steps: int | None, problems: list[str]) -> tuple[int, bool]:
    """The number of steps a group has taken, and whether it has taken any."""
    counts = [(array, field) for array in part.arrays if isinstance(field := array.field, Count)]
    # PyTorch's step is that of the moments. A wrapper may count more steps than what is inside, so the innermost takes
    # precedence.
    of_moments = [array for array, _ in counts if _keeps_moments(array.site.link)]
    of_links = [array for array, field in counts if field.is_needed and not array.site.link.slots]
    around = [array for array, _ in counts if len(array.clock) == max(len(one.clock) for one, _ in counts)][:1]
    numbers = {array.name: int(array.value) for array in of_moments or of_links or around}
    if len(set(numbers.values())) > 1:
        each = ", ".join(f"{name}: {number}" for name, number in numbers.items())
        problems.append(f"the chain must count the same steps everywhere, because PyTorch has one number ({each})")
    counted = max(numbers.values(), default=None)
    if reference is not None and "step" in reference.numbers:
        if counted is not None and steps is not None and counted != steps:
            problems.append(f"steps is {steps}, but the chain has counted {counted}")
        if counted is None and steps is None and reference.counts:
            problems.append(f"steps must be given: the chain does not count them, and PyTorch's {reference.name} does")
    count = next((one for one in (counted, steps) if one is not None), None)
    return count or 0, count != 0


def _keeps_moments(link: Link) -> bool:
    return any(isinstance(field, Moment) and field.torch for field in link.fields.values())


def _scalars(part: Group, reference: Reference | None, count: int, problems: list[str]) -> dict[str, Any]:
    """What PyTorch stores besides the moments."""
    keeps = reference.numbers if reference else {"step"}
    is_whole = reference is not None and has_whole_step(reference.name)
    scalars: dict[str, Any] = {"step": count if is_whole else np.asarray(count, np.float32)} if "step" in keeps else {}
    if reference is not None:
        following = numbers_after(reference.name, count, reference.hyperparams)
        scalars |= {key: np.asarray(value) for key, value in following.items()}
    for array in part.arrays:
        if not isinstance(array.field, Gathered):
            continue
        if array.field.torch and (array.field.torch in keeps or reference is None):
            number = np.asarray(array.value)
            scalars[array.field.torch] = np.asarray(array.field.from_torch(number.item()), number.dtype)
        elif "step" in keeps and reference is not None:
            _check_follows(array, count, problems)
    return scalars


def _check_follows(array: StateArray, count: int, problems: list[str]) -> None:
    """Rejects a number that does not follow from the steps, because PyTorch computes it from them."""
    wanted, value = float(after(array, count, problems)), float(array.value)
    # A sum in float32 drifts by some 1e-7 of itself in each of the steps that still change it.
    if abs(value - wanted) > 1e-3 * abs(wanted) + 1e-6:
        problems.append(
            f"{array.name} is {value:.6g}, but {wanted:.6g} after {count} steps, which is what PyTorch continues with: "
            "its moments have restarted, or have had another decay"
        )


def _check_kept(
    name: str,
    given: Mapping[str, Any],
    reference: Reference | None,
    shape: tuple[int, ...] | None,
    problems: list[str],
) -> None:
    """Checks what PyTorch does not check when it loads a state: which optimizer it is from."""
    if reference and given and given.keys() != (keeps := reference.keeps_for(shape)):
        has, needs = ", ".join(sorted(given)), ", ".join(sorted(keeps)) or "nothing"
        problems.append(f"the chain keeps {has} of {name}, but this {reference.name} keeps {needs}")


def _check_shapes(optimizer: Any, states: Mapping[str, Mapping[str, Any]], problems: list[str]) -> None:
    """Checks the shapes, which PyTorch does not check either."""
    names, own = iter(states), type(optimizer).__name__
    for group in optimizer.param_groups:
        for tensor, name in zip(group["params"], names):
            for key, value in states[name].items():
                wanted = kept_shape(own, key, tuple(tensor.shape)) if is_known(own) else tuple(tensor.shape)
                if np.ndim(value) and np.shape(value) != wanted:
                    problems.append(f"{key} of {name} is {value.shape}, but its parameter {tuple(tensor.shape)}")
