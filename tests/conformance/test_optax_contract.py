"""What Optax asks of a gradient transformation, of every optimizer and of every link.

`init` looks at shapes and dtypes only; updates are the parameters' like; states keep their form from step to step;
Optax's own tools find their way through the states.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.sparse import BCOO

from linkax.chains import (
    Chain,
    adadelta,
    adagrad,
    adam,
    adamw,
    apply_updates,
    chain,
    live,
    param_groups,
    sgd,
    sparse_adam,
)
from linkax.transforms import (
    add_l2_to_grad,
    bias_correction,
    decoupled_weight_decay,
    lazy,
    mean_square,
    moment_ratio,
    negate_grad,
    row_gradient,
    running_max,
    scale_by_adadelta,
    scale_by_inverse_time_decay,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_nesterov,
    scale_by_past_rms,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
    sum_of_squares,
    variance,
)

from ..chains.optimizers import OPTIMIZERS, signature


def halving(count):
    return 0.5 ** (count + 1)


LINKS = {
    "negate_grad": negate_grad(),
    "add_l2_to_grad": add_l2_to_grad(0.1),
    "add_l2_to_grad, scheduled": add_l2_to_grad(halving),
    "add_l2_to_grad, masked": add_l2_to_grad(0.1, {"w": True, "b": False}),
    "scale_by_momentum": scale_by_momentum(0.9),
    "scale_by_momentum, dampened": scale_by_momentum(0.9, dampening=0.5, first_step="gradient"),
    "scale_by_momentum, scheduled": scale_by_momentum(halving),
    "scale_by_nesterov": scale_by_nesterov(0.9),
    "scale_by_nesterov, corrected": scale_by_nesterov(0.9, form="corrected", momentum_decay=0.004),
    "mean_square": mean_square(0.9),
    "sum_of_squares": sum_of_squares(),
    "sum_of_squares, from more": sum_of_squares(0.5),
    "variance": variance(0.9),
    "running_max": running_max(),
    "bias_correction": bias_correction(0.9),
    "bias_correction, behind": bias_correction(0.9, behind_ratio=True),
    "scale_by_rms": scale_by_rms(0.9),
    "scale_by_rss": scale_by_rss(),
    "scale_by_stddev": scale_by_stddev(0.9),
    "scale_by_past_rms": scale_by_past_rms(0.9, 1e-6),
    "scale_by_adadelta": scale_by_adadelta(),
    "moment_ratio": moment_ratio(chain(scale_by_momentum(0.9), bias_correction(0.5)), mean_square(0.9), 1e-8),
    "moment_ratio, of Optax's": moment_ratio(optax.trace(0.9), mean_square(0.9), 1e-8),
    "lazy": lazy(scale_by_momentum(0.9)),
    "lazy, of Optax's": lazy(optax.trace(0.9)),
    "scale_by_inverse_time_decay": scale_by_inverse_time_decay(0.1),
    "decoupled_weight_decay": decoupled_weight_decay(0.1),
    "scale_by_learning_rate": scale_by_learning_rate(0.1),
    "scale_by_learning_rate, scheduled": scale_by_learning_rate(halving),
}
CHAINS = {
    **{row.name: row() for row in OPTIMIZERS},
    "sgd, plain": sgd(0.1),
    "adadelta, plain": adadelta(),
    "sparse_adam": sparse_adam(),
    "adam, scheduled": adam(halving, b1=halving),
    "with Optax's": chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), scale_by_learning_rate(0.1)),
    "param_groups": param_groups({"w": adamw(0.1), "b": sgd(0.1, momentum=0.9)}, {"w": "w", "b": "b"}),
    "param_groups, of links and Optax's": param_groups(
        {"w": scale_by_momentum(0.9), "b": optax.adam(0.1)}, lambda path, _: path
    ),
}
EVERY = {**LINKS, **CHAINS, "live": live(adamw(0.1))}


def each(table, *, own=False, without_params=False):
    """Runs a test on a table: on all of it, or only on what has nothing of Optax's, or on what needs no parameters."""
    chosen = {
        name: tx
        for name, tx in table.items()
        if not (own and "Optax's" in name) and not (without_params and "weight_decay=" in repr(tx))
    }
    return pytest.mark.parametrize("tx", chosen.values(), ids=chosen.keys())


every = each(EVERY)
each_own = each(EVERY, own=True)
each_chain = each(CHAINS)
HALVES = pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])


def tree(dtype=jnp.float32, seed=0):
    """Parameters, or gradients: numbers that bfloat16 and float16 hold exactly."""
    rng = np.random.default_rng(seed)
    real = [jnp.asarray(rng.integers(-8, 9, shape) / 4 + 1 / 8, jnp.float32) for shape in ((2, 4), (4,))]
    if jnp.issubdtype(dtype, jnp.complexfloating):
        real = [jax.lax.complex(leaf, 1 - leaf) for leaf in real]
    return {"w": real[0].astype(dtype), "b": real[1].astype(dtype)}


def shapes(params, sharding=None):
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=sharding), params)


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


# init


@every
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64], ids=lambda dtype: dtype.__name__)
def test_init_takes_shapes_for_parameters(tx, dtype):
    found, expected = tx.init(shapes(tree(dtype))), tx.init(tree(dtype))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert signature(found) == signature(expected)
    chex.assert_trees_all_equal(found, expected)


@every
def test_init_keeps_the_sharding_that_a_shape_has(tx):
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("x",)), jax.P("x"))
    # (The means of columns have one row, which is on all devices.)
    leaves = jax.tree.leaves(tx.init(shapes(tree(), sharding)))
    moments = [leaf for leaf in leaves if leaf.ndim > 0 and leaf.shape[0] > 1]
    assert all(leaf.sharding == sharding for leaf in moments)


@each_own
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
def test_init_reads_and_copies_no_parameter(tx, dtype):
    params = tree(dtype)
    expected = tx.init(params)
    for leaf in params.values():
        leaf.delete()  # it has a shape and a dtype still; who wants more of it is told that it has been deleted
    chex.assert_trees_all_equal(tx.init(params), expected)


@every
def test_compiled_init_reads_no_parameter(tx):
    """It asks where they are: no equation but `shard_alike` may get them, and what that returns of them is dropped."""
    jaxpr = jax.make_jaxpr(tx.init)(tree()).jaxpr
    theirs = set(map(id, jaxpr.invars))
    for equation in jaxpr.eqns:
        if not theirs & set(map(id, equation.invars)):
            continue
        name = equation.primitive.name
        assert name in ("stop_gradient", "shard_alike"), equation
        theirs.add(id(equation.outvars[-1]))  # the second of `shard_alike`
    assert not theirs & set(map(id, jaxpr.outvars))


@every
def test_no_array_is_twice_in_a_state(tx):
    """One that is could not be donated."""
    addresses = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tx.init(tree()))]
    assert len(addresses) == len(set(addresses))


# dtypes of updates


DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


@each_chain
@pytest.mark.parametrize("param_dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_updates_of_a_chain_have_the_dtype_of_the_parameters(tx, param_dtype, dtype):
    params, gradient = tree(param_dtype), tree(dtype, 1)
    state = tx.init(params)
    updates, after = jax.eval_shape(tx.update, gradient, state, params)
    assert signature(updates) == signature(params)
    assert signature(after) == signature(state)


@each(EVERY, without_params=True)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64], ids=lambda dtype: dtype.__name__)
def test_without_parameters_updates_have_the_dtype_of_the_gradient(tx, dtype):
    updates, _ = jax.eval_shape(tx.update, tree(dtype, 1), tx.init(tree(dtype)))
    assert dtypes(updates) == {jnp.dtype(dtype)}


@each(LINKS)
@HALVES
def test_a_link_alone_rounds_nothing_to_the_dtype_of_the_gradient(tx, half):
    params, gradient = tree(), tree(half, 1)
    alone = optax.chain(tx, optax.identity())
    updates, state = alone.update(gradient, alone.init(params), params)
    expected, expected_state = alone.update(optax.tree.cast(gradient, jnp.float32), alone.init(params), params)
    assert dtypes(updates) == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_equal((updates, state), (expected, expected_state))


@each(LINKS, own=True)
@HALVES
def test_nor_to_that_of_the_parameter_before_the_end(tx, half):
    params, gradient = tree(half), tree(seed=1)
    updates, state = tx.update(gradient, tx.init(params), params)
    wide = optax.tree.cast(params, jnp.float32)
    chex.assert_trees_all_equal((updates, state), tx.update(gradient, tx.init(wide), wide))


@HALVES
def test_links_in_optaxs_chain_make_the_optimizer_that_ours_makes(half):
    params, gradient = tree(), tree(half, 1)
    for tx in CHAINS.values():
        if not tx.links[0].place:  # Optax's have their own ways, and groups need a chain
            continue
        theirs = optax.chain(*tx.links)
        state, their_state = tx.init(params), theirs.init(params)
        for _ in range(3):
            updates, state = tx.update(gradient, state, params)
            their_updates, their_state = theirs.update(gradient, their_state, params)
            chex.assert_trees_all_equal((updates, state), (their_updates, their_state))


@each_chain
@HALVES
def test_in_multi_steps_updates_have_the_dtype_of_the_parameters(tx, half):
    multi = optax.MultiSteps(tx, 2)
    params, gradient = tree(), tree(half, 1)
    state, updates = multi.init(params), None
    for _ in range(2):
        updates, new = jax.jit(multi.update)(gradient, state, params)
        assert signature(updates) == signature(params)
        assert signature(new) == signature(state)
        state = new
    # The mean of two equal gradients is that gradient, exactly.
    expected, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


@every
def test_float64_parameters_get_float64_updates(tx, x64):
    params = {"w": tree()["w"], "b": tree(jnp.float64)["b"]}
    for gradient in (tree(jnp.float32, 1), tree(jnp.float64, 1), params):
        updates, _ = tx.update(gradient, tx.init(params), params)
        assert updates["b"].dtype == jnp.float64
        if isinstance(tx, Chain):
            assert updates["w"].dtype == jnp.float32


@each_chain
def test_a_real_gradient_of_a_complex_parameter_is_complex(tx):
    params, gradient = tree(jnp.complex64), tree(seed=1)
    updates, _ = tx.update(gradient, tx.init(params), params)
    expected, _ = tx.update(optax.tree.cast(gradient, jnp.complex64), tx.init(params), params)
    chex.assert_trees_all_equal(updates, expected)
    assert dtypes(updates) == {jnp.dtype(jnp.complex64)}


@pytest.mark.parametrize(
    "name", ["scale_by_momentum", "scale_by_nesterov", "mean_square", "scale_by_rms", "moment_ratio"]
)
def test_moments_of_complex_parameters_lose_no_imaginary_part(name):
    """Not even where a real gradient comes, and no parameters tell that it belongs to a complex one."""
    tx, params = LINKS[name], tree(jnp.complex64)
    _, state = tx.update(tree(jnp.complex64, 1), tx.init(params))
    chex.assert_trees_all_equal(tx.update(tree(seed=2), state), tx.update(tree(seed=2), state, params))


@each(
    {
        "sgd": sgd(0.1),
        "adagrad": adagrad(0.1),
        "sparse_adam": sparse_adam(),
        "param_groups": param_groups({"w": adagrad(0.1), "b": adamw(0.1)}, {"w": "w", "b": "b"}),
    }
)
def test_row_sparse_updates_have_the_dtype_of_the_table(tx):
    params, ids = {"w": jnp.ones((6, 2)), "b": jnp.ones(3)}, jnp.array([1, 4])

    def updates(dtype):
        rows = row_gradient(params["w"], ids, jnp.full((2, 2), 0.5, dtype))
        return tx.update({"w": rows, "b": jnp.ones(3, dtype)}, tx.init(params), params)[0]

    half, wide = updates(jnp.bfloat16), updates(jnp.float32)
    assert isinstance(half["w"], BCOO)
    assert (half["w"].dtype, half["b"].dtype) == (jnp.float32, jnp.float32)
    chex.assert_trees_all_equal((half["w"].data, half["b"]), (wide["w"].data, wide["b"]))


@each_own
def test_leaves_that_are_not_there_stay_so(tx):
    missing = {"none": None, "masked": optax.MaskedNode()}
    params, gradient = {**tree(), **missing}, {**tree(jnp.bfloat16, 1), **missing, "b": None}
    state = tx.init(params)
    updates, after = tx.update(gradient, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(gradient)
    assert updates["w"].dtype == jnp.float32
    assert signature(after) == signature(state)


# Optax's own links among ours


FOREIGN = {
    "trace": optax.trace(0.9),
    "trace, nesterov": optax.trace(0.9, nesterov=True),
    "ema": optax.ema(0.9),
    "scale_by_adam": optax.scale_by_adam(),
    "scale_by_rms": optax.scale_by_rms(),
    "scale_by_stddev": optax.scale_by_stddev(),
    "scale_by_rss": optax.scale_by_rss(),
    "scale_by_adadelta": optax.scale_by_adadelta(),
    "scale_by_amsgrad": optax.scale_by_amsgrad(),
    "scale_by_lion": optax.scale_by_lion(),
    "scale_by_yogi": optax.scale_by_yogi(),
    "scale_by_adamax": optax.scale_by_adamax(),
    "scale_by_belief": optax.scale_by_belief(),
    "add_noise": optax.add_noise(0.1, 0.5, 0),
    "add_decayed_weights": optax.add_decayed_weights(0.1),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "adaptive_grad_clip": optax.adaptive_grad_clip(0.1),
    "scale_by_trust_ratio": optax.scale_by_trust_ratio(),
    "scale_by_schedule": optax.scale_by_schedule(halving),
    "chain": optax.chain(optax.trace(0.9), optax.scale(2.0)),
    "masked": optax.masked(optax.trace(0.9), {"w": True, "b": False}),
    "partition": optax.partition({"w": optax.trace(0.9), "b": adam()}, {"w": "w", "b": "b"}),
    "apply_if_finite": optax.apply_if_finite(optax.trace(0.9), 2),
    "flatten": optax.flatten(optax.trace(0.9)),
    "MultiSteps": optax.MultiSteps(optax.trace(0.9), 1).gradient_transformation(),
    "a whole one": optax.adamw(0.1),
}


@pytest.mark.parametrize("name", FOREIGN)
@HALVES
def test_optaxs_links_keep_a_wide_state_of_one_form_in_ours(name, half):
    params, gradient = tree(half), tree(half, 1)
    for tx in (
        chain(FOREIGN[name], scale_by_learning_rate(0.1)),
        param_groups({"all": FOREIGN[name]}, lambda *_: "all"),
        chain(lazy(FOREIGN[name])),
    ):
        state = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, gradient, state, params)
        assert signature(after) == signature(state)
        assert jnp.dtype(half) not in dtypes(state)
        assert dtypes(updates) == {jnp.dtype(half)}


# Optax's tools


def is_masked(leaf):
    return isinstance(leaf, optax.MaskedNode)


@every
def test_map_params_finds_every_array_that_belongs_to_a_parameter(tx):
    params = tree()
    state = tx.init(params)
    chex.assert_trees_all_equal(optax.tree.map_params(tx, lambda leaf: leaf, state), state)

    def named(leaf, param, name):
        return leaf if is_masked(leaf) else (leaf.ndim == param.ndim, name)

    names = {name: name for name in params}
    marked = optax.tree.map_params(
        tx, named, state, params, names, transform_non_params=lambda leaf: leaf.shape == (), is_leaf=is_masked
    )
    paths = [path[-1].key for path, leaf in jax.tree.leaves_with_path(state) if leaf.ndim > 0]
    assert all(jax.tree.leaves(marked))
    assert [leaf for leaf in jax.tree.leaves(marked) if isinstance(leaf, str)] == paths


def test_map_params_goes_through_masks_labels_and_nothing():
    tx = optax.masked(adam(weight_decay=0.1, weight_decay_mask={"w": True, "b": False}), {"w": True, "b": False})
    found = optax.tree.map_params(tx, lambda leaf, p: p.shape, tx.init(tree()), tree(), is_leaf=is_masked)
    assert optax.tree.get(found, "nu") == {"w": (2, 4), "b": (4,)}
    none = optax.tree.map_params(CHAINS["param_groups"], lambda _: None, CHAINS["param_groups"].init(tree()))
    assert all(leaf.ndim == 0 for leaf in jax.tree.leaves(none))
    empty = CHAINS["param_groups"].init({})
    chex.assert_trees_all_equal(optax.tree.map_params(CHAINS["param_groups"], lambda leaf: leaf, empty), empty)


@every
def test_named_tuples_methods_give_transformations_that_work(tx):
    for same in (type(tx)._make(tuple(tx)), tx._replace(), tx._replace(init=tx.init), tx._replace(update=tx.update)):
        assert type(same) is type(tx)
        assert same == tx
        assert repr(same) == repr(tx)
    params = tree()
    init, update = tx
    expected, _ = update(params, init(params), params)
    counted = []
    other = tx._replace(init=lambda p: counted.append(p) or tx.init(p))
    updates, _ = other.update(params, other.init(params), params)
    assert len(counted) == 1
    chex.assert_trees_all_equal(updates, expected)
    other = tx._replace(update=lambda updates, state, params=None, **_: (params, state))
    chex.assert_trees_all_equal(other.update(expected, other.init(params), params)[0], params)
    assert isinstance(other, optax.GradientTransformationExtraArgs)
    assert repr(other) != repr(tx)


@every
def test_arguments_are_called_as_in_optax_and_others_are_ignored(tx):
    params = tree()
    expected = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_equal(tx.update(updates=params, state=tx.init(params=params), params=params), expected)
    chex.assert_trees_all_equal(tx.update(params, tx.init(params), params, value=jnp.ones(()), of_nobody=3), expected)


@pytest.mark.parametrize("labels", [{"w": "a", "x": {"y": "b"}}, lambda path, _: "a"], ids=["tree", "function"])
@pytest.mark.parametrize("empty", [{}, (), None, {"w": None}, {"x": {}}, optax.MaskedNode()], ids=repr)
def test_groups_of_no_parameters_at_all(labels, empty):
    tx = param_groups({"a": adam(), "b": sgd(0.1, momentum=0.9)}, labels)
    state = tx.init(empty)
    for params in (empty, None):
        updates, after = tx.update(empty, state, params)
        assert updates == empty
        assert signature(after) == signature(state)


def test_whole_numbers_go_past_those_who_leave_them_out():
    params = {"w": jnp.ones(2), "ids": jnp.arange(2)}
    gradient = jax.grad(lambda p: (p["w"] * p["ids"]).sum(), allow_int=True)(params)
    assert gradient["ids"].dtype == jax.dtypes.float0
    for tx in (
        param_groups({"w": adam(), "ids": optax.set_to_zero()}, lambda path, _: path),
        chain(optax.masked(adam(), {"w": True, "ids": False})),
    ):
        updates, _ = tx.update(gradient, tx.init(params), params)
        new = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(new["ids"], params["ids"])
        assert new["ids"].dtype == jnp.int32
        assert new["w"][1] < 1
    np.testing.assert_array_equal(apply_updates(params, gradient)["ids"], params["ids"])
