"""Which link of AdamW matters on this task? Every chain one link away from it trains, and the differences are ranked.

Run it with `python examples/which_link_matters.py` after `pip install "linkax[examples,sweep]"`: under a minute on two
CPU cores.

A small network learns scikit-learn's handwritten digits, a fifth of whose training labels is drawn at random so that
there is something to overfit to. `ablations` gives the chains, `sweep` trains all of them from the same seeds, and
since a seed means the same weights and batches for every chain, differences are taken seed by seed. The learning rate
and the decay are those that suit AdamW; an ablated chain might do better with others.

One sees a table and a picture: the change in test accuracy against AdamW with its 95 % confidence interval. Each
interval is for one comparison: among twenty that make no difference, one is expected to look as if it did.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from scipy import stats  # comes with scikit-learn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from linkax.chains import Chain, ablations, adamw, sweep
from linkax.transforms import matrices_only

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"  # by Okabe and Ito, which colour-blind people can tell apart


def accuracies(variants: dict[str, Chain], seeds: int, epochs: int) -> dict[str, np.ndarray]:
    """The test accuracy in % of every chain for every seed."""
    digits, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(digits / 16, labels, train_size=900, stratify=labels, random_state=0)
    rng = np.random.default_rng(0)
    y = np.where(rng.random(len(y)) < 0.2, rng.integers(0, 10, len(y)), y)
    x, x_test, y, y_test = (jnp.asarray(part) for part in (x, x_test, y, y_test))
    net = nn.Sequential([nn.Dense(200), nn.relu, nn.Dense(10)])

    def run(tx: Chain, seed: jax.Array) -> dict[str, jax.Array]:
        init_key, order_key = jax.random.split(jax.random.key(seed))
        params = net.init(init_key, x)

        def loss(params: dict, batch: jax.Array) -> jax.Array:
            logits = jnp.asarray(net.apply(params, x[batch]))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[batch]).mean()

        def step(carry: tuple, batch: jax.Array) -> tuple[tuple, None]:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        orders = jax.vmap(lambda key: jax.random.permutation(key, len(x)))(jax.random.split(order_key, epochs))
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), orders.reshape(-1, 50))
        return {"accuracy": 100 * (jnp.asarray(net.apply(params, x_test)).argmax(axis=-1) == y_test).mean()}

    table = sweep(run, {"seed": range(seeds)}, variants)
    return {name: table["accuracy"].sel(variant=name).values for name in variants}


def effects(found: dict[str, np.ndarray], base: str) -> list[tuple[str, float, float, float]]:
    """Name, mean accuracy, mean change against `base` and half of its 95 % confidence interval, worst first."""
    rows = []
    for name, accuracy in found.items():
        change = accuracy - found[base]
        half = stats.t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
        rows.append((name, accuracy.mean(), change.mean(), half))
    return sorted((row for row in rows if row[0] != base), key=lambda row: row[2])


def draw(rows: list[tuple[str, float, float, float]], title: str, out: Path) -> None:
    figure = Figure(figsize=(10, 0.42 * len(rows) + 1.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    for at, (_, _, change, half) in enumerate(reversed(rows)):
        color = GREY if abs(change) <= half else ORANGE if change < 0 else BLUE
        axes.barh(at, change, color=color, height=0.7)
        axes.errorbar(change, at, xerr=half, color="black", capsize=3, linewidth=1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_xlabel("change in test accuracy against AdamW, in percentage points (bars: 95 % confidence)")
    # One ruinous ablation would flatten all others: linear near 0, logarithmic far from it.
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, fontsize=11)
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ranks the links of AdamW by what the digits lose without them.")
    parser.add_argument("--seeds", type=int, help="runs per chain, at least 2 (default: 20)")
    parser.add_argument("--epochs", type=int, help="passes over the training set (default: 50)")
    parser.add_argument("--quick", action="store_true", help="by default 3 seeds and 3 epochs")
    parser.add_argument("--out", type=Path, help="the picture (default: beside the script; if quick, a temporary file)")
    args = parser.parse_args()
    seeds, epochs = (3, 3) if args.quick else (20, 50)
    seeds, epochs = args.seeds or seeds, args.epochs or epochs
    out = args.out or Path(tempfile.gettempdir() if args.quick else Path(__file__).parent, "which_link_matters.png")

    tx = adamw(3e-3, weight_decay=0.5, weight_decay_mask=matrices_only)
    print(f"{tx}\n")
    found = accuracies({"AdamW": tx, **ablations(tx)}, seeds, epochs)
    rows = effects(found, "AdamW")
    width = max(len(row[0]) for row in rows)
    print(f"\n{'chain':<{width}}  accuracy in %  change  95 % confidence")
    print(f"{'AdamW':<{width}}  {found['AdamW'].mean():13.2f}")
    for name, accuracy, change, half in rows:
        print(f"{name:<{width}}  {accuracy:13.2f}  {change:+6.2f}  {change - half:+6.2f} to {change + half:+6.2f}")
    certain = [row[0] for row in rows if abs(row[2]) > row[3]]
    title = f"{len(certain)} of {len(rows)} one-link changes to AdamW make a difference on the digits ({seeds} seeds)"
    draw(rows, title, out)
    print(f"\n{title}.\nThe picture is {out}")


if __name__ == "__main__":
    main()
