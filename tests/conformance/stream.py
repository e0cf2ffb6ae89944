"""The fixed stream of gradients, and how a chain walks along it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 500


def parameters() -> dict[str, np.ndarray]:
    """Three leaves that get gradients, and one that never does."""
    rng = np.random.default_rng(20)
    return {
        "wild": rng.normal(size=(2, 3)),
        "tame": rng.normal(size=(3,)),
        "scalar": rng.normal(size=()),
        "idle": rng.normal(size=(2,)),
    }


def taken_by(name: str, tree: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer takes of the parameters or gradients: Muon only the matrix."""
    return {"wild": tree["wild"]} if name == "Muon" else tree


def gradients(*, zeros: bool = True) -> dict[str, Any]:
    """Gradients for every step, stacked; `None` for the leaf that has none.

    "wild" has magnitudes from 1e-12 to 1e6, an element that is always zero, one that is zero for a hundred steps, and
    one whose sign flips every step; "tame" looks like training; "scalar" is exactly zero at first. Without `zeros`
    there are none.
    """
    rng = np.random.default_rng(21)
    wild = rng.normal(size=(STEPS, 2, 3)) * 10.0 ** rng.uniform(-12, 6, size=(STEPS, 2, 3))
    wild[:, 1, 2] = np.abs(wild[:, 1, 2]) * (-1.0) ** np.arange(STEPS)
    tame = rng.normal(size=(STEPS, 3)) + np.array([0.5, -0.1, 0.0])
    scalar = rng.normal(size=STEPS)
    if zeros:
        wild[:, 0, 0] = 0
        wild[100:200, 0, 1] = 0
        scalar[:20] = 0
    return {"wild": wild, "tame": tame, "scalar": scalar, "idle": None}


def gradients_for(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The stream on which an optimizer with these arguments is well-conditioned.

    Where the gradient is zero, L2 is all that is left of it, and hardly changes from step to step; its variance is then
    a difference of almost equal numbers, and what remains after rounding is any implementation's own.
    """
    return gradients(zeros=not (arguments.get("centered") and arguments.get("weight_decay")))


def walk(tx: optax.GradientTransformation, params: Any, grads: Any) -> Any:
    """The parameters after every step of `tx` along the stream, stacked."""

    def step(carry, g):
        w, state = carry
        updates, state = tx.update(g, state, w)
        # optax.apply_updates, but a leaf without a gradient has no update either.
        w = jax.tree.map(lambda p, u: p if u is None else p + u, w, updates, is_leaf=lambda x: x is None)
        return (w, state), w

    @jax.jit
    def run(w, stream):
        return jax.lax.scan(step, (w, tx.init(w)), stream)[1]

    return jax.tree.map(np.asarray, run(jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, grads)))


def assert_same_path(
    ours: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    rtol: float = 1e-12,
    nudged: Callable[[int], dict[str, np.ndarray]] | None = None,
) -> None:
    """Every parameter at every step agrees to `rtol`, relative to the largest it has been so far.

    (A parameter that has been at 1e5 and comes back to 1e-3 has kept the rounding it got out there.)

    L2 decay closes the loop from the weights to the gradients, and some hyperparameters make that loop amplify: there
    PyTorch itself, its weights rounded otherwise, is further than `rtol` away. `nudged(seed)` is such a path;
    it is only asked for where `rtol` is missed, and what eight of them differ by is then all that can be asked of ours.
    """
    spread = {name: np.zeros_like(np.abs(expected)) for name, expected in theirs.items()}
    if nudged is not None and any(_beyond(ours[name], theirs[name], rtol, spread[name]).any() for name in theirs):
        for seed in range(8):
            path = nudged(seed)
            for name, expected in theirs.items():
                away = np.maximum.accumulate(np.nan_to_num(np.abs(path[name] - expected)), axis=0)
                spread[name] = np.maximum(spread[name], away)
    for name, expected in theirs.items():
        # NaN is an answer too: with eps=0 an element without any gradient becomes 0/0 everywhere.
        np.testing.assert_array_equal(np.isnan(ours[name]), np.isnan(expected), err_msg=name)
        wrong = _beyond(ours[name], expected, rtol, spread[name])
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            worst = np.nanmax(np.abs(ours[name] - expected) / np.maximum.accumulate(np.abs(expected), axis=0))
            raise AssertionError(f"{name}{at}: {ours[name][at]!r}, expected {expected[at]!r}; worst {worst:.1e}")


def _beyond(ours: np.ndarray, theirs: np.ndarray, rtol: float, spread: np.ndarray) -> np.ndarray:
    """Where the two differ by more than `rtol` of the largest value so far, and by more than twice the spread."""
    allowed = np.maximum(rtol * np.maximum.accumulate(np.abs(theirs), axis=0), 2 * spread)
    return ~(np.abs(ours - theirs) <= allowed) & ~np.isnan(theirs)
