"""Groups of parameters: who belongs where, what a group sees, and what it costs to be frozen."""

import dataclasses
import pickle
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState

from linkax.chains import ablations, adam, adamw, chain, diff, param_groups, sgd
from linkax.transforms import add_l2_to_grad, matrices_only

PARAMS = {
    "body": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)},
    "head": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},
}
GRADS = jax.tree.map(lambda w: w + 1.0, PARAMS)
GROUPS = {"body": adamw(1e-3), "head": sgd(0.1, momentum=0.9)}
BY_TREE = {"body": "body", "head": "head"}


def by_path(path, leaf):
    return path.split("/")[0]


def walk(tx, params=PARAMS, steps=3):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "labels",
    [by_path, BY_TREE, {"body": "body", "head": {"kernel": "head", "bias": "head"}}],
    ids=["function", "prefix", "mixed depth"],
)
def test_every_group_is_updated_by_its_own_chain_alone(labels):
    found = walk(param_groups(GROUPS, labels))
    for name, tx in GROUPS.items():
        state, params = tx.init(PARAMS[name]), PARAMS[name]
        for _ in range(3):
            updates, state = tx.update(GRADS[name], state, params)
            params = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal(found[name], params)


def test_is_optaxs_partition():
    ours = walk(param_groups(GROUPS, BY_TREE))
    theirs = walk(optax.partition(GROUPS, jax.tree.map_with_path(lambda path, _: path[0].key, PARAMS)))
    chex.assert_trees_all_equal(ours, theirs)


def test_function_sees_path_and_leaf():
    tx = param_groups(
        {"decayed": adamw(1e-3, weight_decay=1.0), "plain": adam(1e-3)},
        lambda path, leaf: "decayed" if leaf.ndim == 2 and path.endswith("kernel") else "plain",
    )
    masked = adamw(1e-3, weight_decay=1.0, weight_decay_mask=matrices_only)
    chex.assert_trees_all_equal(walk(tx), walk(masked))


def test_layer_wise_learning_rates_in_one_line():
    params = {f"layer_{i}": jnp.ones(2) for i in range(3)}
    tx = param_groups({f"layer_{i}": sgd(0.5**i) for i in range(3)}, lambda path, _: path)
    updates, _ = tx.update(params, tx.init(params))
    assert [float(updates[f"layer_{i}"][0]) for i in range(3)] == [-1.0, -0.5, -0.25]


def test_each_group_has_its_own_schedule():
    groups = {"body": sgd(lambda t: 1.0 + t), "head": sgd(lambda t: 10.0 + t)}
    tx = param_groups(groups, BY_TREE)
    state = tx.init(PARAMS)
    _, state = tx.update(GRADS, state)
    updates, _ = tx.update(GRADS, state)
    np.testing.assert_array_equal(updates["body"]["bias"], -2 * GRADS["body"]["bias"])
    np.testing.assert_array_equal(updates["head"]["bias"], -11 * GRADS["head"]["bias"])


def test_a_frozen_group_keeps_its_values_and_has_no_state():
    tx = param_groups({"body": optax.set_to_zero(), "head": adam()}, BY_TREE)
    state = tx.init(PARAMS)
    assert not jax.tree.leaves(state[0].inner_states["body"])
    after = walk(tx)
    chex.assert_trees_all_equal(after["body"], PARAMS["body"])
    assert (after["head"]["kernel"] != PARAMS["head"]["kernel"]).all()


def test_a_clip_in_front_sees_all_groups_and_one_inside_its_own():
    clip = optax.clip_by_global_norm(1.0)
    groups = {"body": sgd(1.0), "head": sgd(1.0)}
    front = chain(clip, param_groups(groups, BY_TREE))
    updates, _ = front.update(GRADS, front.init(PARAMS))
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0, rel=1e-6)  # a sum of a dozen squares in float32
    inside = param_groups({name: chain(clip, tx) for name, tx in groups.items()}, BY_TREE)
    updates, _ = inside.update(GRADS, inside.init(PARAMS))
    assert float(optax.tree.norm(updates["body"])) == pytest.approx(1.0, rel=1e-6)
    assert float(optax.tree.norm(updates["head"])) == pytest.approx(1.0, rel=1e-6)


def test_a_parameter_without_a_gradient_stays():
    tx = param_groups(GROUPS, BY_TREE)
    grads = {"body": {"kernel": None, "bias": GRADS["body"]["bias"]}, "head": GRADS["head"]}
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    assert updates["body"]["kernel"] is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"body": "body"}, "got another one for head/bias (None), head/kernel (None)"),
        ({"body": "body", "head": "heda"}, "got another one for head/bias ('heda'), head/kernel ('heda')"),
        (lambda path, leaf: None, "got another one for body/bias (None), body/kernel (None), head/bias (None)"),
        ({**BY_TREE, "tail": "head"}, "got another one for no parameter; no parameter is at or below tail"),
        ({**BY_TREE, "body": {"weight": "body"}}, "no parameter is at or below body/weight"),
        ({"body": "body", "head": {"bias": "head"}}, "got another one for head/kernel (None)"),
        ({"body": 3, "head": "head"}, "got another one for body/bias (3), body/kernel (3)"),
        (lambda path, leaf: ["body"], "got another one for body/bias (['body']), body/kernel (['body'])"),
        ({}, "got another one for body/bias (None), body/kernel (None), head/bias (None), head/kernel (None)"),
    ],
)
def test_every_parameter_must_have_one_group_and_all_that_do_not_are_listed(labels, message):
    with pytest.raises(
        ValueError, match="param_groups: labels must give every parameter one of the groups body, head"
    ) as e:
        param_groups(GROUPS, labels).init(PARAMS)
    assert message in str(e.value)


def test_what_is_no_group_is_refused():
    with pytest.raises(ValueError, match="param_groups: groups must have at least one group, got {}"):
        param_groups({}, BY_TREE)
    for groups in ([adam()], {"a": adam}, {0: adam()}, {"a": None}):
        with pytest.raises(TypeError, match="param_groups: groups must be a dictionary from names to chains, got"):
            param_groups(groups, BY_TREE)


def test_prints_and_compares_and_pickles():
    tx = param_groups(GROUPS, BY_TREE)
    text = repr(tx)
    assert "├─ body\n" in text
    assert "scale_by_momentum(decay=0.9, dampening=0.0, first_step='gradient')" in text
    assert tx == param_groups(GROUPS, BY_TREE) != param_groups(GROUPS, {"body": "head", "head": "head"})
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert "param" not in diff(tx, tx)


def test_links_inside_groups_are_reached_by_name():
    tx = param_groups({"body": adamw(1e-3), "head": adamw(1e-3)}, BY_TREE)
    l2 = add_l2_to_grad(0.5)
    swapped = tx.swap("head.decoupled_weight_decay", l2)
    head = adamw(1e-3).swap("decoupled_weight_decay", l2)
    assert swapped == param_groups({"body": adamw(1e-3), "head": head}, BY_TREE)
    with pytest.raises(ValueError, match="2 links are called 'decoupled_weight_decay'"):
        tx.swap("decoupled_weight_decay", l2)
    dropped = tx.drop("decoupled_weight_decay")
    assert dropped == param_groups(dict.fromkeys(GROUPS, adam(1e-3)), BY_TREE)


def test_ablations_go_group_by_group():
    tx = param_groups({"body": optax.set_to_zero(), "head": adamw(1e-3)}, BY_TREE)
    found = ablations(tx)
    assert set(found) == {f"head: {name}" for name in ablations(adamw(1e-3))}
    for name, ablated in ablations(adamw(1e-3)).items():
        expected = param_groups({"body": optax.set_to_zero(), "head": ablated}, BY_TREE)
        chex.assert_trees_all_equal(walk(found[f"head: {name}"]), walk(expected))


def test_in_flax_linen_and_jit():
    model = nn.Sequential([nn.Dense(3), nn.Dense(1)])
    x = jnp.ones((4, 2))
    params = model.init(jax.random.key(0), x)
    tx = param_groups(
        {"first": optax.set_to_zero(), "rest": adamw(1e-2)}, {"params": {"layers_0": "first", "layers_1": "rest"}}
    )
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=jax.grad(lambda p: (state.apply_fn(p, x) ** 2).mean())(state.params))

    after = step(step(state))
    chex.assert_trees_all_equal(after.params["params"]["layers_0"], params["params"]["layers_0"])
    assert (after.params["params"]["layers_1"]["kernel"] != params["params"]["layers_1"]["kernel"]).all()


def test_in_flax_nnx():
    class Model(nnx.Module):
        def __init__(self):
            self.body, self.head = (nnx.Linear(2, 2, rngs=nnx.Rngs(0)) for _ in range(2))

        def __call__(self, x):
            return self.head(self.body(x))

    model = Model()
    before = model.body.kernel[...]
    tx = param_groups({"body": optax.set_to_zero(), "head": adamw(1e-2)}, lambda path, _: path.split("/")[0])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((3, 2))) ** 2).mean())(model))

    head = model.head.kernel[...]
    step(model, optimizer)
    np.testing.assert_array_equal(model.body.kernel[...], before)
    assert (model.head.kernel[...] != head).any()


def test_labels_are_copied():
    labels = dict(BY_TREE)
    tx = param_groups(GROUPS, labels)
    labels["head"] = "body"
    assert tx == param_groups(GROUPS, BY_TREE)


def test_keys_with_slashes_are_told_apart():
    params = {"a/b": {"c": jnp.ones(2)}, "a": {"b/c": jnp.ones(3)}}
    tx = param_groups({"x": sgd(1.0), "y": sgd(2.0)}, {"a/b": {"c": "x"}, "a": {"b/c": "y"}})
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["a/b"]["c"][0] == -1
    assert updates["a"]["b/c"][0] == -2


def test_a_parameter_that_is_none_needs_no_label():
    params = {"body": jnp.ones(2), "head": None}
    tx = param_groups(GROUPS, {"body": "body", "head": "head"})
    assert tx.update(params, tx.init(params), params)[0]["head"] is None


def test_what_nodes_labels_are_made_of_does_not_matter():
    labels = {"body": {"kernel": "body", "bias": "head"}, "head": "head"}
    frozen = FrozenDict(PARAMS)
    state = nnx.State(jax.tree.map(nnx.Param, PARAMS))
    full = {"body": labels["body"], "head": {"kernel": "head", "bias": "head"}}
    made = nnx.State(jax.tree.map(nnx.Param, full))
    expected = walk(param_groups(GROUPS, labels))
    for params in (PARAMS, frozen, state):
        for given in (
            labels,
            FrozenDict(labels),
            full,
            made,
            lambda path, _: full[path.split("/")[0]][path.split("/")[1]],
        ):
            tx = param_groups(GROUPS, given)
            grads = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(GRADS))
            inner, now = tx.init(params), params
            for _ in range(3):
                updates, inner = tx.update(grads, inner, now)
                now = optax.apply_updates(now, updates)
            assert jax.tree.structure(now) == jax.tree.structure(params)
            chex.assert_trees_all_equal(jax.tree.leaves(now), jax.tree.leaves(expected))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """As Equinox's modules are: a tree that can be called."""

    body: Any
    head: Any

    def __call__(self, x):
        raise AssertionError("a tree is not to be called")


def test_modules_that_can_be_called_are_trees():
    params, labels = Module(**PARAMS), Module(**BY_TREE)
    expected = walk(param_groups(GROUPS, BY_TREE))
    for given in (BY_TREE, by_path, labels):
        tx = param_groups(GROUPS, given)
        state, now = tx.init(params), params
        for _ in range(3):
            updates, state = jax.jit(tx.update)(Module(**GRADS), state, now)
            now = optax.apply_updates(now, updates)
        # (Compiled, sums may be rounded once less.)
        chex.assert_trees_all_close({"body": now.body, "head": now.head}, expected, rtol=1e-6)
    assert "Module(" in repr(tx)


def test_groups_keep_their_own_precision():
    """Optax's optimizers know nothing of float32 sums, so they are given parameters for which they make them."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = param_groups({"body": optax.adam(0.1), "head": adam(0.1)}, BY_TREE)
    state = tx.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype(jnp.float32)}
    updates, after = tx.update(params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)


def test_whole_numbers_in_a_frozen_group():
    params = {"body": jnp.arange(3), "head": jnp.ones(3)}
    tx = param_groups({"body": optax.set_to_zero(), "head": adam(0.1)}, BY_TREE)
    grads = jax.grad(lambda p: (p["body"] * p["head"]).sum(), allow_int=True)(params)
    updates, _ = jax.jit(lambda: tx.update(grads, tx.init(params), params))()
    new = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(new["body"], params["body"])
    assert new["body"].dtype == params["body"].dtype
    thawed = param_groups({"body": sgd(0.1), "head": adam(0.1)}, BY_TREE)
    with pytest.raises(TypeError, match="chain: params must be floating-point or complex, got body of dtype int32"):
        thawed.init(params)


def test_labels_as_optaxs_partition_takes_them_are_refused_with_a_hint():
    with pytest.raises(
        TypeError, match=r"param_groups: labels must be a function of two arguments, .* labels\(params\)"
    ):
        param_groups({"a": adamw()}, lambda params: params)


@pytest.mark.parametrize(
    "labels",
    [
        BY_TREE,
        {"body": {"kernel": "body", "bias": "head"}, "head": {"kernel": "head", "bias": "head"}},
        by_path,
        "head",
    ],
    ids=["upper part", "whole tree", "function", "one label"],
)
@pytest.mark.parametrize("state", [None, "int8"])
def test_tree_map_params_maps_over_groups_as_over_optaxs(labels, state):
    names = {
        "body": {"kernel": "body/kernel", "bias": "body/bias"},
        "head": {"kernel": "head/kernel", "bias": "head/bias"},
    }

    def mapped(tx):
        found = optax.tree_map_params(
            tx,
            lambda _, name: name,
            tx.init(PARAMS),
            names,
            transform_non_params=lambda _: "count",
            is_leaf=lambda node: isinstance(node, optax.MaskedNode),
        )
        return [name for name in jax.tree.leaves(found) if name != "count"]

    tree = {name: dict.fromkeys(names[name], name) for name in names} if callable(labels) else labels
    assert mapped(chain(optax.clip(1.0), param_groups(GROUPS, labels, state=state))) == mapped(
        optax.partition(GROUPS, tree)
    )
