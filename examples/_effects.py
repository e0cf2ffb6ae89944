"""What several examples share: what each change to a chain does, as a table and as a bar picture."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from _looks import BETTER, NEITHER, WORSE
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from scipy import stats  # comes with scikit-learn


class Effect(NamedTuple):
    """A chain's mean result, its change against the whole chain, and half of the change's 95 % interval."""

    name: str
    mean: float
    change: float
    half: float

    @property
    def is_certain(self) -> bool:
        return abs(self.change) > self.half


def effects(found: dict[str, np.ndarray], base: str) -> list[Effect]:
    """What each chain does to the results in `found`, seed by seed, against the chain `base`; lowest first."""
    rows = []
    for name in found.keys() - {base}:
        change = found[name] - found[base]
        half = stats.t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
        rows.append(Effect(name, found[name].mean(), change.mean(), half))
    return sorted(rows, key=lambda row: row.change)


def show(rows: list[Effect], base: str, mean: float, unit: str, decimals: int = 2) -> None:
    width, column, signed = max(len(row.name) for row in rows), f"{len(unit)}.{decimals}f", f"+6.{decimals}f"
    print(f"\n{'chain':<{width}}  {unit}  change  95 % confidence")
    print(f"{base:<{width}}  {mean:{column}}")
    for name, mean, change, half in rows:
        print(
            f"{name:<{width}}  {mean:{column}}  {change:{signed}}  {change - half:{signed}} to {change + half:{signed}}"
        )


def draw(rows: list[Effect], title: str, label: str, more_is_better: bool, linear_to: float, out: Path) -> None:
    """Bars with their intervals; linear up to `linear_to`, then logarithmic: one ruinous change would flatten all."""
    figure = Figure(figsize=(10, 0.42 * len(rows) + 1.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(reversed(rows)):
        color = (BETTER if (row.change > 0) == more_is_better else WORSE) if row.is_certain else NEITHER
        axes.barh(at, row.change, color=color, height=0.7)
        axes.errorbar(row.change, at, xerr=row.half, color="black", capsize=3, linewidth=1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.set_xlabel(f"{label}\n(lines: 95 % confidence intervals; grey: 0 is inside)")
    axes.set_xscale("symlog", linthresh=linear_to)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, fontsize=11)
    figure.savefig(out)
