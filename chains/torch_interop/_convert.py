"""A PyTorch checkpoint as an Orbax checkpoint, and back.

The Orbax checkpoint has these items:

- `params`: the parameters, in the tree of the user's model or in one that mirrors PyTorch's names;
- `averages`: the averaged ones, if there are any, in the same tree;
- `opt_state`: the optimizer's state;
- `spec`: everything else as JSON: the optimizer's class and groups, the schedulers, the loss scale, the step, the
  epoch.
"""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..algebra._paths import leaves_with_path, path_text, words
from ..running._param_groups import param_groups
from ._checkpoint import Checkpoint, SavedOptimizer, inspect_checkpoint, is_plain
from ._checkpoint_files import is_tensor, read_torch, shown
from ._checkpoint_names import clean_names, is_flat, plain_number
from ._export_state import export_state
from ._import_state import import_state
from ._layouts import IDENTITY
from ._names import BUFFERS, Names, exported, import_params, torch_labels, torch_name
from ._optimizer_order import optimizer_order
from ._rules import Layouts
from ._schedules import TorchSchedule, schedule_from_torch
from ._spec import from_torch

_FROZEN = "frozen"  # the group of parameters that the optimizer does not have
_STATISTICS = "batch_stats"  # Flax's collection, which no optimizer sees
_MOST = 1_000_000  # values in one part of the spec: a small pickle may repeat a list without end
_CHUNK = 4_000_000  # bytes that Orbax compresses at a time
_SMALL = 1000  # numbers in an array that is read at once
VERSION = 1


class Target(NamedTuple):
    """What the parameters become in JAX."""

    tree: Any = None  # arrays or shapes; `None` for a tree that mirrors PyTorch's names
    names: Names = torch_name
    layouts: Layouts | None = None
    tx: optax.GradientTransformation | None = None  # `None` for PyTorch's optimizer


def to_orbax(
    source: Path,
    out: Path,
    target: Target,
    *,
    order: str | None = None,
    names: Path | None = None,
    scheduler: str | None = None,
    steps_per_epoch: int = 1,
    model: str | None = None,
    strip: str = "",
) -> list[str]:
    """Writes a PyTorch checkpoint as an Orbax checkpoint.

    Args:
        source: The file or folder.
        out: The folder to make.
        target: What the parameters become.
        order: The rule by which the optimizer was made, `"model"` or `"trainer"`, or a file of names, one a line.
        names: A file of the names of the model's parameters in its order, one a line, if `order` is a rule and the
            checkpoint does not have them in this order.
        scheduler: The class of the scheduler, which its state does not say, as in a pair for `schedule_from_torch`;
            `None` for a learning rate that stays as it is.
        steps_per_epoch: As for `schedule_from_torch`.
        model: As for `inspect_checkpoint`.
        strip: As for `inspect_checkpoint`.

    Returns:
        What the user should know.

    Raises:
        ValueError: If anything has no counterpart. One message lists everything.
    """
    saved = inspect_checkpoint(source, model=model, strip=strip)
    notes: list[str] = []
    problems: list[str] = []
    if not saved.model:
        problems.append("it has no model")
    if len(saved.optimizers) > 1:
        problems.append(
            f"it has {len(saved.optimizers)} optimizers, and a chain is made from one: convert them by hand"
        )
    rates = _rates(saved, scheduler, steps_per_epoch, problems)
    spec = _spec_of(saved, rates, problems)
    _refuse(source, problems)
    is_wide = target.tree is None and any(str(one.dtype).endswith(("64", "128")) for one in saved.model.values())
    with _wide() if is_wide else contextlib.nullcontext(), _noted(notes), _named(source):
        target = _mirrored(saved.model) if target.tree is None else target
        items: dict[str, Any] = {}
        with _Progress(saved) as progress:
            items["params"] = import_params(
                target.tree, progress.model(saved.model), names=target.names, layouts=target.layouts
            )
            if saved.averages is not None:
                items["averages"] = import_params(
                    target.tree, _averaged(saved), names=target.names, layouts=target.layouts
                )
            problems += _not_finite(items["params"])
            if saved.optimizers:
                optimizer = saved.optimizers[0]
                given = _order(order, names, saved, optimizer)
                trained = _trained(items["params"])
                tx = target.tx or chain_of(optimizer.name, optimizer.param_groups, rates, given, target, trained)
                items["opt_state"] = import_state(
                    tx,
                    trained,
                    progress.state(optimizer.state_dict),
                    names=target.names,
                    order=given,
                    layouts=target.layouts,
                    steps=None if _counts(optimizer) else saved.step,
                )
                spec["optimizer"]["order"] = given
                notes += _never_stepped(optimizer, given)
        _refuse(source, problems)
        spec["layout"] = "torch" if target.tx is None and target.names is _dotted else "given"
        _save(out, items, spec)
    notes += [f"left out: {what}" for what in saved.rest]
    if saved.schedulers and target.tx is None and scheduler is None:
        notes.append(
            "the learning rate stays as it is in the file: the scheduler's state is in the spec, but not part of the "
            "chain; name its class with --scheduler, or give a chain with its schedule as --optimizer"
        )
    return notes


def to_torch(source: Path, out: Path, target: Target, template: Path | None) -> list[str]:
    """Writes an Orbax checkpoint of `to_orbax`, or one with the same items, as a file of `torch.save`.

    Args:
        source: The folder.
        out: The file to make.
        target: What the parameters are; as for `to_orbax`.
        template: A file of `torch.save`, whose model and optimizer are replaced, everything else is kept, in whatever
            way it is nested and named. Without one, the file has `"model"` and `"optimizer"`.

    Returns:
        What the user should know.

    Raises:
        ValueError: If anything has no counterpart. One message lists everything.
    """
    notes: list[str] = []
    saved = None if template is None else inspect_checkpoint(template)
    spec = read_spec(source)
    groups = spec["optimizer"]["param_groups"] if spec["optimizer"] else []
    own_order = spec["optimizer"]["order"] if spec["optimizer"] else None
    with _named(source), _noted(notes):
        shapes = _shapes(source, "params")
        is_wide = any(one.dtype.itemsize == 8 for one in jax.tree.leaves(shapes))
        with _wide() if is_wide else contextlib.nullcontext():
            if target.tree is None:
                if spec["layout"] != "torch":
                    raise ValueError("its tree is not PyTorch's: give --params as when it was made")
                target = Target(shapes, _dotted, {"*": IDENTITY}, target.tx)
            items: dict[str, Any] = {"params": target.tree}
            trained = _trained(target.tree)
            tx = None
            if spec["optimizer"]:
                rates = [TorchSchedule.from_spec(one) for one in spec["optimizer"]["rates"]]
                tx = target.tx or chain_of(spec["optimizer"]["name"], groups, rates, own_order, target, trained)
                items["opt_state"] = jax.eval_shape(tx.init, trained)
            items = _restore(source, items)
            like = saved.model if saved else dict.fromkeys(spec["bfloat16"], "bfloat16")
            weights = {name: _tensor(w, like.get(name)) for name, w in exported(items["params"], *target[1:3])}
            state = None
            if tx is not None:
                theirs = saved.optimizers[0] if saved and saved.optimizers else None
                names = None if theirs and theirs.has_names else own_order
                like = theirs.state_dict if theirs else {"state": {}, "param_groups": groups}
                trained = _trained(items["params"])
                state = export_state(
                    tx,
                    trained,
                    items["opt_state"],
                    like,
                    names=target.names,
                    order=names,
                    layouts=target.layouts,
                    steps=spec["step"],
                )
    if template and saved:
        content = _filled(template, saved, weights, state, notes)
    else:
        content = {"model": weights}
        if state is not None:
            content["optimizer"] = _state_tensors(state)
    _write_torch(out, content)
    return notes


# Trees and names.


def _dotted(path: str) -> str:
    """PyTorch's name in a tree that mirrors it."""
    return path.replace("/", ".")


def _mirrored(model: Mapping[str, Any]) -> Target:
    """A tree with PyTorch's names, in PyTorch's layouts; buffers of batch normalisation are a collection as in Flax."""
    tree: dict[str, Any] = {}
    for name, tensor in model.items():
        *modules, leaf = name.split(".")
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[leaf] = jax.ShapeDtypeStruct(tuple(tensor.shape), jnp.dtype(str(tensor.dtype).removeprefix("torch.")))
    return Target(tree, _dotted, {"*": IDENTITY})


def _is_trained(path: str, leaf: Any) -> bool:
    """Whether a leaf may be one of the optimizer's: no statistics of batch normalisation, and no integers."""
    return (
        not path.endswith(BUFFERS) and path.partition("/")[0] != _STATISTICS and jnp.issubdtype(leaf.dtype, jnp.inexact)
    )


def _trained(tree: Any) -> Any:
    """The tree without what no optimizer sees."""
    if not isinstance(tree, Mapping):
        return tree

    def pruned(inner: Any, path: str) -> Any:
        if not isinstance(inner, Mapping):
            return inner if not hasattr(inner, "dtype") or _is_trained(path, inner) else None
        kept = {key: pruned(one, f"{path}/{key}" if path else str(key)) for key, one in inner.items()}
        return {key: one for key, one in kept.items() if one is not None} or None

    return pruned(tree, "") or {}


def _rates(saved: Checkpoint, scheduler: str | None, steps_per_epoch: int, problems: list[str]) -> list[TorchSchedule]:
    """The schedules of the learning rate, group by group; none if no scheduler is named."""
    if scheduler is None:
        return []
    if len(saved.schedulers) != 1 or len(saved.optimizers) != 1:
        problems.append(
            f"--scheduler needs one scheduler and one optimizer, and it has {len(saved.schedulers)} and "
            f"{len(saved.optimizers)}: give a chain with its schedule as --optimizer"
        )
        return []
    groups = saved.optimizers[0].param_groups
    every = schedule_from_torch((scheduler, saved.schedulers[0]), groups, steps_per_epoch=steps_per_epoch)
    if any(one.momentum is not None for one in every):
        problems.append(f"{scheduler} cycles the momentum, too: give a chain of from_torch(...) as --optimizer")
    return [one.lr for one in every]


def chain_of(
    name: str | None,
    groups: Sequence[Mapping[str, Any]],
    rates: Sequence[TorchSchedule],
    order: Sequence[str] | None,
    target: Target,
    tree: Any,
) -> optax.GradientTransformation:
    """PyTorch's optimizer as a chain, with the schedules or the present learning rates; other parameters are frozen."""
    if name is None:
        raise ValueError("its optimizer's class is unknown: give the chain as --optimizer module:function")
    own = list(rates) or [plain_number(group["lr"]) for group in groups]
    label = torch_labels(groups, tree, names=target.names, order=order, layouts=target.layouts)
    labels = {path_text(keys): label(path_text(keys), leaf) for keys, leaf in leaves_with_path(tree)}
    used = {str(index) for index in range(len(groups))}
    if len(groups) == 1 and set(labels.values()) <= used:
        return from_torch((name, list(groups)), learning_rate=own[0], layouts=target.layouts)
    chains: dict[str, optax.GradientTransformation] = {
        str(index): from_torch((name, [group]), learning_rate=rate, layouts=target.layouts)
        for index, (group, rate) in enumerate(zip(groups, own))
    }
    if set(labels.values()) - used:
        chains[_FROZEN] = optax.set_to_zero()
    return param_groups(chains, lambda path, leaf: label(path, leaf) if label(path, leaf) in used else _FROZEN)


def _order(order: str | None, names: Path | None, saved: Checkpoint, optimizer: SavedOptimizer) -> list[str] | None:
    """The names of the optimizer's parameters, if it does not have them."""
    if optimizer.has_names:
        return None
    if order is None:
        raise ValueError(
            "its optimizer does not name its parameters: say how it was made, with --order model, --order trainer, or "
            "--order FILE with one name a line"
        )
    if order == "model" or order == "trainer":
        return optimizer_order(saved, order, names=None if names is None else _lines(names))
    return _lines(Path(order))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--order and --names must be files of names, one a line, got {path} ({error})") from None


def _counts(optimizer: SavedOptimizer) -> bool:
    return any("step" in entry for entry in optimizer.state_dict["state"].values())


def _never_stepped(optimizer: SavedOptimizer, order: Sequence[str] | None) -> list[str]:
    """What to know about parameters that have no state although others have."""
    state, groups = optimizer.state_dict["state"], optimizer.param_groups
    keys = [key for group in groups for key in group["params"]]
    names = order or [name for group in groups for name in group["param_names"]]
    idle = [name for name, key in zip(names, keys) if not state.get(key)] if state else []
    if not idle:
        return []
    return [
        f"{', '.join(map(shown, idle))} has never had a gradient: PyTorch skips it, and the chain decays it if it has "
        "weight decay; its gradient can be None here, too"
    ]


def _averaged(saved: Checkpoint) -> dict[str, Any]:
    """The averages by the names of the weights: where the averages of `AveragedModel` become a tree."""
    given = {name: one for name, one in (saved.averages or {}).items() if name != "n_averaged"}
    cleaned = clean_names(given)
    return {cleaned[name]: one for name, one in given.items() if cleaned[name] not in saved.tied}


# The spec.


def _spec_of(saved: Checkpoint, rates: Sequence[TorchSchedule], problems: list[str]) -> dict[str, Any]:
    """Everything but arrays, as JSON."""
    optimizer = saved.optimizers[0] if saved.optimizers else None
    return {
        "made_by": "linkax.chains.torch_interop",
        "version": VERSION,
        "optimizer": None
        if optimizer is None
        else {
            "name": optimizer.name,
            "param_groups": [_as_json("param_groups", group, problems) for group in optimizer.param_groups],
            "order": None,
            "rates": [rate.spec() for rate in rates],
        },
        "schedulers": [_as_json("scheduler", state, problems) for state in saved.schedulers],
        "scaler": None if saved.scaler is None else _as_json("scaler", saved.scaler, problems),
        "averaged": None if saved.averages is None else int(plain_number(saved.averages["n_averaged"])),
        "bfloat16": [name for name, one in saved.model.items() if str(one.dtype).endswith("bfloat16")],
        "step": saved.step,
        "epoch": saved.epoch,
    }


def _as_json(what: str, value: Any, problems: list[str]) -> Any:
    """A value of numbers, texts and containers; anything else is a problem."""
    left = _MOST

    def plain(value: Any, where: str, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > 20:
            raise ValueError("it is too large")
        if is_plain(value):
            return plain_number(value)
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, Mapping):
            return {str(key): plain(one, f"{where}.{key}", depth + 1) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one, where, depth + 1) for one in value]
        raise ValueError(f"{shown(where)} is {shown(type(value).__name__)}")

    try:
        return plain(value, what, 0)
    except ValueError as error:
        problems.append(f"{what} has no counterpart in JSON: {error}")
        return None


# Files.


def _save(out: Path, items: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    import orbax.checkpoint as ocp

    largest = max((leaf.nbytes for leaf in jax.tree.leaves(dict(items))), default=0)
    most: Any = (largest + 1_000_000) / 1e9  # what Orbax may copy at a time
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler(save_concurrent_gb=most) for name in items}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(spec=ocp.JsonCheckpointHandler(), **handlers)) as checkpointer:
        chunked = ocp.SaveArgs(chunk_byte_size=_CHUNK)
        saves = {
            name: ocp.args.StandardSave(item, save_args=jax.tree.map(lambda _: chunked, item))
            for name, item in items.items()
        }
        checkpointer.save(out.resolve(), ocp.args.Composite(spec=ocp.args.JsonSave(dict(spec)), **saves))


def is_orbax(path: Path) -> bool:
    """Whether a folder is an Orbax checkpoint."""
    return path.is_dir() and (path / "_CHECKPOINT_METADATA").is_file()


def read_spec(source: Path) -> dict[str, Any]:
    """The spec of an Orbax checkpoint."""
    import orbax.checkpoint as ocp

    with _named(source):
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler(spec=ocp.JsonCheckpointHandler())) as checkpointer:
                spec = checkpointer.restore(source.resolve(), ocp.args.Composite(spec=ocp.args.JsonRestore())).spec
        except Exception as error:  # whatever a broken folder leads to
            raise ValueError(f"it has no spec that can be read ({error})") from error
        given = spec if isinstance(spec, dict) else {}
        optimizer = given.get("optimizer")
        is_whole = optimizer is None or (
            isinstance(optimizer, dict) and {"name", "param_groups", "order", "rates"} <= optimizer.keys()
        )
        if (
            given.get("version") != VERSION
            or not is_whole
            or not {"optimizer", "layout", "bfloat16", "step"} <= given.keys()
        ):
            raise ValueError("its spec is not one that this version of linkax has written")
    return spec


def _shapes(source: Path, item: str) -> Any:
    """The shapes of the arrays of an item."""
    import orbax.checkpoint as ocp

    if not (source / item).is_dir():
        raise ValueError(f"it has no item {item}")
    folder: Any = (source / item).resolve()
    metadata: Any = ocp.StandardCheckpointHandler().metadata(folder)
    tree = getattr(metadata, "tree", metadata)
    return jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype), tree)


class _Stored:
    """An array of an Orbax checkpoint, which is read when it is used."""

    def __init__(self, folder: Any, tree: Any, index: int):
        self._folder, self._tree, self._index = folder, tree, index
        leaf = jax.tree.leaves(tree)[index]
        self.shape, self.dtype, self.ndim = leaf.shape, leaf.dtype, leaf.ndim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        import orbax.checkpoint as ocp

        leaves, structure = jax.tree.flatten(self._tree)
        only = [leaf if index == self._index else ocp.PLACEHOLDER for index, leaf in enumerate(leaves)]
        item = jax.tree.unflatten(structure, only)
        restored = ocp.PyTreeCheckpointHandler().restore(
            self._folder, args=ocp.args.PyTreeRestore(item, ocp.checkpoint_utils.construct_restore_args(item))
        )
        return np.asarray(jax.tree.leaves(restored)[self._index], dtype)

    def __ne__(self, other: object) -> Any:
        return np.asarray(self) != other

    __hash__ = None  # type: ignore[assignment]


def _restore(source: Path, items: Mapping[str, Any]) -> dict[str, Any]:
    """The items, whose arrays are read when they are used, and small ones now."""
    found = {}
    for name, item in items.items():
        folder = (source / name).resolve()
        apart = _other_shapes(_shapes(source, name), item)
        if apart:
            raise ValueError(f"its {name} must have the shapes of the tree, got others for {', '.join(apart[:5])}")
        stored = [_Stored(folder, item, index) for index in range(len(jax.tree.leaves(item)))]
        leaves = [one if math.prod(one.shape) > _SMALL else jnp.asarray(np.asarray(one)) for one in stored]
        found[name] = jax.tree.unflatten(jax.tree.structure(item), leaves)
    return found


def _other_shapes(stored: Any, wanted: Any) -> list[str]:
    """The paths that only one of two trees has, or with different shapes."""
    there, here = ({words(path): leaf.shape for path, leaf in leaves_with_path(tree)} for tree in (stored, wanted))
    return ["/".join(path) for path in {**there, **here} if there.get(path) != here.get(path)]


def _write_torch(out: Path, content: Any) -> None:
    import torch

    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        torch.save(content, unfinished)
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def _tensor(array: np.ndarray, like: Any) -> Any:
    """A tensor, in the dtype of another one, or of that name, if there is one."""
    import torch

    tensor = torch.from_numpy(np.require(array, requirements="W"))
    dtype = like.dtype if is_tensor(like) else getattr(torch, like) if isinstance(like, str) else tensor.dtype
    return tensor.to(dtype)


def _state_tensors(state: Mapping[str, Any], like: Mapping[Any, Any] | None = None) -> dict[str, Any]:
    every = {
        key: {name: _tensor(array, (like or {}).get(key, {}).get(name)) for name, array in entry.items()}
        for key, entry in state["state"].items()
    }
    return {**state, "state": every}


def _filled(
    template: Path,
    saved: Checkpoint,
    weights: Mapping[str, Any],
    state: Mapping[str, Any] | None,
    notes: list[str],
) -> Any:
    """The template with other weights and another state."""
    if template.is_dir():
        raise ValueError(f"{template}: the template must be a file of torch.save, got a folder")
    content = read_torch(template)
    lacking = sorted(saved.model.keys() - weights.keys())
    extra = sorted(weights.keys() - saved.model.keys())
    if lacking or extra:
        raise ValueError(
            f"{template}: the template must have the same weights:"
            + "".join(f"\n  {name} is only in the template" for name in lacking)
            + "".join(f"\n  {name} is not in the template" for name in extra)
        )
    model = {saved.names[name]: tensor for name, tensor in weights.items()}
    model |= {saved.names[name]: weights[first] for name, first in saved.tied.items()}
    old = _at(content, saved.places["model"])
    content = _replaced(content, saved.places["model"], {**old, **{name: model[name] for name in old if name in model}})
    if state is not None and saved.optimizers:
        keys = saved.optimizers[0].keys
        old = _at(content, keys)
        new = _state_tensors(state, saved.optimizers[0].state_dict["state"])["state"]
        if is_flat(old):
            flat = {key: value for key, value in old.items() if key.startswith("param_groups.")}
            flat |= {f"state.{key}.{what}": one for key, entry in new.items() for what, one in entry.items()}
            content = _replaced(content, keys, flat)
        else:
            content = _replaced(content, keys, {**old, "state": new})
    kept = [name for name in saved.places if name != "model"] + [
        n for n in ("step", "epoch") if getattr(saved, n) is not None
    ]
    if kept or saved.rest:
        notes.append(f"as in the template: {', '.join([*kept, *saved.rest])}")
    return content


def _at(content: Any, keys: Sequence[Any]) -> Any:
    for key in keys:
        content = content[key]
    return content


def _replaced(content: Any, keys: Sequence[Any], value: Any) -> Any:
    """A copy of nested containers with another value at one place."""
    if not keys:
        return value
    new = _replaced(content[keys[0]], keys[1:], value)
    if isinstance(content, Mapping):
        return {**content, keys[0]: new}
    items = [new if index == keys[0] else one for index, one in enumerate(content)]
    return tuple(items) if isinstance(content, tuple) else items


# What is said to the user.


def _refuse(source: Path, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(f"{source} has something without a counterpart:" + "".join(f"\n  {one}" for one in problems))


def _not_finite(tree: Any) -> list[str]:
    leaves = [(path_text(keys), leaf) for keys, leaf in leaves_with_path(tree)]
    return [
        f"{path} is infinite or NaN in places: the run has diverged"
        for path, leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all()
    ]


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's name in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


@contextlib.contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Turns warnings into notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    notes += [str(one.message) for one in caught if issubclass(one.category, UserWarning)]


def _wide() -> Any:
    return jax.enable_x64(True)


class _Progress:
    """A bar of the bytes read."""

    def __init__(self, saved: Checkpoint):
        self._sizes = [saved.model, *(e for o in saved.optimizers for e in o.state_dict["state"].values())]

    def __enter__(self) -> "_Progress":
        try:
            from tqdm import tqdm
        except ImportError:
            raise ImportError('converting needs tqdm, which is missing: pip install "linkax[checkpoints]"') from None
        total = sum(_size(one) for tensors in self._sizes for one in tensors.values())
        self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="converting", disable=None)
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def model(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tensors, each of which moves the bar when it is read."""
        return _Counted(tensors, self._bar.update)

    def state(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's state, likewise."""
        state = {key: _Counted(entry, self._bar.update) for key, entry in state_dict["state"].items()}
        return {**state_dict, "state": state}


class _Counted(Mapping[str, Any]):
    """A mapping that says how many bytes are read from it."""

    def __init__(self, inner: Mapping[str, Any], update: Callable[[int], Any]):
        self._inner, self._update = inner, update

    def __getitem__(self, name: str) -> Any:
        value = self._inner[name]
        self._update(_size(value))
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)

    def __contains__(self, name: object) -> bool:
        return name in self._inner


def _size(value: Any) -> int:
    if not is_tensor(value):
        return 0
    return math.prod(value.shape) * (value.element_size() if hasattr(value, "element_size") else value.dtype.itemsize)
