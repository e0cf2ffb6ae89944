"""The gradient, scaled down where its norm is above a limit.

g · min(1, max_norm / (‖g‖ + 10⁻⁶)), with the norm of all arrays together
"""

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental import checkify

from ._check import Limit
from ._leaves import is_complex, like, map_updates, safe_sqrt, scalar, scalar_dtype, times, wide
from ._link import link
from ._meaning import Own

_SMALL = 1e-6
"""What PyTorch adds to the norm before it divides by it."""


class ClipGradNormState(NamedTuple):
    """State of `clip_grad_norm`."""

    norm: jax.Array  # (), at least float32: the norm of the last gradient, before it was clipped


@link("gradient", is_row_local=True, state={"norm": Own()})
def clip_grad_norm(
    max_norm: Limit, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> optax.GradientTransformation:
    """Scales the gradient down where its norm, over all arrays, is above a limit.

    g ← g · min(1, max_norm / (n + 10⁻⁶)), where n is the norm of the norms of the single arrays. The norm of the last
    gradient is in the state: `optax.tree.get(state, "norm")`, what `clip_grad_norm_` returns in PyTorch.

    Put it in front, `chain(clip_grad_norm(1.0), tx)`, to clip the gradient itself, as PyTorch does; after
    `add_l2_to_grad` it clips the sum of both. In front of `param_groups` it takes the norm of all parameters, in a
    group's chain that of the group. In front of `optax.MultiSteps` it takes the norm of each gradient, inside that of
    their mean. Under `jax.jit`, sharded gradients have the norm of the whole; inside `jax.shard_map`, that of a shard.

    Args:
        max_norm: The limit, at least 0; infinity to measure the norm only; or a schedule of it.
        norm_type: p of the norm (Σ|x|^p)^(1/p), any number: infinity for the largest |x|, minus infinity for the
            smallest. For 0 the norm of an array is the number of its elements that are not 0, and the norm of all is
            the number of arrays whose norm is not 0, as in PyTorch. It is read once, so it cannot be a schedule.
        error_if_nonfinite: Whether to raise if the norm is infinite or NaN, before anything is changed. A compiled
            function cannot raise by itself: the check is one of `jax.experimental.checkify`, so wrap the step in
            `checkify.checkify(step)` or `chex.chexify(step)`. JAX refuses to compile a step with an unwrapped check.
            Without it, as in PyTorch, an infinite norm turns finite elements into 0 and infinite ones into NaN, and NaN
            turns everything into NaN; `optax.apply_if_finite` skips such steps.

    Returns:
        A link at the place `"gradient"` with state `ClipGradNormState(norm)`. The norm is computed in the widest dtype
        of the gradients, but at least in float32; that of a complex array is the norm of its absolute values. Arrays
        without elements are left out.

    Raises:
        ValueError: If `max_norm` is negative, or `norm_type` is not a number; with `error_if_nonfinite`, from `update`,
            if the norm is infinite or NaN.

    Differences:
        PyTorch computes the norm in the dtype of the gradients: for 16-bit ones, the norm is off by up to 0.4 % in
        bfloat16, and infinite above 65504 in float16, which turns all gradients into 0. It rejects arrays without
        elements, if p is negative or infinite. `optax.clip_by_global_norm` and Keras's `global_clipnorm` divide by the
        norm itself, without 10⁻⁶.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import clip_grad_norm
        >>> link = clip_grad_norm(1.0)
        >>> g = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
        >>> clipped, state = link.update(g, link.init(g))
        >>> print(clipped["a"].round(3), clipped["b"].round(3), state.norm)
        [0.6 0. ] [0.8] 5.0

    Source:
        `torch.nn.utils.clip_grad_norm_`; Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural
        networks", 2013.
    """
    if isinstance(norm_type, bool) or not isinstance(norm_type, numbers.Real) or math.isnan(norm_type):
        raise ValueError(f"clip_grad_norm: norm_type must be a number, also infinity, got {norm_type!r}")
    order = float(norm_type)

    def init(params):
        return ClipGradNormState(jnp.zeros((), scalar_dtype(params)))

    def update(updates, state, params=None):
        del params
        dtype = scalar_dtype(updates)
        norms = [_norm(wide(g), order).astype(dtype) for g in jax.tree.leaves(updates)]
        norm = _norm(jnp.stack(norms), order) if norms else jnp.zeros((), dtype)
        if error_if_nonfinite:
            checkify.check(
                jnp.isfinite(norm),
                "clip_grad_norm: the norm of the gradients must be finite with error_if_nonfinite=True, got {norm}",
                norm=norm,
            )
        share = jnp.minimum(scalar(max_norm, norm) / (norm + scalar(_SMALL, norm)), scalar(1, norm))
        clipped = map_updates(lambda g: like(times(share, wide(g)), g), updates)
        return clipped, ClipGradNormState(norm.astype(state.norm.dtype))

    return optax.GradientTransformation(init, update)


def _norm(x: jax.Array, order: float) -> jax.Array:
    """The norm of all elements of an array; where it is 0, its derivative is 0, too."""
    if order == 2:
        return safe_sqrt(_square(x).sum())
    size = safe_sqrt(_square(x)) if is_complex(x.dtype) else lax.abs(x)
    if math.isinf(order):
        return size.max(initial=0) if order > 0 else size.min(initial=math.inf)
    zero = lax.full_like(size, 0)
    is_zero = lax.eq(size, zero)
    if order == 0:
        return (~is_zero).astype(size.dtype).sum()
    if order < 0:
        return (size**order).sum() ** (1 / order)
    total = jnp.where(is_zero, 0, jnp.where(is_zero, 1, size) ** order).sum()
    return jnp.where(total == 0, 0, jnp.where(total == 0, 1, total) ** (1 / order))


def _square(x: jax.Array) -> jax.Array:
    return lax.real(x) ** 2 + lax.imag(x) ** 2 if is_complex(x.dtype) else x * x
