"""Standard-deviation scaling: the gradient divided by the root of its running variance.

g_t / (√(nu_t − mu_t²) + ε)   or   g_t / √(nu_t − mu_t² + ε)
"""

import optax

from ._check import Fraction, NonNegative
from ._link import link
from ._moment_ratio import moment_ratio
from ._variance import variance


@link("moment", is_leafwise=True, knobs={"decay": "decay"})
def scale_by_stddev(
    decay: Fraction, eps: NonNegative = 1e-8, eps_in_sqrt: bool = False
) -> optax.GradientTransformation:
    """Divides the gradient by its running standard deviation: centered RMSprop.

    g / (√(nu − mu²) + ε), or g / √(nu − mu² + ε) with `eps_in_sqrt`, where mu and nu are the running means of g and
    of g². It is `moment_ratio(optax.identity(), variance(decay), eps, eps_in_sqrt)`.

    Args:
        decay: How much of the past both means keep (PyTorch's `alpha`), in [0, 1], or a schedule of it.
        eps: ε ≥ 0, in the gradient's units, or their square with `eps_in_sqrt`; or a schedule of it.
        eps_in_sqrt: Whether ε is added under the root (TensorFlow, Optax's default) or to it (PyTorch).

    Returns:
        A link at the place `"moment"` with state `MomentRatioState(first, second)`; `second.mu` and `second.nu` have
        the parameters' shapes and are at least float32.

    Raises:
        ValueError: If a number is outside its range.

    Differences:
        See `variance` for gradients that hardly change.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_stddev
        >>> link = scale_by_stddev(0.5, eps=0.0)
        >>> direction, state = link.update(jnp.float32(3.0), link.init(jnp.float32(0)))
        >>> print(direction)  # 3 / √(4.5 − 1.5²)
        2.0

    Source:
        Graves, "Generating sequences with recurrent neural networks", 2013; `torch.optim.RMSprop(centered=True)`.
    """
    return moment_ratio(optax.identity(), variance(decay), eps, eps_in_sqrt)
