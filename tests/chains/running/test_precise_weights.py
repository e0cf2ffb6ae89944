"""Parameters of 16 bits that train like float32 ones: alone, inside wrappers, and on their way in and out."""

import json
import math
import os
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, serialization
from flax.training.train_state import TrainState

from linkax.chains import (
    Chain,
    adam,
    apply_updates,
    chain,
    diff,
    full_weights,
    live,
    migrate,
    migrate_nnx,
    param_groups,
    precise_weights,
    rmsprop,
    sgd,
    with_full_weights,
)
from linkax.chains.running._weight_bits import difference, joined, lost_beside, nearest, nearest_splitting, widen
from linkax.transforms import decoupled_weight_decay, row_gradient

from ..wrappers import WRAPPERS

WAYS = ("master_copy", "lost_bits", "stochastic_rounding")
EXACT = WAYS[:2]
each_way = pytest.mark.parametrize("by", WAYS)
each_exact_way = pytest.mark.parametrize("by", EXACT)


def bits(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf).view(f"u{np.asarray(leaf).itemsize}") for leaf in jax.tree.leaves(tree)]


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(bits(actual), bits(expected)):
        np.testing.assert_array_equal(one, other)


def some_params(dtype: Any = jnp.bfloat16) -> dict[str, jax.Array]:
    return {"w": jax.random.normal(jax.random.key(0), (4, 3)).astype(dtype)}


RATE = 2.0**-10


def momentum(rate: Any = RATE) -> Chain:
    """A small optimizer, all products in which are exact if `rate` is a power of two.

    So it makes no difference that a compiler may make one rounding of a product and a sum, or two.
    """
    return sgd(rate, momentum=0.5, weight_decay=2.0**-3)


def wide(params: Any) -> Any:
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)


def some_gradients(params: Any, steps: int = 6, dtype: Any = jnp.float32) -> Any:
    """Gradients for every step, of very different sizes."""

    def stack(index: int, p: jax.Array) -> jax.Array:
        key, sizes = jax.random.split(jax.random.key(index))
        size = 10.0 ** jax.random.uniform(sizes, (steps, *p.shape), minval=-4, maxval=1)
        return (size * jax.random.normal(key, (steps, *p.shape))).astype(dtype)

    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten([stack(index, p) for index, p in enumerate(leaves)])


FAST = {"xla_backend_optimization_level": 0}  # fast to compile


def walk(tx: Any, params: Any, gradients: Any, state: Any = None, options: Any = FAST) -> tuple[Any, Any, Any]:
    """The parameters and the state in the end, and the float32 weights after every step."""

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), full_weights(tx, state, params)

    def run(params: Any, state: Any) -> Any:
        return jax.lax.scan(step, (params, tx.init(params) if state is None else state), gradients)

    (params, state), weights = jax.jit(run, compiler_options=options)(params, state)
    return params, state, weights


# the bits


ALL_16 = np.arange(2**16, dtype=np.uint16)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_every_number_of_16_bits_is_widened_exactly(dtype):
    numbers = ALL_16.view(dtype)
    expected = numbers.astype(np.float32)
    actual = np.asarray(widen(jnp.asarray(numbers)))
    is_number = ~np.isnan(expected)
    assert_same_bits(actual[is_number], expected[is_number])
    assert np.isnan(actual[~is_number]).all()


def around_every_bfloat16() -> np.ndarray:
    """Every bfloat16, the numbers beside it and beside the ties, and as many others."""
    starts = ALL_16.astype(np.uint32) << 16
    offsets = np.random.default_rng(0).integers(0, 2**16, ALL_16.size, dtype=np.uint32)
    return np.concatenate([starts + offsets, *(starts + add for add in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF))])


def test_a_bfloat16_and_its_lost_bits_are_the_float32_number_to_the_bit():
    every = around_every_bfloat16()
    x = jnp.asarray(every.view(np.float32))
    low = nearest_splitting(x).astype(jnp.bfloat16)
    back = np.asarray(joined(low, lost_beside(widen(low), x)))
    is_number = ~np.isnan(every.view(np.float32))
    assert_same_bits(back[is_number], np.asarray(x)[is_number])
    assert np.isnan(back[~is_number]).all()
    assert np.isnan(np.asarray(low).astype(np.float32)[~is_number]).all()


def test_what_people_see_is_the_nearest_bfloat16():
    x = around_every_bfloat16().view(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float64)  # NumPy's: ties to even
    actual = np.asarray(nearest_splitting(jnp.asarray(x))).astype(np.float64)
    np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(x))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.abs(actual - x)[finite], np.abs(expected - x)[finite])
    assert (actual != expected).any()  # half of the ties


def test_lost_bits_of_another_weight_change_nothing_that_can_be_seen():
    # Whatever stands beside a parameter that somebody has set: the weight still rounds to it.
    low = jnp.asarray(ALL_16.view(ml_dtypes.bfloat16))
    for seed in range(3):
        lost = np.random.default_rng(seed).integers(-(2**15), 2**15, ALL_16.size).astype(np.int16)
        seen = nearest_splitting(joined(low, jnp.asarray(lost)))
        is_number = ~np.isnan(np.asarray(low).astype(np.float32))
        assert_same_bits(np.asarray(seen.astype(jnp.bfloat16))[is_number], np.asarray(low)[is_number])
        assert np.isnan(np.asarray(seen)[~is_number]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@hypothesis.given(st.floats(-2, 2, width=32, allow_subnormal=False), st.floats(-2, 2, width=32, allow_subnormal=False))
def test_the_update_leads_to_the_nearest_number(dtype, before, after):
    # Unless the weight falls to less than 2⁻¹⁶ of what it was: see below.
    hypothesis.assume(abs(after) > 2.0**-13 and abs(before) > 2.0**-13)
    p = jnp.asarray(before, dtype)
    new = nearest(jnp.float32(after), p)
    assert_same_bits(optax.apply_updates(p, difference(new, widen(p))), jnp.asarray(after, dtype))


def test_an_update_of_nothing_leaves_every_parameter_as_it_is():
    p = jnp.asarray(np.array([0.0, -0.0, np.inf, -np.inf, 1.5], ml_dtypes.bfloat16))
    assert_same_bits(optax.apply_updates(p, difference(widen(p), widen(p))), p)


# as a float32 training


@pytest.fixture(scope="module")
def apart():
    """What was found out in another process: JAX counts its devices once, and reads the compiler's options once."""
    root = pathlib.Path(__file__).parents[3]
    # Without the instructions that make one rounding of a product and a sum, every program rounds alike; and without
    # optimisation it compiles faster.
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_max_isa=SSE4_2 --xla_backend_optimization_level=0"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "error", "-m", "tests.chains.running.weights_apart"]
    return json.loads(subprocess.run(command, cwd=root, env=env, check=True, stdout=subprocess.PIPE).stdout)


@each_exact_way
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw", "nadam", "optax"])
def test_weights_are_those_of_a_float32_training_to_the_bit(name, by, apart):
    """Over a thousand steps; and the parameters are the nearest to the weights."""
    assert apart["exact"][name][by] == {"different": 0, "nearest": True}


@each_way
def test_sharded_parameters_have_sharded_weights_and_the_same_ones(by, apart):
    assert apart["sharded"][by] == {"init": True, "step": True, "same": True}


def test_float16_weights_are_those_of_a_float32_training_to_the_bit():
    params = {"w": 1e-3 * some_params(jnp.float16)["w"]}  # some of them denormal
    gradients = some_gradients(params, 100)
    _, _, expected = walk(momentum(2.0**-20), wide(params), gradients)
    after, _, weights = walk(precise_weights(momentum(2.0**-20)), params, gradients)
    assert_same_bits(weights, expected)
    assert_same_bits(after["w"], np.asarray(expected["w"][-1]).astype(np.float16))


def test_an_optimized_program_keeps_no_more_digits_than_it_should():
    params = some_params()
    gradients = some_gradients(params, 100)
    _, _, expected = walk(momentum(), wide(params), gradients, options=None)
    for by in EXACT:
        assert_same_bits(walk(precise_weights(momentum(), by), params, gradients, options=None)[2], expected)


def test_without_it_small_steps_are_lost():
    params = some_params()
    gradients = some_gradients(params, 5)
    assert_same_bits(walk(momentum(2.0**-17), params, gradients)[0], params)
    for by in EXACT:
        assert not np.array_equal(
            walk(precise_weights(momentum(2.0**-17), by), params, gradients)[2]["w"][-1], params["w"]
        )


@each_exact_way
def test_the_optimizer_inside_sees_float32_weights_and_gradients(by):
    seen = []

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        seen.append((updates.dtype, params.dtype))
        return jax.tree.map(lambda u: jnp.float32(-(2.0**-12)) + 0 * u, updates), state

    tx = precise_weights(optax.GradientTransformation(optax.init_empty_state, update), by)
    w = jnp.ones(2, jnp.bfloat16)
    state = tx.init(w)
    for _ in range(4):
        updates, state = tx.update(w, state, w)
        assert updates.dtype == jnp.float32
        w = optax.apply_updates(w, updates)
    assert seen == [(jnp.float32, jnp.float32)] * 4
    assert_same_bits(full_weights(tx, state, w), np.full(2, 1 - 4 * 2.0**-12, np.float32))


@each_exact_way
def test_a_weight_that_falls_too_far_for_one_float32_is_what_apply_updates_makes_of_it(by):
    # W is the float32 number below 1, w = 1. The step leads to W = −2⁻²⁴, and the update −1 − 2⁻²⁴, a tie, is −1.
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return -jnp.ones_like(updates), state

    tx = precise_weights(optax.GradientTransformation(optax.init_empty_state, update), by)
    w = jnp.ones(1, jnp.bfloat16)
    w, state = with_full_weights(tx, tx.init(w), w, jnp.full(1, 1 - 2.0**-24))
    updates, state = jax.jit(tx.update)(w, state, w)
    w = optax.apply_updates(w, updates)
    assert float(w[0]) == 0.0
    # It is off by 2⁻²⁴ of the update, no more, and state and parameter agree from here on.
    assert float(full_weights(tx, state, w)[0]) == 0.0
    updates, state = tx.update(w, state, w)
    assert float(full_weights(tx, state, optax.apply_updates(w, updates))[0]) == -1.0


@pytest.mark.parametrize("ratio", [2.0**-17, -(2.0**-17), 2.0**-30, 2.0**-100, 2.0**17, 2.0**30])
@each_exact_way
def test_state_and_parameters_agree_however_far_a_weight_falls(by, ratio):
    target = ratio * jax.random.uniform(jax.random.key(0), (50,), minval=1, maxval=2)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda p: target - p, params), state

    tx = precise_weights(optax.GradientTransformation(optax.init_empty_state, update), by)
    w = jax.random.uniform(jax.random.key(1), (50,), minval=1, maxval=2).astype(jnp.bfloat16)
    updates, state = jax.jit(tx.update)(w, tx.init(w), w)
    after = optax.apply_updates(w, updates)
    full = full_weights(tx, state, after)
    assert_same_bits(nearest(full, after).astype(jnp.bfloat16), after)
    # Two roundings to float32, the optimizer's own sum and the update, each of at most 2⁻²⁴ of what it rounds.
    size = np.maximum(np.abs(np.asarray(w, np.float64)), np.abs(np.asarray(target, np.float64)))
    assert (np.abs(np.asarray(full, np.float64) - np.asarray(target)) <= 2.1 * 2.0**-24 * 2 * size).all()


# stochastic rounding


def test_stochastic_rounding_is_right_on_average():
    # A weight moves by about an eighth of a spacing a step, which rounding to the nearest would lose each time. Equal
    # weights with equal updates are rounded alike, so the updates differ.
    count, steps, spacing = 20_000, 20, 2.0**-7
    start = jax.random.uniform(jax.random.key(0), (count,), minval=1.0, maxval=1.4).astype(jnp.bfloat16)
    gradients = -jax.random.uniform(jax.random.key(1), (steps, count), minval=0.1, maxval=0.15) * spacing
    tx = precise_weights(sgd(1.0), by="stochastic_rounding", seed=1)
    after, _, _ = walk(tx, start, gradients)
    moved = (np.asarray(after, np.float64) - np.asarray(start, np.float64)).sum()
    expected = -np.asarray(gradients, np.float64).sum()
    # Each step of each weight is off by less than a spacing, with mean 0 whatever went before. The sum of n such errors
    # is beyond t with a probability of at most 2 exp(−t² / (2 n spacing²)) (Azuma and Hoeffding), so this bound is
    # passed by one seed in a million. A float32 sum's rounding, 2⁻²⁴ of a weight a step, is nothing beside it.
    bound = spacing * math.sqrt(2 * count * steps * math.log(2e6))
    assert bound < 0.1 * expected  # or the test would mean nothing
    assert abs(moved - expected) < bound


def test_stochastic_rounding_depends_on_seed_step_and_parameter_alone():
    params = {"a": jnp.ones(500, jnp.bfloat16), "b": jnp.ones(500, jnp.bfloat16)}
    noisy = jax.tree.map(lambda p: jax.random.uniform(jax.random.key(0), p.shape), params)

    def after(seed: int, steps: int = 1, only: str = "ab") -> Any:
        tx = precise_weights(sgd(1e-3), by="stochastic_rounding", seed=seed)
        chosen = {name: params[name] for name in only}
        state, updates = tx.init(chosen), None
        for _ in range(steps):
            updates, state = tx.update({name: noisy[name] for name in only}, state, chosen)
        return optax.apply_updates(chosen, updates)

    assert_same_bits(after(0), after(0))
    assert_same_bits(after(0, only="b")["b"], after(0)["b"])  # whatever else is trained
    for other in (after(1)["a"], after(0, steps=2)["a"], after(0)["b"]):
        assert not np.array_equal(other, after(0)["a"])


# parameters that somebody has set


def test_a_master_copy_takes_over_what_somebody_has_set():
    tx = precise_weights(sgd(1e-3))
    w = jnp.ones(4, jnp.bfloat16)
    updates, state = tx.update(w, tx.init(w), w)
    w = optax.apply_updates(w, updates)
    expected = np.asarray(full_weights(tx, state, w)).copy()
    w = w.at[1].set(0.0).at[2].set(jnp.nan)  # a head that begins anew, and an accident
    expected[1:3] = 0.0, np.nan
    np.testing.assert_array_equal(full_weights(tx, state, w), expected)
    updates, state = tx.update(jnp.zeros(4), state, w)
    w = optax.apply_updates(w, updates)
    np.testing.assert_array_equal(full_weights(tx, state, w), expected)
    np.testing.assert_array_equal(np.asarray(w).astype(np.float32), expected.astype(ml_dtypes.bfloat16).astype(float))


def test_lost_bits_stay_within_the_rounding_of_what_somebody_has_set():
    tx = precise_weights(sgd(1e-3), by="lost_bits")
    w = jnp.ones(4, jnp.bfloat16)
    updates, state = tx.update(w, tx.init(w), w)
    set_ = jnp.asarray([0.0, -0.0, 3.0, -0.5], jnp.bfloat16)
    updates, state = tx.update(jnp.zeros(4), state, set_)
    assert_same_bits(optax.apply_updates(set_, updates), set_)


@each_way
def test_nan_and_infinity_go_through(by):
    tx = precise_weights(sgd(1.0), by)
    w = jnp.ones(3, jnp.bfloat16)
    updates, state = tx.update(jnp.array([jnp.nan, jnp.inf, 0.0]), tx.init(w), w)
    w = optax.apply_updates(w, updates)
    np.testing.assert_array_equal(np.asarray(w).astype(np.float32), [np.nan, -np.inf, 1])
    np.testing.assert_array_equal(full_weights(tx, state, w), [np.nan, -np.inf, 1])


# leaves that need nothing, and what is refused


@each_way
def test_other_leaves_pass_through_and_nothing_is_kept_of_them(by):
    params = {
        "low": jnp.ones(3, jnp.bfloat16),
        "idle": jnp.ones(2, jnp.bfloat16),
        "float32": jnp.ones(4),
        "complex": jnp.ones(5, jnp.complex64),
        "none": None,
        "masked": optax.MaskedNode(),
        "empty": jnp.ones((0, 3), jnp.bfloat16),
    }
    gradients = {**params, "idle": None}
    tx = precise_weights(momentum(), by)
    state = tx.init(params)
    updates, after = tx.update(gradients, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    plain, _ = momentum().update(gradients, momentum().init(params), params)
    for name in ("float32", "complex"):
        assert_same_bits(updates[name], plain[name])
    assert updates["idle"] is None
    assert updates["masked"] == optax.MaskedNode()
    kept = {"master_copy": after[0].master, "lost_bits": after[0].lost}
    for way, tree in kept.items():
        shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
        assert shapes == ([(0, 3), (2,), (3,)] if way == by else [])
    full = full_weights(tx, after, apply_updates(params, updates))
    assert full["float32"].dtype == full["low"].dtype == jnp.float32


def test_what_cannot_be_done_is_refused():
    w = jnp.ones((4, 2), jnp.bfloat16)
    tx = precise_weights(sgd(0.1))
    with pytest.raises(ValueError, match="precise_weights: params must be given to update"):
        tx.update(w, tx.init(w))
    with pytest.raises(ValueError, match="by='lost_bits'.*by='master_copy'.*got k [(]float16[)]"):
        precise_weights(sgd(0.1), by="lost_bits").init({"k": w.astype(jnp.float16)})
    with pytest.raises(
        ValueError, match="precise_weights: params must be bfloat16, float16.*got k [(]float8_e4m3fn[)]"
    ):
        tx.init({"k": w.astype(jnp.float8_e4m3fn)})
    with pytest.raises(ValueError, match="precise_weights: by must be 'master_copy' or .*got 'bits'"):
        precise_weights(sgd(0.1), by="bits")
    with pytest.raises(ValueError, match="precise_weights: seed must be an integer from 0 to .*got -1"):
        precise_weights(sgd(0.1), seed=-1)
    with pytest.raises(TypeError, match="precise_weights: tx must be"):
        precise_weights(sgd)
    with pytest.raises(TypeError, match="float32_weights cannot take row-sparse gradients"):
        tx.update(row_gradient(w, jnp.array([1]), jnp.ones((1, 2), jnp.bfloat16)), tx.init(w), w)
    for behind in (optax.scale(0.5), decoupled_weight_decay(0.1)):
        with pytest.raises(ValueError, match="float32_weights must be the last link.*after it"):
            chain(tx, behind)
    assert chain(tx, optax.identity()).links[0].name == "float32_weights"


# as a link


@each_way
def test_it_is_a_link_like_others(by):
    tx = precise_weights(adam(1e-3, weight_decay=0.1), by)
    assert f"└─ float32_weights(by='{by}'" in repr(tx)
    decoupled = tx.swap("add_l2_to_grad", decoupled_weight_decay(0.1))
    assert decoupled == precise_weights(
        adam(1e-3, weight_decay=0.1).swap("add_l2_to_grad", decoupled_weight_decay(0.1)), by
    )
    assert "> " in str(diff(tx, decoupled))
    assert tx.drop("float32_weights") == adam(1e-3, weight_decay=0.1)
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert len({tx, precise_weights(adam(1e-3, weight_decay=0.1), by), precise_weights(adam(1e-3), by)}) == 2


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "plain"])
def test_it_works_in_and_around_wrappers(name):
    around = WRAPPERS[name]
    params = some_params()
    gradients = some_gradients(params, 2, jnp.bfloat16)
    wide_gradients = wide(gradients)
    _, _, expected = walk(chain(around(momentum())), wide(params), wide_gradients)
    for tx, given in (
        (around(precise_weights(momentum(), "lost_bits")), wide_gradients),
        (chain(around(precise_weights(momentum()))), gradients),  # a chain hands on float32 gradients
        (precise_weights(around(momentum()), "lost_bits"), gradients),
    ):
        after, _, weights = walk(tx, params, given)
        assert_same_bits(weights, expected)
        assert after["w"].dtype == jnp.bfloat16


@each_exact_way
def test_steps_that_a_wrapper_lets_rest_leave_the_weights_alone(by):
    params = some_params()
    gradients = some_gradients(params, 6)
    expected = walk(optax.MultiSteps(momentum(), 3), wide(params), gradients)[2]
    assert_same_bits(walk(optax.MultiSteps(precise_weights(momentum(), by), 3), params, gradients)[2], expected)
    bad = jax.tree.map(lambda g: g.at[1].set(jnp.nan), gradients)
    expected = walk(optax.apply_if_finite(momentum(), 3), wide(params), bad)[2]
    assert_same_bits(walk(optax.apply_if_finite(precise_weights(momentum(), by), 3), params, bad)[2], expected)


@each_exact_way
def test_hyperparameters_that_are_live(by):
    params = some_params()
    gradient = jax.tree.map(lambda g: g[0], some_gradients(params))

    def trained(tx: Any, params: Any) -> Any:
        state = tx.init(params)
        for rate in (RATE, RATE / 8):
            state = tx.set_hyperparams(state, learning_rate=rate)
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return full_weights(tx, state, params)

    expected = trained(live(momentum(), "learning_rate"), wide(params))
    assert_same_bits(trained(live(precise_weights(momentum(), by), "learning_rate"), params), expected)


@each_exact_way
def test_hyperparameters_that_are_injected(by):
    params = some_params()
    gradients = some_gradients(params, 2)
    expected = walk(optax.inject_hyperparams(momentum)(RATE), wide(params), gradients)[2]
    assert_same_bits(
        walk(precise_weights(optax.inject_hyperparams(momentum)(RATE), by), params, gradients)[2], expected
    )
    # Around it, Optax rounds the numbers themselves to the dtype of the parameters; this one is a bfloat16.
    around = optax.inject_hyperparams(lambda rate: precise_weights(momentum(rate), by))(RATE)
    assert_same_bits(walk(around, params, gradients)[2], expected)


def test_groups_may_be_kept_in_different_ways():
    params = {name: some_params()["w"] for name in ("master_copy", "lost_bits", "plain", "optax")}
    gradients = some_gradients({"w": params["plain"]}, 3)["w"]
    tx = param_groups(
        {
            **{by: precise_weights(momentum(), by) for by in EXACT},
            "plain": momentum(),
            "optax": optax.sgd(1e-3, momentum=0.9),
        },
        lambda path, w: path,
    )
    after, _, weights = walk(tx, params, dict.fromkeys(params, gradients))
    expected = walk(momentum(), {"w": wide(params["plain"])}, {"w": gradients})[2]["w"]
    for by in EXACT:
        assert_same_bits(weights[by], expected)
    assert {w.dtype for w in after.values()} == {jnp.dtype(jnp.bfloat16)}


# under JAX


@each_way
def test_a_compiled_step_with_donated_arguments_is_traced_once(by):
    params = some_params()
    gradients = some_gradients(params, 3, jnp.bfloat16)
    tx = precise_weights(momentum(), by)
    traces = []

    def step(params: Any, state: Any, gradient: Any) -> Any:
        traces.append(None)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1), compiler_options=FAST)
    state = tx.init(params)
    p = jax.tree.map(jnp.copy, params)
    for index in range(3):
        p, state = compiled(p, state, jax.tree.map(lambda g, at=index: g[at], gradients))
    assert len(traces) == 1
    assert_same_bits(full_weights(tx, state, p), jax.tree.map(lambda w: w[-1], walk(tx, params, gradients)[2]))


@each_way
def test_many_trainings_at_once(by):
    params = some_params()
    gradients = some_gradients(params, 3, jnp.bfloat16)

    def train(rate: Any) -> Any:
        return walk(precise_weights(momentum(rate), by), params, gradients, options=None)[2]

    rates = jnp.array([RATE / 8, RATE])
    for together, rate in zip(jax.vmap(train)(rates)["w"], rates):
        assert_same_bits(together, train(rate)["w"])


@each_way
def test_the_derivative_by_a_hyperparameter_is_that_of_what_is_approximated(by):
    params, gradients = some_params(), some_gradients(some_params(), 3)

    def size(rate: Any, tx: Any, params: Any) -> Any:
        return sum(jnp.sum(w[-1] ** 2) for w in jax.tree.leaves(walk(tx(rate), params, gradients, options=None)[2]))

    expected = jax.grad(size)(RATE, momentum, wide(params))
    actual = jax.grad(size)(RATE, lambda rate: precise_weights(momentum(rate), by), params)
    # The weights that the derivative is taken at, and derivatives on their way, are rounded to 8 bits.
    np.testing.assert_allclose(actual, expected, rtol=0.05)


@each_way
def test_state_is_made_from_shapes_alone(by):
    params = {**some_params(), "float32": jnp.ones(2)}
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    tx = precise_weights(momentum(), by)
    signature = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(tx.init, shapes))
    state = tx.init(shapes)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == signature
    assert_same_bits(tx.update(params, state, params)[0], tx.update(params, tx.init(params), params)[0])


# in Flax


@each_way
def test_a_flax_training_loop_needs_no_change_and_its_state_can_be_saved(by):
    x = jax.random.normal(jax.random.key(1), (8, 4))
    model = nn.Dense(2, param_dtype=jnp.bfloat16)
    params = model.init(jax.random.key(0), x)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=precise_weights(momentum(2.0**-17), by))

    @jax.jit
    def step(state: TrainState) -> TrainState:
        def loss(params: Any) -> Any:
            return jnp.mean(jnp.asarray(state.apply_fn(params, x)) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    state = step(step(state))
    moved = full_weights(state.tx, state.opt_state, state.params)
    if by in EXACT:
        assert not np.array_equal(moved["params"]["kernel"], wide(params)["params"]["kernel"])
    fresh = TrainState.create(apply_fn=model.apply, params=params, tx=state.tx)
    restored = serialization.from_bytes(fresh, serialization.to_bytes(state))
    assert_same_bits(restored, state)
    assert_same_bits(step(restored), step(state))


def test_orbax_saves_it(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    params = {**some_params(), "float32": jnp.ones(2)}
    for by in WAYS:
        tx = precise_weights(momentum(), by)
        tree = {"params": params, "state": tx.update(params, tx.init(params), params)[1]}
        with checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / by, tree)
            checkpointer.wait_until_finished()
            assert_same_bits(checkpointer.restore(tmp_path / by, jax.eval_shape(lambda tree=tree: tree)), tree)


@each_exact_way
def test_flax_nnx(by):
    class Model(nnx.Module):
        def __init__(self, dtype: Any):
            self.layer = nnx.Linear(4, 2, param_dtype=dtype, rngs=nnx.Rngs(0))
            self.norm = nnx.LayerNorm(2, rngs=nnx.Rngs(0))  # stays float32

    def trained(dtype: Any, tx: Any) -> Any:
        model = Model(dtype)
        model.layer.kernel[...] = some_params()["w"][:, :2].astype(dtype)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model: Model, optimizer: nnx.Optimizer) -> None:
            state = nnx.state(model, nnx.Param)
            optimizer.update(model, jax.tree.map(lambda p: jnp.full(p.shape, 0.5), state))

        step(model, optimizer)
        step(model, optimizer)
        return model, optimizer

    model, optimizer = trained(jnp.bfloat16, precise_weights(momentum(2.0**-17), by))
    expected, _ = trained(jnp.float32, momentum(2.0**-17))
    full = full_weights(optimizer.tx, optimizer.opt_state, nnx.state(model, nnx.Param))
    assert_same_bits(jax.tree.leaves(full), jax.tree.leaves(nnx.state(expected, nnx.Param)))
    kept = {"master_copy": "master", "lost_bits": "lost"}[by]
    dropped = migrate_nnx(optimizer, momentum(2.0**-17), model).dropped
    assert dropped == [f"float32_weights.{kept} layer/bias", f"float32_weights.{kept} layer/kernel"]


# moving


@each_exact_way
def test_a_plain_run_goes_on_with_it_and_back(by):
    params = some_params()
    plain, precise = momentum(), precise_weights(momentum(), by)
    _, state, _ = walk(plain, params, some_gradients(params, 2))
    migration = migrate(plain, state, precise, params)
    kept = {"master_copy": "master", "lost_bits": "lost"}[by]
    assert migration.created == [f"float32_weights.{kept} w"]
    assert_same_bits(full_weights(precise, migration.state, params), wide(params))
    params, state, _ = walk(precise, params, some_gradients(params, 2), migration.state)
    back = migrate(precise, state, plain, params)
    assert back.dropped == [f"float32_weights.{kept} w"]
    assert_same_bits(back.state[1].mu, state[0].inner[1].mu)


@pytest.mark.parametrize(("before", "after"), [EXACT, EXACT[::-1]])
def test_one_way_of_keeping_the_weights_goes_on_with_another(before, after):
    params = some_params()
    old, new = precise_weights(momentum(), before), precise_weights(momentum(2.0**-13), after)
    params, state, _ = walk(old, params, some_gradients(params, 2))
    migration = migrate(old, state, optax.apply_if_finite(new, 3), params)
    assert_same_bits(
        full_weights(optax.apply_if_finite(new, 3), migration.state, params), full_weights(old, state, params)
    )


def test_weights_alone_are_not_what_a_migration_is_for():
    params = some_params()
    old, new = precise_weights(momentum()), precise_weights(rmsprop(1e-3))
    with pytest.raises(ValueError, match="must have a moment in common"):
        migrate(old, old.init(params), new, params)


@pytest.mark.parametrize("name", WRAPPERS)
def test_weights_are_read_and_set_through_wrappers(name):
    params = some_params()
    weights = jax.tree.map(lambda p: p.astype(jnp.float32) * 1.001, params)
    for by in EXACT:
        tx = WRAPPERS[name](precise_weights(momentum(), by))
        low, state = with_full_weights(tx, tx.init(params), params, weights)
        assert_same_bits(full_weights(tx, state, low), weights)
        assert_same_bits(low, jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights))


def test_weights_that_do_not_fit_are_refused():
    tx, params = precise_weights(sgd(1e-3)), some_params()
    with pytest.raises(ValueError, match="with_full_weights: weights must have the shape of its parameter"):
        with_full_weights(tx, tx.init(params), params, {**params, "w": jnp.ones(2)})
    with pytest.raises(ValueError, match="with_full_weights: weights must be in a tree like"):
        with_full_weights(tx, tx.init(params), params, {"v": params["w"]})


@each_exact_way
def test_parameters_of_another_precision_than_the_states_are_refused(by):
    """Somebody casts the parameters in mid-run, and forgets about the state."""
    tx, low, full = precise_weights(momentum(0.1), by), {"w": jnp.ones(4, jnp.bfloat16)}, {"w": jnp.ones(4)}
    with pytest.raises(
        ValueError, match="precise_weights: state must be one for these parameters.* nothing of w; .*migr"
    ):
        tx.update(low, tx.init(full), low)
    with pytest.raises(
        ValueError, match="precise_weights: state must be one for these parameters.* nothing of v; .*migr"
    ):
        tx.update({"v": low["w"]}, tx.init(low), {"v": low["w"]})
    with pytest.raises(ValueError, match="full_weights: params must be those of the state.* got w of dtype float32"):
        full_weights(tx, tx.init(low), full)
    with pytest.raises(
        ValueError, match=r"full_weights: params must be those of the state.* shape \(4,\) there, got w .*\(5,\)"
    ):
        full_weights(tx, tx.init(low), {"w": jnp.ones(5, jnp.bfloat16)})
    with pytest.raises(TypeError, match="with_full_weights: weights must be floating-point .* got w of dtype int32"):
        with_full_weights(tx, tx.init(low), low, {"w": jnp.arange(4)})


def test_without_it_full_weights_are_the_parameters():
    params = some_params()
    for tx in (momentum(), precise_weights(momentum(), "stochastic_rounding")):
        assert_same_bits(full_weights(tx, tx.init(params), params), wide(params))
        low, _ = with_full_weights(tx, tx.init(params), params, jax.tree.map(lambda p: p * 1.001, wide(params)))
        assert low["w"].dtype == jnp.bfloat16
