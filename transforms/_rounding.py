"""Stochastic rounding: up or down by chance, so that the mean of many roundings is the number itself.

Between two neighbours lo ≤ x ≤ hi of the narrower dtype, x becomes hi with probability (x − lo) / (hi − lo).

The chance comes from a hash of the number's own bits and a seed. So there is no state, no array of random bits in
memory, and nothing that depends on where an element stands: the result is the same however the array is sharded. The
price is that equal numbers of an array are rounded alike; what is unbiased is each number over the steps, whose seeds
differ.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

LARGEST_SEED = 2**32 - 1
"""Of a run: what a uint32 holds."""

_GOLDEN = 0x9E3779B9  # 2³² over the golden ratio: its multiples are spread evenly


def hashed(bits: Any) -> Any:
    """Another 32-bit number for each; every bit of it depends on all bits given."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def _hashed_now(number: int) -> int:
    """`hashed` for a Python number, which then costs a compiled step nothing."""
    return int(hashed(np.array([number & 0xFFFFFFFF], np.uint32))[0])


def seed_of(seed: Any, count: Any = 0, index: int = 0) -> jax.Array:
    """The seed of one rounding, a uint32: of a run's seed, the step's count and the number of the array.

    Args:
        seed: A whole number, of which the lowest 32 bits count; or what `seed_of` returned.
        count: The step's count, a whole number; it may be traced.
        index: Which array of a tree it is.

    Returns:
        A scalar; seeds that differ in any of the three have nothing in common. For the arrays of one step, compute that
        of the step once and then `seed_of(of_step, index=index)`: that costs one operation.

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
    """Rounds to a narrower floating-point dtype, up or down by chance, without bias.

    Args:
        x: An array; what is wider than float32 is rounded to float32 first.
        dtype: `bfloat16`, `float16`, or a float8 with a sign.
        seed: A uint32 scalar, another one at each step (`seed_of`).

    Returns:
        An array of that dtype. NaN and the infinities stay what they are, and what is beyond the largest finite number
        is rounded to the nearest: no number overflows that would not otherwise. Numbers that the dtype holds exactly,
        with them zero, stay as they are.

    Raises:
        ValueError: If `dtype` is no floating-point dtype narrower than float32.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from linkax.transforms._rounding import seed_of, stochastic
        >>> x = jnp.float32(1 + 1 / 512)  # a quarter of the way from 1 to its neighbour in bfloat16
        >>> seeds = jax.vmap(lambda count: seed_of(0, count))(jnp.arange(1000))
        >>> rounded = jax.vmap(lambda seed: stochastic(x, jnp.bfloat16, seed))(seeds)
        >>> print(0.2 < jnp.mean(rounded > x) < 0.3)
        True

    Source:
        Gupta et al., "Deep learning with limited numerical precision", 2015. The hash is of a kind that Wellons,
        "Prospecting for hash functions", 2018, searched for.
    """
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits >= 32:
        raise ValueError(f"stochastic: dtype must be a floating-point dtype below float32, got {jnp.dtype(dtype).name}")
    info = jnp.finfo(dtype)
    x = jnp.asarray(x, jnp.float32)
    random = noise(x, seed)
    # The bits of a float32 count its values in order. Adding a random number below the spacing, and cutting off what
    # is below the spacing, goes up as often as it should, also from one power of two to the next.
    lost = 23 - info.nmant
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (random >> (32 - lost))
    rounded = jax.lax.bitcast_convert_type(bits & np.uint32(0xFFFFFFFF - (2**lost - 1)), jnp.float32)
    size = jnp.abs(x)
    if info.minexp > jnp.finfo(jnp.float32).minexp:  # below its least normal number the dtype's spacing is constant
        spacing = np.float32(2.0 ** (info.minexp - info.nmant))
        steps = size * (1 / spacing)
        below = jnp.floor(steps)
        goes_up = _share(random) < steps - below
        small = jnp.where(goes_up, below + 1, below) * spacing
        rounded = jnp.where(size < np.float32(2.0**info.minexp), jnp.copysign(small, x), rounded)
    # (NaN compares false, so it takes the last way, too.)
    return jnp.where(size < np.float32(info.max), rounded, x).astype(dtype)
