"""The cost of 16-bit weights in training with small steps, plain and with `precise_weights`.

A 64-200-10 network learns scikit-learn's digits with AdamW in batches of 50. All training runs of a seed start from the
same weights, which are exact in bfloat16, and use the same batches. The network computes in float32, so the only
difference is how the weights are stored between steps. The loss is the final one over all training images, with the
weights as the network sees them.

    python benchmarks/low_precision.py            # everything: minutes
    python benchmarks/low_precision.py --check    # fails if a method is more than a standard error off float32
    python benchmarks/low_precision.py --quick    # few steps: does it still run?

How to read the table:

    bytes         of a parameter and of what is stored in addition, without the optimizer's moments
    loss          mean and standard error over the seeds
    off           by how many standard errors of the float32 runs the mean loss exceeds theirs
    accuracy      of the test images, in %
"""

import argparse
import datetime
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import _training
from _tables import add_save, save

from linkax import adamw, precise_weights

BATCH, HIDDEN = 50, 200
WAYS = ("master_copy", "lost_bits", "stochastic_rounding")
EPOCHS = {1e-4: 400, 1e-5: 600}


class Contender(NamedTuple):
    """How the weights are stored."""

    dtype: Any
    by: str | None
    bytes: int

    def optimizer(self, rate: float) -> optax.GradientTransformation:
        return adamw(rate) if self.by is None else precise_weights(adamw(rate), self.by)  # type: ignore[arg-type]


CONTENDERS = (
    Contender(jnp.float32, None, 4),
    Contender(jnp.bfloat16, None, 2),
    Contender(jnp.bfloat16, "master_copy", 6),
    Contender(jnp.bfloat16, "lost_bits", 4),
    Contender(jnp.bfloat16, "stochastic_rounding", 2),
    Contender(jnp.float16, None, 2),
    Contender(jnp.float16, "master_copy", 6),
    Contender(jnp.float16, "stochastic_rounding", 2),
)


def logits(params: Any, x: jax.Array) -> jax.Array:
    w = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    return jax.nn.relu(x @ w["w1"] + w["b1"][None]) @ w["w2"] + w["b2"][None]


def start(key: jax.Array) -> dict[str, jax.Array]:
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (64, HIDDEN)) * np.sqrt(2 / 64),
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(second, (HIDDEN, 10)) * np.sqrt(1 / HIDDEN),
        "b2": jnp.zeros(10),
    }


def train(contender: Contender, rate: float, epochs: int, data: _training.Data, seed: jax.Array) -> Any:
    """The final loss over all training images, and the final accuracy on the test images."""
    x, y, x_test, y_test = data
    key, order_key = jax.random.split(jax.random.key(seed))
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(contender.dtype), start(key))
    tx = contender.optimizer(rate)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    def step(carry: Any, batch: jax.Array) -> Any:
        params, state = carry
        gradients = jax.grad(loss)(params, x[batch], y[batch])
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry: Any, key: jax.Array) -> Any:
        order = jax.random.permutation(key, len(x))[: len(x) // BATCH * BATCH]
        return jax.lax.scan(step, carry, order.reshape(-1, BATCH))

    (params, _), _ = jax.lax.scan(epoch, (params, tx.init(params)), jax.random.split(order_key, epochs))
    return loss(params, x, y), (logits(params, x_test).argmax(axis=-1) == y_test).mean()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind (default: 5)")
    parser.add_argument("--check", action="store_true", help="fail if a method is over a standard error off float32")
    parser.add_argument("--quick", action="store_true", help="few steps: only checks that it still runs")
    add_save(parser)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {options.seeds}")
    data = _training.digits()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "optax", "linkax"))
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(
        f"{datetime.date.today()}: Python {platform.python_version()}, {versions}, {jax.default_backend()}; "
        f"AdamW, {options.seeds} seeds"
    )
    say(f"{'rate':>6}  {'steps':>6}  {'weights':<9}{'by':<21}{'bytes':>5}  {'loss':>17}  {'off':>7}  {'accuracy':>8}")
    failed = []
    for rate, epochs in EPOCHS.items():
        epochs = 2 if options.quick else epochs
        reference = spread = 0.0
        for contender in CONTENDERS:
            run = jax.jit(jax.vmap(lambda seed, c=contender, r=rate, e=epochs: train(c, r, e, data, seed)))
            losses, accuracies = map(np.asarray, run(jnp.arange(options.seeds)))
            mean, error = losses.mean(), losses.std(ddof=1) / np.sqrt(options.seeds)
            if contender.dtype == jnp.float32:
                reference, spread = mean, error
            off = (mean - reference) / spread
            say(
                f"{rate:>6g}  {epochs * (len(data[0]) // BATCH):>6}  {jnp.dtype(contender.dtype).name:<9}"
                f"{contender.by or '':<21}{contender.bytes:>5}  {mean:>8.5f} ± {error:.5f}  {off:>7.2f}  "
                f"{100 * accuracies.mean():>8.2f}"
            )
            if contender.by is not None and not abs(off) <= 1:
                failed.append(f"{jnp.dtype(contender.dtype).name} by {contender.by} at {rate:g}")
    save(options, lines)
    if options.check and failed:
        print(f"more than a standard error off float32: {', '.join(failed)}")
    return int(options.check and bool(failed))


if __name__ == "__main__":
    sys.exit(main())
