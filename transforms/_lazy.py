"""Moments that stay unchanged where there is no gradient."""

import optax

from ._link import link, links_of
from ._precision import wide_inside


@link("moment", is_leafwise=True, is_row_local=True, covers_rows=True, holds={"inner": ()})
def lazy(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Leaves the moments of rows without a gradient unchanged, where the gradient is row-sparse.

    An average decays at every step, even where the gradient is zero, so a gradient of a few rows would change the whole
    table. Inside this link, a row's average decays only when the row is touched: only the row's own gradients count.
    For a dense gradient the link does what `inner` does.

    Args:
        inner: The link or chain, such as a `moment_ratio`, whose state stays unchanged for untouched rows.

    Returns:
        A link at the place `"moment"`, with `inner`'s state.

    Raises:
        TypeError: If `inner` is not a transformation.

    Differences:
        PyTorch: `torch.optim.SparseAdam`. TensorFlow Addons: `LazyAdam`. TensorFlow's own Adam is not lazy.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax import chain
        >>> from linkax.transforms import lazy, row_gradient, scale_by_learning_rate, scale_by_momentum
        >>> tx = chain(lazy(scale_by_momentum(0.5)), scale_by_learning_rate(1.0))
        >>> table = jnp.zeros((3, 1))
        >>> state = tx.init(table)
        >>> for row in (0, 1, 0):
        ...     updates, state = tx.update(row_gradient(table, jnp.array([row]), jnp.ones((1, 1))), state)
        >>> print(state[0].mu.T)
        [[1.5 1.  0. ]]

    Source:
        `torch.optim.SparseAdam`.
    """
    links_of("lazy: inner", inner)
    return wide_inside(inner)
