"""AdaBelief: Adam that divides by how far gradients are from their average, not by how large they are."""

from typing import Any

from linkax.transforms import (
    NonNegative,
    ProperFraction,
    Rate,
    bias_correction,
    decoupled_weight_decay,
    deviation,
    mean_square,
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
def adabelief(
    learning_rate: Rate = 1e-3,
    *,
    b1: ProperFraction = 0.9,
    b2: ProperFraction = 0.999,
    eps: NonNegative = 1e-13,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """AdaBelief: Adam whose second moment is that of the gradient's deviation from its average.

    With m ← β1 m + (1 − β1) g and s ← β2 s + (1 − β2) (g − m)²:
    w ← w − α · ((m / (1 − β1^t)) / √(s / (1 − β2^t) + ε) + λ w), with t counting from 1.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        b1: β1, in [0, 1), or a schedule of it; the bias correction follows it exactly.
        b2: β2, in [0, 1), likewise.
        eps: ε ≥ 0, in squared units of the gradient, added under the root; or a schedule of it.
        weight_decay: λ ≥ 0, or a schedule of it, decoupled as in `adamw`; `None` for none.
        weight_decay_mask: Which leaves decay, as for `mask` of `decoupled_weight_decay`.
        maximize: Whether to maximise: g is negated before anything else; the weights still decay.
        state: The format in which the moments are stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`,
            see `stored`; `None` for float32. The average from which the gradient deviates stays float32.

    Returns:
        A chain. Links whose number is `None` or the Python number 0 are left out.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch has no AdaBelief. The paper and Optax add a smaller ε to s in every step, which sums up to the fraction
        1 / (1 − β2) of it, and ε to the root as well: Optax's `eps_root` of 1e-16 is 1e-13 here, and its `eps` is
        `add_eps`. There, m is kept once; here it is kept twice, in both of its links.

    Example:
        >>> from linkax import adabelief
        >>> adabelief()
        chain
        ├─ moment_ratio(eps=1e-13, eps_in_sqrt=True)          moment
        │  ├─ first
        │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
        │  │  └─ bias_correction(decay=0.9)                   moment
        │  └─ second
        │     ├─ deviation(decay=0.9)                         moment
        │     ├─ mean_square(decay=0.999)                     moment
        │     └─ bias_correction(decay=0.999)                 moment
        └─ scale_by_learning_rate(learning_rate=0.001)        step

    Source:
        Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients", 2020;
        `optax.adabelief`.
    """
    tx = chain(
        when(maximize, negate_grad),
        moment_ratio(
            chain(scale_by_momentum(b1, dampening=b1), bias_correction(b1)),
            chain(deviation(b1), mean_square(b2), bias_correction(b2)),
            eps,
            eps_in_sqrt=True,
        ),
        when(weight_decay, decoupled_weight_decay, weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
