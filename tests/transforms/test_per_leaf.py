"""What happens to a leaf is traced once for all leaves of its shape, and is the same as if each were traced."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adamw, chain, param_groups, sgd
from linkax.transforms import _per_leaf, link, matrices_only, scale_by_learning_rate, scale_by_momentum
from linkax.transforms._leaves import map_updates
from linkax.transforms._per_leaf import Deferred, deferred, settled
from tests.chains.optimizers import each_mechanism


def some_tree(seed: int, dtype: Any = None) -> dict[str, Any]:
    """Five leaves of one shape and two of another, in two groups."""
    rng = np.random.default_rng(seed)
    kernels = {f"layer{index}": {"kernel": jnp.asarray(rng.normal(size=(2, 3)), dtype)} for index in range(5)}
    return {"body": kernels, "head": [jnp.asarray(rng.normal(size=4), dtype) for _ in range(2)]}


def counting(calls: list[Any]):
    """A leafwise link that takes note of every leaf that its function is called with."""

    @link("gradient", is_leafwise=True)
    def count_leaves() -> optax.GradientTransformation:
        def halve(u):
            calls.append(u)
            return u / 2

        return optax.stateless(lambda updates, _: map_updates(halve, updates))

    return count_leaves()


def test_leaves_of_one_shape_are_traced_once():
    calls, tree = [], some_tree(0)
    tx = chain(counting(calls), scale_by_learning_rate(0.5))
    updates, _ = jax.jit(tx.update)(tree, tx.init(tree))
    assert len(calls) == 1 + 2  # one of a shape that there are five of, and two of another, which are too few
    chex.assert_trees_all_equal(updates, jax.tree.map(lambda g: -g / 4, tree))


def test_without_tracing_nothing_is_compiled(monkeypatch):
    calls, tree = [], some_tree(0)
    tx = chain(counting(calls), scale_by_learning_rate(0.5))
    state = tx.init(tree)
    monkeypatch.setattr(_per_leaf, "_function", None)
    tx.update(tree, state)
    jax.vmap(tx.update)(jax.tree.map(lambda leaf: leaf[None], tree), state)
    jax.grad(lambda scale: optax.tree.sum(tx.update(optax.tree.scale(scale, tree), state)[0]))(1.0)
    assert len(calls) == 3 * 7


def test_one_equation_a_leaf():
    leaves = [jnp.ones(3)] * 50
    tx = adamw(1e-3)
    jaxpr = jax.make_jaxpr(tx.update)(leaves, tx.init(leaves), leaves)
    functions = [equation.params["jaxpr"] for equation in jaxpr.eqns if "jaxpr" in equation.params]
    assert len(functions) == 50
    assert len(set(map(id, functions))) == 1  # so it is lowered once
    assert len(jaxpr.eqns) < 50 + 40  # the others are for scalars


@each_mechanism
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64], ids=lambda dtype: dtype.__name__)
def test_it_is_what_tracing_each_leaf_gives(optimizer, dtype, monkeypatch):
    params = some_tree(0, dtype)
    mask = {"weight_decay_mask": lambda params: jax.tree.map(lambda p: p.ndim > 1, params)}
    tx = optimizer(**mask if "weight_decay" in optimizer.hyperparameters else {})

    def run():
        @jax.jit
        def step(params, state, gradient):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        now, state = params, tx.init(params)
        for seed in range(1, 4):
            gradient = {**some_tree(seed, dtype)}
            gradient["body"] = {**gradient["body"], "layer3": some_tree(7, dtype)["body"]["layer3"]}
            now, state = step(now, state, gradient)
        return now, state

    once = run()
    monkeypatch.setattr(_per_leaf, "_WORTH_IT", 100)
    # The compiler gets the same arithmetic; the norm of complex numbers in a trust ratio it may round otherwise.
    chex.assert_trees_all_close(once, run(), rtol=2**-23 if optimizer.name == "lamb" else 0, atol=0)


def test_missing_gradients_masks_groups_and_other_links():
    params, gradient = some_tree(0), some_tree(1)
    gradient["body"]["layer2"]["kernel"] = None
    seen = []

    def look(updates, state, params=None):
        seen.extend(jax.tree.leaves(updates))
        return updates, state

    foreign = optax.GradientTransformation(optax.init_empty_state, look)
    tx = param_groups(
        {
            "body": chain(scale_by_momentum(0.9), foreign, adamw(1e-2, weight_decay_mask=matrices_only)),
            "head": sgd(0.1, momentum=0.9),
        },
        lambda path, _: path.split("/")[0],
    )
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(gradient, state, params)
    assert len(seen) == 4
    assert all(isinstance(leaf, jax.Array) for leaf in seen)  # what others see has been computed
    expected, expected_after = tx.update(gradient, state, params)
    chex.assert_trees_all_close((updates, after), (expected, expected_after), rtol=1e-6)
    assert updates["body"]["layer2"]["kernel"] is None


def test_under_scan_vmap_and_grad():
    params, gradient = some_tree(0), some_tree(1)

    def loss(learning_rate, b1):
        tx = adamw(learning_rate, b1=b1)

        def step(carry, _):
            now, state = carry
            updates, state = tx.update(gradient, state, now)
            return (optax.apply_updates(now, updates), state), None

        return optax.tree.norm(jax.lax.scan(step, (params, tx.init(params)), length=3)[0][0], squared=True)

    rates, decays = jnp.asarray([1e-2, 1e-1]), jnp.asarray([0.9, 0.5])
    both = jax.value_and_grad(loss, argnums=(0, 1))
    together = jax.jit(jax.vmap(both))(rates, decays)
    for index in range(2):
        alone = jax.jit(both)(rates[index], decays[index])
        chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[index], together), alone, rtol=1e-5, atol=1e-5)  # noqa: B023
    # A number that is batched, around gradients that are not.
    tx = adamw(0.1)
    state = tx.init(params)
    moved = jax.jit(jax.vmap(lambda rate: adamw(rate).update(gradient, state, params)[0]))(rates)
    chex.assert_trees_all_close(
        jax.tree.map(lambda u: u[1], moved), tx.update(gradient, state, params)[0], rtol=1e-5, atol=1e-7
    )


def test_under_shard_map():
    params, gradient = some_tree(0), some_tree(1)
    tx = adamw(0.1)
    mesh = jax.make_mesh((1,), ("devices",))
    update = jax.shard_map(tx.update, mesh=mesh, in_specs=jax.P(), out_specs=jax.P())
    state = tx.init(params)
    # Compiled in another way: some roundings.
    chex.assert_trees_all_close(
        jax.jit(update)(gradient, state, params), tx.update(gradient, state, params), rtol=1e-5, atol=1e-7
    )


def test_one_leaf_at_a_time():
    def mixed(leaves):
        first: Any
        first, second, _ = jax.tree.leaves(deferred(leaves))
        assert isinstance(first, Deferred)
        return settled(map_updates(lambda u, v: u + v, first, second))

    with pytest.raises(ValueError, match="must take one leaf at a time"):
        jax.jit(mixed)([jnp.ones(2)] * 3)
