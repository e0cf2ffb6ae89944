"""Lion: the sign of a momentum, with decoupled weight decay."""

from typing import Any

from linkax.transforms import (
    Fraction,
    Rate,
    decoupled_weight_decay,
    negate_grad,
    scale_by_blended_momentum,
    scale_by_learning_rate,
    scale_by_sign,
)
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def lion(
    learning_rate: Rate = 1e-4,
    *,
    b1: Fraction = 0.9,
    b2: Fraction = 0.99,
    weight_decay: Rate = 1e-3,
    weight_decay_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """Lion: every parameter moves by the learning rate, in the direction of a momentum.

    With c = β1 m + (1 − β1) g: w ← w − α (sign(c) + λ w), and then m ← β2 m + (1 − β2) g. Steps are larger than Adam's,
    so α is usually 3 to 10 times smaller, and λ as many times larger. It has one moment.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        b1: β1, the share of the average in the step, in [0, 1], or a schedule of it.
        b2: β2, how much of the past the average keeps, in [0, 1], or a schedule of it.
        weight_decay: λ ≥ 0, or a schedule of it; each step removes the fraction α λ of every weight.
        weight_decay_mask: Which leaves decay, as for `mask` of `decoupled_weight_decay`.
        maximize: Whether to maximise: g is negated before anything else; the weights still decay.
        state: The format in which the moment is stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`,
            see `stored`; `None` for float32.

    Returns:
        A chain. Links whose number is the Python number 0 are left out.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch has no Lion. Optax has the same arguments and requires a learning rate; Keras has no weight decay by
        default. Derivatives by b1 and b2 are 0, because a sign does not change with them.

    Example:
        >>> from linkax import lion
        >>> lion(3e-4)
        chain
        ├─ scale_by_blended_momentum(blend=0.9, decay=0.99)  moment
        ├─ scale_by_sign()                                   moment
        ├─ decoupled_weight_decay(weight_decay=0.001)        step
        └─ scale_by_learning_rate(learning_rate=0.0003)      step

    Source:
        Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2; `optax.lion`.
    """
    tx = chain(
        when(maximize, negate_grad),
        scale_by_blended_momentum(b1, b2),
        scale_by_sign(),
        when(weight_decay, decoupled_weight_decay, weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
