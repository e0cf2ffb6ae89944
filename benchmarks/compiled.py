"""What an optimizer step compiles to for a TPU v5e and an H100, on a machine that has neither.

JAX can compile ahead of time for a device that is only described. The compiled step shows what it will do: which loops
over memory there are, which arrays each of them reads and writes, and what has to be stored in between. An optimizer
step is memory-bound, so this is nearly its whole cost.

    pip install "libtpu>=0.0.40"                        # for the TPU
    pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12  # for the H100
    python benchmarks/compiled.py                       # all optimizers, in float32 and with less state: minutes
    python benchmarks/compiled.py --quick --device tpu --optimizers adamw "adamw int8"
    python benchmarks/compiled.py --check --device tpu  # fails if a chain moves more than it needs

With `--check`, a large `linkax.sweep` is compiled for the TPU as well: it must find out by itself how many runs fit.

The compiled function is (parameters, state, gradients) -> (parameters, state), with the first two donated, on leaves
that are too large for any fast memory. Nothing is run, so nothing is timed.

How to read the table, per parameter:

    limit     bytes that must be moved: gradients, parameters and state read, parameters and state written
    bar       what `--check` allows: 1 % more; for state in blocks, whose scales must be known before the first code
              is written, plus a second read of the gradient and the codes
    bytes     what the compiled step reads and writes, by the compiler's count; Optax's in brackets
    temp      bytes of memory in addition to arguments and results
    loops     kernels per leaf that touch an array of the leaf's size; those for scalars and scales are not counted
"""

import argparse
import datetime
import importlib.util
import math
import os
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, get_args
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"  # the target device need not be present
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import optax
from _tables import add_save, finish, size_in_bytes
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

import linkax
from linkax.chains.laboratory import _sweep_points
from linkax.chains.laboratory._design import design_of
from linkax.chains.laboratory._placement import Placement
from linkax.chains.running._precise_weights import By

# At four bits per element these exceed the 128 MiB of fast memory of a TPU v5e. The compiler would otherwise copy whole
# arrays into it in advance, and such copies count as bytes moved.
LEAVES = {"a": (16384, 16384), "b": (32768, 8192)}
QUICK = {"a": (16384, 16384)}
SLACK = 1.01
MOST_TEMP = 0.1  # bytes per parameter; scales and scalars, but no array of the size of a leaf

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84942979072
  cuda_compute_capability { major: 9  feature_extension: ACCELERATED_FEATURES }
  driver_version: "12.9.0"  runtime_version: "12.9.0"  compile_time_toolkit_version: "12.9.0"  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9  minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The device as XLA's `GpuTargetConfigProto`; the numbers are from NVIDIA's data sheet."""


class Device(NamedTuple):
    """A device to compile for."""

    name: str
    platform: str
    module: str  # what must be installed
    topology: Callable[[], Any]


DEVICES = {
    "tpu": Device(
        "TPU v5e",
        "tpu",
        "libtpu",
        lambda: topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", chips_per_host_bounds=[2, 2, 1]),
    ),
    "h100": Device(
        "H100",
        "cuda",
        "jax_cuda12_plugin",
        lambda: topologies.get_topology_desc(
            platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
        ),
    ),
}


class Case(NamedTuple):
    """One optimizer, and Optax's optimizer of the same name."""

    make: Callable[[], optax.GradientTransformation]
    peer: Callable[[], optax.GradientTransformation] | None = None
    weights: Any = jnp.float32
    rereads: float = 0.0  # bytes per parameter that must be read a second time
    is_checked: bool = True


def _states(format: str, rereads: float) -> dict[str, Case]:
    """The named optimizers that have state, with the state stored in a format."""
    makers: dict[str, Callable[..., Any]] = {
        "sgd_momentum": lambda **given: linkax.sgd(1e-3, momentum=0.9, **given),
        "adamw": lambda **given: linkax.adamw(1e-3, **given),
        "nadam": lambda **given: linkax.nadam(1e-3, **given),
    }
    moments = {"sgd_momentum": 1, "adamw": 2, "nadam": 2}
    return {
        f"{name} {format}": Case(
            lambda make=make: make(state=format), rereads=4 + moments[name] * rereads if rereads else 0.0
        )
        for name, make in makers.items()
    }


CASES = {
    "sgd_momentum": Case(lambda: linkax.sgd(1e-3, momentum=0.9), lambda: optax.sgd(1e-3, 0.9)),
    "adagrad": Case(lambda: linkax.adagrad(1e-3), lambda: optax.adagrad(1e-3)),
    "rmsprop": Case(lambda: linkax.rmsprop(1e-3), lambda: optax.rmsprop(1e-3, eps_in_sqrt=False)),
    "adadelta": Case(lambda: linkax.adadelta(1.0), lambda: optax.adadelta(1.0)),
    "adam": Case(lambda: linkax.adam(1e-3), lambda: optax.adam(1e-3)),
    "adamw": Case(lambda: linkax.adamw(1e-3), lambda: optax.adamw(1e-3)),
    "nadam": Case(lambda: linkax.nadam(1e-3), lambda: optax.nadam(1e-3)),
    **_states("bfloat16", 0.0),
    **_states("float8", 1.0),
    **_states("int8", 1.0),
    **_states("int4", 0.5),
    **{
        f"adamw {by}": Case(
            lambda by=by: linkax.precise_weights(linkax.adamw(1e-3), by=by), weights=jnp.bfloat16, is_checked=False
        )
        for by in get_args(By)
    },
}


class Cost(NamedTuple):
    """The cost of a compiled step; bytes are per parameter."""

    limit: float
    moved: float
    temporary: float
    loops: float  # per leaf


def bytes_accessed(compiled: Any) -> float:
    """The compiler's count; for a GPU, JAX offers it only in a private module."""
    analysis = compiled.cost_analysis()
    if analysis is None:
        from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

        module = compiled.runtime_executable().hlo_modules()[0]
        analysis = _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
    return analysis["bytes accessed"]


_MOVES_NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done", "opt-barrier")


def loops_over(compiled: Any, size: int) -> int:
    """How many of the step's kernels touch an array of at least `size` elements."""
    entry = re.search(r"^ENTRY .*?^}", compiled.as_text(), re.DOTALL | re.MULTILINE)
    assert entry is not None
    large, found = set(), 0
    for line in entry.group().splitlines():
        instruction = re.match(r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)", line)
        if instruction is None:
            continue
        name, type_, operation, arguments = instruction.groups()
        shapes = re.findall(r"\w\[([\d,]+)\]", type_)
        if any(math.prod(map(int, shape.split(","))) >= size for shape in shapes):
            large.add(name)
        if operation not in _MOVES_NOTHING and large & {name, *re.findall(r"%([\w.-]+)", arguments)}:
            found += 1
    return found


def cost(tx: optax.GradientTransformation, device: Device, target: Any, shapes: dict, weights: Any) -> Cost:
    """Compiles a step and reads off its cost."""
    sharding = SingleDeviceSharding(target)
    params = {name: jax.ShapeDtypeStruct(shape, weights) for name, shape in shapes.items()}
    args = params, jax.eval_shape(tx.init, params), params
    args = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), args)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    traced = jax.jit(step, donate_argnums=(0, 1)).trace(*args)
    compiled: Any = traced.lower(lowering_platforms=(device.platform,)).compile()
    sizes = [math.prod(shape) for shape in shapes.values()]
    count = sum(sizes)
    limit = (2 * size_in_bytes(args[:2]) + size_in_bytes(args[2])) / count
    temporary: int = compiled.memory_analysis().temp_size_in_bytes
    return Cost(
        limit, bytes_accessed(compiled) / count, temporary / count, loops_over(compiled, min(sizes)) / len(shapes)
    )


SWEEP = 2000, 1024  # runs of Adam, and rows and columns of what they train: 47 GiB, if all ran side by side
FREE = 15.75 * 2**30  # bytes of a TPU v5e


def sweep_sizes(target: Any) -> tuple[int, float]:
    """How many points `linkax.sweep` runs side by side on an empty TPU v5e, and how many bytes that takes there."""
    points, size = SWEEP

    def run(point: dict[str, jax.Array], data: None) -> dict[str, jax.Array]:
        tx, start = linkax.adam(point["learning_rate"]), point["learning_rate"] * jnp.ones((size, size))

        def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
            params, state = carry
            value, gradient = jax.value_and_grad(lambda w: jnp.sum((w @ w - 1) ** 2))(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return {"loss": jax.lax.scan(step, (start, tx.init(start)), length=10)[1]}

    design = design_of({"learning_rate": jnp.linspace(1e-3, 1e-1, points)}, None)
    with (
        mock.patch.object(jax, "default_backend", return_value="tpu"),
        mock.patch.object(_sweep_points, "_free_memory", return_value=FREE),
    ):
        found = _sweep_points.Points(run, design, Placement(devices=[target]))
        found.prepare(None, None)
    assert found._sizes is not None
    return found._sizes.batch, found._programs[0].memory_analysis().temp_size_in_bytes


HEADER = f"{'optimizer':<28}{'limit':>8}{'bar':>8}{'bytes':>10}{'temp':>8}{'loops':>7}   {'Optax: bytes, temp, loops'}"


def row(name: str, bar: float, ours: Cost, theirs: Cost | None) -> str:
    line = f"{name:<28}{ours.limit:>8.2f}{bar:>8.2f}{ours.moved:>10.3f}{ours.temporary:>8.3f}{ours.loops:>7.1f}"
    if theirs is None:
        return line
    return f"{line}   ({theirs.moved:.3f}, {theirs.temporary:.3f}, {theirs.loops:.1f})"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What an optimizer step compiles to, ahead of time.")
    parser.add_argument("--device", nargs="+", choices=DEVICES, default=list(DEVICES), metavar="NAME")
    parser.add_argument("--optimizers", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="one leaf instead of two")
    parser.add_argument("--check", action="store_true", help="fail if a chain takes more than its bar")
    add_save(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles, prints, and with `--check` checks the limits."""
    options = parse(arguments)
    shapes = QUICK if options.quick else LEAVES
    lines = [f"{datetime.date.today()}: jax {jax.__version__}, optax {optax.__version__}"]
    print(lines[0])
    wrong = []
    progress = tqdm(total=len(options.device) * len(options.optimizers), unit="optimizer")
    for device in (DEVICES[name] for name in options.device):
        if importlib.util.find_spec(device.module) is None:
            lines.append(f"\n{device.name}: left out, {device.module} is not installed; the top of this file says how")
            progress.write(lines[-1])
            continue
        target = device.topology().devices[0]
        package = device.module.replace("_", "-")
        leaves = ", ".join(" × ".join(map(str, shape)) for shape in shapes.values())
        lines.append(f"\n{device.name}, {package} {version(package)}; leaves: {leaves}\n{HEADER}")
        progress.write(lines[-1])
        for name in options.optimizers:
            progress.set_description(f"{device.name}, {name}")
            case = CASES[name]
            ours = cost(case.make(), device, target, shapes, case.weights)
            theirs = None if case.peer is None else cost(case.peer(), device, target, shapes, case.weights)
            bar = SLACK * (ours.limit + case.rereads)
            lines.append(row(name, bar, ours, theirs))
            progress.write(lines[-1])
            progress.update()
            if case.is_checked and (ours.moved > bar or ours.temporary > MOST_TEMP):
                wrong.append(
                    f"{device.name}, {name}: {ours.moved:.3f} bytes per parameter and {ours.temporary:.3f} stored; "
                    f"allowed are {bar:.2f} and {MOST_TEMP}"
                )
        if options.check and device.platform == "tpu":
            together, needed = sweep_sizes(target)
            lines.append(f"\nsweep of {SWEEP[0]} runs: {together} side by side, in {needed / 2**30:.2f} GiB")
            progress.write(lines[-1])
            if needed > FREE / 2:
                wrong.append(f"{device.name}, sweep: {needed / 2**30:.2f} GiB; allowed is half of the memory")
    progress.close()
    finish(options, lines, wrong if options.check else [])


if __name__ == "__main__":
    main()
