"""An embedding table with a million rows learns from the few rows that each batch looks up.

Run it with `python examples/sparse_embedding.py` after `pip install "linkax[examples]"`: a minute on two CPU cores.

A model learns which word follows two others in the reference that ships with Python (`pydoc_data.topics`). The pair of
words is hashed into a table of a million rows. Flax's `perturb` gives the gradient of the rows that were looked up;
`row_gradient` makes it that of the table, and the optimizer reads and writes these rows only. Everything else has
ordinary gradients; `param_groups` gives it another optimizer.

The same training with ordinary gradients of the table reaches the same loss; the example prints and draws both, and how
much longer a step takes. (Adagrad is the same with both kinds of gradient. Lazy and ordinary Adam are not.)
"""

import re
import time
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _looks import look, save
from _options import Options
from flax import linen as nn
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from tqdm import tqdm

from linkax import Chain, adagrad, adamw, apply_updates, param_groups
from linkax.transforms import row_gradient

ROWS, WIDTH, BATCH, VOCABULARY = 1_000_000, 32, 512, 1000
TX = param_groups(
    {"table": adagrad(0.3, eps=1e-6), "rest": adamw(3e-3)},
    lambda path, _: "table" if path == "params/table/embedding" else "rest",
)


class Net(nn.Module):
    @nn.compact
    def __call__(self, pairs: jax.Array) -> jax.Array:
        """The logits of the word that follows, (batch, VOCABULARY), from the hashed pair before it, (batch,)."""
        rows = nn.Embed(ROWS, WIDTH, name="table", embedding_init=nn.initializers.normal(0.1))(pairs)
        rows = self.perturb("rows", rows)  # adds zeros, and the gradient with respect to them is that of the rows
        return nn.Dense(VOCABULARY)(nn.relu(nn.Dense(64)(rows)))


NET = Net()


def loss(params: Any, perturbations: Any, pairs: jax.Array, words: jax.Array) -> jax.Array:
    logits = jnp.asarray(NET.apply({**params, "perturbations": perturbations}, pairs))
    return optax.softmax_cross_entropy_with_integer_labels(logits, words).mean()


def rows_and_rest(params: Any, pairs: jax.Array, words: jax.Array) -> tuple[jax.Array, Any]:
    """The loss, and gradients in which the table's is that of its touched rows."""
    table = params["params"]["table"]["embedding"]
    rest = {name: value for name, value in params["params"].items() if name != "table"}

    def of_rest(rest: Any, zeros: Any) -> jax.Array:
        return loss({"params": {**rest, "table": {"embedding": table}}}, zeros, pairs, words)

    zeros = {"rows": jnp.zeros((*pairs.shape, WIDTH))}
    value, (grads, rows) = jax.value_and_grad(of_rest, argnums=(0, 1))(rest, zeros)
    return value, {"params": {**grads, "table": {"embedding": row_gradient(table, pairs, rows["rows"])}}}


def whole(params: Any, pairs: jax.Array, words: jax.Array) -> tuple[jax.Array, Any]:
    """The loss and ordinary gradients."""
    return jax.value_and_grad(loss)(params, {"rows": jnp.zeros((*pairs.shape, WIDTH))}, pairs, words)


@partial(jax.jit, static_argnames=("tx", "gradient"), donate_argnames=("params", "state"))
def step(tx: Chain, gradient: Any, params: Any, state: Any, pairs: jax.Array, words: jax.Array) -> tuple:
    value, grads = gradient(params, pairs, words)
    updates, state = tx.update(grads, state, params)
    return apply_updates(params, updates), state, value


def text() -> tuple[np.ndarray, np.ndarray]:
    """Every pair of words in the text as a row of the table, and the number of the word that follows."""
    words = re.findall(r"\w+|[^\w\s]", "\n".join(topics.values()).lower())
    kinds, numbers, counts = np.unique(words, return_inverse=True, return_counts=True)
    common = np.full(len(kinds), 0)  # 0: any rare word
    common[np.argsort(-counts)[: VOCABULARY - 1]] = np.arange(1, VOCABULARY)
    pairs = (numbers[:-2].astype(np.int64) * 1_000_003 + numbers[1:-1]) % ROWS
    return pairs, common[numbers[2:]]


def main() -> None:
    options = Options("Trains an embedding with a million rows through its touched rows.", "sparse_embedding.png")
    options.add_count("steps", "training steps", 1000, quick=5)
    args = options.parse()
    pairs, words = text()
    print(
        f"{len(words):,} words; a table of {ROWS:,} rows, {len(np.unique(pairs)):,} of which are ever touched\n{TX}\n"
    )
    batches = np.random.default_rng(0).integers(0, len(words), (args.steps, BATCH))

    curves: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for name, gradient in (("touched rows", rows_and_rest), ("whole table", whole)):
        params = {"params": NET.init(jax.random.key(0), pairs[:1])["params"]}
        state, losses, times = TX.init(params), [], []
        # A whole table's step takes seconds of the machine's memory traffic: fewer of them are enough to compare.
        for batch in tqdm(batches if gradient is rows_and_rest else batches[: args.steps // 5], desc=name, unit="step"):
            start = time.perf_counter()
            params, state, value = step(TX, gradient, params, state, pairs[batch], words[batch])
            losses.append(float(value))
            times.append(time.perf_counter() - start)
        curves[name], seconds[name] = np.array(losses), float(np.median(times))

    print(f"\n{'gradient':<13}  {'ms per step':>11}  {'first loss':>10}  {'last loss':>9}  steps")
    for name, losses in curves.items():
        print(f"{name:<13}  {1000 * seconds[name]:11.2f}  {losses[0]:10.4f}  {losses[-1]:9.4f}  {len(losses):5}")
    both = len(curves["whole table"])
    apart = np.abs(curves["touched rows"][:both] / curves["whole table"] - 1).max()
    ratio = seconds["whole table"] / seconds["touched rows"]
    answer = f"The losses differ by {apart:.0e} at most; a step on the whole table takes {ratio:.0f} times as long"
    print(answer)
    title = f"Does updating only the touched rows change the training?\n{answer}"

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    color = look("Adagrad")["color"]
    axes.plot(curves["whole table"], color="black", linewidth=4, alpha=0.4, label="whole table, the first fifth")
    axes.plot(curves["touched rows"], color=color, linewidth=1, label="touched rows")
    axes.set(xlabel="step", ylabel="training loss (cross-entropy in nats)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, args)


if __name__ == "__main__":
    main()
