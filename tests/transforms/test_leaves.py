"""The arithmetic that links share."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from linkax.transforms._leaves import (
    accumulator_dtype,
    accumulators,
    complement,
    decayed,
    increment,
    on_reals,
    one_minus_power,
    safe_sqrt,
    scalar_dtype,
)

EPS = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (jnp.float16, jnp.float32),
        (jnp.bfloat16, jnp.float32),
        (jnp.float8_e4m3fn, jnp.float32),
        (jnp.float32, jnp.float32),
        (jnp.float64, jnp.float64),
        (jnp.complex64, jnp.complex64),
        (jnp.complex128, jnp.complex128),
    ],
)
def test_accumulators_are_at_least_float32(x64, dtype, expected):
    assert accumulator_dtype(jnp.zeros((), dtype)) == expected
    (total,) = accumulators((jnp.ones((2, 3), dtype),), fill=0.5)
    chex.assert_shape(total, (2, 3))
    assert total.dtype == expected
    assert total.real.min() == 0.5
    if jnp.iscomplexobj(total):
        assert total.imag.min() == 0.5  # as PyTorch's Adagrad


def test_scalar_dtype_serves_the_widest_leaf(x64):
    assert scalar_dtype({}) == jnp.float32
    assert scalar_dtype({"a": jnp.zeros(2, jnp.bfloat16), "b": None}) == jnp.float32
    assert scalar_dtype({"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros(2, jnp.complex128)}) == jnp.float64


def test_integers_are_refused():
    with pytest.raises(TypeError, match="must be floating-point or complex, got a leaf of dtype int32"):
        accumulators({"a": jnp.arange(3)})


@hypothesis.given(decay=st.floats(0, 0.9999999), count=st.integers(1, 100_000))
def test_one_minus_power_is_accurate_in_float32(decay, count):
    exact = -np.expm1(count * np.log(np.float64(decay))) if decay else 1.0
    ours = one_minus_power(decay, jnp.int32(count), jnp.dtype(jnp.float32))
    # log(decay) and its product with the count are each rounded once; expm1 is good to two units in the last place.
    np.testing.assert_allclose(ours, exact, rtol=4 * EPS)


@hypothesis.given(decay=st.floats(0, 1 - 2**-16, width=32), count=st.integers(1, 10_000))
def test_one_minus_power_of_a_traced_decay(decay, count):
    exact = -np.expm1(count * np.log(np.float64(np.float32(decay)))) if decay else 1.0
    ours = jax.jit(one_minus_power, static_argnums=2)(jnp.float32(decay), jnp.int32(count), jnp.dtype(jnp.float32))
    np.testing.assert_allclose(ours, exact, rtol=4 * EPS)


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_one_minus_power_has_its_derivative_even_at_zero(x64, decay, count):
    def of(decay):
        return one_minus_power(decay, jnp.int32(count), jnp.dtype(jnp.float64))

    np.testing.assert_allclose(jax.grad(of)(decay), -count * decay ** (count - 1), rtol=1e-14)


def test_safe_sqrt():
    x = jnp.array([0.0, 1e-30, 4.0, jnp.inf, jnp.nan, -1.0])
    np.testing.assert_array_equal(safe_sqrt(x), jnp.sqrt(x))
    np.testing.assert_array_equal(jax.grad(safe_sqrt)(0.0), 0.0)
    np.testing.assert_array_equal(jax.grad(safe_sqrt)(4.0), 0.25)
    assert jnp.isfinite(jax.hessian(safe_sqrt)(0.0))


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.5, 0.9, 0.999, 1.0])
def test_decayed_is_the_product(decay):
    value = jnp.array([0.0, 1.0, -3e30, jnp.inf, -jnp.inf, jnp.nan])
    product = decay * np.asarray(value, np.float64) if decay else np.array([0, 0, 0, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(decayed(value, decay), product, rtol=2 * EPS)


def test_decayed_does_not_round_the_decay():
    value = jnp.linspace(1, 2, 1000)
    exact = 0.999 * np.asarray(value, np.float64)
    drift = np.mean(np.asarray(decayed(value, 0.999), np.float64) / exact - 1)
    assert abs(drift) < 2e-9 < abs(np.mean(np.asarray(0.999 * value, np.float64) / exact - 1))


def test_complement_keeps_the_digits():
    assert complement(0.999) == 1 - 0.999
    assert complement(jnp.asarray(0.5, jnp.bfloat16)).dtype == jnp.float32


def test_complex_numbers_are_pairs():
    square = on_reals(lambda x: x * x)
    np.testing.assert_array_equal(square(jnp.array(2 + 3j)), 4 + 9j)
    np.testing.assert_array_equal(square(jnp.array(2.0)), 4.0)


def test_counters_stop_at_the_largest_integer():
    largest = jnp.iinfo(jnp.int32).max
    assert increment(jnp.int32(largest)) == largest
    assert increment(jnp.int32(3)) == 4
