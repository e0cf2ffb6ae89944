"""How long a grid of training runs takes: linkax's `sweep`, loops over Optax, and a loop over PyTorch.

The grid has 8 learning rates × 8 decays × {L2, decoupled}: 128 training runs of a 64-200-10 network with Adam, 30
epochs of scikit-learn's digits. All contenders start from the same weights and use the same batches, and nothing is
reported unless their test accuracies agree. They alternate, each in its own process; results are medians of `--repeats`
such rounds.

    linkax                 one call of `sweep`, which keeps all cores busy; the loops do one run at a time
    Optax, jitted once     a loop over one jitted training run for each kind of decay, with `optax.inject_hyperparams`
    Optax, jitted anew     a loop that jits each configuration, as happens with a function of Python numbers
    PyTorch                a loop over training runs as in its documentation, with its defaults
    PyTorch, fused         the same with `fused=True` and a single thread, its fastest setting here

    python benchmarks/sweep.py                      # everything: a quarter of an hour
    python benchmarks/sweep.py --repeats 1 --check  # fails if sweep, with compiling, is not 10 × as fast as PyTorch,
                                                    # or if its time grows faster than the grid from 16 to 1,024
    python benchmarks/sweep.py --quick              # a small grid, seconds: does it still run?

How to read the table:

    seconds       everything except importing the packages and loading the data: tracing, compiling, running
    compiling     how much of it was tracing and compiling, as JAX counts it
    / linkax      seconds, divided by those of the first line; and the same without compiling
    MiB           the process's peak resident memory, and how much of it was used before the grid started
"""

import argparse
import datetime
import importlib.util
import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
from _tables import add_save, check_count, save
from sklearn.datasets import load_digits
from tqdm import tqdm

from linkax import adam, adamw, sweep

BATCH, HIDDEN = 32, 200
# Percentage points: the median difference of the accuracies, for each kind of decay; rounding changes a few images.
AGREEMENT = 1.0
FASTER_THAN_PYTORCH = 10
SIZES = (16, 64, 256, 1024)


class Task(NamedTuple):
    """The grid, and everything that its training runs start from; `orders` are the batches, one per row."""

    learning_rates: np.ndarray
    decays: np.ndarray
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    orders: np.ndarray
    weights: list[np.ndarray]

    @property
    def grid(self) -> Iterable[tuple[str, float, float]]:
        return itertools.product(("L2", "decoupled"), self.learning_rates.tolist(), self.decays.tolist())


def task(configurations: int, epochs: int) -> Task:
    """The task with a grid of this many configurations: two kinds of decay times a square or rectangle of the rest."""
    rates = 2 ** (int(np.log2(configurations // 2)) // 2)
    images, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    rng = np.random.default_rng(0)
    images, labels = (array[rng.permutation(len(images))] for array in (images.astype(np.float32) / 16, labels))
    train = len(images) * 4 // 5
    orders = np.stack([rng.permutation(train)[: train // BATCH * BATCH] for _ in range(epochs)]).reshape(-1, BATCH)
    shapes = [(64, HIDDEN), (HIDDEN, 10)]
    weights = [rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32) for shape in shapes]
    return Task(
        np.logspace(-4, -2, rates, dtype=np.float32),
        np.logspace(-4, 0, configurations // 2 // rates, dtype=np.float32),
        *(images[:train], labels[:train], images[train:], labels[train:], orders, weights),
    )


def training(task: Task) -> Callable[[optax.GradientTransformation], dict[str, jax.Array]]:
    """The training run in JAX, the same for all of its contenders: from a transformation to the test accuracy."""
    x, y, x_test, y_test, orders = (jnp.asarray(array) for array in task[2:7])
    first, second = (jnp.asarray(weight) for weight in task.weights)
    start = {"w1": first, "b1": jnp.zeros(HIDDEN), "w2": second, "b2": jnp.zeros(10)}

    def apply(params: dict, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]

    def loss(params: dict, batch: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, x[batch]), y[batch]).mean()

    def train(tx: optax.GradientTransformation) -> dict[str, jax.Array]:
        def step(carry: tuple, batch: jax.Array) -> tuple[tuple, None]:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), orders)
        return {"accuracy": 100 * (apply(params, x_test).argmax(axis=-1) == y_test).mean()}

    return train


def linkax(task: Task) -> list[float]:
    variants = {
        "L2": lambda learning_rate, weight_decay: adam(learning_rate, weight_decay=weight_decay),
        "decoupled": lambda learning_rate, weight_decay: adamw(learning_rate, weight_decay=weight_decay),
    }
    grid = {"learning_rate": task.learning_rates, "weight_decay": task.decays}
    return sweep(training(task), grid, variants, progress=False)["accuracy"].values.ravel().tolist()


def optax_adam(kind: str, learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
    if kind == "decoupled":
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))


def optax_jitted_once(task: Task) -> list[float]:
    train = training(task)

    @jax.jit(static_argnums=0)
    def run(kind: str, learning_rate: jax.Array, weight_decay: jax.Array) -> jax.Array:
        inject = optax.inject_hyperparams(
            lambda learning_rate, weight_decay: optax_adam(kind, learning_rate, weight_decay)
        )
        return train(inject(learning_rate=learning_rate, weight_decay=weight_decay))["accuracy"]

    return [float(run(*configuration)) for configuration in task.grid]


def optax_jitted_anew(task: Task) -> list[float]:
    train = training(task)

    def run(kind: str, learning_rate: float, weight_decay: float) -> float:
        return float(jax.jit(lambda: train(optax_adam(kind, learning_rate, weight_decay))["accuracy"])())

    return [run(*configuration) for configuration in task.grid]


def pytorch(task: Task, fused: bool | None = None) -> list[float]:
    import torch

    x, y, x_test, y_test, orders = (torch.from_numpy(array) for array in task[2:7])

    def run(kind: str, learning_rate: float, weight_decay: float) -> float:
        layers = torch.nn.Linear(64, HIDDEN), torch.nn.Linear(HIDDEN, 10)
        net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
        with torch.no_grad():
            for layer, weight in zip(layers, task.weights):
                layer.weight.copy_(torch.from_numpy(weight.T))
                layer.bias.zero_()
        make = torch.optim.AdamW if kind == "decoupled" else torch.optim.Adam
        optimizer = make(net.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=fused)
        for batch in orders:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            return 100 * (net(x_test).argmax(dim=-1) == y_test).float().mean().item()

    return [run(*configuration) for configuration in task.grid]


def pytorch_fused(task: Task) -> list[float]:
    import torch

    torch.set_num_threads(1)
    return pytorch(task, fused=True)


CONTENDERS = {
    "linkax": linkax,
    "Optax, jitted once": optax_jitted_once,
    "Optax, jitted anew": optax_jitted_anew,
    "PyTorch": pytorch,
    "PyTorch, fused": pytorch_fused,
}
PYTORCH = ("PyTorch", "PyTorch, fused")


class Result(NamedTuple):
    """What one process measured: seconds in total and compiling, MiB before and at the peak, and the accuracies."""

    seconds: float
    compiling: float
    before: float
    peak: float
    accuracies: list[float]

    @property
    def running(self) -> float:
        return self.seconds - self.compiling


def measure(name: str, configurations: int, epochs: int) -> Result:
    """Runs a contender in this process."""
    spans: list[tuple[float, float]] = []

    def count(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):  # tracing, lowering, compiling
            spans.append((time.perf_counter() - duration_secs, time.perf_counter()))

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

    if name in PYTORCH:
        import torch  # noqa: F401  (importing is not measured)
    what = task(configurations, epochs)
    jax.block_until_ready(jnp.zeros(()) + 1)  # JAX starts its devices
    jax.monitoring.register_event_duration_secs_listener(count)
    before, start = peak(), time.perf_counter()
    accuracies = CONTENDERS[name](what)
    return Result(time.perf_counter() - start, covered(spans), before, peak(), accuracies)


def covered(spans: list[tuple[float, float]]) -> float:
    """The time covered by any of the spans: tracing is nested, and compilation for several devices runs in parallel."""
    total, end = 0.0, -math.inf
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def measure_elsewhere(name: str, configurations: int, epochs: int) -> Result:
    """Runs a contender in its own process, so that none finds another's compiled programs or memory."""
    command = [sys.executable, __file__, "--contender", name, "--size", str(configurations), "--epochs", str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return Result(*json.loads(done.stdout.splitlines()[-1]))


def median(results: list[Result]) -> Result:
    seconds, compiling, before, peak = (statistics.median(column) for column in list(zip(*results))[:4])
    return Result(seconds, compiling, before, peak, results[0].accuracies)


def compare(results: dict[str, Result]) -> list[str]:
    """The table's lines; exits if the contenders did not train the same thing."""
    first = results["linkax"]
    lines = [f"{'':<18}  {'seconds':>7}  {'compiling':>9}  {'/ linkax':>8}  {'without':>7}  {'MiB':>5}  {'before':>6}"]
    for name, it in results.items():
        pairs = list(zip(it.accuracies, first.accuracies))
        kinds = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]  # of decay: neither must hide the other
        apart = max(statistics.median(abs(a - b) for a, b in kind) for kind in kinds)
        if apart > AGREEMENT:
            sys.exit(f"{name} is {apart:.2f} percentage points away from linkax: it does not train the same thing")
        ratios = f"{it.seconds / first.seconds:8.2f}  {it.running / first.running:7.2f}"
        lines.append(f"{name:<18}  {it.seconds:7.2f}  {it.compiling:9.2f}  {ratios}  {it.peak:5.0f}  {it.before:6.0f}")
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times a grid of training runs: linkax, Optax, PyTorch.")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender (default: 3)")
    parser.add_argument("--quick", action="store_true", help="small grids and few epochs; --check then has no effect")
    parser.add_argument("--check", action="store_true", help="fail if a promise is not kept")
    add_save(parser)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)  # the rest is for the subprocesses
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    check_count(parser, options, "repeats")
    return options


def versions() -> str:
    names = [name for name in ("linkax", "jax", "optax", "torch") if importlib.util.find_spec(name)]
    found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"{datetime.date.today()}: {found}, Python {platform.python_version()}, {os.cpu_count()} CPU cores"


def main() -> None:
    options = parse()
    if options.contender:
        print(json.dumps(measure(options.contender, options.size, options.epochs)))
        return
    epochs, size, sizes = (2, 8, (8, 32)) if options.quick else (30, 128, SIZES)
    repeats = 1 if options.quick else options.repeats
    contenders = CONTENDERS
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, so it is left out; `pip install torch` adds it.")
        contenders = {name: run for name, run in contenders.items() if name not in PYTORCH}

    runs: dict[str, list[Result]] = {name: [] for name in contenders}
    growth: dict[int, list[Result]] = {count: [] for count in sizes}
    with tqdm(total=repeats * (len(runs) + len(growth)), unit="run") as bar:
        for _ in range(repeats):
            for name, results in runs.items():
                bar.set_description(name)
                results.append(measure_elsewhere(name, size, epochs))
                bar.update()
            for count, results in growth.items():
                bar.set_description(f"linkax, {count}")
                results.append(measure_elsewhere("linkax", count, epochs))
                bar.update()
    medians = {name: median(results) for name, results in runs.items()}
    lines = [
        f"{versions()}; medians of {repeats}",
        f"\n{size} configurations, {epochs} epochs",
    ]
    lines += compare(medians)
    lines.append(f"\nlinkax, {'configurations':>14}  seconds  compiling  ms per configuration, running    MiB")
    sized = {count: median(results) for count, results in growth.items()}
    for count, it in sized.items():
        each = 1000 * it.running / count
        lines.append(f"{count:22}  {it.seconds:7.2f}  {it.compiling:9.2f}  {each:29.2f}  {it.peak:5.0f}")
    print("\n".join(lines))
    save(options, lines)
    if options.check and not options.quick:
        judge(medians, sized)


def judge(medians: dict[str, Result], sized: dict[int, Result]) -> None:
    few, many = min(sized), max(sized)
    growth = sized[many].seconds / sized[few].seconds
    if growth > many / few:
        sys.exit(f"{many} configurations take {growth:.1f} times as long as {few}, more than {many / few:.0f}")
    if "PyTorch" in medians and medians["PyTorch"].seconds < FASTER_THAN_PYTORCH * medians["linkax"].seconds:
        sys.exit(f"PyTorch takes less than {FASTER_THAN_PYTORCH} times as long as linkax")


if __name__ == "__main__":
    main()
