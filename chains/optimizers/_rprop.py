"""Rprop: steps that depend on the signs of the gradients only."""

from linkax.transforms import NonNegative, negate_grad, scale_by_learning_rate, scale_by_sign_agreement
from linkax.transforms._check import Constant, checked, known
from linkax.transforms._formats import Format
from linkax.transforms._sign_agreement import Grow, Shrink

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def rprop(
    learning_rate: Constant = 1e-2,
    *,
    shrink: Shrink = 0.5,
    grow: Grow = 1.2,
    smallest: NonNegative = 1e-6,
    largest: NonNegative = 50.0,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """Resilient backpropagation: every weight has its own step size, which grows while its gradient keeps its sign.

    With a step size s of each weight, from s = α, and the last sign p, from 0:
    where sign(g) p > 0, s ← min(η+ s, largest); where sign(g) p < 0, s ← max(η− s, smallest) and g ← 0;
    then w ← w − s · sign(g) and p ← sign(g). For full batches: noise changes signs.

    Args:
        learning_rate: α ≥ 0, the step size of every weight in the first step; it makes no difference later.
        shrink: η−, in (0, 1), or a schedule of it.
        grow: η+ > 1, or a schedule of it.
        smallest: The smallest step size, at least 0, or a schedule of it.
        largest: The largest step size, at least `smallest`, or a schedule of it.
        maximize: Whether to maximise: g is negated before anything else.
        state: The format in which signs and step sizes are stored between steps: `"bfloat16"`, `"float8"` or `"int8"`,
            see `stored`; `None` for float32.

    Returns:
        A chain. Its `scale_by_learning_rate` is 1; set it, or make it a schedule, to scale all steps.

    Raises:
        ValueError: If a number is outside its range, or `largest` is below `smallest`.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`, `etas` for `(shrink, grow)`, `step_sizes` for `(smallest, largest)`.
        `optax.rprop` (0.2.8) takes every step one gradient late. The paper also takes the last step back where signs
        change.

    Example:
        >>> from linkax import rprop
        >>> print(rprop().links[0])
        scale_by_sign_agreement(initial_step_size=0.01, shrink=0.5, grow=1.2, smallest=1e-06, largest=50.0)

    Source:
        `torch.optim.Rprop`; Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the
        RPROP algorithm", 1993.
    """
    least, most = known(smallest), known(largest)
    if least is not None and most is not None and most < least:
        raise ValueError(f"rprop: largest must be at least smallest, got {largest=} and {smallest=}")
    tx = chain(
        when(maximize, negate_grad),
        scale_by_sign_agreement(learning_rate, shrink, grow, smallest, largest),
        scale_by_learning_rate(1.0),
    )
    return stored_moments(tx, state)
