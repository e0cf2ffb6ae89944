"""Steps every optimizer on eight devices and prints what came of it as JSON; started by test_under_jax.py."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from linkax.chains import adamw, chain
from linkax.transforms import average_weights, clip_grad_norm
from linkax.transforms._formats import Format

from .optimizers import MECHANISMS

FORMATS: tuple[Format, ...] = ("bfloat16", "int8", "int4")
SPECS = {"w": PartitionSpec("x", "y"), "b": PartitionSpec("y"), "whole": PartitionSpec()}


def lies_like(tree, params) -> bool:
    """Whether every leaf of `tree` that has the shape of a parameter has its sharding."""
    shardings = {p.shape: p.sharding for p in params.values()}
    mesh = params["w"].sharding.mesh  # means of rows and columns lie like the axis that they have
    shardings |= {
        (8, 1): NamedSharding(mesh, PartitionSpec("x")),
        (1, 4): NamedSharding(mesh, PartitionSpec(None, "y")),
    }
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 0]
    return all(leaf.sharding.is_equivalent_to(shardings[leaf.shape], leaf.ndim) for leaf in leaves)


def place(tree, kind: AxisType):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    return mesh, {name: jax.device_put(tree[name], NamedSharding(mesh, SPECS[name])) for name in tree}


def results(optimizer: Callable[[], optax.GradientTransformation]) -> dict[str, bool | float]:
    key = jax.random.key(0)
    shapes = {"w": (8, 4), "b": (6,), "whole": (3,)}
    params = {name: jax.random.normal(key, shape) for name, shape in shapes.items()}
    tx = optimizer()
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(None)
        gradients = jax.tree.map(jnp.sin, params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, updates

    _, sharded = place(params, AxisType.Auto)
    state = tx.init(sharded)
    # The second step may trace again, because JAX has put the step counts on the mesh by then; later ones may not.
    after, after_state, updates = step(*step(sharded, state)[:2])
    traces_after_two = len(traces)
    step(after, after_state)
    traces_after_three = len(traces)
    expected, _, _ = step(*step(params, tx.init(params))[:2])
    mesh, explicit = place(params, AxisType.Explicit)
    with jax.set_mesh(mesh):
        explicit_state = jax.jit(tx.init)(explicit)
    return {
        "eager_init": lies_like(state, sharded),
        "jitted_init_explicit": lies_like(explicit_state, explicit),
        "update": lies_like(updates, sharded),
        "step_keeps_sharding": lies_like((after, after_state), sharded),
        "step_traces_no_more": traces_after_three == traces_after_two,
        "difference": max(float(np.abs(np.asarray(after[name]) - np.asarray(expected[name])).max()) for name in params),
    }


def stored_results(as_: Format, spec: PartitionSpec) -> dict[str, Any]:
    """Whether codes and their scales lie where the parameter lies, and what is sent from device to device."""
    tx = adamw(1e-2, state=as_)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto, AxisType.Auto))
    lies = NamedSharding(mesh, spec)
    whole = jax.random.normal(jax.random.key(0), (512, 256), jnp.float32)
    sharded = jax.device_put(whole, lies)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jnp.sin(params), state, params)
        return optax.apply_updates(params, updates), state

    after, state = step(*step(sharded, tx.init(sharded)))
    expected, _ = step(*step(whole, tx.init(whole)))
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == whole.shape]
    text = step.lower(after, state).compile().as_text()
    explicit = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit, AxisType.Explicit))
    with jax.set_mesh(explicit):
        placed = jax.device_put(whole, NamedSharding(explicit, spec))
        inits = [jax.tree.map(jnp.shape, init(placed)) for init in (tx.init, jax.jit(tx.init))]
    sent = {word for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all") if f" {word}(" in text}
    return {
        "lies_like_the_parameter": all(leaf.sharding.is_equivalent_to(lies, 2) for leaf in (after, *kept)),
        "is_kept_in_fewer_bits": all(leaf.dtype != jnp.float32 for leaf in kept),
        "sends": sorted(sent),
        "jitted_init_explicit": inits[0] == inits[1],
        "difference": float(jnp.abs(jax.device_get(after) - expected).max()),
    }


if __name__ == "__main__":
    specs = {"rows": PartitionSpec("x"), "columns": PartitionSpec(None, "y"), "both": PartitionSpec("x", "y")}
    found = {f"{as_} {name}": stored_results(as_, spec) for as_ in FORMATS for name, spec in specs.items()}
    jax.config.update("jax_enable_x64", True)
    found["clipped and averaged"] = results(lambda: chain(clip_grad_norm(0.1), adamw(1e-2), average_weights(0.9)))
    print(json.dumps(found | {optimizer.name: results(optimizer) for optimizer in MECHANISMS}))
