"""Adafactor: steps by a factored mean of squares, in proportion to the size of the parameters."""

from typing import Annotated, Any

from linkax.transforms import (
    NonNegative,
    Rate,
    at_least_eps,
    clip_by_rms,
    decoupled_weight_decay,
    factored_mean_square,
    limit_learning_rate,
    moment_ratio,
    negate_grad,
    scale_by_learning_rate,
    scale_by_param_rms,
)
from linkax.transforms._check import Interval, Number, Schedule, checked
from linkax.transforms._factored_mean_square import Axes
from linkax.transforms._formats import Format

from ..algebra._chain import Chain, chain
from ..algebra._when import when
from ..running._stored import stored_moments


@checked
def adafactor(
    learning_rate: Rate = 1e-2,
    *,
    power: NonNegative = 0.8,
    eps1: NonNegative | None = None,
    eps2: NonNegative = 1e-3,
    threshold: Annotated[Number | Schedule, Interval("[1, inf)", schedule=True)] = 1.0,
    axes: Axes = (-2, -1),
    weight_decay: Rate | None = None,
    weight_decay_mask: Any = None,
    maximize: bool = False,
    state: Format | None = None,
) -> Chain:
    """Adafactor: steps relative to the parameters, by a second moment of which only rows and columns are kept.

    With the mean squares V of g, factored, and 1 − t^−p of them kept at step t, counted from 1:
    u = g / max(√V, ε1), u ← u / max(1, RMS(u) / d), w ← w − min(α, 1/√t) · max(ε2, RMS(w)) · u − α λ w.

    A matrix of n × m weights has n + m numbers of state, a vector one for every weight.

    Args:
        learning_rate: α ≥ 0, or a schedule of it: the size of a step, relative to that of the parameters, before
            1/√t is smaller. It is in two links: change it here or by `live`, not by a swap of one of them.
        power: p ≥ 0, how fast the share of a new square falls, or a schedule of it.
        eps1: ε1 ≥ 0, in the gradient's units; or a schedule of it. `None` for 1.2e-7 in float32, 2.2e-16 in float64.
        eps2: ε2 ≥ 0, in the parameters' units, the smallest size that parameters count as; or a schedule of it.
        threshold: d ≥ 1, the largest root mean square of u, or a schedule of it.
        axes: Which axis of an array counts rows and which columns: `(-2, -1)` for the last two, `None` to factor
            nothing, or a function from a parameter's path and shape to one of these; see `factored_mean_square`.
            `from_torch` sets it so that the axes are PyTorch's.
        weight_decay: λ ≥ 0, or a schedule of it, decoupled as in `adamw`; `None` for none.
        weight_decay_mask: Which leaves decay, as for `mask` of `decoupled_weight_decay`.
        maximize: Whether to maximise: g is negated before anything else; the weights still decay.
        state: The format in which the mean squares are stored between steps: `"bfloat16"`, `"float8"`, `"int8"` or
            `"int4"`, see `stored`; `None` for float32. Only rows and columns of at least 4096 elements, and unfactored
            arrays, are worth it.

    Returns:
        A chain. Links whose number is `None` or the Python number 0 are left out.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If an argument has the wrong type.

    Differences:
        PyTorch: `lr` for `learning_rate`, −`beta2_decay` for `power`, `eps` for `(eps1, eps2)`, `d` for `threshold`.
        Its ε1 for bfloat16 parameters is 0.0078. The last two axes of a convolution are the spatial ones there, and
        inputs and outputs in Flax. `optax.adafactor` and the paper add ε1 to the squares; see `factored_mean_square`.

    Example:
        >>> from linkax import adafactor
        >>> adafactor()
        chain
        ├─ moment_ratio(eps=None)                                           moment
        │  ├─ first: the input
        │  └─ second
        │     ├─ factored_mean_square(decay=1.0, power=0.8, axes=[-2, -1])  moment
        │     └─ at_least_eps()                                             moment
        ├─ clip_by_rms(threshold=1.0)                                       step
        ├─ scale_by_param_rms(smallest=0.001)                               step
        ├─ limit_learning_rate(learning_rate=0.01, power=0.5)               step
        └─ scale_by_learning_rate(learning_rate=0.01)                       step

    Source:
        `torch.optim.Adafactor`; Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost",
        2018.
    """
    tx = chain(
        when(maximize, negate_grad),
        moment_ratio(
            chain(),
            chain(factored_mean_square(power=power, axes=axes, eps=eps1), at_least_eps(eps1)),
            eps=None,
        ),
        clip_by_rms(threshold),
        scale_by_param_rms(eps2),
        limit_learning_rate(learning_rate),
        when(weight_decay, decoupled_weight_decay, weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    return stored_moments(tx, state)
