"""A short but complete training loop with Flax Linen: jitted, with schedule, clipping, evaluation and checkpoints.

Run it with `python examples/flax_linen_loop.py` after `pip install "linkax[examples]"`: it takes seconds. With
`--checkpoints FOLDER` it keeps a checkpoint of the last epoch there, and resumes from it when it is run again. The
result is the same to the last bit as without the interruption, because the state holds everything that a step depends
on, and an epoch's order of the batches follows from its number.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from _training import Data, digits
from flax import linen as nn
from flax.training.train_state import TrainState

from linkax import adamw, chain
from linkax.transforms import matrices_only

BATCH = 50


def create(data: Data, epochs: int) -> tuple[TrainState, optax.Schedule]:
    model = nn.Sequential([nn.Dense(200), nn.relu, nn.Dense(10)])
    steps = epochs * (len(data.x) // BATCH)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak_value=3e-3, warmup_steps=steps // 10, decay_steps=steps)
    tx = chain(optax.clip_by_global_norm(1.0), adamw(schedule, weight_decay=0.1, weight_decay_mask=matrices_only))
    print(tx)
    params = model.init(jax.random.key(0), data.x[:1])
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx), schedule


@jax.jit
def train_step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
    def loss(params: dict) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(state.apply_fn(params, x), y).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


@jax.jit
def evaluate(state: TrainState, x: jax.Array, y: jax.Array) -> jax.Array:
    return 100 * (state.apply_fn(state.params, x).argmax(axis=-1) == y).mean()


def train(data: Data, epochs: int, folder: Path, stop_after: int | None = None) -> TrainState:
    """Trains from the last checkpoint in `folder`, if there is one, up to `epochs`, or only up to `stop_after`."""
    state, schedule = create(data, epochs)
    with ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(max_to_keep=1)) as checkpoints:
        done = checkpoints.latest_step() or 0
        if done:
            state = checkpoints.restore(done, args=ocp.args.StandardRestore(state))
            print(f"resumes after epoch {done}, from {folder}")
        print("epoch     loss  test accuracy in %  learning rate")
        for epoch in range(done, stop_after or epochs):
            losses = []
            order = jax.random.permutation(jax.random.fold_in(jax.random.key(1), epoch), len(data.x))
            for batch in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
                state, loss = train_step(state, data.x[batch], data.y[batch])
                losses.append(loss)
            right, rate = evaluate(state, data.x_test, data.y_test), schedule(state.step)
            print(f"{epoch + 1:5}  {jnp.stack(losses).mean():7.4f}  {right:18.2f}  {rate:13.2e}")
            checkpoints.save(epoch + 1, args=ocp.args.StandardSave(state))
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a small network on the digits with Flax Linen.")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training set (default: 10)")
    parser.add_argument("--checkpoints", type=Path, help="a folder for checkpoints (default: none are kept)")
    parser.add_argument("--quick", action="store_true", help="two epochs")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.checkpoints or Path(temporary)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--checkpoints must be a folder, or a place for one, got {folder} ({error})")
        train(digits(), 2 if args.quick else args.epochs, folder)


if __name__ == "__main__":
    main()
