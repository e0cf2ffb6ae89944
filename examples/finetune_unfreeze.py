"""Does it matter that an optimizer keeps its state when layers are unfrozen mid-run?

Run it with `python examples/finetune_unfreeze.py` after `pip install "linkax[examples]"`: seconds on two CPU cores.

A network has learned to tell scikit-learn's digits 0 to 4 apart. Now it learns the digits 5 to 9, of which there are
100 images: a new head trains on the frozen features, and half-way `migrate` adds the features to the optimizer, as a
group of parameters with a tenth of the learning rate. The head keeps its moments and its step count.

For comparison, a second run stays frozen, and a third starts a new optimizer at the switch. By then the gradients are
small, and a new Adam divides them by what it has seen since the switch: its first steps are as large as the learning
rate allows, in all directions at once. The training loss falls faster for it, and the validation loss rises.

It prints the report of `migrate` and a table, and draws the validation loss across the switch, as means over seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _effects import Gain
from _looks import look, save
from _options import Options
from _training import Data, digits
from flax import linen as nn
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from tqdm import tqdm

from linkax import Chain, adamw, migrate, param_groups

LABELS = {"params": {"features": "features", "head": "head"}}
HEAD, FEATURES = adamw(3e-3), adamw(3e-4)
FROZEN = param_groups({"features": optax.set_to_zero(), "head": HEAD}, LABELS)
THAWED = param_groups({"features": FEATURES, "head": HEAD}, LABELS)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(5, name="head")(nn.relu(nn.Dense(100, name="features")(x)))


NET = Net()


def train(tx: Chain, params: dict, state: optax.OptState, data: Data, steps: int) -> tuple:
    """So many steps on all of the data: the new parameters and state, and the losses (steps, 2) before each step.

    The first of the two losses is of the images it trains on, the second of the test images.
    """

    def loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(NET.apply(params, x)), y).mean()

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, data.x, data.y)
        losses = jnp.stack([value, loss(params, data.x_test, data.y_test)])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), losses

    (params, state), losses = jax.lax.scan(step, (params, state), length=steps)
    return params, state, losses


run = jax.jit(train, static_argnames=("tx", "steps"))  # a chain can be hashed, and compared with others


def main() -> None:
    options = Options("Trains a head, then unfreezes what is below it.", "finetune_unfreeze.png")
    options.add_count("seeds", "runs of each kind", 10, quick=2, least=2)
    options.add_count("steps", "training steps, half of them before the switch", 400, quick=20, least=2)
    args = options.parse()
    data, half = digits(), args.steps // 2
    is_new, is_new_test = data.y >= 5, data.y_test >= 5
    first_task = Data(data.x[~is_new], data.y[~is_new], data.x_test[~is_new_test], data.y_test[~is_new_test])
    task = Data(data.x[is_new][:100], data.y[is_new][:100] - 5, data.x_test[is_new_test], data.y_test[is_new_test] - 5)

    curves: dict[str, list[np.ndarray]] = {"still frozen": [], "unfrozen, new optimizer": [], "unfrozen, migrated": []}
    report = ""
    for seed in tqdm(range(args.seeds), unit="seed"):
        params = NET.init(jax.random.key(seed), data.x)
        params, _, _ = run(HEAD, params, HEAD.init(params), first_task, 200)
        params["params"]["head"] = NET.init(jax.random.key(seed + 1000), data.x)["params"]["head"]
        params, state, before = run(FROZEN, params, FROZEN.init(params), task, half)

        migration = migrate(FROZEN, state, THAWED, params)
        report = repr(migration)
        for name, tx, its in (
            ("still frozen", FROZEN, state),
            ("unfrozen, new optimizer", THAWED, THAWED.init(params)),
            ("unfrozen, migrated", THAWED, migration.state),
        ):
            after = run(tx, params, its, task, args.steps - half)[2]
            curves[name].append(np.concatenate([before, after]))

    print(f"\n{THAWED}\n\nwhat became of the state at the switch\n{report}\n")
    losses = {name: np.stack(runs) for name, runs in curves.items()}  # (seeds, steps, 2)
    print(f"{'validation loss':<24}  {'at the switch':>13}  {'5 steps later':>13}  {'at the end':>10}  training loss")
    for name, runs in losses.items():
        train_loss, mean = runs.mean(axis=0).T
        print(
            f"{name:<24}  {mean[half]:13.3f}  {mean[min(half + 5, args.steps - 1)]:13.3f}  {mean[-1]:10.3f}"
            f"  {train_loss[-1]:13.4f}"
        )
    gain = Gain.of((losses["unfrozen, new optimizer"] - losses["unfrozen, migrated"])[:, -1, 1])
    answer = (
        f"At the end, the validation loss with the state carried over is lower by {gain.mean:.3f} ± {gain.half:.3f}"
    )
    print(f"{answer} (95 %)")

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    looks = {
        "still frozen": (":", "black"),
        "unfrozen, new optimizer": ("--", look("Adam")["color"]),
        "unfrozen, migrated": ("-", look("AdamW")["color"]),
    }
    for name, runs in losses.items():
        dashes, color = looks[name]
        mean = runs[:, half // 2 :, 1].mean(axis=0)  # what comes before is far above
        axes.plot(range(half // 2, args.steps), mean, dashes, color=color, linewidth=2, label=name)
        axes.annotate(
            *(f"{mean[-1]:.3f}", (args.steps - 1, mean[-1])),
            **{"xytext": (5, 0), "textcoords": "offset points", "va": "center", "color": color},
        )
    axes.axvline(half, color="black", linewidth=0.8)
    axes.annotate(
        *("the features are unfrozen", (half, 1)),
        **{"xycoords": ("data", "axes fraction"), "xytext": (5, -12), "textcoords": "offset points"},
    )
    axes.set_xlim(right=1.07 * args.steps)
    axes.set(xlabel="step", ylabel="validation loss (cross-entropy in nats)")
    axes.set_title(f"Layers are unfrozen mid-run: does the optimizer's state matter?\n{answer}", fontsize=11)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper right")
    save(figure, args)


if __name__ == "__main__":
    main()
