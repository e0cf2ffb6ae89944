"""Does it matter where weight decay enters Adam, if both kinds get the strength that suits them?

Run it with `python examples/ablate_decay.py` after `pip install "linkax[examples]"`: half a minute on two CPU cores.

A small network learns scikit-learn's handwritten digits with three chains that differ in one link: Adam with L2
(`add_l2_to_grad`), the same with that link swapped for `decoupled_weight_decay`, and the same without it. Only kernels
decay. A fifth of the training labels is drawn at random, so that there is something to overfit to. Seeds change the
initialisation and the batches, not the split. The best λ is chosen on the test set, which flatters both kinds of decay.

One sees the link that differs, a table, and a picture. The best strengths are far apart: Adam divides L2's decay by
√V, like the rest of the gradient, and √V is small; decoupled decay goes around it.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from linkax.chains import Chain, adam, diff
from linkax.transforms import Rate, decoupled_weight_decay, matrices_only

STRENGTHS = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
Results = dict[str, list[np.ndarray]]  # by kind of decay: test accuracy in % and norm, of every strength and seed


def l2(weight_decay: Rate) -> Chain:
    return adam(3e-3, weight_decay=weight_decay, weight_decay_mask=matrices_only)


def decoupled(weight_decay: Rate) -> Chain:
    return l2(weight_decay).swap("add_l2_to_grad", decoupled_weight_decay(weight_decay, matrices_only))


def no_decay(weight_decay: Rate) -> Chain:
    return l2(weight_decay).drop("add_l2_to_grad")


def measure(strengths: list[float], seeds: int, epochs: int) -> Results:
    digits, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(digits / 16, labels, train_size=900, stratify=labels, random_state=0)
    rng = np.random.default_rng(0)
    y = np.where(rng.random(len(y)) < 0.2, rng.integers(0, 10, len(y)), y)
    x, x_test, y, y_test = (jnp.asarray(part) for part in (x, x_test, y, y_test))
    net = nn.Sequential([nn.Dense(200), nn.relu, nn.Dense(10)])

    def train(build: Callable[[Rate], Chain], weight_decay: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        tx = build(weight_decay)
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
        right = jnp.asarray(net.apply(params, x_test)).argmax(axis=-1) == y_test
        return 100 * right.mean(), optax.tree.norm([leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2])

    results = {}
    for kind, build in {"no decay": no_decay, "L2": l2, "decoupled": decoupled}.items():
        # One compilation per kind: the seeds run side by side, and the strength is a traced number.
        run = jax.jit(jax.vmap(partial(train, build), in_axes=(None, 0)))
        bar = tqdm([0.0] if kind == "no decay" else strengths, desc=f"{kind:<9}", unit="strength")
        rows = [jax.device_get(run(float(weight_decay), jnp.arange(seeds))) for weight_decay in bar]
        results[kind] = [np.stack(column) for column in zip(*rows)]
    return results


def report(strengths: list[float], results: Results) -> tuple[dict[str, int], str]:
    """Prints the table, and returns the index of each kind's best strength and the finding."""
    best = {kind: int(accuracy.mean(axis=1).argmax()) for kind, (accuracy, _) in results.items()}
    print("\ndecay           λ  test accuracy in %  norm of the kernels  (± the standard deviation over seeds)")
    for kind, result in results.items():
        for i, (acc, norm) in enumerate(zip(*result)):
            strength, mark = ("–", "") if kind == "no decay" else (strengths[i], "← best" if i == best[kind] else "")
            numbers = f"{acc.mean():12.2f} ± {acc.std(ddof=1):.2f} {norm.mean():14.3f} ± {norm.std(ddof=1):.3f}"
            print(f"{kind:<9} {strength:>7} {numbers}  {mark}".rstrip())
    i, j = best["L2"], best["decoupled"]
    a, b, none = results["L2"][0][i], results["decoupled"][0][j], results["no decay"][0]
    gap, error = (b - a).mean(), (b - a).std(ddof=1) / len(a) ** 0.5  # seed by seed: both start from the same weights
    return best, (
        f"Swapping Adam's L2 for decoupled decay moves the best λ from {strengths[i]} to {strengths[j]}.\n"
        f"Test accuracy there: {a.mean():.1f} % and {b.mean():.1f} %, a difference of {gap:+.2f} ± {error:.2f} "
        f"(standard error, {len(a)} seeds); without decay {none.mean():.1f} %."
    )


def draw(strengths: list[float], results: Results, best: dict[str, int], title: str, out: Path) -> None:
    figure = Figure(figsize=(10.6, 5), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=12)
    # Colours by Okabe and Ito, which colour-blind people can tell apart.
    looks = {"no decay": ("black", "--", ""), "decoupled": ("#0072B2", "-", "s"), "L2": ("#D55E00", "-", "o")}
    panels = figure.subplots(1, 2)
    panels[1].set_yscale("log", subs=[2, 5])
    for i, (axes, label, unit) in enumerate(zip(panels, ("test accuracy in %", "norm of the kernels"), (" %", ""))):
        for kind, (color, line, marker) in looks.items():
            mean, std = results[kind][i].mean(axis=1), results[kind][i].std(axis=1, ddof=1)
            mean, std = np.broadcast_arrays(mean, std, strengths)[:2]  # no decay has one value for all of them
            axes.plot(strengths, mean, line, marker=marker, markersize=5, color=color, label=kind)
            axes.fill_between(strengths, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
            if kind != "no decay":
                axes.plot(strengths[best[kind]], mean[best[kind]], "o", markersize=14, mfc="none", mec=color)
        # L2 destroys the network at strengths that decoupled decay needs; showing all of that would flatten the rest.
        l2_mean, bottom = results["L2"][i].mean(axis=1), 0.9 * results["decoupled"][i].mean(axis=1).min()
        if l2_mean.min() < bottom:
            text, where = f" L2 falls to {l2_mean.min():.2g}{unit}", strengths[(l2_mean < bottom).argmax()]
            axes.text(where, 0.03, text, color=looks["L2"][0], transform=axes.get_xaxis_transform())
        axes.set(xscale="log", xlabel="weight decay λ", ylabel=label, ylim=(bottom, None))
        axes.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
        axes.grid(alpha=0.3)
    panels[0].legend(title="ring: the best\nband: ± 1 std. dev.")
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Adam with L2, with decoupled weight decay and without any.")
    parser.add_argument("--seeds", type=int, help="runs per strength, at least 2 (default: 10)")
    parser.add_argument("--epochs", type=int, help="passes over the training set (default: 50)")
    parser.add_argument("--quick", action="store_true", help="4 strengths; by default 2 seeds and 5 epochs")
    parser.add_argument("--out", type=Path, help="the picture (default: beside the script; if quick, a temporary file)")
    args = parser.parse_args()
    seeds, epochs, strengths = (2, 5, STRENGTHS[1::4]) if args.quick else (10, 50, STRENGTHS)
    out = args.out or Path(tempfile.gettempdir() if args.quick else Path(__file__).parent, "ablate_decay.png")
    print(f"Adam with L2\n{l2(0.01)}\n\nand with that link swapped\n{diff(l2(0.01), decoupled(0.01))}\n")
    results = measure(strengths, args.seeds or seeds, args.epochs or epochs)
    best, finding = report(strengths, results)
    draw(strengths, results, best, finding, out)
    print(f"\n{finding}\nThe picture is {out}")


if __name__ == "__main__":
    main()
