"""Which link of AdamW matters to a Transformer? The digits' question, asked of a small language model.

Run it with `python examples/transformer_ablation.py` after `pip install "linkax[examples]"`: some minutes on two CPU
cores. A Transformer with two layers learns to predict the next character of the reference that ships with Python
(`pydoc_data.topics`, 465,000 characters of English; the last tenth is for validation), with a warm-up and a cosine
decay of the learning rate.

AdamW and every chain one link away from it train from the same seeds, on the same batches. One sees the change in
validation loss against AdamW with its 95 % confidence interval, as a table and as a picture; lower is better. The
learning rate suits AdamW; an ablated chain might do better with another. Each interval is for one comparison.
"""

from functools import partial
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _effects import draw, effects, show
from _options import Options
from flax import linen as nn

from linkax.chains import Chain, ablations, adamw, sweep
from linkax.transforms import matrices_only

LENGTH, BATCH, WIDTH, HEADS, LAYERS = 32, 32, 64, 4, 2
TEXT = "\n".join(topics.values())
ALPHABET = sorted(set(TEXT))


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
    options = Options("Ranks the links of AdamW by what a Transformer loses without them.", "transformer_ablation.png")
    options.add_count("seeds", "runs per chain", 5, quick=2, least=2)
    options.add_count("steps", "training steps", 600, quick=5)
    args = options.parse()

    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, args.steps // 10, args.steps)
    tx = adamw(schedule, weight_decay=0.1, weight_decay_mask=matrices_only)
    print(f"{tx}\n")
    variants = {"AdamW": tx, **ablations(tx)}
    table = sweep(partial(train, steps=args.steps, **tokens(windows=128)), {"seed": range(args.seeds)}, variants)

    found = {name: table["validation"].sel(variant=name).values for name in variants}
    rows = effects(found, "AdamW")
    show(rows, "AdamW", found["AdamW"].mean(), "bits per character", decimals=3)
    certain = sum(row.is_certain for row in rows)
    title = (
        f"{certain} of {len(rows)} one-link changes to AdamW matter to a Transformer (95 % each, {args.seeds} seeds)"
    )
    label = "change in validation loss against AdamW, in bits per character"
    draw(rows, title, label, more_is_better=False, linear_to=0.1, out=args.out)
    print(f"\n{title}.\nThe picture is {args.out}")


if __name__ == "__main__":
    main()
