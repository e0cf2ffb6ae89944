"""AdamW: Adam whose weight decay bypasses the moments."""

from typing import Any

from linkax.transforms import (
    NonNegative,
    ProperFraction,
    Rate,
    decoupled_weight_decay,
    negate_grad,
    scale_by_learning_rate,
)
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments
from ._adam import adam_ratio


@checked
def adamw(
    learning_rate: Rate = 1e-3,
    *,
    b1: ProperFraction = 0.9,
    b2: ProperFraction = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 1e-2,
    weight_decay_mask: Any = None,
    amsgrad: bool = False,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """AdamW: Adam with decoupled weight decay, which is multiplied by the learning rate.

    w ← w (1 − α λ), then Adam's step: the same as w ← w − α (u + λ w), where u is Adam's direction.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        b1: β1, in [0, 1), or a schedule of it; the bias correction follows it exactly.
        b2: β2, in [0, 1), likewise.
        eps: ε ≥ 0, in the gradient's units, added to the bias-corrected root; or a schedule of it.
        weight_decay: λ ≥ 0, or a schedule of it; each step removes the fraction α λ of every weight.
        weight_decay_mask: Which leaves decay, as for `mask` of `decoupled_weight_decay`.
        amsgrad: Whether to divide by the largest second moment so far.
        maximize: Whether to maximise: g is negated before anything else; the weights still decay.
        state: The format in which the moments are stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`,
            see `stored`; `None` for float32.

    Returns:
        A chain. Links whose number is the Python number 0 are left out.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`, `betas` for `(b1, b2)`. Optax's default λ is 1e-4. In the paper only the
        schedule multiplies λ: swap in `decoupled_weight_decay(..., multiplied_by="schedule")`.

    Example:
        >>> from linkax import adamw
        >>> adamw(1e-3)
        chain
        ├─ moment_ratio(eps=1e-08)                            moment
        │  ├─ first
        │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
        │  │  └─ bias_correction(decay=0.9)                   moment
        │  └─ second
        │     ├─ mean_square(decay=0.999)                     moment
        │     └─ bias_correction(decay=0.999)                 moment
        ├─ decoupled_weight_decay(weight_decay=0.01)          step
        └─ scale_by_learning_rate(learning_rate=0.001)        step

    Source:
        `torch.optim.AdamW`; Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
    """
    tx = chain(
        when(maximize, negate_grad),
        adam_ratio(b1, b2, eps, amsgrad),
        when(weight_decay, decoupled_weight_decay, weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
