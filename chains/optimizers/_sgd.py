"""SGD: a step against the gradient, its running sum (momentum), or that sum one step ahead (Nesterov)."""

from typing import Any

from linkax.transforms import (
    Fraction,
    Rate,
    add_l2_to_grad,
    negate_grad,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_nesterov,
)
from linkax.transforms._check import checked, known
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def sgd(
    learning_rate: Rate = 1e-3,
    *,
    momentum: Fraction | None = None,
    dampening: Fraction | None = None,
    nesterov: bool = False,
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """Stochastic gradient descent, with optional momentum.

    With g ← g + λ w: b_1 = g_1, b_t = μ b_{t−1} + (1 − d) g_t, and w ← w − α b_t, or w ← w − α (g_t + μ b_t) with
    `nesterov`. The learning rate multiplies the whole buffer, so a schedule acts on the past gradients too.

    Args:
        learning_rate: α ≥ 0, or a schedule of it.
        momentum: μ, in [0, 1], or a schedule of it; `None` for none.
        dampening: d, in [0, 1], or a schedule of it; the first gradient is not dampened. `None` for 0.
        nesterov: Whether to use Nesterov's momentum; needs `momentum` above 0 and no `dampening`.
        weight_decay: λ ≥ 0, or a schedule of it, added to the gradient (L2); `None` for none.
        weight_decay_mask: Which leaves decay, as for `mask` of `add_l2_to_grad`.
        maximize: Whether to maximise: g is negated before anything else.
        state: The format in which the moments are stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`,
            see `stored`; `None` for float32.

    Returns:
        A chain. Links whose number is `None` or the Python number 0 are left out.

    Raises:
        ValueError: If a number is outside its range, or `nesterov` is used without momentum or with dampening.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`. `optax.sgd` has no dampening. Keras multiplies the learning rate into the
        velocity: there `scale_by_learning_rate` comes before `scale_by_momentum`.

    Example:
        >>> from linkax import sgd
        >>> sgd(0.1, momentum=0.9)
        chain
        ├─ scale_by_momentum(decay=0.9, dampening=0.0, first_step='gradient')  moment
        └─ scale_by_learning_rate(learning_rate=0.1)                           step

    Source:
        `torch.optim.SGD`; Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
    """
    has_momentum = momentum is not None and known(momentum) != 0
    has_dampening = dampening is not None and (callable(dampening) or known(dampening) not in (0, None))
    if nesterov and (has_dampening or not has_momentum):
        raise ValueError(
            f"sgd: nesterov must come with momentum above 0 and no dampening, got {momentum=}, {dampening=}"
        )
    tx = chain(
        when(maximize, negate_grad),
        when(weight_decay, add_l2_to_grad, weight_decay, weight_decay_mask),
        when(nesterov, scale_by_nesterov, momentum),
        when(
            None if nesterov else momentum,
            scale_by_momentum,
            momentum,
            dampening=0.0 if dampening is None else dampening,
            first_step="gradient",
        ),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
