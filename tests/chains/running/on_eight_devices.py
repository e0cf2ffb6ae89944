"""Trains on eight pretended devices in every way of sharding, and prints what came of it as JSON.

Started by test_shardings.py, because devices are counted once in a process.
"""

import collections
import functools
import json
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from linkax import (
    adafactor,
    adamw,
    apply_updates,
    averaged_weights,
    chain,
    full_weights,
    init_sharded,
    live,
    muon,
    param_groups,
    param_shardings,
    precise_weights,
    radam,
    rprop,
    sgd,
    state_shardings,
)
from linkax.transforms import average_weights, clip_grad_norm

P = PartitionSpec
SHAPES = {"up": (128, 256), "bias": (256,), "down": (256, 128)}
TENSOR = {"up": P(None, "model"), "bias": P("model"), "down": P("model", None)}


def mesh_of(kind: AxisType, data: int, model: int) -> jax.sharding.Mesh:
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(kind, kind))


def start(dtype: Any = float) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return {name: jax.random.normal(key, shape, dtype) / 16 for key, (name, shape) in zip(keys, SHAPES.items())}


def on(mesh: Any, tree: Any, specs: Any) -> Any:
    return {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in tree.items()}


def bytes_per_device(tree: Any) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def lies(tree: Any, shardings: Any) -> bool:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf, sharding in pairs)


def sent(compiled: Any) -> dict[str, int]:
    """The largest array, in elements, that each kind of collective returns."""
    found: dict[str, int] = collections.defaultdict(int)
    kinds = "all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute"
    for types, kind in re.findall(rf" = (\([^=]*?\)|\S+) ({kinds})(?:-start)?\(", compiled.as_text()):
        sizes = [int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\[([\d,]*)\]", types)]
        found[kind] = max(found[kind], *sizes)
    return dict(found)


# Training: (devices among which a tensor is split, parameters over, state over, gradients over).

MODES = {
    "data parallel": (1, None, None, None),
    "ZeRO-1": (1, None, "data", None),
    "ZeRO-2": (1, None, "data", "data"),
    "FSDP": (1, "data", None, None),
    "tensor parallel": (8, None, None, None),
    "FSDP and tensor parallel": (2, "data", None, None),
    "tensor parallel and ZeRO-1": (2, None, "data", None),
}
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
CLIPPED = chain(clip_grad_norm(0.1), adamw(1e-2))


def loss(params: Any, x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ params["up"] + params["bias"][None])
    return jnp.mean((hidden @ params["down"] - 1) ** 2)


def trained(tx: optax.GradientTransformation, mode: str, kind: AxisType) -> dict[str, Any]:
    """Three steps, and what the devices send in one: all of it, and the optimizer alone."""
    model, params_over, state_over, grads_over = MODES[mode]
    mesh = mesh_of(kind, 8 // model, model)
    x = jax.random.normal(jax.random.key(1), (64, 128))

    def grads_of(params: Any, x: Any) -> Any:
        # How a model multiplies matrices on explicit axes is up to the model.
        return jax.grad(loss)(params, x) if kind == AUTO else jax.tree.map(jnp.sin, params)

    def optimize(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        params = on(mesh, start(), TENSOR if model > 1 else dict.fromkeys(SHAPES, P()))
        of_params = param_shardings(params, over=params_over)
        params = jax.device_put(params, of_params)
        of_state = state_shardings(tx, params, over=state_over)
        of_grads = param_shardings(params, over=grads_over)
        first = params, init_sharded(tx, params, over=state_over)
        sharded_x = jax.device_put(x, NamedSharding(mesh, P("data")))
        put = jax.lax.with_sharding_constraint if kind == AUTO else jax.sharding.reshard

        def step(params: Any, state: Any, x: Any) -> Any:
            return optimize(params, state, put(grads_of(params, x), of_grads))

        out = {"out_shardings": (of_params, of_state)}
        alone = jax.jit(optimize, **out).lower(*first, jax.device_put(params, of_grads)).compile()
        compiled = jax.jit(step, **out).lower(*first, sharded_x).compile()  # takes arguments with these shardings only
        after = first
        for _ in range(3):
            after = compiled(*after, sharded_x)

    one_device = jax.jit(lambda params, state: optimize(params, state, grads_of(params, x)))
    expected = start(), tx.init(start())
    for _ in range(3):
        expected = one_device(*expected)
    return {
        "init": lies(first, (of_params, of_state)),
        "step": lies(after, (of_params, of_state)),
        "params": bytes_per_device(first[0]),
        "state": bytes_per_device(first[1]),
        "sent": sent(compiled),
        "sent by the optimizer": sent(alone),
        "difference": max(float(jnp.abs(jax.device_get(after[0][name]) - expected[0][name]).max()) for name in SHAPES),
    }


TRAINED = {
    **{f"{mode} auto": (adamw(1e-2), mode, AUTO) for mode in MODES},
    **{f"{mode} explicit": (adamw(1e-2), mode, EXPLICIT) for mode in ("ZeRO-2", "FSDP and tensor parallel")},
    **{f"{mode} clipped": (CLIPPED, mode, AUTO) for mode in ("ZeRO-2", "FSDP and tensor parallel")},
}


# ZeRO-1 on explicit axes, where JAX refuses to select from a split array and a whole one.

MIXED: dict[str, tuple[Callable[[], Any], Any]] = {
    "radam": (lambda: radam(1e-2), jnp.float32),
    "rprop": (lambda: rprop(1e-2), jnp.float32),
    "averaged": (lambda: chain(adamw(1e-2), average_weights()), jnp.float32),
    "muon": (lambda: muon(1e-2, precision="full"), jnp.float32),
    "master copy": (lambda: precise_weights(adamw(1e-2)), jnp.bfloat16),
    "lost bits": (lambda: precise_weights(adamw(1e-2), "lost_bits"), jnp.bfloat16),
    "stochastic rounding": (lambda: precise_weights(adamw(1e-2), "stochastic_rounding"), jnp.bfloat16),
}


READ = {"averaged": averaged_weights, "master copy": full_weights, "lost bits": full_weights}


def on_explicit_axes(name: str) -> dict[str, Any]:
    """Two steps with one whole parameter, a split one, and a state that is split further."""
    make, dtype = MIXED[name]
    mesh, tx = mesh_of(EXPLICIT, 4, 2), make()
    whole = {name: leaf for name, leaf in start(dtype).items() if leaf.ndim == 2}

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state

    def results(params: Any, state: Any) -> Any:
        return params, READ[name](tx, state, params) if name in READ else None

    one_device = jax.jit(step)
    expected = results(*one_device(*one_device(whole, tx.init(whole), whole), whole))
    with jax.set_mesh(mesh):
        params = on(mesh, whole, {"up": P(None, "model"), "down": P()})
        shardings = param_shardings(params), state_shardings(tx, params, over="data")
        sharded = jax.jit(step, out_shardings=shardings)
        after = sharded(*sharded(params, init_sharded(tx, params, over="data"), params), params)
        pairs = zip(*map(jax.tree.leaves, (results(*after), expected)), strict=True)
        difference = max(float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()) for a, b in pairs)
    return {"lies": lies(after, shardings), "difference": difference}


# The state of every kind of optimizer.


def labels(path: str, _: Any) -> str:
    return "flat" if path == "bias" else "matrices"


IN_TWO = {"up": "a", "bias": "b", "down": "a"}
STATES: dict[str, tuple[Callable[[], Any], Any]] = {
    "adamw": (lambda: adamw(1e-2), jnp.float32),
    "scheduled": (lambda: adamw(optax.cosine_decay_schedule(1e-2, 10)), jnp.float32),
    "bfloat16": (lambda: adamw(1e-2, state="bfloat16"), jnp.float32),
    "int8": (lambda: adamw(1e-2, state="int8"), jnp.float32),
    "int4": (lambda: adamw(1e-2, state="int4"), jnp.float32),
    "factored": (lambda: adafactor(1e-2), jnp.float32),
    "averaged": (lambda: chain(adamw(1e-2), average_weights(0.9)), jnp.float32),
    "master copy": (lambda: precise_weights(adamw(1e-2, state="int8")), jnp.bfloat16),
    "lost bits": (lambda: precise_weights(adamw(1e-2), by="lost_bits"), jnp.bfloat16),
    "groups": (
        lambda: param_groups({"flat": sgd(0.1, momentum=0.9), "matrices": adamw(1e-2, state="int8")}, labels),
        jnp.float32,
    ),
    "live": (lambda: live(adamw(1e-2)), jnp.float32),
    "MultiSteps": (lambda: optax.MultiSteps(adamw(1e-2), 2), jnp.float32),
    "masked": (lambda: optax.masked(adamw(1e-2), {"up": True, "bias": False, "down": True}), jnp.float32),
    "apply_if_finite": (lambda: optax.apply_if_finite(adamw(1e-2), 2), jnp.float32),
    "inject_hyperparams": (lambda: optax.inject_hyperparams(adamw)(learning_rate=1e-2), jnp.float32),
    "partition": (
        lambda: optax.partition({"a": optax.adam(1e-2), "b": optax.set_to_zero()}, IN_TWO),
        jnp.float32,
    ),
    "lookahead": (lambda: optax.lookahead(adamw(1e-2), 5, 0.5), jnp.float32),
    "Optax's Adam": (lambda: optax.adam(1e-2), jnp.float32),
    "Optax's Adafactor": (lambda: optax.adafactor(1e-2), jnp.float32),
    "Optax's L-BFGS": (lambda: optax.scale_by_lbfgs(3), jnp.float32),
}


def states(make: Callable[[], Any], dtype: Any, kind: AxisType) -> dict[str, Any]:
    """Where the arrays of a state are: {shape: specs}, for a tensor-parallel model without and with ZeRO."""
    mesh = mesh_of(kind, 4, 2)
    params: Any = on(mesh, start(dtype), TENSOR)
    tx = make()
    if make is STATES["lookahead"][0]:
        params = optax.LookaheadParams.init_synced(params)
    found: dict[str, Any] = {}
    for over in (None, "data"):
        shardings = state_shardings(tx, params, over=over)
        state = init_sharded(tx, params, over=over)
        shapes = jax.eval_shape(tx.init, params)
        specs = collections.defaultdict(set)
        for leaf in jax.tree.leaves(state):
            spec = [*leaf.sharding.spec, *(None,) * (leaf.ndim - len(leaf.sharding.spec))]
            specs[str(leaf.shape)].add(str(tuple(spec)))
        found[over or "as parameters"] = {
            "specs": {shape: sorted(them) for shape, them in specs.items() if shape != "()"},
            "structure": jax.tree.structure(shapes) == jax.tree.structure(shardings),
            "lies": lies(state, shardings),
        }
    with jax.set_mesh(mesh):
        jitted = jax.jit(tx.init)(params)
    found["jitted"] = lies(jitted, state_shardings(tx, params))
    return found


# Flax and Orbax.


def in_flax_linen() -> dict[str, Any]:
    """A model with boxed parameters (`nn.Partitioned`) in a `TrainState` that is restored, from shapes, elsewhere."""
    mesh = mesh_of(AxisType.Auto, 4, 2)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            split = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            return nn.Dense(256, kernel_init=split)(x)

    model, x, tx = Model(), jnp.ones((8, 128)), adamw(1e-2, state="int8")
    key = jax.random.key(0)
    shapes = jax.eval_shape(model.init, key, x)
    init = jax.jit(model.init, out_shardings=nn.get_sharding(shapes, mesh))
    params = init(key, x)
    abstract = jax.eval_shape(init, key, x)
    from_arrays, from_shapes = (state_shardings(tx, one, over="data") for one in (params, abstract))
    state = TrainState(jnp.zeros((), jnp.int32), model.apply, params, tx, init_sharded(tx, params, over="data"))

    def to_start(params: Any) -> TrainState:
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    of_all = jax.tree.map(lambda _: NamedSharding(mesh, P()), jax.eval_shape(to_start, params))
    of_all = of_all.replace(params=param_shardings(params), opt_state=from_shapes)
    whole = jax.jit(to_start, out_shardings=of_all)(params)
    small = jax.make_mesh((2, 1), ("data", "model"), devices=jax.devices()[:2], axis_types=(AxisType.Auto,) * 2)
    elsewhere = jax.tree.map(
        lambda leaf: leaf.update(sharding=NamedSharding(small, leaf.sharding.spec)), jax.eval_shape(init, key, x)
    )
    target = jax.eval_shape(jax.jit(tx.init, out_shardings=state_shardings(tx, elsewhere, over="data")), elsewhere)
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(f"{folder}/state", state.opt_state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(f"{folder}/state", target)
    return {
        "equal": from_arrays == from_shapes,
        "boxed": lies(state.opt_state, from_arrays) and lies(whole.opt_state, from_arrays),
        "restored": lies(restored, state_shardings(tx, elsewhere, over="data")),
        "same": all(
            np.array_equal(one, other) for one, other in zip(*map(jax.tree.leaves, (restored, state.opt_state)))
        ),
        "devices": len(jax.tree.leaves(restored)[0].sharding.device_set),
    }


def in_flax_nnx() -> dict[str, Any]:
    """An `nnx.Optimizer` with ZeRO, and its steps."""
    mesh = mesh_of(AxisType.Auto, 8, 1)

    def net() -> nnx.Module:
        model = nnx.Linear(128, 256, rngs=nnx.Rngs(0))
        nnx.update(model, jax.device_put(nnx.state(model), NamedSharding(mesh, P())))
        return model

    model, tx = net(), adamw(1e-2)
    sharded_tx = optax.GradientTransformationExtraArgs(functools.partial(init_sharded, tx, over="data"), tx.update)
    optimizer = nnx.Optimizer(model, sharded_tx, wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    of_params, of_state = param_shardings(params), state_shardings(tx, params, over="data")

    @nnx.jit
    def step(model: Any, optimizer: Any, x: jax.Array) -> None:
        grads = nnx.grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model)
        optimizer.update(model, grads)
        nnx.update(model, jax.lax.with_sharding_constraint(nnx.state(model, nnx.Param), of_params))

    placed = lies(optimizer.opt_state, of_state)
    x = jax.device_put(jnp.ones((8, 128)), NamedSharding(mesh, P("data")))
    other = net()
    other_optimizer = nnx.Optimizer(other, tx, wrt=nnx.Param)
    for _ in range(3):
        step(model, optimizer, x)
        grads = nnx.grad(lambda model: jnp.mean((model(x) - 1) ** 2))(other)
        other_optimizer.update(other, grads)
    pairs = zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(other)))
    return {
        "structure": jax.tree.structure(of_state) == jax.tree.structure(jax.eval_shape(tx.init, params)),
        "placed": placed,
        "stays": lies(optimizer.opt_state, of_state) and lies(nnx.state(model, nnx.Param), of_params),
        "difference": max(float(jnp.abs(one - other).max()) for one, other in pairs),
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)  # so that a difference is not one of rounding
    runs = {name: trained(*case) for name, case in TRAINED.items()}
    jax.config.update("jax_enable_x64", False)
    explicit = ("adamw", "int8", "factored", "groups", "Optax's Adam")
    found = {
        "trained": runs,
        "mixed": {name: on_explicit_axes(name) for name in MIXED},
        "states": {name: states(make, dtype, AUTO) for name, (make, dtype) in STATES.items()},
        "states on explicit axes": {name: states(*STATES[name], EXPLICIT) for name in explicit},
        "linen": in_flax_linen(),
        "nnx": in_flax_nnx(),
    }
    print(json.dumps(found))
