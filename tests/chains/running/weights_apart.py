"""Finds out what takes a process of its own, and prints it as JSON; started by test_precise_weights.py."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from linkax.chains import adamw, full_weights, nadam, precise_weights, rmsprop, sgd

STEPS = 1000
OPTIMIZERS = {
    "sgd": sgd(1e-3, momentum=0.9, weight_decay=1e-2),
    "rmsprop": rmsprop(1e-4, momentum=0.9, centered=True),
    "adamw": adamw(optax.cosine_decay_schedule(1e-4, STEPS)),
    "nadam": nadam(1e-5, weight_decay=1e-2),
    "optax": optax.adamw(1e-5),
}
SPECS = {"w": PartitionSpec("x", "y"), "b": PartitionSpec("y")}


def exact(tx: Any) -> dict[str, dict[str, Any]]:
    """In how many weights, of all steps, a training differs from a float32 one; and whether parameters are nearest."""
    rng = np.random.default_rng(0)
    start = jnp.asarray(rng.normal(size=(4, 3)), jnp.bfloat16)
    gradients = jnp.asarray(
        rng.normal(size=(STEPS, 4, 3)) * 10.0 ** rng.uniform(-4, 1, size=(STEPS, 4, 3)), jnp.float32
    )

    def walk(tx: Any, params: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        @jax.jit
        def step(params: Any, state: Any, gradient: Any) -> Any:
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        def scanned(carry: Any, gradient: Any) -> Any:
            carry = step(*carry, gradient)
            return carry, (carry[0], full_weights(tx, carry[1], carry[0]))

        _, (low, full) = jax.lax.scan(scanned, (params, tx.init(params)), gradients)
        return np.asarray(low).astype(np.float32), np.asarray(full)

    _, expected = walk(tx, start.astype(jnp.float32))
    nearest = np.abs(np.asarray(jnp.asarray(expected).astype(jnp.bfloat16)).astype(np.float32) - expected)
    found = {}
    for by in ("master_copy", "lost_bits"):
        low, full = walk(precise_weights(tx, by), start)
        found[by] = {
            "different": int((full.view(np.uint32) != expected.view(np.uint32)).sum()),
            "nearest": bool((np.abs(low - expected) == nearest).all()),
        }
    return found


def sharded(by: str) -> dict[str, bool]:
    """Whether the state lies where the parameters lie, and a training gives what it gives on one device."""
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (8, 4)).astype(jnp.bfloat16), "b": jnp.ones(6, jnp.bfloat16)}
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    placed = {name: jax.device_put(p, NamedSharding(mesh, SPECS[name])) for name, p in params.items()}
    tx = precise_weights(sgd(1e-3, momentum=0.9), by, seed=3)

    @jax.jit
    def after(params: Any, state: Any) -> Any:
        for _ in range(3):
            gradients = jax.tree.map(lambda p: jnp.sin(p.astype(jnp.float32)), params)
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params, state, full_weights(tx, state, params)

    def lies_like_params(tree: Any) -> bool:
        shardings = {p.shape: p.sharding for p in placed.values()}
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 0]
        return all(leaf.sharding.is_equivalent_to(shardings[leaf.shape], leaf.ndim) for leaf in leaves)

    ours, expected = after(placed, tx.init(placed)), after(params, tx.init(params))
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), ours[::2], expected[::2])
    return {
        "init": lies_like_params(tx.init(placed)),
        "step": lies_like_params(ours[:2]),
        "same": all(jax.tree.leaves(same)),
    }


if __name__ == "__main__":
    found = {
        "exact": {name: exact(tx) for name, tx in OPTIMIZERS.items()},
        "sharded": {by: sharded(by) for by in ("master_copy", "lost_bits", "stochastic_rounding")},
    }
    print(json.dumps(found))
