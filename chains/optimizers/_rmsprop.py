"""RMSprop: the gradient over the root of the running mean of its square, then optional momentum."""

from typing import Any

from linkax.transforms import (
    Fraction,
    NonNegative,
    Rate,
    add_l2_to_grad,
    negate_grad,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
    scale_by_stddev,
)
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def rmsprop(
    learning_rate: Rate = 1e-2,
    *,
    decay: Fraction = 0.99,
    eps: NonNegative = 1e-8,
    eps_in_sqrt: bool = False,
    centered: bool = False,
    momentum: Fraction | None = None,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """RMSprop: steps of about the learning rate's size in every element.

    With g ← g + λ w and V ← a V + (1 − a) g²: u = g / (√V + ε), where `centered` replaces V by V − ḡ², with ḡ the
    running mean of g; then b ← μ b + u and w ← w − α b. The learning rate multiplies the buffer, so a schedule acts
    after it.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        decay: a, in [0, 1], or a schedule of it.
        eps: ε ≥ 0, in the gradient's units, or their square with `eps_in_sqrt`; or a schedule of it.
        eps_in_sqrt: Whether ε is added under the root (TensorFlow, Optax's default) or to it (PyTorch).
        centered: Whether to subtract the square of the mean gradient, so that the root is the standard deviation.
        momentum: μ, in [0, 1], or a schedule of it; `None` for none.
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
        PyTorch: `lr` for `learning_rate`, `alpha` for `decay`. `optax.rmsprop` multiplies by the learning rate before
        the momentum: there `scale_by_learning_rate` comes before `scale_by_momentum`.

    Example:
        >>> from linkax import rmsprop
        >>> rmsprop(1e-2, momentum=0.9)
        chain
        ├─ scale_by_rms(decay=0.99, eps=1e-08)          moment
        ├─ scale_by_momentum(decay=0.9, dampening=0.0)  moment
        └─ scale_by_learning_rate(learning_rate=0.01)   step

    Source:
        `torch.optim.RMSprop`; Tieleman and Hinton, Coursera lecture 6.5, 2012.
    """
    tx = chain(
        when(maximize, negate_grad),
        when(weight_decay, add_l2_to_grad, weight_decay, weight_decay_mask),
        (scale_by_stddev if centered else scale_by_rms)(decay, eps, eps_in_sqrt),
        when(momentum, scale_by_momentum, momentum),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
