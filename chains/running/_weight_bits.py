"""The arithmetic of weights that are really float32, but have 16 bits in the model.

The model sees the nearest 16-bit number. Everything here works on bits: a compiler that may keep more digits than
requested, as XLA may, can remove a rounding there and back, and denormal numbers may count as zero. `jax.grad` sees
what the functions approximate: the rounded number has the derivative of the number.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from linkax.transforms._rounding import stochastic

LOW = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
"""The dtypes with too few digits for training."""

_HALF = 0x8000  # of the last bit of a bfloat16, in units of the last bit of a float32
_NAN = 0x7FC0  # a quiet one in bfloat16
_INFINITY = 0x7F80


def _moves_with_its_argument(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Gives a function of arrays the derivative of its first argument, which it approximates."""
    approximate = jax.custom_jvp(fn)

    @approximate.defjvp
    def jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        out = approximate(*primals)
        return out, tangents[0].astype(out.dtype)

    return approximate


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint32 if x.dtype == jnp.float32 else jnp.uint16)


def _float32(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits.astype(jnp.uint32), jnp.float32)


@_moves_with_its_argument
def widen(p: jax.Array) -> jax.Array:
    """A bfloat16 or float16 array in float32, exactly."""
    bits = _bits(p).astype(jnp.uint32)
    if p.dtype == jnp.bfloat16:
        return _float32(bits << 16)
    # float16: the same digits, with another exponent; a denormal is the difference of two normal numbers.
    sign, size = (bits & _HALF) << 16, bits & 0x7FFF
    moved = (size << 13) + ((127 - 15) << 23)
    moved = jnp.where(size >= 0x7C00, moved + ((127 - 15) << 23), moved)  # infinity and NaN
    denormal = _bits(_float32((size << 13) + ((127 - 14) << 23)) - jnp.float32(2.0**-14))
    return _float32(sign | jnp.where(size < 0x0400, denormal, moved))


def _low_bits(x: jax.Array) -> jax.Array:
    """The bits of the bfloat16 nearest to a float32; of two equally near, the one farther from zero.

    Ties to even would send 65,537 float32 numbers to every even bfloat16, one more than 16 bits can distinguish.
    """
    bits = _bits(x)
    return jnp.where(x != x, _nan_like(bits), (bits + _HALF) >> 16)


def _nan_like(bits: jax.Array) -> jax.Array:
    return (bits >> 16) & _HALF | _NAN


@_moves_with_its_argument
def nearest(x: jax.Array, like: jax.Array) -> jax.Array:
    """The number nearest to `x` in the dtype of `like`, as float32; ties go to even, as in JAX."""
    if like.dtype != jnp.bfloat16:
        return widen(x.astype(like.dtype))
    bits = _bits(x)
    rounded = (bits + (_HALF - 1) + ((bits >> 16) & 1)) >> 16
    return _float32(jnp.where(x != x, _nan_like(bits), rounded) << 16)


@_moves_with_its_argument
def stochastically(x: jax.Array, like: jax.Array, seed: jax.Array) -> jax.Array:
    """One of the two neighbours of `x` in the dtype of `like`, as float32: on average over the seeds, `x`."""
    return widen(stochastic(x, like.dtype, seed))


@_moves_with_its_argument
def nearest_splitting(x: jax.Array) -> jax.Array:
    """The bfloat16 nearest to `x`, as float32, with the ties that `joined` and `lost_beside` need."""
    return _float32(_low_bits(x) << 16)


@_moves_with_its_argument
def joined(p: jax.Array, lost: jax.Array) -> jax.Array:
    """The float32 number from its nearest bfloat16 and the difference, `lost`.

    If `p` has changed since, the result still rounds to `p`; zero, infinity and NaN stay what they are.
    """
    bits = _bits(p).astype(jnp.int32)
    size = (bits & 0x7FFF) << 16
    offset = lost.astype(jnp.int32)
    is_end = (size == 0) | (size >= _INFINITY << 16)
    size = size + jnp.where(size == 0, jnp.maximum(offset, 0), jnp.where(is_end, jnp.minimum(offset, 0), offset))
    return _float32(lax.bitcast_convert_type(size, jnp.uint32) | (_bits(p).astype(jnp.uint32) & _HALF) << 16)


@jax.custom_jvp
def difference(new: jax.Array, old: jax.Array) -> jax.Array:
    """`new` minus `old`; where they are equal −0, the only number whose addition changes no other number."""
    return jnp.where(_bits(new) == _bits(old), jnp.float32(-0.0), new - old)


@difference.defjvp
def _difference_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    return difference(*primals), tangents[0] - tangents[1]


def lost_beside(p: jax.Array, x: jax.Array) -> jax.Array:
    """A float32 number minus its bfloat16, `p` as float32, in units of the float32's last bit: int16."""
    offset = lax.bitcast_convert_type(_bits(x) - _bits(p), jnp.int32)
    # Clipped in float32, which holds all such offsets: with integers all the way, a TPU's compiler makes two loops.
    return jnp.clip(offset.astype(jnp.float32), -_HALF, _HALF - 1).astype(jnp.int16)
