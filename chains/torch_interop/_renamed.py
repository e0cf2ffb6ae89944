"""PyTorch's names where its modules are called differently, and those of some well-known models."""

import re
from collections.abc import Callable, Mapping

from ._names import torch_name


def renamed(changes: Mapping[str, str], names: Callable[[str], str] = torch_name) -> Callable[[str], str]:
    """Names for a model whose modules PyTorch calls differently.

    Args:
        changes: From the beginnings of names to those in PyTorch, word by word, such as `{"h_*": "transformer.h.*"}`. A
            `*` is any text inside a word, and goes where the `*` of PyTorch's name is. If several apply, the one with
            the most words does; the empty beginning, `""`, applies to every name.
        names: What makes a name from a path before.

    Returns:
        A function for the argument `names`.

    Raises:
        ValueError: If PyTorch's name has more `*` than ours.

    Example:
        >>> from linkax.chains.torch_interop import renamed
        >>> names = renamed({"": "model", "Dense_*": "model.layers.*.linear"})
        >>> names("params/Dense_2/kernel"), names("params/norm/scale")
        ('model.layers.2.linear.weight', 'model.norm.weight')

    Source:
        `torch.nn.Module.named_parameters`.
    """
    for ours, theirs in changes.items():
        if theirs.count("*") > ours.count("*"):
            raise ValueError(f"renamed: changes must not have more * in PyTorch's name, got {ours!r}: {theirs!r}")
    ordered = sorted(changes, key=lambda ours: (ours.count(".") + bool(ours), len(ours)), reverse=True)
    patterns = [(_beginning(ours), changes[ours].split("*")) for ours in ordered]

    def name(path: str) -> str:
        before = names(path)
        for pattern, (first, *others) in patterns:
            if (match := pattern.match(before)) is not None:
                beginning = first + "".join(text + other for text, other in zip(match.groups(), others))
                return ".".join(filter(None, (beginning, before[match.end() :].lstrip("."))))
        return before

    return name


def _beginning(ours: str) -> re.Pattern[str]:
    return re.compile(re.escape(ours).replace(r"\*", "([^.]*)") + r"(?=\.|$)" * bool(ours))


HF_GPT2_NAMES = renamed(
    {"": "transformer", "transformer": "transformer", "lm_head": "lm_head", "h_*": "transformer.h.*"}
)
"""Hugging Face's names of GPT-2's parameters, for a model with `wte`, `wpe`, `h_0` (or a list `h`), …, `ln_f`."""

RESNET_NAMES = renamed(
    {
        "layer*_*": "layer*.*",
        "layer*_*.downsample_*": "layer*.*.downsample.*",
        "layer*.layers.*": "layer*.*",
        "layer*.*.downsample.layers.*": "layer*.*.downsample.*",
        "layer*.layers.*.downsample.layers.*": "layer*.*.downsample.*",
    }
)
"""torchvision's names of a ResNet's parameters, for a model with blocks `layer1_0` and their `downsample_0`, or with
lists or `nnx.Sequential` of these names."""
