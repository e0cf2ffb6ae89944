"""What several examples share: the handwritten digits, and a small network that learns them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

NET = nn.Sequential([nn.Dense(200), nn.relu, nn.Dense(10)])
BATCH = 50


class Data(NamedTuple):
    """Images, a row each with values from 0 to 1, and their labels."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    y_test: jax.Array


def digits(noise: float = 0.0) -> Data:
    """Scikit-learn's 8×8 digits, 900 to train with; a fraction `noise` of the training labels is drawn at random."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(images / 16, labels, train_size=900, stratify=labels, random_state=0)
    rng = np.random.default_rng(0)
    y = np.where(rng.random(len(y)) < noise, rng.integers(0, 10, len(y)), y)
    return Data(jnp.asarray(x), jnp.asarray(y), jnp.asarray(x_test), jnp.asarray(y_test))


def epoch(
    tx: optax.GradientTransformation, data: Data, params: Any, state: optax.OptState, key: jax.Array
) -> tuple[Any, optax.OptState, jax.Array]:
    """One pass over the training images in the order of `key`: the new weights and state, and the mean loss."""

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        logits = jnp.asarray(NET.apply(params, data.x[batch]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.y[batch]).mean()

    def step(carry: tuple, batch: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    order = jax.random.permutation(key, len(data.x))[: len(data.x) // BATCH * BATCH]
    (params, state), losses = jax.lax.scan(step, (params, state), order.reshape(-1, BATCH))
    return params, state, losses.mean()


def accuracy(data: Data, params: Any) -> jax.Array:
    """How many of the test images the network gets right, in %."""
    return 100 * (jnp.asarray(NET.apply(params, data.x_test)).argmax(axis=-1) == data.y_test).mean()


def train(tx: optax.GradientTransformation, seed: jax.Array, data: Data, epochs: int) -> dict[str, jax.Array]:
    """A whole training, as `sweep` takes it; a seed means the same first weights and the same batches for every tx."""
    init_key, order_key = jax.random.split(jax.random.key(seed))
    params = NET.init(init_key, data.x)

    def one(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = carry
        params, state, loss = epoch(tx, data, params, state, key)
        return (params, state), loss

    (params, _), losses = jax.lax.scan(one, (params, tx.init(params)), jax.random.split(order_key, epochs))
    return {"loss": losses, "accuracy": accuracy(data, params)}
