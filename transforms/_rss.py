"""RSS scaling: the gradient divided by the root of the sum of its squares so far.

g_t / (√S_t + ε)   or   g_t / √(S_t + ε)
"""

import optax

from ._check import Constant, NonNegative
from ._link import link
from ._moment_ratio import moment_ratio
from ._sum_of_squares import sum_of_squares


@link("moment", is_leafwise=True, is_row_local=True)
def scale_by_rss(
    initial_accumulator_value: Constant = 0.0, eps: NonNegative = 1e-10, eps_in_sqrt: bool = False
) -> optax.GradientTransformation:
    """Divides the gradient by the root of the sum of its squares so far.

    g / (√S + ε), or g / √(S + ε) with `eps_in_sqrt`, where S ← S + g². It is
    `moment_ratio(optax.identity(), sum_of_squares(initial_accumulator_value), eps, eps_in_sqrt)`.

    Args:
        initial_accumulator_value: S before the first step, at least 0.
        eps: ε ≥ 0, in the gradient's units, or their square with `eps_in_sqrt`; or a schedule of it.
        eps_in_sqrt: Whether ε is added under the root (most textbooks, Optax) or to it (PyTorch).

    Returns:
        A link at the place `"moment"` with state `MomentRatioState(first, second)`; `second.sum_of_squares` has the
        parameters' shapes and is at least float32.

    Raises:
        ValueError: If a number is outside its range.

    Differences:
        `optax.scale_by_rss` has ε under the root, starts from 0.1, and returns 0 where S is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_rss
        >>> link = scale_by_rss(eps=1.0)
        >>> direction, state = link.update(jnp.float32(3.0), link.init(jnp.float32(0)))
        >>> print(direction)  # 3 / (√9 + 1)
        0.75

    Source:
        Duchi, Hazan and Singer, "Adaptive subgradient methods", 2011; `torch.optim.Adagrad`.
    """
    return moment_ratio(optax.identity(), sum_of_squares(initial_accumulator_value), eps, eps_in_sqrt)
