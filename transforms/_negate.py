"""The gradient with its sign flipped, which turns a minimiser into a maximiser.

−g_t
"""

import optax
from jax import lax

from ._leaves import like, map_updates, wide
from ._link import link


@link("gradient", is_leafwise=True, sets_sign=True, is_row_local=True, factor=-1.0)
def negate_grad() -> optax.GradientTransformation:
    """Negates the gradient, so that the optimizer maximises.

    g ← −g, before weight decay, which still shrinks the weights. `maximize=True` puts this link first.

    Returns:
        A link at the place `"gradient"` without state.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import negate_grad
        >>> link = negate_grad()
        >>> print(link.update(jnp.float32(3.0), link.init(jnp.float32(0)))[0])
        -3.0

    Source:
        `torch.optim.SGD`, argument `maximize`.
    """

    def update(updates, state, params=None):
        del params
        return map_updates(lambda g: like(lax.neg(wide(g)), g), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)
