"""Imports and exports in two processes that share a mesh, printed as JSON; started by test_acting_on_shards.py.

python -m tests.chains.acting_on_hosts PORT HOST
"""

import hashlib
import json
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linkax.chains import adamw, full_weights, live, migrate, param_groups, precise_weights, sgd, with_full_weights
from linkax.chains.torch_interop import export_averages, export_params, export_state, import_params, import_state

from .acting_on_shards import (
    CHAINS,
    LOW,
    STATE_DICT,
    TWO_GROUPS,
    WEIGHTS,
    by_kernel,
    compilations,
    copies,
    lies_like,
    same,
    shapes_on,
    with_average,
)


def digest(tree: Any) -> str:
    """The bytes of all arrays, which must be the same in both processes."""
    every = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        every.update(np.asarray(leaf).tobytes())
    return every.hexdigest()


def numbers_read(make: Any) -> int:
    """How many numbers go into the shards of this process."""
    found: list[int] = []
    plain = jax.make_array_from_callback

    def counting(shape: Any, sharding: Any, read: Any, *options: Any) -> jax.Array:
        def part(index: Any) -> Any:
            value = read(index)
            found.append(value.size)
            return value

        return plain(shape, sharding, part, *options)

    jax.make_array_from_callback = counting
    try:
        make()
    finally:
        jax.make_array_from_callback = plain
    return sum(found)


def stepped(tx: optax.GradientTransformation, params: Any, state: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    return step(params, state)


def results() -> dict[str, Any]:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shapes = shapes_on(mesh)
    kernel = {"fc": {"kernel": shapes["fc"]["kernel"]}}
    with copies(shapes) as whole:
        params = import_params(shapes, WEIGHTS)
    found: dict[str, Any] = {
        "params": lies_like(params, params) and same(export_params(params), WEIGHTS) and not whole,
        "read": numbers_read(lambda: import_params(kernel, {"fc.weight": WEIGHTS["fc.weight"]})),
    }
    for name in ("live", "int8", "MultiSteps", "groups", "lost_bits"):
        tx, file = CHAINS[name](), TWO_GROUPS if name == "groups" else STATE_DICT
        its = jax.tree.map(lambda p, name=name: p.astype(jnp.bfloat16 if name in LOW else p.dtype), params)
        with copies(shapes) as whole:
            state = import_state(tx, its, file)
        exported = export_state(tx, its, state, file)["state"]
        found[name] = lies_like(state, params) and not whole and (name == "int8" or same(exported, file["state"]))
        found[f"{name} exported"] = digest(exported)
    tx = live(adamw(1e-3))
    state = import_state(tx, params, STATE_DICT)
    found["compiled"] = compilations(tx, params, state, lambda state: tx.set_hyperparams(state, learning_rate=0.5))
    after, state = stepped(tx, params, state)
    alone = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape.shape, shape.dtype), shapes)
    alone = import_params(alone, WEIGHTS)  # on a device of this process
    expected, _ = stepped(tx, alone, import_state(tx, alone, STATE_DICT))
    theirs = export_params(expected)
    found["difference"] = max(float(np.abs(w - theirs[name]).max()) for name, w in export_params(after).items())
    found["exported"] = digest(export_state(tx, after, state, STATE_DICT)["state"])
    averaged = with_average()
    _, state = stepped(averaged, params, averaged.init(params))
    averages = export_averages(averaged, params, state)
    found["averages exported"] = digest(averages)
    groups = param_groups({"0": with_average(), "1": adamw(1e-3)}, by_kernel)  # one of which has no average
    state = import_state(groups, params, TWO_GROUPS, averages=averages)
    found["averages"] = lies_like(state, params)
    found["migrated"] = lies_like(migrate(tx, tx.init(params), CHAINS["int8"](), params).state, params)
    for by in LOW:
        tx = precise_weights(sgd(1e-3), by)
        low = shapes_on(mesh, jnp.bfloat16)
        both = with_full_weights(tx, tx.init(low), low, jax.tree.map(np.asarray, alone))
        found[f"{by} weights"] = lies_like(both, params) and same(
            export_params(full_weights(tx, both[1], both[0])), WEIGHTS
        )
    return found


if __name__ == "__main__":
    port, host = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", process_id=int(host), num_processes=2)
    warnings.filterwarnings("ignore", "import_state", UserWarning)  # of other learning rates, and averages left out
    print(json.dumps(results()))
