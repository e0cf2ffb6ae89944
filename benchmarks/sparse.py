"""The cost of a step when a batch touches a few rows of a table: does it scale with the rows, or with the table?

The table has 10⁴ to 10⁶ rows of 64 float32 numbers, of which a step touches 1,024, some of them twice. The timed
function is the jitted step (table, state, gradient) -> (table, state), with the first two donated: once with a
row-sparse gradient, and once with the same gradient as a whole table. The two alternate; results are medians of
`--rounds` steps. (Even the touched rows take longer in a larger table, once it does not fit into the processor's
caches.)

    python benchmarks/sparse.py            # a minute, 2 GB of memory
    python benchmarks/sparse.py --check    # fails if a row-sparse step on 10⁶ rows costs 5 times what it does on 10⁴
    python benchmarks/sparse.py --quick    # small tables, seconds: does it still run?
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _tables import add_save, check_count, finish
from tqdm import tqdm

from linkax import Chain, adagrad, apply_updates, sgd, sparse_adam
from linkax.transforms import row_gradient

OPTIMIZERS = {"sgd": sgd(0.1), "adagrad": adagrad(0.1), "sparse_adam": sparse_adam(0.1)}
WIDTH, MOST = 64, 5.0


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def step(tx: Chain, table: jax.Array, state: Any, gradient: Any) -> tuple[jax.Array, Any]:
    updates, state = tx.update(gradient, state, table)
    return apply_updates(table, updates), state


def measure(tx: Chain, rows: int, touched: int, rounds: int) -> dict[str, float]:
    """Milliseconds per step, by kind of gradient."""
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, rows, touched))
    sparse = row_gradient(jnp.zeros((rows, WIDTH)), ids, rng.normal(size=(touched, WIDTH)).astype(np.float32))
    gradients = {"touched rows": sparse, "whole table": jax.jit(lambda g: g.todense())(sparse)}
    runs = {name: (jnp.zeros((rows, WIDTH)), tx.init(jnp.zeros((rows, WIDTH)))) for name in gradients}
    times: dict[str, list[float]] = {name: [] for name in gradients}
    for _ in range(rounds + 2):  # the first round compiles
        for name, gradient in gradients.items():
            start = time.perf_counter()
            runs[name] = jax.block_until_ready(step(tx, *runs[name], gradient))
            times[name].append(1000 * (time.perf_counter() - start))
    touched_rows = np.unique(np.asarray(ids))
    a, b = (np.asarray(table[touched_rows]) for table, _ in runs.values())
    if not np.allclose(a, b, rtol=1e-4, atol=1e-6):
        sys.exit(f"the two steps on {rows} rows have different results")
    return {name: float(np.median(values[2:])) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Times steps that touch a few rows of a large table.")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each kind (default: 20)")
    parser.add_argument("--quick", action="store_true", help="small tables; --check then has no effect")
    parser.add_argument("--check", action="store_true", help="fail if the cost scales with the table")
    add_save(parser)
    options = parser.parse_args()
    check_count(parser, options, "rounds")
    sizes, touched = ((1000, 10_000), 64) if options.quick else ((10_000, 100_000, 1_000_000), 1024)
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    versions = (
        f"Python {platform.python_version()}, jax {jax.__version__}, linkax {importlib.metadata.version('linkax')}"
    )
    lines = [f"{datetime.date.today()}: {versions}, {device}; {touched} touched rows, ms per step"]
    lines.append(f"{'':<12}  {'rows':>9}  {'touched rows':>12}  {'whole table':>11}  {'ratio':>6}")
    wrong = []
    with tqdm(total=len(OPTIMIZERS) * len(sizes), unit="table") as bar:
        for name, tx in OPTIMIZERS.items():
            found = {}
            for rows in sizes:
                bar.set_description(f"{name}, {rows}")
                found[rows] = ms = measure(tx, rows, touched, options.rounds)
                numbers = f"{ms['touched rows']:12.3f}  {ms['whole table']:11.3f}"
                lines.append(f"{name:<12}  {rows:9,}  {numbers}  {ms['whole table'] / ms['touched rows']:6.1f}")
                bar.update()
            growth = found[sizes[-1]]["touched rows"] / found[sizes[0]]["touched rows"]
            if growth > MOST:
                wrong.append(
                    f"{name}: a row-sparse step costs {growth:.1f} times as much on {sizes[-1]} rows as on {sizes[0]}"
                )
    print("\n".join(lines))
    finish(options, lines, wrong if options.check and not options.quick else [])


if __name__ == "__main__":
    main()
