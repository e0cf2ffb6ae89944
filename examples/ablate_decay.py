"""Does it matter where weight decay enters Adam, and does its best strength depend on the learning rate?

Run it with `python examples/ablate_decay.py` after `pip install "linkax[examples]"`: under a minute on two CPU cores.

A small network learns scikit-learn's handwritten digits with two chains that differ in one link: Adam with L2
(`add_l2_to_grad`), and the same with that link swapped for `decoupled_weight_decay`, which is AdamW. Only kernels
decay. A fifth of the training labels is drawn at random, so that there is something to overfit to. Seeds change the
initialisation and the batches, not the split. The best λ is chosen on the test set, which flatters both kinds of decay.

One sees the link that differs, a table, and two heat maps on one scale: test accuracy over learning rate and decay.
Adam divides L2's decay by √V, like the rest of the gradient, and √V is small; decoupled decay goes around it, so that
the best strengths are far apart. Loshchilov and Hutter, 2019, claim that decoupled decay can be tuned apart from the
learning rate. The number for that is how far the best λ moves when the learning rate grows tenfold: a factor of 1 would
be complete separation. λ is PyTorch's, which AdamW multiplies by the learning rate α; the paper's own decay is αλ.
"""

from functools import partial
from pathlib import Path

import numpy as np
from _options import Options
from _training import digits, train
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from matplotlib.patches import Rectangle

from linkax.chains import Chain, adam, diff, sweep
from linkax.transforms import Rate, decoupled_weight_decay, matrices_only

LEARNING_RATES = [1e-3, 2e-3, 4e-3, 8e-3, 0.016, 0.032]
DECAYS = [0, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 3, 10]  # 0: without decay
RESAMPLINGS = 2000


def l2(learning_rate: Rate, weight_decay: Rate) -> Chain:
    return adam(learning_rate, weight_decay=weight_decay, weight_decay_mask=matrices_only)


def decoupled(learning_rate: Rate, weight_decay: Rate) -> Chain:
    tx = l2(learning_rate, weight_decay)
    return tx.swap("add_l2_to_grad", decoupled_weight_decay(weight_decay, matrices_only))


def movement(accuracy: np.ndarray, learning_rates: list[float], decays: list[float]) -> np.ndarray:
    """By what factor the best decay moves per tenfold learning rate: the estimate and its 95 % interval.

    `accuracy` has the dimensions learning rate, decay and seed. The factor is the slope of a line through the best
    decays, on logarithmic axes; seeds drawn anew, with replacement, say how far chance moves it. A parabola through the
    best cell and its neighbours says where between the cells the best decay is.
    """
    seeds = accuracy.shape[-1]
    draws = np.random.default_rng(0).integers(0, seeds, (RESAMPLINGS, seeds))
    draws = np.concatenate([np.arange(seeds)[None], draws])  # the first one is the experiment itself
    means = accuracy[:, 1:, draws].mean(axis=-1)  # no decay at all has no place on a logarithmic axis
    best = means.argmax(axis=1, keepdims=True)
    inner = best.clip(1, means.shape[1] - 2)
    left, middle, right = (np.take_along_axis(means, inner + i, 1)[:, 0] for i in (-1, 0, 1))
    bend = np.where(inner[:, 0] == best[:, 0], left - 2 * middle + right, 0)  # at the edge there is no vertex
    vertex = np.divide(left - right, 2 * bend, out=np.zeros_like(bend), where=bend < 0)
    places = np.interp(best[:, 0] + vertex, range(means.shape[1]), np.log10(decays[1:]))
    slopes = np.polyfit(np.log10(learning_rates), places, 1)[0]
    return 10 ** np.array([slopes[0], *np.quantile(slopes[1:], [0.025, 0.975])])


def report(means: dict[str, np.ndarray], errors: dict[str, np.ndarray], learning_rates: list[float]) -> None:
    print(f"\n{'learning rate':>13}  {'no decay':>12}", end="")
    print("".join(f"  {f'{kind}, best λ':>17}  {'accuracy in %':>13}" for kind in means))
    for row, rate in enumerate(learning_rates):
        first = next(iter(means))
        print(f"{rate:13g}  {means[first][row, 0]:5.2f} ± {errors[first][row, 0]:.2f}", end="")
        for kind, mean in means.items():
            best = mean[row].argmax()
            print(f"  {DECAYS[best]:17g}  {mean[row, best]:6.2f} ± {errors[kind][row, best]:4.2f}", end="")
        print()
    print("(± the standard error over seeds)")


def draw(means: dict[str, np.ndarray], learning_rates: list[float], title: str, out: Path) -> None:
    figure = Figure(figsize=(13, 4.9), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=12)
    top = max(mean.max() for mean in means.values())
    low = min(mean[:, 0].min() for mean in means.values()) - 5  # where L2 destroys the network, 10 % would flatten all
    scale = ScalarMappable(Normalize(low, top), "viridis")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (kind, mean) in zip(panels, means.items()):
        axes.imshow(mean, scale.cmap, scale.norm, aspect="auto", origin="lower")
        for (row, column), value in np.ndenumerate(mean):
            is_dark = value < (low + top) / 2
            color, star = "white" if is_dark else "black", "\n★" if value == mean.max() else ""
            axes.text(column, row, f"{value:.1f}{star}", ha="center", va="center", color=color, fontsize=9)
            if column == mean[row].argmax():
                axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=color, lw=2))
        axes.set_xticks(range(len(DECAYS)), [f"{decay:g}" for decay in DECAYS], fontsize=9)
        axes.set_yticks(range(len(mean)), [f"{rate:g}" for rate in learning_rates])
        axes.set(title=f"Adam with {kind} decay", xlabel="weight decay λ")
    panels[0].set_ylabel("learning rate α")
    label = "test accuracy in %, mean over seeds\n(framed: the best λ of a learning rate; ★ the best of the panel)"
    figure.colorbar(scale, ax=panels, extend="min", label=label)
    figure.savefig(out)


def main() -> None:
    options = Options("Adam with L2 and with decoupled decay, over learning rates and decays.", "ablate_decay.png")
    options.add_count("seeds", "runs per cell", 7, quick=2, least=2)
    options.add_count("epochs", "passes over the training set", 50, quick=3)
    args = options.parse()
    learning_rates = LEARNING_RATES[::3] if args.quick else LEARNING_RATES
    a, b = l2(1e-3, 0.01), decoupled(1e-3, 0.01)
    print(f"Adam with L2\n{a}\n\nand with that link swapped\n{diff(a, b)}\n")

    grid = {"learning_rate": learning_rates, "weight_decay": DECAYS, "seed": range(args.seeds)}
    table = sweep(partial(train, data=digits(noise=0.2), epochs=args.epochs), grid, {"L2": l2, "decoupled": decoupled})

    accuracy = {kind: table["accuracy"].sel(variant=kind).values for kind in ("L2", "decoupled")}
    means = {kind: values.mean(axis=-1) for kind, values in accuracy.items()}
    report(means, {k: v.std(axis=-1, ddof=1) / args.seeds**0.5 for k, v in accuracy.items()}, learning_rates)
    moves = {kind: movement(values, learning_rates, DECAYS) for kind, values in accuracy.items()}
    factors = " and ".join(f"×{at:.1f} ({low:.1f} to {high:.1f}) for {k}" for k, (at, low, high) in moves.items())
    finding = f"Per tenfold learning rate, the best λ moves by {factors}"
    draw(means, learning_rates, finding, args.out)
    paper = 10 * moves["decoupled"]
    if args.quick:
        print("\nWhat follows is from a quick run, and means nothing.")
    print(f"\n{finding} (95 % intervals, by drawing the {args.seeds} seeds anew).")
    print(f"The AdamW paper's own decay is αλ; it moves by ×{paper[0]:.1f} ({paper[1]:.1f} to {paper[2]:.1f}).")
    print(f"The picture is {args.out}")


if __name__ == "__main__":
    main()
