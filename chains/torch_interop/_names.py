"""Which PyTorch parameter corresponds to a parameter, and how PyTorch lays out its elements."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..algebra._paths import leaves_with_path, path_text, words
from ._layouts import (
    Layout,
    Layouts,
    as_layouts,
    default_layout,
    fitting_layouts,
    given_layout,
    torch_shape,
    untold_siblings,
    unused_layouts,
)
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
    *modules, leaf = path.removeprefix("params/").split("/")
    if modules[:1] == ["batch_stats"]:
        return ".".join([*modules[1:], f"running_{leaf}"])
    return ".".join([*modules, "weight" if leaf in ("kernel", "scale", "embedding") else leaf])


def name_of(names: Names, path: str) -> str | None:
    return names.get(path) if isinstance(names, Mapping) else names(path)


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation


class TorchParam(NamedTuple):
    """A parameter as PyTorch has it."""

    path: str
    name: str
    group: int
    layout: Layout
    shape: tuple[int, ...]  # in JAX
    is_complex: bool

    @property
    def torch_shape(self) -> tuple[int, ...] | None:
        """The shape in PyTorch; `None` if the layout does not accept the one in JAX."""
        return torch_shape(self.layout, self.shape)

    def to_jax(
        self, what: str, array: np.ndarray, problems: list[str], shape: tuple[int, ...] | None = None
    ) -> np.ndarray | None:
        """An array of the parameter in JAX's layout; mismatches are added to the problems.

        `shape` is the one that it must have there, if that is not the parameter's.
        """
        shape = self.shape if shape is None else shape
        try:
            converted = self.layout.to_jax(array)
        except Exception as error:  # the layout may be the user's
            problems.append(f"{what} has the shape {array.shape}, which its layout does not accept ({error})")
            return None
        if np.shape(converted) != shape:
            fitting = fitting_layouts(array.shape, shape)
            hint = f"; it fits with layouts={{{self.path!r}: torch_interop.{' or '.join(fitting)}}}" if fitting else ""
            problems.append(
                f"{what} has the shape {array.shape}, in JAX {np.shape(converted)}, instead of {shape}{hint}"
            )
            return None
        if np.iscomplexobj(converted) and not self.is_complex:
            problems.append(f"{what} is complex, but its parameter is real")
            return None
        return converted

    def to_torch(self, value: Any) -> np.ndarray:
        """An array in PyTorch's layout, with its own memory; float32 for dtypes that PyTorch cannot read from NumPy."""
        array = np.asarray(value)
        return np.array(self.layout.to_torch(array.astype(np.float32) if array.dtype.kind == "V" else array), order="C")


def torch_params(
    params: Any, names: Names, layouts: Layouts | None, groups: Sequence[Mapping[str, Any]], problems: list[str]
) -> dict[tuple[str, ...], TorchParam]:
    """PyTorch's counterparts of the parameters, by the words of their paths; what only one side has is a problem.

    Warns of parameters whose layout was not given although that of similar ones was.
    """
    layouts = as_layouts(layouts, problems)
    group_of = {name: index for index, group in enumerate(groups) for name in group}
    found: dict[tuple[str, ...], TorchParam] = {}
    seen: dict[str, str] = {}
    given: dict[str, Layout] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for keys, leaf in leaves_with_path(params):
        path = path_text(keys)
        shapes[path] = np.shape(leaf)
        if (layout := given_layout(layouts, path, problems)) is not None:
            given[path] = layout
        name = name_of(names, path)
        if name is None:
            problems.append(f"names has no name for {path}")
        elif not isinstance(name, str):
            problems.append(f"names must have a string for {path}, got {name!r}")
        elif name in seen:
            problems.append(f"{path} and {seen[name]} are both called {name}")
        else:
            seen[name] = path
            if name in group_of:
                layout = layout or default_layout(path, shapes[path])
                is_complex = np.iscomplexobj(leaf)
                found[words(keys)] = TorchParam(path, name, group_of[name], layout, shapes[path], is_complex)
    problems += [
        f"layouts has one for {one}, which is not a parameter" for one in unused_layouts(layouts, list(shapes))
    ]
    problems += [f"PyTorch has {name}, but no parameter has that name" for name in group_of if name not in seen]
    for warning in untold_siblings(shapes, given) if not problems else ():
        warnings.warn(warning, stacklevel=3)
    return found


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raises one error that lists all problems, if there are any."""
    if problems:
        every = list(dict.fromkeys(problems))
        raise ValueError(f"{what}, got {len(every)} that do not:" + "".join(f"\n  {one}" for one in every))


def torch_labels(
    param_groups: Sequence[Mapping[str, Any]], *, names: Names = torch_name, order: Sequence[str] | None = None
) -> Callable[[str, Any], str]:
    """The labels for `from_torch` and `chains.param_groups`: the PyTorch group that each parameter belongs to.

    Args:
        param_groups: The `param_groups` of a `state_dict`.
        names: As for `import_state`.
        order: As for `import_state`.

    Returns:
        A function from a parameter's path, and the parameter, to the index of its group as a string.

    Raises:
        ValueError: If the groups do not name their parameters, and neither does `order`.

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
    group_of = {name: str(index) for index, group in enumerate(groups) for name in group}

    def label(path: str, leaf: Any) -> str:
        del leaf
        name = name_of(names, path)
        return group_of.get(name or "", f"none of {len(groups)}")

    return label


def import_params(
    params: Any,
    state_dict: Mapping[str, Any],
    *,
    names: Names = torch_name,
    layouts: Mapping[str, Layout] | None = None,
) -> Any:
    """Copies the values of a PyTorch model's `state_dict` into a tree of parameters.

    The float32 master weights that a PyTorch optimizer keeps next to a 16-bit model go into a float32 tree in the same
    way; `linkax.with_full_weights` sets them, and `full_weights` reads them for `export_params`.

    Args:
        params: A tree with the right shapes and dtypes, such as the result of a Flax module's `init`.
        state_dict: The result of `model.state_dict()`, with tensors or arrays. Batch normalisation statistics need no
            counterpart in the tree.
        names: As for `import_state`.
        layouts: As for `import_state`.

    Returns:
        A tree like `params` with PyTorch's values.

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
    paths = [path_text(keys) for keys, _ in leaves_with_path(params)]
    wanted = {name_of(names, path) for path in paths}
    theirs = {name: None for name in state_dict if name in wanted or not name.endswith(BUFFERS)}
    found = torch_params(params, names, layouts, [theirs], problems)
    lacking = [path_text(keys) for keys, _ in leaves_with_path(params) if words(keys) not in found]
    problems += [f"PyTorch has nothing for {path}" for path in lacking]
    values = {}
    for path, one in found.items():
        array = as_numpy(one.name, state_dict[one.name], problems)
        values[path] = None if array is None else one.to_jax(one.name, array, problems)
    refuse("import_params: state_dict must fit the parameters", problems)
    # A copy: PyTorch changes its tensors in place, and JAX may share NumPy's memory.
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: jnp.array(values[words(keys)], leaf.dtype), params)


def export_params(
    params: Any, *, names: Names = torch_name, layouts: Mapping[str, Layout] | None = None
) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and in its layout, as NumPy arrays.

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
    problems: list[str] = []
    leaves = leaves_with_path(params)
    paths = [path_text(keys) for keys, _ in leaves]
    own = {name_of(names, path): None for path in paths}
    found = torch_params(params, names, layouts, [{name: None for name in own if name is not None}], problems)
    refuse("export_params: every parameter must have a unique name", problems)
    return {found[words(keys)].name: found[words(keys)].to_torch(leaf) for keys, leaf in leaves}
