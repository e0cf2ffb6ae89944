"""Where should weight decay enter Adam, and does its best strength depend on the learning rate?

Run it with `python examples/ablate_decay.py` after `pip install "linkax[examples]"`: two minutes on two CPU cores.

A small network learns scikit-learn's handwritten digits with two chains that differ in one link: Adam with L2
(`add_l2_to_grad`), and the same with that link swapped for `decoupled_weight_decay`, which is AdamW. Only kernels
decay. A fifth of the training labels is drawn at random, so that there is something to overfit to. Seeds change the
initialisation and the batches, not the split. The best λ is chosen on the test set, which flatters both kinds of decay.

It prints the link that differs and a table, and draws two maps: how many points of test accuracy each λ loses against
the best λ of the same learning rate, with that best λ drawn through the map. Loshchilov and Hutter, 2019, claim that
decoupled decay can be tuned apart from the learning rate, and L2 cannot. The number for that is the factor by which the
best λ moves when the learning rate grows tenfold; a factor of 1 is complete separation. It is fitted where decay
helps: with small learning rates the network does not overfit in so few epochs, and any small λ is as good as none.
λ is PyTorch's, which AdamW multiplies by the learning rate α; the paper's own decay is αλ.
"""

import argparse
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from _looks import look, save
from _options import Options
from _training import digits, train
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display

from linkax import Chain, adam, diff, sweep
from linkax.transforms import Rate, decoupled_weight_decay, matrices_only

LEARNING_RATES = [2.5e-4 * 2**i for i in range(8)]
PER_DECADE = 4
DECAYS = {  # of each kind, evenly spaced on a logarithmic axis around its best; none at all is a column of its own
    "L2": np.logspace(-4, -1, 3 * PER_DECADE + 1),
    "decoupled": np.logspace(-2, 1, 3 * PER_DECADE + 1),
}
HELPS = 0.5  # points of accuracy that the best decay has to gain over none for a learning rate to be in the fit
RESAMPLINGS = 2000
DOT: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markersize": 8}


def l2(learning_rate: Rate, weight_decay: Rate) -> Chain:
    return adam(learning_rate, weight_decay=weight_decay, weight_decay_mask=matrices_only)


def decoupled(learning_rate: Rate, weight_decay: Rate) -> Chain:
    tx = l2(learning_rate, weight_decay)
    return tx.swap("add_l2_to_grad", decoupled_weight_decay(weight_decay, matrices_only))


class Ridge(NamedTuple):
    """The best decay of each learning rate, and how far it moves; intervals are of 95 %."""

    best: np.ndarray  # (learning rates,)
    interval: np.ndarray  # (2, learning rates)
    helps: np.ndarray  # (learning rates,): whether the best decay is worth having
    factor: np.ndarray  # (3,): by what the best decay is multiplied per tenfold learning rate, and the interval

    @property
    def moves(self) -> str:
        if np.isnan(self.factor).any():
            return "nothing to fit, decay helps at fewer than two learning rates"
        return "by ×{:.1f} ({:.1f} to {:.1f}) per tenfold α".format(*self.factor)


def ridge(none: np.ndarray, accuracy: np.ndarray, learning_rates: np.ndarray, decays: np.ndarray) -> Ridge:
    """Finds the best decay of each learning rate.

    A parabola through the best cell and two neighbours on each side says where between the cells the best decay is.
    Bootstrapping over the seeds says how far chance moves it. `none`, the accuracy without decay, has the
    dimensions learning rate and seed; `accuracy` has learning rate, decay and seed.
    """
    seeds = accuracy.shape[-1]
    draws = np.random.default_rng(0).integers(0, seeds, (RESAMPLINGS, seeds))
    draws = np.concatenate([np.arange(seeds)[None], draws])  # the first one is the experiment itself
    means = accuracy[:, :, draws].mean(axis=-1)
    center = means.argmax(axis=1, keepdims=True).clip(2, means.shape[1] - 3)
    around = np.stack([np.take_along_axis(means, center + i, 1)[:, 0] for i in range(-2, 3)])
    x = np.arange(-2.0, 3.0)
    slope, bend = np.tensordot(x / 10, around, 1), np.tensordot((x**2 - 2) / 14, around, 1)  # least squares
    vertex = np.divide(-slope, 2 * bend, out=2 * np.sign(slope), where=bend < 0).clip(-2, 2)
    places = np.interp(center[:, 0] + vertex, range(len(decays)), np.log10(decays))
    helps = accuracy.mean(axis=-1).max(axis=1) > none.mean(axis=-1) + HELPS
    slopes = np.full(len(draws), np.nan)
    if helps.sum() > 1:
        slopes = np.polyfit(np.log10(learning_rates[helps]), places[helps], 1)[0]
    return Ridge(
        10 ** places[:, 0],
        10 ** np.quantile(places[:, 1:], [0.025, 0.975], axis=1),
        helps,
        10 ** np.array([slopes[0], *np.quantile(slopes[1:], [0.025, 0.975])]),
    )


def of_best(accuracy: np.ndarray) -> np.ndarray:
    """The accuracy of each seed at the best λ of each learning rate: (learning rates, seeds)."""
    return accuracy[range(len(accuracy)), accuracy.mean(axis=-1).argmax(axis=1)]


def error(accuracy: np.ndarray) -> np.ndarray:
    """The standard error over the seeds, which are the last axis."""
    return accuracy.std(axis=-1, ddof=1) / accuracy.shape[-1] ** 0.5


def report(
    none: np.ndarray, found: dict[str, np.ndarray], ridges: dict[str, Ridge], learning_rates: np.ndarray
) -> None:
    def mean(values: np.ndarray) -> str:
        return f"{values.mean():6.2f} ± {error(values):4.2f}"

    print(f"\n{'learning rate':>13}  {'without decay':>13}", end="")
    print("".join(f"  {f'best λ, {kind}':>25}  {'accuracy in %':>13}" for kind in found))
    for row, rate in enumerate(learning_rates):
        print(f"{rate:13g}  {mean(none[row])}", end="")
        for kind, accuracy in found.items():
            at, (low, high) = ridges[kind].best[row], ridges[kind].interval[:, row]
            place = f"{at:.2g} ({low:.2g} to {high:.2g})" if ridges[kind].helps[row] else "none is as good"
            print(f"  {place:>25}  {mean(of_best(accuracy)[row])}", end="")
        print()
    print("(accuracy of the best cell ± the standard error over seeds; λ with its 95 % interval, bootstrapped)")


def edges(centers: np.ndarray) -> np.ndarray:
    """Where cells with these centers begin and end on a logarithmic axis."""
    step = (centers[-1] / centers[0]) ** (0.5 / (len(centers) - 1))
    return np.append(centers / step, centers[-1] * step)


def draw(
    none: np.ndarray,
    found: dict[str, np.ndarray],
    ridges: dict[str, Ridge],
    learning_rates: np.ndarray,
    args: argparse.Namespace,
) -> None:
    figure = Figure(figsize=(13, 6.2), dpi=150, layout="constrained")
    reached = []
    for kind, accuracy in found.items():
        best = of_best(accuracy)
        top = best.mean(axis=-1).argmax()
        reached.append(f"{kind} {best[top].mean():.1f} ± {error(best)[top]:.1f} %")
    figure.suptitle(f"Where should weight decay enter Adam? Best accuracy: {', '.join(reached)}", fontsize=14)
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[8, 5]))
    maps, lines = left.subplots(2, 1, sharex=True), right.subplots()
    scale = ScalarMappable(Normalize(0, 6), "cividis_r")
    for axes, (kind, accuracy) in zip(maps, found.items()):
        mean, (best, interval, helps, _) = accuracy.mean(axis=-1), ridges[kind]
        lost = mean.max(axis=1, keepdims=True) - mean
        axes.pcolormesh(edges(DECAYS[kind]), edges(learning_rates), lost, cmap=scale.cmap, norm=scale.norm)
        for color, width, capsize in (("black", 5, 6), ("white", 2, 5)):  # white with a black border
            axes.errorbar(
                *(best[helps], learning_rates[helps]),
                xerr=abs(interval - best)[:, helps],
                **{"color": color, "linewidth": width, "capsize": capsize, "capthick": width},
            )
        dots = axes.plot(best[helps], learning_rates[helps], "o", **DOT, zorder=5)
        axes.set_title(f"{kind}: the best λ moves {ridges[kind].moves}", fontsize=12)
        axes.set(xscale="log", yscale="log", ylabel="learning rate α")
        axes.set_yticks(learning_rates, [f"{rate:g}" for rate in learning_rates])
        axes.minorticks_off()
        axes.tick_params(labelbottom=True)
        axes.legend(
            dots, ["best λ, 95 % interval\n(where decay helps)"], loc="upper right" if kind == "L2" else "upper left"
        )
    for axes, x in zip(maps, (0.82, 0.18)):
        axes.text(x, 0.2, "not run", transform=axes.transAxes, ha="center", color="#777777")
    maps[1].set_xlabel("weight decay λ (as in PyTorch: multiplied by α if decoupled)")
    left.colorbar(scale, ax=maps, extend="max", label="points of accuracy lost against the best λ of the same α")

    looks = {"L2": look("Adam") | {"linewidth": 1.6}, "decoupled": look("AdamW")}
    for kind, accuracy in found.items():
        best = of_best(accuracy)
        lines.errorbar(learning_rates, best.mean(axis=-1), error(best), **looks[kind], capsize=3, label=kind)
    lines.errorbar(learning_rates, none.mean(axis=-1), error(none), color="black", ls=":", capsize=3, label="no decay")
    lines.set_title("Test accuracy at the best λ (± standard error)", fontsize=12)
    lines.set(xscale="log", xlabel="learning rate α", ylabel="test accuracy in %")
    lines.set_xticks(learning_rates, [f"{rate:g}" for rate in learning_rates], rotation=45)
    lines.minorticks_off()
    lines.grid(alpha=0.3)
    lines.legend(loc="lower center")
    save(figure, args)


def main() -> None:
    options = Options("Adam with L2 and with decoupled decay, over learning rates and decays.", "ablate_decay.png")
    options.add_count("seeds", "runs per cell", 10, quick=2, least=2)
    options.add_count("epochs", "passes over the training set", 50, quick=3)
    args = options.parse()
    learning_rates = np.array(LEARNING_RATES[::3] if args.quick else LEARNING_RATES)
    a, b = l2(1e-3, 0.01), decoupled(1e-3, 0.01)
    print(f"Adam with L2\n{a}\n\nand with that link swapped\n{diff(a, b)}\n")

    run = partial(train, data=digits(noise=0.2), epochs=args.epochs)
    found, none = {}, np.empty(0)
    for kind, chain in {"L2": l2, "decoupled": decoupled}.items():
        grid = {"learning_rate": learning_rates, "weight_decay": [0.0, *DECAYS[kind]], "seed": range(args.seeds)}
        table = sweep(run, grid, {kind: chain})
        accuracy = table["accuracy"].sel(variant=kind).values
        none, found[kind] = accuracy[:, 0], accuracy[:, 1:]  # without decay, the two chains are the same
    ridges = {kind: ridge(none, accuracy, learning_rates, DECAYS[kind]) for kind, accuracy in found.items()}
    report(none, found, ridges, learning_rates)
    print("\nHow the best λ moves with the learning rate α (95 % intervals)")
    for kind, found_ridge in ridges.items():
        print(f"  {kind:<9}  {found_ridge.moves}")
    paper = ridges["decoupled"]._replace(factor=10 * ridges["decoupled"].factor)
    print(f"  decoupled, as the AdamW paper measures it (αλ)  {paper.moves}")
    draw(none, found, ridges, learning_rates, args)


if __name__ == "__main__":
    main()
