"""Row-sparse gradients: touched rows change as with an ordinary gradient, the others not at all."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.sparse import BCOO

from linkax.chains import ablations, adagrad, adam, adamw, apply_updates, chain, param_groups, rmsprop, sgd, sparse_adam
from linkax.transforms import lazy, negate_grad, row_gradient, scale_by_momentum

TABLE = jnp.arange(12.0).reshape(6, 2)
IDS = jnp.array([[4, 1], [4, 5]])
ROWS = jnp.arange(8.0).reshape(2, 2, 2) - 3.5


def dense_gradient():
    return jnp.zeros_like(TABLE).at[IDS].add(ROWS)


def walk(tx, params, grads, steps=3):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = apply_updates(params, updates)
    return params, state


def test_row_gradient_is_the_tables():
    gradient = row_gradient(TABLE, IDS, ROWS)
    np.testing.assert_array_equal(gradient.todense(), dense_gradient())
    expected = jax.grad(lambda table: (table[IDS] ** 2).sum())(TABLE)
    found = row_gradient(TABLE, IDS, jax.grad(lambda rows: (rows**2).sum())(TABLE[IDS]))
    np.testing.assert_array_equal(found.todense(), expected)


def test_row_gradient_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"row_gradient: gradient must have the shape of table\[ids\], got \(2, 2\)"):
        row_gradient(TABLE, IDS, jnp.ones((2, 2)))
    with pytest.raises(TypeError, match="row_gradient: ids must be integers, got an array of dtype float32"):
        row_gradient(TABLE, jnp.ones(2), jnp.ones((2, 2)))


@pytest.mark.parametrize("tx", [sgd(0.1), adagrad(0.1, lr_decay=0.1), sparse_adam(0.1)], ids=["sgd", "adagrad", "adam"])
def test_touched_rows_change_as_with_an_ordinary_gradient(tx):
    sparse, sparse_state = walk(tx, TABLE, row_gradient(TABLE, IDS, ROWS))
    dense, dense_state = walk(tx, TABLE, dense_gradient())
    # The same rows at every step: even an average sees no difference, but for the order of a sum in float32.
    chex.assert_trees_all_close((sparse, sparse_state), (dense, dense_state), rtol=1e-6)
    np.testing.assert_array_equal(sparse[jnp.array([0, 2, 3])], TABLE[jnp.array([0, 2, 3])])


def test_rows_rest_while_they_are_not_touched():
    tx = chain(lazy(scale_by_momentum(0.5)))
    state = tx.init(TABLE)
    for row in (0, 1, 1, 0):
        _, state = tx.update(row_gradient(TABLE, jnp.array([row]), jnp.ones((1, 2))), state)
    np.testing.assert_array_equal(state[0].mu[:3, 0], [1.5, 1.5, 0])
    assert int(state[0].count) == 4


def test_sparse_and_ordinary_leaves_in_one_chain():
    params, tx = {"table": TABLE, "bias": jnp.ones(2), "none": jnp.ones(3)}, adagrad(0.1)
    grads = {"table": row_gradient(TABLE, IDS, ROWS), "bias": jnp.ones(2), "none": None}
    found, _ = walk(tx, params, grads)
    alone, _ = walk(tx, jnp.ones(2), jnp.ones(2))
    np.testing.assert_array_equal(found["bias"], alone)
    np.testing.assert_array_equal(found["none"], jnp.ones(3))
    assert (found["table"][4] != TABLE[4]).all()


def test_beside_another_optimizer_in_groups():
    params = {"table": TABLE, "bias": jnp.ones(2)}
    tx = param_groups({"table": sparse_adam(), "rest": adamw()}, {"table": "table", "bias": "rest"})
    grads = {"table": row_gradient(TABLE, IDS, ROWS), "bias": jnp.ones(2)}
    found, _ = walk(tx, params, grads)
    alone, _ = walk(sparse_adam(), TABLE, grads["table"])
    np.testing.assert_array_equal(found["table"], alone)


@pytest.mark.parametrize("tx", [adam(), adamw(), rmsprop(), sgd(0.1, momentum=0.9), sgd(0.1, weight_decay=0.1)])
def test_other_chains_refuse_and_name_those_that_can(tx):
    with pytest.raises(TypeError, match="cannot take row-sparse gradients .* adagrad and sparse_adam can"):
        tx.update(row_gradient(TABLE, IDS, ROWS), tx.init(TABLE), TABLE)
    clipped = chain(optax.clip_by_global_norm(1.0), sgd(0.1))
    with pytest.raises(TypeError, match="Chain.update: clip_by_global_norm cannot take row-sparse gradients"):
        clipped.update(row_gradient(TABLE, IDS, ROWS), clipped.init(TABLE), TABLE)


def test_other_sparse_arrays_are_refused():
    gradient = BCOO.fromdense(dense_gradient())
    with pytest.raises(ValueError, match="must have one sparse dimension, the first, .* got n_batch=0, n_sparse=2"):
        sgd(0.1).update(gradient, sgd(0.1).init(TABLE))


def test_half_precision_and_no_rows_at_all():
    table = TABLE.astype(jnp.bfloat16)
    updates, state = adagrad().update(row_gradient(table, IDS, ROWS.astype(jnp.bfloat16)), adagrad().init(table))
    assert updates.dtype == table.dtype
    assert state[0].second.sum_of_squares.dtype == jnp.float32
    nothing = row_gradient(TABLE, jnp.zeros((0,), int), jnp.zeros((0, 2)))
    found, _ = walk(sparse_adam(), TABLE, nothing)
    np.testing.assert_array_equal(found, TABLE)


def test_compiles_once_and_updates_like_optaxs_apply():
    tx = sparse_adam()
    update = jax.jit(tx.update)
    state = tx.init(TABLE)
    for ids in (IDS, IDS + 1, jnp.zeros_like(IDS)):
        updates, state = update(row_gradient(TABLE, ids % 6, ROWS), state)
        np.testing.assert_allclose(apply_updates(TABLE, updates), TABLE + updates.todense(), rtol=1e-6)
    assert update._cache_size() == 1


@pytest.mark.parametrize("tx", [sgd(1.0), adagrad(1.0), sparse_adam(1.0)])
def test_negative_numbers_count_from_the_end(tx):
    found, state = walk(tx, TABLE, row_gradient(TABLE, jnp.array([-1, 5, -6]), jnp.ones((3, 2))))
    expected, other = walk(tx, TABLE, row_gradient(TABLE, jnp.array([5, 5, 0]), jnp.ones((3, 2))))
    chex.assert_trees_all_equal((found, state), (expected, other))
    raw = BCOO((jnp.ones((2, 2)), jnp.array([[-1], [5]])), shape=TABLE.shape)
    np.testing.assert_array_equal(apply_updates(TABLE, raw)[5], TABLE[5] + 2)


def test_short_whole_numbers_reach_every_row():
    table = jnp.zeros((300, 1))
    found, _ = walk(sgd(1.0), table, row_gradient(table, jnp.array([255, 7], jnp.uint8), jnp.ones((2, 1))), steps=1)
    assert found[255] == found[7] == -1


def test_a_gradient_of_another_table_is_refused():
    gradient = row_gradient(jnp.zeros((9, 2)), IDS, ROWS)
    with pytest.raises(ValueError, match=r"must have its table's shape \(6, 2\), got \(9, 2\)"):
        adagrad().update(gradient, adagrad().init(TABLE))
    with pytest.raises(
        ValueError, match=r"apply_updates: .* have the shape of its parameter, \(6, 2\), got one .* \(9, 2\)"
    ):
        apply_updates(TABLE, gradient)


def test_groups_find_rows_without_parameters_and_only_by_themselves():
    params, grads = (
        {"table": TABLE, "bias": jnp.ones(2)},
        {"table": row_gradient(TABLE, IDS, ROWS), "bias": jnp.ones(2)},
    )
    for labels in ({"table": "table", "bias": "rest"}, lambda path, _: "table" if path == "table" else "rest"):
        tx = param_groups({"table": adagrad(), "rest": adam()}, labels)
        updates, _ = tx.update(grads, tx.init(params))
        assert isinstance(updates["table"], BCOO)
    front = chain(negate_grad(), tx)
    with pytest.raises(TypeError, match="param_groups takes row-sparse gradients only without links next to it"):
        front.update(grads, front.init(params), params)


def test_an_ablation_takes_away_only_the_laziness():
    ordinary = ablations(sparse_adam())["without lazy"]
    found, _ = walk(ordinary, TABLE, dense_gradient())
    expected, _ = walk(sparse_adam(), TABLE, dense_gradient())
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(TypeError, match="cannot take row-sparse gradients"):
        ordinary.update(row_gradient(TABLE, IDS, ROWS), ordinary.init(TABLE))
