"""The float32 weights behind low-precision parameters: reading and setting them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from linkax.transforms import Weights
from linkax.transforms._leaves import check_leaves, dtype_of, shape_of
from linkax.transforms._trees import path_text

from ..algebra._paths import words
from ..algebra._structure import StateArray, state_arrays, with_arrays
from ._devices import put_like, sharding_of
from ._weight_bits import LOW, nearest, widen


def full_weights(tx: optax.GradientTransformation, state: Any, params: Any) -> Any:
    """Returns the weights that `precise_weights` trains: the float32 numbers that the parameters are rounded from.

    Args:
        tx: The optimizer, with any wrappers around `precise_weights`, or without it.
        state: Its state.
        params: Its parameters.

    Returns:
        A tree like the parameters, in float32 where these are bfloat16 or float16. Where nothing is stored for a weight
        (a chain without `precise_weights`, stochastic rounding), it is the parameter, widened.

    Raises:
        ValueError: If `state` is not a state of `tx`, or not for parameters of these shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from linkax import full_weights, precise_weights, sgd
        >>> tx, w = precise_weights(sgd(1e-3)), jnp.ones(2, jnp.bfloat16)
        >>> updates, state = tx.update(w, tx.init(w), w)
        >>> print(full_weights(tx, state, optax.apply_updates(w, updates)))
        [0.999 0.999]

    Source:
        Micikevicius et al., "Mixed precision training", 2018.
    """
    kept = _kept_arrays("full_weights: state", tx, state, params)

    def full(path: Any, p: Any) -> Any:
        array, field = kept.get(words(path), (None, None))
        if array is not None and field is not None:
            if dtype_of(p) not in LOW or shape_of(p) != shape_of(array.value):
                raise ValueError(
                    "full_weights: params must be those of the state, which has a bfloat16 or float16 array of shape "
                    f"{shape_of(array.value)} there, got {path_text(path) or 'one'} of dtype {dtype_of(p)} and shape "
                    f"{shape_of(p)}"
                )
            return field.full(jnp.asarray(p), array.value)
        return widen(jnp.asarray(p)) if dtype_of(p) in LOW else p

    return jax.tree_util.tree_map_with_path(full, params)


def with_full_weights(tx: optax.GradientTransformation, state: Any, params: Any, weights: Any) -> tuple[Any, Any]:
    """Returns parameters and state that represent other float32 weights; the rest of the state stays unchanged.

    So weights from elsewhere, such as the master parameters of a PyTorch run, are continued exactly.

    Args:
        tx: The optimizer, with any wrappers around `precise_weights`.
        state: Its state. Not changed.
        params: Parameters of the right shapes and dtypes, or their shapes. Not changed.
        weights: The weights, in a tree like the parameters: float32 where these are bfloat16 or float16.

    Returns:
        The parameters, each the nearest to its weight, and the state; both in the shards of those given, whatever the
        weights are in. Where nothing is stored for a weight (a chain without `precise_weights`, stochastic rounding),
        the difference is lost.

    Raises:
        ValueError: If `state` is not a state of `tx`, or `weights` has a different tree or different shapes from
            `params`.
        TypeError: If a weight is not a floating-point array, and its parameter is.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax import full_weights, precise_weights, sgd, with_full_weights
        >>> tx, w = precise_weights(sgd(1e-3), by="lost_bits"), jnp.ones(2, jnp.bfloat16)
        >>> w, state = with_full_weights(tx, tx.init(w), w, jnp.array([0.1, 0.2]))
        >>> print(w, full_weights(tx, state, w))
        [0.100098 0.200195] [0.1 0.2]

    Source:
        Micikevicius et al., "Mixed precision training", 2018.
    """
    check_leaves("with_full_weights: weights", weights, params, rows=False, whole=True)
    kept = _kept_arrays("with_full_weights: state", tx, state, params)
    values: dict[Any, Any] = {}

    def set_one(path: Any, p: Any, weight: Any) -> Any:
        p = p if isinstance(p, jax.ShapeDtypeStruct) else jnp.asarray(p)
        if jnp.issubdtype(p.dtype, jnp.inexact) and not jnp.issubdtype(dtype_of(weight), jnp.inexact):
            raise TypeError(
                "with_full_weights: weights must be floating-point where the parameters are, got "
                f"{path_text(path) or 'one'} of dtype {dtype_of(weight)}"
            )
        array, field = kept.get(words(path), (None, None))
        if p.dtype not in LOW:
            return put_like(weight, p)
        weight = put_like(weight, jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=sharding_of(p)))
        if array is None or field is None:
            return nearest(weight, p).astype(p.dtype)
        new = field.nearest(weight, p)
        values[array.place] = put_like(field.kept(new, weight), array.value)
        return new

    params = jax.tree_util.tree_map_with_path(set_one, params, weights)
    return params, with_arrays("with_full_weights: state", tx, state, values, params)


def _kept_arrays(
    where: str, tx: optax.GradientTransformation, state: Any, params: Any
) -> dict[tuple[str, ...], tuple[StateArray, Weights]]:
    """What the state stores of the weights, by the words of the parameters' paths."""
    return {
        array.param: (array, array.field)
        for array in state_arrays(where, tx, state, params)
        if isinstance(array.field, Weights) and array.param is not None
    }
