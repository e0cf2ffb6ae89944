"""Sweeps on eight devices whose points read data, and may span devices, printed as JSON.

python -m tests.chains.laboratory.sweep_meshes    started by test_sweep_points.py, which imports the rest
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from linkax.chains import adam, adamw, live, param_groups, sgd, sweep

_RNG = np.random.default_rng(0)
INPUTS = _RNG.normal(size=(16, 4)).astype(np.float32)
DATA = {"inputs": INPUTS, "targets": np.sin(INPUTS.sum(axis=1, keepdims=True)), "key": jax.random.key(7)}
GRID = {"learning_rate": [0.01, 0.1], "seed": range(3)}
VARIANTS = {
    "adam": lambda learning_rate: adam(learning_rate),
    "groups and stored state": lambda learning_rate: param_groups(
        {"first": adam(learning_rate, state="int8"), "second": sgd(learning_rate, momentum=0.9, state="bfloat16")},
        lambda path, leaf: "first" if "first" in path else "second",
    ),
    "live, with a schedule, in Optax's wrappers": lambda learning_rate: optax.MultiSteps(
        optax.apply_if_finite(live(adamw(optax.linear_schedule(0.1, 0.0, 5)), "b1"), 3), 2
    ).gradient_transformation(),
}

ADAM = {"adam": VARIANTS["adam"]}


def train(tx, seed, data, place=lambda array, spec: array):
    """A network of two layers, whose parameters and batches may lie on a mesh."""
    first, second = jax.random.split(jax.random.fold_in(data["key"], seed))
    params = {"first": jax.random.normal(first, (4, 8)), "second": jax.random.normal(second, (8, 1)) / 3}
    params = {"first": place(params["first"], P(None, "model")), "second": place(params["second"], P("model", None))}

    def loss(params):
        whole = jax.tree.map(lambda weights: place(weights, P(None, None)), params)
        outputs = jnp.tanh(data["inputs"] @ whole["first"]) @ whole["second"]
        return jnp.mean((outputs - data["targets"]) ** 2)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), length=4)
    return {"loss": losses, "first": params["first"]}


def losses(run=train, variants=VARIANTS, grid=GRID, data=DATA, **options):
    """The losses and weights, by variant and point; seeds in ascending order."""
    table = sweep(run, grid, variants, data=data, progress=False, **options).sortby("seed")
    return np.concatenate([table["loss"].values.ravel(), table["first"].values.ravel()])


def bits(values):
    return values.tobytes().hex()


def on_a_mesh(types, variants=VARIANTS, grid=GRID, **options):
    """The losses where two points run at a time, each on four devices: their data and parameters are divided."""
    place = jax.sharding.reshard if types is AxisType.Explicit else jax.lax.with_sharding_constraint
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(types, types), devices=jax.devices()[2:6])
    data = {name: jax.device_put(DATA[name], NamedSharding(mesh, P("data"))) for name in ("inputs", "targets")}
    return losses(
        lambda tx, seed, data: train(tx, seed, data, place=place),
        variants,
        grid,
        {**data, "key": DATA["key"]},
        mesh_per_point={"data": 2, "model": 2} if types is AxisType.Auto else mesh.abstract_mesh,
        **options,
    )


def with_shard_map(x, data):
    """A sum over the devices of a point, and which of them there are."""
    total = jax.shard_map(
        lambda part: jax.lax.psum(jnp.sum(part), "data"), in_specs=P("data"), out_specs=P(), axis_names={"data"}
    )
    return {"total": x * total(data), "devices": jax.sharding.get_abstract_mesh().size}


def main():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    found = {"alone": bits(losses())}
    for types in (AxisType.Auto, AxisType.Explicit):
        compiled.clear()
        with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(types,))):
            found[f"inside {types.name}"] = bits(losses(variants=ADAM))
        found["compilations"] = len(compiled)
    found["on Auto"] = on_a_mesh(AxisType.Auto, batch_size=2).tolist()
    found["on Explicit"] = on_a_mesh(AxisType.Explicit).tolist()
    found["on Explicit, side by side"] = on_a_mesh(AxisType.Explicit, ADAM, batch_size=2).tolist()
    # Two at a time: what the first four devices run in one of these, the others run in the other.
    found["groups"] = [
        bits(on_a_mesh(AxisType.Auto, ADAM, {"learning_rate": [0.1], "seed": seeds})) for seeds in ([0, 1], [1, 0])
    ]
    numbers = jax.device_put(
        jnp.arange(8.0), NamedSharding(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
    )
    for size in (1, 2):
        options = {"mesh_per_point": {"data": 4}, "batch_size": size, "progress": False}
        table = sweep(with_shard_map, {"x": [1.0, 2.0, 3.0]}, data=numbers, **options)
        found[f"shard_map {size}"] = [table["total"].values.tolist(), table["devices"].values.tolist()]
    table = sweep(
        lambda x, data: {"y": x * jnp.sum(data), "z": data * x},
        {"x": [1.0, 2.0]},
        data=jax.device_put(np.arange(8.0), NamedSharding(jax.make_mesh((8,), ("a",)), P("a"))),
        mesh_per_point=AbstractMesh((8,), ("a",), axis_types=(AxisType.Explicit,)),
        progress=False,
    )
    found["a divided metric"] = [table["y"].values.tolist(), table["z"].values.tolist()]

    found["refused"] = []
    explicit = jax.device_put(jnp.arange(8.0), NamedSharding(jax.make_mesh((8,), ("a",)), P("a")))
    two = jax.make_mesh((2,), ("a",), devices=jax.devices()[:2])
    pairs = jax.device_put(jnp.arange(6.0), NamedSharding(two, P("a")))
    for run, options in (
        (lambda x: {"y": x}, {"mesh_per_point": {"a": 3}}),
        (lambda x, data: {"y": x}, {"mesh_per_point": {"b": 2}, "data": explicit}),
        (lambda x: {"y": x * jnp.sum(explicit)}, {}),
        (lambda x, data: {"y": x}, {"mesh_per_point": {"a": 8}, "data": [pairs]}),
    ):
        try:
            sweep(run, {"x": [1.0]}, progress=False, **options)
        except ValueError as error:
            found["refused"].append(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
