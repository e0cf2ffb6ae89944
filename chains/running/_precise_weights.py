"""Low-precision parameters that train as if they were float32."""

import functools
import zlib
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linkax.transforms import Count, Link, Weights, link
from linkax.transforms._check import checked, whole_number
from linkax.transforms._leaves import (
    check_leaves,
    dtype_of,
    in_dtype_of,
    increment,
    is_one_leaf,
    sharded_like,
    split_alike,
    widened,
)
from linkax.transforms._link import links_of
from linkax.transforms._precision import wide_inside
from linkax.transforms._rounding import LARGEST_SEED, seed_of
from linkax.transforms._trees import is_missing, listed, path_text

from ..algebra._chain import Chain, chain
from ._weight_bits import LOW, difference, joined, lost_beside, nearest, nearest_splitting, stochastically, widen

By = Literal["master_copy", "lost_bits", "stochastic_rounding"]


class PreciseWeightsState(NamedTuple):
    """State of `precise_weights`; `None` where nothing is stored, as for every float32 parameter."""

    count: jax.Array | None  # pyright: ignore  # () int32: steps taken, which vary the noise of stochastic rounding
    master: Any  # shapes of the parameters, float32: the weights
    lost: Any  # shapes of the parameters, int16: the weights minus the parameters
    inner: Any  # the state of the optimizer inside


@checked
def precise_weights(tx: optax.GradientTransformation, by: By = "master_copy", *, seed: int = 0) -> Chain:
    """Trains bfloat16 and float16 parameters as if they were float32.

    A bfloat16 has 8 binary digits, so w + u is w again for every update smaller than w/512, and training with small
    steps stands still. Here the wrapped optimizer sees and updates float32 weights W, and the parameters are these
    weights, rounded: W_{t+1} = W_t + u_t, w_{t+1} = round(W_{t+1}).

    | `by`                    | bytes/parameter   | what is stored                                            |
    | ----------------------- | ----------------- | --------------------------------------------------------- |
    | `"master_copy"`         | 4                 | W                                                         |
    | `"lost_bits"`           | 2                 | W − w, in units of the last bit of W; for bfloat16 only   |
    | `"stochastic_rounding"` | 0                 | nothing: w + u is rounded up or down, exact on average    |

    With the first two, W is that of float32 training on the same gradients, bit for bit if both are compiled alike.
    Parameters that are float32 or wider are left to the wrapped optimizer, and nothing is stored for them.

    The updates are float32, even for bfloat16 parameters, and `optax.apply_updates`, which Flax's `TrainState` and
    `nnx.Optimizer` use, turns them into exactly the next parameters. Nothing may come between. Optax's wrappers may be
    outside or inside. Those that need updates in the dtype of the gradients (`optax.apply_if_finite`, if these are
    bfloat16), and `optax.inject_hyperparams`, which rounds numbers to the dtype of the parameters, belong inside.
    `optax.lookahead` can be neither: it sets the parameters to averages of its own and rounds them, so small updates
    are lost again.

    If the parameters are not those of the last step, because some were clipped or loaded, the master copy adopts those
    that differ. Lost bits cannot detect this; they then shift a parameter by at most half the spacing of bfloat16
    numbers, so the weight still rounds to it. `with_full_weights` sets both.

    `migrate` converts from a plain chain, whose parameters become the weights, and between the values of `by`, keeping
    the weights. Back to a plain chain, what it lists as dropped is lost.

    Args:
        tx: The optimizer, such as `adamw(1e-5)`. It gets the weights and the gradients in float32.
        by: `"master_copy"`, `"lost_bits"` or `"stochastic_rounding"`.
        seed: The seed of stochastic rounding, an integer from 0 to 2³² − 1. The noise also depends on the step, the
            parameter's path and the value, but not on how arrays are sharded; equal values are rounded alike.

    Returns:
        A chain of one link, `float32_weights`, whose state is `PreciseWeightsState(count, master, lost, inner)`. It
        must be the last link, so `tx.add` and `chain` raise if a link comes after it.

    Raises:
        ValueError: If `by` or `seed` is invalid; from `init` and `update`, if parameters are float8 or, with
            `"lost_bits"`, float16; from `update`, if no parameters are given.
        TypeError: If `tx` is not a transformation; for row-sparse gradients.

    Differences:
        PyTorch: `torch.amp` keeps the parameters in float32 and casts copies of them; Apex and DeepSpeed keep a master
        copy next to a 16-bit model, which `with_full_weights` and `full_weights` import and export. Optax has no
        equivalent.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from linkax import full_weights, precise_weights, sgd
        >>> tx = precise_weights(sgd(1e-3), by="lost_bits")
        >>> tx
        chain
        └─ float32_weights(by='lost_bits')
           └─ scale_by_learning_rate(learning_rate=0.001)  step
        >>> w = jnp.ones(2, jnp.bfloat16)
        >>> state = tx.init(w)
        >>> for _ in range(4):
        ...     updates, state = tx.update(jnp.ones(2, jnp.bfloat16), state, w)
        ...     w = optax.apply_updates(w, updates)
        >>> print(w, full_weights(tx, state, w))
        [0.996094 0.996094] [0.99600005 0.99600005]

    Source:
        Micikevicius et al., "Mixed precision training", 2018; Zamirai et al., "Revisiting BFloat16 training", 2020.
    """
    links_of("precise_weights: tx", tx)
    seed = whole_number("precise_weights: seed", seed, most=LARGEST_SEED)
    return chain(float32_weights(tx, by, seed=seed if by == "stochastic_rounding" else None))


def _checked_master(p: Any, kept: Any) -> Any:
    """The master copy, or the parameter itself where it was changed and no longer matches the master copy.

    NaN never matches, so it is passed on.
    """
    p, kept = split_alike(p, kept)
    return jnp.where(nearest(kept, p) == widen(p), kept, widen(p))


MASTER = Weights(
    full=_checked_master,
    kept=lambda p, full: full,
    nearest=lambda full, like: nearest(full, like).astype(like.dtype),
)

LOST = Weights(
    full=lambda p, lost: joined(*split_alike(p, lost)),
    kept=lambda p, full: lost_beside(widen(p), full),
    nearest=lambda full, like: nearest_splitting(full).astype(like.dtype),
)


@link(
    None,
    holds={"inner": ("inner",)},
    state={"count": Count(is_needed=False), "master": MASTER, "lost": LOST},
    is_final=True,
)
def float32_weights(
    inner: optax.GradientTransformation, by: By, *, seed: int | None = None
) -> optax.GradientTransformation:
    """The link in the chain that `precise_weights` returns."""
    held = inner if isinstance(inner, Link | Chain) else wide_inside(inner)

    def init(params: Any) -> Any:
        leaves, structure = _low_leaves(by, params)
        count = jnp.zeros((), jnp.int32) if by == "stochastic_rounding" else None
        full = [p if path is None else _widened(p) for path, p in leaves]
        master = [None if path is None else w for (path, _), w in zip(leaves, full)]
        lost = [None if path is None else sharded_like(p, jnp.zeros_like(p, jnp.int16)) for path, p in leaves]
        return PreciseWeightsState(
            count,
            structure.unflatten(master) if by == "master_copy" else None,
            structure.unflatten(lost) if by == "lost_bits" else None,
            held.init(structure.unflatten(full)),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "precise_weights: params must be given to update, because they are part of the weights: "
                "tx.update(updates, state, params), got None"
            )
        check_leaves("precise_weights: a gradient", updates, params, rows=False, whole=True)
        leaves, structure = _low_leaves(by, params)
        kept = [None] * len(leaves)
        if by != "stochastic_rounding":
            kept = _kept_of(leaves, structure, state.master if by == "master_copy" else state.lost)
        full = [p if path is None else _full(by, jnp.asarray(p), own) for (path, p), own in zip(leaves, kept)]
        weights = structure.unflatten(full)
        updates, inner_state = held.update(widened(updates, weights), state.inner, weights, **extra_args)
        of_step = None if seed is None else seed_of(seed, state.count)
        out, new = [], []
        for (path, p), weight, own, u in zip(leaves, full, kept, structure.flatten_up_to(updates)):
            if path is not None and not is_missing(u):
                noise = None if of_step is None else seed_of(of_step, index=zlib.crc32(path.encode()))
                u, own = _step(by, jnp.asarray(p), jnp.asarray(weight + u, jnp.float32), noise)
            out.append(u if path is not None else in_dtype_of(u, p))
            new.append(own)
        return structure.unflatten(out), PreciseWeightsState(
            None if state.count is None else increment(state.count),
            structure.unflatten(new) if by == "master_copy" else None,
            structure.unflatten(new) if by == "lost_bits" else None,
            inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


# The arithmetic of one parameter is traced once for each shape and dtype.
_once = functools.partial(jax.jit, static_argnums=0, inline=True)


@_once
def _full(by: By, p: Any, kept: Any) -> Any:
    """The float32 weight of a parameter, from the parameter and what is stored for it."""
    if by == "stochastic_rounding":
        return widen(p)
    return (MASTER if by == "master_copy" else LOST).full(p, kept)


@_once
def _step(by: By, p: jax.Array, weight: jax.Array, noise: Any) -> tuple[jax.Array, Any]:
    """The update from a parameter to the rounded new weight, and what is stored of that weight.

    The update is the difference of two 16-bit numbers. It is exact in float32 unless the weight shrinks to less than
    2⁻¹⁶ of its old value. Then it is off by at most 2⁻²⁴ of itself, and the parameter follows from this update.
    """
    p, weight = split_alike(p, weight)
    old = widen(p)
    if by == "stochastic_rounding":
        return difference(stochastically(weight, p, noise), old), None
    if by == "master_copy":
        return difference(nearest(weight, p), old), weight
    u = difference(nearest_splitting(weight), old)
    return u, lost_beside(nearest(old + u, p), weight)


def _widened(p: Any) -> Any:
    """A parameter in float32; zeros for one that only has a shape, because the first step detects the difference."""
    return jnp.zeros_like(p, jnp.float32) if isinstance(p, jax.ShapeDtypeStruct) else widen(jnp.asarray(p))


def _low_leaves(by: By, params: Any) -> tuple[list[tuple[str | None, Any]], Any]:
    """All parameters, each with its path if it has low precision, and the structure of their tree."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_one_leaf)
    found = [(path_text(path) if is_low(p) else None, p) for path, p in leaves]
    wrong = [f"{path_text(path)} ({dtype_of(p)})" for path, p in leaves if _is_too_low(by, p)]
    if wrong and by == "lost_bits":
        raise ValueError(
            "precise_weights: params must be bfloat16, or at least float32, for by='lost_bits' (float16 can be trained "
            f"with by='master_copy' or by='stochastic_rounding'), got {listed(wrong)}"
        )
    if wrong:
        raise ValueError(f"precise_weights: params must be bfloat16, float16, or at least float32, got {listed(wrong)}")
    return found, structure


def _kept_of(leaves: list[tuple[str | None, Any]], structure: Any, tree: Any) -> list[Any]:
    """What is kept of each parameter; raises if that is nothing for one whose precision is low."""
    try:
        kept = structure.flatten_up_to(tree)
    except (ValueError, TypeError):
        kept = [None] * len(leaves)
    lacking = [path or "the only one" for (path, _), own in zip(leaves, kept) if path is not None and own is None]
    if lacking:
        raise ValueError(
            "precise_weights: state must be one for these parameters and keep something of each that is less precise "
            f"than float32, got nothing of {listed(lacking)}; linkax.migrate makes the state for others"
        )
    return kept


def is_low(p: Any) -> bool:
    """Whether a parameter's dtype has too few digits for training."""
    return not is_missing(p) and dtype_of(p) in LOW


def _is_too_low(by: By, p: Any) -> bool:
    if is_missing(p) or not jnp.issubdtype(dtype_of(p), jnp.floating):
        return False
    allowed = LOW[:1] if by == "lost_bits" else LOW
    return jnp.finfo(dtype_of(p)).bits < 32 and dtype_of(p) not in allowed
