"""Clipping: the norm over all arrays, in every place where it may stand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

from linkax.chains import adam, chain, live, param_groups, precise_weights, sgd
from linkax.transforms import clip_grad_norm, clip_grad_value, row_gradient, scale_by_learning_rate

PARAMS = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}  # a norm of 5, and of 3 and 4


def update(tx, grads=PARAMS, params=PARAMS):
    return jax.jit(tx.update)(grads, tx.init(params), params)


def assert_scaled(clipped, share, grads=PARAMS):
    # float32, whose products are off by 6e-8
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, share * g, rtol=1e-6), clipped, grads)


def test_the_norm_is_that_of_all_leaves_and_is_kept():
    clipped, state = update(clip_grad_norm(1.0))
    assert_scaled(clipped, 1 / (5 + 1e-6))
    assert float(state.norm) == 5
    assert_scaled(update(clip_grad_norm(10.0))[0], 1)
    measured, state = update(clip_grad_norm(float("inf")))
    chex.assert_trees_all_equal(measured, PARAMS)
    assert float(state.norm) == 5


def test_in_front_of_groups_it_takes_the_norm_of_all_and_in_a_group_that_of_the_group():
    def groups(tx):
        return param_groups({"a": tx, "b": tx}, lambda path, w: path)

    descent = scale_by_learning_rate(1.0)
    assert_scaled(update(chain(clip_grad_norm(1.0), groups(descent)))[0], -1 / 5)
    clipped = update(groups(chain(clip_grad_norm(1.0), descent)))[0]
    np.testing.assert_allclose(clipped["a"], [-1, 0], rtol=1e-6)  # float32
    np.testing.assert_allclose(clipped["b"], [[-1]], rtol=1e-6)


def test_leaves_that_are_missing_or_masked_are_left_out():
    clipped, state = update(clip_grad_norm(1.0), {"a": PARAMS["a"], "b": None})
    assert clipped["b"] is None
    assert float(state.norm) == 3
    masked, _ = update(optax.masked(clip_grad_norm(1.0), {"a": True, "b": False}))
    assert_scaled(masked["a"], 1 / 3, PARAMS["a"])
    chex.assert_trees_all_equal(masked["b"], PARAMS["b"])
    for nothing in ({}, {"a": None}, {"a": optax.MaskedNode()}):
        clipped, state = update(clip_grad_norm(1.0), nothing, nothing)
        assert clipped == nothing
        assert float(state.norm) == 0
    assert float(update(clip_grad_norm(1.0, np.inf), {"a": jnp.zeros(0)}, {"a": jnp.zeros(0)})[1].norm) == 0


def test_inside_and_around_accumulation():
    grads = [PARAMS, jax.tree.map(lambda x: 3 * x, PARAMS)]

    def run(tx):
        state = tx.init(PARAMS)
        _, state = tx.update(grads[0], state, PARAMS)
        return tx.update(grads[1], state, PARAMS)[0]

    inner = chain(clip_grad_norm(1.0), scale_by_learning_rate(1.0))
    assert_scaled(run(optax.MultiSteps(inner, 2)), -1 / 5)  # of the mean
    around = optax.MultiSteps(scale_by_learning_rate(1.0), 2).gradient_transformation()
    assert_scaled(run(chain(clip_grad_norm(5.0), around)), -1)  # of each


@pytest.mark.parametrize("clip", [clip_grad_norm, clip_grad_value])
def test_the_limit_may_be_scheduled_and_set(clip):
    schedule = optax.piecewise_constant_schedule(1.0, {1: 2.0})
    tx = chain(clip(schedule))
    state = tx.init(PARAMS)
    for limit in (1.0, 2.0):
        clipped, state = tx.update(PARAMS, state, PARAMS)
        chex.assert_trees_all_close(clipped, update(chain(clip(limit)))[0])
    name = "max_norm" if clip is clip_grad_norm else "clip_value"
    settable = live(chain(clip(1.0), sgd(0.1)), name)
    state = settable.set_hyperparams(settable.init(PARAMS), {name: 2.0})
    chex.assert_trees_all_close(
        settable.update(PARAMS, state, PARAMS)[0], update(chain(clip(2.0), sgd(0.1)))[0], rtol=1e-6
    )


def test_a_norm_that_is_not_finite_acts_as_in_pytorch():
    for bad, expected in ((jnp.inf, [0.0, jnp.nan]), (jnp.nan, [jnp.nan, jnp.nan])):
        grads = {"a": jnp.array([1.0, bad]), "b": jnp.ones((1, 1))}
        clipped, state = update(clip_grad_norm(1.0), grads)
        np.testing.assert_array_equal(clipped["a"], expected)
        assert not jnp.isfinite(state.norm)
    finite = optax.apply_if_finite(chain(clip_grad_norm(1.0), adam()), 3)
    clipped, state = update(finite, grads)
    chex.assert_trees_all_equal(clipped, jax.tree.map(jnp.zeros_like, PARAMS))
    chex.assert_trees_all_equal(state.inner_state, finite.init(PARAMS).inner_state)


def test_a_norm_that_is_not_finite_is_an_error_if_that_is_wanted():
    tx = chain(clip_grad_norm(1.0, error_if_nonfinite=True), adam())
    state, bad = tx.init(PARAMS), {**PARAMS, "a": jnp.array([1.0, jnp.inf])}
    with pytest.raises(ValueError, match="clip_grad_norm: the norm .* must be finite .* got inf"):
        tx.update(bad, state, PARAMS)
    error, (clipped, _) = jax.jit(checkify.checkify(tx.update))(PARAMS, state, PARAMS)
    error.throw()
    chex.assert_trees_all_close(clipped, update(chain(clip_grad_norm(1.0), adam()))[0])
    error, _ = jax.jit(checkify.checkify(tx.update))(bad, state, PARAMS)
    with pytest.raises(ValueError, match="clip_grad_norm: the norm .* got inf"):
        error.throw()
    with pytest.raises(ValueError, match="clip_grad_norm: the norm .* got inf"):
        chex.chexify(jax.jit(tx.update), async_check=False)(bad, state, PARAMS)
    step = jax.jit(checkify.checkify(optax.MultiSteps(tx, 2).update))
    error, (_, state) = step(PARAMS, optax.MultiSteps(tx, 2).init(PARAMS), PARAMS)
    assert error.get() is None
    assert step(bad, state, PARAMS)[0].get() is not None
    with pytest.raises(ValueError, match="not functionalized"):
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)


def test_narrow_gradients_have_a_norm_in_float32():
    low = jnp.full((300, 200), 300.0, jnp.float16)  # a norm of 73485, above float16's largest number
    clipped, state = update(chain(clip_grad_norm(1.0), scale_by_learning_rate(1.0)), low, low)
    assert clipped.dtype == jnp.float16
    np.testing.assert_allclose(state[0].norm, 300 * np.sqrt(60000), rtol=1e-6)  # float32
    np.testing.assert_allclose(clipped[0, 0], -1 / np.sqrt(60000), rtol=2**-10)  # a float16's last digit
    mixed = {"a": jnp.array([3.0], jnp.bfloat16), "b": jnp.array([4.0])}
    assert float(update(clip_grad_norm(1.0), mixed, mixed)[1].norm) == 5
    tx = precise_weights(chain(clip_grad_norm(1.0), sgd(0.1)))
    assert float(optax.tree.get(update(tx, mixed, mixed)[1], "norm")) == 5


def test_complex_gradients():
    z = jnp.array([3 + 4j, 0])
    clipped, state = update(clip_grad_norm(1.0), z, z)
    assert float(state.norm) == 5
    assert_scaled(clipped, 1 / 5, z)
    np.testing.assert_array_equal(update(clip_grad_value(2.0), jnp.array([3 - 1j]), z[:1])[0], [2 - 1j])


def test_touched_rows_have_the_norm_of_the_whole_gradient():
    table, ids = jnp.zeros((6, 2)), jnp.array([1, 3, 1])
    rows = row_gradient(table, ids, jnp.arange(6.0).reshape(3, 2))
    tx = chain(clip_grad_norm(1.0), clip_grad_value(0.3), sgd(0.1))
    (few, few_state), (whole, state) = update(tx, rows, table), update(tx, rows.todense(), table)
    np.testing.assert_allclose(few.todense(), whole, rtol=1e-6)  # float32
    np.testing.assert_allclose(few_state[0].norm, state[0].norm, rtol=1e-6)


@pytest.mark.parametrize("norm_type", [2.0, 0.5, 1.0, 3.0, np.inf, 0.0])
def test_derivatives_at_zero_are_finite(norm_type):
    tx = clip_grad_norm(1.0, norm_type)

    def total(g):
        return tx.update(g, tx.init(g))[0].real.sum()

    for g in (jnp.zeros(2), jnp.array([0.0, 2.0]), jnp.zeros(2, jnp.complex64)):
        assert jnp.isfinite(jax.grad(total)(g)).all()


@pytest.mark.parametrize("norm_type", [float("nan"), "inf", None, True, 1j])
def test_the_kind_of_norm_must_be_a_number(norm_type):
    with pytest.raises(ValueError, match=r"^clip_grad_norm: norm_type must be a number, also infinity, got"):
        clip_grad_norm(1.0, norm_type)


@pytest.mark.parametrize("clip", [clip_grad_norm, clip_grad_value])
def test_the_limit_must_not_be_negative(clip):
    with pytest.raises(
        ValueError, match=rf"^{clip.__name__}: \w+ must be a number in \[0, inf\] or a schedule, got -1"
    ):
        clip(-1)
