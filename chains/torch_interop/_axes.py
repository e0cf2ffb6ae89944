"""Where the axes of PyTorch's arrays are: its Muon and Adafactor do not treat all of them alike."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from linkax.transforms import Link

from ._layouts import Layout, default_layout
from ._modules import TORCH_NN
from ._names import Place
from ._rules import Layouts, Rule, Stacked, Tied


def output_axis(layouts: Layouts, path: str, leaf: Any) -> int:
    """Where the first axis of PyTorch's matrix is: the one that its Muon takes for the output's."""
    layout = _layout_of(layouts, path, leaf)
    return _single("output_axis", path, _torch_axes(layout, leaf.shape)[:1])


def default_output_axis(path: str, leaf: Any) -> int:
    """`output_axis` without any layouts: a function with a name, so that chains with it are equal."""
    return output_axis({}, path, leaf)


def factored_axes(layouts: Layouts, path: str, leaf: Any) -> tuple[int, int] | None:
    """Where the last two axes of PyTorch's array are, which its Adafactor factors; `None` if that has only one axis."""
    if len(leaf.shape) < 2:
        return None
    theirs = _torch_axes(_layout_of(layouts, path, leaf), leaf.shape)
    if len(theirs) < 2:
        return None
    return _single("axes", path, theirs[-2:-1]), _single("axes", path, theirs[-1:])


def default_factored_axes(path: str, leaf: Any) -> tuple[int, int] | None:
    """`factored_axes` without any layouts."""
    return factored_axes({}, path, leaf)


def check_output_axes(links: Iterable[Link], places: Iterable[Place], problems: list[str]) -> None:
    """Adds a problem if links such as Muon's take another axis for the output's than PyTorch, which takes the first."""
    axes = [link.hyperparams["output_axis"] for link in links if "output_axis" in link.hyperparams]
    for whole, part in places if axes else ():
        path, shape = whole.use.paths[part], whole.shapes[part]
        theirs = _torch_axes(whole.use.what, shape)[:1] if isinstance(whole.use.what, Layout) and whole.is_plain else []
        if [len(one) for one in theirs] != [1]:
            problems.append(f"{path} must be a whole tensor of PyTorch's for Muon, got {whole.use.name}")
            continue
        leaf = jax.ShapeDtypeStruct(shape, np.float32)
        ours = {_read(axis, path, leaf) % len(shape) for axis in axes}
        if ours != {theirs[0][0]}:
            chains = ", ".join(map(str, ours))
            problems.append(
                f"{path} has its outputs along axis {theirs[0][0]} by its layout, and along {chains} by the chain's "
                "output_axis: from_torch takes the same layouts"
            )


def _read(axis: Any, path: str, leaf: Any) -> Any:
    return axis(path, leaf) if callable(axis) else axis


def _layout_of(layouts: Layouts, path: str, leaf: Any) -> Layout:
    """The layout of a leaf that is a whole tensor of PyTorch's."""
    patterns = [path] if path in layouts else [one for one in layouts if fnmatch.fnmatchcase(path, one)]
    given = [one for pattern in patterns for one in _members(layouts[pattern]) if isinstance(one, Layout | Tied)]
    if given:
        return given[0].layout if isinstance(given[0], Tied) else given[0]
    for pattern, entry in (*layouts.items(), *TORCH_NN.items()):
        for rule in _members(entry):
            if isinstance(rule, Rule | Stacked) and _has(rule, pattern, path):
                raise ValueError(
                    f"from_torch: {path} must be a whole tensor of PyTorch's, whose Muon and Adafactor do not act on "
                    f"elements one by one, but it may be a part of one ({rule!r}); if it is whole, give it a Layout"
                )
    return default_layout(path, leaf.shape)


def _members(entry: Any) -> Sequence[Any]:
    return entry if isinstance(entry, tuple) and not isinstance(entry, Layout) else (entry,)


def _has(rule: Rule | Stacked, pattern: str, path: str) -> bool:
    """Whether a rule for the modules of a pattern is for this leaf, too."""
    words = path.split("/")
    for count in range(len(words)):
        module, leaf = "/".join(words[:count]), "/".join(words[count:])
        if module == pattern or fnmatch.fnmatchcase(module, pattern):
            if isinstance(rule, Stacked):
                return True
            if any(leaf in block.leaves for blocks in rule.variants for block in blocks):
                return True
    return False


def _single(argument: str, path: str, axes: Sequence[Sequence[int]]) -> int:
    if len(axes) != 1 or len(axes[0]) != 1:
        raise ValueError(
            f"from_torch: {argument} of {path or 'the parameter'} must be one axis each, but its layout splits or "
            "joins PyTorch's; give the chain's link an axis of your own"
        )
    return axes[0][0]


def _torch_axes(layout: Layout, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """For each axis of PyTorch's array, the axes along which its index changes in an array of this shape in JAX."""
    for probe in ((2,) * len(shape), shape):  # a layout that reshapes may take its own shape only
        try:
            theirs = np.shape(layout.to_torch(np.broadcast_to(np.zeros((), np.int8), probe)))
            found = []
            for axis, size in enumerate(theirs):
                index = np.arange(size).reshape([size if one == axis else 1 for one in range(len(theirs))])
                moved = np.asarray(layout.to_jax(np.broadcast_to(index, theirs)))
                if layout.is_flat:
                    moved = moved.reshape(probe)
                found.append(tuple(one for one in range(moved.ndim) if np.any(np.diff(moved, axis=one))))
        except Exception:  # the layout may be the user's
            continue
        return found
    return []
