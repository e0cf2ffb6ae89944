"""How long it takes until the first step can run: tracing, lowering and compiling it, for linkax's chains and Optax.

The function is the jitted step (parameters, state, gradients) -> (parameters, state), with the first two donated, on
trees of float32 parameters: GPT-2 small's 148 leaves of 9 shapes; 1,000 leaves of 64 numbers; and 60 leaves of 60
different shapes. Nothing runs, and no memory is needed.

    trace      Python: JAX calls the step and records its equations
    lower      from these equations to the compiler's input
    compile    XLA

linkax and Optax alternate, and each starts with empty JAX caches. The times are CPU times of all threads, so that other
work on the machine matters less. The fastest of all rounds counts, separately for each column.

    python benchmarks/startup.py            # a few minutes
    python benchmarks/startup.py --quick    # few leaves, one round: does it still run?
"""

import argparse
import datetime
import os
import platform
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _tables import add_save, check_count, finish
from step_time import gpt2_shapes
from tqdm import tqdm

import linkax

Shapes = dict[str, tuple[int, ...]]

OPTIMIZERS: dict[str, tuple[optax.GradientTransformation, optax.GradientTransformation]] = {
    "sgd_momentum": (linkax.sgd(1e-3, momentum=0.9), optax.sgd(1e-3, 0.9)),
    "adagrad": (linkax.adagrad(1e-3), optax.adagrad(1e-3)),
    "rmsprop": (linkax.rmsprop(1e-3), optax.rmsprop(1e-3, 0.99, eps_in_sqrt=False)),
    "adadelta": (linkax.adadelta(1.0), optax.adadelta(1.0, 0.9, 1e-6)),
    "adam": (linkax.adam(1e-3), optax.adam(1e-3)),
    "amsgrad": (linkax.adam(1e-3, amsgrad=True), optax.amsgrad(1e-3)),
    "adamw": (linkax.adamw(1e-3), optax.adamw(1e-3)),
    "nadam": (linkax.nadam(1e-3), optax.nadam(1e-3)),
}

STAGES = ("trace", "lower", "compile", "total")


def trees(quick: bool) -> dict[str, Shapes]:
    """The shapes of the parameters of every tree."""
    return {
        "gpt2": gpt2_shapes(1000, 64, 64, 1) if quick else gpt2_shapes(50257, 1024, 768, 12),
        "small": {f"leaf{index}": (64,) for index in range(20 if quick else 1000)},
        "different": {f"leaf{index}": (8, 1 + index) for index in range(10 if quick else 60)},
    }


def stages(tx: optax.GradientTransformation, shapes: Shapes) -> list[float]:
    """The seconds of each stage and in total, with empty caches."""
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    state = jax.eval_shape(tx.init, params)
    jax.clear_caches()

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    times = [time.process_time()]
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(params, state, params)
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    lowered.compile()
    times.append(time.process_time())
    return [*np.diff(times), times[-1] - times[0]]


def compare(name: str, shapes: Shapes, rounds: int, progress: tqdm) -> np.ndarray:
    """The seconds of linkax and of Optax, (2, stages): the minimum over all rounds."""
    found = np.empty((rounds, 2, len(STAGES)))
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            found[index, which] = stages(OPTIMIZERS[name][which], shapes)
        progress.update()
    return found.min(axis=0)


HEADER = f"{'optimizer':<14}" + "".join(f"{f'{stage}: linkax / optax, ms':>32}" for stage in STAGES)


def row(name: str, seconds: np.ndarray) -> str:
    """A line of the table: for every stage both times and their ratio."""
    cells = (f"{1e3 * ours:.0f} / {1e3 * theirs:.0f} = {ours / theirs:.2f}" for ours, theirs in seconds.T)
    return f"{name:<14}" + "".join(f"{cell:>32}" for cell in cells)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times everything before the first step: linkax and Optax.")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), metavar="NAME")
    parser.add_argument("--tree", nargs="+", choices=trees(True), default=list(trees(True)), metavar="NAME")
    parser.add_argument("--rounds", type=int, help="how many times each is measured (default: 7)")
    parser.add_argument("--quick", action="store_true", help="few leaves and one round")
    parser.add_argument("--check", type=float, metavar="RATIO", help="fail if a total is more than RATIO times Optax's")
    add_save(parser)
    options = parser.parse_args(arguments)
    check_count(parser, options, "rounds")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and with `--check` checks the ratio."""
    options = parse(arguments)
    rounds = options.rounds or (1 if options.quick else 7)
    lines = [
        f"{datetime.date.today()}: {jax.devices()[0].device_kind}, {platform.machine()} with {os.cpu_count()} cores\n"
        f"python {platform.python_version()}, jax {jax.__version__}, optax {optax.__version__}"
    ]
    print(lines[0])
    wrong = []
    with tqdm(total=len(options.tree) * len(options.optimizers) * rounds, unit="round") as progress:
        for tree in options.tree:
            shapes = trees(options.quick)[tree]
            kinds = len(set(shapes.values()))
            lines.append(f"\n{tree}: {len(shapes)} leaves of {kinds} shapes, {rounds} rounds\n{HEADER}")
            progress.write(lines[-1])
            for name in options.optimizers:
                progress.set_description(f"{tree}, {name}")
                seconds = compare(name, shapes, rounds, progress)
                lines.append(row(name, seconds))
                progress.write(lines[-1])
                ratio = seconds[0, -1] / seconds[1, -1]
                if options.check is not None and ratio > options.check:
                    wrong.append(f"{tree}, {name}: the chain takes {ratio:.2f} times as long as Optax to start")
    finish(options, lines, wrong)


if __name__ == "__main__":
    main()
