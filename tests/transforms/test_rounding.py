"""Stochastic rounding: without bias, reproducible, and the same however an array is sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkax.transforms._rounding import hashed, noise, seed_of, stochastic, uniform

NARROW = (jnp.bfloat16, jnp.float16)
MANY = 1 << 16
# The tests of chance have fixed seeds, so that they pass always or never. What they compare with are bounds that an
# ideal source of noise would break once in a million times: 4.9 standard deviations.
SIGMAS = 4.9


def seeds(count: int) -> jax.Array:
    return jax.vmap(lambda step: seed_of(0, step))(jnp.arange(count))


def neighbours(x: np.float32, dtype) -> tuple[float, float]:
    """The two numbers of the dtype around x."""
    near = np.asarray(x, np.float32).astype(dtype)
    other = np.nextafter(near, np.asarray(np.inf if float(near) < x else -np.inf, dtype))
    low, high = sorted((float(near), float(other)))
    return low, high


@pytest.mark.parametrize("dtype", NARROW)
@given(st.floats(-6e4, 6e4, width=32).filter(lambda x: abs(x) > 1e-30), st.integers(0, 2**32 - 1))
def test_it_goes_to_one_of_the_two_neighbours(dtype, x, seed):
    x = np.float32(x)
    rounded = float(stochastic(x, dtype, np.uint32(seed)))
    if float(x.astype(dtype)) == x:
        assert rounded == x
    else:
        assert rounded in neighbours(x, dtype)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("x", [1.001, -3.14159, 1.99999, 6.1e-5, 3.3e-5, 1e-6, -1e-7, 60000.1, 0.1])
def test_one_number_over_many_steps_has_itself_as_mean(dtype, x):
    x = np.float32(x)
    rounded = np.asarray(jax.vmap(lambda seed: stochastic(x, dtype, seed))(seeds(MANY)), np.float64)
    low, high = neighbours(x, dtype)
    share = (float(x) - low) / (high - low)
    assert abs(np.mean(rounded == high) - share) <= SIGMAS * np.sqrt(share * (1 - share) / MANY)


@pytest.mark.parametrize("dtype", NARROW)
def test_many_numbers_in_one_step_have_themselves_as_mean(dtype):
    x = np.random.default_rng(0).uniform(0.5, 2.0, MANY).astype(np.float32)
    rounded = np.asarray(stochastic(x, dtype, seed_of(0, 1)), np.float64)
    spacing = np.where(x < 1, 0.5, 1.0) * float(jnp.finfo(dtype).eps)
    share = np.mod(x.astype(np.float64), spacing) / spacing
    # The sum of independent errors, each with the variance p (1 − p) of its coin.
    z = np.sum((rounded - x) / spacing) / np.sqrt(np.sum(share * (1 - share)))
    assert abs(z) <= SIGMAS


def test_the_noise_is_uniform_and_uncorrelated():
    x = np.linspace(1.0, 1.1, MANY, dtype=np.float32)  # neighbours: what is most alike
    first, second = (np.asarray(uniform(x, seed_of(0, step)), np.float64) for step in (1, 2))
    counts = np.histogram(first, 64, (0, 1))[0]
    chi_squared = np.sum((counts - MANY / 64) ** 2 / (MANY / 64))
    assert chi_squared <= 63 + SIGMAS * np.sqrt(2 * 63) + 20  # normal, plus what the tail of χ² has more
    for one, other in ((first, second), (first[1:], first[:-1]), (first, x.astype(np.float64))):
        assert abs(np.corrcoef(one, other)[0, 1]) <= SIGMAS / np.sqrt(MANY)


def test_each_bit_of_the_noise_depends_on_each_bit_of_the_seed():
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    for bit in range(32):
        changed = noise(x, np.uint32(12345)) ^ noise(x, np.uint32(12345 ^ (1 << bit)))
        shares = np.mean(np.asarray(changed)[:, None] >> np.arange(32) & 1, axis=0)
        # A good hash changes every bit half of the time. This one of two multiplications is up to 3 % off.
        np.testing.assert_allclose(shares, 0.5, atol=SIGMAS * 0.5 / np.sqrt(4096) + 0.03)


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_not_finite_passes_and_nothing_overflows_that_would_not(dtype):
    top = float(jnp.finfo(dtype).max)
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, top, -top, top * 1.0001, -top * 1.0001, 3.4e38], np.float32)
    nearest = np.asarray(jnp.asarray(x).astype(dtype).astype(jnp.float32))
    nan = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    for step in range(50):
        rounded = np.asarray(stochastic(x, dtype, seed_of(0, step)).astype(jnp.float32))
        np.testing.assert_array_equal(rounded, nearest)
        np.testing.assert_array_equal(np.signbit(rounded), np.signbit(x))
        assert np.all(np.isnan(stochastic(nan, dtype, seed_of(0, step))))


def test_seeds_differ_in_all_that_makes_them():
    made = {
        int(seed_of(seed, count, index))
        for seed in (0, 1, -1, 2**40)
        for count in (jnp.int32(0), jnp.int32(1), jnp.int32(2**31 - 1))
        for index in (0, 1, 1000)
    }
    assert len(made) == 36 - 9 * (2**40 % 2**32 == 0)  # only the lowest 32 bits of a seed count
    of_step = seed_of(7, jnp.int32(3))
    assert len({int(seed_of(of_step, index=index)) for index in range(1000)}) == 1000
    assert seed_of(0, 1).dtype == seed_of(of_step, 1).dtype == jnp.uint32


def test_the_hash_on_the_host_is_the_one_on_the_device():
    from linkax.transforms._rounding import _hashed_now

    numbers = np.array([0, 1, 2**31, 2**32 - 1, 123456789], np.uint32)
    np.testing.assert_array_equal(hashed(jnp.asarray(numbers)), [_hashed_now(int(number)) for number in numbers])


def test_it_is_the_same_jitted_mapped_and_in_parts():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32))
    seed = seed_of(1, 2)
    whole = stochastic(x, jnp.bfloat16, seed)
    np.testing.assert_array_equal(jax.jit(lambda x: stochastic(x, jnp.bfloat16, seed))(x), whole)
    np.testing.assert_array_equal(jax.vmap(lambda row: stochastic(row, jnp.bfloat16, seed))(x), whole)
    np.testing.assert_array_equal(
        jnp.concatenate([stochastic(x[:7], jnp.bfloat16, seed), stochastic(x[7:], jnp.bfloat16, seed)]), whole
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_only_narrower_floats(dtype):
    with pytest.raises(ValueError, match="stochastic: dtype must be a floating-point dtype below float32, got "):
        stochastic(jnp.ones(1), dtype, 0)
