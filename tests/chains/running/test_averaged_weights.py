"""Averages of the parameters: where they may stand, and how they are read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from linkax.chains import (
    adamw,
    asgd,
    averaged_weights,
    chain,
    full_weights,
    live,
    migrate,
    param_groups,
    precise_weights,
    sgd,
    stored,
)
from linkax.transforms import average_weights, decoupled_weight_decay, scale_by_learning_rate

PARAMS = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
STEP = jax.tree.map(lambda w: jnp.full_like(w, -1.0), PARAMS)  # with a learning rate of 1, weights grow by 1


def run(tx, steps, params=PARAMS, grads=STEP):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def growth(tree, params=PARAMS):
    """By how much the leaves are above the parameters at the start; the same for all elements."""
    (every,) = {float(x) for leaf in jax.tree.leaves(jax.tree.map(jnp.subtract, tree, params)) for x in np.ravel(leaf)}
    return every


@pytest.mark.parametrize("wrapper", ["plain", "multi", "live", "groups", "finite", "masked", "optax"])
def test_the_average_is_read_through_wrappers(wrapper):
    inner = chain(sgd(1.0), average_weights())
    tx = {
        "plain": inner,
        "multi": optax.MultiSteps(inner, 1),
        "live": live(inner, "learning_rate"),
        "groups": param_groups({"a": inner, "b": inner}, lambda path, w: path),
        "finite": optax.apply_if_finite(inner, 3),
        "masked": optax.masked(inner, True),
        "optax": optax.chain(optax.clip(10.0), inner),
    }[wrapper]
    params, state = run(tx, 4)
    assert growth(params) == 4
    assert growth(averaged_weights(tx, state, params)) == 2.5
    assert growth(jax.jit(lambda *args: averaged_weights(tx, *args))(state, params)) == 2.5


def test_accumulated_gradients_are_one_step():
    tx = optax.MultiSteps(chain(sgd(1.0), average_weights()), 2)
    params, state = run(tx, 6)
    assert growth(averaged_weights(tx, state, params)) == 2  # of 1, 2 and 3


def test_before_the_first_average_it_is_the_parameters():
    tx = chain(sgd(1.0), average_weights(0.9, start=3, every=2))
    for steps, expected in ((0, 0), (1, 1), (4, 4), (5, 5), (6, 5)):
        params, state = run(tx, steps)
        assert growth(averaged_weights(tx, state, params)) == expected
    shapes = tx.init(jax.eval_shape(lambda: PARAMS))  # zeros, because the values are not known
    assert growth(averaged_weights(tx, shapes, PARAMS)) == 0


def test_parameters_without_an_average_are_themselves():
    tx = param_groups({"a": chain(sgd(1.0), average_weights()), "b": sgd(1.0)}, lambda path, w: path)
    params, state = run(tx, 3)
    found = averaged_weights(tx, state, params)
    assert growth({"a": found["a"]}, {"a": PARAMS["a"]}) == 2
    assert float(found["b"]) == float(params["b"])


def test_a_parameter_without_a_gradient_is_averaged_as_it_is():
    tx = chain(sgd(1.0), average_weights(0.5))
    updates, state = tx.update({"a": STEP["a"], "b": None}, tx.init(PARAMS), PARAMS)
    assert updates["b"] is None
    moved = {**PARAMS, "b": jnp.array(5.0)}  # by something else
    _, state = tx.update({"a": STEP["a"], "b": None}, state, moved)
    assert float(averaged_weights(tx, state, moved)["b"]) == 4
    nothing = {"a": None, "b": optax.MaskedNode(), "c": {}}
    _, state = tx.update(nothing, tx.init(nothing), nothing)
    assert averaged_weights(tx, state, nothing) == nothing


def test_averages_of_narrow_parameters_are_float32():
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)
    grads = jax.tree.map(lambda w: jnp.full_like(w, -1e-3), low)
    plain = chain(sgd(1.0), average_weights(0.5))
    params, state = run(plain, 5, low, grads)
    assert growth(averaged_weights(plain, state, params), low) == 0  # bfloat16 weights stand still, and so does it
    tx = precise_weights(plain, by="lost_bits")
    params, state = run(tx, 2, low, grads)
    found = averaged_weights(tx, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    # The full weights are 1 + 0.001 and 1 + 0.002, with the digits of a bfloat16 0.001.
    np.testing.assert_allclose(full_weights(tx, state, params)["a"][0] - found["a"][0], 0.0005, rtol=5e-3)
    with pytest.raises(ValueError, match="float32_weights must be the last link.*or inside"):
        chain(precise_weights(sgd(1.0)), average_weights())


def test_infinite_weights_before_the_start_do_not_stay_in_the_average():
    tx = chain(sgd(1.0), average_weights(start=1))
    state = tx.init(PARAMS)
    for value in (jnp.inf, 1.0):
        weights = {**PARAMS, "b": jnp.array(value)}
        _, state = tx.update(STEP, state, weights)
    assert float(averaged_weights(tx, state, weights)["b"]) == 2


def test_a_donated_step_averages():
    tx = chain(sgd(1.0), average_weights())

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(STEP, state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
    for _ in range(3):
        params, state = step(params, state)
    assert growth(averaged_weights(tx, state, params)) == 2


def test_in_flax():
    tx = chain(sgd(1.0), average_weights())
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    for _ in range(3):
        state = state.apply_gradients(grads=STEP)
    assert growth(averaged_weights(state.tx, state.opt_state, state.params)) == 2
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    start = nnx.state(model, nnx.Param)["kernel"].get_value()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(3):
        optimizer.update(model, jax.tree.map(lambda w: -jnp.ones_like(w), nnx.state(model, nnx.Param)))
    found = averaged_weights(tx, optimizer.opt_state, nnx.state(model, nnx.Param))
    np.testing.assert_allclose(found["kernel"].get_value(), start + 2, rtol=1e-6)  # float32


MISPLACED = {
    "the learning rate": lambda: chain(average_weights(), scale_by_learning_rate(0.1)),
    "something of Optax's": lambda: chain(sgd(0.1), average_weights(), optax.scale(2.0)),
    "a clip behind a wrapper": lambda: chain(optax.MultiSteps(asgd(), 2), optax.clip(1.0)),
    "weight decay": lambda: chain(sgd(0.1), average_weights(), decoupled_weight_decay(0.1, multiplied_by="nothing")),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_nothing_that_changes_the_updates_comes_after_it(name):
    with pytest.raises(ValueError, match=r"^chain: \w+ must come after every link that changes the updates"):
        MISPLACED[name]()


def test_links_go_before_it_and_averages_stand_next_to_each_other():
    tx = chain(sgd(1.0), average_weights()).add(decoupled_weight_decay(0.1, multiplied_by="nothing"))
    assert [link.name for link in tx.links][1:] == ["decoupled_weight_decay", "average_weights"]
    two = chain(sgd(1.0), average_weights(), average_weights(0.5))
    assert chain(two, stored(average_weights(), "bfloat16")).links[-1].is_observer
    params, state = run(two, 3)
    with pytest.raises(ValueError, match=r"got None; there is average_weights, average_weights \(2\)$"):
        averaged_weights(two, state, params)
    assert growth(averaged_weights(two, state, params, "average_weights")) == 2
    assert growth(averaged_weights(two, state, params, "average_weights (2)")) == 2.25
    with pytest.raises(ValueError, match=r"got None; there is none; linkax.transforms.average_weights keeps one"):
        averaged_weights(sgd(), sgd().init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"params must be those of the state, with a of shape \(2,\), got \(3,\)"):
        averaged_weights(two, state, {**params, "a": jnp.ones(3)}, "average_weights")


def test_the_decay_is_a_function_of_the_number_of_averages():
    tx = chain(sgd(1.0), average_weights(lambda n: n / (n + 1), start=1, every=2))
    assert not tx.links[-1].is_scheduled
    params, state = run(tx, 7)
    assert growth(averaged_weights(tx, state, params)) == 5  # the mean of 3, 5 and 7
    with pytest.raises(ValueError, match=r"^average_weights: decay must be .* starts at 2"):
        average_weights(lambda n: 2.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"decay": 1.5}, r"decay must be a number in \[0, 1\] or a schedule, got 1.5"),
        ({"start": -1}, r"start must be a number in \[0, inf\) or a schedule, got -1"),
        ({"every": 0}, "every must be an integer of at least 1, got 0"),
        ({"every": 1.5}, "every must be an integer of at least 1, got 1.5"),
    ],
)
def test_arguments_are_checked(arguments, said):
    with pytest.raises(ValueError, match=f"^average_weights: {said}"):
        average_weights(**arguments)


def test_migration_starts_an_average_anew_and_keeps_one_that_is_there():
    old = sgd(1.0, momentum=0.5)
    params, state = run(old, 3)
    new = chain(old, average_weights(0.5))
    report = migrate(old, state, new, params, steps=3)
    assert any("average_weights.average" in one for one in report.created)
    assert int(report.state[-1].n_averaged) == 0
    assert growth(averaged_weights(new, report.state, params), params) == 0
    _, state = new.update(STEP, report.state, params)
    report = migrate(new, state, chain(old, average_weights()), params)
    assert any("average_weights.average" in one for one in report.kept)
    assert int(report.state[-1].n_averaged) == 1


def test_a_decay_can_be_set():
    tx = live(chain(adamw(1e-3), average_weights(0.5)), "average_weights.decay")
    params, state = run(tx, 1)
    state = tx.set_hyperparams(state, {"average_weights.decay": 0.0})
    updates, state = tx.update(STEP, state, params)
    params = optax.apply_updates(params, updates)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),  # float32
        averaged_weights(tx, state, params),
        params,
    )
