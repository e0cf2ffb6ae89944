"""The arithmetic that links share."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from linkax.chains import adam
from linkax.transforms._leaves import (
    accumulator_dtype,
    accumulators,
    average,
    complement,
    dtype_of,
    entering,
    gathered,
    in_dtype_of,
    increment,
    on_reals,
    safe_sqrt,
    scalar_dtype,
    weighted,
    widened,
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


def test_numpys_float64_is_jaxs_float32():
    # Asking JAX for float64 is a warning, and so an error here.
    (leaf,) = widened((np.ones(2, np.float64),))
    assert dtype_of(np.ones(2, np.float64)) == accumulator_dtype(np.float64(1)) == jnp.float32
    assert jnp.asarray(leaf, dtype_of(leaf)).dtype == jnp.float32
    tx = adam()
    params = {"w": np.ones(2, np.float64)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("dtype", "param", "expected"),
    [
        (jnp.bfloat16, None, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16, jnp.float32),
        (jnp.float16, jnp.float64, jnp.float64),
        (jnp.float32, jnp.float16, jnp.float32),
        (jnp.float64, jnp.float32, jnp.float64),
        (jnp.float8_e4m3fn, jnp.bfloat16, jnp.float32),
        (jnp.float32, jnp.complex64, jnp.complex64),
        (jnp.int32, jnp.float32, jnp.int32),
        (jax.dtypes.float0, jnp.int32, jax.dtypes.float0),
    ],
)
def test_widened_is_as_wide_as_the_accumulators_and_the_parameter(x64, dtype, param, expected):
    leaf = np.zeros(2, dtype) if dtype == jax.dtypes.float0 else jnp.ones(2, dtype)
    params = None if param is None else {"a": jnp.ones(2, param), "none": jnp.ones(2), "masked": optax.MaskedNode()}
    tree = {"a": leaf, "none": None, "masked": optax.MaskedNode()}
    wide = widened(tree, params)
    assert dtype_of(wide["a"]) == expected
    assert (wide["none"], wide["masked"]) == (None, optax.MaskedNode())


def test_widened_shapes_stay_shapes():
    mesh = jax.make_mesh((1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))
    wide = widened(jax.ShapeDtypeStruct((2,), jnp.bfloat16, sharding=sharding))
    assert wide == jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding)


@pytest.mark.parametrize(
    ("update", "leaf", "dtype"),
    [
        (jnp.ones(2), jnp.ones(2, jnp.bfloat16), jnp.bfloat16),
        (jnp.ones(2), jnp.ones(2), jnp.float32),
        (jnp.ones(2, complex), jnp.ones(2), jnp.complex64),  # nothing is dropped in silence
        (np.zeros(2, jax.dtypes.float0), jnp.arange(2), jnp.int32),
    ],
)
def test_updates_leave_in_the_dtype_of_the_parameter(update, leaf, dtype):
    left = in_dtype_of(update, leaf)
    assert left.dtype == dtype
    np.testing.assert_array_equal(left, jnp.zeros(2) if dtype == jnp.int32 else jnp.ones(2))


def test_an_update_in_its_dtype_is_not_copied():
    update = jnp.ones(2)
    assert in_dtype_of(update, jnp.zeros(2)) is update
    assert entering("here", {"a": update}, {"a": jnp.zeros(2)})["a"] is update


def gathered_after(count, rest):
    """The weight that an average which forgets the share `rest` has gathered after so many steps."""
    zero = jnp.zeros((), rest.dtype)
    return jax.lax.fori_loop(0, count, lambda _, carry: gathered(*carry, rest), (zero, zero))[0]


def weight_of(decay, count):
    return -np.expm1(count * np.log(np.float64(decay))) if decay else 1.0


@hypothesis.given(decay=st.floats(0, 0.9999999), count=st.integers(1, 100_000))
def test_gathered_is_accurate_in_float32(decay, count):
    ours = gathered_after(count, jnp.asarray(complement(decay), jnp.float32))
    # 1 − decay is rounded once, and the weight once more at the end; what is lost in between is carried on.
    np.testing.assert_allclose(ours, weight_of(decay, count), rtol=2 * EPS)


@hypothesis.given(decay=st.floats(0, 1 - 2**-16, width=32), count=st.integers(1, 10_000))
def test_gathered_of_a_traced_decay(decay, count):
    ours = jax.jit(lambda decay: gathered_after(count, complement(decay)))(jnp.float32(decay))
    np.testing.assert_allclose(ours, weight_of(np.float32(decay), count), rtol=2 * EPS)


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_gathered_has_its_derivative_even_at_zero(x64, decay, count):
    def of(decay):  # a loop that reverse mode can go through
        carry = jnp.zeros(()), jnp.zeros(())
        for _ in range(count):
            carry = gathered(*carry, 1 - decay)
        return carry[0]

    # Fifty steps of some roundings each.
    np.testing.assert_allclose(jax.grad(of)(decay), -count * decay ** (count - 1), rtol=1e-14)


def test_safe_sqrt():
    x = jnp.array([0.0, 1e-30, 4.0, jnp.inf, jnp.nan, -1.0])
    np.testing.assert_array_equal(safe_sqrt(x), jnp.sqrt(x))
    np.testing.assert_array_equal(jax.grad(safe_sqrt)(0.0), 0.0)
    np.testing.assert_array_equal(jax.grad(safe_sqrt)(4.0), 0.25)
    np.testing.assert_array_equal(jax.hessian(safe_sqrt)(0.0), 0.0)


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("weight", [1.0, 0.25, "average"])
@pytest.mark.parametrize("kind", [float, jnp.float32])
def test_weighted_is_the_sum_of_two_products(decay, weight, kind):
    old, new = (part.ravel() for part in np.meshgrid(*2 * [np.array([0, 1, -3e30, 2e-30, 1e38, -0.7], np.float32)]))
    weight = complement(decay) if weight == "average" else weight
    expected = decay * np.float64(old) + weight * np.float64(new)
    found = weighted(jnp.asarray(old), jnp.asarray(new), kind(decay), kind(weight))
    # Half a unit each for the numbers, the products and the sum, which may be small next to what is added up.
    assert (np.abs(np.float64(found) - expected) <= 2 * EPS * (np.abs(np.float64(old)) + np.abs(new))).all()


@pytest.mark.parametrize("weight", [1.0, 0.1, 0.25])
@pytest.mark.parametrize("decay", [0.4, 0.5, 0.9, 1.0, jnp.float32(0.9)])
def test_an_overflow_stays_one(decay, weight):
    overflow = jnp.array([jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(weighted(overflow, jnp.ones(3), decay, weight), overflow)
    np.testing.assert_array_equal(weighted(jnp.ones(3), overflow, decay, weight), overflow)


def test_weighted_does_not_round_the_decay():
    value = jnp.linspace(1, 2, 1000)
    exact = 0.999 * np.asarray(value, np.float64)
    for found in (weighted(value, 0 * value, 0.999), average(value, 0 * value, 0.999)):
        drift = np.mean(np.asarray(found, np.float64) / exact - 1)
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
