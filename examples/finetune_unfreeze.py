"""A head learns on frozen features; then the layers below are unfrozen in mid-run, with a smaller learning rate.

Run it with `python examples/finetune_unfreeze.py` after `pip install "linkax[examples]"`: seconds on two CPU cores.

A network has learned to tell scikit-learn's digits 0 to 4 apart. Now it is to learn the digits 5 to 9, of which there
are few examples: a new head trains on the frozen features, and half-way `migrate` adds the features to the optimizer,
as a group of parameters with a tenth of the learning rate. The head keeps its moments and its step count.

For comparison, a second run stays frozen, and a third begins a new optimizer at the switch, as one has to where the
state cannot be carried over. That one has forgotten how large the first gradients were, and takes larger steps than the
learning rate was chosen for; whether it helps, as here, is luck. One sees what `migrate` reports and a picture of the
losses across the switch, as means over seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _looks import NEITHER, log_scale, look
from _options import Options
from _training import digits
from flax import linen as nn
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from tqdm import tqdm

from linkax.chains import Chain, adamw, migrate, param_groups

LABELS = {"params": {"features": "features", "head": "head"}}
HEAD, FEATURES = adamw(3e-3), adamw(3e-4)
FROZEN = param_groups({"features": optax.set_to_zero(), "head": HEAD}, LABELS)
THAWED = param_groups({"features": FEATURES, "head": HEAD}, LABELS)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(5, name="head")(nn.relu(nn.Dense(100, name="features")(x)))


NET = Net()


def train(tx: Chain, params: dict, state: optax.OptState, x: jax.Array, y: jax.Array, steps: int) -> tuple:
    """So many steps on the whole of the data: the new parameters and state, and the losses."""

    def loss(params: dict) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(NET.apply(params, x)), y).mean()

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, state), losses = jax.lax.scan(step, (params, state), length=steps)
    return params, state, losses


run = jax.jit(train, static_argnames=("tx", "steps"))  # a chain can be hashed, and compared with others


def main() -> None:
    options = Options("Trains a head, then unfreezes what is below it.", "finetune_unfreeze.png")
    options.add_count("seeds", "runs of each kind", 5, quick=1)
    options.add_count("steps", "training steps, half of them before the switch", 400, quick=20, least=2)
    args = options.parse()
    data = digits()
    old, new = data.y < 5, jnp.flatnonzero(data.y >= 5)[:100]
    half = args.steps // 2

    curves: dict[str, list[np.ndarray]] = {"still frozen": [], "unfrozen, new optimizer": [], "unfrozen, migrated": []}
    report = ""
    for seed in tqdm(range(args.seeds), unit="seed"):
        params = NET.init(jax.random.key(seed), data.x)
        params, _, _ = run(HEAD, params, HEAD.init(params), data.x[old], data.y[old], 200)
        params["params"]["head"] = NET.init(jax.random.key(seed + 1000), data.x)["params"]["head"]
        x, y = data.x[new], data.y[new] - 5
        params, state, before = run(FROZEN, params, FROZEN.init(params), x, y, half)

        migration = migrate(FROZEN, state, THAWED, params)
        report = repr(migration)
        for name, tx, its in (
            ("still frozen", FROZEN, state),
            ("unfrozen, new optimizer", THAWED, THAWED.init(params)),
            ("unfrozen, migrated", THAWED, migration.state),
        ):
            after = run(tx, params, its, x, y, args.steps - half)[2]
            curves[name].append(np.concatenate([before, after]))

    print(f"\n{THAWED}\n\nwhat became of the state at the switch\n{report}\n")
    means = {name: np.mean(losses, axis=0) for name, losses in curves.items()}
    print(f"{'loss':<24}  {'at the switch':>13}  {'5 steps later':>13}  {'at the end':>10}")
    for name, mean in means.items():
        print(f"{name:<24}  {mean[half]:13.4f}  {mean[min(half + 5, args.steps - 1)]:13.4f}  {mean[-1]:10.4f}")

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    blue = look("AdamW")["color"]
    looks = {"still frozen": (NEITHER, "-"), "unfrozen, new optimizer": (blue, "--"), "unfrozen, migrated": (blue, "-")}
    for name, mean in means.items():
        color, dashes = looks[name]
        axes.plot(range(args.steps), mean, dashes, color=color, label=name)
    axes.axvline(half, color="black", linestyle=":", label="the features are unfrozen")
    log_scale(axes)
    axes.set(xlabel="step", ylabel="training loss (cross-entropy in nats)")
    axes.set_title(f"Fine-tuning on the digits 5 to 9: 100 images, mean of {args.seeds} seeds", fontsize=11)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(args.out)
    print(f"The picture is {args.out}")


if __name__ == "__main__":
    main()
