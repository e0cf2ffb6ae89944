"""What several examples share: what each one-link change to an optimizer does, as a table and as a picture."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _looks import BETTER, NEITHER, WORSE, save
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats  # comes with scikit-learn

from linkax import Chain, ablations, sweep
from linkax.transforms import Rate

WHOLE = "the whole optimizer"
HOLLOW: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markersize": 7}
COLUMNS = {"gain, tuned": 0.31, "rate": 0.46, "decay": 0.6, "with AdamW's": 0.98}  # where they end in the picture


class Gain(NamedTuple):
    """How much better one training is than another: the mean over seeds, and half of its 95 % interval."""

    mean: float
    half: float

    @staticmethod
    def of(changes: np.ndarray) -> "Gain":
        """The gain from the differences seed by seed."""
        quantile = stats.t.ppf(0.975, len(changes) - 1)
        return Gain(changes.mean(), quantile * changes.std(ddof=1) / len(changes) ** 0.5)

    @property
    def is_certain(self) -> bool:
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half:.3f}"


class Effect(NamedTuple):
    """A chain one link away, with the hyperparameters that suit it best, and with those of the whole optimizer."""

    name: str
    learning_rate: float
    weight_decay: float | None  # None where it has no effect
    tuned: Gain
    untuned: Gain


def effects(
    run: Callable[[Chain, jax.Array], dict[str, jax.Array]],
    optimizer: Callable[[Rate, Rate], Chain],
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    tuning_seeds: int,
    seeds: int,
) -> tuple[float, list[Effect]]:
    """The optimizer's mean `score` and what every chain one link away gains over it, the best first.

    Each chain gets the learning rate and the decay with which it scores best, as a mean over the first seeds. All are
    then compared on other seeds. A seed means the same weights and batches for every chain, so that differences are
    taken seed by seed.
    """

    def variant(name: str, learning_rate: Any, weight_decay: Any) -> Chain:
        tx = optimizer(learning_rate, weight_decay)
        return tx if name == WHOLE else ablations(tx)[name]

    names = [WHOLE, *ablations(optimizer(learning_rates[0], weight_decays[0]))]
    tuning = sweep(
        run,
        {"learning_rate": learning_rates, "weight_decay": weight_decays, "seed": range(tuning_seeds)},
        {
            name: lambda learning_rate, weight_decay, name=name: variant(name, learning_rate, weight_decay)
            for name in names
        },
    )["score"]
    best, has_decay = {}, {}
    for name in names:
        means = tuning.sel(variant=name).mean("seed", skipna=False).fillna(-np.inf)  # where it diverged
        at = means.argmax(...)
        best[name] = learning_rates[int(at["learning_rate"])], weight_decays[int(at["weight_decay"])]
        has_decay[name] = bool((means != means.isel(weight_decay=0)).any())

    def tuned_or_not(name: str) -> Callable[[Any], Chain]:
        both = jnp.array([best[WHOLE], best[name]])
        return lambda tuned: variant(name, both[tuned, 0], both[tuned, 1])

    score = sweep(
        run,
        {"tuned": [0, 1], "seed": range(tuning_seeds, tuning_seeds + seeds)},
        {name: tuned_or_not(name) for name in names},
    )["score"]

    def gain(name: str, tuned: int) -> Gain:
        return Gain.of((score.sel(variant=name, tuned=tuned) - score.sel(variant=WHOLE, tuned=tuned)).values)

    rows = [
        Effect(name, best[name][0], best[name][1] if has_decay[name] else None, gain(name, 1), gain(name, 0))
        for name in names[1:]
    ]
    print(f"\nbest for the whole optimizer: learning rate {best[WHOLE][0]:g}, weight decay {best[WHOLE][1]:g}")
    return float(score.sel(variant=WHOLE).mean()), sorted(rows, key=lambda row: -row.tuned.mean)


def present(
    rows: list[Effect], question: str, reached: str, label: str, limit: float, args: argparse.Namespace
) -> None:
    """Prints the table and draws the picture; `reached` says how well the whole optimizer does."""
    _show(rows)
    print(f"AdamW reaches {reached}")
    certain = sum(row.tuned.is_certain for row in rows)
    answer = f"{certain} of {len(rows)} one-link changes do, once tuned"
    _draw(rows, f"{question} {answer}\n(AdamW reaches {reached}; {args.seeds} seeds)", label, limit, args)


def _show(rows: list[Effect]) -> None:
    width = max(len(row.name) for row in rows)
    print(f"\n{'':<{width}}  {'gain with its own':>16}  {'learning':>8}  {'weight':>6}  {'gain with':>16}")
    print(f"{'chain':<{width}}  {'hyperparameters':>16}  {'rate':>8}  {'decay':>6}  {'AdamW’s':>16}")
    for row in rows:
        decay = "none" if row.weight_decay is None else f"{row.weight_decay:g}"
        print(f"{row.name:<{width}}  {row.tuned!s:>16}  {row.learning_rate:8g}  {decay:>6}  {row.untuned!s:>16}")
    print("(gain over AdamW, ± half of the 95 % confidence interval; more is better)")


def _draw(rows: list[Effect], title: str, label: str, limit: float, args: argparse.Namespace) -> None:
    """Bars that end at `limit` or an arrow, with their numbers beside them."""
    figure = Figure(figsize=(14, 0.45 * len(rows) + 2.4), dpi=150, layout="constrained")
    axes, numbers = figure.subplots(1, 2, sharey=True, width_ratios=[5, 4])
    for at, row in enumerate(reversed(rows)):
        tuned, untuned = row.tuned, row.untuned
        color = (BETTER if tuned.mean > 0 else WORSE) if tuned.is_certain else NEITHER
        axes.barh(at, np.clip(tuned.mean, -limit, limit), color=color, height=0.6)
        if abs(tuned.mean) < limit:
            axes.errorbar(tuned.mean, at, xerr=tuned.half, color="black", capsize=3, linewidth=1)
        else:
            axes.plot(np.sign(tuned.mean) * limit, at, ">" if tuned.mean > 0 else "<", color=color, markersize=16)
        if abs(untuned.mean) < limit:
            axes.plot(untuned.mean, at, "D", **HOLLOW)
        else:
            axes.plot(np.sign(untuned.mean) * limit, at, ">" if untuned.mean > 0 else "<", **HOLLOW)
        decay = "none" if row.weight_decay is None else f"{row.weight_decay:g}"
        for x, text in zip(COLUMNS.values(), (str(tuned), f"{row.learning_rate:g}", decay, str(untuned))):
            numbers.text(x, at, text, ha="right", va="center")
    for heading, x in COLUMNS.items():
        numbers.text(x, len(rows) - 0.4, heading, ha="right", va="bottom", weight="bold")
    numbers.set(xlim=(0, 1))
    numbers.axis("off")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.set(xlim=(-1.08 * limit, 1.08 * limit), xlabel=f"← worse      {label}      better →")
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title, fontsize=12)
    handles = [
        Patch(color=BETTER, label="better than AdamW"),
        Patch(color=WORSE, label="worse"),
        Patch(color=NEITHER, label="no difference: 0 is inside the 95 % interval"),
        Line2D([], [], linestyle="", marker="D", **HOLLOW, label="with AdamW's hyperparameters"),
        Line2D([], [], linestyle="", marker="<", **HOLLOW, label="beyond the axis"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    save(figure, args)
