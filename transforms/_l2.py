"""L2 regularisation: the decay enters the gradient, before any moment sees it.

g_t + λ w_t
"""

from collections.abc import Iterator
from typing import Any

import optax

from ._check import Rate
from ._decayed_weights import add_decayed_weights
from ._decoupled import decoupled_weight_decay
from ._link import Alternative, link


def _alternatives(weight_decay: Any, mask: Any, **_: Any) -> Iterator[Alternative]:
    yield Alternative("decoupled_weight_decay for {}", (decoupled_weight_decay(weight_decay, mask),), elsewhere=True)


@link(
    "gradient",
    is_leafwise=True,
    alternatives=_alternatives,
    too_late="to decay the weights after the moments, use decoupled_weight_decay",
)
def add_l2_to_grad(weight_decay: Rate, mask: Any = None) -> optax.GradientTransformation:
    """Adds λ w to the gradient: the gradient of the penalty ½ λ ‖w‖².

    g ← g + λ w, before any moment. The decay then goes through the moments as part of the gradient: it enters the
    averages, and adaptive optimizers divide it by √V, so weights with large gradients are decayed less. This is what
    `weight_decay` means in PyTorch's SGD, Adagrad, RMSprop, Adadelta and Adam.

    Args:
        weight_decay: λ ≥ 0, or a schedule of it (a function of the step count, from 0).
        mask: Which leaves decay: a tree of booleans like the parameters, a prefix of one, or a function from the
            parameters to one; `None` for all. `matrices_only` is a ready-made mask. Only the paths in the tree matter:
            a dictionary also works for a `FrozenDict`, an `nnx.State` or an Equinox module.

    Returns:
        A link at the place `"gradient"`, without state (with a schedule, `ScheduledState(count, inner)`); `update`
        needs the parameters.

    Raises:
        ValueError: If `weight_decay` is negative or not finite; from `init` and `update`, if `mask` does not fit the
            parameters; from `update`, if no parameters are given.
        TypeError: If `mask` has a leaf that is not a boolean.

    Differences:
        The arithmetic is `optax.add_decayed_weights`'s; the place is what matters. See `decoupled_weight_decay`.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import add_l2_to_grad
        >>> link = add_l2_to_grad(0.5)
        >>> w = jnp.float32(4.0)
        >>> g, state = link.update(jnp.float32(1.0), link.init(w), w)
        >>> print(g)
        3.0

    Source:
        Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, section 2; `torch.optim.Adam`.
    """
    return add_decayed_weights("add_l2_to_grad", weight_decay, mask)
