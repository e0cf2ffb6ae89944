"""Every optimizer under JAX's transformations, and on every kind of leaf."""

import fractions
import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.transforms._check import Arguments

from .optimizers import (
    MECHANISMS,
    OPTIMIZERS,
    VALUES,
    Optimizer,
    assert_close,
    each_hyperparameter,
    each_mechanism,
    nth,
    run,
    signature,
    some_gradients,
    some_params,
)

# jit, scan, donation


@each_mechanism
def test_donated_steps_trace_once_and_give_what_a_scan_gives(optimizer: Optimizer, x64):
    tx = optimizer()
    traces = []

    # Donated buffers that cannot be reused are a warning, and so an error.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradient):
        traces.append(None)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    gradients = some_gradients()
    for init in (tx.init, jax.jit(tx.init)):
        params = some_params()
        state = init(params)
        for index in range(5):
            old = jax.tree.leaves((params, state))
            params, state = step(params, state, nth(gradients, index))
            assert all(leaf.is_deleted() for leaf in old)  # nothing was copied instead
        assert_close((params, state), run(tx, some_params(), gradients))
    assert len(traces) == 1


@each_mechanism
@pytest.mark.parametrize(
    ("dtype", "number"),
    [(jnp.float32, float), (jnp.float32, jnp.float64), (jnp.bfloat16, jnp.float32), (jnp.complex64, jnp.float64)],
    ids=["python_numbers", "wider_numbers", "bfloat16_leaves", "complex_leaves"],
)
def test_state_keeps_its_structure_dtypes_and_weak_types(optimizer: Optimizer, dtype, number, x64):
    tx = optimizer(**{name: number(value) for name, value in optimizer.numbers.items()})
    params, gradients = some_params(dtype), nth(some_gradients(dtype=dtype), 0)
    state = tx.init(params)
    assert signature(jax.eval_shape(tx.init, params)) == signature(state)
    updates, after = jax.eval_shape(tx.update, gradients, state, params)
    assert signature(after) == signature(state)
    assert signature(updates) == signature(gradients)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim > 0} <= {jnp.dtype(wide)}


@each_mechanism
def test_update_without_jit_gives_what_jit_gives(optimizer: Optimizer, x64):
    tx, params, gradients = optimizer(), some_params(), nth(some_gradients(), 0)
    state = tx.init(params)
    assert_close(tx.update(gradients, state, params), jax.jit(tx.update)(gradients, state, params))


@each_mechanism
def test_a_chain_can_be_built_inside_jit_around_arrays_from_outside(optimizer: Optimizer, x64):
    arrays = {name: jnp.asarray(value) for name, value in optimizer.numbers.items()}
    params, gradients = some_params(), nth(some_gradients(), 0)

    @jax.jit
    def updates(params, gradients):
        tx = optimizer(**arrays)
        return tx.update(gradients, tx.init(params), params)[0]

    tx = optimizer()
    assert_close(updates(params, gradients), tx.update(gradients, tx.init(params), params)[0])


@each_mechanism
@pytest.mark.parametrize("number", [np.float32, np.float64, np.asarray, fractions.Fraction], ids=lambda n: n.__name__)
def test_every_kind_of_real_number_is_a_hyperparameter(optimizer: Optimizer, number, x64):
    params, gradients = some_params(), nth(some_gradients(), 0)
    tx, other = optimizer(), optimizer(**{name: number(value) for name, value in optimizer.numbers.items()})
    expected, _ = tx.update(gradients, tx.init(params), params)
    updates, _ = other.update(gradients, other.init(params), params)
    # What NumPy's float32 has rounded off, 6e-8, is up to 1e-4 of 1 − β2.
    assert_close(updates, expected, tolerance=1e-4 if number is np.float32 else 1e-12)


# vmap


@each_mechanism
def test_vmap_over_every_hyperparameter_gives_what_a_loop_gives(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients(40)  # RAdam is rectified from step 6 on

    def final(numbers):
        return run(optimizer(**numbers), params, gradients)[0]

    # Row 0 has the first numbers, every other row another value of one of them.
    names = optimizer.hyperparameters
    rows = [optimizer.numbers] + [{**optimizer.numbers, name: optimizer.other_numbers[name]} for name in names]
    together = jax.jit(jax.vmap(final))({name: jnp.asarray([row[name] for row in rows]) for name in names})
    alone = jax.jit(final)
    for index, (name, row) in enumerate(zip(("python numbers", *names), rows, strict=True)):
        expected = final(row) if index == 0 else alone({name: jnp.asarray(value) for name, value in row.items()})
        assert_close(nth(together, index), expected, message=name)
        if index > 0 and name not in optimizer.unseen:  # the hyperparameter does something
            change = jnp.abs(together["w"][index] - together["w"][0])
            assert (change.max() if name in optimizer.sporadic else change.min()) > 1e-9, name


@each_hyperparameter
def test_vmap_over_one_hyperparameter_keeps_the_others_shared(optimizer: Optimizer, name):
    params = some_params()

    def init_and_update(value):
        tx = optimizer(**{name: value})
        return tx.update(params, tx.init(params), params)

    shapes = jax.eval_shape(jax.vmap(init_and_update), jnp.asarray(VALUES[name]))
    assert [leaf.shape[0] for leaf in jax.tree.leaves(shapes)] == [2] * len(jax.tree.leaves(shapes))


def test_the_table_has_every_numeric_hyperparameter():
    tested = {}
    for row in OPTIMIZERS:
        tested.setdefault(row.factory, set()).update(row.hyperparameters)
    for factory, names in tested.items():
        assert names == set(Arguments(factory).numbers)


@each_mechanism
def test_vmap_over_parameters_gives_what_a_loop_gives(optimizer: Optimizer, x64):
    params, gradients = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), some_params()), some_gradients()
    together = jax.jit(jax.vmap(lambda p: run(optimizer(), p, gradients)[0]))(params)
    for index in range(2):
        assert_close(nth(together, index), run(optimizer(), nth(params, index), gradients)[0])


# grad

_DECAYS = ("momentum", "dampening", "decay", "rho", "b1", "b2")


def _loss_after(optimizer: Optimizer, numbers, params, noise):
    """The loss after descending a bowl with noisy gradients, as a function of the hyperparameters."""
    tx = optimizer(**numbers)

    def step(carry: Any, noise):
        params, state = carry
        gradients = jax.tree.map(lambda p, n: 1.5 * p + n, params, noise)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry: Any = jax.lax.scan(step, (params, tx.init(params)), noise)[0]
    return optax.tree.norm(carry[0], squared=True)


@each_mechanism
def test_gradients_through_many_steps_are_finite_differences(optimizer: Optimizer, x64):
    if optimizer.name == "adamax" and "optimization_level=0" in os.environ.get("XLA_FLAGS", ""):
        # JAX finds the larger of two numbers by comparing the recomputed ones with the result, to the bit.
        pytest.skip("LLVM without optimisation recomputes them otherwise; XLA_FLAGS= python -m pytest runs it")
    params, noise = some_params(), some_gradients(20)
    numbers = {name: jnp.asarray(value) for name, value in optimizer.numbers.items()}
    names = list(numbers)
    loss = functools.partial(_loss_after, optimizer, params=params, noise=noise)
    gradient = jax.jit(jax.grad(loss))(numbers)
    # Rows of hyperparameters, each with one of them moved up or down.
    steps = {name: 1e-6 * value for name, value in optimizer.numbers.items()}
    moved = {
        name: jnp.asarray([value + sign * steps[name] * (name == other) for other in names for sign in (1, -1)])
        for name, value in optimizer.numbers.items()
    }
    losses = jax.jit(jax.vmap(loss))(moved).reshape(len(names), 2)
    for index, name in enumerate(names):
        expected = (losses[index, 0] - losses[index, 1]) / (2 * steps[name])
        # Two losses of size 10, rounded at 1e-16 of it, over a step of 1e-9 (ε) or more: 1e-6. The step itself is
        # at most a thousandth of 1 − β2, so the error from the curvature is a millionth.
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
        assert gradient[name] != 0 or name in (*optimizer.sporadic, *optimizer.unseen)


@each_mechanism
@pytest.mark.parametrize(
    ("dtype", "zeroed"),
    [(jnp.float32, False), (jnp.float32, True), (jnp.float64, False)],
    ids=["float32", "float32_decays_0", "float64"],
)
def test_derivatives_are_finite_where_gradients_are_zero(optimizer: Optimizer, dtype, zeroed, x64):
    numbers = {name: 0.0 if zeroed and name in _DECAYS else value for name, value in optimizer.numbers.items()}
    if "initial_accumulator_value" in numbers:
        numbers["initial_accumulator_value"] = 0.0
    # One element whose parameter and gradients are always exactly 0, and one step without any gradient at all.
    params = {"w": jnp.asarray([0.0, 1.0], dtype)}
    noise = {"w": jnp.asarray([[0.0, -1.5], [0.0, 0.5], [0.0, -2.0]], dtype)}
    arrays = {name: jnp.asarray(value, dtype) for name, value in numbers.items()}
    derivatives = jax.jit(jax.grad(functools.partial(_loss_after, optimizer), argnums=(0, 1, 2)))(arrays, params, noise)
    chex.assert_tree_all_finite(derivatives)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_forward_mode_gives_what_reverse_mode_gives(dtype, x64):
    adam = next(row for row in OPTIMIZERS if row.name == "adam")
    params, noise = {"w": jnp.asarray([0.0, 1.0], dtype)}, {"w": jnp.asarray([[0.0, 0.5], [0.0, -2.0]], dtype)}
    loss = functools.partial(_loss_after, adam, params=params, noise=noise)
    numbers = {name: jnp.asarray(value, dtype) for name, value in adam.numbers.items()}
    # The same derivative, summed in the other order.
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
    assert_close(jax.jit(jax.jacfwd(loss))(numbers), jax.jit(jax.grad(loss))(numbers), tolerance)


def test_second_derivatives_by_decays_are_finite(x64):
    nadam = next(row for row in OPTIMIZERS if row.name == "nadam")
    params, noise = {"w": jnp.asarray([1.0, 2.0])}, {"w": jnp.asarray([[1.0, 0.5], [1.0, -2.0]])}

    def loss(decays):
        return _loss_after(nadam, {**nadam.numbers, **decays}, params, noise)

    chex.assert_tree_all_finite(jax.jit(jax.hessian(loss))({"b1": jnp.asarray(0.9), "b2": jnp.asarray(0.999)}))


# half precision


def _updates_at(tx, params, gradients):
    """The updates of every step, with the parameters held where they are."""

    def step(state, gradient):
        updates, state = tx.update(gradient, state, params)
        return state, updates

    return jax.jit(lambda: jax.lax.scan(step, tx.init(params), gradients))()


_HALVES = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


@each_mechanism
def test_half_precision_updates_are_the_float32_ones_rounded(optimizer: Optimizer):
    params = {name: some_params(dtype)["w"] for name, dtype in _HALVES.items()}
    gradients = {name: some_gradients(20, dtype)["w"] for name, dtype in _HALVES.items()}
    state, updates = _updates_at(optimizer(), params, gradients)
    wide_state, expected = _updates_at(
        optimizer(), *jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, gradients))
    )
    assert signature(updates) == signature(gradients)
    assert signature(state) == signature(wide_state)  # the accumulators are float32
    for name, dtype in _HALVES.items():
        # The update is rounded once, at the end: half a unit in its last place, or in that of the smallest number.
        half = jnp.finfo(dtype)
        actual = updates[name].astype(jnp.float32)
        rtol, atol = 0.5 * float(half.eps) + 1e-6, float(half.smallest_subnormal)
        np.testing.assert_allclose(actual, expected[name], rtol=rtol, atol=atol, err_msg=name)


@each_mechanism
def test_updates_leave_in_the_dtype_of_the_parameter(optimizer: Optimizer):
    # What was rounded in the gradient stays rounded, but nothing is rounded to the gradient's dtype any more; and the
    # other way around, a wide gradient is not rounded before the update is there.
    dtypes = {"float32": jnp.float32, **_HALVES}
    pairs = {f"{one} for {other}": (one, other) for one in dtypes for other in dtypes}
    params = {pair: some_params(dtypes[other])["w"] for pair, (_, other) in pairs.items()}
    gradients = {pair: some_gradients(5, dtypes[one])["w"] for pair, (one, _) in pairs.items()}
    state, updates = _updates_at(optimizer(), params, gradients)
    wide_state, expected = _updates_at(optimizer(), *optax.tree.cast((params, gradients), jnp.float32))
    if not optimizer.has_link("average_weights"):  # which averages what the parameters are rounded to
        chex.assert_trees_all_close(state, wide_state, rtol=1e-6, atol=1e-7)  # float32 may add up in another order
    for pair, (_, other) in pairs.items():
        assert updates[pair].dtype == dtypes[other], pair
        # One rounding at the end, beyond that order: a few 6e-8.
        info = jnp.finfo(dtypes[other])
        rtol, atol = 0.5 * float(info.eps) + 1e-6, max(float(info.smallest_subnormal), 1e-7)
        actual = updates[pair].astype(jnp.float32)
        np.testing.assert_allclose(actual, expected[pair], rtol=rtol, atol=atol, err_msg=pair)


@each_mechanism
def test_extreme_gradients_give_finite_updates_and_zero_gradients_none(optimizer: Optimizer):
    # Apart from 0, the squares of all of these are outside float16, and half of them too small for float32. What is
    # largest leaves room for momentum, which sums gradients up.
    extremes = {"bfloat16": (1e-25, 1e15), "float16": (6e-8, 1e4), "float32": (1e-25, 1e15)}
    dtypes = {**_HALVES, "float32": jnp.float32}
    params = {name: jnp.ones(3, dtype) for name, dtype in dtypes.items()}
    gradients = {
        name: jnp.tile(jnp.asarray([0.0, small, -large], dtypes[name]), (5, 1))
        for name, (small, large) in extremes.items()
    }
    zeros = {"weight_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-8}
    tx = optimizer(**{name: value for name, value in zeros.items() if name in optimizer.hyperparameters})
    _, updates = _updates_at(tx, params, gradients)
    for name in dtypes:
        assert jnp.isfinite(updates[name]).all(), name
        assert (updates[name][:, 0] == 0).all(), name
        assert (updates[name][:, 2] != 0).all(), name


@pytest.mark.parametrize(
    "optimizer",
    [row for row in OPTIMIZERS if row.has_link("mean_square") and not row.has_link("deviation")],
    ids=lambda row: row.name,
)
def test_a_bfloat16_second_moment_does_not_stall(optimizer: Optimizer):
    params, gradients = {"w": jnp.zeros(2, jnp.bfloat16)}, {"w": jnp.full((2000, 2), 0.5, jnp.bfloat16)}
    state, _ = _updates_at(optimizer(b2=0.999), params, gradients)
    nu = optax.tree.get(state, "nu")["w"]
    # 2000 roundings of float32 are at most 1e-4; a bfloat16 mean would stop at half of the way.
    np.testing.assert_allclose(nu, np.full(2, 0.25 * (1 - 0.999**2000)), rtol=1e-4)


# complex


@pytest.mark.parametrize("optimizer", [row for row in MECHANISMS if row.is_elementwise], ids=lambda row: row.name)
def test_a_complex_parameter_is_a_pair_of_real_ones(optimizer: Optimizer, x64):
    dtypes = {"complex64": jnp.float32, "complex128": jnp.float64}
    pairs = {name: some_params(dtype)["w"] for name, dtype in dtypes.items()}
    pair_gradients = {name: some_gradients(dtype=dtype)["w"] for name, dtype in dtypes.items()}
    # The first row of every pair is the real part, the second one the imaginary part.
    params = {name: jax.lax.complex(pair[0], pair[1]) for name, pair in pairs.items()}
    gradients = {name: jax.lax.complex(pair[:, 0], pair[:, 1]) for name, pair in pair_gradients.items()}
    actual, state = run(optimizer(), params, gradients)
    expected, _ = run(optimizer(), pairs, pair_gradients)
    assert {name: leaf.dtype for name, leaf in actual.items()} == {name: jnp.dtype(name) for name in dtypes}
    optax.tree_map_params(optimizer(), lambda leaf, p: chex.assert_type(leaf, p.dtype), state, params)
    # Five steps of some ten roundings each: of 6e-8 in complex64, 1e-16 in complex128.
    for name, tolerance in (("complex64", 5e-6), ("complex128", 1e-12)):
        assert_close(jnp.stack([actual[name].real, actual[name].imag]), expected[name], tolerance)


# unusual leaves


@each_mechanism
@pytest.mark.parametrize("empty", [{}, (), {"a": None}, optax.MaskedNode()], ids=repr)
def test_a_tree_without_leaves_is_stepped(optimizer: Optimizer, empty):
    tx = optimizer()
    updates, state = tx.update(empty, tx.init(empty), empty)
    assert updates == empty
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(empty))


@each_mechanism
@pytest.mark.parametrize("hole", [None, optax.MaskedNode()], ids=["none", "masked_node"])
def test_leaves_that_are_not_there_change_nothing_for_the_others(optimizer: Optimizer, hole, x64):
    tx, params, gradients = optimizer(), some_params(), nth(some_gradients(), 0)
    with_hole = {**params, "hole": hole}
    updates, state = tx.update({**gradients, "hole": hole}, tx.init(with_hole), with_hole)
    assert updates.pop("hole") == hole
    expected, expected_state = tx.update(gradients, tx.init(params), params)
    chex.assert_trees_all_equal(updates, expected)
    chex.assert_trees_all_equal(jax.tree.leaves(state), jax.tree.leaves(expected_state))


@pytest.mark.parametrize(
    "optimizer",
    [
        row for row in MECHANISMS if not row.has_link("average_weights")
    ],  # an average goes on, of the weights as they are
    ids=lambda row: row.name,
)
def test_a_leaf_without_a_gradient_keeps_its_state(optimizer: Optimizer, x64):
    tx, params, gradients = optimizer(), some_params(), some_gradients()
    update = jax.jit(tx.update)
    _, before = update(nth(gradients, 0), tx.init(params), params)
    updates, after = update({**nth(gradients, 1), "b": None}, before, params)
    expected, expected_after = update(nth(gradients, 1), before, params)
    assert updates["b"] is None
    assert_close(updates["w"], expected["w"])

    def same(path, old, new, new_with_gradient):
        is_b = any(getattr(key, "key", None) == "b" for key in path)
        chex.assert_trees_all_close(new, old if is_b else new_with_gradient, rtol=1e-12)

    jax.tree.map_with_path(same, before, after, expected_after)
    assert signature(after) == signature(before)


@each_mechanism
def test_python_scalars_are_stepped_as_arrays_are(optimizer: Optimizer, x64):
    tx = optimizer()
    updates, state = tx.update({"x": 0.5}, tx.init({"x": 2.0}), {"x": 2.0})
    arrays = {"x": jnp.asarray(2.0)}
    expected, expected_state = tx.update({"x": jnp.asarray(0.5)}, tx.init(arrays), arrays)
    chex.assert_trees_all_equal((updates, state), (expected, expected_state))
    assert updates["x"].shape == ()


@each_mechanism
def test_arrays_without_elements_are_stepped(optimizer: Optimizer, x64):
    tx, params, gradients = optimizer(), some_params(), some_gradients()
    empty = {**params, "empty": jnp.zeros((0, 3))}
    actual, _ = run(tx, empty, {**gradients, "empty": jnp.zeros((5, 0, 3))})
    assert actual["empty"].shape == (0, 3)
    assert_close({name: actual[name] for name in params}, run(tx, params, gradients)[0])


@each_mechanism
@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.ones(3, bool), 3], ids=["int", "bool", "python_int"])
def test_integer_leaves_are_refused_by_name_of_their_dtype(optimizer: Optimizer, leaf):
    tx, params = optimizer(), {"w": jnp.ones(3)}
    refusal = pytest.raises(TypeError, match=f"floating-point or complex.*{jnp.result_type(leaf)}")
    with refusal:
        tx.init({"w": leaf})
    with refusal:
        tx.update({"w": leaf}, tx.init(params), params)


# sharding


@pytest.fixture(scope="module")
def sharded():
    """What eight devices gave, by optimizer: found out in another process, because devices are counted once."""
    root = pathlib.Path(__file__).parents[2]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "error", "-m", "tests.chains.sharded"]
    return json.loads(subprocess.run(command, cwd=root, env=env, check=True, stdout=subprocess.PIPE).stdout)


@each_mechanism
@pytest.mark.parametrize(
    "what",
    ["eager_init", "jitted_init_explicit", "update", "step_keeps_sharding", "step_traces_no_more"],
)
def test_state_lies_where_the_parameters_lie(optimizer: Optimizer, what, sharded):
    assert sharded[optimizer.name][what] is True


@each_mechanism
def test_a_sharded_step_gives_what_an_unsharded_one_gives(optimizer: Optimizer, sharded):
    # In float64 the devices do the same arithmetic on every element, in another order at most.
    assert sharded[optimizer.name]["difference"] < 1e-12


def test_a_norm_over_sharded_gradients_is_that_of_all(sharded):
    found = sharded["clipped and averaged"]
    assert all(value is True for what, value in found.items() if what != "difference")
    assert found["difference"] < 1e-12  # float64; the sums of the norm are taken in another order


@pytest.mark.parametrize("split", ["rows", "columns", "both"])
@pytest.mark.parametrize("as_", ["bfloat16", "int8", "int4"])
def test_state_in_fewer_bits_lies_where_the_parameters_lie(as_, split, sharded):
    found = sharded[f"{as_} {split}"]
    assert found["lies_like_the_parameter"]
    assert found["is_kept_in_fewer_bits"]
    assert found["jitted_init_explicit"]
    # Blocks lie along an axis that is not split; where both are, their maxima are found together.
    assert found["sends"] == (["all-reduce"] if split == "both" and as_ != "bfloat16" else [])
    # The same arithmetic compiled otherwise; a value that is rounded otherwise now and then changes a code, which
    # moves Adam's step of 0.01 by at most as much.
    assert found["difference"] < 0.01
