"""The gradient, every element of which is limited.

max(−clip_value, min(g, clip_value))
"""

import optax
from jax import lax

from ._check import Limit
from ._leaves import map_updates, on_reals, scalar
from ._link import link


@link("gradient", is_row_local=True, is_leafwise=True)
def clip_grad_value(clip_value: Limit) -> optax.GradientTransformation:
    """Limits every element of the gradient to an interval around 0.

    g ← max(−clip_value, min(g, clip_value)). NaN stays NaN. As for `clip_grad_norm`, put it in front of the others.

    Args:
        clip_value: The limit, at least 0, or a schedule of it.

    Returns:
        A link at the place `"gradient"` without state of its own. The real and imaginary parts of complex elements are
        limited separately.

    Raises:
        ValueError: If `clip_value` is negative.

    Differences:
        PyTorch rejects complex gradients. `optax.clip` and Keras's `clipvalue` do the same to real ones.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import clip_grad_value
        >>> link = clip_grad_value(0.5)
        >>> g = jnp.array([-2.0, 0.1, 2.0])
        >>> print(link.update(g, link.init(g))[0])
        [-0.5  0.1  0.5]

    Source:
        `torch.nn.utils.clip_grad_value_`.
    """

    @on_reals
    def clip(g):
        limit = lax.full_like(g, 0) + scalar(clip_value, g)
        return lax.clamp(lax.neg(limit), g, limit)

    return optax.GradientTransformation(
        optax.init_empty_state, lambda updates, state, params=None: (map_updates(clip, updates), state)
    )
