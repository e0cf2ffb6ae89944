"""The float32 stream, and how its errors are measured; run as a script, the errors as a table.

    python -m tests.conformance.float32

PyTorch's errors are read from recorded.npz.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .cases import chain_like

FILE = pathlib.Path(__file__).with_name("recorded.npz")

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
    ("Adamax", {}),
    ("RAdam", {}),
    ("Rprop", {}),
    ("ASGD", {}),
    ("Adafactor", {}),
    ("Muon", {}),
)


def stream(name: str = "") -> np.ndarray:
    """A thousand float32 gradients of 64 elements of different sizes; matrices, if the optimizer treats them apart."""
    rng = np.random.default_rng(22)
    grads = (rng.normal(size=(1000, 64)) * np.exp(rng.normal(size=64))).astype(np.float32)
    return grads.reshape(1000, 4, 16) if name in ("Adafactor", "Muon") else grads


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
    updates, exact = updates.reshape(len(updates), -1), exact.reshape(len(exact), -1)
    lengths = np.linalg.norm(exact, axis=1)
    return float(np.max(np.linalg.norm(updates - exact, axis=1)[lengths > 0] / lengths[lengths > 0]))


def exact_updates(tx: Callable[[], optax.GradientTransformation], grads: np.ndarray) -> np.ndarray:
    """The updates in float64."""
    jax.config.update("jax_enable_x64", True)
    try:
        return updates_from_zero(tx(), grads, np.float64)
    finally:
        jax.config.update("jax_enable_x64", False)


def recorded_error(name: str, arguments: dict[str, Any]) -> float:
    """PyTorch's error, as record.py measured it."""
    with np.load(FILE) as recorded:
        return float(recorded[f"float32/{name}/{json.dumps(arguments)}"])


def main() -> None:
    """Prints the table."""
    print("| optimizer | linkax | PyTorch | Optax |\n|---|---|---|---|")
    optaxs = {"Adam": optax.adam(1e-3), "AdamW": optax.adamw(1e-3), "RMSprop": None, "SGD": optax.sgd(0.1, 0.9)}
    for name, arguments in CASES:
        exact = exact_updates(lambda: chain_like(name, arguments), stream(name))  # noqa: B023
        ours = relative_error(updates_from_zero(chain_like(name, arguments), stream(name), np.float32), exact)
        peer = optaxs.get(name) if set(arguments) <= {"lr", "momentum"} and arguments.keys() != {"momentum"} else None
        theirs = f"{relative_error(updates_from_zero(peer, stream(), np.float32), exact):.1e}" if peer else ""
        text = ", ".join(f"{key}={value}" for key, value in arguments.items())
        print(f"| `{name}({text})` | {ours:.1e} | {recorded_error(name, arguments):.1e} | {theirs} |")


if __name__ == "__main__":
    main()
