"""Muon: momentum whose matrices are orthogonalized."""

from collections.abc import Sequence
from typing import Any, Literal

from linkax.transforms import (
    Fraction,
    NonNegative,
    Rate,
    decoupled_weight_decay,
    negate_grad,
    orthogonalize,
    scale_by_learning_rate,
    scale_by_matrix_shape,
    scale_by_momentum,
    scale_by_nesterov,
)
from linkax.transforms._check import checked
from linkax.transforms._formats import Format
from linkax.transforms._orthogonalize import OutputAxis

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def muon(
    learning_rate: Rate = 1e-3,
    *,
    momentum: Fraction = 0.95,
    nesterov: bool = True,
    ns_coefficients: Sequence[Any] = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    eps: NonNegative = 1e-7,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original",
    output_axis: OutputAxis = -1,
    precision: Literal["bfloat16", "full"] = "bfloat16",
    weight_decay: Rate | None = 0.1,
    weight_decay_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """Muon: the momentum of every matrix, with all of its singular values set to about 1.

    With m ← μ m + (1 − μ) g and u = (1 − μ) g + μ m (u = m without Nesterov), for a matrix of n outputs and k inputs:
    w ← w − α · (√max(1, n/k) · orthogonal(u) + λ w).

    It is for the matrices of hidden layers only; everything else has an optimizer of its own, usually AdamW:

        param_groups(
            {"muon": muon(0.02), "adamw": adamw(3e-4)},
            lambda path, w: "muon" if w.ndim == 2 and "embed" not in path and "head" not in path else "adamw",
        )

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        momentum: μ, in [0, 1], or a schedule of it.
        nesterov: Whether the momentum is taken one step ahead.
        ns_coefficients: The coefficients of the Newton–Schulz iteration; see `orthogonalize`.
        ns_steps: The number of its steps, from 0 to 99.
        eps: ε ≥ 0, in the gradient's units, below which a matrix is not scaled up; or a schedule of it.
        adjust_lr_fn: How the step depends on the shape: `"original"`, as above, or `"match_rms_adamw"`, 0.2 √max(n, k);
            see `scale_by_matrix_shape`.
        output_axis: Which axis of a matrix is the output's, `-1` in Flax and `0` in PyTorch, or a function from a
            parameter's path and shape to it. `from_torch` sets it so that the steps are PyTorch's.
        precision: `"bfloat16"`, as in PyTorch, or `"full"`, for the dtype of the parameters, at least float32.
        weight_decay: λ ≥ 0, or a schedule of it, decoupled as in `adamw`; `None` for none.
        weight_decay_mask: Which leaves decay, as for `mask` of `decoupled_weight_decay`.
        maximize: Whether to maximise: g is negated before anything else; the weights still decay.
        state: The format in which the momentum is stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`,
            see `stored`; `None` for float32.

    Returns:
        A chain. Links whose number is `None` or the Python number 0 are left out, except for the momentum.

    Raises:
        ValueError: If a number is outside its range; from `init`, if a parameter is not a real matrix.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`; no `maximize`. In bfloat16 the sums of large matrices may be rounded in
        another order, which changes a step by up to one percent. `optax.contrib.muon` corrects the bias of the
        momentum, computes in the dtype of the gradient, and has an AdamW for other leaves built in.

    Example:
        >>> from linkax import muon
        >>> [link.name for link in muon(0.02, weight_decay=None).links]
        ['scale_by_nesterov', 'orthogonalize', 'scale_by_matrix_shape', 'scale_by_learning_rate']

    Source:
        `torch.optim.Muon`; Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    tx = chain(
        when(maximize, negate_grad),
        scale_by_nesterov(momentum, form="averaged") if nesterov else scale_by_momentum(momentum, dampening=momentum),
        orthogonalize(ns_coefficients, ns_steps, eps, precision, output_axis),
        scale_by_matrix_shape(adjust_lr_fn, output_axis),
        when(weight_decay, decoupled_weight_decay, weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
