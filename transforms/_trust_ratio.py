"""Steps whose size is a fraction of their parameter's, array by array.

u_t · ‖w_t‖ / ‖u_t‖
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._leaves import is_complex, like, map_updates, safe_sqrt, times, wide
from ._link import link
from ._masks import check_flags, selected
from ._trees import is_function


@link("step", is_leafwise=True, factor=None)
def scale_by_trust_ratio(mask: Any = None) -> optax.GradientTransformation:
    """Gives the update of every array the norm of its parameter.

    u ← u · ‖w‖ / ‖u‖, with the Euclidean norms of a whole array, such as a layer's kernel; where one of them is 0, u is
    unchanged. The learning rate after it is then the fraction of its size by which each array changes per step, however
    large the batch and the gradient are. Weight decay before it counts as part of the update.

    Args:
        mask: Which leaves are scaled: a tree of booleans like the parameters, a prefix of one, or a function from the
            parameters to one; `None` for all. `matrices_only` is a ready-made mask.

    Returns:
        A link at the place `"step"` without state; `update` needs the parameters. The norm of a complex array is that
        of all its real and imaginary parts.

    Raises:
        ValueError: From `init` and `update`, if `mask` does not fit the parameters; from `update`, if no parameters are
            given.
        TypeError: If `mask` has a leaf that is not a boolean.

    Differences:
        Optax's has a smallest norm and a coefficient, which the learning rate is here. The paper bounds ‖w‖.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_trust_ratio
        >>> link = scale_by_trust_ratio()
        >>> w, u = jnp.array([6.0, 8.0]), jnp.array([0.0, 0.5])
        >>> print(link.update(u, link.init(w), w)[0])  # ‖w‖ = 10
        [ 0. 10.]

    Source:
        You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020; You, Gitman and
        Ginsburg, "Large batch training of convolutional networks", 2017.
    """
    where = "scale_by_trust_ratio"
    if not is_function(mask):
        check_flags(where, mask)

    def init(params):
        if jax.tree.leaves(params):  # none if Optax only asks which arrays belong to parameters
            selected(where, mask, params, to="be scaled")
        return optax.EmptyState()

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(f"{where}: params must be given to update, because the ratio needs their norms; got None")

        def scale(u, w, is_selected):
            if not is_selected:
                return u
            size, own = _norm(wide(w)), _norm(wide(u))
            is_zero = lax.bitwise_or(lax.eq(size, lax.full_like(size, 0)), lax.eq(own, lax.full_like(own, 0)))
            ratio = jnp.where(is_zero, 1, size / jnp.where(is_zero, 1, own))
            return like(times(ratio, wide(u)), u)

        return map_updates(scale, updates, params, selected(where, mask, params, to="be scaled")), state

    return optax.GradientTransformation(init, update)


def _norm(x: jax.Array) -> jax.Array:
    if is_complex(x.dtype):
        return safe_sqrt(jnp.sum(lax.real(x) ** 2) + jnp.sum(lax.imag(x) ** 2))
    return safe_sqrt(jnp.sum(x * x))
