"""How PyTorch lays out the elements of a parameter, and which parameters need an explicit layout."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How to convert an array between the frameworks: a kernel, and its moments in the same way.

    Ready-made ones are `IDENTITY`, `LINEAR`, `CONV`, `CONV_TRANSPOSE`, `CONV_TRANSPOSE_KERNEL` and `HF_CONV1D`.

    Attributes:
        to_jax: Converts PyTorch's NumPy array to Flax's.
        to_torch: The inverse.
        is_flat: Whether PyTorch merges some of Flax's dimensions, such as heads and features of a head. What `to_jax`
            returns is then reshaped.

    Example:
        >>> import numpy as np
        >>> from linkax.chains.torch_interop import Layout
        >>> heads = Layout(lambda w: w.T.reshape(8, 2, 4), lambda w: w.reshape(8, 8).T)
        >>> heads.to_torch(heads.to_jax(np.ones((8, 8)))).shape
        (8, 8)
    """

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    is_flat: bool = False


def _flipped(w: np.ndarray) -> np.ndarray:
    """Reversed along all dimensions but the last two."""
    return np.flip(w, tuple(range(w.ndim - 2)))


IDENTITY = Layout(lambda w: w, lambda w: w)
"""The same elements in the same order: biases, norms, embeddings, and kernels that a module stores as PyTorch does."""

LINEAR = Layout(lambda w: np.moveaxis(w, (0, 1), (-1, -2)), lambda w: np.moveaxis(w, (-1, -2), (0, 1)))
"""`torch.nn.Linear`, (out, in), in `flax.linen.Dense`, (in, out)."""

CONV = LINEAR
"""`torch.nn.Conv1d` to `Conv3d`, (out, in, *space), in `flax.linen.Conv`, (*space, in, out); also with groups."""

CONV_TRANSPOSE = Layout(
    lambda w: _flipped(np.moveaxis(w, (0, 1), (-2, -1))), lambda w: np.moveaxis(_flipped(w), (-2, -1), (0, 1))
)
"""`torch.nn.ConvTranspose1d` to `3d`, (in, out, *space), in `flax.linen.ConvTranspose`, (*space, in, out): Flax slides
the kernel as is, PyTorch reversed."""

CONV_TRANSPOSE_KERNEL = Layout(lambda w: np.moveaxis(w, (0, 1), (-1, -2)), lambda w: np.moveaxis(w, (-1, -2), (0, 1)))
"""`torch.nn.ConvTranspose1d` to `3d`, (in, out, *space), in `flax.linen.ConvTranspose(transpose_kernel=True)`,
(*space, out, in)."""


def equinox_conv_transpose(groups: int = 1) -> Layout:
    """`torch.nn.ConvTranspose1d` to `3d`, (in, out / groups, *space), in Equinox's, (out, in / groups, *space).

    Args:
        groups: The number of groups of channels, 1 or more.

    Returns:
        The layout of the weight: Equinox slides it as is, PyTorch reversed.

    Example:
        >>> import numpy as np
        >>> from linkax.chains.torch_interop import equinox_conv_transpose
        >>> equinox_conv_transpose(groups=2).to_jax(np.ones((4, 3, 5))).shape
        (6, 2, 5)

    Source:
        `equinox.nn.ConvTranspose`.
    """

    def convert(w: np.ndarray) -> np.ndarray:
        reversed_ = np.flip(w, tuple(range(2, w.ndim)))
        grouped = reversed_.reshape(groups, w.shape[0] // groups, *w.shape[1:]).swapaxes(1, 2)
        return grouped.reshape(groups * w.shape[1], w.shape[0] // groups, *w.shape[2:])

    return Layout(convert, convert)


HF_CONV1D = IDENTITY
"""Hugging Face's `Conv1D` (GPT-2), (in, out), in `flax.linen.Dense`, (in, out); in their `FlaxConv1D`, (out, in), it is
`LINEAR`."""

FLAT = Layout(lambda w: w, lambda w: w.reshape(-1), is_flat=True)
"""A vector in an array of more dimensions: the biases of queries, (heads * features), in (heads, features); Equinox's
biases of convolutions, (out, 1, 1)."""


def _heads_merged(w: np.ndarray) -> np.ndarray:
    if w.ndim != 3:
        raise ValueError("it must have the dimensions features, heads, and features of a head")
    return w.reshape(w.shape[0], -1).T


HEADS = Layout(lambda w: w.T, _heads_merged, is_flat=True)
"""`torch.nn.Linear` that makes queries, keys or values, (heads * features, in), in Flax's attention, (in, heads,
features)."""

MERGED_HEADS = Layout(lambda w: w.T, lambda w: w.reshape(-1, w.shape[-1]).T, is_flat=True)
"""`torch.nn.Linear` behind an attention, (out, heads * features), in Flax's attention, (heads, features, out)."""

_READY = {
    "IDENTITY": IDENTITY,
    "LINEAR": LINEAR,
    "CONV": CONV,
    "CONV_TRANSPOSE": CONV_TRANSPOSE,
    "CONV_TRANSPOSE_KERNEL": CONV_TRANSPOSE_KERNEL,
    "FLAT": FLAT,
    "HEADS": HEADS,
    "MERGED_HEADS": MERGED_HEADS,
}


def default_layout(path: str, shape: tuple[int, ...]) -> Layout:
    """The layout of a parameter for which none is given."""
    leaf = path.rpartition("/")[2]
    if leaf == "bias" and len(shape) >= 2 and set(shape[1:]) == {1}:  # Equinox's convolutions
        return FLAT
    return CONV if leaf == "kernel" and len(shape) >= 2 else IDENTITY


def is_ambiguous(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a kernel is that of a transposed convolution, of which two layouts fit."""
    module, leaf = path.split("/")[-2:] if "/" in path else ("", path)
    return leaf == "kernel" and "ConvTranspose" in module and len(shape) >= 3 and shape[-1] == shape[-2]


def layout_name(layout: Layout) -> str:
    """The name of a ready-made layout."""
    return next((name for name, one in _READY.items() if one == layout), "Layout")


def fitting_layouts(theirs: tuple[int, ...], ours: tuple[int, ...]) -> list[str]:
    """The ready-made layouts that turn an array of PyTorch's shape into one of ours."""
    names = ["IDENTITY", "CONV", "CONV_TRANSPOSE", "CONV_TRANSPOSE_KERNEL"] if len(theirs) >= 2 else ["IDENTITY"]
    if len(theirs) == 2:  # without spatial dimensions, the others equal these two
        names = ["IDENTITY", "LINEAR"]
    found = [name for name in names if _shape(_READY[name].to_jax, theirs) == ours]
    flat = [name for name, layout in _READY.items() if layout.is_flat and len(ours) > len(theirs)]
    return found + [name for name in flat if _shape(_READY[name].to_torch, ours) == theirs]


def untold_siblings(shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Layout]) -> list[str]:
    """A warning for kernels that were left to the default although similar modules were given another layout.

    If both layouts fit, as they do for square kernels, only the similar modules show which is right.
    """
    others = {path: layout for path, layout in given.items() if layout != default_layout(path, shapes[path])}
    found: dict[str, str] = {}
    for path, shape in shapes.items():
        if path in given or len(shape) < 2:
            continue
        default = _shape(default_layout(path, shape).to_torch, shape)
        for told, layout in others.items():
            if _are_siblings(path, told) and _shape(layout.to_torch, shape) == default:
                found[path] = told
                break
    if not found:
        return []
    told = ", ".join(dict.fromkeys(found.values()))
    return [
        f"{', '.join(found)} used the default layout although {told} was given another one, and both fit: give "
        "all of them a layout with the argument layouts, by a pattern such as "
        f"{_pattern([*found, *found.values()])!r}"
    ]


def _shape(convert: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape after a conversion; `None` if the conversion, which may be the user's, fails."""
    try:
        return np.shape(convert(np.broadcast_to(np.zeros((), np.int8), shape)))
    except Exception:
        return None


def _are_siblings(path: str, other: str) -> bool:
    """Whether two parameters play the same role in similar modules: equal except for numbers, or with the same name."""
    if path.rpartition("/")[2] != other.rpartition("/")[2]:
        return False
    return _unnumbered(path) == _unnumbered(other) or _unnumbered(_module(path)) == _unnumbered(_module(other)) != ""


def _module(path: str) -> str:
    """The name of the module that a parameter belongs to."""
    return path.rpartition("/")[0].rpartition("/")[2]


def _unnumbered(text: str) -> str:
    return re.sub(r"[_.]?\d+", "", text)


def _pattern(paths: Sequence[str]) -> str:
    """A pattern for modules with one name."""
    modules = {_module(path) for path in paths}
    leaf = paths[0].rpartition("/")[2]
    name = modules.pop() if len(modules) == 1 else f"{_unnumbered(modules.pop())}*"
    return f"*/{name}/{leaf}"
