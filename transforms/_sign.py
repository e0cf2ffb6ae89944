"""The sign of every element.

sign(u_t), which is −1, 0 or 1
"""

import optax
from jax import lax

from ._leaves import like, map_updates, on_reals, wide
from ._link import link


@link("moment", is_leafwise=True, is_row_local=True, out="sign of {}")
def scale_by_sign() -> optax.GradientTransformation:
    """Replaces every element by its sign, so that all parameters move by the same distance.

    sign(u) is −1, 0 or 1. On the gradient alone this is sign descent; after a momentum it is Lion's step, and before
    one the momentum averages signs.

    Returns:
        A link at the place `"moment"` without state. Real and imaginary parts have separate signs.

    Differences:
        `optax.scale_by_sign` divides a complex number by its absolute value.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_sign
        >>> link = scale_by_sign()
        >>> print(link.update(jnp.array([0.5, 0.0, -3.0]), link.init(jnp.zeros(3)))[0])
        [ 1.  0. -1.]

    Source:
        Bernstein et al., "signSGD: compressed optimisation for non-convex problems", 2018.
    """
    sign = on_reals(lax.sign)

    def update(updates, state, params=None):
        del params
        return map_updates(lambda u: like(sign(wide(u)), u), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)
