"""MNIST is read from all the forms it comes in, and what is not MNIST is refused."""

import gzip

import numpy as np
import pytest
from _mnist import IDX_NAMES, NPZ_NAMES, mnist

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)
ARRAYS = [IMAGES, LABELS, IMAGES[:2], LABELS[:2]]


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_npz(folder):
    np.savez(folder / "mnist.npz", **dict(zip(NPZ_NAMES, ARRAYS)))
    return folder / "mnist.npz"


def write_idx(folder):
    for name, array in zip(IDX_NAMES, ARRAYS):
        (folder / name).write_bytes(idx(array))
    return folder


def write_gzipped_idx(folder):
    for name, array in zip(IDX_NAMES, ARRAYS):
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return folder


@pytest.mark.parametrize("write", [write_npz, write_idx, write_gzipped_idx])
def test_reads(write, tmp_path):
    data = mnist(write(tmp_path))
    np.testing.assert_allclose(data.x, IMAGES.reshape(5, 784) / np.float32(255), rtol=1e-7)  # one rounding in float32
    np.testing.assert_array_equal(data.y, LABELS)
    assert data.x_test.shape == (2, 784)
    assert data.y_test.tolist() == [3, 1]


def test_refuses_what_is_not_mnist(tmp_path):
    with pytest.raises(ValueError, match="mnist: path must be an npz file or a folder with train-images"):
        mnist(tmp_path)
    write_idx(tmp_path)
    whole = (tmp_path / IDX_NAMES[0]).read_bytes()
    for broken in (whole[:-1], whole[:3], b"", bytes([0, 0, 9]) + whole[3:]):
        (tmp_path / IDX_NAMES[0]).write_bytes(broken)
        with pytest.raises(ValueError, match="mnist: train-images-idx3-ubyte must be an IDX file of unsigned bytes"):
            mnist(tmp_path)
    (tmp_path / IDX_NAMES[0]).write_bytes(idx(IMAGES[:4]))
    with pytest.raises(ValueError, match=r"mnist: path must hold images .* got \(4, 28, 28\), \(5,\)"):
        mnist(tmp_path)


def test_refuses_another_npz(tmp_path):
    np.savez(tmp_path / "other.npz", x_train=IMAGES)
    (tmp_path / "text.npz").write_text("no npz")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ValueError, match=f"mnist: path must be an npz file with x_train, .*{name}"):
            mnist(tmp_path / name)
