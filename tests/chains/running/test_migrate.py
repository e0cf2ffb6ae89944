"""The state for a changed optimizer keeps what survives, and says what."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from linkax.chains import (
    adam,
    adamax,
    adamw,
    asgd,
    chain,
    live,
    migrate,
    nadam,
    param_groups,
    rmsprop,
    sgd,
    sparse_adam,
)
from linkax.transforms import bias_correction, running_max, scale_by_nesterov

PARAMS = {"body": {"w": jnp.arange(6.0).reshape(2, 3)}, "head": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}}
SPLIT = {"body": "body", "head": "head"}


def gradients(step, params=PARAMS):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), len(jax.tree.leaves(params)))
    return jax.tree.unflatten(
        jax.tree.structure(params), [jax.random.normal(k, w.shape) for k, w in zip(keys, jax.tree.leaves(params))]
    )


def walk(tx, state, params=PARAMS, first=0, steps=5):
    update = jax.jit(tx.update)
    for step in range(first, first + steps):
        updates, state = update(gradients(step, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_nothing_changes_where_nothing_changed():
    tx = adamw(1e-3, amsgrad=True)
    params, state = walk(tx, tx.init(PARAMS))
    migration = migrate(tx, state, tx, params)
    chex.assert_trees_all_equal(migration.state, state)
    assert not any(migration[2:])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (adam(1e-3, weight_decay=0.1), adamw(1e-3, weight_decay=0.1)),
        (sgd(0.1, momentum=0.9), sgd(optax.exponential_decay(0.1, 10, 0.5), momentum=0.9, weight_decay=0.1)),
        (rmsprop(optax.constant_schedule(0.1)), rmsprop(optax.constant_schedule(0.1), weight_decay=0.5)),
    ],
)
def test_what_both_have_goes_on_as_if_it_had_been_there_all_along(old, new):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)  # so that L2 adds nothing, and the moments are the same in both
    state, expected = old.init(zeros), new.init(zeros)
    for step in range(4):
        _, state = old.update(gradients(step), state, zeros)
        _, expected = new.update(gradients(step), expected, zeros)
    chex.assert_trees_all_equal(migrate(old, state, new, PARAMS).state, expected)


def test_an_infinity_norm_has_no_sign_and_follows_the_units():
    old = adamax()
    params, state = walk(old, old.init(PARAMS))
    norm = optax.tree.get(state, "nu")
    opposite = migrate(old, state, adamax(maximize=True), params)
    chex.assert_trees_all_equal(optax.tree.get(opposite.state, "nu"), norm)
    doubled = migrate(old, state, chain(optax.scale(-2.0), *old.links), params)
    chex.assert_trees_all_equal(optax.tree.get(doubled.state, "nu"), jax.tree.map(lambda nu: 2 * nu, norm))


def test_an_average_of_the_weights_that_is_added_starts_with_the_weights_there_are():
    old, new = sgd(0.1), asgd(0.1, start=1)
    params, state = walk(old, old.init(PARAMS))
    migration = migrate(old, state, new, params, steps=5)
    assert any("average_weights.average" in one for one in migration.created)
    params, state = walk(new, migration.state, params, steps=1)
    chex.assert_trees_all_close(optax.tree.get(state, "average"), params, rtol=1e-6)
    assert int(state[1].count) == 6  # of the rate's decay, which goes on


def test_a_running_maximum_starts_anew_in_adam_that_becomes_amsgrad():
    old, new = adam(1e-3), adam(1e-3, amsgrad=True)
    params, state = walk(old, old.init(PARAMS))
    migration = migrate(old, state, new, params)
    assert migration.created == [f"second.running_max.nu_max {path}" for path in ("body/w", "head/b", "head/w")]
    chex.assert_trees_all_equal(migrate(new, migration.state, old, params).state, state)
    # The maximum is over the moment that was kept, so that the next step is Adam's.
    a, _ = old.update(gradients(9), state, params)
    b, _ = new.update(gradients(9), migration.state, params)
    chex.assert_trees_all_equal(a, b)


def test_momentum_becomes_nesterovs_in_its_slot():
    old, new = sgd(0.1, momentum=0.9), sgd(0.1, momentum=0.9, nesterov=True)
    params, state = walk(old, old.init(PARAMS))
    migration = migrate(old, state, new, params)
    chex.assert_trees_all_equal(migration.state[0].mu, state[0].mu)
    assert int(migration.state[0].count) == 5
    assert migration.created == ["scale_by_nesterov.correction"]


@pytest.mark.parametrize("momentum_decay", [4e-3, None])
def test_adam_becomes_nadam_with_the_weight_that_its_average_has(momentum_decay):
    old, new = adam(1e-3), nadam(1e-3, momentum_decay=momentum_decay)
    params, state = walk(old, old.init(PARAMS))
    _, whole = walk(new, new.init(PARAMS))
    migration = migrate(old, state, new, params)
    correction = migration.state[0].first.correction
    np.testing.assert_allclose(correction, whole[0].first.correction, rtol=1e-6)  # one sum against five in float32
    assert not migration.mixed


def test_links_of_different_slots_are_not_taken_for_each_other():
    old, new = sgd(0.1, momentum=0.9), adam(1e-3)
    params, state = walk(old, old.init(PARAMS))
    with pytest.raises(
        ValueError, match=r"(?s)migrate: .* a moment in common, or pass restart=True .* average of gradient"
    ):
        migrate(old, state, new, params)
    migration = migrate(old, state, new, params, restart=True)
    assert migration.kept == []
    assert set(migration.dropped) >= {"scale_by_momentum.mu head/b", "scale_by_momentum.count"}
    chex.assert_trees_all_equal(migration.state, new.init(params))


def test_a_new_link_counts_with_the_others():
    old = adam(1e-3).drop("second.bias_correction")
    params, state = walk(old, old.init(PARAMS))
    new = old.add(bias_correction(0.999), after="second.mean_square")
    migration = migrate(old, state, new, params)
    np.testing.assert_allclose(migration.state[0].second[1].weight, 1 - 0.999**5, rtol=1e-6)  # float32
    chex.assert_trees_all_equal(
        new.update(gradients(7), migration.state, params)[0],
        adam(1e-3).update(gradients(7), migration.state, params)[0],
    )
    _, whole = walk(adam(1e-3), adam(1e-3).init(PARAMS))
    # One closed form against five sums in float32.
    np.testing.assert_allclose(migration.state[0].second[1].weight, whole[0].second[1].weight, rtol=1e-6)


def test_a_group_added_in_mid_run_leaves_the_others_alone_and_starts_at_step_0():
    tx = adamw(1e-2)
    old = param_groups({"body": optax.set_to_zero(), "head": tx}, SPLIT)
    new = param_groups({"body": adamw(1e-3), "head": tx}, SPLIT)
    params, state = walk(old, old.init(PARAMS))
    migration = migrate(old, state, new, params)
    after, _ = walk(new, migration.state, params, first=5)

    alone, own = walk(old, state, params, first=5)
    chex.assert_trees_all_equal(after["head"], alone["head"])
    body, own = PARAMS["body"], adamw(1e-3).init(PARAMS["body"])
    for step in range(5, 10):
        updates, own = adamw(1e-3).update(gradients(step)["body"], own, body)
        body = optax.apply_updates(body, updates)
    # Compiled with and without the other group, XLA rounds a step by a unit in the last place or two.
    chex.assert_trees_all_close(after["body"], body, rtol=1e-6)
    assert migration.dropped == migration.mixed == migration.converted == []


def test_one_chain_becomes_groups_and_groups_become_one_chain():
    tx = adamw(1e-2)
    params, state = walk(tx, tx.init(PARAMS))
    split = param_groups({"body": adamw(1e-4), "head": tx}, SPLIT)
    migration = migrate(tx, state, split, params)
    assert migration.created == migration.mixed == []
    updates, _ = split.update(gradients(5), migration.state, params)
    whole, _ = tx.update(gradients(5), state, params)
    chex.assert_trees_all_equal(updates["head"], whole["head"])
    chex.assert_trees_all_equal(migrate(split, migration.state, tx, params).state, state)


def test_relabelled_parameters_keep_their_moments():
    old = param_groups({"a": adamw(1e-2), "b": adamw(1e-3)}, {"body": "a", "head": "b"})
    new = param_groups({"a": adamw(1e-2), "b": adamw(1e-3)}, {"body": "a", "head": {"w": "b", "b": "a"}})
    params, state = walk(old, old.init(PARAMS))
    migration = migrate(old, state, new, params)
    assert not any(migration[2:])
    kept = migration.state[0].inner_states["a"].inner_state[0].first[0].mu["head"]["b"]
    np.testing.assert_array_equal(kept, state[0].inner_states["b"].inner_state[0].first[0].mu["head"]["b"])


def test_a_renamed_group_goes_on_where_it_was():
    old = param_groups({"body": adamw(1e-2), "head": adamw(1e-3)}, SPLIT)
    new = param_groups({"trunk": adamw(1e-2), "head": adamw(1e-3)}, {"body": "trunk", "head": "head"})
    params, state = walk(old, old.init(PARAMS))
    migration = migrate(old, state, new, params)
    assert int(migration.state[0].inner_states["trunk"].inner_state[0].first[0].count) == 5
    assert migration.created == migration.mixed == []


def test_parameters_of_several_ages_in_one_group_are_listed():
    frozen = param_groups({"body": optax.set_to_zero(), "head": adam()}, SPLIT)
    params, state = walk(frozen, frozen.init(PARAMS))
    migration = migrate(frozen, state, adam(), params)
    assert migration.mixed == ["body/w: 0 steps in a group of 5"]
    assert int(migration.state[0].first[0].count) == 5


def test_parameters_come_and_go_by_path():
    tx = adam()
    params, state = walk(tx, tx.init(PARAMS))
    changed = {"head": params["head"], "tail": {"w": jnp.ones(4)}}
    migration = migrate(tx, state, tx, changed)
    assert set(migration.dropped) == {"first.scale_by_momentum.mu body/w", "second.mean_square.nu body/w"}
    assert set(migration.created) == {"first.scale_by_momentum.mu tail/w", "second.mean_square.nu tail/w"}
    assert migration.mixed == ["tail/w: 0 steps in a group of 5"]
    np.testing.assert_array_equal(migration.state[0].second[0].nu["tail"]["w"], jnp.zeros(4))
    np.testing.assert_array_equal(migration.state[0].second[0].nu["head"]["w"], state[0].second[0].nu["head"]["w"])


def test_a_parameter_of_another_shape_starts_anew():
    tx = adam()
    params, state = walk(tx, tx.init(PARAMS))
    migration = migrate(tx, state, tx, {**params, "body": {"w": jnp.ones((5, 3))}})
    assert migration.state[0].second[0].nu["body"]["w"].shape == (5, 3)
    assert "second.mean_square.nu body/w" in {*migration.created} & {*migration.dropped}


def test_foreign_transformations_keep_their_state_too():
    old = chain(optax.trace(0.9), optax.scale(-0.1))
    params, state = walk(old, old.init(PARAMS))
    new = chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale(-0.1))
    migration = migrate(old, state, new, params)
    chex.assert_trees_all_equal(migration.state[1], state[0])


def test_the_new_chains_number_wins_unless_the_value_that_was_set_is_asked_for():
    old = live(adam(1e-3))
    state = old.set_hyperparams(old.init(PARAMS), learning_rate=0.25)
    params, state = walk(old, state)
    new = live(adam(1e-3, amsgrad=True))
    migration = migrate(old, state, new, params)
    assert new.hyperparams(migration.state) == {"learning_rate": pytest.approx(1e-3)}
    migration = migrate(old, state, new, params, keep_live=True)
    assert new.hyperparams(migration.state) == {"learning_rate": 0.25}
    assert len(migration.created) == 3


def test_parameters_that_are_a_single_array():
    old, new = adam(), adam().add(running_max(), after="mean_square")
    w = jnp.float32(2.0)
    _, state = old.update(w, old.init(w), w)
    migration = migrate(old, state, new, w)
    assert migration.created == ["second.running_max.nu_max"]
    np.testing.assert_array_equal(migration.state[0].first[0].mu, state[0].first[0].mu)


def test_the_old_state_is_not_changed_and_must_be_one():
    tx = adam()
    _, state = walk(tx, tx.init(PARAMS))
    before = jax.tree.map(np.array, state)
    migrate(tx, state, adamw(), PARAMS)
    chex.assert_trees_all_equal(state, before)
    with pytest.raises(ValueError, match="migrate: old_state must have a state for each of the links moment_ratio"):
        migrate(tx, state[:1], adamw(), PARAMS)
    with pytest.raises(TypeError, match="migrate: old_state must be a link, a chain or an Optax transformation"):
        migrate(adam, state, adamw(), PARAMS)


def test_report_reads_as_one():
    tx = sgd(0.1, momentum=0.9)
    migration = migrate(tx, tx.init(PARAMS), tx.add(scale_by_nesterov(0.5), after="scale_by_momentum"), PARAMS)
    report = repr(migration)
    assert report.startswith("kept       4\n  scale_by_momentum.count\n  scale_by_momentum.mu     3 parameters\n")
    assert "\ncreated    5\n  scale_by_nesterov.count\n  scale_by_nesterov.mu          3 parameters\n" in report
    assert report.endswith("\ndropped    0\nmixed      0\nnotes      0")
    assert "\n  scale_by_momentum.mu body/w\n" in migration.details()


def test_with_flax_nnx():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    old, new = adam(1e-2), adam(1e-2, amsgrad=True)

    def train(optimizer):
        optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((1, 2))) ** 2).sum())(model))

    optimizer = nnx.Optimizer(model, old, wrt=nnx.Param)
    train(optimizer)
    migration = migrate(old, optimizer.opt_state, new, nnx.state(model, nnx.Param))
    assert len(migration.kept) == 9
    assert migration.created == [f"second.running_max.nu_max {name}" for name in ("bias", "kernel")]
    assert migration.dropped == migration.mixed == migration.converted == []
    again = nnx.Optimizer(model, optax.GradientTransformation(lambda _: migration.state, new.update), wrt=nnx.Param)
    before = model.kernel[...]
    updates, _ = new.update(
        nnx.grad(lambda m: (m(jnp.ones((1, 2))) ** 2).sum())(model), migration.state, nnx.state(model, nnx.Param)
    )
    train(again)
    np.testing.assert_allclose(model.kernel[...], before + updates["kernel"][...], rtol=1e-6)


HALVING = optax.linear_schedule(1.0, 0.0, 10)


def counts(migration):
    return {
        int(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(migration.state) if path[-1].name == "count"
    }


@pytest.mark.parametrize("old", [rmsprop(HALVING), adam(HALVING).drop("moment_ratio")])
def test_new_moments_are_corrected_from_their_own_start(old):
    new = adam(HALVING)
    params, state = walk(old, old.init(PARAMS))
    migration = migrate(old, state, new, params)
    updates, _ = new.update(gradients(5), migration.state, params)
    # Adam's first step is the learning rate's in every element, whatever the gradient; the schedule goes on.
    chex.assert_trees_all_close(jax.tree.map(jnp.abs, updates), jax.tree.map(lambda w: 0 * w + 0.5, params), rtol=1e-5)


def test_a_momentum_put_back_starts_anew_and_the_second_moment_goes_on():
    old = adam(1e-3).drop("first.scale_by_momentum").drop("first.bias_correction")
    params, state = walk(old, old.init(PARAMS))
    migration = migrate(old, state, adam(1e-3), params)
    assert int(migration.state[0].first[0].count) == int(migration.state[0].first[1].weight) == 0
    chex.assert_trees_all_equal(migration.state[0].second, state[0].second)


@pytest.mark.parametrize("new", [sgd(HALVING, momentum=0.9), sgd(HALVING, weight_decay=0.1), adam(HALVING)])
def test_a_schedule_goes_on_where_there_were_no_moments(new):
    old = sgd(HALVING)
    params, state = walk(old, old.init(PARAMS))
    assert int(migrate(old, state, new, params).state[-1].count) == 5
    grouped, renamed = param_groups({"body": old, "head": old}, SPLIT), param_groups({"x": new}, lambda *_: "x")
    params, state = walk(grouped, grouped.init(PARAMS))
    migration = migrate(grouped, state, renamed, params)
    assert int(migration.state[0].inner_states["x"].inner_state[-1].count) == 5
    assert int(migrate(grouped, state, new, params).state[-1].count) == 5


def test_live_around_groups_goes_on_too():
    groups = param_groups({"body": adam(HALVING), "head": adam(HALVING)}, SPLIT)
    params, state = walk(groups, groups.init(PARAMS))
    new = live(groups, "head.learning_rate")
    migration = migrate(groups, state, new, params)
    assert int(migration.state.inner[0].inner_states["head"].inner_state[-1].count) == 5
    chex.assert_trees_all_close(
        new.update(gradients(5), migration.state, params)[0], groups.update(gradients(5), state, params)[0], rtol=1e-6
    )


def test_moments_are_not_given_to_a_parameter_of_the_same_name_deeper_in_the_tree():
    params = {"norm": {"scale": jnp.ones(2)}, "encoder": {"norm": {"scale": jnp.ones(2)}}}
    tx = adam()
    _, state = walk(tx, tx.init(params), params)
    shallow = {"norm": params["norm"]}
    migration = migrate(tx, state, tx, shallow)
    np.testing.assert_array_equal(
        migration.state[0].first[0].mu["norm"]["scale"], state[0].first[0].mu["norm"]["scale"]
    )
    assert migration.dropped == [
        "first.scale_by_momentum.mu encoder/norm/scale",
        "second.mean_square.nu encoder/norm/scale",
    ]


@pytest.mark.parametrize("tx", [sparse_adam(), optax.masked(adam(), True), optax.apply_if_finite(adam(), 2)])
def test_lazy_links_and_foreign_wrappers_keep_their_state(tx):
    _, state = tx.update(gradients(0), tx.init(PARAMS), PARAMS)
    migration = migrate(tx, state, tx, PARAMS)
    chex.assert_trees_all_equal(migration.state, state)


def test_another_optimizers_state_is_refused():
    state = rmsprop(0.1).init(PARAMS)
    for tx in (sgd(0.1, momentum=0.9), adam(), param_groups({"x": adam()}, lambda *_: "x")):
        with pytest.raises(ValueError, match="migrate: old_state must"):
            migrate(tx, state, adam(), PARAMS)
    with pytest.raises(TypeError, match="migrate: new_tx must be a link, a chain or an Optax transformation"):
        migrate(adam(), adam().init(PARAMS), adam, PARAMS)
