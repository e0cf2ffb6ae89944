"""The arithmetic that every link shares: dtypes of accumulators, leaves without a gradient, complex numbers.

A leaf of the updates may be `None` (no gradient: nothing to do, its state stays as it is), an `optax.MaskedNode`
(JAX sees no leaf there at all), a scalar, an empty array, or complex.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._check import Number, Schedule


def accumulator_dtype(leaf: Any) -> jnp.dtype:
    """The dtype in which sums over many steps are kept for `leaf`: its own, but never less than float32."""
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"linkax: parameters and gradients must be floating-point or complex, got a leaf of dtype {dtype}; "
            "leave it out with optax.masked or optax.partition"
        )
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def accumulators(params: Any, fill: Number = 0.0) -> Any:
    """A tree like `params`, of accumulators that all hold `fill` (in both parts, where they are complex)."""

    def accumulator(leaf):
        dtype = accumulator_dtype(leaf)
        value = on_reals(lambda zero: zero + scalar(fill, zero))(jnp.zeros((), dtype))
        return jnp.full_like(leaf, value, dtype)

    return jax.tree.map(accumulator, params)


def scalar_dtype(params: Any) -> jnp.dtype:
    """The dtype of scalars that serve all of `params`: the widest real accumulator dtype among them."""
    dtypes = [jnp.finfo(accumulator_dtype(leaf)).dtype for leaf in jax.tree.leaves(params)]
    return jnp.result_type(jnp.float32, *dtypes)


def wide(leaf: Any) -> jax.Array:
    """`leaf` in the dtype of its accumulators."""
    return jnp.asarray(leaf, accumulator_dtype(leaf))


def like(value: jax.Array, leaf: Any) -> jax.Array:
    """`value` in the dtype of `leaf`."""
    return value.astype(jnp.result_type(leaf))


def scalar(value: Number, leaf: jax.Array) -> Number:
    """A hyperparameter, ready to meet `leaf` without changing its dtype.

    A Python number follows the dtype it meets; anything else is converted here (and would otherwise widen the leaf).
    """
    return value if type(value) in (int, float) else jnp.asarray(value, jnp.finfo(leaf.dtype).dtype)


def complement(value: Number) -> Number:
    """1 − value, in float64 when value is a Python number, so that 1 − 0.999 keeps all its digits in float32."""
    if isinstance(value, jax.Array):
        return 1 - value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return 1 - value


def decayed(value: jax.Array, decay: Number) -> jax.Array:
    """decay · value, as if `decay` were not rounded to the dtype of `value`.

    In float32 the rounding of 0.999 moves an average over many steps by 1e-5. Taking off the small share (1 − decay),
    whose rounding matters a thousand times less, avoids that; below 1/2 there is nothing to gain.
    """
    if isinstance(decay, jax.Array) or decay < 0.5:
        return scalar(decay, value) * value
    return jnp.where(jnp.isinf(value), value, value - complement(decay) * value)  # an overflow stays one: ∞ − ∞ is NaN


def average(old: jax.Array, new: jax.Array, decay: Number) -> jax.Array:
    """decay · old + (1 − decay) · new: one step of an exponential average."""
    return decayed(old, decay) + scalar(complement(decay), old) * new


def increment(count: jax.Array) -> jax.Array:
    """The next step's count; it stays at the largest int32 instead of overflowing."""
    return jnp.asarray(optax.safe_increment(count))


def at_step(value: Number | Schedule, count: Any) -> Number:
    """A hyperparameter at a step; a schedule is given the widest integer, or Optax's compute in float32 even in x64."""
    return value(count.astype(jax.dtypes.canonicalize_dtype(jnp.int64))) if callable(value) else value


def map_updates(fn: Callable[..., Any], updates: optax.Updates, *trees: Any) -> Any:
    """Maps `fn` over the leaves of `updates`; where there is no gradient (`None`) the result is `None`."""
    return jax.tree.map(lambda u, *rest: None if u is None else fn(u, *rest), updates, *trees, is_leaf=_is_none)


def map_state(fn: Callable[..., Any], updates: optax.Updates, state: Any, *trees: Any) -> Any:
    """Maps `fn` over the leaves of `updates` and `state`; where there is no gradient the state stays as it is.

    The state keeps its dtype, also where a gradient is wider than its parameter.
    """
    return jax.tree.map(
        lambda u, s, *rest: s if u is None else fn(u, s, *rest).astype(s.dtype),
        updates,
        state,
        *trees,
        is_leaf=_is_none,
    )


def _is_none(leaf: Any) -> bool:
    return leaf is None


def on_reals(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`fn` on real arrays; on complex ones, `fn` on the real and the imaginary parts apart, as PyTorch does it."""

    def apply(*leaves):
        if not any(jnp.iscomplexobj(leaf) for leaf in leaves):
            return fn(*leaves)
        return jax.lax.complex(fn(*(leaf.real for leaf in leaves)), fn(*(leaf.imag for leaf in leaves)))

    return apply


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 instead of infinity at 0.

    The chain rule would multiply that infinity by a zero (a second moment is 0 only where all its gradients were),
    and the product, NaN, would reach the hyperparameters.
    """
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    root = safe_sqrt(x)
    positive = root > 0
    return root, jnp.where(positive, dx / (2 * jnp.where(positive, root, 1)), 0)


def one_minus_power(decay: Number, count: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1 − decay^count for integers count ≥ 1, without the cancellation of the plain form when decay is close to 1."""
    if not isinstance(decay, jax.Array):
        log_decay = math.log(decay) if decay > 0 else -math.inf  # in float64; −inf: 0^count = 0
        return -jnp.expm1(count.astype(dtype) * log_decay)
    decay = decay.astype(dtype)
    # At 0 the logarithm's derivatives are infinite, so the plain form stands in there, and 1 for what is not taken.
    positive = jnp.where(decay > 0, decay, 1)
    log_decay = jnp.log1p(positive - 1)  # positive − 1 is exact in [1/2, 1], where it matters
    return jnp.where(decay > 0, -jnp.expm1(count.astype(dtype) * log_decay), 1 - decay**count)
