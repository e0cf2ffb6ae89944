"""Every named optimizer trains one small network: how its loss falls, how well it does, how long it takes.

Run it with `python examples/compare_optimizers.py` after `pip install "linkax[examples]"`: under a minute on two CPU
cores. It learns scikit-learn's 8×8 digits with a 64-200-10 network; with `--mnist PATH` it learns MNIST with a
784-200-10 network, where PATH is Keras's `mnist.npz` or a folder with the four IDX files.

The learning rates are what one would begin with, PyTorch's defaults where they suit this network; all optimizers start
from the same weights and see the same batches. One sees a table and a picture with all loss curves. It shows what the
optimizers do, not which one is best: that would take a search over the learning rates of each (see `sweep`).
"""

import time
from pathlib import Path

import jax
from _looks import log_scale, look
from _mnist import mnist
from _options import Options
from _training import BATCH, NET, Data, accuracy, digits, epoch
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from linkax.chains import Chain, adadelta, adagrad, adam, adamw, nadam, rmsprop, sgd

OPTIMIZERS = {
    "SGD": sgd(0.1),
    "SGD, momentum": sgd(0.02, momentum=0.9),
    "SGD, Nesterov": sgd(0.02, momentum=0.9, nesterov=True),
    "Adagrad": adagrad(0.01),
    "RMSprop": rmsprop(1e-3),
    "Adadelta": adadelta(1.0),
    "Adam": adam(1e-3),
    "AMSGrad": adam(1e-3, amsgrad=True),
    "AdamW": adamw(1e-3),
    "NAdam": nadam(2e-3),
}


def train(tx: Chain, data: Data, epochs: int, bar: tqdm) -> tuple[list[float], float, float]:
    """The mean loss of every epoch, the test accuracy in %, and the seconds that the epochs took, once compiled."""
    init_key, order_key = jax.random.split(jax.random.key(0))
    params = NET.init(init_key, data.x)
    state = tx.init(params)
    keys = list(jax.random.split(order_key, epochs))
    run = jax.jit(lambda data, *rest: epoch(tx, data, *rest)).lower(data, params, state, keys[0]).compile()
    losses, start = [], time.perf_counter()
    for key in keys:
        params, state, loss = run(data, params, state, key)
        losses.append(float(loss))
        bar.update()
    seconds = time.perf_counter() - start
    return losses, float(accuracy(data, params)), seconds


def draw(curves: dict[str, list[float]], title: str, out: Path) -> None:
    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    log_scale(axes)
    for i, (name, losses) in enumerate(curves.items()):
        # Markers at different epochs show which curves lie on top of each other.
        axes.plot(range(1, len(losses) + 1), losses, **look(name), markersize=6, label=name, markevery=(i % 4, 4))
    axes.set(xlabel="epoch", ylabel="training loss (cross-entropy in nats, mean over the epoch)")
    axes.set_title(title, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.5)
    figure.savefig(out)


def main() -> None:
    options = Options("Every named optimizer trains the same small network.", "compare_optimizers.png")
    options.add_count("epochs", "passes over the training set", 10, quick=2)
    options.add_argument("--mnist", type=Path, help="mnist.npz, or a folder with the IDX files; the digits if left out")
    args = options.parse()
    try:
        data = digits() if args.mnist is None else mnist(args.mnist)
    except ValueError as error:
        options.error(str(error))
    what = "scikit-learn's digits" if args.mnist is None else "MNIST"
    title = f"{data.x.shape[1]}-200-10 network on {what}: {len(data.x)} images in batches of {BATCH}"
    print(title)

    curves, rows = {}, []
    with tqdm(total=args.epochs * len(OPTIMIZERS), unit="epoch") as bar:
        for name, tx in OPTIMIZERS.items():
            bar.set_description(f"{name:<13}")
            curves[name], correct, seconds = train(tx, data, args.epochs, bar)
            rows.append(f"{name:<13}  {curves[name][-1]:10.4f}  {correct:13.2f}  {seconds:8.3f}")
    print("\nloss by epoch  " + " ".join(f"{epoch:>7}" for epoch in range(1, args.epochs + 1)))
    for name, losses in curves.items():
        print(f"{name:<13}  " + " ".join(f"{loss:7.4f}" for loss in losses))
    print(f"\n{'optimizer':<13}  final loss  accuracy in %   seconds")
    print("\n".join(rows))
    draw(curves, title, args.out)
    print(f"(loss: mean over an epoch; seconds: without compiling)\nThe picture is {args.out}")


if __name__ == "__main__":
    main()
