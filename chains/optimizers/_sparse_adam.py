"""Adam for row-sparse gradients."""

from linkax.transforms import (
    NonNegative,
    ProperFraction,
    Rate,
    bias_correction,
    lazy,
    mean_square,
    moment_ratio,
    negate_grad,
    scale_by_learning_rate,
    scale_by_momentum,
)
from linkax.transforms._check import checked

from ..algebra._chain import Chain, chain
from ..algebra._when import when


@checked
def sparse_adam(
    learning_rate: Rate = 1e-3,
    *,
    b1: ProperFraction = 0.9,
    b2: ProperFraction = 0.999,
    eps: NonNegative = 1e-8,
    maximize: bool = False,
) -> Chain:
    """Adam that updates only the rows that have a gradient: PyTorch's SparseAdam, a lazy Adam.

    In the touched rows m ← β1 m + (1 − β1) g, v ← β2 v + (1 − β2) g²,
    w ← w − α √(1 − β2^t) / (1 − β1^t) · m / (√v + ε), where t counts all steps; other rows stay unchanged.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        b1: β1, in [0, 1), or a schedule of it; the bias correction follows it exactly.
        b2: β2, in [0, 1), likewise.
        eps: ε ≥ 0, in the gradient's units, added to the uncorrected root; or a schedule of it.
        maximize: Whether to maximise.

    Returns:
        A chain. It takes row-sparse gradients (`row_gradient`) and dense ones.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`, `betas` for `(b1, b2)`; it rejects dense gradients. `adam` adds ε to the
        corrected root.

    Example:
        >>> from linkax import sparse_adam
        >>> sparse_adam()
        chain
        ├─ lazy()                                                moment
        │  └─ moment_ratio(eps=1e-08)                            moment
        │     ├─ first
        │     │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
        │     │  └─ bias_correction(decay=0.9)                   moment
        │     └─ second
        │        └─ mean_square(decay=0.999)                     moment
        ├─ bias_correction(decay=0.999, behind_ratio=True)       moment
        └─ scale_by_learning_rate(learning_rate=0.001)           step

    Source:
        `torch.optim.SparseAdam`.
    """
    return chain(
        when(maximize, negate_grad),
        lazy(
            moment_ratio(
                chain(scale_by_momentum(b1, dampening=b1), bias_correction(b1)),
                mean_square(b2),
                eps,
            )
        ),
        bias_correction(b2, behind_ratio=True),  # placed here, so that ε is added to the uncorrected root
        scale_by_learning_rate(learning_rate),
    )
