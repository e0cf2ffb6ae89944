"""Changes running optimizers on eight devices, prints what came of it as JSON; started by test_acting_on_shards.py."""

import contextlib
import functools
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from linkax.chains import (
    adagrad,
    adamw,
    apply_updates,
    averaged_weights,
    chain,
    full_weights,
    live,
    migrate,
    migrate_nnx,
    param_groups,
    precise_weights,
    sgd,
    sparse_adam,
    with_full_weights,
)
from linkax.chains.torch_interop import export_averages, export_params, export_state, import_params, import_state
from linkax.transforms import average_weights, row_gradient, scale_by_learning_rate, scale_by_momentum

P = PartitionSpec
SHAPES = {"fc": {"kernel": (256, 128), "bias": (128,)}, "rest": {"bias": (8,)}}
SPECS = {"fc": {"kernel": P("x", "y"), "bias": P("y")}, "rest": {"bias": P("x")}}
NAMES = {"fc.weight": (128, 256), "fc.bias": (128,), "rest.bias": (8,)}
HYPERPARAMS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False}


def is_auto(mesh: jax.sharding.Mesh) -> bool:
    return AxisType.Auto in mesh.axis_types


def is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


def some(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


WEIGHTS = {name: some(shape, index) for index, (name, shape) in enumerate(NAMES.items())}
STATE_DICT = {
    "state": {
        index: {"step": 3.0, "exp_avg": some(shape, 10 + index), "exp_avg_sq": some(shape, 20 + index) ** 2}
        for index, shape in enumerate(NAMES.values())
    },
    "param_groups": [HYPERPARAMS | {"decoupled_weight_decay": True, "params": [0, 1, 2], "param_names": list(NAMES)}],
}
TWO_GROUPS = {
    **STATE_DICT,
    "param_groups": [
        STATE_DICT["param_groups"][0] | {"params": [0], "param_names": ["fc.weight"]},
        STATE_DICT["param_groups"][0] | {"params": [1, 2], "param_names": ["fc.bias", "rest.bias"]},
    ],
}


def shapes_on(mesh: jax.sharding.Mesh, dtype: Any = jnp.float32) -> Any:
    return jax.tree.map(
        lambda shape, spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec)),
        SHAPES,
        SPECS,
        is_leaf=is_shape,
    )


def on(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """The tree, with what is shaped like a parameter in the parameter's shards, and the rest everywhere."""
    lies = {one.shape: one.sharding for one in jax.tree.leaves(shapes_on(mesh))}
    return jax.tree.map(lambda x: jax.device_put(x, lies.get(x.shape, NamedSharding(mesh, P()))), tree)


def lies_like(tree: Any, params: Any) -> bool:
    """Whether everything that is shaped like a parameter is in its shards, and all numbers are on the same devices."""
    wanted = {p.shape: p.sharding for p in jax.tree.leaves(params)}
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    wanted |= {(): NamedSharding(mesh, P()), (256, 1): NamedSharding(mesh, P("x"))}  # the scales of the blocks of rows
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return bool(leaves) and all(
        leaf.committed and leaf.sharding.is_equivalent_to(wanted[leaf.shape], leaf.ndim) for leaf in leaves
    )


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same numbers, to the last bit."""
    ours, theirs = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(ours) == len(theirs) > 0 and all(map(np.array_equal, jax.device_get(ours), jax.device_get(theirs)))


@contextlib.contextmanager
def copies(params: Any) -> Iterator[list[str]]:
    """What puts all of a sharded parameter on one device meanwhile."""
    found: list[str] = []
    sizes = {p.size for p in jax.tree.leaves(params) if not p.sharding.is_fully_replicated}
    makers = [(jnp, "asarray"), (jnp, "array"), (jax, "device_put"), (jax, "make_array_from_callback")]
    makers = [(module, name, getattr(module, name)) for module, name in makers]

    def spying(name: str, make: Any) -> Any:
        def made(*args: Any, **options: Any) -> Any:
            result = make(*args, **options)
            is_array = isinstance(result, jax.Array) and not isinstance(result, jax.core.Tracer)
            if is_array and result.size in sizes and result.addressable_data(0).size == result.size:
                found.append(f"{name} of {result.shape}")
            return result

        return made

    for module, name, make in makers:
        setattr(module, name, spying(name, make))
    try:
        yield found
    finally:
        for module, name, make in makers:
            setattr(module, name, make)


def compilations(tx: optax.GradientTransformation, params: Any, state: Any, after: Any = None) -> int:
    """How often two steps are compiled, and one more after something has been done to the state."""

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(*step(params, state))
    if after is not None:
        step(params, after(state))
    return step._cache_size()


def by_kernel(path: str, _: Any) -> str:
    return "0" if "kernel" in path else "1"


def with_average() -> optax.GradientTransformation:
    return chain(adamw(1e-3), average_weights(0.9))


CHAINS = {
    "plain": lambda: adamw(1e-3),
    "live": lambda: live(adamw(1e-3), "learning_rate", "b1"),
    "scheduled": lambda: live(adamw(optax.linear_schedule(1e-3, 0.0, 10))),
    "int8": lambda: adamw(1e-3, state="int8"),
    "bfloat16": lambda: adamw(1e-3, state="bfloat16"),
    "averaged": with_average,
    "groups": lambda: param_groups({"0": adamw(1e-3), "1": adamw(1e-3)}, by_kernel),
    "MultiSteps": lambda: optax.MultiSteps(adamw(1e-3), 2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(adamw(1e-3), 3),
    "masked": lambda: optax.masked(adamw(1e-3), lambda params: jax.tree.map(lambda _: True, params)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(lambda learning_rate: adamw(learning_rate))(1e-3),
    "optax": lambda: optax.adamw(1e-3, weight_decay=0.01),
    "master_copy": lambda: precise_weights(adamw(1e-3)),
    "lost_bits": lambda: precise_weights(adamw(1e-3), "lost_bits"),
}
LOW = ("master_copy", "lost_bits")
FEW = ("live", "int8", "lost_bits")  # on explicit axes
COMPILED = ("live", "MultiSteps", "lost_bits")


def imports(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    shapes = shapes_on(mesh)
    with copies(shapes) as whole:
        params = import_params(shapes, WEIGHTS)
        again = import_params(params, WEIGHTS)
    alone = import_params(jax.tree.map(lambda shape: np.zeros(shape, np.float32), SHAPES, is_leaf=is_shape), WEIGHTS)
    found: dict[str, Any] = {
        "params": {
            "lie": lies_like((params, again), params),
            "same": same((params, again), (alone, alone)),
            "whole": whole,
            "exported": same(export_params(params), WEIGHTS),
        }
    }
    averages = {f"module.{name}": weight for name, weight in WEIGHTS.items()} | {"n_averaged": np.int64(2)}
    for name in CHAINS if is_auto(mesh) else FEW:
        tx, dtype = CHAINS[name](), jnp.bfloat16 if name in LOW else jnp.float32
        its = {"averages": averages} if name == "averaged" else {}
        file = TWO_GROUPS if name == "groups" else STATE_DICT
        sharded, single = (jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), one) for one in (params, alone))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a live or scheduled rate is unknown
            with copies(shapes) as whole:
                state = import_state(tx, sharded, file, **its)
                # (Optax's init of inject_hyperparams cannot do with shapes.)
                shapes_or_arrays = sharded if name == "inject_hyperparams" else shapes_on(mesh, dtype)
                of_shapes = import_state(tx, shapes_or_arrays, file, **its)
            expected = import_state(tx, single, file, **its)
            exported = export_state(tx, sharded, state, file)["state"]
        is_stored = name in ("int8", "bfloat16")
        found[name] = {
            "lie": lies_like((state, of_shapes), params),
            "same": same(state, expected),
            # (A master copy of shapes alone is zeros, which the first step replaces.)
            "same of shapes": name == "master_copy" or same(of_shapes, expected),
            "whole": whole,
            "exported": is_stored or same(exported, file["state"]),
        }
        if name in COMPILED:
            found[name]["compiled"] = compilations(tx, sharded, state)
        if name == "averaged":
            found[name]["exported averages"] = same(export_averages(tx, params, state), averages)
            found[name]["read"] = lies_like(averaged_weights(tx, state, params), params)
    return found


NEW = {
    "amsgrad": lambda: adamw(1e-3, amsgrad=True),
    "live": CHAINS["live"],
    "int8": CHAINS["int8"],
    "bfloat16": CHAINS["bfloat16"],
    "averaged": with_average,
    "groups": CHAINS["groups"],
    "MultiSteps": CHAINS["MultiSteps"],
    "inject_hyperparams": CHAINS["inject_hyperparams"],
    "optax": CHAINS["optax"],
    "master_copy": CHAINS["master_copy"],
    "lost_bits": CHAINS["lost_bits"],
}


def migrations(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    params = import_params(jax.tree.map(lambda shape: np.zeros(shape, np.float32), SHAPES, is_leaf=is_shape), WEIGHTS)
    old = adamw(1e-3)
    _, state = jax.jit(old.update)(params, old.init(params), params)
    sharded, sharded_state = on(mesh, (params, state))
    found: dict[str, Any] = {}
    for name in NEW if is_auto(mesh) else FEW:
        tx, dtype = NEW[name](), jnp.bfloat16 if name in LOW else jnp.float32
        single, its = (jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), one) for one in (params, sharded))
        with copies(sharded) as whole:
            new = migrate(old, sharded_state, tx, its).state
            back = migrate(tx, new, old, sharded).state
        found[name] = {
            "lie": lies_like((new, back), sharded),
            "same": same(new, migrate(old, state, tx, single).state),
            "whole": whole,
        }
        if name in COMPILED:
            found[name]["compiled"] = compilations(tx, its, new)
    links = scale_by_momentum(0.9), scale_by_learning_rate(0.5)
    before, behind = chain(*links), chain(*links[::-1])  # in other units
    _, of_momentum = before.update(params, before.init(params))
    converted = migrate(before, on(mesh, of_momentum), behind, sharded)
    found["converted"] = {
        "lie": lies_like(converted.state, sharded) and len(converted.converted) == len(NAMES),
        "same": same(converted.state, migrate(before, of_momentum, behind, params).state),
    }
    replicated = migrate(old, jax.device_put(sharded_state, NamedSharding(mesh, P())), NEW["amsgrad"](), sharded)
    first, second = replicated.state[0]
    found["of another layout"] = {
        "stays": first[0].mu["fc"]["kernel"].sharding.is_fully_replicated,
        "new lies": lies_like(second[1], sharded),
    }
    elsewhere = jax.device_put(state, jax.devices()[1]), jax.device_get(state)
    found["from elsewhere"] = {
        "lie": all(lies_like(migrate(old, one, NEW["live"](), sharded).state, sharded) for one in elsewhere),
    }
    return found


def live_values(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    params = import_params(shapes_on(mesh), WEIGHTS)
    tx = live(adamw(1e-3), "learning_rate", "b1")
    around = live(optax.MultiSteps(adamw(1e-3), 2))

    def set_rate(state: Any) -> Any:
        return tx.set_hyperparams(state, learning_rate=0.5, b1=jnp.float32(0.5))

    # As many compilations as without setting anything: JAX compiles the second step anew after `init`, because the step
    # has put the counts on the mesh.
    return {
        "compiled": compilations(tx, params, tx.init(params), set_rate) - compilations(tx, params, tx.init(params)),
        "compiled after a migration": compilations(
            tx, params, migrate(tx, tx.init(params), tx, params).state, set_rate
        ),
        "compiled around MultiSteps": compilations(
            around,
            params,
            migrate(around, around.init(params), around, params).state,
            lambda state: around.set_hyperparams(state, learning_rate=0.5),
        ),
        "value": tx.hyperparams(set_rate(tx.init(params))),
    }


def weights(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    wide = import_params(shapes_on(mesh), WEIGHTS)
    on_host = jax.device_get(wide)
    shapes = shapes_on(mesh, jnp.bfloat16)
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), wide)
    found: dict[str, Any] = {}
    for by in LOW:
        tx = precise_weights(sgd(1e-3), by)
        with copies(shapes) as whole:
            every = [
                with_full_weights(tx, tx.init(low), low, on_host),
                with_full_weights(tx, tx.init(shapes), shapes, wide),
            ]
        found[by] = {
            "lie": lies_like(every, shapes),
            "same": all(same(full_weights(tx, state, params), wide) for params, state in every),
            "whole": whole,
        }
    return found


def with_nnx(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    lies = {"kernel": NamedSharding(mesh, P("x", "y")), "bias": NamedSharding(mesh, P("y"))}
    nnx.update(model, jax.tree.map_with_path(lambda path, p: jax.device_put(p, lies[path[0].key]), nnx.state(model)))
    optimizer = nnx.Optimizer(model, live(adamw(1e-3)), wrt=nnx.Param)

    @nnx.jit
    def step(model: nnx.Linear, optimizer: nnx.Optimizer) -> None:
        optimizer.update(model, jax.tree.map(jnp.sin, nnx.state(model, nnx.Param)))

    step(model, optimizer)
    new = live(adamw(1e-3, amsgrad=True))
    migration = migrate_nnx(optimizer, new, model)
    step(model, optimizer)
    state = nnx.as_pure(nnx.state(optimizer.opt_state))
    optimizer.opt_state = new.set_hyperparams(optimizer.opt_state, learning_rate=0.5)
    rate = jax.tree.leaves(optimizer.opt_state.hyperparams)[0]
    return {
        "lie": lies_like((migration.state, state), nnx.as_pure(nnx.state(model, nnx.Param))),
        "rate": rate.sharding.device_set == set(mesh.devices.flat),
    }


ROWS, COLUMNS, IDS = 1024, 16, 32
COLLECTIVE = re.compile(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
OPTIMIZERS = {"adagrad": adagrad(0.1), "sparse_adam": sparse_adam(0.1)}
TABLES = {  # the optimizer, the shards of the table, and those of the ids
    "adagrad": ("adagrad", P("x", "y"), P("x")),
    "by rows": ("sparse_adam", P("x"), P("x")),
    "by columns": ("sparse_adam", P(None, "y"), P("x")),
    "by both, all ids everywhere": ("sparse_adam", P("x", "y"), P()),
}
GRADIENT = some((8, IDS // 8, COLUMNS), 1)
NUMBERS = np.random.default_rng(0).integers(-ROWS, ROWS, GRADIENT.shape[:2])
NUMBERS[0, :2] = 7  # twice the same


def row_step(optimizer: str) -> Any:
    """The jitted step (table, state, ids, gradient) -> (table, state), and what it starts from."""
    tx, table = OPTIMIZERS[optimizer], some((ROWS, COLUMNS), 0)

    @jax.jit
    def step(table: Any, state: Any, ids: Any, gradient: Any) -> Any:
        updates, state = tx.update(row_gradient(table, ids, gradient), state, table)
        return apply_updates(table, updates), state

    return step, (table, jax.device_get(tx.init(jnp.asarray(table))), NUMBERS, GRADIENT)


@functools.cache
def on_one_device(optimizer: str) -> np.ndarray:
    step, inputs = row_step(optimizer)
    return np.asarray(step(*inputs)[0])


def tables(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """A step on a few rows of a table: where it lies then, and the largest array sent from device to device."""
    found: dict[str, Any] = {}
    for name, (optimizer, spec, split) in TABLES.items():
        step, (table, state, *given) = row_step(optimizer)
        lies, of_ids, everywhere = (NamedSharding(mesh, one) for one in (spec, split, P()))
        on_mesh = jax.tree.map(lambda s, to=(lies, everywhere): jax.device_put(s, to[s.ndim == 0]), (table, state))
        inputs = (*on_mesh, *jax.device_put(given, of_ids))
        compiled = step.lower(*inputs).compile()
        after, state = compiled(*inputs)
        sent = [
            int(np.prod([int(size) for size in dimensions.split(",") if size]))
            for result in COLLECTIVE.findall(compiled.as_text())
            for dimensions in re.findall(r"\[([\d,]*)\]", result)
        ]
        moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        found[name] = {
            "lie": all(one.sharding.is_equivalent_to(lies, 2) for one in (after, *moments)),
            "difference": float(np.abs(np.asarray(after) - on_one_device(optimizer)).max()),
            "sent": max(sent, default=0),
        }
    return found


def main() -> None:
    found: dict[str, Any] = {}
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
        within = jax.set_mesh(mesh) if kind is AxisType.Explicit else contextlib.nullcontext()
        with within:
            found[kind.name] = {
                "imports": imports(mesh),
                "migrations": migrations(mesh),
                "live": live_values(mesh),
                "weights": weights(mesh),
                "nnx": with_nnx(mesh),
                "tables": tables(mesh),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
