"""Adagrad: the gradient over the root of the sum of its squares."""

from typing import Any

from linkax.transforms import (
    Constant,
    NonNegative,
    Rate,
    add_l2_to_grad,
    negate_grad,
    scale_by_inverse_time_decay,
    scale_by_learning_rate,
    scale_by_rss,
)
from linkax.transforms._check import checked
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def adagrad(
    learning_rate: Rate = 1e-2,
    *,
    lr_decay: NonNegative | None = None,
    initial_accumulator_value: Constant = 0.0,
    eps: NonNegative = 1e-10,
    eps_in_sqrt: bool = False,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """Adagrad: the step of every element shrinks as its gradients accumulate.

    With g ← g + λ w and S ← S + g²: w ← w − α / (1 + (t − 1) d) · g / (√S + ε), with t counting from 1.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        lr_decay: d ≥ 0, how fast the learning rate decays, per step, or a schedule of it; `None` for no decay.
        initial_accumulator_value: S before the first step, at least 0.
        eps: ε ≥ 0, in the gradient's units, or their square with `eps_in_sqrt`; or a schedule of it.
        eps_in_sqrt: Whether ε is added under the root (most textbooks, Optax) or to it (PyTorch).
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
        PyTorch: `lr` for `learning_rate`. `optax.adagrad(lr, 0.1, 1e-7)` is
        `adagrad(lr, initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True)`.

    Example:
        >>> from linkax import adagrad
        >>> adagrad(1e-2, lr_decay=1e-3)
        chain
        ├─ scale_by_rss(initial_accumulator_value=0.0, eps=1e-10)  moment
        ├─ scale_by_inverse_time_decay(decay=0.001)                step
        └─ scale_by_learning_rate(learning_rate=0.01)              step

    Source:
        `torch.optim.Adagrad`; Duchi, Hazan and Singer, "Adaptive subgradient methods", 2011.
    """
    tx = chain(
        when(maximize, negate_grad),
        when(weight_decay, add_l2_to_grad, weight_decay, weight_decay_mask),
        scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt),
        when(lr_decay, scale_by_inverse_time_decay, lr_decay),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
