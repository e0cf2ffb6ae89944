"""Step sizes that depend on the shape of a matrix.

u_t · √max(1, n/m)   or   u_t · 0.2 √max(n, m)      for n outputs and m inputs
"""

import math
from typing import Literal

import optax

from ._axes import place_of
from ._leaves import like, map_updates, times, wide
from ._link import link
from ._orthogonalize import OutputAxis, check_matrices, output_axes


@link("step", is_leafwise=True, factor=None)
def scale_by_matrix_shape(
    rule: Literal["original", "match_rms_adamw"] = "original", output_axis: OutputAxis = -1
) -> optax.GradientTransformation:
    """Multiplies the update of every matrix by a factor that depends on its shape.

    An orthogonal n × m matrix has elements of size 1/√max(n, m), so steps of a large layer would be small. It is
    multiplied by

    - `"original"`: √max(1, n/m), with which all outputs change by about the same in every layer;
    - `"match_rms_adamw"`: 0.2 √max(n, m), with which elements have a root mean square of 0.2, as AdamW's have. Learning
      rate and weight decay of AdamW can then be kept.

    The link comes before `decoupled_weight_decay`, which it does not scale.

    Args:
        rule: Which factor; see above.
        output_axis: Which axis is that of the n outputs, `-1` in Flax and `0` in PyTorch, or a function from a
            parameter's path and shape to it. Only `"original"` depends on it.

    Returns:
        A link at the place `"step"` without state.

    Raises:
        ValueError: If an argument is none of its values; from `init` and `update`, if a leaf is not a real matrix.

    Differences:
        PyTorch takes the first axis for the output's, whatever the module does with it.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import scale_by_matrix_shape
        >>> link = scale_by_matrix_shape()
        >>> u = jnp.ones((1, 4))  # from 1 input to 4 outputs
        >>> print(link.update(u, link.init(u))[0])
        [[2. 2. 2. 2.]]

    Source:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; Liu et al., "Muon is scalable
        for LLM training", 2025; `torch.optim.Muon`, argument `adjust_lr_fn`.
    """
    where = "scale_by_matrix_shape"
    if not callable(output_axis):
        place_of(f"{where}: output_axis", output_axis, 2)

    def init(params):
        check_matrices(f"{where}: params", params)
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        check_matrices(f"{where}: an update", updates)

        def scale(u, axis):
            outputs, inputs = max(1, u.shape[axis]), max(1, u.shape[1 - axis])
            original = math.sqrt(max(1, outputs / inputs))
            factor = original if rule == "original" else 0.2 * math.sqrt(max(outputs, inputs))
            return like(times(factor, wide(u)), u)

        return map_updates(scale, updates, output_axes(where, output_axis, updates)), state

    return optax.GradientTransformation(init, update)
