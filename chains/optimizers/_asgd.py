"""ASGD: gradient descent with a decaying rate, and the average of the parameters."""

from typing import Any

from linkax.transforms import (
    NonNegative,
    Rate,
    add_l2_to_grad,
    average_weights,
    negate_grad,
    scale_by_inverse_time_decay,
    scale_by_learning_rate,
)
from linkax.transforms._check import checked

from ..algebra._chain import Chain, chain
from ..algebra._when import when


@checked
def asgd(
    learning_rate: Rate = 1e-2,
    *,
    lr_decay: NonNegative | None = 1e-6,
    power: NonNegative = 0.75,
    start: NonNegative = 1e6 + 1,
    weight_decay: Rate | None = 1e-4,
    weight_decay_mask: Any = None,
    maximize: bool = False,
) -> Chain:
    """Averaged stochastic gradient descent: plain descent with a decaying rate, whose parameters are averaged.

    With g ← g + λ w: w ← w − α / (1 + (t − 1) κ)^p · g, with t counting from 1. The average of w is in the state.
    `averaged_weights` reads it, for evaluation in place of the last w; see `linkax.transforms.average_weights`.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        lr_decay: κ ≥ 0, how fast the rate decays, per step, or a schedule of it; `None` for not at all.
        power: p ≥ 0, or a schedule of it.
        start: After how many steps the average starts, at least 0, or a schedule of it; until then it is w itself.
        weight_decay: λ ≥ 0, or a schedule of it, added to the gradient (L2), which is decoupled decay here; `None` for
            none.
        weight_decay_mask: Which leaves decay, as for `mask` of `add_l2_to_grad`.
        maximize: Whether to maximise: g is negated before anything else.

    Returns:
        A chain. Links whose number is `None` or the Python number 0 are left out. It has no `state` argument: its only
        array, the average, moves by less and less per step, so that all of its digits count.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`, `alpha` for `power`, `start` is `t0 + 1`; its `lambd` is one number for two
        things, so that `lr_decay` is `lambd * lr` and `weight_decay` is `weight_decay + lambd`.

    Example:
        >>> from linkax import asgd
        >>> asgd(start=101)
        chain
        ├─ add_l2_to_grad(weight_decay=0.0001)                   gradient
        ├─ scale_by_inverse_time_decay(decay=1e-06, power=0.75)  step
        ├─ scale_by_learning_rate(learning_rate=0.01)            step
        └─ average_weights(start=101.0, every=1)                 update

    Source:
        `torch.optim.ASGD`; Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """
    return chain(
        when(maximize, negate_grad),
        when(weight_decay, add_l2_to_grad, weight_decay, weight_decay_mask),
        when(lr_decay, scale_by_inverse_time_decay, lr_decay, power),
        scale_by_learning_rate(learning_rate),
        average_weights(start=start),
    )
