"""Every optimizer inside Optax's wrappers."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import Chain, adadelta, adagrad, adam, adamw, chain, nadam, rmsprop, sgd

from .optimizers import (
    OPTIMIZERS,
    Optimizer,
    assert_close,
    each_mechanism,
    each_with_a_rate,
    nth,
    run,
    signature,
    some_gradients,
    some_params,
)


@each_mechanism
def test_in_an_optax_chain_it_sees_what_the_transformation_before_puts_out(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients()
    norms = jnp.sqrt(sum(jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in gradients.values()))
    assert norms.min() > 1  # every gradient is clipped
    clipped = jax.tree.map(lambda g: g / jnp.reshape(norms, (-1,) + (1,) * (g.ndim - 1)), gradients)
    expected, _ = run(optimizer(), params, clipped)
    actual, _ = run(optax.chain(optax.clip_by_global_norm(1.0), optimizer()), params, gradients)
    assert_close(actual, expected)


@each_mechanism
def test_an_optax_transformation_is_welcome_in_a_linkax_chain(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients()
    clip = optax.clip_by_global_norm(1.0)
    tx = chain(clip, optimizer())
    assert isinstance(tx, Chain)
    assert [link.name for link in tx.links] == ["clip_by_global_norm", *(link.name for link in optimizer().links)]
    assert_close(run(tx, params, gradients)[0], run(optax.chain(clip, optimizer()), params, gradients)[0])


@each_mechanism
def test_injected_hyperparameters_change_without_retracing(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients()
    # S_0 is read by init alone, so it cannot change later.
    at_init = {k: v for k, v in optimizer.other_numbers.items() if k not in optimizer.schedulable}
    tx: Any = optax.inject_hyperparams(optimizer.factory)(**{**optimizer.numbers, **optimizer.switches, **at_init})
    traces = []

    @jax.jit
    def step(params, state, gradient):
        traces.append(None)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    assert optimizer.numbers.keys() <= state.hyperparams.keys()
    for index in range(5):
        changed = optimizer.other_numbers if index > 0 else {**optimizer.numbers, **at_init}
        for name, value in changed.items():
            state.hyperparams[name] = jnp.asarray(value)
        params, state = step(params, state, nth(gradients, index))
    assert len(traces) == 1

    # The same by hand: one step with the first numbers, the others with the second ones.
    expected = some_params()
    first, second = optimizer(**at_init), optimizer(**optimizer.other_numbers)
    by_hand = first.init(expected)
    for index in range(5):
        updates, by_hand = jax.jit((second if index > 0 else first).update)(nth(gradients, index), by_hand, expected)
        expected = optax.apply_updates(expected, updates)
    assert_close(params, expected)


@each_mechanism
def test_injected_state_is_the_same_inside_and_outside_jit(optimizer: Optimizer):
    params = some_params()
    zeros = {name: 0.0 for name in optimizer.hyperparameters if name in ("weight_decay", "dampening", "lr_decay")}
    for numbers in (optimizer.numbers, {**optimizer.numbers, **zeros}):
        tx: Any = optax.inject_hyperparams(optimizer.factory)(**{**numbers, **optimizer.switches})
        outside = tx.init(params)
        assert signature(jax.eval_shape(tx.init, params)) == signature(outside)
        assert signature(jax.eval_shape(tx.update, params, outside, params)[1]) == signature(outside)


@each_with_a_rate
def test_a_schedule_can_be_injected(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients()
    schedule = optax.exponential_decay(0.125, transition_steps=1, decay_rate=0.5)
    arguments = {**optimizer.numbers, **optimizer.switches, "learning_rate": schedule}
    actual, state = run(optax.inject_hyperparams(optimizer.factory)(**arguments), params, gradients)
    assert_close(actual, run(optimizer(learning_rate=schedule), params, gradients)[0])
    # Five steps: the last one used the schedule at 4; halving is exact, also in the float32 that Optax computes it in.
    assert state.hyperparams["learning_rate"] == 0.125 * 0.5**4


@each_mechanism
def test_micro_steps_make_one_step_on_the_mean_gradient(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients(6)
    multi = optax.MultiSteps(optimizer(), every_k_schedule=3, accumulator_dtype=jnp.float64)
    actual, _ = run(multi.gradient_transformation(), params, gradients)
    means = jax.tree.map(lambda g: g.reshape(2, 3, *g.shape[1:]).mean(axis=1), gradients)
    assert_close(actual, run(optimizer(), params, means)[0])


@each_mechanism
def test_apply_if_finite_skips_a_step_that_is_not_finite(optimizer: Optimizer):
    params, gradients = some_params(), nth(some_gradients(), 0)
    tx: Any = optax.apply_if_finite(optimizer(), max_consecutive_errors=3)
    update = jax.jit(tx.update)
    _, state = update(gradients, tx.init(params), params)
    for bad in (jnp.nan, jnp.inf):
        updates, after = update({**gradients, "b": gradients["b"].at[1].set(bad)}, state, params)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
        chex.assert_trees_all_equal(after.inner_state, state.inner_state)
        assert after.total_notfinite == 1


@each_mechanism
def test_masked_steps_the_selected_leaves_only(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients()
    actual, _ = run(optax.masked(optimizer(), {"w": True, "b": False}), params, gradients)
    alone, _ = run(optimizer(), {"w": params["w"]}, {"w": gradients["w"]})
    assert_close(actual["w"], alone["w"])
    assert_close(actual["b"], params["b"] + gradients["b"].sum(axis=0))  # Optax lets the others pass unchanged


@each_mechanism
def test_partition_steps_every_group_as_if_alone(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients()
    other = sgd(0.5, momentum=0.5)
    groups = optax.partition({"a": optimizer(), "b": other}, {"w": "a", "b": "b"})
    actual, _ = run(groups, params, gradients)
    for tx, leaf in ((optimizer(), "w"), (other, "b")):
        assert_close(actual[leaf], run(tx, {leaf: params[leaf]}, {leaf: gradients[leaf]})[0][leaf])


def _set_before_every_step(optimizer: Optimizer, names, schedule, params, gradients):
    """Steps with a chain built anew for every step, around the number that the schedule gives."""

    @jax.jit
    def step(number, params, state, gradient):
        updates, state = optimizer(**dict.fromkeys(names, number)).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer().init(params)
    for count in range(5):
        number = jnp.asarray(schedule(jnp.int32(count)), jnp.float64)
        params, state = step(number, params, state, nth(gradients, count))
    return params


_SCHEDULES = {
    "exponential": optax.exponential_decay(0.1, transition_steps=1, decay_rate=0.7),
    "warmup_cosine": optax.warmup_cosine_decay_schedule(0.0, 0.1, warmup_steps=2, decay_steps=4),
    "piecewise": optax.piecewise_constant_schedule(0.1, {2: 0.1, 4: 0.5}),
    "joined": optax.join_schedules([optax.constant_schedule(0.1), optax.linear_schedule(0.1, 0.0, 2)], [2]),
    "restarts": optax.sgdr_schedule([{"init_value": 0.0, "peak_value": 0.1, "decay_steps": 3, "warmup_steps": 1}] * 2),
    "python_number": lambda count: 0.1,
    "numpy_number": lambda count: np.float64(0.1),
    "of_the_count": lambda count: 0.1 / (count + 1),
}


def _assert_a_schedule_is_set_by_hand(optimizer: Optimizer, names, schedule):
    params, gradients = some_params(), some_gradients()
    actual, _ = run(optimizer(**dict.fromkeys(names, schedule)), params, gradients)
    expected = _set_before_every_step(optimizer, names, schedule, params, gradients)
    assert_close(actual, expected, tolerance=1e-6)  # some schedules compute in float32 even here: 6e-8 a rounding


@each_with_a_rate
def test_a_schedule_is_its_number_set_by_hand_before_every_step(optimizer: Optimizer, x64):
    _assert_a_schedule_is_set_by_hand(optimizer, ["learning_rate", "weight_decay"], _SCHEDULES["exponential"])


@pytest.mark.parametrize("schedule", _SCHEDULES.values(), ids=_SCHEDULES.keys())
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_every_kind_of_schedule_works(name, schedule, x64):
    adamw = next(row for row in OPTIMIZERS if row.name == "adamw")
    _assert_a_schedule_is_set_by_hand(adamw, [name], schedule)


@each_mechanism
def test_tree_map_params_finds_what_has_the_shape_of_the_parameters(optimizer: Optimizer):
    tx = optimizer()
    state = tx.init(some_params())
    kinds = optax.tree_map_params(tx, lambda _: "array", state, transform_non_params=lambda _: "scalar")
    expected = jax.tree.map(lambda leaf: "array" if jnp.ndim(leaf) > 0 else "scalar", state)
    assert jax.tree.leaves(kinds) == jax.tree.leaves(expected)
    assert jax.tree.structure(kinds) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("tx", "name", "after_one_step"),
    [
        (sgd(0.1, momentum=0.9), "mu", lambda g: g),
        (sgd(0.1, momentum=0.9, nesterov=True), "mu", lambda g: g),
        (adagrad(0.1, initial_accumulator_value=0.5), "sum_of_squares", lambda g: 0.5 + g**2),
        (rmsprop(0.1, decay=0.75), "nu", lambda g: 0.25 * g**2),
        (rmsprop(0.1, decay=0.75, centered=True), "mu", lambda g: 0.25 * g),
        (rmsprop(0.1, decay=0.75, centered=True), "nu", lambda g: 0.25 * g**2),
        (adadelta(rho=0.75), "nu", lambda g: 0.25 * g**2),
        (adam(b1=0.5), "mu", lambda g: 0.5 * g),
        (adam(b2=0.75), "nu", lambda g: 0.25 * g**2),
        (adam(b2=0.75, amsgrad=True), "nu_max", lambda g: 0.25 * g**2),
        (adamw(b1=0.5), "mu", lambda g: 0.5 * g),
        (adamw(b2=0.75), "nu", lambda g: 0.25 * g**2),
        (nadam(b1=0.5), "mu", lambda g: 0.5 * g),
        (nadam(b2=0.75), "nu", lambda g: 0.25 * g**2),
    ],
    ids=lambda argument: (
        "" if callable(argument) else argument if isinstance(argument, str) else argument.links[0].name
    ),
)
def test_tree_get_finds_the_moments(tx, name, after_one_step):
    params, gradients = some_params(), nth(some_gradients(), 0)
    _, state = tx.update(gradients, tx.init(params), params)
    # Halves and quarters are exact, so only the square and one sum are rounded, 6e-8 each.
    assert_close(optax.tree.get(state, name), jax.tree.map(after_one_step, gradients), tolerance=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS[1::4], ids=lambda optimizer: optimizer.name)
def test_optax_can_wrap_it_in_all_of_these_at_once(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients(4)

    def wrapped(**numbers):
        inner = optimizer.factory(**{**numbers, **optimizer.switches})
        groups = optax.partition({"on": inner, "off": optax.set_to_zero()}, {"w": "on", "b": "off"})
        return optax.chain(optax.clip_by_global_norm(1e9), optax.apply_if_finite(groups, 2))

    injected = optax.inject_hyperparams(functools.wraps(optimizer.factory)(wrapped))(**optimizer.numbers)
    multi = optax.MultiSteps(injected, every_k_schedule=1, accumulator_dtype=jnp.float64)
    actual, _ = run(multi.gradient_transformation(), params, gradients)
    chex.assert_trees_all_equal(actual["b"], params["b"])
    assert_close(actual["w"], run(optimizer(), {"w": params["w"]}, {"w": gradients["w"]})[0]["w"])
