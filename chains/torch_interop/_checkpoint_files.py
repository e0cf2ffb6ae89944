"""The files of checkpoints, read without running anything that is in them.

A checkpoint comes from elsewhere, and Python's pickle runs whatever a file says. So pickles are only read through
`torch.load(..., weights_only=True)`, which knows tensors and plain containers and nothing else, and only in a version
of PyTorch where that holds. Everything else is JSON or safetensors. Whatever is wrong with a file is one ValueError
that names it.

Tensors stay in their files, mapped into memory, until somebody uses them. The safetensors format is so simple (a
length, a JSON header, the bytes) that it is read here: its own NumPy reader copies.
"""

import contextlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
_FIRST_SAFE = (2, 6)  # PyTorch before that ran code from some files in spite of weights_only=True (CVE-2025-32434)

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin")
_ARGUMENTS = "training_args.bin"  # a pickle of a Python object: never opened


class RawCheckpoint(NamedTuple):
    """What the files of a checkpoint hold."""

    kind: str  # "torch.save", "folder", ...
    content: Any
    is_ordered: bool  # whether the names of the weights are in the model's order; safetensors sorts them


def read_checkpoint(path: Path) -> RawCheckpoint:
    """Reads a file or a folder.

    Raises:
        ValueError: If it is none that is known, or broken, or not safe to read. The message names the file.
        ImportError: If it needs PyTorch, and that is missing.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise _refused(path, "there is no such file or folder")
    if not path.is_file():
        raise _refused(path, "it is neither a file nor a folder")
    if path.suffix == ".safetensors":
        return RawCheckpoint("safetensors", read_safetensors(path), False)
    content = read_torch(path)
    is_lightning = isinstance(content, Mapping) and "pytorch-lightning_version" in content
    version = str(content["pytorch-lightning_version"])[:20] if is_lightning else ""
    return RawCheckpoint(f"Lightning {version}" if is_lightning else "torch.save", content, True)


def _refused(path: Path, why: str) -> ValueError:
    return ValueError(f"inspect_checkpoint: path must be a checkpoint that can be read safely, got {path}: {why}")


# PyTorch's files.


def read_torch(path: Path) -> Any:
    """The content of a file of `torch.save`, its tensors mapped into memory."""
    try:
        import torch
    except ImportError:
        raise ImportError(f'{path} is read with PyTorch, which is missing: pip install "linkax[checkpoints]"') from None
    numbers = [int(number) for number in re.findall(r"\d+", torch.__version__)[:2]]
    if tuple(numbers) < _FIRST_SAFE:
        raise ImportError(
            f"{path} must be read with PyTorch 2.6 or newer, got {torch.__version__}: older versions run code from "
            "some files in spite of weights_only=True"
        )
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # whatever a broken file leads to
        raise _refused(path, _why_not(path, error, is_archive)) from error


def _check_archive(path: Path) -> None:
    """Rejects archives that PyTorch does not write: compressed ones, which may be larger than they look."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise _refused(path, f"it is broken or incomplete ({error})") from error
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise _refused(path, "it is a TorchScript program, not a checkpoint; save its model.state_dict()")
    if "data.pkl" not in names:
        raise _refused(path, "it is an archive, but not one of torch.save")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _refused(path, "it is compressed, which torch.save never does; unpack it and save it again")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _refused(path, "its entries are declared larger than the file")


def _why_not(path: Path, error: Exception, is_archive: bool) -> str:
    """What is wrong with a file, and what its owner can do about it."""
    globals_: list[str] = []
    if "weights_only" in str(error) or "Weights only" in str(error) or "Unsupported" in str(error):
        globals_ = re.findall(r"(?i)unsupported (?:global: )?global (\S+)", str(error))
        if is_archive:
            import torch

            with contextlib.suppress(Exception):  # the file may be broken in other ways, too
                globals_ = torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) or globals_
    if not globals_:
        text = " ".join(str(error).split())
        text = text.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
        return f"torch.load(..., weights_only=True) cannot read it ({type(error).__name__}: {text[:300]})"
    names = ", ".join(shown(name) for name in sorted(set(globals_)))
    return (
        f"besides tensors and plain containers it has {names}, which only run when the file is unpickled. If you made "
        "the file, save tensors and numbers alone: {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}. "
        "If you trust these names, allow them: with torch.serialization.safe_globals([...]): inspect_checkpoint(path)"
    )


# Safetensors.


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, as views of the file.

    Source:
        The format: https://github.com/huggingface/safetensors#format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise _refused(path, f"its header of {length} bytes is longer than the file, or than the format allows")
        header = _json(path, file.read(length))
    if not isinstance(header, dict):
        raise _refused(path, "its header must be a JSON object")
    header.pop("__metadata__", None)
    room = size - 8 - length
    spans: list[tuple[int, int]] = []
    found: dict[str, np.ndarray] = {}
    data = np.asarray(np.memmap(path, np.uint8, "r", offset=8 + length)) if room else np.zeros(0, np.uint8)
    for name, entry in header.items():
        dtype, shape, (begin, end) = _entry(path, name, entry)
        if end > room or end - begin != math.prod(shape) * dtype.itemsize:
            raise _refused(
                path, f"{shown(name)} is declared as {dtype.name} of the shape {shape}, in the bytes {begin} to {end}"
            )
        spans.append((begin, end))
        found[name] = data[begin:end].view(dtype).reshape(shape)
    ends = [0, *(end for _, end in sorted(spans))]
    if [begin for begin, _ in sorted(spans)] != ends[:-1] or ends[-1] != room:
        raise _refused(path, "its tensors must fill the file, without holes or overlaps: it is incomplete or damaged")
    return found


def _entry(path: Path, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    """The dtype, the shape and the bytes of a tensor."""
    given = entry if isinstance(entry, dict) else {}
    shape, offsets = given.get("shape"), given.get("data_offsets")
    is_list = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not is_list or not all(type(one) is int and 0 <= one < 2**63 for one in [*shape, *offsets]):  # type: ignore
        raise _refused(path, f"{shown(name)} must have a shape and two data_offsets")
    if not isinstance(given.get("dtype"), str) or given["dtype"] not in _DTYPES:
        raise _refused(path, f"{shown(name)} is of {shown(given.get('dtype'))}, which NumPy cannot hold")
    assert shape is not None
    assert offsets is not None
    return np.dtype(_DTYPES[given["dtype"]]), tuple(shape), (offsets[0], offsets[1])


# Folders.


def _read_folder(path: Path) -> RawCheckpoint:
    """A folder of Hugging Face's Trainer or Accelerate."""
    names = {one.name for one in path.iterdir()}
    if ".metadata" in names:
        raise _refused(
            path,
            "it is a checkpoint of torch.distributed, whose .metadata is a pickle that would run code. If you made it, "
            "convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt",
        )
    if "_CHECKPOINT_METADATA" in names or "_METADATA" in names:
        raise _refused(path, "it is an Orbax checkpoint, not one of PyTorch's; the command `convert` reads it")
    found: dict[str, Any] = {}
    weights, is_ordered = _read_weights(path, names)
    if weights is not None:
        found["model"] = weights
    for part in ("optimizer", "scheduler", "scaler"):
        for name in sorted(names):
            if re.fullmatch(rf"{part}(_\d+)?\.(pt|bin)", name):
                found[name.partition(".")[0]] = read_torch(path / name)
    if not found:
        within = sorted((name for name in names if re.fullmatch(r"checkpoint-\d+", name)), key=lambda n: int(n[11:]))
        if within:
            raise _refused(path, f"it has several checkpoints: give one, such as {path / within[-1]}")
        if "latest" in names or any(re.fullmatch(r"global_step\d+", name) for name in names):
            raise _refused(path, "it is one of DeepSpeed's; its zero_to_fp32.py makes a file of the weights")
        raise _refused(path, f"it has no checkpoint ({', '.join(sorted(names)[:8]) or 'it is empty'})")
    if "trainer_state.json" in names:
        found |= _trainer_state(path / "trainer_state.json")
    kind = "Hugging Face Trainer" if {"trainer_state.json", _ARGUMENTS} & names else "folder"
    return RawCheckpoint(kind, found, is_ordered)


def _trainer_state(path: Path) -> dict[str, Any]:
    state = _read_json(path)
    if not isinstance(state, dict):
        raise _refused(path, "it must be a JSON object")
    return {name: state[key] for key, name in (("global_step", "step"), ("epoch", "epoch")) if key in state}


def _read_weights(path: Path, names: set[str]) -> tuple[dict[str, Any] | None, bool]:
    """The weights in a folder, of one file or several; `None` if there are none."""
    for name in _WEIGHTS:
        is_torch = name.endswith(".bin")
        read: Callable[[Path], Any] = read_torch if is_torch else read_safetensors
        if name in names:
            return _mapping(path / name, read(path / name)), is_torch
        if f"{name}.index.json" in names:
            return _read_shards(path, path / f"{name}.index.json", Path(name).suffix, read), is_torch
    return None, True


def _mapping(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise _refused(path, f"it must have weights by name, got a {type(content).__name__}")
    return dict(content)


def _read_shards(folder: Path, index: Path, suffix: str, read: Callable[[Path], Any]) -> dict[str, Any]:
    """The weights of several files, which an index lists."""
    content = _read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _refused(index, "it must have a weight_map from names to files")
    for file in weight_map.values():
        # Nothing outside of the folder: no ../x, no /x, no C:x. The files may be links, as in Hugging Face's cache.
        if not isinstance(file, str) or not re.fullmatch(r"[\w-][\w.-]*", file) or not file.endswith(suffix):
            raise _refused(index, f"it must name {suffix} files in its folder, got {shown(file)}")
    found: dict[str, Any] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file():
            raise _refused(index, f"it names {shown(file)}, which is missing")
        shard = _mapping(folder / file, read(folder / file))
        listed = {name for name, where in weight_map.items() if where == file}
        if listed != shard.keys():
            apart = ", ".join(shown(name) for name in sorted(map(str, listed ^ shard.keys()))[:5])
            raise _refused(index, f"it and {file} disagree about {apart}")
        found |= shard
    return found


def _read_json(path: Path) -> Any:
    try:
        return _json(path, path.read_bytes())
    except OSError as error:
        raise _refused(path, str(error)) from error


def _json(path: Path, text: bytes) -> Any:
    """JSON without names that occur twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"it must be JSON ({error})") from error


# Tensors.


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of PyTorch or an array."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def lying_tensors(tensors: Mapping[str, Any]) -> Iterator[str]:
    """The tensors that repeat a few numbers of their file, so that a small file may declare any size."""
    for name, tensor in tensors.items():
        if not hasattr(tensor, "untyped_storage") or str(getattr(tensor, "layout", "")) != "torch.strided":
            continue
        if getattr(tensor, "is_meta", False):
            yield f"{shown(name)} has a shape, but no values"
        elif tensor.numel() * tensor.element_size() > (has := tensor.untyped_storage().nbytes()):
            yield f"{shown(name)} is declared with the shape {tuple(tensor.shape)}, but the file has {has} bytes for it"


def shown(value: Any) -> str:
    """A name from the file, in few words and without control characters, which could change a terminal."""
    text = value if isinstance(value, str) else repr(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 80 else f"{text[:77]}..."
