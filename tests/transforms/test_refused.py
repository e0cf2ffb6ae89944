"""Gradients that do not fit their parameters are refused, with the path of the leaf, before anything is computed."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict

from linkax.chains import adam, apply_updates, chain, param_groups, sgd
from linkax.transforms import (
    bias_correction,
    mean_square,
    moment_ratio,
    negate_grad,
    row_gradient,
    scale_by_learning_rate,
    scale_by_momentum,
)

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "scale": jnp.ones(())}


def gradient(**changes):
    """The parameters with other leaves: `dense__bias=...`."""
    flat = {**flatten_dict(PARAMS, sep="__"), **changes}
    nested = {"dense": {}}
    for name, leaf in flat.items():
        *nodes, last = name.split("__")
        (nested["dense"] if nodes else nested)[last] = leaf
    return nested


# What comes in, with what error it is refused, and whether the shapes of moments tell as much as parameters do.
REFUSED = {
    "broadcasts": (
        gradient(dense__bias=jnp.ones(1)),
        ValueError,
        r"of its parameter, \(3,\), got dense/bias of .*\(1,\)",
    ),
    "is broadcast to": (gradient(scale=jnp.ones(3)), ValueError, r"of its parameter, \(\), got scale of shape \(3,\)"),
    "a number": (gradient(dense__bias=2.0), ValueError, r"of its parameter, \(3,\), got dense/bias of shape \(\)"),
    "transposed": (gradient(dense__kernel=jnp.ones((3, 2))), ValueError, r"\(2, 3\), got dense/kernel of .*\(3, 2\)"),
    "complex": (gradient(dense__bias=jnp.ones(3) * 1j), TypeError, "real where .* got dense/bias of dtype complex64"),
    "whole": (
        gradient(dense__bias=jnp.arange(3)),
        TypeError,
        "floating-point .* got dense/bias of dtype int32; leave it",
    ),
    "an integer": (gradient(scale=1), TypeError, "floating-point .* got scale of dtype int32"),
    "boolean": (gradient(scale=jnp.ones((), bool)), TypeError, "floating-point .* got scale of dtype bool"),
    "float0": (
        gradient(dense__bias=np.zeros(3, jax.dtypes.float0)),
        TypeError,
        r"floating-point .* got dense/bias of dtype float0 \(the gradient of integers\)",
    ),
    "a key": (gradient(scale=jax.random.key(0)), TypeError, "floating-point .* got scale of dtype key"),
    "a leaf less": (
        {"dense": PARAMS["dense"]},
        ValueError,
        "in a tree like that of the parameters, got nothing for scale",
    ),
    "a leaf more": ({**PARAMS, "more": jnp.ones(2)}, ValueError, "got more, where there is no parameter$"),
    "a node for a leaf": (
        {**PARAMS, "scale": {"x": jnp.ones(())}},
        ValueError,
        "got scale/x, where there is no .* nothing for scale",
    ),
    "a leaf for a node": ({**PARAMS, "dense": jnp.ones(3)}, ValueError, "got dense, .* for dense/bias, dense/kernel"),
    "another node": (
        {**PARAMS, "dense": FrozenDict(PARAMS["dense"])},
        ValueError,
        r"got a flax.core.frozen_dict.FrozenDict where the parameters have a dict, at dense$",
    ),
}
LINKS = {
    "scale_by_momentum": scale_by_momentum(0.9),
    "scale_by_momentum, scheduled": scale_by_momentum(lambda count: 0.9),
    "moment_ratio": moment_ratio(chain(negate_grad(), bias_correction(0.9)), mean_square(0.9), 1e-8),
    "scale_by_learning_rate": scale_by_learning_rate(0.1),
}
each_refused = pytest.mark.parametrize(("bad", "error", "message"), REFUSED.values(), ids=REFUSED.keys())


@each_refused
@pytest.mark.parametrize("tx", [adam(), sgd(0.1), chain(optax.identity(), adam())], ids=["adam", "sgd", "with Optax's"])
@pytest.mark.parametrize("compiled", [False, True])
def test_by_a_chain(tx, compiled, bad, error, message):
    state = tx.init(PARAMS)
    copy = jax.tree.map(jnp.copy, state)
    update = (lambda g, s, p: jax.jit(lambda s, p: tx.update(g, s, p))(s, p)) if compiled else tx.update
    with pytest.raises(error, match=re.compile(f"^chain: a gradient must .*{message}", re.MULTILINE)):
        update(bad, state, PARAMS)
    chex.assert_trees_all_equal(state, copy)
    update(PARAMS, state, PARAMS)


@each_refused
@pytest.mark.parametrize("tx", LINKS.values(), ids=LINKS.keys())
def test_by_a_link_alone(tx, bad, error, message):
    for alone in (tx, optax.chain(optax.identity(), tx)):
        with pytest.raises(error, match=f"^{tx.name}: an update must .*{message}"):
            alone.update(bad, alone.init(PARAMS), PARAMS)


@each_refused
@pytest.mark.parametrize("name", [name for name in LINKS if name != "scale_by_learning_rate"])
def test_without_parameters_moments_tell(name, bad, error, message):
    tx = LINKS[name]
    with pytest.raises(error, match=f"(linkax: a gradient|{tx.name}: an update) must .*{message}"):
        tx.update(bad, tx.init(PARAMS))


@pytest.mark.parametrize("tx", [adam(), sgd(0.1), *LINKS.values()], ids=["adam", "sgd", *LINKS])
def test_parameters_that_nobody_can_step(tx):
    name = getattr(tx, "name", "chain")
    for leaf, dtype in ((jnp.arange(3), "int32"), (3, "int32"), (jnp.ones(3, bool), "bool")):
        with pytest.raises(
            TypeError, match=f"^{name}: params must be floating-point .* got dense/bias of dtype {dtype}"
        ):
            tx.init(gradient(dense__bias=leaf))
    with pytest.raises(TypeError, match=f"^{name}: params must be floating-point .* got one of dtype int32"):
        tx.init(jnp.arange(3))


def test_rows_by_a_link_alone():
    tx, table = scale_by_learning_rate(0.1), jnp.ones((4, 2))
    rows = row_gradient(table, jnp.array([1]), jnp.ones((1, 2)))
    with pytest.raises(TypeError, match=re.escape("must cover all rows, got t with only a few; wrap the link in")):
        tx.update({"t": rows}, tx.init({"t": table}), {"t": table})
    updates, _ = chain(tx).update({"t": rows}, chain(tx).init({"t": table}), {"t": table})
    np.testing.assert_array_equal(updates["t"].todense()[1], np.float32([-0.1, -0.1]))


def test_by_groups_each_of_its_own():
    tx = param_groups({"a": adam(), "b": sgd(0.1)}, lambda path, _: "a" if path == "scale" else "b")
    state = tx.init(PARAMS)
    for bad, error, path in (
        (gradient(dense__bias=jnp.ones(1)), ValueError, "dense/bias"),
        (gradient(scale=jnp.ones(3)), ValueError, "scale"),
        (gradient(scale=1), TypeError, "scale"),
    ):
        with pytest.raises(error, match=f"chain: a gradient must .* got {path} of"):
            tx.update(bad, state, PARAMS)


def test_long_lists_are_cut():
    params = {f"layer_{i:02}": jnp.ones(2) for i in range(30)}
    with pytest.raises(ValueError, match="got nothing for layer_01, .*, layer_10 and 19 more$"):
        adam().update({"layer_00": jnp.ones(2)}, adam().init(params), params)


def test_what_fits_is_taken_as_it_is():
    """A gradient that is not there, a number, NumPy's array, another dtype."""
    tx = adam()
    state = tx.init(PARAMS)
    for good in (
        gradient(dense__kernel=None),
        gradient(scale=1.0),
        gradient(dense__bias=np.ones(3)),
        gradient(dense__bias=jnp.ones(3, jnp.bfloat16)),
    ):
        updates, after = tx.update(good, state, PARAMS)
        assert jax.tree.structure(updates) == jax.tree.structure(good)
        assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "name", [name for name in REFUSED if name not in ("whole", "an integer", "boolean", "float0", "a key")]
)
def test_by_apply_updates(name):
    bad, error, message = REFUSED[name]
    with pytest.raises(error, match=f"^apply_updates: an update must .*{message}"):
        apply_updates(PARAMS, bad)


def test_apply_updates_leaves_what_has_no_update():
    params = {**PARAMS, "ids": jnp.arange(3), "none": None}
    updates = {**PARAMS, "ids": np.zeros(3, jax.dtypes.float0), "none": None, "scale": optax.MaskedNode()}
    new = apply_updates(params, updates)
    chex.assert_trees_all_equal(new, {**params, "dense": jax.tree.map(lambda p: p + p, PARAMS["dense"])})
    assert new["ids"].dtype == jnp.int32
