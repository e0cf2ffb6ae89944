"""Stochastic rounding: up or down at random, so that the mean of many roundings is the number itself.

Between two neighbours lo ≤ x ≤ hi of the narrower dtype, x becomes hi with probability (x − lo) / (hi − lo).

The randomness comes from a hash of the number's own bits and a seed. So there is no state, no array of random bits in
memory, and no dependence on an element's position: the result is the same however the array is sharded. The price is
that equal numbers in an array are rounded alike. Each number is unbiased over the steps, whose seeds differ.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

LARGEST_SEED = 2**32 - 1
"""The largest seed of a run: what a uint32 holds."""

_GOLDEN = 0x9E3779B9  # 2³² over the golden ratio: its multiples are spread evenly


def hashed(bits: Any) -> Any:
    """Hashes 32-bit numbers; every output bit depends on all input bits."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def _hashed_now(number: int) -> int:
    """`hashed` for a Python number, at no cost in a compiled step."""
    return int(hashed(np.array([number & 0xFFFFFFFF], np.uint32))[0])


def seed_of(seed: Any, count: Any = 0, index: int = 0) -> jax.Array:
    """The seed of one rounding, a uint32, from the run's seed, the step count and the array's index.

    Args:
        seed: An integer, of which the lowest 32 bits are used; or a result of `seed_of`.
        count: The step count, an integer; it may be traced.
        index: Which array of a tree it is.

    Returns:
        A scalar; the seeds of arguments that differ in any of the three are unrelated. For the arrays of one step,
        compute the seed of the step once and then `seed_of(of_step, index=index)`, which costs one operation.

    Example:
        >>> from linkax.transforms._rounding import seed_of
        >>> print(seed_of(0, 1, 0) == seed_of(0, 1, 1))
        False
    """
    known, mixed = 0, None
    for place, part in enumerate((seed, count, index), start=1):
        salt = place * _GOLDEN & 0xFFFFFFFF
        if isinstance(part, int):
            known ^= _hashed_now(part + salt) if part & 0xFFFFFFFF else 0
        else:
            number = jnp.asarray(part).astype(jnp.uint32)
            mixed = number if place == 1 else hashed(number + np.uint32(salt) + (0 if mixed is None else hashed(mixed)))
    return jnp.uint32(known) if mixed is None else mixed ^ np.uint32(known)


def noise(x: ArrayLike, seed: Any) -> jax.Array:
    """A uint32 for each element of a float32 array, from its bits and a seed."""
    return hashed(jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.uint32) ^ seed)


def uniform(x: ArrayLike, seed: Any) -> jax.Array:
    """A number in [0, 1) for each element of a float32 array, from its bits and a seed."""
    return _share(noise(x, seed))


def _share(random: jax.Array) -> jax.Array:
    """A uint32 as a share of 2³², in [0, 1)."""
    return (random >> 8).astype(jnp.float32) * np.float32(2**-24)


def stochastic(x: ArrayLike, dtype: Any, seed: Any) -> jax.Array:
    """Rounds to a narrower floating-point dtype, up or down at random, without bias.

    Args:
        x: An array; wider dtypes are rounded to float32 first.
        dtype: `bfloat16`, `float16`, or a signed float8.
        seed: A uint32 scalar, different at each step (`seed_of`).

    Returns:
        An array of that dtype. NaN and the infinities stay what they are. Numbers beyond the largest finite one are
        rounded to the nearest, so none overflows that would not do so anyway. Numbers that the dtype holds exactly,
        including zero, stay unchanged.

    Raises:
        ValueError: If `dtype` is not a floating-point dtype narrower than float32.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from linkax.transforms._rounding import seed_of, stochastic
        >>> x = jnp.float32(1 + 1 / 512)  # a quarter of the way from 1 to its neighbour in bfloat16
        >>> seeds = jax.vmap(lambda count: seed_of(0, count))(jnp.arange(1000))
        >>> rounded = jax.vmap(lambda seed: stochastic(x, jnp.bfloat16, seed))(seeds)
        >>> print(0.2 < jnp.mean(rounded > x) < 0.3)
        True

    Source:
        Gupta et al., "Deep learning with limited numerical precision", 2015. The hash is of the kind searched for in
        Wellons, "Prospecting for hash functions", 2018.
    """
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits >= 32:
        raise ValueError(f"stochastic: dtype must be a floating-point dtype below float32, got {jnp.dtype(dtype).name}")
    info = jnp.finfo(dtype)
    x = jnp.asarray(x, jnp.float32)
    random = noise(x, seed)
    # The bits of a float32, read as an integer, count its values in order. Adding a random number below the spacing,
    # and then dropping the bits below the spacing, rounds up as often as it should, also from one power of two to the
    # next.
    lost = 23 - info.nmant
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (random >> (32 - lost))
    rounded = jax.lax.bitcast_convert_type(bits & np.uint32(0xFFFFFFFF - (2**lost - 1)), jnp.float32)
    size = jnp.abs(x)
    if info.minexp > jnp.finfo(jnp.float32).minexp:  # below its smallest normal number the dtype's spacing is constant
        spacing = np.float32(2.0 ** (info.minexp - info.nmant))
        steps = size * (1 / spacing)
        below = jnp.floor(steps)
        goes_up = _share(random) < steps - below
        small = jnp.where(goes_up, below + 1, below) * spacing
        rounded = jnp.where(size < np.float32(2.0**info.minexp), jnp.copysign(small, x), rounded)
    # (NaN compares false, so it takes the last branch, too.)
    return jnp.where(size < np.float32(info.max), rounded, x).astype(dtype)
