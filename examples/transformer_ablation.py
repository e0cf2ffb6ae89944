"""Which link of AdamW matters to a Transformer? The same question as for the digits, for a small language model.

Run it with `python examples/transformer_ablation.py` after `pip install "linkax[examples]"`: 25 minutes on two CPU
cores. A Transformer with two layers learns to predict the next character of the reference that ships with Python
(`pydoc_data.topics`, 465,000 characters of English; the last tenth is for validation), with a warm-up and a cosine
decay of the learning rate.

AdamW and every chain one link away from it are trained from the same seeds, on the same batches, each with its own best
learning rate and decay strength and also with AdamW's. It prints a table and draws a picture: the gain in validation
loss over AdamW with its 95 % confidence interval. Each interval is for one comparison.
"""

from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _effects import effects, present
from _options import Options
from flax import linen as nn
from jax.typing import ArrayLike

from linkax import Chain, adamw
from linkax.transforms import matrices_only

LENGTH, BATCH, WIDTH, HEADS, LAYERS = 32, 32, 64, 4, 2
TEXT = "\n".join(topics.values())
ALPHABET = sorted(set(TEXT))
LEARNING_RATES = [1.5e-3, 3e-3, 6e-3, 0.3, 1.0]  # the last two suit the chain without a second moment
WEIGHT_DECAYS = [1e-4, 0.1]  # what suits L2, and what suits decoupled decay


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The logits of each next character, (batch, length, alphabet), from the characters (batch, length)."""
        places = self.param("places", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        x = nn.Embed(len(ALPHABET), WIDTH)(tokens) + places[None]
        past = nn.make_causal_mask(tokens)
        for _ in range(LAYERS):
            x += nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x), mask=past)
            x += nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
        return nn.Dense(len(ALPHABET))(nn.LayerNorm()(x))


def train(tx: Chain, seed: jax.Array, steps: int, text: jax.Array, validation: jax.Array) -> dict[str, jax.Array]:
    """The validation loss in bits per character after `steps` steps."""
    net = Transformer()
    init_key, batches_key = jax.random.split(jax.random.key(seed))
    params = net.init(init_key, validation[:1, :-1])

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        logits = jnp.asarray(net.apply(params, windows[:, :-1]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean() / jnp.log(2)

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        starts = jax.random.randint(key, (BATCH, 1), 0, len(text) - LENGTH)
        grads = jax.grad(loss)(params, text[starts + jnp.arange(LENGTH + 1)])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(batches_key, steps))
    return {"validation": loss(params, validation)}


def tokens(windows: int) -> dict[str, jax.Array]:
    """The text to train on, and windows of what is left for validation, as numbers of characters."""
    found = jnp.asarray(np.searchsorted(ALPHABET, list(TEXT)), jnp.int32)
    split = len(found) * 9 // 10
    starts = jnp.linspace(split, len(found) - LENGTH - 1, windows).astype(int)
    return {"text": found[:split], "validation": found[starts[:, None] + jnp.arange(LENGTH + 1)]}


def main() -> None:
    options = Options("Ranks the links of AdamW by their effect on a Transformer.", "transformer_ablation.png")
    options.add_count("seeds", "runs per chain", 10, quick=2, least=2)
    options.add_count("tuning-seeds", "runs per chain, learning rate and decay, to find the best", 2, quick=1)
    options.add_count("steps", "training steps", 400, quick=5)
    args = options.parse()
    rates, decays = (LEARNING_RATES[:1], WEIGHT_DECAYS[:2]) if args.quick else (LEARNING_RATES, WEIGHT_DECAYS)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, args.steps // 10, args.steps)

    def optimizer(learning_rate: Any, weight_decay: Any) -> Chain:
        def warmup_then_cosine(count: ArrayLike) -> Any:
            return learning_rate * shape(count)

        return adamw(warmup_then_cosine, weight_decay=weight_decay, weight_decay_mask=matrices_only)

    print(f"{optimizer(3e-3, 0.1)}\n")
    data = tokens(windows=128)

    def run(tx: Chain, seed: jax.Array) -> dict[str, jax.Array]:
        return {"score": -train(tx, seed, args.steps, **data)["validation"]}

    score, rows = effects(run, optimizer, rates, decays, args.tuning_seeds, args.seeds)
    question, label = "Which link of AdamW matters to a Transformer?", "gain in validation loss, bits per character"
    present(rows, question, f"{-score:.2f} bits per character", label, limit=0.15, args=args)


if __name__ == "__main__":
    main()
