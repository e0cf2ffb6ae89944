"""What is in a PyTorch checkpoint: said before anything is converted, in parts that the other functions take."""

import dataclasses
import html
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._checkpoint_files import RawCheckpoint, is_tensor, lying_tensors, read_checkpoint, shown
from ._checkpoint_names import (
    class_told,
    clean_names,
    doubles,
    is_flat,
    named_groups,
    plain_number,
    removed_from,
    tied_names,
    unflattened,
)
from ._tensors import as_steps
from ._torch_groups import read_groups

Keys = tuple[Any, ...]
"""Where a part is: the keys and indices that lead to it."""

_MODELS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
_STEPS = ("global_step", "step", "iter_num", "iteration", "iter", "completed_steps", "num_updates")
_EPOCHS = ("epoch", "epochs", "current_epoch")
_DEEPEST = 5  # levels of containers around a part


@dataclasses.dataclass(frozen=True, repr=False)
class SavedOptimizer:
    """An optimizer of a checkpoint.

    Attributes:
        name: The name of its class, if its hyperparameters tell it; `None` otherwise. Older versions of PyTorch do not
            tell Adam from AdamW.
        param_groups: Its groups, for `from_torch((name, param_groups), ...)` and `torch_labels(param_groups)`.
        state_dict: All of it, for `import_state(tx, params, state_dict)` and as the template of `export_state`.
        has_names: Whether it names its parameters. If not, those functions need `order=`; see `optimizer_order`.
        keys: The keys and indices that lead to it.
    """

    name: str | None
    param_groups: list[dict[str, Any]]
    state_dict: dict[str, Any]
    has_names: bool
    keys: Keys

    def __repr__(self) -> str:
        groups, state = self.param_groups, self.state_dict["state"]
        sizes = [len(group["params"]) for group in groups]
        steps = {plain_number(entry["step"]) for entry in state.values() if is_plain(entry.get("step"))}
        counted = f", {min(steps):g} to {max(steps):g} steps" if len(steps) > 1 else ""
        counted = f", {steps.pop():g} steps" if len(steps) == 1 else counted
        kept = sorted({key for entry in state.values() for key in entry})
        idle = sum(sizes) - len(state)
        return (
            f"{class_told(groups)[1]}: {_count(sum(sizes), 'parameter')} in {_count(len(groups), 'group')}"
            + (f" ({', '.join(map(str, sizes))}), " if len(sizes) > 1 else ", ")
            + f"{'by name' if self.has_names else 'by index (order= is needed)'}; "
            f"{', '.join(map(shown, kept)) or 'no state'}{counted}"
            + (f"; {_count(idle, 'parameter')} never stepped" if state and idle else "")
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Checkpoint:
    """What `inspect_checkpoint` returns; it prints as a table.

    Attributes:
        kind: What it is: `"torch.save"`, `"Lightning 2.5.1"`, `"Hugging Face Trainer"`, `"safetensors"`, ...
        path: Where it is; `None` for a dictionary.
        model: The model's weights and buffers by name, without wrappers' prefixes: tensors or arrays, as
            `import_params` takes them. Of tensors that share their memory, only the first is here.
        tied: The names of the others, and the name of the first.
        optimizers: The optimizers, in the order of the file.
        schedulers: The state of each learning-rate scheduler, as PyTorch stored it.
        scaler: The state of a `GradScaler`, or `None`.
        averages: The state of an `AveragedModel`, without the wrappers' names inside it, or `None`.
        step: The number of steps that the file says have been taken, or `None`.
        epoch: The number of epochs that the file says, or `None`.
        removed: The prefixes that were removed from names.
        rest: Where everything else is.
        is_ordered: Whether the weights are in the model's order; safetensors files sort them.
        places: The keys and indices that lead to the model, the schedulers, the scaler and the averages.
        names: The names of the model's tensors in the file, by those in `model`.
    """

    kind: str
    path: Path | None
    model: dict[str, Any]
    tied: dict[str, str]
    optimizers: list[SavedOptimizer]
    schedulers: list[dict[str, Any]]
    scaler: dict[str, Any] | None
    averages: dict[str, Any] | None
    step: int | None
    epoch: float | None
    removed: list[str]
    rest: list[str]
    is_ordered: bool
    places: dict[str, Keys]
    names: dict[str, str]

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """The table: what it is, where it is, and what it has."""
        yield "checkpoint", shown(str(self.path)) if self.path else "", self.kind
        if self.model:
            yield "model", self._where("model"), _summary(self.model)
        for name in self.removed:
            yield "  without", shown(name), "removed from the names of weights and optimizers"
        for name, first in self.tied.items():
            yield "  tied", shown(name), f"is {shown(first)}"
        for optimizer in self.optimizers:
            yield "optimizer", _where(optimizer.keys), repr(optimizer)
        for index, scheduler in enumerate(self.schedulers):
            # How a schedule is described in words is said here alone.
            yield "scheduler", self._where(f"scheduler {index}"), _plain_text(scheduler)
        if self.scaler is not None:
            yield "scaler", self._where("scaler"), _plain_text(self.scaler)
        if self.averages is not None:
            yield "averages", self._where("averages"), _summary(self.averages)
        if self.step is not None:
            yield "step", "", f"{self.step:,}"
        if self.epoch is not None:
            yield "epoch", "", f"{self.epoch:g}"
        if self.rest:
            more = f", and {len(self.rest) - 12} more" if len(self.rest) > 12 else ""
            yield "left out", "", ", ".join(self.rest[:12]) + more

    def _where(self, part: str) -> str:
        return _where(self.places.get(part, ()))

    def __repr__(self) -> str:
        rows = list(self._rows())
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{what:<{widths[0]}}  {where:<{widths[1]}}  {has}".rstrip() for what, where, has in rows)

    def _repr_html_(self) -> str:
        cell = '<td style="text-align:left;white-space:pre-wrap">'
        rows = ("".join(f"{cell}{html.escape(text)}</td>" for text in row) for row in self._rows())
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def inspect_checkpoint(
    path: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any], *, model: str | None = None, strip: str = ""
) -> Checkpoint:
    """Says what is in a PyTorch checkpoint, and returns its parts as the other functions take them.

    It reads files of `torch.save` in whatever way they are nested; Lightning's `.ckpt`; folders of Hugging Face's
    Trainer and Accelerate, with weights in one file or in several; safetensors; the full optimizer state of FSDP and
    the flattened one of `torch.distributed.checkpoint`, by name. Prefixes of `DistributedDataParallel`,
    `torch.compile` and FSDP are removed from the names of weights and in optimizers. Tensors stay in the file until
    they are used, which must therefore not be changed meanwhile.

    No file is trusted: nothing is unpickled but through `torch.load(..., weights_only=True)`, and `training_args.bin`
    not at all.

    Args:
        path: The file or folder; or what `torch.load` has returned.
        model: Where the model is, if there are several: the keys that lead to it, with dots between them, such as
            `"generator"`.
        strip: A prefix of names to remove as well, such as the attribute that holds the network in a LightningModule:
            `"model."`.

    Returns:
        The parts, in a `Checkpoint` that prints as a table.

    Raises:
        ValueError: If it is no checkpoint, or broken, or if reading it would need to run code; the message names the
            file, and says what can be done. If there are several models and none is chosen; if no name has the prefix
            `strip`.
        ImportError: If a file needs PyTorch, and that is missing, or too old to be safe:
            `pip install "linkax[checkpoints]"`.

    Differences:
        `torch.load` returns whatever was saved, under the names that the wrappers gave it.

    Example:
        >>> import numpy as np
        >>> from linkax.chains.torch_interop import inspect_checkpoint
        >>> moments = {"step": 7.0, "exp_avg": np.ones((1, 3)), "exp_avg_sq": np.ones((1, 3))}
        >>> group = {"lr": 1e-3, "betas": (0.9, 0.99), "amsgrad": False, "decoupled_weight_decay": True}
        >>> saved = inspect_checkpoint(
        ...     {
        ...         "net": {"_orig_mod.fc.weight": np.ones((1, 3), np.float32)},
        ...         "optim": {"state": {"fc.weight": moments}, "param_groups": [{**group, "params": ["fc.weight"]}]},
        ...         "epoch": 2,
        ...     }
        ... )
        >>> saved
        checkpoint              dictionary
        model       net         1 tensor of 3 numbers, 12 B: float32
          without   _orig_mod.  removed from the names of weights and optimizers
        optimizer   optim       AdamW: 1 parameter in 1 group, by name; exp_avg, exp_avg_sq, step, 7 steps
        epoch                   2
        >>> list(saved.model), saved.optimizers[0].name
        (['fc.weight'], 'AdamW')

    Source:
        `torch.save`, `torch.optim.Optimizer.state_dict`, `torch.distributed.checkpoint.state_dict`;
        `lightning.pytorch.trainer.connectors.checkpoint_connector`; `transformers.Trainer._save_checkpoint`.
    """
    where = None
    if isinstance(path, str | os.PathLike):
        where = Path(path)
        raw = read_checkpoint(where)
    elif isinstance(path, Mapping | list | tuple):
        raw = RawCheckpoint("dictionary" if isinstance(path, Mapping) else type(path).__name__, path, True)
    else:
        raise TypeError(f"inspect_checkpoint: path must be a path or a dictionary, got {path!r}")
    try:
        return _sorted(raw, where, model, strip)
    except ValueError as error:
        named = f"inspect_checkpoint: {where}: " if where else "inspect_checkpoint: "
        raise ValueError(named + str(error).removeprefix("inspect_checkpoint: ")) from None


def _sorted(raw: RawCheckpoint, path: Path | None, model: str | None, strip: str) -> Checkpoint:
    """The parts of what was read."""
    problems: list[str] = []
    parts = list(_parts(raw.content))
    models = {keys: value for kind, keys, value in parts if kind == "model"}
    chosen = _chosen(models, model, problems)
    weights = models.get(chosen, {}) if chosen is not None else {}
    weights = {name: tensor for name, tensor in weights.items() if is_tensor(tensor)}
    cleaned = clean_names(weights, strip)
    problems += doubles(cleaned)
    problems += lying_tensors(weights)
    tied = tied_names(weights)
    optimizers = [_optimizer(keys, value, strip, problems) for kind, keys, value in parts if kind == "optimizer"]
    if strip and not any(cleaned[name] != own for name, own in clean_names(weights).items()):
        problems.append(f"strip must be a prefix of some names, got {strip!r}: they are {_some(cleaned.values())}")
    schedulers = [(keys, dict(value)) for kind, keys, value in parts if kind == "scheduler"]
    scalers, averages = ([(keys, value) for k, keys, value in parts if k == kind] for kind in ("scaler", "averages"))
    for keys, value in averages:
        problems += (f"{_where(keys)}: {one}" for one in lying_tensors(value))
    numbers = raw.content if isinstance(raw.content, Mapping) else {}
    step, epoch = _number(numbers, _STEPS, problems), _number(numbers, _EPOCHS, problems)
    if step is not None:
        step = as_steps("step", step, problems)
    if not parts:
        problems.append(f"it has neither weights nor an optimizer: {_contents(raw.content)}")
    if problems:
        raise ValueError(
            "it must be clear what its parts are:" + "".join(f"\n  {one}" for one in dict.fromkeys(problems))
        )
    places: dict[str, Keys] = {f"scheduler {index}": keys for index, (keys, _) in enumerate(schedulers)}
    places |= {name: every[0][0] for name, every in (("scaler", scalers), ("averages", averages)) if every}
    if chosen is not None:
        places["model"] = chosen
    used = {*places.values(), *(optimizer.keys for optimizer in optimizers)}
    others = [keys for kind, keys, _ in parts if keys not in used]
    return Checkpoint(
        kind=raw.kind,
        path=path,
        model={cleaned[name]: tensor for name, tensor in weights.items() if name not in tied},
        tied={cleaned[name]: cleaned[first] for name, first in tied.items()},
        optimizers=optimizers,
        schedulers=[value for _, value in schedulers],
        scaler=dict(scalers[0][1]) if scalers else None,
        averages=_averages_of(averages[0][1], strip) if averages else None,
        step=step,
        epoch=epoch,
        removed=removed_from(cleaned),
        rest=[_where(keys) for keys in others] + _left_out(numbers, [*used, *others]),
        is_ordered=raw.is_ordered,
        places=places,
        names={own: name for name, own in cleaned.items()},
    )


def _averages_of(given: Mapping[str, Any], strip: str) -> dict[str, Any]:
    """The state of an `AveragedModel`, whose own `module.` stays in front of the model's names."""
    cleaned = clean_names((name for name in given if name != "n_averaged"), strip)
    return {name if name == "n_averaged" else f"module.{cleaned[name]}": value for name, value in given.items()}


def _parts(value: Any, keys: Keys = (), seen: set[int] | None = None) -> Iterator[tuple[str, Keys, Mapping[str, Any]]]:
    """The parts of a checkpoint, wherever they are in it."""
    seen = set() if seen is None else seen
    if not isinstance(value, Mapping | list | tuple) or id(value) in seen or len(keys) > _DEEPEST:
        return
    seen.add(id(value))  # a container may be in several places, even in itself
    kind = _kind(value) if isinstance(value, Mapping) else None
    if kind is not None:
        yield kind, keys, value  # type: ignore[misc]
        return
    for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _parts(one, (*keys, key), seen)


def _kind(value: Mapping[Any, Any]) -> str | None:
    """Which part of a checkpoint a dictionary is, by the names in it."""
    if {"state", "param_groups"} <= value.keys() or is_flat(value):
        return "optimizer"
    if {"growth_factor", "backoff_factor", "growth_interval"} <= value.keys():
        return "scaler"
    if "last_epoch" in value and not {"_last_lr", "_step_count", "base_lrs", "num_bad_epochs"}.isdisjoint(value):
        return "scheduler"
    if "_schedulers" in value:
        return "scheduler"
    tensors = [one for one in value.values() if is_tensor(one)]
    if not tensors or not all(isinstance(key, str) for key in value):
        return None
    if "n_averaged" in value:
        return "averages"
    rest = [key for key, one in value.items() if not is_tensor(one) and not key.endswith("_extra_state")]
    return "model" if not rest and any(len(one.shape) for one in tensors) else None


def _chosen(models: Mapping[Keys, Any], model: str | None, problems: list[str]) -> Keys | None:
    """Where the model is: the only one, or the one that is chosen, or the one with the usual name."""
    if model is not None:
        found = [keys for keys in models if _where(keys) == model]
        if not found:
            problems.append(f"model must be one of {_some(map(_where, models))}, got {model!r}")
        return found[0] if found else None
    if len(models) <= 1:
        return next(iter(models), None)
    usual = [keys for keys in models if keys and keys[-1] in _MODELS and len(keys) == min(map(len, models))]
    if len(usual) != 1:
        problems.append(f"model must say which of the models is meant: {_some(map(_where, models))}")
        return None
    return usual[0]


def _optimizer(keys: Keys, value: Mapping[str, Any], strip: str, problems: list[str]) -> SavedOptimizer:
    """An optimizer, its parameters by name if they have any."""
    own: list[str] = []
    given = unflattened(value, own) if is_flat(value) else value
    groups = named_groups(read_groups(given["param_groups"], own), strip, own)
    state = given["state"]
    if not isinstance(state, Mapping) or not all(isinstance(entry, Mapping) for entry in state.values()):
        own.append("'state' must be a dictionary of the parameters' states")
        state = {}
    for key, entry in state.items():
        own += lying_tensors({f"{what} of {key}": tensor for what, tensor in entry.items()})
    problems += (f"{_where(keys)}: {one}" for one in own)
    name = None if own else class_told(groups)[0]
    has_names = bool(groups) and all("param_names" in group for group in groups)
    return SavedOptimizer(name, groups, {"state": dict(state), "param_groups": groups}, has_names, keys)


def _number(content: Mapping[Any, Any], names: Sequence[str], problems: list[str]) -> Any:
    """The first of some numbers that the file has."""
    for name in names:
        value = plain_number(content.get(name))
        if is_plain(value):
            if not math.isfinite(value) or value < 0:
                problems.append(f"{name} must be a number of at least 0, got {value}")
                return None
            return value
    return None


def is_plain(value: Any) -> bool:
    """Whether a value is one number."""
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or value.bit_length() <= 64  # a pickle may hold integers of any length


def _summary(tensors: Mapping[str, Any]) -> str:
    """How many tensors there are, how large they are, and of which dtypes."""
    every = [one for one in tensors.values() if is_tensor(one)]
    numbers = sum(math.prod(one.shape) for one in every)
    size = sum(math.prod(one.shape) * _itemsize(one) for one in every)
    dtypes = dict.fromkeys(str(one.dtype).removeprefix("torch.") for one in every)
    return f"{_count(len(every), 'tensor')} of {numbers:,} numbers, {_bytes(size)}: {', '.join(dtypes)}"


def _itemsize(tensor: Any) -> int:
    return tensor.element_size() if hasattr(tensor, "element_size") else tensor.dtype.itemsize


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _plain_text(content: Mapping[Any, Any]) -> str:
    """The numbers of a small dictionary."""
    texts = [f"{shown(key)}={plain_number(value)}" for key, value in content.items() if is_plain(value)]
    return ", ".join(texts[:8])


def _where(keys: Keys) -> str:
    return shown(".".join(map(str, keys)))


def _some(texts: Any) -> str:
    every = [shown(text) for text in texts]
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "") if every else "none"


def _contents(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary of {_some(map(str, content))}"
    return f"a {type(content).__name__}"


def _left_out(content: Mapping[Any, Any], used: Sequence[Keys]) -> list[str]:
    """The names at the top that are no part, hold none, and are not the step or the epoch."""
    heads = {keys[0] for keys in used if keys}
    if () in used:
        return []
    return [shown(str(key)) for key in content if key not in heads and key not in (*_STEPS, *_EPOCHS)]
