"""`migrate` sees through whatever Optax wraps around an optimizer."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from linkax.chains import (
    adadelta,
    adagrad,
    adam,
    adamw,
    chain,
    live,
    migrate,
    migrate_nnx,
    nadam,
    param_groups,
    rmsprop,
    sgd,
)
from linkax.chains.algebra._structure import state_arrays
from linkax.transforms import (
    Moment,
    bias_correction,
    link,
    negate_grad,
    running_max,
    scale_by_learning_rate,
    scale_by_momentum,
)

from ..optimizers import assert_close
from ..wrappers import WRAPPERS

SCHEDULE = optax.linear_schedule(1e-2, 1e-3, 20)
OPTIMIZERS = {
    "adamw": adamw(SCHEDULE, amsgrad=True),
    "sgd": sgd(0.1, momentum=0.9),
    "rmsprop": rmsprop(SCHEDULE, momentum=0.9, centered=True),
    "adagrad": adagrad(lr_decay=0.1),
    "adadelta": adadelta(),
    "nadam": nadam(),
    "optax.adam": optax.adam(SCHEDULE),
    "injected": optax.inject_hyperparams(adam)(1e-2),
    "live": live(adam(SCHEDULE, weight_decay=0.1), "weight_decay"),
}
each_optimizer = pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)
each_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def some_params():
    return {"body": {"w": jnp.arange(6.0).reshape(2, 3)}, "head": jnp.ones(2)}


def gradients(step, params):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(k, w.shape, w.dtype) for k, w in zip(keys, leaves)])


def walk(tx, state, params, first=0, steps=6):
    update = jax.jit(tx.update)
    for step in range(first, first + steps):
        updates, state = update(gradients(step, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def filled(state):
    """A state as it might be after some steps, without the time that these take."""
    numbers = iter(range(1, 1000))

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        if leaf.dtype == bool or "mini_step" in name or "hyperparams" in name:
            return leaf
        return leaf + 6 if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf + next(numbers) / 1000

    return jax.tree_util.tree_map_with_path(fill, state)


@each_wrapper
@each_optimizer
def test_the_same_chain_in_the_same_wrapper_goes_on_to_the_bit(tx, wrap):
    wrapped, params = wrap(tx), some_params()
    state = filled(wrapped.init(params))
    migration = migrate(wrapped, state, wrapped, params)
    chex.assert_trees_all_equal(migration.state, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(migration.state, state)
    assert not any(migration[2:])


@pytest.mark.parametrize(("old", "new"), [("adam", "adamw"), ("sgd", "sgd with decay"), ("adam", "amsgrad")])
@each_wrapper
def test_a_changed_chain_in_a_wrapper_goes_on_as_without_the_wrapper(old, new, wrap, x64):
    made = {
        "adam": adam(SCHEDULE, weight_decay=0.1),
        "adamw": adamw(SCHEDULE, weight_decay=0.1),
        "amsgrad": adam(SCHEDULE, weight_decay=0.1, amsgrad=True),
        "sgd": sgd(SCHEDULE, momentum=0.9),
        "sgd with decay": sgd(SCHEDULE, momentum=0.9, nesterov=True, weight_decay=0.1),
    }

    @functools.cache
    def changed(around):
        before, after, params = around(made[old]), around(made[new]), some_params()
        params, state = walk(before, before.init(params), params, steps=3)
        return walk(after, migrate(before, state, after, params).state, params, first=3, steps=3)[0]

    assert_close(changed(wrap), changed(WRAPPERS["plain"]))


PAIRS = [pair for pair in itertools.product(WRAPPERS, WRAPPERS) if "plain" in pair or "nested" in pair]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_wrappers_come_and_go(old, new, x64):
    tx, params = adamw(SCHEDULE), some_params()
    before, after = WRAPPERS[old](tx), WRAPPERS[new](tx)
    params, state = walk(before, before.init(params), params)
    migration = migrate(before, state, after, params)
    expected, _ = walk(before, state, params, first=6)
    assert_close(walk(after, migration.state, params, first=6)[0], expected)
    assert not any("mu" in name or "nu" in name for name in migration.created)
    assert not migration.mixed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (optax.adam(SCHEDULE), adam(SCHEDULE)),
        (adam(SCHEDULE), optax.adam(SCHEDULE)),
        (optax.amsgrad(1e-2), adam(1e-2).add(running_max(), after="second.bias_correction")),
        (optax.sgd(0.1, momentum=0.9), sgd(0.1, momentum=0.9)),
        (optax.rmsprop(0.1, decay=0.9, eps_in_sqrt=False), rmsprop(0.1, decay=0.9)),
        (optax.adagrad(0.1, initial_accumulator_value=0.1, eps=1e-10), adagrad(0.1, initial_accumulator_value=0.1)),
        (optax.adadelta(1.0, rho=0.9, eps=1e-6), adadelta()),
        (optax.inject_hyperparams(adam)(1e-2), live(adam(1e-2))),
        (optax.inject_hyperparams(optax.adam)(1e-2), adam(1e-2)),
        (live(adam(1e-2)), optax.inject_hyperparams(adam)(1e-2)),
        (adam(1e-2), optax.MultiSteps(adam(1e-2), 1)),
        (optax.MultiSteps(optax.adam(1e-2), 1), chain(optax.clip(1e9), adam(1e-2))),
    ],
    ids=lambda tx: type(tx).__name__,
)  # fmt: skip
def test_optaxs_own_optimizers_and_linkaxs_go_on_from_each_other(old, new, x64):
    params = some_params()
    params, state = walk(old, old.init(params), params)
    migration = migrate(old, state, new, params)
    actual, _ = walk(new, migration.state, params, first=6)
    expected, _ = walk(old, state, params, first=6)
    # optax.inject_hyperparams keeps a β as an array: some units in the last place; ε of 1e-10 in the root of Optax's
    # Adagrad is added under it.
    assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("rate", [0.5, 0.125])
def test_a_buffer_moves_to_the_other_side_of_the_learning_rate_with_its_sign_and_units(rate, x64):
    inside = chain(scale_by_learning_rate(rate), scale_by_momentum(0.9))
    outside, params = sgd(rate, momentum=0.9), some_params()
    for old, new in ((inside, outside), (outside, inside)):
        moved, state = walk(old, old.init(params), params)
        migration = migrate(old, state, new, moved)
        assert len(migration.converted) == 2
        assert_close(walk(new, migration.state, moved, 6)[0], walk(old, state, moved, 6)[0])
        assert_close(migrate(new, migration.state, old, moved).state, state)


def test_a_buffer_behind_a_schedule_starts_anew_and_says_so():
    inside = chain(scale_by_learning_rate(SCHEDULE), scale_by_momentum(0.9))
    params = some_params()
    params, state = walk(inside, inside.init(params), params)
    migration = migrate(inside, state, sgd(SCHEDULE, momentum=0.9), params)
    assert migration.converted == []
    assert not any(" " in name for name in migration.kept)
    assert any("scale_by_momentum.mu restarts: a factor that changes from step to step" in n for n in migration.notes)
    chex.assert_trees_all_equal(migrate(inside, state, inside, params).state, state)


def test_a_momentum_whose_dampening_changes_is_rescaled(x64):
    old = chain(scale_by_momentum(0.9), scale_by_learning_rate(0.1))
    new = chain(scale_by_momentum(0.9, dampening=0.9), scale_by_learning_rate(0.1))
    params = some_params()
    _, state = walk(old, old.init(params), params)
    _, expected = walk(new, new.init(params), params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for tx in (old, new):  # the gradients do not depend on where the parameters are
        assert_close(tx.update(zeros, tx.init(params))[0], zeros)
    migration = migrate(old, state, new, params)
    assert len(migration.converted) == 2
    assert_close(migration.state, expected)


def test_pytorchs_dampening_whose_first_step_is_not_dampened_has_no_factor():
    params = some_params()
    old, new = sgd(0.1, momentum=0.9, dampening=0.5), sgd(SCHEDULE, momentum=0.9)
    _, state = walk(old, old.init(params), params)
    migration = migrate(old, state, sgd(SCHEDULE, momentum=0.9, weight_decay=0.1), params, restart=True)
    assert migration.converted == []
    assert any(
        "the weight of a new value has changed" in note for note in migrate(old, state, new, params, restart=True).notes
    )


def test_averages_of_another_memory_keep_their_size():
    params = some_params()
    params, state = walk(adam(), adam().init(params), params)
    migration = migrate(adam(), state, adam(b1=0.5, b2=0.9), params)
    chex.assert_trees_all_equal(migration.state, state)  # the weight that has been gathered goes with the average


def test_maximize_turns_the_first_moment_around(x64):
    params = some_params()
    old, new = adam(), adam(maximize=True)
    _, state = walk(old, old.init(params), params)
    _, expected = walk(new, new.init(params), params)
    migration = migrate(old, state, new, params)
    assert {name.partition(".")[0] for name in migration.converted} == {"first"}
    assert_close(migration.state, expected)
    assert negate_grad().sets_sign


def test_rmsprops_momentum_is_not_sgds():
    params = some_params()
    old, new = rmsprop(SCHEDULE, momentum=0.9), sgd(SCHEDULE, momentum=0.9)
    params, state = walk(old, old.init(params), params)
    migration = migrate(old, state, new, params)
    assert not any(" " in name for name in [*migration.kept, *migration.converted])
    assert any("it was the average of direction of gradient" in note for note in migration.notes)


def test_one_number_serves_for_steps_that_nothing_counts():
    params = some_params()
    old, new = rmsprop(1e-2), rmsprop(SCHEDULE)
    params, state = walk(old, old.init(params), params)
    with pytest.raises(
        ValueError, match=r"migrate: steps must say .* scale_by_learning_rate.count must continue .* None"
    ):
        migrate(old, state, new, params)
    assert int(migrate(old, state, new, params, steps=6).state[-1].count) == 6
    with pytest.raises(ValueError, match="migrate: steps must be an integer of at least 0, got -1"):
        migrate(old, state, new, params, steps=-1)
    with pytest.raises(ValueError, match="migrate: steps must equal the old state's count, 6 in the old state, got 7"):
        migrate(adam(), walk(adam(), adam().init(params), params)[1], new, params, steps=7)


def test_a_number_replaced_by_a_schedule_in_any_hyperparameter_counts_on():
    params = some_params()
    _, state = walk(adam(), adam().init(params), params)
    migration = migrate(adam(), state, adam(b2=optax.linear_schedule(0.9, 0.999, 10)), params)
    counts = [int(array.value) for array in _arrays(migration.state, adam(b2=SCHEDULE), params) if array.is_count]
    assert counts == [6] * 3
    weights = [migration.state[0].second[1].inner.weight, state[0].second[1].weight]
    np.testing.assert_array_equal(*weights)


def _arrays(state, tx, params):
    return state_arrays("test", tx, state, params)


def test_live_values_never_freeze_a_schedule():
    params = some_params()
    old, new = live(adam(SCHEDULE)), live(adam(0.5))
    params, state = walk(old, old.init(params), params)
    assert new.hyperparams(migrate(old, state, new, params).state) == {"learning_rate": 0.5}
    assert new.hyperparams(migrate(new, new.init(params), old, params, steps=0).state) != {"learning_rate": 0.5}


@pytest.mark.parametrize(
    "tx", [adam(), optax.adam(1e-3), optax.MultiSteps(adam(), 2)], ids=["linkax", "optax", "multi"]
)
def test_parameters_nested_otherwise_are_recognised(tx):
    params = some_params()
    params, state = walk(tx, tx.init(params), params)
    nested = {"params": freeze(params)}
    migration = migrate(tx, state, tx, nested)
    assert not migration.created
    assert not migration.dropped
    chex.assert_trees_all_equal(migrate(tx, migration.state, tx, params).state, state)
    moved = {"model": {"net": params}}
    chex.assert_trees_all_equal(migrate(tx, migrate(tx, migration.state, tx, moved).state, tx, params).state, state)


def test_nothing_in_common_is_an_error():
    params = some_params()
    for old, new in ((adagrad(), adam()), (adam(), sgd(0.1, momentum=0.9)), (sgd(0.1, momentum=0.9), adagrad())):
        params, state = walk(old, old.init(params), params)
        with pytest.raises(
            ValueError, match=r"migrate: old_tx and new_tx must have a moment in common, or pass restart=True"
        ):
            migrate(old, state, new, params)
        chex.assert_trees_all_equal(migrate(old, state, new, params, restart=True).state, new.init(params))
    assert migrate(adam(), adam().init(params), sgd(0.1), params).kept == []  # nothing is needed


def test_what_cannot_be_looked_into_is_named():
    params = some_params()
    opaque = optax.contrib.schedule_free(adam(), 0.1)
    state = opaque.init(params)
    chex.assert_trees_all_equal(migrate(opaque, state, opaque, params).state, state)
    for old, new in ((opaque, adam()), (chain(optax.clip(1.0), opaque), chain(optax.clip(1.0), adam()))):
        with pytest.raises(ValueError, match="migrate: old_tx holds schedule_free, which cannot be looked into"):
            migrate(old, old.init(params), new, params)
    with pytest.raises(ValueError, match="migrate: new_tx holds schedule_free, which cannot be looked into"):
        migrate(adam(), adam().init(params), opaque, params)


def test_a_half_filled_accumulator_goes_on_only_in_the_same_wrapper():
    params = some_params()
    old = optax.MultiSteps(adam(), 4)
    params, state = walk(old, old.init(params), params)
    assert int(state.mini_step) == 2
    chex.assert_trees_all_equal(migrate(old, state, old, params).state, state)
    migration = migrate(old, state, optax.MultiSteps(adam(), 2), params)
    assert int(migration.state.mini_step) == 0
    assert set(migration.dropped) == {
        "MultiSteps.mini_step",
        "MultiSteps.acc_grads body/w",
        "MultiSteps.acc_grads head",
    }
    assert int(migration.state.gradient_step) == 1


def test_a_users_own_link_takes_part():
    @link(
        "moment",
        state={"trail": Moment("average of {}", lambda decay: 1 - decay, lambda **_: True)},
        out="average of {}",
    )
    def scale_by_trail(decay: float) -> optax.GradientTransformation:
        return optax.GradientTransformation(
            lambda params: {"trail": jax.tree.map(jnp.zeros_like, params)},
            lambda u, s, p=None: (
                (t := jax.tree.map(lambda a, g: decay * a + (1 - decay) * g, s["trail"], u)),
                {"trail": t},
            ),
        )

    params = some_params()
    old = chain(scale_by_trail(0.9), bias_correction(0.9), scale_by_learning_rate(0.1))
    new = chain(scale_by_momentum(0.9, dampening=0.9), bias_correction(0.9), scale_by_learning_rate(0.1))
    params, state = walk(old, old.init(params), params)
    migration = migrate(old, state, new, params)
    chex.assert_trees_all_equal(migration.state[0].mu, state[0]["trail"])
    chex.assert_trees_all_close(
        walk(old, state, params, 6)[0], walk(new, migration.state, params, 6)[0], rtol=1e-6
    )  # float32


def test_groups_inside_wrappers_and_wrappers_inside_groups(x64):
    params = some_params()

    def split(path, w):
        return path.split("/")[0]

    plain = param_groups({"body": adamw(SCHEDULE), "head": adamw(1e-3)}, split)
    around = optax.MultiSteps(plain, 1)
    inside = param_groups(
        {"body": optax.MultiSteps(adamw(SCHEDULE), 1).gradient_transformation(), "head": optax.flatten(adamw(1e-3))},
        split,
    )
    params, state = walk(plain, plain.init(params), params)
    expected, _ = walk(plain, state, params, 6)
    for new in (
        around,
        inside,
        optax.partition({"body": adamw(SCHEDULE), "head": adamw(1e-3)}, {"body": "body", "head": "head"}),
    ):
        migration = migrate(plain, state, new, params)
        assert not migration.mixed
        assert_close(walk(new, migration.state, params, 6)[0], expected)


def test_flax_nnx_twice_in_a_row():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adam(1e-2), wrt=nnx.Param)

    def train(optimizer):
        for _ in range(2):
            optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((1, 2))) ** 2).sum())(model))

    train(optimizer)
    first = migrate_nnx(optimizer, adam(1e-2, amsgrad=True), model)
    assert first.created == ["second.running_max.nu_max bias", "second.running_max.nu_max kernel"]
    train(optimizer)
    second = migrate_nnx(optimizer, optax.MultiSteps(adamw(1e-2), 2).gradient_transformation(), model)
    assert int(second.state.gradient_step) == 4
    train(optimizer)
    assert int(optimizer.opt_state.gradient_step[...]) == 5
    assert int(optimizer.step[...]) == 6
    with pytest.raises(TypeError, match="migrate_nnx: optimizer must be an nnx.Optimizer"):
        migrate_nnx(adam(), adam(), model)


def test_from_linen_to_nnx():
    linen = {"params": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    _, state = walk(adam(), adam().init(linen), linen)
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    migration = migrate(adam(), state, adam(), nnx.state(model, nnx.Param))
    assert len(migration.kept) == 9
    assert not migration.created


def nan_gradients(params):
    return jax.tree.map(lambda w: w * jnp.nan, params)


def test_a_wrapper_that_lets_steps_pass_has_a_clock_of_its_own():
    """`MultiSteps` and `apply_if_finite` let what is inside rest: what is outside of them has taken more steps."""
    params = some_params()
    old = live(optax.MultiSteps(sgd(0.1, momentum=0.9), 4))
    _, state = walk(old, old.init(params), params, steps=8)
    new = live(optax.MultiSteps(sgd(SCHEDULE, momentum=0.9), 4))
    migration = migrate(old, state, new, params).state
    assert int(migration.count) == 8
    assert int(migration.inner[0].gradient_step) == 2
    assert int(migration.inner[0].inner_opt_state[-1].count) == 2
    assert int(migrate(old, state, sgd(SCHEDULE, momentum=0.9), params).state[-1].count) == 2

    old = live(optax.apply_if_finite(adam(), 9))
    _, state = walk(old, old.init(params), params, steps=3)
    for _ in range(2):
        _, state = old.update(nan_gradients(params), state, params)
    migration = migrate(old, state, live(optax.apply_if_finite(adam(SCHEDULE), 9)), params).state
    assert int(migration.count) == 5
    assert int(migration.inner[0].inner_state[-1].count) == 3


def test_a_dampening_that_is_live_may_have_been_anything():
    old = live(chain(scale_by_momentum(0.9, dampening=0.5), scale_by_learning_rate(0.1)), "dampening")
    params = some_params()
    _, state = walk(old, old.set_hyperparams(old.init(params), dampening=0.0), params)
    new = chain(scale_by_momentum(0.9), scale_by_learning_rate(0.1))
    with pytest.raises(ValueError, match="the weight of a new value has changed by an unknown factor"):
        migrate(old, state, new, params)
    # What is not live is known.
    migration = migrate(live(new), live(new).init(params), live(old.chain), params)
    assert len(migration.converted) == 2


def test_making_another_number_live_changes_nothing():
    velocity = chain(scale_by_learning_rate(0.1), scale_by_momentum(0.9))
    params = some_params()
    _, state = walk(velocity, velocity.init(params), params)
    migration = migrate(velocity, state, live(velocity, "decay"), params)
    assert len(migration.kept) == 3
    assert migrate(velocity, state, live(velocity, "learning_rate"), params, restart=True).kept == []


def test_a_moment_of_another_kind_of_optimizer_says_why_it_starts_anew():
    params = some_params()
    _, state = walk(rmsprop(SCHEDULE), rmsprop(SCHEDULE).init(params), params)
    notes = migrate(rmsprop(SCHEDULE), state, adam(SCHEDULE), params).notes
    assert any("mean square of gradient was the second alone moment of a ratio, and is the second" in n for n in notes)


def test_a_factory_that_returns_a_chain_is_an_abbreviation():
    @link("moment")
    def corrected_average(decay: float) -> optax.GradientTransformation:
        return chain(scale_by_momentum(decay, dampening=decay), bias_correction(decay))

    short = chain(corrected_average(0.9), scale_by_learning_rate(0.1))
    long = chain(scale_by_momentum(0.9, dampening=0.9), bias_correction(0.9), scale_by_learning_rate(0.1))
    params = some_params()
    _, state = walk(short, short.init(params), params)
    for old, new in ((short, long), (short, short)):
        migration = migrate(old, state, new, params)
        assert not migration.created
        assert not migration.dropped


def test_a_link_whose_transformations_nobody_finds_is_opaque():
    @link(None, holds={"all_of": ("s",)})
    def sequence(all_of) -> optax.GradientTransformation:
        return optax.chain(*all_of)

    tx, params = chain(sequence([adam(), optax.clip(1.0)])), some_params()
    assert repr(tx).endswith("opaque")
    with pytest.raises(ValueError, match="migrate: old_tx holds sequence, which cannot be looked into"):
        migrate(tx, tx.init(params), adam(), params)


def test_states_that_are_a_bare_array():
    counting = optax.GradientTransformation(lambda p: jnp.zeros((), jnp.int32), lambda u, s, p=None: (u, s + 1))
    tx, params = optax.chain(counting, optax.adam(0.1)), some_params()
    _, state = walk(tx, tx.init(params), params)
    chex.assert_trees_all_equal(migrate(tx, state, tx, params).state, state)


def test_one_array_becomes_a_tree_of_one():
    w = jnp.ones(2)
    _, state = walk(adam(), adam().init(w), w)
    assert not migrate(adam(), state, adam(), {"w": w}).created
