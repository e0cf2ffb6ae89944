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
from ..running._devices import filled, put_beside
from ._averages import averages_apart, read_averages
from ._axes import check_output_axes
from ._chain_groups import Group, chain_groups, check_kept, check_signs
from ._check_file import TorchFile, read_file
from ._clocks import check_clocks
from ._hyperparams import Ours, compare_hyperparams
from ._names import Names, Place, every_counterpart, incomplete, places, refuse, torch_name
from ._reference import Fields, Reference, field_of, partners, reference_of
from ._rules import Layouts
from ._steps import Age, age_of, counts_around, counts_of, other_counts
from ._tensors import checked_steps


def import_state(
    tx: optax.GradientTransformation,
    params: Any,
    state_dict: Mapping[str, Any],
    *,
    names: Names = torch_name,
    order: Sequence[str] | None = None,
    layouts: Layouts | None = None,
    steps: int | None = None,
    averages: Mapping[str, Any] | None = None,
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
        params: The parameters, already converted from PyTorch's model (`import_params`), or their shapes.
        state_dict: The result of `optimizer.state_dict()`, with tensors or arrays; read a file of it with
            `torch.load(path, weights_only=True)`.
        names: A function or dictionary from the parameters' paths to their names in PyTorch, and from those of modules
            that a rule is for; `renamed` makes one.
        order: The parameters' names in the order in which the optimizer got them. Only needed if it was not made from
            `model.named_parameters()`, with which PyTorch stores the names itself.
        layouts: The layouts of parameters and the rules for modules, by path or by a pattern of paths:
            `{"*/c_proj/kernel": HF_CONV1D, "*/attn": fused_attention("c_attn", "c_proj")}`. By default, `torch.nn`'s
            attention and recurrent cells are recognised by their leaves (`TORCH_NN`), a Flax `kernel` of two or more
            dimensions is that of a linear layer or a convolution, and everything else is laid out as in PyTorch.
        steps: The number of steps PyTorch has taken, if its state does not contain it: SGD's does not, and a schedule
            needs it.
        averages: The `state_dict()` of PyTorch's `AveragedModel`, for a chain with `average_weights`, whose average
            then continues; if there are several, a dictionary of them by the names of the links, as for
            `linkax.averaged_weights`. (ASGD's average is part of the optimizer's own state.)

    Returns:
        The chain's state, which shares no memory with PyTorch's. It is in the shards in which `tx.init(params)` has it:
        where the parameters are sharded, or their shapes have shardings, every device gets its part and no other. If
        they span processes, all must call this together.

    Raises:
        ValueError: If anything does not fit: a broken file; parameters that one side lacks; shapes; a state of another
            optimizer; groups that do not correspond; different step counts in a group, or none where one is needed;
            hyperparameters that contradict the chain's; steps that do not fit those of a scheduler. One message
            lists everything.

    Warns:
        UserWarning: If the file has a different learning rate or weight decay from the chain; if a parameter has never
            stepped and others of its group have; if a kernel's layout was
            left to the default while that of similar ones was not; if an array restarts because its meaning is unknown,
            or an average because `averages` is not given.

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
    fresh = put_beside(params, tx.init(params))
    arrays = state_arrays("import_state: tx", tx, fresh, params)
    found = places(every_counterpart(params, names, layouts, file.groups, problems), params)
    references = [
        reference_of(f"PyTorch's group {index}", group, problems) for index, group in enumerate(file.hyperparams)
    ]
    values: dict[Any, Any] = {}
    apart, arrays = averages_apart(arrays, references, file)
    if averages is not None:
        read = read_averages(apart, params, averages, names, layouts, problems, notes)
        values |= {one.place: _filled(what, value, 1.0, one.value, problems) for one, what, value in read}
    ages: dict[Groups, Age] = {}
    owned = _owned(fresh, params)
    kept: dict[Any, set[int]] = {}  # by PyTorch's key and counterpart, the leaves that the chain keeps it for
    parts = chain_groups(tx, arrays, params, found, file.hyperparams, problems)
    placed = {name for part in parts for name in part.members}
    known = {name for place in found.values() for name in place.whole.names}  # the others are problems already
    idle = [name for name, keys in file.keys.items() if keys and name in known - placed]
    problems += [f"{name} has a state, but the chain keeps none for it" for name in idle]
    for part in parts:
        reference = None if part.group is None else references[part.group]
        has = {key for name in part.members for key in file.keys[name]}
        fields = partners(part.arrays, reference, has, problems)
        check_kept(part.arrays, problems)
        if reference is not None:
            _compare(part, fields, reference, problems, notes)
        values |= _moments(part, fields, reference, found, file, steps is not None, owned, kept, problems, notes)
        age = ages[part.label] = age_of(part, reference, fields, file, steps, problems)
        check_clocks(tx, part.label, age.steps, problems)
        check_output_axes(part.links, _places_of(part, found), problems)
        notes += other_counts(part, age, reference, file)
        if part.members or not fields:  # if PyTorch has none of its parameters, that is a problem already
            values |= counts_of(part.arrays, age, reference, part.members, file, problems)
    problems += incomplete(kept, found)
    values |= counts_around(arrays, ages, problems)
    refuse("import_state: the state must fit the chain and the parameters", problems)
    if any(age.has_begun for age in ages.values()):
        notes += _restarting(arrays)
        if apart and averages is None:
            notes.append(f"{apart[0].name} restarts: averages must be the state_dict() of PyTorch's AveragedModel")
    for note in dict.fromkeys(notes):
        warnings.warn(f"import_state: {note}", stacklevel=2)
    return with_arrays("import_state: tx", tx, fresh, values, params)


def _places_of(part: Group, found: Mapping[tuple[str, ...], Place]) -> list[Place]:
    """The parameters that a group keeps anything for."""
    params = dict.fromkeys(array.param for array in part.arrays)
    return [found[param] for param in params if param is not None and param in found]


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
    found: Mapping[tuple[str, ...], Place],
    file: TorchFile,
    has_steps: bool,
    owned: set[int],
    kept: dict[Any, set[int]],
    problems: list[str],
    notes: list[str],
) -> dict[Any, Any]:
    """The moments of a group, from PyTorch's, each of which takes the place of a fresh one in memory."""
    _check_keys(part, fields, reference, found, file, has_steps, problems)
    values: dict[Any, Any] = {}
    converted: dict[Any, list[np.ndarray | None]] = {}  # by field and counterpart
    shapes = {(field_of(array), array.param): np.shape(array.value) for array in part.arrays}
    for array in part.arrays:
        field = field_of(array)
        partner = fields.get(field)
        place = None if array.param is None else found.get(array.param)
        if partner is None or place is None:
            continue
        whole, index = place
        kept.setdefault((partner.key, id(whole)), set()).add(index)
        assert isinstance(array.field, Moment)
        if (field, id(whole)) not in converted:

            def read(name: str, key: str = partner.key) -> np.ndarray | None:
                return file.states[name].get(key)

            paths = [tuple(path.split("/")) for path in whole.use.paths]
            converted[field, id(whole)] = whole.to_jax(
                read,
                problems,
                key=partner.key,
                are_weights=array.field.is_of_weights,
                shapes=[shapes.get((field, path), shape) for path, shape in zip(paths, whole.shapes)],
            )
            if not array.field.is_of_weights:
                notes += whole.compromises(read, converted[field, id(whole)], partner.key)
        value = converted[field, id(whole)][index]
        if value is None:
            continue
        converted[field, id(whole)][index] = None  # its memory is no longer needed
        what = f"{partner.key} of {whole.names[0]}"
        reals = (np.real(value), np.imag(value)) if np.iscomplexobj(value) else (value,)
        if not array.field.has_sign and any(real.min(initial=0) < 0 for real in reals):
            problems.append(f"{what} must not be negative, because it is the {array.quantity}")
        if id(array.value) in owned and jnp.issubdtype(array.value.dtype, jnp.inexact):
            array.value.delete()  # its dtype and sharding are left
        values[array.place] = _filled(what, value, partner.factor, array.value, problems)
    return values


def _owned(fresh: Any, params: Any) -> set[int]:
    """The fresh state's arrays with memory that nothing else uses, by their Python ids."""
    users: dict[int, list[int]] = {}  # by the address of a shard, the arrays that have it
    for leaf in jax.tree.leaves((fresh, params)):
        for shard in leaf.addressable_shards if isinstance(leaf, jax.Array) else ():
            users.setdefault(shard.data.unsafe_buffer_pointer(), []).append(id(leaf))
    common = {one for ids in users.values() if len(ids) > 1 for one in ids}
    return {one for ids in users.values() for one in ids} - common - {id(leaf) for leaf in jax.tree.leaves(params)}


def _check_keys(
    part: Group,
    fields: Fields,
    reference: Reference | None,
    found: Mapping[tuple[str, ...], Place],
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
        place = None if array.param is None else found.get(array.param)
        if partner is not None and place is not None:
            for name in set(place.whole.names) & has_place.keys():
                has_place[name].add(partner.key)
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
    if not jnp.issubdtype(dtype, jnp.inexact) and value.dtype != dtype:
        problems.append(f"{what} has no place in an array of {dtype}")
        return like

    def converted(part: np.ndarray) -> np.ndarray:
        """A copy, because PyTorch changes its tensors in place, and JAX may share NumPy's memory."""
        if factor != 1:
            part = part.astype(np.result_type(part, np.float64)) * factor
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(part, dtype, order="C")

    if not all(np.isfinite(converted(end)).all() for end in _ends(value)):
        problems.append(f"{what} has numbers that do not fit into {dtype}")
        return like
    return filled(like, lambda index: converted(value[index]))


def _ends(value: np.ndarray) -> list[np.ndarray]:
    """The smallest and the largest number: with them, all others fit into a dtype."""
    reals = [np.real(value), np.imag(value)] if np.iscomplexobj(value) else [value]
    return [np.asarray(end) for real in reals if real.size for end in (real.min(), real.max())]


def _restarting(arrays: Iterable[StateArray]) -> list[str]:
    """What restarts although training continues, because its meaning is unknown."""
    return [
        f"{array.name} restarts, because its meaning is unknown (@link(..., state=...) declares it)"
        for array in arrays
        if isinstance(array.field, Own)
        and array.field_path not in array.site.link.fields
        and (array.param is not None or not array.site.link.slots)
    ]
