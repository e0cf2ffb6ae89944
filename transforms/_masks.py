"""Ready masks for weight decay."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_NAMES_LEFT_ALONE = ("bias", "scale")


def matrices_only(params: optax.Params) -> Any:
    """Selects the weight matrices and kernels, and leaves biases and normalisation parameters alone.

    A leaf is selected when it has at least two dimensions and is not called `bias` or `scale` (Flax gives the biases
    of multi-head attention two dimensions, and layers stacked by `nn.scan` have one more than they seem to).

    Args:
        params: Any tree of arrays: a nested dictionary, an `nnx.State`, a dataclass.

    Returns:
        A tree of booleans with the structure of `params`, as `mask` arguments take it.

    Raises:
        TypeError: If it is given a step count, which is what a schedule would be given.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import matrices_only
        >>> matrices_only({"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}})
        {'dense': {'bias': False, 'kernel': True}}
    """

    if isinstance(params, int | jax.Array) and jnp.issubdtype(jnp.result_type(params), jnp.integer):
        raise TypeError(
            f"matrices_only: params must be a tree of parameters, got the number {params!r}: a step count? With "
            "optax.inject_hyperparams, name the mask in static_args, or it is taken for a schedule"
        )

    def select(path, leaf):
        names = {getattr(key, "key", getattr(key, "name", None)) for key in path}
        return jnp.ndim(leaf) >= 2 and names.isdisjoint(_NAMES_LEFT_ALONE)

    return jax.tree_util.tree_map_with_path(select, params)
