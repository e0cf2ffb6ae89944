"""LAMB: AdamW whose steps are as large, array by array, as a fraction of the parameter."""

from typing import Any

from linkax.transforms import (
    NonNegative,
    ProperFraction,
    Rate,
    decoupled_weight_decay,
    negate_grad,
    scale_by_learning_rate,
    scale_by_trust_ratio,
)
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments
from ._adam import adam_ratio


@checked
def lamb(
    learning_rate: Rate = 1e-3,
    *,
    b1: ProperFraction = 0.9,
    b2: ProperFraction = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    trust_ratio_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """LAMB: the direction of AdamW, with the norm of the parameter, for large batches.

    With Adam's direction r and u = r + λ w: w ← w − α · u · ‖w‖ / ‖u‖, with the norms of whole arrays, and a ratio of 1
    where one of them is 0.

    Args:
        learning_rate: α ≥ 0, or a schedule of it: the fraction by which an array changes per step.
        b1: β1, in [0, 1), or a schedule of it; the bias correction follows it exactly.
        b2: β2, in [0, 1), likewise.
        eps: ε ≥ 0, in the gradient's units, added to the bias-corrected root; or a schedule of it.
        weight_decay: λ ≥ 0, or a schedule of it, added to the direction; `None` for none.
        weight_decay_mask: Which leaves decay, as for `mask` of `decoupled_weight_decay`.
        trust_ratio_mask: Which leaves are scaled, as for `mask` of `scale_by_trust_ratio`; often not the biases.
        maximize: Whether to maximise: g is negated before anything else; the weights still decay.
        state: The format in which the moments are stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`,
            see `stored`; `None` for float32.

    Returns:
        A chain. Links whose number is `None` or the Python number 0 are left out.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch has no LAMB. Optax agrees; in Keras the weights decay before their norm is taken, and ε is 1e-7. The
        decay comes before the ratio, so `add` needs `before="scale_by_trust_ratio"` for it.

    Example:
        >>> from linkax import lamb
        >>> lamb(weight_decay=0.01)
        chain
        ├─ moment_ratio(eps=1e-06)                            moment
        │  ├─ first
        │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
        │  │  └─ bias_correction(decay=0.9)                   moment
        │  └─ second
        │     ├─ mean_square(decay=0.999)                     moment
        │     └─ bias_correction(decay=0.999)                 moment
        ├─ decoupled_weight_decay(weight_decay=0.01)          step
        ├─ scale_by_trust_ratio()                             step
        └─ scale_by_learning_rate(learning_rate=0.001)        step

    Source:
        You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020, algorithm 2;
        `optax.lamb`.
    """
    tx = chain(
        when(maximize, negate_grad),
        adam_ratio(b1, b2, eps, amsgrad=False),
        when(weight_decay, decoupled_weight_decay, weight_decay, weight_decay_mask),
        scale_by_trust_ratio(trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
