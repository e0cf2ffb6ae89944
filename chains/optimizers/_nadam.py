"""NAdam: Adam with Nesterov's momentum for its first moment."""

from typing import Any

from linkax.transforms import (
    NonNegative,
    ProperFraction,
    Rate,
    add_l2_to_grad,
    bias_correction,
    mean_square,
    moment_ratio,
    negate_grad,
    scale_by_learning_rate,
    scale_by_nesterov,
)
from linkax.transforms import decoupled_weight_decay as decay_decoupled
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def nadam(
    learning_rate: Rate = 2e-3,
    *,
    b1: ProperFraction = 0.9,
    b2: ProperFraction = 0.999,
    eps: NonNegative = 1e-8,
    momentum_decay: NonNegative | None = 4e-3,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """NAdam: Adam with its first moment taken one step ahead.

    With m and v as in `adam`, μ_t = β1 (1 − ½ · 0.96^{t ψ}) and Π_t = μ_1 ⋯ μ_t:
    w ← w − α [(1 − μ_t) / (1 − Π_t) · g + μ_{t+1} / (1 − Π_{t+1}) · m] / (√(v / (1 − β2^t)) + ε).

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        b1: β1, in [0, 1), or a schedule of it: μ_t and μ_{t+1} then both use the β1 of step t, as in PyTorch.
        b2: β2, in [0, 1), or a schedule of it.
        eps: ε ≥ 0, in the gradient's units, added to the bias-corrected root; or a schedule of it.
        momentum_decay: ψ ≥ 0, how fast μ_t rises from near β1/2 to β1, or a schedule of it; `None` for μ_t = β1.
        weight_decay: λ ≥ 0, or a schedule of it; `None` for none.
        weight_decay_mask: Which leaves decay, as for `mask` of `add_l2_to_grad`.
        decoupled_weight_decay: Whether the decay is decoupled, as in `adamw`, instead of added to the gradient (L2).
        maximize: Whether to maximise: g is negated before anything else.
        state: The format in which the moments are stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`,
            see `stored`; `None` for float32.

    Returns:
        A chain. Links whose number is `None` or the Python number 0 are left out.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`, `betas` for `(b1, b2)`. `optax.nadam` is `momentum_decay=None`.

    Example:
        >>> from linkax import nadam
        >>> nadam(2e-3).links[0].hyperparams["first"]
        scale_by_nesterov(decay=0.9, form='corrected', momentum_decay=0.004)

    Source:
        `torch.optim.NAdam`; Dozat, "Incorporating Nesterov momentum into Adam", 2016.
    """
    tx = chain(
        when(maximize, negate_grad),
        when(None if decoupled_weight_decay else weight_decay, add_l2_to_grad, weight_decay, weight_decay_mask),
        moment_ratio(
            scale_by_nesterov(b1, form="corrected", momentum_decay=momentum_decay),
            chain(mean_square(b2), bias_correction(b2)),
            eps,
        ),
        when(weight_decay if decoupled_weight_decay else None, decay_decoupled, weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
