"""How an array of optimizer state is stored in fewer bits.

bfloat16 is float32 without its lower half. The other formats store one code per element, of one byte or four bits, and
one scale per block of elements:

x ≈ scale · level(code),   scale = the largest |x| of the block

| format   | level of code c, signed                   | level of code c, unsigned                      |
| -------- | ----------------------------------------- | ---------------------------------------------- |
| `float8` | float8 e4m3 over 256                      | a float of 5 bits of exponent, 3 of mantissa   |
| `int8`   | sign(c) · (c/127)⁴, c = −127 … 127        | ((c + 1)/256)⁴, c = 0 … 255                    |
| `int4`   | sign(c) · 2^(|c| − 7), c = −7 … 7, 0 at 0 | 2^(c − 7), c = −8 … 7                          |

Moments within a block differ by orders of magnitude, so the levels lie closer together towards zero. No format needs a
table: two squarings decode a fourth power and two square roots encode it, and the other levels are the upper bits of a
float32.

The largest element is itself a level, so a state that does not change keeps its codes.

Arrays that are never negative (second moments) have unsigned codes without a zero. Their root is a divisor, and
rounding it to zero would turn a small step into an infinite one. A value below the lowest level becomes the lowest
level, whose root is 1/65536 of the largest one's (1/46341 for `float8`, 1/181 for `int4`). So does a zero, unless the
whole block is zero.

A block is a whole row or column: all elements along one axis. So nothing is reshaped: codes have the array's shape,
scales broadcast to it, and a sharded array has sharded codes. XLA compiles a step into two loops over memory: one reads
the gradient and the old codes to find the new maxima, the other computes the new codes and parameters. With blocks of a
fixed length, which split an axis, a TPU needs only these two loops for some sizes; for others XLA stores the moments in
float32 in between (8 bytes per parameter), or fails to compile.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._rounding import stochastic, uniform

Format = Literal["bfloat16", "float8", "int8", "int4"]
Rounding = Literal["stochastic", "nearest"]


class Blocks(NamedTuple):
    """An array stored as codes, with a scale for each block of them."""

    codes: jax.Array  # the array's shape, of one byte or four bits
    scales: jax.Array  # the array's shape, except 1 along the blocks' axis; float32


def fits(format: Format, shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape can be stored in the format: bfloat16 always, others if an axis is long enough."""
    return format == "bfloat16" or bool(_axes(tuple(shape)))


def encode(
    format: Format,
    x: ArrayLike,
    *,
    positive: bool,
    seed: Any = None,
    rounding: Rounding = "stochastic",
    before: Any = None,
    scales: jax.Array | None = None,
) -> jax.Array | Blocks:
    """Encodes an array as it is stored.

    Args:
        format: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`.
        x: A floating-point array of a shape that fits; wider dtypes are rounded to float32 first.
        positive: Whether the array is never negative.
        seed: A uint32 scalar, different at each step (`seed_of`); only stochastic rounding needs it.
        rounding: `"stochastic"`, to one of the two neighbouring levels at random, so that the mean is x, or
            `"nearest"`. An average that moves by less than half the distance between levels at each step stands still
            when rounded to the nearest.
        before: The array as stored so far, whose blocks lie along the same axis. Without it an axis is chosen: one
            along which the array is not sharded, if JAX can tell (for a traced array, only on a mesh with explicit
            axes), and among those the shortest that is long enough.
        scales: The blocks' scales, if they have been computed already (`block_scales`).

    Returns:
        An array for bfloat16, otherwise `Blocks`. A block with a NaN, an infinity or a number above 2¹²⁶ becomes NaN as
        a whole, so that an overflow stays visible.

    Raises:
        ValueError: If `format` or `rounding` is none of these, or the shape does not fit.
    """
    for name, value, allowed in (("format", format, get_args(Format)), ("rounding", rounding, get_args(Rounding))):
        if value not in allowed:
            raise ValueError(f"encode: {name} must be one of {allowed}, got {value!r}")
    x = jnp.asarray(x, jnp.float32)
    if format == "bfloat16":
        return stochastic(x, jnp.bfloat16, seed) if rounding == "stochastic" else x.astype(jnp.bfloat16)
    if scales is None:
        (scales,) = block_scales([x], _axis(x) if before is None else axis_of(before))
    # Devices treat what is below the smallest normal number as 0 anyway.
    inverse = jnp.where(scales < jnp.finfo(jnp.float32).tiny, 0, 1 / jnp.maximum(scales, jnp.finfo(jnp.float32).tiny))
    share = (jnp.maximum(x, 0) if positive else x) * inverse  # at most 1, up to rounding
    noise = None if rounding == "nearest" else uniform(x, seed)
    return Blocks(_CODES[format](share, noise, positive), scales)


def decode(format: Format, kept: Any, *, positive: bool) -> jax.Array:
    """Decodes what `encode` returned to a float32 array of the same shape, not negative if `positive`."""
    if format == "bfloat16":
        return kept.astype(jnp.float32)
    return _LEVELS[format](kept[0], positive) * kept[1]


def block_scales(arrays: Sequence[ArrayLike], axis: int) -> list[jax.Array]:
    """The scales of the blocks of arrays of one shape: the largest |x| of each, or NaN if that is above 2¹²⁶ or a NaN.

    XLA for a GPU makes a loop for each maximum. Moments that are computed from the same gradient are found in one loop,
    which reads it once.

    Args:
        arrays: Floating-point arrays of one shape that fits.
        axis: The axis along which their blocks lie.
    """
    # The bits of nonnegative floats, read as integers, are in the same order, NaN last; a maximum of floats may lose a
    # NaN on CPUs.
    sizes = [jax.lax.bitcast_convert_type(jnp.abs(jnp.asarray(x, jnp.float32)), jnp.int32) for x in arrays]

    def one_by_one(*sizes: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.max(size, axis=axis, keepdims=True) for size in sizes)

    def together(*sizes: jax.Array) -> tuple[jax.Array, ...]:
        least = (np.int32(0),) * len(sizes)
        found = jax.lax.reduce(sizes, least, lambda a, b: tuple(map(jnp.maximum, a, b)), (axis,))
        return tuple(jnp.expand_dims(bits, axis) for bits in found)

    if len(sizes) == 1:
        largest = one_by_one(*sizes)
    else:
        largest = jax.lax.platform_dependent(*sizes, cuda=together, default=one_by_one)
    return [jnp.where(bits <= _LARGEST, jax.lax.bitcast_convert_type(bits, jnp.float32), jnp.nan) for bits in largest]


_LARGEST = (126 + 127) << 23
"""The bits of 2¹²⁶: the inverse of a larger scale would be below the smallest normal number."""


# The axis of the blocks.

_SHORTEST = 80
"""With shorter blocks the scales would take more than a twentieth of the memory of one-byte codes."""


def _axes(shape: tuple[int, ...]) -> list[int]:
    """The axes along which blocks may lie, best first.

    Along the shortest axis that is long enough, a block's elements have most in common: in an embedding of many words,
    they are one word's. The last two axes are a layer's inputs and outputs; the axes before them may be layers or
    heads.
    """
    if len(shape) < 2 or 0 in shape:
        return []
    long = [axis for axis in range(len(shape)) if shape[axis] >= _SHORTEST]
    return sorted(long, key=lambda axis: (axis < len(shape) - 2, shape[axis]))


def _axis(x: jax.Array) -> int:
    """The axis for an array that has not been stored yet."""
    axes = _axes(x.shape)
    if not axes:
        raise ValueError(
            f"encode: x must have two axes or more, one of them of at least {_SHORTEST} elements, got shape {x.shape}"
        )
    local = _local_shape(x)
    return next((axis for axis in axes if local[axis] == x.shape[axis]), axes[0])


def _local_shape(x: jax.Array) -> tuple[int, ...]:
    """The shape of one device's part of an array, as far as JAX knows; of a traced array, along explicit axes only."""
    if isinstance(x, jax.core.Tracer):
        return jax.typeof(x).sharding.shard_shape(x.shape)
    return x.sharding.shard_shape(x.shape) if hasattr(x, "sharding") else x.shape


def axis_of(kept: Any) -> int:
    """The axis along which the blocks of a stored array lie, inferred from its two shapes."""
    codes, scales = kept
    return next(axis for axis, (size, count) in enumerate(zip(codes.shape, scales.shape)) if size != count)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


# Codes. Each function takes a share of the block's scale, in [−1, 1], and a random number in [0, 1) or `None`.


def _goes_up(share: jax.Array, low: jax.Array, high: jax.Array, noise: jax.Array | None) -> jax.Array:
    """1 where the share is rounded to the level above, 0 where to the one below."""
    threshold = 0.5 if noise is None else noise
    return (threshold * (high - low) < share - low).astype(jnp.float32)


def _fourth(z: jax.Array) -> jax.Array:
    square = z * z
    return square * square


def _int8_code(share: jax.Array, noise: jax.Array | None, positive: bool) -> jax.Array:
    size = share if positive else jnp.abs(share)
    steps = 256 if positive else 127
    code = jnp.floor(jnp.sqrt(jnp.sqrt(size)) * steps)
    if positive:
        code = jnp.maximum(code, 1)
    unit = np.float32(1 / steps)
    code = jnp.minimum(code + _goes_up(size, _fourth(code * unit), _fourth((code + 1) * unit), noise), steps)
    return (code - 1).astype(jnp.uint8) if positive else jnp.copysign(code, share).astype(jnp.int8)


def _int8_level(code: jax.Array, positive: bool) -> jax.Array:
    number = code.astype(jnp.float32)
    if positive:
        return _fourth((number + 1) * np.float32(1 / 256))
    z = number * np.float32(1 / 127)
    return jnp.copysign(_fourth(z), z)


def _int4_code(share: jax.Array, noise: jax.Array | None, positive: bool) -> jax.Array:
    size = share if positive else jnp.abs(share)
    least = 127 - 15 if positive else 127 - 7  # the exponent of the code that counts as 0 here
    exponent = jnp.maximum(_bits(size) >> 23, np.uint32(least))
    low, high = _from_exponent(exponent), _from_exponent(exponent + 1)
    if not positive:
        low = jnp.where(exponent == least, 0, low)
    number = (exponent - np.uint32(least)).astype(jnp.float32)
    code = jnp.minimum(number + _goes_up(size, low, high, noise), 15 if positive else 7)
    return (code - 8 if positive else jnp.copysign(code, share)).astype(jnp.int8).astype(jnp.int4)


def _int4_level(code: jax.Array, positive: bool) -> jax.Array:
    number = code.astype(jnp.int32)
    if positive:
        return _from_exponent(number + (127 - 7))
    size = jnp.where(number == 0, 0, _from_exponent(jnp.abs(number) + (127 - 7)))
    return jnp.where(number < 0, -size, size)


def _from_exponent(exponent: jax.Array) -> jax.Array:
    """2 to the power of a biased float32 exponent: 127 for 2⁰."""
    return jax.lax.bitcast_convert_type(exponent << 23, jnp.float32)


_LOWEST = 96 << 3
"""The exponent and the first three bits of the mantissa of 2⁻³¹ in float32: the unsigned code 0."""


def _float8_code(share: jax.Array, noise: jax.Array | None, positive: bool) -> jax.Array:
    if positive:
        low = jnp.maximum(_bits(share) >> 20, np.uint32(_LOWEST))
        up = _goes_up(share, _from_high_bits(low), _from_high_bits(low + 1), noise)
        # (From integers to integers, XLA for the TPU would compile this to a separate loop.)
        return ((low - np.uint32(_LOWEST)).astype(jnp.float32) + up).astype(jnp.uint8)
    size = jnp.abs(share) * 256
    normal = _bits(size) >> 20
    below = jnp.floor(size * 512)  # under 2⁻⁶ the spacing is 2⁻⁹ throughout
    is_normal = size >= np.float32(2**-6)
    low = jnp.where(is_normal, _from_high_bits(normal), below * np.float32(2**-9))
    high = jnp.where(is_normal, _from_high_bits(normal + 1), (below + 1) * np.float32(2**-9))
    rounded = jnp.where(_goes_up(size, low, high, noise) > 0, high, low)
    return jnp.copysign(rounded, share).astype(jnp.float8_e4m3fn)


def _float8_level(code: jax.Array, positive: bool) -> jax.Array:
    if positive:
        return _from_high_bits(code.astype(jnp.uint32) + np.uint32(_LOWEST))
    return code.astype(jnp.float32) * np.float32(1 / 256)


def _from_high_bits(bits: jax.Array) -> jax.Array:
    """The positive float32 with these 8 bits of exponent and 3 of mantissa, and zeros after them."""
    return jax.lax.bitcast_convert_type(bits << 20, jnp.float32)


_CODES = {"float8": _float8_code, "int8": _int8_code, "int4": _int4_code}
_LEVELS = {"float8": _float8_level, "int8": _int8_level, "int4": _int4_level}
