"""What each way of sharding costs: bytes of parameters and state per device, and what a step sends between devices.

    python benchmarks/sharding.py              # eight pretended CPU devices: seconds
    pip install "libtpu>=0.0.40"
    python benchmarks/sharding.py --device tpu # as compiled for eight TPU v5e, of which none has to be there

A two-layer network is trained by AdamW with clipping of the global norm; the batch is split over all devices that hold
the same parameters. The step is compiled and not run, so nothing is timed.

How to read the table: parameters and state in bytes per device and parameter (a float32 is 4), as the compiler lays
them out; then the collectives of one step, with the bytes per parameter that each returns on a device.
"""

import argparse
import collections
import datetime
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # the TPU need not be present
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _tables import add_save, save
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import linkax
from linkax.transforms import clip_grad_norm

SHAPES = {"up": (1024, 4096), "bias": (4096,), "down": (4096, 1024)}
QUICK = {"up": (128, 512), "bias": (512,), "down": (512, 128)}
BATCH = 8192  # more than the width, as in practice: weights are smaller than activations

TENSOR = {"up": (None, "model"), "bias": ("model",), "down": ("model", None)}


class Mode(NamedTuple):
    """A way of sharding: the mesh, the parameters on it, and what is split over more of it."""

    name: str
    model: int = 1  # devices among which a tensor is split (tensor parallelism)
    params_over: str | None = None
    state_over: str | None = None
    grads_over: str | None = None
    state: Any = None  # the format of the moments


MODES = [
    Mode("data parallel"),
    Mode("ZeRO-1", state_over="data"),
    Mode("ZeRO-2", state_over="data", grads_over="data"),
    Mode("FSDP (ZeRO-3)", params_over="data"),
    Mode("tensor parallel", model=8),
    Mode("FSDP + tensor parallel", model=2, params_over="data"),
    Mode("tensor parallel + ZeRO-1", model=2, state_over="data"),
    Mode("ZeRO-1, state in int8", state_over="data", state="int8"),
]


def compiled_step(mode: Mode, devices: Sequence[Any], shapes: dict[str, tuple[int, ...]]) -> tuple[Any, Any, Any]:
    """The compiled step, and where the parameters and the state are in it, as shapes with shardings."""
    mesh = Mesh(np.array(devices).reshape(-1, mode.model), ("data", "model"))

    def on_mesh(shape: tuple[int, ...], *axes: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    whole = {name: on_mesh(shape, *(TENSOR[name] if mode.model > 1 else ())) for name, shape in shapes.items()}
    shardings = linkax.param_shardings(whole, over=mode.params_over)
    params = {name: one.update(sharding=shardings[name]) for name, one in whole.items()}
    tx = linkax.chain(clip_grad_norm(1.0), linkax.adamw(1e-3, state=mode.state))
    of_state = linkax.state_shardings(tx, params, over=mode.state_over)
    of_grads = linkax.param_shardings(params, over=mode.grads_over)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(x @ params["up"] + params["bias"][None])
        return jnp.mean((hidden @ params["down"]) ** 2)

    def step(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        grads = jax.lax.with_sharding_constraint(jax.grad(loss)(params, x), of_grads)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(jax.jit(tx.init, out_shardings=of_state), params)
    x = on_mesh((BATCH * mesh.shape["data"], shapes["up"][0]), "data")
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(shardings, of_state))
    lowered = jitted.trace(params, state, x).lower(lowering_platforms=(devices[0].platform,))
    # Each collective as one operation, not overlapped with parts of a matrix product.
    options: Any = (
        {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"} if devices[0].platform == "tpu" else None
    )
    return lowered.compile(options), params, state


def bytes_per_device(tree: Any) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


_COLLECTIVE = re.compile(
    r"%(\S+) = (\([^=]*?\)|\S+) (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)(?:-start)?\("
)
_SLICED = re.compile(r"ROOT \S+ = (\S+) dynamic-slice\(%(all-reduce[\w.-]*)[,)]")
_BITS = {"f32": 32, "bf16": 16, "s32": 32, "u32": 32, "s8": 8, "u8": 8, "pred": 8}


def collectives(text: str) -> dict[str, int]:
    """The bytes that the collectives of a compiled function return on a device, by their kind.

    A TPU has a reduce-scatter in the form of a fused all-reduce and slice.
    """
    sliced = {name: type_ for type_, name in _SLICED.findall(text)}
    found: dict[str, int] = collections.Counter()
    for name, types, kind in _COLLECTIVE.findall(text):
        kind, types = ("reduce-scatter", sliced[name]) if name in sliced else (kind, types)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", types):
            found[kind] += _BITS[dtype] * math.prod(map(int, filter(None, dims.split(",")))) // 8
    return found


def row(mode: Mode, devices: Sequence[Any], shapes: dict[str, tuple[int, ...]]) -> str:
    compiled, params, state = compiled_step(mode, devices, shapes)
    count = sum(map(math.prod, shapes.values()))
    sent = collectives(compiled.as_text())
    texts = [f"{kind} {size / count:.2f}" for kind, size in sorted(sent.items()) if size / count >= 0.01]
    own, its = (bytes_per_device(tree) / count for tree in (params, state))
    return f"{mode.name:<28}{own:>8.2f}{its:>8.2f}   {', '.join(texts)}"


def devices_of(name: str) -> Sequence[Any]:
    if name == "cpu":
        return jax.devices()
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices


def main() -> None:
    parser = argparse.ArgumentParser(description="What each way of sharding costs.")
    parser.add_argument("--device", choices=("cpu", "tpu"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a smaller network")
    add_save(parser)
    options = parser.parse_args()
    lines = [
        f"{datetime.date.today()}: jax {jax.__version__}, eight devices ({options.device})",
        f"{'':<28}{'params':>8}{'state':>8}   collectives of a step, bytes per parameter",
    ]
    print("\n".join(lines))
    for mode in MODES:
        lines.append(row(mode, devices_of(options.device), QUICK if options.quick else SHAPES))
        print(lines[-1], flush=True)
    save(options, lines)


if __name__ == "__main__":
    main()
