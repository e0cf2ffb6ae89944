"""Which PyTorch parameter a parameter is, and how PyTorch lays out its elements."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..algebra._paths import KeyPath, bare, leaves_with_path, path_text

Names = Callable[[str], str] | Mapping[str, str]
"""From the paths of parameters, such as `"params/Dense_0/kernel"`, to PyTorch's names, such as `"Dense_0.weight"`."""


class Layout(NamedTuple):
    """How to turn an array of one framework into the other's: a kernel, and in the same way its moments.

    Attributes:
        to_jax: From PyTorch's NumPy array to Flax's.
        to_torch: The inverse.

    Example:
        >>> import numpy as np
        >>> from linkax.chains.torch_interop import Layout
        >>> heads = Layout(lambda w: w.T.reshape(8, 2, 4), lambda w: w.reshape(8, 8).T)
        >>> heads.to_torch(heads.to_jax(np.ones((8, 8)))).shape
        (8, 8)
    """

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


KERNEL = Layout(lambda w: np.moveaxis(w, (0, 1), (-1, -2)), lambda w: np.moveaxis(w, (-1, -2), (0, 1)))
"""Of linear layers and convolutions: PyTorch's (out, in, *space), Flax's (*space, in, out)."""

SAME = Layout(lambda w: w, lambda w: w)
"""Of everything else."""


def torch_name(path: str) -> str:
    """The name that a Flax parameter has in PyTorch, if the modules are called alike.

    Flax's collection `params` falls away, and its `kernel`, `scale` and `embedding` are PyTorch's `weight`; `mean` and
    `var` of the collection `batch_stats` are `running_mean` and `running_var`.

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


def _name_of(names: Names, path: str) -> str | None:
    return names.get(path) if isinstance(names, Mapping) else names(path)


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation


class TorchParam(NamedTuple):
    """A parameter as PyTorch has it."""

    name: str
    group: int
    layout: Layout
    shape: tuple[int, ...]  # in JAX
    is_complex: bool

    def to_jax(self, what: str, value: Any, problems: list[str]) -> np.ndarray:
        """An array of the parameter's in JAX's layout; what does not fit is added to the problems."""
        array = to_numpy(value)
        try:
            converted = self.layout.to_jax(array)
        except Exception as error:  # the layout may be the user's
            problems.append(f"{what} has the shape {array.shape}, which its layout does not take ({error})")
            return np.zeros(self.shape)
        if np.iscomplexobj(converted) and not self.is_complex:
            problems.append(f"{what} is complex, and its parameter real")
            return np.zeros(self.shape)
        if np.shape(converted) != self.shape:
            problems.append(
                f"{what} has the shape {array.shape}, in JAX {np.shape(converted)}, instead of {self.shape}"
            )
            return np.zeros(self.shape)
        return converted

    def to_torch(self, value: Any) -> np.ndarray:
        """An array in PyTorch's layout, with memory of its own; float32 for what PyTorch does not take from NumPy."""
        array = np.asarray(value)
        return np.array(self.layout.to_torch(array.astype(np.float32) if array.dtype.kind == "V" else array), order="C")


def torch_params(
    params: Any, names: Names, layouts: Mapping[str, Layout], groups: Sequence[Mapping[str, Any]], problems: list[str]
) -> dict[KeyPath | None, TorchParam]:
    """PyTorch's side of all parameters that it has; those that only one side has are added to the problems."""
    group_of = {name: index for index, group in enumerate(groups) for name in group}
    found: dict[KeyPath | None, TorchParam] = {}
    seen: dict[str, str] = {}
    for keys, leaf in leaves_with_path(params):
        path = path_text(keys)
        name = _name_of(names, path)
        if name is None:
            problems.append(f"names has none for {path}")
        elif name in seen:
            problems.append(f"{path} and {seen[name]} are both called {name}")
        elif name in group_of:
            is_kernel = path.rpartition("/")[2] == "kernel" and np.ndim(leaf) >= 2
            layout = layouts.get(path, KERNEL if is_kernel else SAME)
            found[keys] = TorchParam(name, group_of[name], layout, np.shape(leaf), np.iscomplexobj(leaf))
        if name is not None:
            seen.setdefault(name, path)
    problems += [f"layouts has one for {path}, which is no parameter" for path in layouts if path not in seen.values()]
    problems += [f"PyTorch has {name}, and no parameter is called so" for name in group_of if name not in seen]
    return found


def to_numpy(value: Any) -> np.ndarray:
    """A copy of a tensor or an array: PyTorch changes its tensors in place, and JAX may share NumPy's memory."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().resolve_conj().resolve_neg()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # NumPy has no bfloat16
        value = value.numpy()
    return np.array(value)


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raises one error that lists all problems, if there are any."""
    if problems:
        raise ValueError(f"{what}, got {len(problems)} that do not:" + "".join(f"\n  {one}" for one in problems))


def names_by_group(
    where: str, groups: Sequence[Mapping[str, Any]], order: Sequence[str] | None
) -> list[dict[str, Any]]:
    """For every PyTorch group, its parameters' names, and by them their keys in the state.

    Raises:
        ValueError: If neither the groups nor `order` name the parameters, or `order` has another length.
    """
    if all("param_names" in group for group in groups):
        for group in groups:
            if len(set(group["param_names"])) != len(group["params"]):
                raise ValueError(
                    f"{where}: param_names must name each of the {len(group['params'])} parameters of its group, got "
                    f"{group['param_names']}"
                )
        return [dict(zip(group["param_names"], group["params"])) for group in groups]
    if order is None:
        raise ValueError(
            f"{where}: order must list the parameters' names in the optimizer's order, such as [name for name, _ in "
            "model.named_parameters()], because the optimizer was not made from named parameters, got None"
        )
    count, order = sum(len(group["params"]) for group in groups), list(order)
    if len(order) != count or len(set(order)) != count:
        raise ValueError(f"{where}: order must have {count} different names, got {order}")
    rest = iter(order)
    return [{next(rest): key for key in group["params"]} for group in groups]


def torch_labels(
    param_groups: Sequence[Mapping[str, Any]], *, names: Names = torch_name, order: Sequence[str] | None = None
) -> Callable[[str, Any], str]:
    """The labels for `from_torch` and `chains.param_groups`: which of PyTorch's groups each parameter belongs to.

    Args:
        param_groups: Those of a `state_dict`.
        names: As for `import_state`.
        order: As for `import_state`.

    Returns:
        A function from a parameter's path, and the parameter, to the number of its group as text.

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
    groups = names_by_group("torch_labels", param_groups, order)
    group_of = {name: str(index) for index, group in enumerate(groups) for name in group}

    def label(path: str, leaf: Any) -> str:
        del leaf
        name = _name_of(names, path)
        return group_of.get(name or "", f"none of {len(groups)}")

    return label


def import_params(
    params: Any,
    state_dict: Mapping[str, Any],
    *,
    names: Names = torch_name,
    layouts: Mapping[str, Layout] | None = None,
) -> Any:
    """Takes the values of a PyTorch model's `state_dict` into a tree of parameters.

    Args:
        params: The tree, of the right shapes and dtypes, such as a Flax module's `init` gives.
        state_dict: What `model.state_dict()` gave, with tensors or arrays. Statistics of batch normalisation may be
            there without a counterpart in the tree.
        names: As for `import_state`.
        layouts: As for `import_state`.

    Returns:
        A tree like `params` with PyTorch's values.

    Raises:
        ValueError: If a parameter has no counterpart on the other side, or another shape. All of them in one message.

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
    wanted = {_name_of(names, path) for path in paths}
    theirs = {name: None for name in state_dict if name in wanted or not name.endswith(_BUFFERS)}
    found = torch_params(params, names, layouts or {}, [theirs], problems)
    lacking = [path_text(keys) for keys, _ in leaves_with_path(params) if keys not in found]
    problems += [f"PyTorch has nothing for {path}" for path in lacking]
    values = {keys: one.to_jax(one.name, state_dict[one.name], problems) for keys, one in found.items()}
    refuse("import_params: state_dict must fit the parameters", problems)
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: jnp.asarray(values[bare(keys)], leaf.dtype), params)


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
    own = {_name_of(names, path): None for path in paths}
    found = torch_params(params, names, layouts or {}, [{name: None for name in own if name is not None}], problems)
    refuse("export_params: every parameter must have a name of its own", problems)
    return {found[keys].name: found[keys].to_torch(leaf) for keys, leaf in leaves}
