"""The order in which an optimizer got its parameters, where its file does not name them."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from ._checkpoint import Checkpoint, SavedOptimizer
from ._checkpoint_files import is_tensor, shown
from ._names import BUFFERS

_UNDECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""What the Trainer leaves without decay by name: patterns of lower-case names."""


def optimizer_order(
    checkpoint: Checkpoint,
    rule: Literal["model", "trainer"],
    *,
    names: Sequence[str] | None = None,
    optimizer: int = 0,
) -> list[str]:
    """The names of an optimizer's parameters in its order, by a rule that you know it was made by.

    An optimizer made from `model.parameters()` stores no names, and its order cannot be seen in the file. But there are
    two usual rules:

    - `"model"`: one group, `model.parameters()`;
    - `"trainer"`: two groups as Hugging Face's Trainer makes them, first everything that decays, then biases and the
      weights of normalisation, both in the model's order.

    The result is checked against the shapes of the moments, which shows most wrong orders, but not the exchange of two
    parameters of one shape. So the model's order must be known: from a file of `torch.save`, or from `names`.
    Safetensors files sort their names.

    Args:
        checkpoint: What `inspect_checkpoint` has returned.
        rule: `"model"` or `"trainer"`.
        names: The names of the model's parameters in its order, `[name for name, _ in model.named_parameters()]`,
            without those that have `requires_grad=False`. By default, those of the checkpoint, without the buffers of
            batch normalisation.
        optimizer: Which of the checkpoint's optimizers.

    Returns:
        The names, for the argument `order` of `import_state`, `export_state` and `torch_labels`.

    Raises:
        ValueError: If the rule does not give what the optimizer has: other numbers of parameters, or other shapes; if
            the model's order is not known; if it is ambiguous which vectors the Trainer took for normalisation.

    Differences:
        The Trainer knows the modules: it leaves out everything in a `torch.nn.LayerNorm`, and what is called so. Here,
        vectors that are not called `bias` or `norm` go where the sizes of the groups say; all of them to one group.

    Example:
        >>> import numpy as np
        >>> from linkax.chains.torch_interop import inspect_checkpoint, optimizer_order
        >>> shapes = {"ln.weight": (2,), "ln.bias": (2,), "fc.weight": (3, 2), "fc.bias": (3,)}
        >>> moments = [{"exp_avg": np.ones(shape)} for shape in ((3, 2), (2,), (2,), (3,))]
        >>> saved = inspect_checkpoint(
        ...     {
        ...         "model": {name: np.ones(shape) for name, shape in shapes.items()},
        ...         "optimizer": {
        ...             "state": dict(enumerate(moments)),
        ...             "param_groups": [
        ...                 {"weight_decay": 0.1, "params": [0]},
        ...                 {"weight_decay": 0.0, "params": [1, 2, 3]},
        ...             ],
        ...         },
        ...     }
        ... )
        >>> optimizer_order(saved, "trainer")
        ['fc.weight', 'ln.weight', 'ln.bias', 'fc.bias']

    Source:
        `transformers.Trainer.get_decay_parameter_names` and `create_optimizer`, transformers 5.
    """
    if rule not in ("model", "trainer"):
        raise ValueError(f"optimizer_order: rule must be 'model' or 'trainer', got {rule!r}")
    if not -len(checkpoint.optimizers) <= optimizer < len(checkpoint.optimizers):
        raise ValueError(
            f"optimizer_order: optimizer must be one of the {len(checkpoint.optimizers)} there are, got {optimizer}"
        )
    saved = checkpoint.optimizers[optimizer]
    if saved.has_names:
        return [name for group in saved.param_groups for name in group["param_names"]]
    if names is None:
        if not checkpoint.is_ordered:
            raise ValueError(
                "optimizer_order: names must be given, because a safetensors file sorts them, so that the order is "
                "ambiguous: [name for name, _ in model.named_parameters()]"
            )
        names = [name for name in checkpoint.model if not name.endswith(BUFFERS)]
    unknown = [name for name in names if name not in checkpoint.model]
    if unknown or len(set(names)) != len(names):
        raise ValueError(
            "optimizer_order: names must be different ones of the model's, got "
            + (", ".join(map(shown, unknown)) or "some twice")
        )
    sizes = [len(group["params"]) for group in saved.param_groups]
    groups = [list(names)] if rule == "model" else _trainer_groups(names, checkpoint.model, sizes)
    if [len(group) for group in groups] != sizes:
        raise ValueError(
            f"optimizer_order: the rule {rule!r} makes groups of {_list(groups)} parameters, but the optimizer has "
            f"{', '.join(map(str, sizes))}; parameters that were frozen or are tied must not be in names"
        )
    order = [name for group in groups for name in group]
    if wrong := _other_shapes(order, saved, checkpoint.model):
        raise ValueError(
            "optimizer_order: the moments must have the shapes of their parameters, so this is not the order"
            + "".join(f"\n  {one}" for one in wrong[:10])
        )
    return order


def _list(groups: Sequence[Sequence[str]]) -> str:
    return ", ".join(str(len(group)) for group in groups)


def _trainer_groups(names: Sequence[str], model: dict[str, Any], sizes: Sequence[int]) -> list[list[str]]:
    """The Trainer's two groups."""
    plain = [name for name in names if any(re.search(pattern, name.lower()) for pattern in _UNDECAYED)]
    unclear = [name for name in names if name not in set(plain) and len(model[name].shape) < 2]
    for those in (unclear, []):  # vectors are normalisation's, or they are not
        left = {*plain, *those}
        groups = [[name for name in names if name not in left], [name for name in names if name in left]]
        if [len(group) for group in groups] == list(sizes):
            return groups
    least = len(names) - len(plain) - len(unclear)
    if len(sizes) == 2 and sum(sizes) == len(names) and least < sizes[0] < least + len(unclear):
        raise ValueError(
            f"optimizer_order: it is ambiguous which {sizes[0] - least} of these decay, so give the order yourself: "
            + ", ".join(map(shown, unclear))
        )
    left = {*plain, *unclear}
    return [[name for name in names if name not in left], [name for name in names if name in left]]


def _other_shapes(order: Sequence[str], saved: SavedOptimizer, model: dict[str, Any]) -> list[str]:
    """The moments that have another shape from their parameter."""
    keys = [key for group in saved.param_groups for key in group["params"]]
    return [
        f"{shown(what)} of {shown(name)} has the shape {tuple(moment.shape)} instead of {tuple(model[name].shape)}"
        for name, key in zip(order, keys)
        for what, moment in saved.state_dict["state"].get(key, {}).items()
        if is_tensor(moment) and len(moment.shape) and tuple(moment.shape) != tuple(model[name].shape)
    ]
