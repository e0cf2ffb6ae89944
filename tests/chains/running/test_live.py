"""Hyperparameters that are part of the state: read, set, never compiled again."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from linkax.chains import Live, adam, adamw, chain, live, nadam, param_groups, rmsprop, sgd

PARAMS = {"w": jnp.arange(3.0), "b": jnp.ones(2)}
GRADS = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array([1.0, -3.0])}


def walk(tx, state, params):
    update = jax.jit(tx.update)
    grads = jax.tree.map(lambda g, w: g.astype(w.dtype), GRADS, params)
    for _ in range(3):
        updates, state = update(grads, state, params)
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
    ],
)
def test_updates_are_the_chains_own(tx, names, x64):
    params = jax.tree.map(lambda w: w.astype(jnp.float64), PARAMS)
    tx_live = live(tx, *names)
    ours, _ = walk(tx_live, tx_live.init(params), params)
    expected, _ = walk(tx, tx.init(params), params)
    # A decay that is known has its complement rounded once less: some units in the last place of float64.
    chex.assert_trees_all_close(ours, expected, rtol=1e-13)


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


def test_a_schedules_value_is_read_and_cannot_be_set():
    schedule = optax.exponential_decay(0.5, 1, 0.5)
    tx = live(sgd(schedule))
    state = tx.init(PARAMS)
    for t in range(3):
        updates, state = tx.update(GRADS, state)
        assert tx.hyperparams(state) == {"learning_rate": 0.5 ** (t + 1)}
        np.testing.assert_array_equal(updates["b"], -(0.5 ** (t + 1)) * GRADS["b"])
    with pytest.raises(ValueError, match="Live.set_hyperparams: 'learning_rate' must not be a schedule, got expon"):
        tx.set_hyperparams(state, learning_rate=0.1)
    assert "exponential_decay" in repr(tx)


def test_wrong_values_and_names_are_refused():
    tx = live(adamw(), "learning_rate", "second.mean_square.decay")
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"scale_by_learning_rate: learning_rate must be a number in \[0, inf\)"):
        tx.set_hyperparams(state, learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"mean_square: decay must be a number in \[0, 1\], got 1.5"):
        tx.set_hyperparams(state, {"second.mean_square.decay": 1.5})
    with pytest.raises(ValueError, match="'eps' must be one of the live hyperparameters learning_rate, second.mean"):
        tx.set_hyperparams(state, eps=1.0)
    with pytest.raises(ValueError, match="live: 'decay' must be the name of one hyperparameter of the chain; 4 are"):
        live(adam(), "decay")
    with pytest.raises(ValueError, match="live: 'lr' must be the name of one hyperparameter of the chain; there are "):
        live(adam(), "lr")
    with pytest.raises(TypeError, match="chain: an argument must be a link, a chain or an Optax transformation"):
        live(adam)


def test_can_be_set_and_differentiated_inside_jit():
    tx = live(sgd(0.5))

    @jax.jit
    def loss(rate):
        state = tx.set_hyperparams(tx.init(PARAMS), learning_rate=rate)
        updates, _ = tx.update(GRADS, state)
        return optax.tree.norm(updates)

    assert float(jax.grad(loss)(0.25)) == pytest.approx(float(optax.tree.norm(GRADS)), rel=1e-6)  # float32


def test_optaxs_tree_functions_find_the_values():
    tx = live(adamw(0.5))
    state = tx.init(PARAMS)
    assert float(optax.tree.get(state, "learning_rate")) == 0.5


def test_prints_compares_pickles_and_survives_a_tree_map():
    tx = live(adamw(1e-3), "learning_rate", "weight_decay")
    assert repr(tx).endswith("live: learning_rate, weight_decay")
    assert tx == live(adamw(1e-3), "learning_rate", "weight_decay") != live(adamw(1e-3))
    assert hash(tx) == hash(pickle.loads(pickle.dumps(tx)))
    again = jax.tree.map(lambda x: x, tx)
    assert isinstance(again, Live)
    assert again.names == tx.names


def test_in_flax_nnx():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    tx = live(sgd(0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = model.kernel[...]
    grads = nnx.grad(lambda m: m(jnp.ones((1, 2))).sum())(model)
    optimizer.opt_state.hyperparams["learning_rate"][...] = jnp.zeros(())
    optimizer.update(model, grads)
    np.testing.assert_array_equal(model.kernel[...], before)


def test_what_is_inside_a_foreign_wrapper_cannot_be_live():
    for tx in (optax.masked(adam(), True), live(adam()), optax.adam(0.1)):
        with pytest.raises(ValueError, match="live: 'learning_rate' must be the name of one hyperparameter"):
            live(tx)


def test_a_schedule_is_no_value():
    tx = live(sgd(0.5))
    with pytest.raises(
        ValueError, match="Live.set_hyperparams: 'learning_rate' must be a number, got exponential_decay"
    ):
        tx.set_hyperparams(tx.init(PARAMS), learning_rate=optax.exponential_decay(0.5, 1, 0.5))
