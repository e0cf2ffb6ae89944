"""Hyperparameters that are part of the state: read, set, never compiled again."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from linkax.chains import (
    Chain,
    Live,
    LiveState,
    adadelta,
    adagrad,
    adam,
    adamw,
    chain,
    live,
    migrate,
    nadam,
    param_groups,
    rmsprop,
    sgd,
    sparse_adam,
)
from linkax.chains.running._knobs import Panel
from linkax.transforms import (
    NonNegative,
    bias_correction,
    link,
    mean_square,
    moment_ratio,
    row_gradient,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_past_rms,
    scale_by_rms,
)

from ..optimizers import OPTIMIZERS, Optimizer, assert_close, by_hand, nth, signature, some_gradients, some_params

PARAMS = {"w": jnp.arange(3.0), "b": jnp.ones(2)}
GRADS = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array([1.0, -3.0])}
LABELS = {"w": "head", "b": "body"}


def walk(tx, state, params, steps=3):
    update = jax.jit(tx.update)
    grads = jax.tree.map(lambda g, w: g.astype(w.dtype), GRADS, params)
    for t in range(steps):  # (a corrected average of equal gradients is the same for all decays)
        updates, state = update(jax.tree.map(lambda g, t=t: g * (t + 1), grads), state, params)
        params = optax.apply_updates(params, updates)
    assert update._cache_size() == 1
    return params, state


@pytest.mark.parametrize(
    ("tx", "names"),
    [
        (adamw(1e-2), ["learning_rate", "weight_decay"]),
        (nadam(1e-2, weight_decay=0.1), ["eps", "add_l2_to_grad.weight_decay"]),
        (rmsprop(1e-2, momentum=0.9), ["scale_by_rms.decay", "scale_by_momentum.decay"]),
        (adam(1e-2), ["eps", "second.mean_square.decay", "first.scale_by_momentum.decay"]),
        (adam(1e-2), ["b1", "b2"]),
    ],
)
def test_updates_are_the_chains_own(tx, names, x64):
    params = jax.tree.map(lambda w: w.astype(jnp.float64), PARAMS)
    tx_live = live(tx, *names)
    ours, _ = walk(tx_live, tx_live.init(params), params)
    expected, _ = walk(tx, tx.init(params), params)
    # A decay that is known has its complement rounded once less: some units in the last place of float64.
    chex.assert_trees_all_close(ours, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        pytest.param(optimizer, name, id=f"{optimizer.name}-{name}")
        for optimizer in OPTIMIZERS
        for name in optimizer.schedulable
    ],
)
def test_the_arguments_of_the_named_optimizers_are_knobs(optimizer: Optimizer, name, x64):
    params, gradients = some_params(), some_gradients(5)
    before, after = optimizer.numbers[name], optimizer.other_numbers[name]
    tx = live(optimizer(), name)
    state, actual, update = tx.init(params), params, jax.jit(tx.update)
    for t in range(5):
        state = tx.set_hyperparams(state, {name: after}) if t == 2 else state
        updates, state = update(nth(gradients, t), state, actual)
        actual = optax.apply_updates(actual, updates)
        assert tx.hyperparams(state) == {name: before if t < 2 else after}
    assert update._cache_size() == 1
    assert_close(actual, by_hand(optimizer, [{name: before if t < 2 else after} for t in range(5)], params, gradients))


def test_setting_is_what_a_chain_with_that_value_does_and_compiles_nothing():
    tx = live(sgd(0.5))
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    for rate in (0.5, 0.25, 2, np.float64(0.125), jnp.float32(3.0)):
        state = tx.set_hyperparams(state, learning_rate=rate)
        updates, state = update(GRADS, state)
        chex.assert_trees_all_equal(updates, jax.tree.map(lambda g, rate=rate: -np.float32(rate) * g, GRADS))
        assert tx.hyperparams(state) == {"learning_rate": float(rate)}
    assert update._cache_size() == 1


def test_several_values_and_groups_are_set_by_name():
    groups = param_groups({"w": adamw(1e-2), "b": adamw(1e-3)}, {"w": "w", "b": "b"})
    tx = live(chain(optax.clip_by_global_norm(1e9), groups), "w.learning_rate", "b.learning_rate")
    state = tx.init(PARAMS)
    chex.assert_trees_all_close(tx.hyperparams(state), {"w.learning_rate": 1e-2, "b.learning_rate": 1e-3}, rtol=1e-6)
    updates, _ = tx.update(GRADS, tx.set_hyperparams(state, {"w.learning_rate": 0.0}), PARAMS)
    np.testing.assert_array_equal(updates["w"], jnp.zeros(3))
    assert (updates["b"] != 0).all()
    assert tx == live(chain(optax.clip_by_global_norm(1e9), groups))  # without names, all learning rates


# Which numbers a knob moves


def averaged(decay, correction, dampening=None):
    return chain(
        scale_by_momentum(decay, dampening=decay if dampening is None else dampening),
        bias_correction(correction),
        scale_by_learning_rate(0.1),
    )


GROUPS = param_groups({"head": adamw(1e-3), "body": sgd(0.1, momentum=0.9)}, LABELS)
KNOBS = {
    "adam, b1": (
        adam(),
        "b1",
        ["first.scale_by_momentum.decay", "first.scale_by_momentum.dampening", "first.bias_correction.decay"],
    ),
    "adam, b2": (adam(), "b2", ["second.mean_square.decay", "second.bias_correction.decay"]),
    "amsgrad, b2": (adam(amsgrad=True), "b2", ["second.mean_square.decay", "second.bias_correction.decay"]),
    "nadam, b1": (nadam(), "b1", ["first.scale_by_nesterov.decay"]),
    "a correction behind the ratio": (sparse_adam(), "b2", ["second.mean_square.decay", "bias_correction.decay"]),
    "a correction behind the ratio, of equal decays": (
        sparse_adam(b1=0.9, b2=0.9),
        "b2",
        ["second.mean_square.decay", "bias_correction.decay"],
    ),
    "a correction of another decay": (
        adam().swap("first.bias_correction", bias_correction(0.8)),
        "b1",
        ["first.scale_by_momentum.decay", "first.scale_by_momentum.dampening"],
    ),
    "an average": (
        averaged(0.9, 0.9),
        "momentum",
        ["scale_by_momentum.decay", "scale_by_momentum.dampening", "bias_correction.decay"],
    ),
    "an average that something else corrects": (
        averaged(0.9, 0.8),
        "momentum",
        ["scale_by_momentum.decay", "scale_by_momentum.dampening"],
    ),
    "a dampened sum": (averaged(0.9, 0.5, 0.3), "momentum", ["scale_by_momentum.decay"]),
    "PyTorch's dampening": (sgd(0.1, momentum=0.9, dampening=0.9), "momentum", ["scale_by_momentum.decay"]),
    "a schedule": (
        averaged(shared := optax.linear_schedule(0.9, 0.5, 10), shared),
        "momentum",
        ["scale_by_momentum.decay", "scale_by_momentum.dampening", "bias_correction.decay"],
    ),
    "a knob before a plain argument": (rmsprop(momentum=0.9), "decay", ["scale_by_rms.decay"]),
    "beside the decay, momentum": (rmsprop(momentum=0.9), "momentum", ["scale_by_momentum.decay"]),
    "centered": (rmsprop(centered=True), "decay", ["scale_by_stddev.decay"]),
    "adadelta": (adadelta(), "rho", ["scale_by_adadelta.rho"]),
    "adagrad": (adagrad(lr_decay=0.1), "lr_decay", ["scale_by_inverse_time_decay.decay"]),
    "an argument": (adam(), "eps", ["moment_ratio.eps"]),
    "a full name": (adam(), "first.bias_correction.decay", ["first.bias_correction.decay"]),
    "in a group": (GROUPS, "head.b2", ["head.second.mean_square.decay", "head.second.bias_correction.decay"]),
    "in the only group that has it": (GROUPS, "momentum", ["body.scale_by_momentum.decay"]),
    "in a wrapper": (optax.MultiSteps(GROUPS, 2), "body.momentum", ["body.scale_by_momentum.decay"]),
    "parts in wrappers": (
        chain(
            optax.masked(scale_by_momentum(0.9, dampening=0.9), {"w": True, "b": True}),
            optax.masked(bias_correction(0.9), {"w": True, "b": True}),
            scale_by_learning_rate(0.1),
        ),
        "momentum",
        ["scale_by_momentum.decay", "scale_by_momentum.dampening", "bias_correction.decay"],
    ),
    "Optax's named chain": (
        optax.named_chain(("clip", optax.clip(1.0)), ("own", adam())),
        "own.b2",
        ["own.second.mean_square.decay", "own.second.bias_correction.decay"],
    ),
}


@pytest.mark.parametrize("case", KNOBS)
def test_a_knob_moves_every_number_that_it_must(case):
    tx, name, numbers = KNOBS[case]
    panel = Panel(chain(tx).links)
    assert panel.names_of(panel.find(name)) == numbers
    assert live(tx, name).names == (name,)


def test_knobs_come_from_the_links_and_not_from_how_they_were_put_together():
    whole = adam(1e-3)
    by_hand = chain(
        moment_ratio(
            chain(scale_by_momentum(0.9, dampening=0.9), bias_correction(0.9)),
            optax.chain(mean_square(0.999), bias_correction(0.999)),
            1e-8,
        ),
        scale_by_learning_rate(1e-3),
    )
    state = live(by_hand, "b1", "b2").init(PARAMS)
    assert set(state.hyperparams) == {"b1", "b2"}
    taken_apart = chain(*whole.drop("bias_correction").links).add(bias_correction(0.9), after="scale_by_momentum")
    taken_apart = taken_apart.add(bias_correction(0.999), after="mean_square")
    assert taken_apart == whole
    assert live(taken_apart, "b1") == live(whole, "b1")
    assert live(taken_apart, "b1")._found == live(whole, "b1")._found


def test_what_a_user_calls_a_number_is_its_knob():
    @link("moment", knobs={"memory": "momentum"})
    def scale_by_own(memory: NonNegative, factor: NonNegative = 1.0) -> optax.GradientTransformation:
        """Multiplies."""
        return optax.stateless(lambda g, _: jax.tree.map(lambda x: memory * factor * x, g))

    tx = live(chain(scale_by_own(0.5), scale_by_learning_rate(1.0)), "momentum", "factor")
    state = tx.set_hyperparams(tx.init(PARAMS), momentum=0.25, factor=2.0)
    chex.assert_trees_all_equal(tx.update(GRADS, state)[0], jax.tree.map(lambda g: -0.5 * g, GRADS))


# What is refused


@pytest.mark.parametrize(
    ("tx", "names", "message"),
    [
        (adam(), ["decay"], "'decay' must be the name of one hyperparameter of the chain; 4 have this name: first"),
        (adam(), ["lr"], "'lr' must be the name of one hyperparameter of the chain; there are b1, b2, moment_ra"),
        (adam(), ["lr"], "; did you mean learning_rate\\?$"),
        (adam(), ["betas"], "; did you mean b1 and b2\\?$"),
        (adam(), ["dampening"], "first.scale_by_momentum.dampening is part of 'b1', which sets first.scale_by_mom"),
        (adam(), ["second.decay"], "2 have this name: second.mean_square.decay, second.bias_correction.decay"),
        (adam(), ["mean_square.decay"], "is part of 'b2', which sets .* together; its full name sets it alone"),
        (adam(), ["b1", "first.bias_correction.decay"], "must be of different hyperparameters, got 'b1' and 'first.b"),
        (GROUPS, ["learning_rate"], "2 have this name: head.scale_by_learning_rate.learning_rate, body.scale_by_lear"),
        (chain(scale_by_momentum(0.9), scale_by_momentum(0.5)), ["momentum"], "2 have this name: momentum \\(of scale"),
        (chain(scale_by_rms(0.9), scale_by_past_rms(0.9, 1.0)), ["decay"], "2 have this name: decay \\(of scale_by"),
        (chain(scale_by_momentum(0.9)), [], "'learning_rate' must be the name of one .* there are momentum, scale_by_"),
        (adagrad(), ["initial_accumulator_value"], "there are scale_by_rss.eps, scale_by_learning_rate.learning_rate$"),
        (optax.adam(0.1), [], "'learning_rate' must be the name of one hyperparameter of the chain; there are none$"),
        (
            optax.contrib.schedule_free(adam(), 0.1),
            [],
            "there are none \\(schedule_free cannot be looked into\\)",
        ),
        (
            optax.inject_hyperparams(adamw)(0.1),
            [],
            "'learning_rate' must be a number that can be changed: what optax.inject_hyperparams holds is rebuilt at "
            "every step, .*; change the factory that was passed to it, or wrap a chain in linkax.live",
        ),
        (live(adam()), [], "names must be given, because the chain's learning rates are live already, got none"),
        (live(adam()), ["learning_rate"], "'learning_rate' must not be live already, got a live\\(...\\) inside the"),
        (chain(live(adam(), "first.bias_correction.decay")), ["b1"], "'b1' must not be live already, .* 'first.bias"),
    ],
)
def test_names_that_do_not_say_enough_are_refused(tx, names, message):
    with pytest.raises(ValueError, match=f"^live: .*{message}"):
        live(tx, *names)


def test_wrong_values_and_names_are_refused():
    tx = live(adamw(), "learning_rate", "second.mean_square.decay", "b1")
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"scale_by_learning_rate: learning_rate must be a number in \[0, inf\)"):
        tx.set_hyperparams(state, learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"mean_square: decay must be a number in \[0, 1\] or a schedule, got 1.5"):
        tx.set_hyperparams(state, {"second.mean_square.decay": 1.5})
    with pytest.raises(ValueError, match=r"bias_correction: decay must be a number in \[0, 1\) or a schedule, got 1"):
        tx.set_hyperparams(state, b1=1.0)
    with pytest.raises(ValueError, match="'eps' must be one of the live hyperparameters learning_rate, second.mean"):
        tx.set_hyperparams(state, eps=1.0)
    with pytest.raises(TypeError, match="chain: an argument must be a link, a chain or an Optax transformation"):
        live(adam)
    with pytest.raises(TypeError, match=r"live: names must be strings, each a separate argument, got \['b1', 'b2'\]"):
        live(adam(), ["b1", "b2"])  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match=r"Live: 'names' cannot be set, .*; tx.set_hyperparams\(state, ...\) make"):
        tx.names = ()


def test_a_schedule_is_no_value():
    tx = live(sgd(0.5))
    with pytest.raises(
        ValueError, match="Live.set_hyperparams: 'learning_rate' must be a number, got exponential_decay"
    ):
        tx.set_hyperparams(tx.init(PARAMS), learning_rate=optax.exponential_decay(0.5, 1, 0.5))


def test_a_state_of_another_optimizer_is_named():
    tx = live(adam())
    with pytest.raises(ValueError, match=r"Live.update: state must be .*linkax.migrate converts the state"):
        tx.update(GRADS, adam().init(PARAMS), PARAMS)


# Schedules


def test_a_schedules_value_is_read_and_cannot_be_set():
    schedule = optax.exponential_decay(0.5, 1, 0.5)
    tx = live(sgd(schedule))
    state = tx.init(PARAMS)
    assert tx.hyperparams(state) == {"learning_rate": 0.5}
    for t in range(3):
        updates, state = tx.update(GRADS, state)
        assert tx.hyperparams(state) == {"learning_rate": 0.5 ** (t + 1)}
        np.testing.assert_array_equal(updates["b"], -(0.5 ** (t + 1)) * GRADS["b"])
    with pytest.raises(ValueError, match="Live.set_hyperparams: 'learning_rate' must not be a schedule, got expon"):
        tx.set_hyperparams(state, learning_rate=0.1)
    assert "exponential_decay" in repr(tx)


@pytest.mark.parametrize("kind", ["around", "inside", "group"])
def test_a_schedule_counts_the_steps_that_are_taken(kind):
    def schedule(count):
        return 0.5 ** (count + 1)

    inner = sgd(schedule, momentum=0.5)
    if kind == "group":
        inner = param_groups({"head": inner, "body": sgd(0.1)}, LABELS)
    name = "head.learning_rate" if kind == "group" else "learning_rate"
    tx = optax.MultiSteps(live(inner, name), 2) if kind == "inside" else live(optax.MultiSteps(inner, 2), name)
    plain = optax.MultiSteps(inner, 2)
    state, expected_state = tx.init(PARAMS), plain.init(PARAMS)
    for call in range(6):
        updates, state = tx.update(GRADS, state, PARAMS)
        expected, expected_state = plain.update(GRADS, expected_state, PARAMS)
        chex.assert_trees_all_equal(updates, expected)
        if kind != "inside":
            assert tx.hyperparams(state) == {name: 0.5 ** (call // 2 + 1)}


def test_a_knob_that_is_a_schedule_is_read():
    plain = adam(b1=optax.linear_schedule(0.9375, 0.5, 7))
    tx = live(plain, "b1", "learning_rate")
    params, state = walk(tx, tx.init(PARAMS), PARAMS)
    assert tx.hyperparams(state) == pytest.approx({"b1": 0.9375 - 2 * 0.0625, "learning_rate": 1e-3}, rel=1e-6)
    chex.assert_trees_all_close(params, walk(plain, plain.init(PARAMS), PARAMS)[0], rtol=1e-6)


# Wrappers


_REFUSED = ("apply_if_finite", "bfloat16")
WRAPPED = {
    "MultiSteps, the object": (optax.MultiSteps(adamw(1e-2), 2), "learning_rate"),
    "MultiSteps": (optax.MultiSteps(adamw(1e-2), 2).gradient_transformation(), "learning_rate"),
    "groups in MultiSteps": (chain(optax.MultiSteps(GROUPS, 2)), "head.learning_rate"),
    "masked": (optax.masked(adam(1e-2), {"w": True, "b": False}), "b1"),
    "apply_if_finite": (optax.apply_if_finite(GROUPS, 3), "head.b1"),
    "partition": (optax.partition({"head": adam(1e-2), "body": sgd(0.1)}, LABELS), "head.b2"),
    "optax.chain": (optax.chain(optax.clip(1.0), optax.chain(adamw(1e-2)), optax.scale(2.0)), "weight_decay"),
    "named_chain": (optax.named_chain(("clip", optax.clip(1.0)), ("own", adamw(1e-2))), "own.b1"),
    "flatten": (optax.flatten(adam(1e-2)), "b1"),
    "live": (live(adamw(1e-2)), "b1"),
    "live in a chain": (chain(optax.clip(1.0), live(GROUPS)), "head.b1"),
    "live in MultiSteps": (optax.MultiSteps(live(adamw(1e-2)), 2), "b1"),
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    # (A chain is float32 between its links, and apply_if_finite wants back what comes in.)
    [(case, dtype) for case in WRAPPED for dtype in ("float32", "bfloat16") if (case, dtype) != _REFUSED],
)
def test_it_sees_through_wrappers(case, dtype):
    tx, name = WRAPPED[case]
    params = jax.tree.map(lambda w: w.astype(dtype), PARAMS)
    tx_live, plain = live(tx, name), chain(tx)
    state = tx_live.init(params)
    assert signature(jax.eval_shape(tx_live.init, params)) == signature(state)
    ours, state = walk(tx_live, state, params, 4)
    expected, _ = walk(plain, plain.init(params), params, 4)
    # A decay that is an array has its complement rounded once more: 6e-8 of 1 is 6e-5 of 0.001, a new value's share.
    chex.assert_trees_all_close(ours, expected, rtol=1e-4 if dtype == "float32" else 2**-7)
    assert signature(jax.eval_shape(tx_live.update, params, state, params)[1]) == signature(state)
    moved, _ = walk(tx_live, tx_live.set_hyperparams(state, {name: 0.25}), params, 4)
    stayed, _ = walk(tx_live, state, params, 4)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(stayed)))


def test_two_of_them_one_in_the_other():
    inner = live(adamw(0.5), "learning_rate")
    tx = live(chain(optax.clip(9.0), inner), "b1")
    state = tx.init(PARAMS)
    inside = inner.set_hyperparams(state.inner[1], learning_rate=0.0)
    state = state._replace(inner=(state.inner[0], inside))
    updates, state = tx.update(GRADS, tx.set_hyperparams(state, b1=0.5), PARAMS)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
    assert tx.hyperparams(state) == {"b1": 0.5}
    assert inner.hyperparams(state.inner[1]) == {"learning_rate": 0.0}


def test_row_sparse_gradients():
    table, tx = jnp.ones((4, 1)), live(sparse_adam(0.5), "learning_rate", "b2")
    gradient = row_gradient(table, jnp.array([2]), jnp.ones((1, 1)))
    updates, _ = jax.jit(tx.update)(gradient, tx.set_hyperparams(tx.init(table), learning_rate=0.25), table)
    np.testing.assert_allclose(updates.data, [[-0.25]], rtol=1e-4)  # ε, and 1 − β2 in float32


# The state


def test_no_steps_are_asked_for_that_the_chain_does_not_count():
    assert LiveState._fields == ("count", "hyperparams", "inner")
    tx = rmsprop(1e-2)
    params, state = walk(tx, tx.init(PARAMS), PARAMS)
    there = migrate(tx, state, live(tx, "decay"), params)
    assert there.created == ["live.count", "live.hyperparams.decay"]
    assert there.notes == ["live.count counts from 0, because the old state does not count the steps; pass steps=…"]
    back = migrate(live(tx, "decay"), there.state, tx, params)
    chex.assert_trees_all_equal(back.state, state)


def test_a_schedule_counts_on_when_it_is_made_live():
    tx = sgd(optax.exponential_decay(0.5, 1, 0.5))
    params, state = walk(tx, tx.init(PARAMS), PARAMS)
    tx_live = live(tx)
    updates, live_state = tx_live.update(GRADS, migrate(tx, state, tx_live, params).state, params)
    chex.assert_trees_all_equal(updates, tx.update(GRADS, state, params)[0])
    assert tx_live.hyperparams(live_state) == {"learning_rate": 0.5**4}


def test_can_be_set_and_differentiated_inside_jit():
    tx = live(sgd(0.5))

    @jax.jit
    def loss(rate):
        state = tx.set_hyperparams(tx.init(PARAMS), learning_rate=rate)
        updates, _ = tx.update(GRADS, state)
        return optax.tree.norm(updates)

    assert float(jax.grad(loss)(0.25)) == pytest.approx(float(optax.tree.norm(GRADS)), rel=1e-6)  # float32


def test_values_are_read_inside_jit_and_of_many_states_at_once():
    tx = live(adamw(0.5), "learning_rate", "b1")

    @jax.jit
    def both(state, rate):
        found = tx.hyperparams(state)
        assert all(isinstance(value, jax.Array) for value in found.values())
        return found, tx.set_hyperparams(state, learning_rate=found["learning_rate"] * rate, b1=0.5)

    found, state = both(tx.init(PARAMS), 0.5)
    assert float(found["learning_rate"]) == 0.5
    assert tx.hyperparams(state) == {"learning_rate": 0.25, "b1": 0.5}
    assert all(type(value) is float for value in tx.hyperparams(state).values())
    states = jax.vmap(lambda rate: tx.set_hyperparams(tx.init(PARAMS), learning_rate=rate))(jnp.arange(3.0))
    np.testing.assert_array_equal(tx.hyperparams(states)["learning_rate"], [0, 1, 2])


def test_optaxs_tree_functions_find_the_values():
    tx = live(adamw(0.5))
    state = tx.init(PARAMS)
    assert float(optax.tree.get(state, "learning_rate")) == 0.5
    assert optax.tree.get(state.inner, "count") == 0
    kinds = optax.tree_map_params(tx, lambda _: "array", state, transform_non_params=lambda _: "scalar")
    assert kinds.hyperparams == {"learning_rate": "scalar"}


def test_prints_compares_pickles_and_survives_a_tree_map():
    tx = live(adamw(1e-3), "learning_rate", "weight_decay")
    assert repr(tx).endswith("live: learning_rate, weight_decay")
    assert tx == live(adamw(1e-3), "learning_rate", "weight_decay") != live(adamw(1e-3))
    assert hash(tx) == hash(pickle.loads(pickle.dumps(tx)))
    again = jax.tree.map(lambda x: x, tx)
    assert isinstance(again, Live)
    assert again.names == tx.names


def test_taken_apart_and_put_together_it_is_itself():
    tx = live(adamw(1e-3))
    assert type(tx)._make(tx) is tx
    assert tx._replace() is tx
    assert Live(*tx) is tx


def test_with_another_function_it_is_a_chain_that_works():
    tx = live(sgd(1.0))
    doubled = tx._replace(update=lambda g, s, p=None, **_: tx.update(jax.tree.map(lambda x: 2 * x, g), s, p))
    assert isinstance(doubled, Chain)
    state = doubled.init(PARAMS)
    chex.assert_trees_all_equal(doubled.update(GRADS, state)[0], jax.tree.map(lambda g: -2 * g, GRADS))
    assert doubled != tx
    assert chain(doubled, optax.scale(2.0)).init(PARAMS)


def test_in_flax_nnx():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    tx = live(sgd(0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = model.kernel[...]
    grads = nnx.grad(lambda m: m(jnp.ones((1, 2))).sum())(model)
    optimizer.opt_state.hyperparams["learning_rate"][...] = jnp.zeros(())
    optimizer.update(model, grads)
    np.testing.assert_array_equal(model.kernel[...], before)
    optimizer.opt_state = tx.set_hyperparams(optimizer.opt_state, learning_rate=0.25)
    optimizer.update(model, grads)
    np.testing.assert_array_equal(model.kernel[...], before - 0.25 * grads["kernel"][...])
    assert tx.hyperparams(optimizer.opt_state) == {"learning_rate": 0.25}


def test_a_state_of_another_optimizer_is_told():
    tx, other = live(adamw(0.5)), live(adamw(0.5), "b1")
    for call in (tx.hyperparams, lambda state: tx.set_hyperparams(state, learning_rate=0.1)):
        with pytest.raises(ValueError, match=r"Live.\w+: state must be one .* with learning_rate live, got tuple"):
            call(adamw(0.5).init(PARAMS))
    with pytest.raises(ValueError, match="Live.update: state must be one .* got one in which b1 is live"):
        tx.update(GRADS, other.init(PARAMS), PARAMS)
