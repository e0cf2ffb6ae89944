"""The float32 stream, and how its errors are measured."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"lr_decay": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"momentum": 0.9}),
    ("Adadelta", {}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {}),
    ("NAdam", {}),
)


def stream() -> np.ndarray:
    """A thousand float32 gradients of 64 elements of different sizes."""
    rng = np.random.default_rng(22)
    return (rng.normal(size=(1000, 64)) * np.exp(rng.normal(size=64))).astype(np.float32)


def updates_from_zero(tx: optax.GradientTransformation, grads: np.ndarray, dtype: Any) -> np.ndarray:
    """The updates of every step, with the parameters at 0 (where weight decay has nothing to do)."""
    params = jnp.zeros(grads.shape[1:], dtype)

    def step(state, g):
        updates, state = tx.update(g, state, params)
        return state, updates

    run = jax.jit(lambda stream: jax.lax.scan(step, tx.init(params), stream)[1])
    return np.asarray(run(jnp.asarray(grads, dtype)), np.float64)


def relative_error(updates: np.ndarray, exact: np.ndarray) -> float:
    """The largest relative error of a step, in the norm of the step."""
    return float(np.max(np.linalg.norm(updates - exact, axis=1) / np.linalg.norm(exact, axis=1)))
