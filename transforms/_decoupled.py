"""Decoupled weight decay: the decay enters the step, after the moments.

u_t + λ w_t          then multiplied by the learning rate α_t (PyTorch's AdamW)
u_t + (λ/α) w_t      the same with α_t = η_t α, so that only the schedule η_t multiplies λ (the AdamW paper)
−α_t u_t − λ w_t     after the learning rate: independent of it
"""

from collections.abc import Iterator
from typing import Any, Literal

import optax

from ._check import Number, Positive, Rate
from ._decayed_weights import add_decayed_weights
from ._link import Alternative, link


def _alternatives(weight_decay: Any, mask: Any, **_: Any) -> Iterator[Alternative]:
    from ._l2 import add_l2_to_grad  # each is the other's alternative

    yield Alternative("add_l2_to_grad for {}", (add_l2_to_grad(weight_decay, mask),), elsewhere=True)


@link(
    "step",
    is_leafwise=True,
    place_from=lambda multiplied_by, **_: "update" if multiplied_by == "nothing" else "step",
    alternatives=_alternatives,
    too_late="to decay them independently of the learning rate, use decoupled_weight_decay(multiplied_by='nothing')",
    too_early="to decay the weights before the moments, use add_l2_to_grad",
)
def decoupled_weight_decay(
    weight_decay: Rate,
    mask: Any = None,
    *,
    multiplied_by: Literal["learning_rate", "schedule", "nothing"] = "learning_rate",
    peak_learning_rate: Positive | None = None,
) -> optax.GradientTransformation:
    """Makes every weight decay by the same fraction per step, whatever its gradients are.

    The link comes after the moments, so they never see the decay. Sources differ in what multiplies λ. With the
    learning rate α_t = η_t · α (a schedule η_t that peaks at 1, times the peak α), the parameters follow

    - `"learning_rate"` (PyTorch, Optax, Keras): w ← w − α_t (u + λ w);
    - `"schedule"` (the AdamW paper): w ← w − η_t (α u + λ w). It is the first form with λ/α in place of λ, so the peak
      α must be given;
    - `"nothing"`: w ← w − α_t u − λ w. The link then comes after the learning rate, and only a schedule for
      `weight_decay` can change the decay.

    Args:
        weight_decay: λ ≥ 0 per step, or a schedule of it (a function of the step count, from 0).
        mask: Which leaves decay: a tree of booleans like the parameters, a prefix of one, or a function from the
            parameters to one; `None` for all. `matrices_only` is a ready-made mask. Only the paths in the tree matter:
            a dictionary also works for a `FrozenDict`, an `nnx.State` or an Equinox module.
        multiplied_by: What multiplies λ; see above.
        peak_learning_rate: α > 0, with `multiplied_by="schedule"` and only then.

    Returns:
        A link without state (with a schedule, `ScheduledState(count, inner)`) at the place `"step"`, right before the
        learning rate; with `multiplied_by="nothing"` at the place `"update"`, after it. `update` needs the parameters.

    Raises:
        ValueError: If a number is outside its range, or `peak_learning_rate` is missing, or given where it is not used;
            from `init` and `update`, if `mask` does not fit the parameters; from `update`, if no parameters are given.
        TypeError: If `mask` has a leaf that is not a boolean.

    Differences:
        At a learning rate of 1e-3, λ = 1e-2 in PyTorch is λ = 1e-5 in the paper's notation.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import decoupled_weight_decay
        >>> w, u = jnp.float32(4.0), jnp.float32(1.0)
        >>> link = decoupled_weight_decay(0.5)
        >>> print(link.update(u, link.init(w), w)[0])
        3.0
        >>> link = decoupled_weight_decay(0.5, multiplied_by="nothing")
        >>> print(link.place, link.update(-u, link.init(w), w)[0])
        update -3.0

    Source:
        Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2; `torch.optim.AdamW`.
    """
    if (multiplied_by == "schedule") != (peak_learning_rate is not None):
        raise ValueError(
            "decoupled_weight_decay: peak_learning_rate must be given with multiplied_by='schedule' and only then, got "
            f"{peak_learning_rate!r} with {multiplied_by=}"
        )
    factor: Number = 1.0
    if multiplied_by == "nothing":
        factor = -1.0  # after the learning rate, updates already point downhill
    elif peak_learning_rate is not None:
        factor = 1.0 / peak_learning_rate
    return add_decayed_weights("decoupled_weight_decay", weight_decay, mask, factor)
