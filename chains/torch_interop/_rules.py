"""Rules: how some of PyTorch's tensors and some leaves hold the same numbers, if it is not one tensor and one leaf."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ._layouts import IDENTITY, Layout

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """Some of a module's tensors in PyTorch, and the leaves that hold the same numbers in JAX.

    `fused` makes the usual ones. The moments of an optimizer are converted like the weights.

    Attributes:
        tensors: PyTorch's names, as seen from the module: `("in_proj_weight",)`.
        leaves: The paths of the leaves, as seen from the module: `("query/kernel", "key/kernel", "value/kernel")`.
        to_jax: Converts PyTorch's arrays, in the order of `tensors`; the leaves' shapes are its second argument. It may
            raise a `ValueError` that says what cannot be converted.
        to_torch: The inverse, from the leaves' arrays to PyTorch's.
        moments: The two functions for an optimizer's moments, if these are converted differently.
        is_optional: Whether a module may lack the leaves.

    Example:
        >>> import numpy as np
        >>> from linkax.chains.torch_interop import Block
        >>> taking_turns = Block(
        ...     ("kv",), ("key", "value"), lambda kv, _: [kv[0][::2], kv[0][1::2]], lambda kv: [np.stack(kv, 1).ravel()]
        ... )
        >>> taking_turns.to_torch([np.zeros(2), np.ones(2)])
        [array([0., 1., 0., 1.])]
    """

    tensors: tuple[str, ...]
    leaves: tuple[str, ...]
    to_jax: Callable[[list[np.ndarray], list[Shape]], Sequence[np.ndarray]]
    to_torch: Callable[[list[np.ndarray]], Sequence[np.ndarray]]
    moments: "Block | None" = None
    is_optional: bool = False


class Rule:
    """How a module's parameters correspond to PyTorch's: given in `layouts` for the module's path, or a pattern of it.

    Libraries keep the same module in different ways, and a rule has a variant for each. A variant fits a module that
    has all of its leaves, in shapes that its blocks accept; optional blocks, such as biases, may be missing. The first
    variant that fits applies.

    Attributes:
        name: Its name in messages.
        variants: For each variant, its blocks.

    Example:
        >>> from linkax.chains.torch_interop import LINEAR, Rule, fused
        >>> swiglu = Rule("SwiGLU", [fused("w12.weight", ("gate/kernel", "up/kernel"), LINEAR)])
        >>> layouts = {"params/*/mlp": swiglu}
    """

    def __init__(self, name: str, *variants: Sequence[Block]):
        self.name = name
        self.variants = tuple(tuple(blocks) for blocks in variants)

    def __repr__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Tied:
    """A leaf that PyTorch has under several names, such as an embedding that is also the output layer's weight.

    PyTorch's tensors must be equal. A file may have only some of them; exports have all of them, in an optimizer's
    state only those that the optimizer has.

    Attributes:
        others: The tensor's other names, besides its own, from the start of the model.
        layout: The layout.

    Example:
        >>> from linkax.chains.torch_interop import Tied
        >>> layouts = {"params/wte/embedding": Tied("lm_head.weight")}
    """

    others: str | tuple[str, ...]
    layout: Layout = IDENTITY


@dataclasses.dataclass(frozen=True)
class Stacked:
    """A module whose leaves are those of several equal layers, stacked for `nn.scan`, `nnx.scan` or `jax.lax.scan`.

    PyTorch's layers are `blocks.0`, `blocks.1`, and so on, if `blocks` is the name of the module. Layouts and rules for
    what is inside the module are those of one layer.

    Attributes:
        axis: The axis of the layers in every leaf, `variable_axes` of `flax.linen.scan`.

    Example:
        >>> from linkax.chains.torch_interop import MULTIHEAD_ATTENTION, Stacked
        >>> layouts = {"params/blocks": Stacked(), "params/blocks/attn": MULTIHEAD_ATTENTION}
    """

    axis: int = 0


Layouts = Mapping[str, Layout | Tied | Rule | Stacked | tuple[Layout | Tied | Rule, ...]]
"""Layouts and rules, by the paths of leaves and modules, or by patterns of paths.

A tuple is a default: its first member that fits applies, where nothing else is given; it need not fit anywhere.
"""


def fused(
    tensor: str, leaves: Sequence[str], each: Layout = IDENTITY, *, axis: int = 0, is_optional: bool = False
) -> Block:
    """A tensor that joins what is in several leaves, in their order, such as queries, keys and values.

    Args:
        tensor: PyTorch's name for it, as seen from the module.
        leaves: The paths of the leaves, as seen from the module. They need not be of the same size.
        each: The layout of each part.
        axis: The axis of PyTorch's tensor along which it joins the parts.
        is_optional: Whether a module may lack the leaves.

    Returns:
        The block for a `Rule`.

    Example:
        >>> import numpy as np
        >>> from linkax.chains.torch_interop import LINEAR, fused
        >>> block = fused("qkv.weight", ("q/kernel", "k/kernel", "v/kernel"), LINEAR)
        >>> block.to_torch([np.ones((4, 2))] * 3)[0].shape
        (6, 4)

    Source:
        `torch.nn.MultiheadAttention`, `in_proj_weight`.
    """

    def to_jax(tensors: list[np.ndarray], shapes: list[Shape]) -> list[np.ndarray]:
        sizes = [each.to_torch(hollow(shape)).shape[axis] for shape in shapes]
        parts = np.split(tensors[0], np.cumsum(sizes)[:-1], axis)
        return [each.to_jax(part).reshape(shape) for part, shape in zip(parts, shapes)]

    def to_torch(ours: list[np.ndarray]) -> list[np.ndarray]:
        return [np.concatenate([each.to_torch(one) for one in ours], axis)]

    return Block((tensor,), tuple(leaves), to_jax, to_torch, is_optional=is_optional)


def single(tensor: str, leaf: str, layout: Layout = IDENTITY, *, is_optional: bool = False) -> Block:
    """One tensor in one leaf, where the default name or layout is another.

    Args:
        tensor: PyTorch's name for it, as seen from the module.
        leaf: The path of the leaf, as seen from the module.
        layout: The layout.
        is_optional: Whether a module may lack the leaf.

    Returns:
        The block for a `Rule`.

    Example:
        >>> import numpy as np
        >>> from linkax.chains.torch_interop import LINEAR, single
        >>> single("proj.weight", "out/kernel", LINEAR).to_torch([np.ones((2, 3))])[0].shape
        (3, 2)

    Source:
        `torch.nn.Module.state_dict`.
    """
    return fused(tensor, (leaf,), layout, is_optional=is_optional)


def hollow(shape: Shape) -> np.ndarray:
    """An array of that shape that takes no memory."""
    return np.broadcast_to(np.zeros((), np.int8), shape)


def is_rule(value: Any) -> bool:
    """Whether a value may stand in `layouts`."""
    if isinstance(value, tuple) and not isinstance(value, Layout):
        return all(isinstance(one, Layout | Tied | Rule) for one in value)
    return isinstance(value, Layout | Tied | Rule | Stacked)
