"""Adadelta: the gradient over its RMS, times the RMS of past steps."""

from typing import Any

from linkax.transforms import (
    Fraction,
    NonNegative,
    Rate,
    add_l2_to_grad,
    negate_grad,
    scale_by_adadelta,
    scale_by_learning_rate,
)
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def adadelta(
    learning_rate: Rate = 1.0,
    *,
    rho: Fraction = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """Adadelta: the size of each step follows from the past steps.

    With g ← g + λ w and V ← ρ V + (1 − ρ) g²: Δ = √(A + ε) / √(V + ε) · g, w ← w − α Δ, A ← ρ A + (1 − ρ) Δ².

    Args:
        learning_rate: α ≥ 0, or a schedule of it; 1 is the paper's method.
        rho: ρ, in [0, 1], or a schedule of it.
        eps: ε ≥ 0, under both roots, or a schedule of it.
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
        PyTorch: `lr` for `learning_rate`. Optax has the same arguments, and its weight decay is L2 too.

    Example:
        >>> from linkax import adadelta
        >>> adadelta()
        chain
        ├─ scale_by_adadelta(rho=0.9, eps=1e-06)      moment
        └─ scale_by_learning_rate(learning_rate=1.0)  step

    Source:
        `torch.optim.Adadelta`; Zeiler, "ADADELTA: an adaptive learning rate method", 2012.
    """
    tx = chain(
        when(maximize, negate_grad),
        when(weight_decay, add_l2_to_grad, weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
