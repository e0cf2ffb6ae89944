"""Which weights decay."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from linkax.chains import adam, adamw, param_groups
from linkax.transforms import (
    add_l2_to_grad,
    average_weights,
    decoupled_weight_decay,
    matrices_only,
    scale_by_trust_ratio,
)

PARAMS = {
    "dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "attention": {"bias": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2, 2))},
    "temperature": jnp.ones(()),
}


def decayed_leaves(mask, factory=add_l2_to_grad, params=PARAMS):
    tx = factory(0.5, mask)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    return {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
        if np.all(np.asarray(leaf) == 0.5)
    }


KERNELS = {"['attention']['kernel']", "['dense']['kernel']"}


@pytest.mark.parametrize("factory", [add_l2_to_grad, decoupled_weight_decay])
def test_matrices_only_leaves_biases_and_norms_alone(factory):
    assert decayed_leaves(matrices_only, factory) == KERNELS


def test_masks_as_tree_prefix_and_function():
    assert decayed_leaves(matrices_only(PARAMS)) == KERNELS
    prefix = {"dense": True, "norm": False, "attention": False, "temperature": True}
    assert decayed_leaves(prefix) == {"['dense']['kernel']", "['dense']['bias']", "['temperature']"}
    assert decayed_leaves(False) == set()
    assert len(decayed_leaves(None)) == len(decayed_leaves(True)) == len(jax.tree.leaves(PARAMS))
    assert decayed_leaves(lambda params: jax.tree.map(lambda x: x.ndim == 0, params)) == {"['temperature']"}


def test_the_same_leaves_as_optaxs():
    optaxs = optax.add_decayed_weights(0.5, matrices_only)
    ours = add_l2_to_grad(0.5, matrices_only)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    jax.tree.map(
        np.testing.assert_array_equal,
        ours.update(zeros, ours.init(PARAMS), PARAMS)[0],
        optaxs.update(zeros, optaxs.init(PARAMS), PARAMS)[0],
    )


@pytest.mark.parametrize(
    ("flag", "got"),
    [
        (1, "1"),
        ("yes", "'yes'"),
        (jnp.ones((), bool), "an array of dtype bool"),
        (np.ones(2, bool), "an array of dtype bool"),
        (lambda params: True, "<lambda>"),
    ],
)
def test_a_mask_of_something_else_is_refused_when_the_link_is_built(flag, got):
    message = f"^add_l2_to_grad: mask must be a tree of True and False, got {got} at dense/kernel$"
    with pytest.raises(TypeError, match=message):
        add_l2_to_grad(0.5, {"dense": {"kernel": flag, "bias": True}})
    with pytest.raises(TypeError, match=message):
        add_l2_to_grad(lambda count: 0.5, {"dense": {"kernel": flag, "bias": True}})
    link = add_l2_to_grad(0.5, lambda params: {"dense": {"kernel": flag, "bias": True}})
    with pytest.raises(TypeError, match=message):
        link.init(PARAMS)


def test_flags_of_numpy_are_flags():
    assert decayed_leaves(jax.tree.map(np.bool_, matrices_only(PARAMS))) == KERNELS


MISFITS = {
    "a key less": (
        {"dense": True, "norm": {"scale": True}, "attention": True, "temperature": True},
        "nothing for norm/bias",
    ),
    "a key more": ({**matrices_only(PARAMS), "head": True}, "something for head, where there is no parameter"),
    "another key": (
        {**matrices_only(PARAMS), "norm": {"scale": True, "offset": False}},
        "nothing for norm/bias and something for norm/offset, where there is no parameter",
    ),
    "deeper": (
        {**matrices_only(PARAMS), "temperature": {"x": True}},
        "nothing for temperature and something for temperature/x, where there is no parameter",
    ),
    "nothing": (
        {},
        "nothing for attention/bias, attention/kernel, dense/bias, dense/kernel, norm/bias, norm/scale, temp",
    ),
    "a function's nothing": (lambda params: None, "nothing for attention/bias, attention/kernel"),
}


@pytest.mark.parametrize(("mask", "got"), MISFITS.values(), ids=MISFITS.keys())
@pytest.mark.parametrize(
    "build",
    [
        lambda mask: add_l2_to_grad(0.5, mask),
        lambda mask: decoupled_weight_decay(lambda count: 0.5, mask),
        lambda mask: adamw(weight_decay_mask=mask),
        lambda mask: adamw(weight_decay_mask=lambda params: mask(params) if callable(mask) else mask),
        lambda mask: param_groups({"all": adam(weight_decay=0.5, weight_decay_mask=mask)}, lambda *_: "all"),
    ],
    ids=["link", "scheduled link", "chain", "function", "group"],
)
def test_a_mask_of_another_structure_is_refused_by_init(build, mask, got):
    tx = build(mask)
    message = "^(add_l2_to_grad|decoupled_weight_decay): mask must say for every parameter whether it should decay"
    for init in (tx.init, jax.jit(tx.init)):
        with pytest.raises(ValueError, match=f"{message}, got {got}"):
            init(PARAMS)
    with pytest.raises(ValueError, match=f"{message}, got {got}"):
        tx.init(jax.eval_shape(lambda: PARAMS))


def test_and_by_update_if_the_parameters_are_others():
    tx = adamw(weight_decay_mask={"a": True, "b": False})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    others = {"a": jnp.ones(2), "c": jnp.ones(2)}
    with pytest.raises(
        ValueError, match="decoupled_weight_decay: mask must .* nothing for c and something for b, where"
    ):
        tx.init(others)
    state = tx.init(params)
    tx.update(params, state, params)
    link = add_l2_to_grad(0.5, {"a": True, "b": False})
    with pytest.raises(ValueError, match="add_l2_to_grad: mask must .* nothing for c and something for b, where"):
        link.update(others, link.init(params), others)


def test_what_nodes_a_mask_is_made_of_does_not_matter():
    frozen, state = FrozenDict(PARAMS), nnx.State(jax.tree.map(nnx.Param, PARAMS))
    for params in (PARAMS, frozen, state):
        for mask in (
            matrices_only(PARAMS),
            matrices_only(frozen),
            nnx.to_pure_dict(matrices_only(state)),
            matrices_only,
        ):
            for given in (mask, lambda params, mask=mask: mask(params) if callable(mask) else mask):
                tx = add_l2_to_grad(0.5, given)
                updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
                assert jax.tree.structure(updates) == jax.tree.structure(params)
                decayed = {
                    "/".join(str(getattr(key, "key", "")) for key in path).strip("/")
                    for path, leaf in jax.tree.leaves_with_path(updates)
                    if leaf.any()
                }
                assert decayed == {"attention/kernel", "dense/kernel"}


@jax.tree_util.register_pytree_with_keys_class
class Layer:
    """As Equinox's modules are: a tree that can be called."""

    def __init__(self, kernel, bias):
        self.kernel, self.bias = kernel, bias

    def tree_flatten_with_keys(self):
        name = jax.tree_util.GetAttrKey
        return ((name("kernel"), self.kernel), (name("bias"), self.bias)), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)

    def __call__(self, x):
        raise AssertionError("a tree is not to be called")

    def __repr__(self):
        return f"Layer(\n  kernel={self.kernel},\n  bias={self.bias}\n)"


class Rule:
    """What can be called and is no tree."""

    def __call__(self, params):
        return matrices_only(params)


LAYER = Layer(jnp.ones((2, 2)), jnp.ones(2))


@pytest.mark.parametrize(
    "mask",
    [
        matrices_only(LAYER),
        Layer(True, False),
        {"kernel": True, "bias": False},
        matrices_only,
        Rule(),
        functools.partial(lambda least, params: jax.tree.map(lambda p: p.ndim >= least, params), 2),
        jax.tree_util.Partial(lambda least, params: jax.tree.map(lambda p: p.ndim >= least, params), 2),
    ],
    ids=["made", "layer", "dictionary", "function", "object", "partial", "jax partial"],
)
def test_a_tree_that_can_be_called_is_a_tree(mask):
    tx = adamw(0.1, weight_decay=0.5, weight_decay_mask=mask)
    for params in (LAYER, {"kernel": LAYER.kernel, "bias": LAYER.bias}):
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        kernel, bias = (
            (updates.kernel, updates.bias) if isinstance(updates, Layer) else map(updates.get, ("kernel", "bias"))
        )
        np.testing.assert_allclose(kernel, -0.05, rtol=1e-6)  # float32
        np.testing.assert_array_equal(bias, 0)


def test_a_tree_that_can_be_called_is_written_as_one():
    assert "mask=<Layer>" in repr(add_l2_to_grad(0.5, Layer(True, False)))


def test_nodes_without_parameters_may_have_a_flag():
    params = {"a": jnp.ones(2), "none": None, "masked": optax.MaskedNode(), "empty": {}}
    link = add_l2_to_grad(0.5, {"a": True, "none": True, "masked": False, "empty": True})
    updates, _ = link.update(params, link.init(params), params)
    np.testing.assert_array_equal(updates["a"], 1.5)
    for nothing in ({}, (), {"a": None}, optax.MaskedNode()):
        assert link.update(nothing, link.init(nothing), nothing)[0] == nothing


@pytest.mark.parametrize(
    "tx", [add_l2_to_grad(0.1), decoupled_weight_decay(0.1), scale_by_trust_ratio(), average_weights()], ids=repr
)
def test_parameters_are_needed(tx):
    with pytest.raises(ValueError, match=f"^{tx.name}: params must be given to update"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_the_trust_ratio_is_that_of_the_selected_leaves_and_1_where_a_norm_is_0():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([3.0, 4.0]), "zero": jnp.zeros(2)}
    updates = {"a": jnp.array([0.0, 2.0]), "b": jnp.array([0.0, 2.0]), "zero": jnp.ones(2)}
    tx = scale_by_trust_ratio({"a": True, "b": False, "zero": True})
    scaled, state = tx.update(updates, tx.init(params), params)
    chex.assert_trees_all_close(scaled, {**updates, "a": jnp.array([0.0, 5.0])}, rtol=1e-6)  # float32
    nothing = jax.tree.map(jnp.zeros_like, updates)
    chex.assert_trees_all_equal(tx.update(nothing, state, params)[0], nothing)
    with pytest.raises(ValueError, match="^scale_by_trust_ratio: mask must say .* be scaled, got nothing for zero"):
        scale_by_trust_ratio({"a": True, "b": True}).init(params)
    with pytest.raises(TypeError, match="^scale_by_trust_ratio: mask must be a tree of True and False, got 1 at a"):
        scale_by_trust_ratio({"a": 1})


def test_a_mask_that_is_taken_for_a_schedule_says_so():
    """`optax.inject_hyperparams` calls every function with the step count, unless it is told not to."""
    params = {"w": jnp.ones((2, 2))}
    injected = optax.inject_hyperparams(adamw)(0.1, weight_decay_mask=matrices_only)
    with pytest.raises(TypeError, match="^matrices_only: params must be a tree of parameters.*static_args"):
        injected.init(params)
    told = optax.inject_hyperparams(adamw, static_args="weight_decay_mask")(0.1, weight_decay_mask=matrices_only)
    updates, _ = told.update(jax.tree.map(jnp.zeros_like, params), told.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * 1e-2, rtol=1e-6)  # float32


def test_a_mask_with_leaves_without_gradients():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2)), "c": None, "d": optax.MaskedNode()}
    grads = {"a": jnp.zeros((2, 2)), "b": None, "c": None, "d": optax.MaskedNode()}
    tx = add_l2_to_grad(0.5, {"a": True, "b": True, "c": None, "d": True})
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"], 0.5)
    assert updates["b"] is None
