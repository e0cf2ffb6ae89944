"""How PyTorch lays out the elements of a parameter, and which parameters need an explicit layout."""

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How to convert an array between the frameworks: a kernel, and its moments in the same way.

    Ready-made ones are `IDENTITY`, `LINEAR`, `CONV`, `CONV_TRANSPOSE`, `CONV_TRANSPOSE_KERNEL` and `HF_CONV1D`.

    Attributes:
        to_jax: Converts PyTorch's NumPy array to Flax's.
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


Layouts = Mapping[str, Layout]
"""Layouts by the paths of parameters, or by patterns of paths, such as `"params/*/c_attn/kernel"`."""


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

HF_CONV1D = IDENTITY
"""Hugging Face's `Conv1D` (GPT-2), (in, out), in `flax.linen.Dense`, (in, out); in their `FlaxConv1D`, (out, in), it is
`LINEAR`."""

_READY = {
    "IDENTITY": IDENTITY,
    "LINEAR": LINEAR,
    "CONV": CONV,
    "CONV_TRANSPOSE": CONV_TRANSPOSE,
    "CONV_TRANSPOSE_KERNEL": CONV_TRANSPOSE_KERNEL,
}


def default_layout(path: str, shape: tuple[int, ...]) -> Layout:
    """The layout of a parameter for which none is given."""
    return CONV if path.rpartition("/")[2] == "kernel" and len(shape) >= 2 else IDENTITY


def given_layout(layouts: Layouts, path: str, problems: list[str]) -> Layout | None:
    """The layout that was given for a path: its own, or that of the pattern that it matches."""
    if path in layouts:
        return layouts[path]
    matching = [pattern for pattern in layouts if fnmatch.fnmatchcase(path, pattern)]
    if len({layouts[pattern] for pattern in matching}) > 1:
        problems.append(f"layouts has different ones for {path}: {', '.join(matching)}")
    return layouts[matching[0]] if matching else None


def output_axis(layouts: Layouts, path: str, leaf: Any) -> int:
    """Where the first axis of PyTorch's matrix is: the one that its Muon takes for the output's."""
    layout = _layout_of(layouts, path, leaf)
    return _single("output_axis", path, torch_axes(layout, leaf.shape)[:1])


def default_output_axis(path: str, leaf: Any) -> int:
    """`output_axis` without any layouts: a function with a name, so that chains with it are equal."""
    return output_axis({}, path, leaf)


def factored_axes(layouts: Layouts, path: str, leaf: Any) -> tuple[int, int] | None:
    """Where the last two axes of PyTorch's array are, which its Adafactor factors; `None` if that has only one axis."""
    theirs = torch_axes(_layout_of(layouts, path, leaf), leaf.shape)
    if len(theirs) < 2:
        return None
    return _single("axes", path, theirs[-2:-1]), _single("axes", path, theirs[-1:])


def default_factored_axes(path: str, leaf: Any) -> tuple[int, int] | None:
    """`factored_axes` without any layouts."""
    return factored_axes({}, path, leaf)


def _layout_of(layouts: Layouts, path: str, leaf: Any) -> Layout:
    problems: list[str] = []
    layout = given_layout(layouts, path, problems)
    if problems:
        raise ValueError(f"from_torch: {problems[0]}")
    return layout or default_layout(path, leaf.shape)


def _single(argument: str, path: str, axes: Sequence[Sequence[int]]) -> int:
    if len(axes) != 1 or len(axes[0]) != 1:
        raise ValueError(
            f"from_torch: {argument} of {path or 'the parameter'} must be one axis each, but its layout splits or "
            "joins PyTorch's; give the chain's link an axis of your own"
        )
    return axes[0][0]


def torch_axes(layout: Layout, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """For each axis of PyTorch's array, the axes along which its index changes in an array of this shape in JAX."""
    for probe in ((2,) * len(shape), shape):  # a layout that reshapes may take its own shape only
        theirs = torch_shape(layout, probe)
        if theirs is None:
            continue
        found = []
        for axis, size in enumerate(theirs):
            index = np.arange(size).reshape([size if one == axis else 1 for one in range(len(theirs))])
            try:
                moved = np.asarray(layout.to_jax(np.broadcast_to(index, theirs)))
            except Exception:  # the layout may be the user's
                break
            found.append(tuple(one for one in range(moved.ndim) if np.any(np.diff(moved, axis=one))))
        else:
            return found
    return []


def torch_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape in PyTorch of an array of this shape in JAX; `None` if the layout does not accept it."""
    return _shape(layout.to_torch, shape)


def unused_layouts(layouts: Layouts, paths: Sequence[str]) -> list[str]:
    """The paths and patterns that match no parameter."""
    return [one for one in layouts if one not in paths and not fnmatch.filter(paths, one)]


def fitting_layouts(theirs: tuple[int, ...], ours: tuple[int, ...]) -> list[str]:
    """The ready-made layouts that turn an array of PyTorch's shape into one of ours."""
    names = [name for name in _READY if name == "IDENTITY" or len(theirs) >= 2]
    if len(theirs) == 2:  # without spatial dimensions, the others equal these two
        names = ["IDENTITY", "LINEAR"]
    elif "LINEAR" in names:
        names.remove("LINEAR")
    return [name for name in names if _shape(_READY[name].to_jax, theirs) == ours]


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


def as_layouts(layouts: Any, problems: list[str]) -> Layouts:
    """The argument; entries that are not layouts are left out and added to the problems."""
    if layouts is None:
        return {}
    if not isinstance(layouts, Mapping):
        problems.append(f"layouts must be a dictionary from paths to layouts, got {layouts!r}")
        return {}
    wrong = {path: one for path, one in layouts.items() if not isinstance(path, str) or not isinstance(one, Layout)}
    problems += [f"layouts must have a Layout for {path!r}, got {one!r}" for path, one in wrong.items()]
    return {path: one for path, one in layouts.items() if path not in wrong}
