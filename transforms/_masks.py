"""Which weights decay: ready-made masks, and users' masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._describe import describe
from ._trees import is_function, path_text, spread

_NAMES_LEFT_ALONE = ("bias", "scale")


def matrices_only(params: optax.Params) -> Any:
    """Selects weight matrices and kernels, but not biases and normalisation parameters.

    A leaf is selected when it has at least two dimensions and is not called `bias` or `scale` (Flax gives the biases of
    multi-head attention two dimensions, and the parameters of layers stacked by `nn.scan` have one more dimension).

    Args:
        params: Any tree of arrays: a nested dictionary, an `nnx.State`, a dataclass.

    Returns:
        A tree of booleans with the structure of `params`, as `mask` arguments take it.

    Raises:
        TypeError: If it is called with a step count, as a schedule would be.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import matrices_only
        >>> matrices_only({"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}})
        {'dense': {'bias': False, 'kernel': True}}
    """

    if isinstance(params, int | jax.Array) and jnp.issubdtype(jnp.result_type(params), jnp.integer):
        raise TypeError(
            f"matrices_only: params must be a tree of parameters, got the number {params!r}: a step count? With "
            "optax.inject_hyperparams, name the mask in static_args, otherwise it is taken for a schedule"
        )

    def select(path, leaf):
        names = {getattr(key, "key", getattr(key, "name", None)) for key in path}
        return jnp.ndim(leaf) >= 2 and names.isdisjoint(_NAMES_LEFT_ALONE)

    return jax.tree_util.tree_map_with_path(select, params)


def check_flags(where: str, mask: Any) -> None:
    """Raises if a mask has a leaf that is not a boolean; the error names its path."""
    for path, flag in jax.tree_util.tree_leaves_with_path(mask):
        if not isinstance(flag, bool | np.bool_):
            # An array of booleans is rejected, too: inside `jax.jit` its values are unknown.
            what = f"an array of dtype {flag.dtype}" if hasattr(flag, "dtype") else describe(flag)
            place = f" at {path_text(path)}" if path else ""
            raise TypeError(f"{where}: mask must be a tree of True and False, got {what}{place}")


def check_mask(where: str, mask: Any) -> None:
    """Raises if a mask that is not a function of the parameters has a leaf that is not a boolean."""
    if not is_function(mask):
        check_flags(where, mask)


def selected(where: str, mask: Any, params: optax.Params, to: str = "decay") -> Any:
    """A tree of booleans like `params`, from a mask that may be missing, a prefix, or a function of the parameters."""
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    if is_function(mask):
        mask = mask(params)
        check_flags(where, mask)
    return spread(f"{where}: mask", f"say for every parameter whether it should {to}", mask, params)
