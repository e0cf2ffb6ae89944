"""Steps by the root mean square of a whole array: of the update itself, or of its parameter.

u_t / max(1, RMS(u_t) / threshold)
u_t · max(smallest, RMS(w_t))
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._check import Interval, NonNegative, Number, Schedule
from ._leaves import is_complex, like, map_updates, over, safe_sqrt, scalar, times, wide
from ._link import link

Threshold = Annotated[Number | Schedule, Interval("(0, inf)", schedule=True)]
"""A finite number above 0, or a schedule of such numbers."""


@link("step", is_leafwise=True, factor=None)
def clip_by_rms(threshold: Threshold) -> optax.GradientTransformation:
    """Scales the update of every array down until its root mean square is at most a threshold.

    u ← u / max(1, RMS(u) / threshold), where RMS(u) is the root of the mean of all u² of an array, such as a layer's
    kernel.

    Args:
        threshold: The largest root mean square, above 0, or a schedule of it.

    Returns:
        A link at the place `"step"` without state. The root mean square of a complex array is that of all its real and
        imaginary parts.

    Raises:
        ValueError: If `threshold` is not above 0.

    Differences:
        `optax.clip_by_block_rms` is the same; its mean for complex numbers is twice as large.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import clip_by_rms
        >>> link = clip_by_rms(1.0)
        >>> u = jnp.array([1.0, 7.0])  # the root mean square is 5
        >>> print(link.update(u, link.init(u))[0])
        [0.2 1.4]

    Source:
        Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018, section 6;
        `torch.optim.Adafactor`, argument `d`.
    """

    def clipped(u):
        u_wide = wide(u)
        rms = root_mean_square(u_wide)
        return like(over(u_wide, lax.max(over(rms, threshold), lax.full_like(rms, 1))), u)

    def update(updates, state, params=None):
        del params
        return map_updates(clipped, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


@link("step", is_leafwise=True, factor=None, knobs={"smallest": "eps2"})
def scale_by_param_rms(smallest: NonNegative = 1e-3) -> optax.GradientTransformation:
    """Multiplies the update of every array by the root mean square of its parameter.

    u ← u · max(smallest, RMS(w)), where RMS(w) is the root of the mean of all w² of an array. The learning rate after
    it is relative to the size of the parameters.

    Args:
        smallest: The smallest factor, at least 0, in the parameters' units, or a schedule of it. Without it, parameters
            that are 0 would stay 0.

    Returns:
        A link at the place `"step"` without state; `update` needs the parameters. The root mean square of a complex
        array is that of all its real and imaginary parts.

    Raises:
        ValueError: If `smallest` is negative or not finite; from `update`, if no parameters are given.

    Differences:
        `optax.scale_by_param_block_rms` is the same.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_param_rms
        >>> link = scale_by_param_rms()
        >>> w, u = jnp.array([1.0, 7.0]), jnp.array([1.0, -1.0])
        >>> print(link.update(u, link.init(w), w)[0])
        [ 5. -5.]

    Source:
        Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018, section 8;
        `torch.optim.Adafactor`, argument `eps`.
    """

    def scaled(u, w):
        rms = root_mean_square(wide(w))
        return like(times(lax.max(rms, scalar(smallest, rms)), wide(u)), u)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("scale_by_param_rms: params must be given to update, because of their size; got None")
        return map_updates(scaled, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def root_mean_square(x: jax.Array) -> jax.Array:
    """√(mean of x²) of all elements, real and imaginary parts apart; 0 of none."""
    reals = jnp.stack([lax.real(x), lax.imag(x)]) if is_complex(x.dtype) else x
    return safe_sqrt(jnp.sum(reals * reals) / max(1, reals.size))
