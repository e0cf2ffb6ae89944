"""A run of Hugging Face's Trainer in float64, continued in Flax from its folder, and the other way around."""

import os
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax import apply_updates, chain
from linkax.chains.algebra._paths import leaves_with_path, path_text
from linkax.chains.torch_interop import (
    HF_GPT2,
    export_params,
    export_state,
    from_torch,
    import_params,
    import_state,
    inspect_checkpoint,
    optimizer_order,
    renamed,
    torch_labels,
)
from linkax.transforms import clip_grad_norm

torch = pytest.importorskip("torch", reason="continues the runs of the installed PyTorch")
os.environ["HF_HUB_OFFLINE"] = "1"
safetensors = pytest.importorskip("safetensors.torch", reason="reads and writes the Trainer's weights")
transformers = pytest.importorskip("transformers", reason="continues the runs of the installed Trainer")

from . import models  # noqa: E402

BEFORE, AFTER, BATCH = 20, 40, 4
TOLERANCE = 1e-11  # as in test_real_runs: two roundings of float64, amplified by training
NAMES = renamed({"": "transformer", "h_*": "transformer.h.*", "h_*.c_*": "transformer.h.*.mlp.c_*"})
MAPPING: dict[str, Any] = {"names": NAMES, "layouts": HF_GPT2}


class InOrder(transformers.Trainer):
    """A Trainer that takes its batches in their order, with a loss in float64: the model's own is in float32."""

    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Any:
        logits = model(inputs["input_ids"]).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["input_ids"][:, 1:].flatten())

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset if dataset is None else dataset)


def texts() -> np.ndarray:
    """Python's own documentation, in windows of few different characters."""
    text = np.array([ord(one) % models.VOCABULARY for one in "".join(topics.values())[:20_000]])
    starts = np.random.default_rng(0).integers(0, len(text) - models.CONTEXT, (BEFORE + AFTER) * BATCH)
    return text[starts[:, None] + np.arange(models.CONTEXT)]


def trainer_in(folder: Path) -> Any:
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=models.VOCABULARY, n_positions=models.CONTEXT, n_embd=models.WIDTH, n_layer=models.LAYERS,
        n_head=models.HEADS, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=BEFORE + AFTER, save_steps=BEFORE, per_device_train_batch_size=BATCH, learning_rate=3e-3,
        weight_decay=0.1, max_grad_norm=1.0, lr_scheduler_type="cosine", warmup_steps=5, logging_strategy="no",
        report_to=[], use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, optim="adamw_torch",
    )  # fmt: skip
    # The first character has nothing before it: the loss leaves it out, and the Trainer must not count it.
    data = [{"input_ids": one, "labels": np.where(np.arange(len(one)) == 0, -100, one)} for one in texts()]
    return InOrder(transformers.GPT2LMHeadModel(config).double(), arguments, train_dataset=data)


def chain_like(optimizer: Any, groups: Any, scheduler: Any, trainer: Any, order: list[str], like: Any) -> Any:
    """The Trainer's AdamW, with its two groups, schedule and clipping."""
    tx = from_torch(
        optimizer,
        torch_labels(groups, like, order=order, **MAPPING),
        schedulers=scheduler,
        lambdas=trainer.lr_scheduler.lr_lambdas[0] if isinstance(scheduler, tuple) else None,
        total_steps=BEFORE + AFTER,
        report=None,
    )
    return chain(clip_grad_norm(1.0), tx)


def trained(tx: Any, params: Any, state: Any, batches: np.ndarray) -> tuple[Any, Any]:
    @jax.jit
    def step(params, state, tokens):
        def loss(params):
            logits = models.LinenGPT(has_tanh=True).apply({"params": params}, tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return apply_updates(params, updates), state

    for tokens in batches:
        params, state = step(params, state, tokens)
    return params, state


def assert_same_weights(params: Any, model: Any) -> None:
    theirs = dict(leaves_with_path(import_params(params, model, **MAPPING)))
    for path, ours in leaves_with_path(params):
        np.testing.assert_allclose(ours, theirs[path], rtol=0, atol=TOLERANCE, err_msg=path_text(path))


@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_a_trainers_run_goes_on_in_flax_and_back(x64, tmp_path):
    batches = texts().reshape(BEFORE + AFTER, BATCH, models.CONTEXT)
    net = models.LinenGPT(has_tanh=True)
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, models.CONTEXT), int))["params"]
    trainer = trainer_in(tmp_path / "there")
    names = [name for name, _ in trainer.model.named_parameters()]
    start = import_params(like, trainer.model.state_dict(), **MAPPING)
    trainer.train()
    end = inspect_checkpoint(tmp_path / "there" / f"checkpoint-{BEFORE + AFTER}").model

    folder = tmp_path / "there" / f"checkpoint-{BEFORE}"
    saved = inspect_checkpoint(folder)
    order = optimizer_order(saved, "trainer", names=names)
    (optimizer,), (scheduler,) = saved.optimizers, saved.schedulers
    of = (optimizer.name, optimizer.param_groups), optimizer.param_groups, ("LambdaLR", scheduler)
    tx = chain_like(*of, trainer, order, like)
    params = import_params(like, saved.model, **MAPPING)
    state = import_state(tx, params, optimizer.state_dict, order=order, **MAPPING)
    assert_same_weights(trained(tx, params, state, batches[BEFORE:])[0], end)

    # The other way around: the first steps in Flax, which then replace weights and moments in the folder.
    other = trainer_in(tmp_path / "back")
    other.create_optimizer_and_scheduler(BEFORE + AFTER)
    groups = other.optimizer.state_dict()["param_groups"]
    tx = chain_like(other.optimizer, groups, other.lr_scheduler, other, order, like)
    params, state = trained(tx, start, tx.init(start), batches[:BEFORE])
    template = torch.load(folder / "optimizer.pt", weights_only=True)
    template["state"] = {}
    moments = export_state(tx, params, state, template, order=order, **MAPPING)
    moments["state"] = jax.tree.map(torch.as_tensor, moments["state"])
    torch.save(moments, folder / "optimizer.pt")
    weights = {name: torch.from_numpy(w) for name, w in export_params(params, **MAPPING).items()}
    del weights["lm_head.weight"]  # the same as wte's, and safetensors keep it once
    safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    again = trainer_in(tmp_path / "again")
    again.train(resume_from_checkpoint=str(folder))
    assert_same_weights(import_params(like, end, **MAPPING), again.model.state_dict())
