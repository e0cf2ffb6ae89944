"""What it costs to hand a sweep to Dask: the same points in one process, and by two workers on this machine.

Each point trains a 64-200-10 network with Adam on random data. Both compute the same bits, or nothing is reported. The
cluster is started before, and so is a first sweep of a few points, in which packages are imported.

    python benchmarks/scale_dask.py           # a few minutes
    python benchmarks/scale_dask.py --check   # fails if Dask with two workers costs more than 10 % on the longest sweep
    python benchmarks/scale_dask.py --quick   # seconds: does it still run?

How to read the table:

    points      how many; Dask gets them in chunks of the default size
    seconds     from the call to the table, with tracing and compiling: once in the one process, once in each worker
    CPU         seconds of all cores and processes together, which other work on the machine changes less
    again       the same call once more: the workers remember the compiled program
    overhead    of Dask's CPU seconds over those of the one process
"""

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import xarray
from _tables import add_save, finish
from dask.distributed import Client, LocalCluster

from linkax import adam, sweep

ALLOWED = 10  # % of overhead in the first call
SIZES = (64, 1024)


def training(steps: int) -> Callable[..., dict[str, jax.Array]]:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 64)), jnp.float32)
    y = jnp.arange(32) % 10

    def run(learning_rate: jax.Array, seed: jax.Array) -> dict[str, jax.Array]:
        tx, keys = adam(learning_rate), jax.random.split(jax.random.key(seed))
        params = {"w1": jax.random.normal(keys[0], (64, 200)) / 8, "w2": jax.random.normal(keys[1], (200, 10)) / 14}

        def loss(params: Any) -> jax.Array:
            logits = jax.nn.relu(x @ params["w1"]) @ params["w2"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return {"loss": jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]}

    return run


class Measured(NamedTuple):
    """Seconds by the clock and of all cores, and the table."""

    seconds: float
    cpu: float
    table: xarray.Dataset


def measure(run: Callable, points: int, processes: Sequence[psutil.Process], executor: Any) -> Measured:
    """One sweep; the CPU seconds are those of all `processes` together."""

    def cpu() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    columns = {"learning_rate": np.logspace(-4, -1, points), "seed": np.arange(points)}
    before, start = cpu(), time.perf_counter()
    table = sweep(run, points=columns, executor=executor, progress=False)
    return Measured(time.perf_counter() - start, cpu() - before, table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times a sweep in one process and by two Dask workers.")
    parser.add_argument("--quick", action="store_true", help="few points and steps; --check then has no effect")
    parser.add_argument("--check", action="store_true", help="fail if a promise is not kept")
    add_save(parser)
    options = parser.parse_args()
    sizes, steps = ((16,), 5) if options.quick else (SIZES, 500)

    names = "linkax", "jax", "distributed"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    lines = [
        f"{datetime.date.today()}: {versions}, Python {platform.python_version()}, {os.cpu_count()} CPU cores; "
        f"{steps} steps",
        "        -- one process --  - Dask, 2 workers -  ------ again ------  overhead in %",
        "points  seconds       CPU  seconds         CPU  seconds         CPU    first  again",
    ]
    options_of_cluster = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "host": "127.0.0.1"}
    overhead = float("nan")
    with LocalCluster(**options_of_cluster) as cluster, Client(cluster) as client:
        executor, here = client.get_executor(), psutil.Process()
        pids: Any = client.run(os.getpid)
        everyone = [here, *(psutil.Process(pid) for pid in pids.values())]
        measure(training(1), 8, everyone, executor)
        for size in sizes:
            run = training(steps)
            alone = measure(run, size, [here], None)
            dask = [measure(run, size, everyone, executor) for _ in range(2)]
            if any(there.table["loss"].values.tobytes() != alone.table["loss"].values.tobytes() for there in dask):
                sys.exit(f"{size} points: Dask's workers do not compute the same bits")
            overhead, again = (100 * (there.cpu / alone.cpu - 1) for there in dask)
            cells = "  ".join(f"{there.seconds:7.1f}  {there.cpu:10.1f}" for there in dask)
            lines.append(f"{size:6}  {alone.seconds:7.1f}  {alone.cpu:8.1f}  {cells}  {overhead:7.0f}  {again:5.0f}")
    print("\n".join(lines))
    wrong = [] if options.quick or not options.check or overhead <= ALLOWED else [f"Dask costs {overhead:.0f} % more"]
    finish(options, lines, wrong)


if __name__ == "__main__":
    main()
