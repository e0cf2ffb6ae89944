"""RMS scaling: the gradient divided by the root of the running mean of its square.

g_t / (√nu_t + ε)   or   g_t / √(nu_t + ε)
"""

import optax

from ._check import Fraction, NonNegative
from ._link import link
from ._mean_square import mean_square
from ._moment_ratio import moment_ratio


@link("moment", is_leafwise=True, knobs={"decay": "decay"})
def scale_by_rms(decay: Fraction, eps: NonNegative = 1e-8, eps_in_sqrt: bool = False) -> optax.GradientTransformation:
    """Divides the gradient by the root of the running mean of its square.

    g / (√nu + ε), or g / √(nu + ε) with `eps_in_sqrt`, where nu ← decay · nu + (1 − decay) · g². It is
    `moment_ratio(optax.identity(), mean_square(decay), eps, eps_in_sqrt)`.

    Args:
        decay: How much of the past the mean keeps (PyTorch's `alpha`), in [0, 1], or a schedule of it.
        eps: ε ≥ 0, in the gradient's units, or their square with `eps_in_sqrt`; or a schedule of it.
        eps_in_sqrt: Whether ε is added under the root (TensorFlow, Optax's default) or to it (PyTorch).

    Returns:
        A link at the place `"moment"` with state `MomentRatioState(first, second)`; `second.nu` has the parameters'
        shapes and is at least float32.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_rms
        >>> link = scale_by_rms(0.75, eps=0.0)
        >>> direction, state = link.update(jnp.float32(8.0), link.init(jnp.float32(0)))
        >>> print(direction)  # 8 / √(0.25 · 64)
        2.0

    Source:
        Tieleman and Hinton, Coursera lecture 6.5, 2012; `torch.optim.RMSprop`.
    """
    return moment_ratio(optax.identity(), mean_square(decay), eps, eps_in_sqrt)
