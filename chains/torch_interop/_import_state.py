"""The state of a PyTorch optimizer in a chain, by the parameters' names.

The links declare what the arrays of a state mean; what PyTorch's arrays mean follows from the chain that is equivalent
to PyTorch's optimizer. If two arrays are the same quantity in different units, they are converted; if they are not, or
that is unknown, nothing is guessed.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linkax.transforms import Gathered, Moment, Own

from ..algebra._structure import Groups, StateArray, state_arrays, with_arrays
from ._chain_groups import Group, chain_groups, check_kept, check_signs
from ._check_file import TorchFile, read_file
from ._hyperparams import Ours, compare_hyperparams
from ._layouts import Layout
from ._names import Names, TorchParam, refuse, torch_name, torch_params
from ._reference import Fields, Reference, field_of, partners, reference_of
from ._steps import Age, age_of, counts_around, counts_of
from ._tensors import checked_steps


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
    """Creates the state of a chain from that of a PyTorch optimizer, so that training continues where it stopped.

    Every moment, buffer, running maximum and step count is carried over, parameter by parameter, by name. The links
    declare its meaning (`Moment`, `Count` and `Gathered` in `@link(..., state=...)`), and the hyperparameters in the
    file determine the meaning of PyTorch's. If the two are the same quantity in different units, such as a momentum
    before and one after the learning rate, it is converted; anything else is an error.

    Args:
        tx: The chain, such as one from `from_torch`, or any other with the same moments, which may contain your own
            links and Optax's optimizers, in any wrappers. The wrappers' own state (accumulated gradients, live values)
            starts from its initial values.
        params: The parameters, already converted from PyTorch's model (`import_params`).
        state_dict: The result of `optimizer.state_dict()`, with tensors or arrays; read a file of it with
            `torch.load(path, weights_only=True)`.
        names: A function or dictionary from the parameters' paths to their names in PyTorch.
        order: The parameters' names in the order in which the optimizer got them. Only needed if it was not made from
            `model.named_parameters()`, with which PyTorch stores the names itself.
        layouts: The layouts of the parameters at some paths, or at all that match a pattern:
            `{"params/*/c_attn/kernel": HF_CONV1D}`. By default, a Flax `kernel` of two or more dimensions is that of a
            linear layer or a convolution, and everything else is laid out as in PyTorch.
        steps: The number of steps PyTorch has taken, if its state does not contain it: SGD's does not, and a schedule
            needs it.

    Returns:
        The chain's state, which shares no memory with PyTorch's.

    Raises:
        ValueError: If anything does not fit: a broken file; parameters that one side lacks; shapes; a state of another
            optimizer; groups that do not correspond; different step counts in a group, or none where one is needed;
            hyperparameters that contradict the chain's. One message lists everything.

    Warns:
        UserWarning: If the file has a different learning rate or weight decay from the chain; if a kernel's layout was
            left to the default while that of similar ones was not; if an array restarts because its meaning is unknown.

    Differences:
        PyTorch's `load_state_dict` takes the hyperparameters from the file, and matches parameters by their order.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from linkax import adam
        >>> from linkax.chains.torch_interop import import_state
        >>> moments = {"step": 7.0, "exp_avg": np.ones((3, 2)), "exp_avg_sq": np.ones((3, 2))}
        >>> state_dict = {"state": {0: moments}, "param_groups": [{"params": [0], "param_names": ["fc.weight"]}]}
        >>> params = {"params": {"fc": {"kernel": jnp.ones((2, 3))}}}
        >>> momentum, _ = import_state(adam(), params, state_dict)[0].first
        >>> momentum.mu["params"]["fc"]["kernel"].shape, int(momentum.count)
        ((2, 3), 7)

    Source:
        `torch.optim.Optimizer.state_dict`.
    """
    problems: list[str] = []
    notes: list[str] = []
    if steps is not None:
        steps = checked_steps(steps, problems)
    file = read_file("import_state: state_dict", state_dict, order, problems)
    fresh = tx.init(params)
    arrays = state_arrays("import_state: tx", tx, fresh, params)
    found = torch_params(params, names, layouts, file.groups, problems)
    references = [
        reference_of(f"PyTorch's group {index}", group, problems) for index, group in enumerate(file.hyperparams)
    ]
    values: dict[Any, Any] = {}
    ages: dict[Groups, Age] = {}
    parts = chain_groups(tx, arrays, params, found, problems)
    placed = {name for part in parts for name in part.members}
    known = {param.name for param in found.values()}  # the others are problems already
    idle = [name for name, keys in file.keys.items() if keys and name in known - placed]
    problems += [f"{name} has a state, but the chain keeps none for it" for name in idle]
    for part in parts:
        reference = None if part.group is None else references[part.group]
        has = {key for name in part.members for key in file.keys[name]}
        fields = partners(part.arrays, reference, has, problems)
        check_kept(part.arrays, problems)
        if reference is not None:
            _compare(part, fields, reference, problems, notes)
        values |= _moments(part, fields, reference, found, file, steps is not None, problems)
        age = ages[part.label] = age_of(part, reference, fields, file, steps, problems)
        if part.members or not fields:  # if PyTorch has none of its parameters, that is a problem already
            values |= counts_of(part.arrays, age, reference, part.members, file, problems)
    values |= counts_around(arrays, ages, problems)
    refuse("import_state: the state must fit the chain and the parameters", problems)
    if any(age.has_begun for age in ages.values()):
        notes += _restarting(arrays)
    for note in dict.fromkeys(notes):
        warnings.warn(f"import_state: {note}", stacklevel=2)
    return with_arrays("import_state: tx", tx, fresh, values, params)


def _compare(
    part: Group,
    fields: Fields,
    reference: Reference,
    problems: list[str],
    notes: list[str],
) -> None:
    """Compares the hyperparameters of a group with PyTorch's."""
    pairs = [(array, fields.get(field_of(array))) for array in part.arrays]
    twins = [
        (reference.moments[partner.key].site.link, array.site.link)
        for array, partner in pairs
        if partner is not None and partner.is_known
    ]
    check_signs(part, fields, problems)
    ours = Ours(part, list(dict.fromkeys(twins)))
    compare_hyperparams(ours, reference, f"PyTorch's group {part.group}", problems, notes)


def _moments(
    part: Group,
    fields: Fields,
    reference: Reference | None,
    found: Mapping[tuple[str, ...], TorchParam],
    file: TorchFile,
    has_steps: bool,
    problems: list[str],
) -> dict[Any, Any]:
    """The moments of a group, from PyTorch's."""
    _check_keys(part, fields, reference, found, file, has_steps, problems)
    values: dict[Any, Any] = {}
    for array in part.arrays:
        partner = fields.get(field_of(array))
        param = None if array.param is None else found.get(array.param)
        if partner is None or param is None or (given := file.states[param.name].get(partner.key)) is None:
            continue
        what = f"{partner.key} of {param.name}"
        value = param.to_jax(what, np.asarray(given), problems, np.shape(array.value))
        if value is None:
            continue
        reals = (np.real(value), np.imag(value)) if np.iscomplexobj(value) else (value,)
        assert isinstance(array.field, Moment)
        if not array.field.has_sign and any(real.min(initial=0) < 0 for real in reals):
            problems.append(f"{what} must not be negative, because it is the {array.quantity}")
        values[array.place] = _filled(what, value, partner.factor, array.value, problems)
    return values


def _check_keys(
    part: Group,
    fields: Fields,
    reference: Reference | None,
    found: Mapping[tuple[str, ...], TorchParam],
    file: TorchFile,
    has_steps: bool,
    problems: list[str],
) -> None:
    """Checks that PyTorch's state has what the chain stores for every parameter, and nothing else."""
    if any(array.site.link.is_opaque for array in part.arrays):
        return  # its state is unknown, which is a problem already
    numbers = {"step"} | {array.field.torch for array in part.arrays if isinstance(array.field, Gathered)}
    numbers |= reference.follows if reference else set()
    wanted = {partner.key for partner in fields.values() if partner is not None}
    needed = (numbers & reference.numbers if reference else set()) - ({"step"} if has_steps else set())
    # What has a place but a different meaning there is a problem already.
    misplaced = set(reference.moments) - wanted if reference and None in fields.values() else set()
    has_place: dict[str, set[str]] = {name: set() for name in part.members}
    for array in part.arrays:
        partner = fields.get(field_of(array))
        param = None if array.param is None else found.get(array.param)
        if partner is not None and param is not None and param.name in has_place:
            has_place[param.name].add(partner.key)
    for name, own in has_place.items():
        if not file.keys[name]:  # PyTorch creates the state in a parameter's first step
            continue
        if missing := sorted((needed | own) - file.keys[name]):
            problems.append(f"the state of {name} has no {', '.join(missing)}")
        if extra := sorted(file.keys[name] - own - numbers - misplaced):
            problems.append(f"the state of {name} has {', '.join(extra)}, for which the chain has no place")


def _filled(what: str, value: np.ndarray, factor: float, like: Any, problems: list[str]) -> Any:
    """A moment of PyTorch's in our units, as an array like `like`, with its own memory."""
    dtype = np.dtype(like.dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        problems.append(f"{what} has no place in an array of {dtype}")
        return like
    if factor != 1:
        value = value.astype(np.result_type(value, np.float64)) * factor
    with np.errstate(over="ignore", invalid="ignore"):
        new = value.astype(dtype)  # a copy: PyTorch changes its tensors in place, and JAX may share NumPy's memory
    if not np.isfinite(new).all():
        problems.append(f"{what} has numbers that do not fit into {dtype}")
    if isinstance(like, jax.Array) and like.committed:
        return jax.device_put(new, like.sharding)
    return jnp.asarray(new)


def _restarting(arrays: Iterable[StateArray]) -> list[str]:
    """What restarts although training continues, because its meaning is unknown."""
    return [
        f"{array.name} restarts, because its meaning is unknown (@link(..., state=...) declares it)"
        for array in arrays
        if isinstance(array.field, Own)
        and array.field_path not in array.site.link.fields
        and (array.param is not None or not array.site.link.slots)
    ]
