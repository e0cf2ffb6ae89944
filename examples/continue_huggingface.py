"""A GPT-2 starts training with Hugging Face's Trainer and finishes in Flax, from the Trainer's own folder.

Run it with `python examples/continue_huggingface.py` after `pip install "linkax[examples]" torch transformers
accelerate`: a minute on two CPU cores. Nothing is downloaded: the model is a small GPT-2 with random weights, and the
text is the reference that ships with Python (`pydoc_data.topics`), character by character.

The Trainer runs with AdamW, weight decay on everything but biases and norms, clipping, and a warm-up with a cosine
decay. Half-way, it saves a folder, and goes on. Flax reads the folder and goes on from there as well, on the same
batches. It prints what is in the folder, and how far apart the two are, and draws both losses.
"""

import os
import tempfile
from pathlib import Path
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

from linkax import apply_updates, chain
from linkax.chains.torch_interop import (
    HF_GPT2,
    HF_GPT2_NAMES,
    from_torch,
    import_params,
    import_state,
    inspect_checkpoint,
    optimizer_order,
    torch_labels,
)
from linkax.transforms import clip_grad_norm

os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import torch
    import transformers
except ImportError:
    raise SystemExit("This example needs PyTorch and Trainer: pip install torch transformers accelerate") from None

LENGTH, BATCH, WIDTH, HEADS, LAYERS = 64, 16, 64, 4, 2
PEAK, CLIP = 3e-3, 1.0
TEXT = "\n".join(topics.values())
ALPHABET = sorted(set(TEXT))
NAMES = {"names": HF_GPT2_NAMES, "layouts": HF_GPT2}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """A layer of GPT-2, with Flax's own attention, where Hugging Face has one matrix for all three inputs."""
        h = nn.LayerNorm(epsilon=1e-5, name="ln_1")(x)
        x += nn.MultiHeadDotProductAttention(HEADS, name="attn")(h, mask=nn.make_causal_mask(h[..., 0]))
        return x + Feedforward(name="mlp")(nn.LayerNorm(epsilon=1e-5, name="ln_2")(x))


class Feedforward(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(WIDTH, name="c_proj")(nn.gelu(nn.Dense(4 * WIDTH, name="c_fc")(x), approximate=True))


class GPT2(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The logits of each next character, (batch, length, alphabet), from the characters (batch, length)."""
        characters = nn.Embed(len(ALPHABET), WIDTH, name="wte")
        x = characters(tokens) + nn.Embed(LENGTH, WIDTH, name="wpe")(jnp.arange(tokens.shape[1]))
        for layer in range(LAYERS):
            x = Block(name=f"h_{layer}")(x)
        return characters.attend(nn.LayerNorm(epsilon=1e-5, name="ln_f")(x))


class Recorder(transformers.Trainer):
    """A Trainer that takes its batches in order, and records the loss of each."""

    losses: list[float]

    def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        loss = super().compute_loss(model, inputs, **{**options, "return_outputs": False})
        self.losses.append(float(loss.detach()))  # type: ignore[union-attr]
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        data: Any = train_dataset or self.train_dataset
        return torch.utils.data.SequentialSampler(data)


def train_torch(windows: np.ndarray, steps: int, half: int, folder: str) -> tuple[list[float], Any]:
    """Trains with the Trainer, which saves a folder half-way; returns the losses and the model."""
    transformers.set_seed(0)
    torch.set_num_threads(1)  # the tensors are small
    config = transformers.GPT2Config(
        vocab_size=len(ALPHABET), n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    arguments = transformers.TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=PEAK, weight_decay=0.1,
        max_grad_norm=CLIP, lr_scheduler_type="cosine", warmup_steps=steps // 10, save_steps=half, save_total_limit=2,
        logging_strategy="no", report_to=[], use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    # The first character has nothing before it. The loss leaves it out, and the Trainer must not count it.
    labels = np.where(np.arange(LENGTH) == 0, -100, windows)
    data: Any = [{"input_ids": one, "labels": its} for one, its in zip(windows, labels)]
    trainer = Recorder(model, arguments, train_dataset=data)
    trainer.losses = []
    trainer.train()
    return trainer.losses, model


def cosine_with_warmup(steps: int) -> Any:
    """The Trainer's factors of the learning rate, which its file does not hold: a function is no data."""
    one = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    return transformers.get_cosine_schedule_with_warmup(one, steps // 10, steps).lr_lambdas[0]


def main() -> None:
    options = Options("Continues a Trainer's run of GPT-2 in Flax.", "continue_huggingface.png")
    options.add_count("steps", "training steps, half of them before the move", 400, quick=20, least=20)
    args = options.parse()
    half = args.steps // 2
    text = np.searchsorted(ALPHABET, list(TEXT))
    starts = np.random.default_rng(0).integers(0, len(text) - LENGTH, args.steps * BATCH)
    windows = text[starts[:, None] + np.arange(LENGTH)]

    with tempfile.TemporaryDirectory() as folder:
        theirs, model = train_torch(windows, args.steps, half, folder)
        saved = inspect_checkpoint(Path(folder) / f"checkpoint-{half}")
        print(f"\nThe Trainer's folder:\n{saved}\n")
        (optimizer,) = saved.optimizers
        # The folder does not say in which order the optimizer has its parameters, but the Trainer's rule is known.
        order = optimizer_order(saved, "trainer", names=[name for name, _ in model.named_parameters()])
        net = GPT2()
        shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, LENGTH), int))["params"]
        assert optimizer.name is not None
        adamw = from_torch(
            (optimizer.name, optimizer.param_groups),
            torch_labels(optimizer.param_groups, shapes, order=order, **NAMES),
            schedulers=("LambdaLR", saved.schedulers[0]),
            lambdas=cosine_with_warmup(args.steps),
            total_steps=args.steps,
        )
        tx = chain(clip_grad_norm(CLIP), adamw)
        params = import_params(shapes, saved.model, **NAMES)
        state = import_state(tx, params, optimizer.state_dict, order=order, **NAMES)

    @jax.jit
    def step(params: dict, state: optax.OptState, tokens: jax.Array) -> tuple[dict, optax.OptState, jax.Array]:
        def loss(params: dict) -> jax.Array:
            logits = jnp.asarray(net.apply({"params": params}, tokens[:, :-1]))
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state, value

    ours = []
    for batch in tqdm(windows.reshape(args.steps, BATCH, LENGTH)[half:], desc="Flax continues", unit="step"):
        params, state, value = step(params, state, jnp.asarray(batch))
        ours.append(float(value))

    apart = max(abs(a - b) / a for a, b in zip(theirs[half:], ours))
    answer = f"Yes: over {args.steps - half} steps, the losses differ by {apart:.1e} of their size at most"
    print(f"\n{answer}")
    title = f"Does a Trainer's run of GPT-2 continue in Flax as it would have in PyTorch?\n{answer}"
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, args.steps + 1), theirs, color=look("Adam")["color"], linewidth=4, alpha=0.4, label="Trainer")
    axes.plot(
        range(half + 1, args.steps + 1), ours, color=look("AdamW")["color"], linewidth=1, label="Flax, from its folder"
    )
    axes.axvline(half + 0.5, color="black", linestyle=":", label="moved")
    axes.set(xlabel="step", ylabel="training loss of the batch (nats per character)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, args)


if __name__ == "__main__":
    main()
