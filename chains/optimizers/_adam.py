"""Adam and AMSGrad: the average of the gradient over the root of the average of its square, both bias-corrected."""

from typing import Any

from linkax.transforms import (
    Link,
    NonNegative,
    ProperFraction,
    Rate,
    add_l2_to_grad,
    bias_correction,
    mean_square,
    moment_ratio,
    negate_grad,
    running_max,
    scale_by_learning_rate,
    scale_by_momentum,
)
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


def adam_ratio(b1: ProperFraction, b2: ProperFraction, eps: NonNegative, amsgrad: bool) -> Link:
    """The direction that Adam and AdamW share."""
    return moment_ratio(
        chain(scale_by_momentum(b1, dampening=b1), bias_correction(b1)),
        chain(mean_square(b2), when(amsgrad, running_max), bias_correction(b2)),
        eps,
    )


@checked
def adam(
    learning_rate: Rate = 1e-3,
    *,
    b1: ProperFraction = 0.9,
    b2: ProperFraction = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    amsgrad: bool = False,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """Adam; with `amsgrad`, AMSGrad. Weight decay is L2: it goes through the moments.

    With g ← g + λ w, m ← β1 m + (1 − β1) g and v ← β2 v + (1 − β2) g²:
    w ← w − α · (m / (1 − β1^t)) / (√(v / (1 − β2^t)) + ε), with t counting from 1. AMSGrad uses the
    running maximum of v in place of v, before the bias correction.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        b1: β1, in [0, 1), or a schedule of it; the bias correction follows it exactly.
        b2: β2, in [0, 1), likewise.
        eps: ε ≥ 0, in the gradient's units, added to the bias-corrected root; or a schedule of it.
        weight_decay: λ ≥ 0, or a schedule of it, added to the gradient (L2; for the decoupled kind see `adamw`); `None`
            for none.
        weight_decay_mask: Which leaves decay, as for `mask` of `add_l2_to_grad`.
        amsgrad: Whether to divide by the largest second moment so far.
        maximize: Whether to maximise: g is negated before anything else.
        state: The format in which the moments are stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`,
            see `stored`; `None` for float32.

    Returns:
        A chain. Links whose number is `None` or the Python number 0 are left out.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`, `betas` for `(b1, b2)`. `optax.amsgrad` takes the maximum after the bias
        correction: there `bias_correction` comes before `running_max`.

    Example:
        >>> from linkax import adam
        >>> adam(1e-3, amsgrad=True)
        chain
        ├─ moment_ratio(eps=1e-08)                            moment
        │  ├─ first
        │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
        │  │  └─ bias_correction(decay=0.9)                   moment
        │  └─ second
        │     ├─ mean_square(decay=0.999)                     moment
        │     ├─ running_max()                                moment
        │     └─ bias_correction(decay=0.999)                 moment
        └─ scale_by_learning_rate(learning_rate=0.001)        step

    Source:
        `torch.optim.Adam`; Kingma and Ba, "Adam: a method for stochastic optimization", 2015; Reddi, Kale and Kumar,
        "On the convergence of Adam and beyond", 2018.
    """
    tx = chain(
        when(maximize, negate_grad),
        when(weight_decay, add_l2_to_grad, weight_decay, weight_decay_mask),
        adam_ratio(b1, b2, eps, amsgrad),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
