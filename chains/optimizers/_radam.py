"""RAdam: Adam that divides by the second moment only once that is made of enough gradients."""

from typing import Any

from linkax.transforms import (
    NonNegative,
    ProperFraction,
    Rate,
    add_eps,
    add_l2_to_grad,
    bias_correction,
    mean_square,
    moment_ratio,
    negate_grad,
    rectification,
    scale_by_learning_rate,
    scale_by_momentum,
)
from linkax.transforms import decoupled_weight_decay as decay_decoupled
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def radam(
    learning_rate: Rate = 1e-3,
    *,
    b1: ProperFraction = 0.9,
    b2: ProperFraction = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """RAdam: Adam whose second moment is rectified for the few gradients that it is made of at first.

    With m and v as in `adam`, ρ_∞ = 2 / (1 − β2) − 1, ρ_t = ρ_∞ − 2 t β2^t / (1 − β2^t) and
    r_t² = (ρ_t − 4)(ρ_t − 2) ρ_∞ / ((ρ_∞ − 4)(ρ_∞ − 2) ρ_t):
    w ← w − α · r_t · (m / (1 − β1^t)) · √(1 − β2^t) / (√v + ε) where ρ_t > 5 (from step 6 on, if β2 is near 1), and
    w ← w − α · m / (1 − β1^t) before.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        b1: β1, in [0, 1), or a schedule of it; the bias correction follows it exactly.
        b2: β2, in [0, 1), likewise; up to 2/3, v is never used.
        eps: ε ≥ 0, in the gradient's units, added to the uncorrected root; or a schedule of it.
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
        PyTorch: `lr` for `learning_rate`, `betas` for `(b1, b2)`. Optax adds ε to the corrected root: there `add_eps`
        comes after `bias_correction`. The paper has no ε and a threshold of 4.

    Example:
        >>> from linkax import radam
        >>> radam()
        chain
        ├─ moment_ratio(eps=None)                             moment
        │  ├─ first
        │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
        │  │  └─ bias_correction(decay=0.9)                   moment
        │  └─ second
        │     ├─ mean_square(decay=0.999)                     moment
        │     ├─ add_eps(eps=1e-08)                           moment
        │     ├─ bias_correction(decay=0.999)                 moment
        │     └─ rectification(decay=0.999, threshold=5.0)    moment
        └─ scale_by_learning_rate(learning_rate=0.001)        step

    Source:
        `torch.optim.RAdam`; Liu et al., "On the variance of the adaptive learning rate and beyond", 2020.
    """
    tx = chain(
        when(maximize, negate_grad),
        when(None if decoupled_weight_decay else weight_decay, add_l2_to_grad, weight_decay, weight_decay_mask),
        moment_ratio(
            chain(scale_by_momentum(b1, dampening=b1), bias_correction(b1)),
            chain(mean_square(b2), when(eps, add_eps, eps), bias_correction(b2), rectification(b2)),
            eps=None,
        ),
        when(weight_decay if decoupled_weight_decay else None, decay_decoupled, weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
