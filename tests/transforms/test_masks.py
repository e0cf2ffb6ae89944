"""Which weights decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adamw
from linkax.transforms import add_l2_to_grad, decoupled_weight_decay, matrices_only

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


def test_a_mask_of_something_else_is_refused():
    with pytest.raises(TypeError, match="^add_l2_to_grad: mask must be a tree of True and False, got a leaf 1$"):
        decayed_leaves({"dense": 1, "norm": False, "attention": False, "temperature": True})


@pytest.mark.parametrize("factory", [add_l2_to_grad, decoupled_weight_decay])
def test_parameters_are_needed(factory):
    tx = factory(0.1)
    with pytest.raises(ValueError, match=f"^{factory.__name__}: params must be given to update"):
        tx.update(PARAMS, tx.init(PARAMS))


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
