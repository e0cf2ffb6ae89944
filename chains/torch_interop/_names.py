"""Which PyTorch parameter corresponds to a parameter, and how PyTorch lays out its elements."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from linkax.transforms._leaves import dtype_of

from ..algebra._paths import leaves_with_path, path_text, words
from ..running._devices import filled
from ._counterparts import Counterpart, counterparts
from ._layouts import Layout, untold_siblings
from ._matching import uses_of
from ._rules import Layouts
from ._tensors import as_numpy
from ._torch_groups import names_by_group, read_groups

Names = Callable[[str], str] | Mapping[str, str]
"""From the paths of parameters, such as `"params/Dense_0/kernel"`, to PyTorch's names, such as `"Dense_0.weight"`."""


def torch_name(path: str) -> str:
    """The name of a Flax parameter in PyTorch, if the modules have the same names.

    Flax's collection name `params` is removed, and its `kernel`, `scale` and `embedding` are PyTorch's `weight`; `mean`
    and `var` of the collection `batch_stats` are `running_mean` and `running_var`.

    Args:
        path: The parameter's path, such as `"params/Dense_0/kernel"`.

    Returns:
        PyTorch's name, such as `"Dense_0.weight"`.

    Example:
        >>> from linkax.chains.torch_interop import torch_name
        >>> torch_name("params/encoder/norm/scale")
        'encoder.norm.weight'

    Source:
        `torch.nn.Module.named_parameters`.
    """
    collection, *inside = path.split("/")
    if collection == "batch_stats":
        theirs = {"mean": "running_mean", "var": "running_var"}
    else:
        inside = inside if collection == "params" else [collection, *inside]
        theirs = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
    return ".".join([*inside[:-1], *(theirs.get(leaf, leaf) for leaf in inside[-1:])])


def name_of(names: Names, path: str) -> str | None:
    return names.get(path) if isinstance(names, Mapping) else names(path)


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation


class Place(NamedTuple):
    """Where a leaf is in its counterpart."""

    whole: Counterpart
    part: int  # its position among the counterpart's leaves

    @property
    def group(self) -> int:
        """PyTorch's group."""
        assert self.whole.group is not None
        return self.whole.group


def every_counterpart(
    params: Any,
    names: Names,
    layouts: Layouts | None,
    groups: Sequence[Mapping[str, Any]] | None,
    problems: list[str],
    ignored: tuple[str, ...] = (),
) -> list[Counterpart]:
    """The counterparts of all parameters; what only PyTorch has is a problem.

    Warns of parameters whose layout was not given although that of similar ones was.
    """
    leaves = {path_text(keys): leaf for keys, leaf in leaves_with_path(params)}
    named = names if isinstance(names, Mapping) else ()
    uses = uses_of({path: np.shape(leaf) for path, leaf in leaves.items()}, layouts, named, problems)
    found = counterparts(leaves, uses, lambda path: name_of(names, path), groups, problems, ignored)
    alone = [one for one in found if isinstance(one.use.what, Layout) and one.use.stack is None]
    given = {one.use.where: one.use.what for one in alone if one.use.is_given and isinstance(one.use.what, Layout)}
    shapes = {one.use.where: one.shapes[0] for one in alone}
    for warning in untold_siblings(shapes, given) if not problems else ():
        warnings.warn(warning, stacklevel=3)
    return found


def places(every: Sequence[Counterpart], params: Any) -> dict[tuple[str, ...], Place]:
    """Where the parameters that PyTorch has are in their counterparts, by the words of their paths."""
    keys = {path_text(path): words(path) for path, _ in leaves_with_path(params)}
    return {
        keys[path]: Place(one, index)
        for one in every
        if one.group is not None
        for index, path in enumerate(one.use.paths)
    }


def incomplete(kept: Mapping[Any, Collection[int]], found: Mapping[tuple[str, ...], Place]) -> list[str]:
    """What PyTorch has in one tensor, but the chain keeps for some of its leaves only.

    Args:
        kept: By PyTorch's key and the counterpart's Python id, the indices of the leaves.
        found: Where the parameters are.
    """
    wholes = {id(place.whole): place.whole for place in found.values()}
    return [
        f"{key} of {', '.join(wholes[one].names)} is for {wholes[one].text}, but the chain keeps it only for "
        + ", ".join(wholes[one].use.paths[index] for index in sorted(indices))
        for (key, one), indices in kept.items()
        if len(indices) < len(wholes[one].shapes)
    ]


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raises one error that lists all problems, if there are any."""
    if problems:
        every = list(dict.fromkeys(problems))
        raise ValueError(f"{what}, got {len(every)} that do not:" + "".join(f"\n  {one}" for one in every))


def torch_labels(
    param_groups: Sequence[Mapping[str, Any]],
    params: Any = None,
    *,
    names: Names = torch_name,
    order: Sequence[str] | None = None,
    layouts: Layouts | None = None,
) -> Callable[[str, Any], str]:
    """The labels for `from_torch` and `chains.param_groups`: the PyTorch group that each parameter belongs to.

    Args:
        param_groups: The `param_groups` of a `state_dict`.
        params: The parameters, or their shapes. Without them, every parameter must be one tensor in PyTorch: no fused
            attention, no stacked layers.
        names: As for `import_state`.
        order: As for `import_state`.
        layouts: As for `import_state`.

    Returns:
        A function from a parameter's path, and the parameter, to the index of its group as a string.

    Raises:
        ValueError: If the groups do not name their parameters, and neither does `order`; with `params`, also if the
            names do not fit.

    Example:
        >>> from linkax.chains.torch_interop import torch_labels
        >>> groups = [{"params": [0], "param_names": ["body.weight"]}, {"params": [1], "param_names": ["head.weight"]}]
        >>> torch_labels(groups)("params/head/kernel", None)
        '1'

    Source:
        `torch.optim.Optimizer.state_dict`.
    """
    problems: list[str] = []
    groups = read_groups(param_groups, problems)
    groups = [] if problems else names_by_group(groups, order, problems)
    if problems:
        raise ValueError("torch_labels: " + "\n  ".join(problems))
    none = f"none of {len(groups)}"
    if params is not None:
        every = every_counterpart(params, names, layouts, groups, problems)
        refuse("torch_labels: the groups must fit the parameters", problems)
        labels = {path: str(one.group) for one in every if one.group is not None for path in one.use.paths}
        return lambda path, _: labels.get(path, none)
    if layouts is not None:
        raise ValueError("torch_labels: params must be given with layouts, got None")
    group_of = {name: str(index) for index, group in enumerate(groups) for name in group}
    return lambda path, _: group_of.get(name_of(names, path) or "", none)


def import_params(
    params: Any,
    state_dict: Mapping[str, Any],
    *,
    names: Names = torch_name,
    layouts: Layouts | None = None,
) -> Any:
    """Copies the values of a PyTorch model's `state_dict` into a tree of parameters.

    The float32 master weights that a PyTorch optimizer keeps next to a 16-bit model go into a float32 tree in the same
    way; `linkax.with_full_weights` sets them, and `full_weights` reads them for `export_params`.

    Args:
        params: A tree with the right shapes and dtypes, such as the result of a Flax module's `init`, or of
            `jax.eval_shape` of it.
        state_dict: The result of `model.state_dict()`, with tensors or arrays. Batch normalisation statistics need no
            counterpart in the tree.
        names: As for `import_state`.
        layouts: As for `import_state`.

    Returns:
        A tree like `params` with PyTorch's values. Where `params` are sharded, or their shapes have shardings
        (`jax.ShapeDtypeStruct(..., sharding=...)`), so are they, and every device gets its part and no other.

    Raises:
        ValueError: If a parameter has no counterpart on the other side, or a different shape. One message lists all of
            them.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from linkax.chains.torch_interop import import_params
        >>> params = {"params": {"fc": {"kernel": jnp.zeros((2, 1))}}}
        >>> print(import_params(params, {"fc.weight": np.array([[1.0, 2.0]])})["params"]["fc"]["kernel"])
        [[1.]
         [2.]]

    Source:
        `torch.nn.Module.state_dict`.
    """
    problems: list[str] = []
    leaves = {path_text(keys): leaf for keys, leaf in leaves_with_path(params)}
    values: dict[str, Any] = {}
    for path, array in imported(params, state_dict, names, layouts, problems):
        dtype = dtype_of(leaves[path])
        # A copy: PyTorch changes its tensors in place, and JAX may share NumPy's memory.
        values[path] = filled(
            leaves[path], lambda index, own=array, dtype=dtype: np.array(own[index], dtype, order="C")
        )
    refuse("import_params: state_dict must fit the parameters", problems)
    return jax.tree_util.tree_map_with_path(lambda keys, _: values[path_text(keys)], params)


def imported(
    params: Any, state_dict: Mapping[str, Any], names: Names, layouts: Layouts | None, problems: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """PyTorch's values in JAX's layouts, by the parameters' paths, one after another; they may be in PyTorch's memory.

    What does not fit is added to the problems.
    """
    for one in every_counterpart(params, names, layouts, [state_dict], problems, BUFFERS):
        if one.group is None:
            problems.append(one.nothing)
            continue
        converted = one.to_jax(lambda name: as_numpy(name, state_dict[name], problems), problems)
        while converted:  # nothing is kept here, so that its memory can be freed
            array = converted.pop()
            if array is not None:
                yield one.use.paths[len(converted)], array


def export_params(params: Any, *, names: Names = torch_name, layouts: Layouts | None = None) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and in its layout, as NumPy arrays.

    They may be sharded over several processes, as for `export_state`: all call this, and each gets everything.

    Args:
        params: The parameters.
        names: As for `import_state`.
        layouts: As for `import_state`.

    Returns:
        Arrays by name; `model.load_state_dict({name: torch.from_numpy(w) for name, w in ....items()})` takes them.

    Raises:
        ValueError: If `names` has none for a parameter, or the same for two.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.chains.torch_interop import export_params
        >>> export_params({"params": {"fc": {"kernel": jnp.zeros((2, 1))}}})["fc.weight"].shape
        (1, 2)

    Source:
        `torch.nn.Module.load_state_dict`.
    """
    return dict(exported(params, names, layouts))


def exported(params: Any, names: Names, layouts: Layouts | None) -> Iterator[tuple[str, np.ndarray]]:
    """What `export_params` returns, one after another."""
    problems: list[str] = []
    every = every_counterpart(params, names, layouts, None, problems)
    refuse("export_params: every parameter must have a unique name", problems)
    values = {path_text(keys): leaf for keys, leaf in leaves_with_path(params)}
    for one in every:
        yield from one.to_torch([values[path] for path in one.use.paths]).items()
