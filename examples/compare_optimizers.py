"""Every named optimizer trains one small network, each at its best learning rate: loss curves, accuracy and time.

Run it with `python examples/compare_optimizers.py` after `pip install "linkax[examples]"`: a minute on two CPU cores.
It learns scikit-learn's 8×8 digits with a 64-200-10 network; with `--mnist PATH` it learns MNIST with a 784-200-10
network (an hour), where PATH is Keras's `mnist.npz` or a folder with the four IDX files.

Each optimizer is trained with 13 learning rates, evenly spaced on a logarithmic axis, in one `sweep`. The curve shown
is that of the rate with the lowest training loss, as a geometric mean over epochs and seeds, so that neither a slow end
nor an explosion at the beginning is chosen; everything else has PyTorch's defaults.
All optimizers start from the same weights and see the same batches. It prints the losses and a table, and draws all
curves.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from _looks import log_scale, look, save
from _mnist import mnist
from _optimizers import OPTIMIZERS
from _options import Options
from _training import BATCH, NET, Data, digits, epoch, train
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from matplotlib.ticker import MaxNLocator

from linkax import Chain, sweep

LEARNING_RATES = np.logspace(-4, 2, 13)


def seconds_per_epoch(tx: Chain, data: Data) -> float:
    """The shortest of three epochs, once compiled."""
    params = NET.init(jax.random.key(0), data.x)
    run = jax.jit(partial(epoch, tx)).lower(data, params, tx.init(params), jax.random.key(0)).compile()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(run(data, params, tx.init(params), jax.random.key(0)))
        times.append(time.perf_counter() - start)
    return min(times)


def draw(curves: dict[str, tuple[float, np.ndarray]], title: str, args: argparse.Namespace) -> None:
    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    log_scale(axes)
    for i, (name, (rate, losses)) in enumerate(curves.items()):
        # Markers at different epochs show which curves lie on top of each other.
        axes.plot(
            *(range(1, len(losses) + 1), losses),
            **look(name) | {"markersize": 6, "markevery": (i % 4, 4)},
            label=f"{name}, {rate:.2g}",
        )
    axes.set(xlabel="epoch", ylabel="training loss (cross-entropy in nats, mean over the epoch)")
    axes.set_title(title, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3, which="both")
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.5, title="optimizer, its best\nlearning rate"
    )
    save(figure, args)


def main() -> None:
    options = Options("Every named optimizer trains the same small network.", "compare_optimizers.png")
    options.add_count("epochs", "passes over the training set", 10, quick=2)
    options.add_count("seeds", "runs for each learning rate", 10, quick=1)
    options.add_argument("--mnist", type=Path, help="mnist.npz, or a folder with the IDX files; the digits if left out")
    args = options.parse()
    try:
        data = digits() if args.mnist is None else mnist(args.mnist)
    except ValueError as error:
        options.error(str(error))
    rates = LEARNING_RATES[::4] if args.quick else LEARNING_RATES

    table = sweep(
        partial(train, data=data, epochs=args.epochs),
        {"learning_rate": rates, "seed": range(args.seeds)},
        OPTIMIZERS,
        metric_dims={"loss": ["epoch"]},
    )
    logarithm = table["loss"].copy(data=np.log(table["loss"]))
    height = logarithm.mean(["epoch", "seed"], skipna=False).fillna(np.inf)  # where it diverged
    best = table.isel(learning_rate=height.argmin("learning_rate"))
    curves, rows = {}, []
    for name, optimizer in OPTIMIZERS.items():
        at = best.sel(variant=name)
        rate, losses = float(at["learning_rate"]), at["loss"].mean("seed").values
        curves[name] = rate, losses
        edge = " (the edge of the search)" if rate in (rates[0], rates[-1]) else ""
        rows.append(
            f"{name:<13}  {rate:13.2g}  {losses[-1]:10.4f}  {float(at['accuracy'].mean()):13.2f}"
            f"  {1000 * seconds_per_epoch(optimizer(rate), data):12.1f}{edge}"
        )
    print("\nloss by epoch  " + " ".join(f"{epoch:>7}" for epoch in range(1, args.epochs + 1)))
    for name, (_, losses) in curves.items():
        print(f"{name:<13}  " + " ".join(f"{loss:7.4f}" for loss in losses))
    print(f"\n{'optimizer':<13}  learning rate  final loss  accuracy in %  ms per epoch")
    print("\n".join(rows))
    print(f"(means over seeds; loss: mean over an epoch; time: once compiled, {len(data.x) // BATCH} steps)")
    what = "scikit-learn's digits" if args.mnist is None else "MNIST"
    draw(
        curves,
        f"How fast does each optimizer fit {what}, at its best learning rate?\n"
        f"{data.x.shape[1]}-200-10 network, {len(data.x)} images in batches of {BATCH}; means of {args.seeds} seeds",
        args,
    )


if __name__ == "__main__":
    main()
