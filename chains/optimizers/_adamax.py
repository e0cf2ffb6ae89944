"""Adamax: Adam whose divisor is the largest size of past gradients instead of the root of their mean square."""

from typing import Any

from linkax.transforms import (
    NonNegative,
    ProperFraction,
    Rate,
    add_l2_to_grad,
    bias_correction,
    infinity_norm,
    moment_ratio,
    negate_grad,
    scale_by_learning_rate,
    scale_by_momentum,
)
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def adamax(
    learning_rate: Rate = 2e-3,
    *,
    b1: ProperFraction = 0.9,
    b2: ProperFraction = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """Adamax: Adam with an infinity norm in place of the root of the mean square.

    With g ← g + λ w, m ← β1 m + (1 − β1) g and u ← max(β2 u, |g| + ε): w ← w − α · (m / (1 − β1^t)) / u, with t
    counting from 1. A maximum does not start too small, so only m is corrected.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        b1: β1, in [0, 1), or a schedule of it; the bias correction follows it exactly.
        b2: β2, in [0, 1), or a schedule of it.
        eps: ε ≥ 0, in the gradient's units, added to the size of each gradient; or a schedule of it.
        weight_decay: λ ≥ 0, or a schedule of it, added to the gradient (L2); `None` for none.
        weight_decay_mask: Which leaves decay, as for `mask` of `add_l2_to_grad`.
        maximize: Whether to maximise: g is negated before anything else.
        state: The format in which the moments are stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`,
            see `stored`; `None` for float32.

    Returns:
        A chain. Links whose number is `None` or the Python number 0 are left out.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`, `betas` for `(b1, b2)`. Optax agrees; Keras adds ε to u. `optax.adamaxw` has
        decoupled decay: add `decoupled_weight_decay`.

    Example:
        >>> from linkax import adamax
        >>> adamax()
        chain
        ├─ moment_ratio(eps=None)                             moment
        │  ├─ first
        │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
        │  │  └─ bias_correction(decay=0.9)                   moment
        │  └─ second
        │     └─ infinity_norm(decay=0.999, eps=1e-08)        moment
        └─ scale_by_learning_rate(learning_rate=0.002)        step

    Source:
        `torch.optim.Adamax`; Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 7.1.
    """
    tx = chain(
        when(maximize, negate_grad),
        when(weight_decay, add_l2_to_grad, weight_decay, weight_decay_mask),
        moment_ratio(
            chain(scale_by_momentum(b1, dampening=b1), bias_correction(b1)),
            infinity_norm(b2, eps),
            eps=None,
        ),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
