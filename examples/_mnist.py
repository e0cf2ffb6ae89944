"""MNIST from files that the user has, as `compare_optimizers.py` takes it: the four IDX files, or Keras's mnist.npz."""

import gzip
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from _training import Data

NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
UNSIGNED_BYTE = 8


def mnist(path: Path) -> Data:
    """Reads an npz file with NPZ_NAMES, or a folder with IDX_NAMES, gzipped (`.gz`) or not.

    Raises:
        ValueError: If the files are not there or hold something else.
    """
    arrays = _npz(path) if path.is_file() else [_idx(path, name) for name in IDX_NAMES]
    x, y, x_test, y_test = arrays
    for images, labels in ((x, y), (x_test, y_test)):
        if images.ndim != 3 or labels.shape != images.shape[:1] or len(images) == 0:
            raise ValueError(
                f"mnist: path must hold images (n, height, width) and labels (n,), got {images.shape}, {labels.shape}"
            )
    x, x_test = (images.reshape(len(images), -1).astype(np.float32) / 255 for images in (x, x_test))
    return Data(jnp.asarray(x), jnp.asarray(y, jnp.int32), jnp.asarray(x_test), jnp.asarray(y_test, jnp.int32))


def _npz(path: Path) -> list[np.ndarray]:
    try:
        with np.load(path) as file:
            return [file[name] for name in NPZ_NAMES]
    except (ValueError, KeyError) as error:
        raise ValueError(f"mnist: path must be an npz file with {', '.join(NPZ_NAMES)}, got {path}") from error


def _idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file: two zero bytes, the type, the number of dimensions, each of them in four bytes, and the data."""
    found = [folder / (name + end) for end in ("", ".gz") if (folder / (name + end)).is_file()]
    if not found:
        raise ValueError(f"mnist: path must be an npz file or a folder with {name} (or {name}.gz), got {folder}")
    raw = gzip.decompress(found[0].read_bytes()) if found[0].suffix == ".gz" else found[0].read_bytes()
    start = 4 + 4 * raw[3] if len(raw) >= 4 else 4
    shape = np.frombuffer(raw[4:start], ">u4")
    if raw[:3] != bytes([0, 0, UNSIGNED_BYTE]) or len(raw) != start + shape.prod(dtype=int):
        raise ValueError(f"mnist: {name} must be an IDX file of unsigned bytes, whole and unpacked, got {found[0]}")
    return np.frombuffer(raw[start:], np.uint8).reshape(shape)
