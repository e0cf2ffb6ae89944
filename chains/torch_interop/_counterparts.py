"""Some leaves and the tensors of PyTorch's that hold the same numbers, and the conversion of arrays between them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..running._devices import whole
from ._layouts import Layout, fitting_layouts
from ._matching import Use
from ._rules import Block, Shape, hollow


class Counterpart(NamedTuple):
    """Some leaves, and the tensors of PyTorch's that hold the same numbers."""

    use: Use
    shapes: tuple[Shape, ...]  # of the leaves
    are_complex: tuple[bool, ...]
    layers: tuple[tuple[tuple[str, ...], ...], ...]  # for each layer, the names of each of the layer's tensors
    group: int | None  # PyTorch's; None if it has none of the tensors

    @property
    def names(self) -> tuple[str, ...]:
        """PyTorch's names of all tensors."""
        return tuple(name for layer in self.layers for tensor in layer for name in tensor)

    @property
    def text(self) -> str:
        """The leaves, in messages."""
        return ", ".join(self.use.paths)

    def to_jax(
        self,
        read: Callable[[str], np.ndarray | None],
        problems: list[str],
        *,
        key: str = "",
        are_weights: bool = True,
        shapes: Sequence[Shape] | None = None,
    ) -> list[np.ndarray | None]:
        """The leaves' arrays, from PyTorch's; mismatches are added to the problems.

        Args:
            read: Returns PyTorch's array of a name, or `None` if there is none.
            problems: Where what does not fit goes.
            key: PyTorch's name for what the arrays are, if they are from an optimizer's state: `"exp_avg"`.
            are_weights: Whether they are the weights, or averages of them.
            shapes: The leaves' shapes, if they are not those of the weights.

        Returns:
            The arrays; each is `None` if there is nothing, or if there is a problem.
        """
        nothing: list[np.ndarray | None] = [None] * len(self.shapes)
        given = [[self._one(names, read, key, problems) for names in layer] for layer in self.layers]
        missing = [names[0] for layer, own in zip(self.layers, given) for names, one in zip(layer, own) if one is None]
        if missing:
            if len(missing) < sum(map(len, self.layers)):
                problems.append(f"{_of(key, ', '.join(missing))} is missing, but {self.text} needs all of its parts")
            return nothing
        wanted = self.shapes if shapes is None else tuple(shapes)
        if wanted != self.shapes and not self.is_plain:
            problems.append(self.cannot_be_factored(key))
            return nothing
        layers: list[list[np.ndarray]] = []
        for names, own in zip(self.layers, given):
            block = self._block(are_weights)
            one = self._layer(block, names, [array for array in own if array is not None], key, wanted, problems)
            if one is None:
                return nothing
            layers.append(one)
        if self.use.stack is None:
            return list(layers[0])
        return [np.stack([layer[index] for layer in layers], self.use.stack[1]) for index in range(len(self.shapes))]

    @property
    def nothing(self) -> str:
        """That PyTorch does not have it."""
        leaves = ", ".join(f"{path} {shape}" for path, shape in zip(self.use.paths, self.shapes))
        names = ", ".join(f"{name} {shape}" for name, shape in self.torch_shapes.items()) or ", ".join(self.names)
        return f"PyTorch has nothing for {leaves}: no {names}"

    def cannot_be_factored(self, key: str) -> str:
        """That a moment is factored, and the rule does not know how to convert that."""
        return (
            f"{_of(key, self.names[0])} is factored, and {self.use.name} cannot convert it to {self.text}: start "
            "without it, or keep the parameter as PyTorch does"
        )

    @property
    def torch_shapes(self) -> dict[str, Shape]:
        """The shapes of PyTorch's tensors, by name."""
        what = self.use.what
        ours = [hollow(self._inner(shape)) for shape in self.shapes]
        try:
            theirs = [what.to_torch(ours[0])] if isinstance(what, Layout) else what.to_torch(ours)
        except Exception:  # the layout or rule may be the user's; that it does not fit is a problem elsewhere
            return {}
        shapes = [np.shape(array) for array in theirs]
        return {name: shape for names in self.layers for tensor, shape in zip(names, shapes) for name in tensor}

    @property
    def is_plain(self) -> bool:
        """Whether it is one tensor for one leaf, with the same dimensions."""
        return self.use.stack is None and isinstance(self.use.what, Layout) and not self.use.what.is_flat

    def _one(
        self, names: tuple[str, ...], read: Callable[[str], np.ndarray | None], key: str, problems: list[str]
    ) -> np.ndarray | None:
        """PyTorch's tensor of several names."""
        given = {name: array for name in names if (array := read(name)) is not None}
        first, *rest = given or [""]
        for other in rest:
            if not np.array_equal(given[first], given[other], equal_nan=given[first].dtype.kind in "fc"):
                problems.append(
                    f"{_of(key, first)} and {_of(key, other)} must be equal, because {self.text} is both; "
                    "if they are not tied in PyTorch, they need a parameter each"
                )
        return given.get(first)

    def _block(self, are_weights: bool) -> Layout | Block:
        what = self.use.what
        return what if are_weights or isinstance(what, Layout) else what.moments or what

    def _layer(
        self,
        what: Layout | Block,
        names: tuple[tuple[str, ...], ...],
        theirs: list[np.ndarray],
        key: str,
        shapes: tuple[Shape, ...],
        problems: list[str],
    ) -> list[np.ndarray] | None:
        """The leaves' arrays of one layer."""
        of = [_of(key, tensor[0]) for tensor in names]
        ours = [self._inner(shape) for shape in shapes]
        before = len(problems)
        if isinstance(what, Layout):
            alone = _converted(what, of[0], self.use.paths[0], theirs[0], ours[0], problems)
            converted = None if alone is None else [alone]
        else:
            converted = self._by_block(what, of, theirs, ours, problems)
        for array, is_complex in zip(converted or [], self.are_complex):
            if np.iscomplexobj(array) and not is_complex:
                problems.append(f"{of[0]} is complex, but its parameter is real")
        return None if len(problems) > before else converted

    def _by_block(
        self, block: Block, of: list[str], theirs: list[np.ndarray], ours: list[Shape], problems: list[str]
    ) -> list[np.ndarray] | None:
        leaves = ", ".join(f"{path} {shape}" for path, shape in zip(self.use.paths, ours))
        try:
            wanted = [np.shape(one) for one in block.to_torch([hollow(shape) for shape in ours])]
        except Exception as error:  # the rule may be the user's
            problems.append(f"{self.use.name} does not accept {leaves} ({error})")
            return None
        wrong = [(name, array.shape, shape) for name, array, shape in zip(of, theirs, wanted) if array.shape != shape]
        problems += [f"{name} has the shape {has}, but {shape} would fit {leaves}" for name, has, shape in wrong]
        if wrong:
            return None
        try:
            converted = list(block.to_jax(theirs, ours))
        except Exception as error:
            problems.append(f"{', '.join(of)}: {self.use.name} does not accept it ({error})")
            return None
        if [np.shape(one) for one in converted] != ours:
            shapes = ", ".join(str(np.shape(one)) for one in converted)
            problems.append(
                f"{self.use.name} has converted {', '.join(of)} to the shapes {shapes}, instead of {leaves}"
            )
            return None
        return converted

    def _inner(self, shape: Shape) -> Shape:
        """The shape of one layer."""
        if self.use.stack is None:
            return shape
        axis = self.use.stack[1] % len(shape)
        return shape[:axis] + shape[axis + 1 :]

    def compromises(
        self, read: Callable[[str], np.ndarray | None], ours: Sequence[np.ndarray | None], key: str
    ) -> list[str]:
        """Where PyTorch's moments differ, although the leaves have room for only one of them."""
        what = self.use.what
        if isinstance(what, Layout) or what.moments is None or any(one is None for one in ours):
            return []
        differing = []
        for name, back in self.to_torch(ours, are_weights=False).items():
            theirs = read(name)
            assert theirs is not None
            # Two sums of the same gradients, which may have been added up in different orders.
            tolerance = 1000 * np.finfo(theirs.dtype).eps * np.abs(theirs).max(initial=0)
            if np.abs(back - theirs).max(initial=0) > tolerance:
                differing.append(name)
        return [
            f"{key} of {' and '.join(differing)} differ, so {self.text} has their mean: exact for sums of gradients, "
            "but not of squares"
        ] * bool(differing)

    def to_torch(self, leaves: Sequence[Any], *, are_weights: bool = True) -> dict[str, np.ndarray]:
        """PyTorch's arrays by name, with their own memory; float32 for dtypes that PyTorch cannot read from NumPy."""
        arrays = [whole(leaf) for leaf in leaves]
        arrays = [one.astype(np.float32) if one.dtype.kind == "V" else one for one in arrays]
        what = self._block(are_weights)
        found: dict[str, np.ndarray] = {}
        for index, names in enumerate(self.layers):
            stack = self.use.stack
            ours = arrays if stack is None else [np.take(one, index, stack[1]) for one in arrays]
            theirs = [what.to_torch(ours[0])] if isinstance(what, Layout) else what.to_torch(ours)
            for tensor, array in zip(names, theirs):
                own = np.array(array, order="C")
                found |= dict.fromkeys(tensor, own)
        return found


def _of(key: str, name: str) -> str:
    return f"{key} of {name}" if key else name


def _converted(
    layout: Layout, what: str, path: str, array: np.ndarray, shape: Shape, problems: list[str]
) -> np.ndarray | None:
    """An array in JAX's layout."""
    try:
        converted = layout.to_jax(array)
        if layout.is_flat and np.shape(layout.to_torch(hollow(shape))) == array.shape:
            converted = converted.reshape(shape)
    except Exception as error:  # the layout may be the user's
        problems.append(f"{what} has the shape {array.shape}, which its layout does not accept ({error})")
        return None
    if np.shape(converted) != shape:
        fitting = fitting_layouts(array.shape, shape)
        hint = f"; it fits with layouts={{{path!r}: torch_interop.{' or '.join(fitting)}}}" if fitting else ""
        problems.append(f"{what} has the shape {array.shape}, in JAX {np.shape(converted)}, instead of {shape}{hint}")
        return None
    return converted


def counterparts(
    leaves: Mapping[str, Any],
    uses: Sequence[Use],
    name_of: Callable[[str], Any],
    groups: Sequence[Mapping[str, Any]] | None,
    problems: list[str],
    ignored: tuple[str, ...] = (),
) -> list[Counterpart]:
    """PyTorch's tensors for all uses, by name; what only one side has is a problem.

    Args:
        leaves: The leaves, by path.
        uses: What applies to them.
        name_of: PyTorch's name of a leaf or a module, by path.
        groups: PyTorch's names, group by group; `None` if PyTorch has everything.
        problems: Where what does not fit goes.
        ignored: How names end that need no counterpart.
    """
    group_of = {name: index for index, group in enumerate(groups or ()) for name in group}
    found: list[Counterpart] = []
    seen: dict[str, str] = {}
    for use in uses:
        layers = _layers(use, [np.shape(leaves[path]) for path in use.paths], name_of, problems)
        text = ", ".join(use.paths)
        if layers is None:
            continue
        every = [name for layer in layers for tensor in layer for name in tensor]
        if clash := next((name for name in every if name in seen), None):
            problems.append(f"{text} and {seen[clash]} are both called {clash}")
            continue
        seen |= dict.fromkeys(every, text)
        if groups is None:
            group_of |= dict.fromkeys(every, 0)
        known = [[tuple(name for name in tensor if name in group_of) for tensor in layer] for layer in layers]
        has = [name for layer in known for tensor in layer for name in tensor]
        lacks = [tensor[0] for layer, own in zip(layers, known) for tensor, its in zip(layer, own) if not its]
        if has and lacks:
            problems.append(f"PyTorch has no {', '.join(lacks)}, which {text} needs besides {has[0]}")
            continue
        theirs = sorted({group_of[name] for name in has})
        if len(theirs) > 1:
            problems.append(
                f"{', '.join(has)} must be in one group of PyTorch's, because {text} is all of them, got {theirs}"
            )
            continue
        found.append(
            Counterpart(
                use,
                tuple(np.shape(leaves[path]) for path in use.paths),
                tuple(np.iscomplexobj(leaves[path]) for path in use.paths),
                tuple(tuple(layer) for layer in known) if has else tuple(layers),
                theirs[0] if theirs else None,
            )
        )
    problems += [
        f"PyTorch has {name}, but no parameter has that name"
        for name in group_of
        if name not in seen and not name.endswith(ignored)
    ]
    return found


def _layers(
    use: Use, shapes: Sequence[Shape], name_of: Callable[[str], Any], problems: list[str]
) -> list[tuple[tuple[str, ...], ...]] | None:
    """PyTorch's names of the tensors of each layer."""
    base = name_of(use.where)
    if base is None and isinstance(use.what, Block):
        problems.append(f"names has no name for the module {use.where}, which {use.name} is for")
    elif base is None:
        problems.append(f"names has no name for {use.where}")
    elif not isinstance(base, str):
        problems.append(f"names must have a string for {use.where}, got {base!r}")
    if not isinstance(base, str):
        return None
    suffixes = use.what.tensors if isinstance(use.what, Block) else ("",)
    names = [".".join(filter(None, (base, suffix))) for suffix in suffixes]
    if use.stack is None:
        return [tuple((name, *use.aliases) for name in names)]
    module, axis = use.stack
    numbers = {shape[axis] for shape in shapes}
    above = name_of(module)
    if len(numbers) > 1:
        problems.append(f"{', '.join(use.paths)} must have equally many layers, got {sorted(numbers)}")
    elif not isinstance(above, str) or not all(name.startswith(f"{above}." if above else "") for name in names):
        problems.append(f"names must have a name for {module} with which that of {use.where} begins, got {above!r}")
    else:
        inside = [name.removeprefix(f"{above}." if above else "") for name in names]
        return [
            tuple((".".join(filter(None, (above, str(layer), name))),) for name in inside)
            for layer in range(numbers.pop())
        ]
    return None
