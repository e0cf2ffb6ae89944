"""ε added to a second moment, or to its root; or the least that it may be.

(√V_t + ε)²   or   V_t + ε   or   max(V_t, ε²)
"""

import optax
from jax import lax

from ._check import NonNegative
from ._leaves import like, map_updates, on_reals, or_spacing, safe_sqrt, scalar, wide
from ._link import InFront, link


@link("moment", is_leafwise=True, is_row_local=True, out="{}")
def add_eps(eps: NonNegative, eps_in_sqrt: bool = False) -> optax.GradientTransformation:
    """Adds ε to the root of a second moment, or to the second moment, before it goes on to other links.

    Returns (√V + ε)², or V + ε with `eps_in_sqrt`, so that the root that `moment_ratio` takes is √V + ε or √(V + ε).
    At the end of the second moment this is what the `eps` of `moment_ratio` does. Before a link that scales the second
    moment, ε is scaled with it: before `bias_correction` it is added to the uncorrected root ("ε-hat").

    Args:
        eps: ε ≥ 0, in the units of √V, or of V with `eps_in_sqrt`; or a schedule of it.
        eps_in_sqrt: Whether ε is added under the root or to it.

    Returns:
        A link at the place `"moment"` without state.

    Raises:
        ValueError: If `eps` is negative or not finite.

    Differences:
        PyTorch's RAdam adds ε before the bias correction, Optax's after it.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import add_eps
        >>> link = add_eps(1.0)
        >>> print(link.update(jnp.float32(4.0), link.init(jnp.float32(0)))[0])  # (√4 + 1)²
        9.0

    Source:
        Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 2; `torch.optim.RAdam`.
    """

    @on_reals
    def added(v):
        epsilon = scalar(eps, v)
        if eps_in_sqrt:
            return lax.add(v, epsilon)
        root = lax.add(safe_sqrt(v), epsilon)
        return lax.mul(root, root)

    def update(updates, state, params=None):
        del params
        return map_updates(lambda v: like(added(wide(v)), v), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


@link("moment", is_leafwise=True, is_row_local=True, out="{}", knobs={"eps": InFront("second", knob="eps1")})
def at_least_eps(eps: NonNegative | None = None) -> optax.GradientTransformation:
    """Raises a second moment to ε² wherever it is smaller, so that its root is at least ε.

    Returns max(V, ε²). Unlike `add_eps` it changes nothing where V is large enough.

    Args:
        eps: ε ≥ 0, in the units of √V; or a schedule of it. `None` for the spacing of numbers at 1: 1.2e-7 in float32,
            2.2e-16 in float64.

    Returns:
        A link at the place `"moment"` without state.

    Raises:
        ValueError: If `eps` is negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import at_least_eps
        >>> link = at_least_eps(0.5)
        >>> v = jnp.array([0.0, 4.0])
        >>> print(link.update(v, link.init(v))[0])
        [0.25 4.  ]

    Source:
        `torch.optim.Adafactor`, argument `eps`.
    """

    @on_reals
    def raised(v):
        epsilon = or_spacing(eps, v)
        return lax.max(v, lax.mul(epsilon, epsilon))

    def update(updates, state, params=None):
        del params
        return map_updates(lambda v: like(raised(wide(v)), v), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)
