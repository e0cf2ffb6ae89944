"""Orthogonalisation: every singular value of a matrix becomes about 1.

X_0 = U / ‖U‖
X_k = a X_{k−1} + (b G + c G²) X_{k−1},   G = X_{k−1} X_{k−1}ᵀ
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ._axes import by_leaf, place_of
from ._check import NonNegative, is_traced, whole_number
from ._leaves import dtype_of, is_complex, like, map_updates, safe_sqrt, shape_of, wide
from ._link import link
from ._per_leaf import Deferred
from ._trees import listed, path_text

_RECIPE = (
    "give the others an optimizer of their own, as param_groups({'muon': muon(0.02), 'adamw': adamw(3e-4)}, "
    "lambda path, w: 'muon' if w.ndim == 2 and 'embed' not in path and 'head' not in path else 'adamw') does"
)

OutputAxis = int | Callable[[str, Any], int]
"""Which axis of a matrix is the output's: an integer, or a function from a parameter's path and shape to it."""


@link("moment", is_leafwise=True, out="orthogonalized {}")
def orthogonalize(
    coefficients: Sequence[Any] = (3.4445, -4.775, 2.0315),
    steps: int = 5,
    eps: NonNegative = 1e-7,
    precision: Literal["bfloat16", "full"] = "bfloat16",
    output_axis: OutputAxis = -1,
) -> optax.GradientTransformation:
    """Replaces every matrix by one with the same singular vectors and singular values of about 1.

    With U = P S Qᵀ (its singular value decomposition), the result is P S' Qᵀ with S' near 1, so that all directions get
    steps of the same size, also those of small gradients. It is found without a decomposition, by the Newton–Schulz
    iteration: X = U / max(‖U‖, ε), then `steps` times X ← a X + (b G + c G²) X with G = X Xᵀ (of the shorter axis). The
    default coefficients do not converge to 1: they bring small singular values up fast, to between 0.7 and 1.2.

    Args:
        coefficients: a, b and c; three finite numbers. (15/8, −5/4, 3/8) converge to 1.
        steps: The number of iterations, from 0 to 99.
        eps: ε ≥ 0, in the units of the input; a matrix of a smaller norm stays small.
        precision: `"bfloat16"` multiplies matrices of bfloat16 with float32 sums, as PyTorch does: the result has
            errors of about 1 %. `"full"` computes in the dtype of the input, at least float32, on every device.
        output_axis: Which axis is the output's, `-1` in Flax and `0` in PyTorch, or a function from a parameter's path
            and shape to it. In exact arithmetic it makes no difference; in bfloat16 it says which of the two equal
            forms is computed for a square matrix.

    Returns:
        A link at the place `"moment"` without state. It has no use for the size of its input.

    Raises:
        ValueError: If an argument is outside its range; from `init` and `update`, if a leaf is not a real matrix: leave
            these to another optimizer with `param_groups`.

    Differences:
        `optax.contrib.scale_by_muon` computes in the dtype of the gradient, and also takes stacks of matrices.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import orthogonalize
        >>> link = orthogonalize((15 / 8, -5 / 4, 3 / 8), steps=12, precision="full")
        >>> u = jnp.array([[30.0, 0.0, 0.0], [0.0, -0.1, 0.0]])
        >>> print(link.update(u, link.init(u))[0].round(3))
        [[ 1.  0.  0.]
         [ 0. -1.  0.]]

    Source:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; `torch.optim.Muon`; Björck and
        Bowie, "An iterative algorithm for computing the best estimate of an orthogonal matrix", 1971.
    """
    steps = whole_number("orthogonalize: steps", steps, most=99)
    check_coefficients("orthogonalize: coefficients", coefficients)
    if not callable(output_axis):
        place_of("orthogonalize: output_axis", output_axis, 2)

    def init(params):
        check_matrices("orthogonalize: params", params)
        output_axes("orthogonalize", output_axis, params)  # so that what does not fit is said now
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        check_matrices("orthogonalize: an update", updates)

        def orthogonal(u, axis):
            # The Gram matrix of the shorter axis is the smaller one; of two equal ones PyTorch takes the output's.
            is_turned = (axis if u.shape[axis] <= u.shape[1 - axis] else 1 - axis) == 1
            x = lax.transpose(wide(u), (1, 0)) if is_turned else wide(u)
            x = _iterated(x, coefficients, steps, eps, precision)
            return like(lax.transpose(x, (1, 0)) if is_turned else x, u)

        return map_updates(orthogonal, updates, output_axes("orthogonalize", output_axis, updates)), state

    return optax.GradientTransformation(init, update)


def _iterated(x: jax.Array, coefficients: Sequence[Any], steps: int, eps: Any, precision: str) -> jax.Array:
    """The Newton–Schulz iteration on a matrix with no more rows than columns, in its dtype."""
    # Products and sums are always in `sums`; what is kept between them is in `kept`.
    sums, kept = (x.dtype, x.dtype) if precision == "full" else (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
    a, b, c = (jnp.asarray(number, sums) for number in coefficients)

    def rounded(y):
        return lax.convert_element_type(y, kept)

    def exactly(y):
        return lax.convert_element_type(y, sums)

    def product(y, z, axis):
        return lax.dot_general(
            y,
            z,
            (((1,), (axis,)), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=sums,
            out_sharding=_of_product(y, z, axis),
        )

    x = rounded(x)
    wide_x = exactly(x)
    size = rounded(safe_sqrt(jnp.sum(wide_x * wide_x)))
    x = rounded(wide_x / exactly(lax.max(size, jnp.asarray(eps, kept))))
    for _ in range(steps):
        gram = rounded(product(x, x, 1))
        mixed = rounded(b * exactly(gram) + c * product(gram, gram, 0))
        x = rounded(a * exactly(x) + product(mixed, x, 0))
    return x


def _of_product(y: jax.Array, z: jax.Array, axis: int) -> NamedSharding | None:
    """Where a product is on a mesh with explicit axes, which JAX has to be told; `None` on any other.

    Its rows are split as the rows of `y`, and its columns as those of `z`, unless that is over the same axes.
    """
    sharding = jax.typeof(y).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    rows, columns = sharding.spec[0], jax.typeof(z).sharding.spec[1 - axis]
    return sharding.update(spec=PartitionSpec(rows, None if columns == rows else columns))


def check_matrices(where: str, tree: Any) -> None:
    """Raises if a leaf is not a real matrix."""
    wrong = [
        f"{path_text(path) or 'one'} of shape {shape_of(leaf)}" + (" and complex" if _is_complex(leaf) else "")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if len(shape_of(leaf)) != 2 or _is_complex(leaf)
    ]
    if wrong:
        raise ValueError(f"{where} must be a real matrix, got {listed(wrong)}; {_RECIPE}")


def _is_complex(leaf: Any) -> bool:
    return not isinstance(leaf, Deferred) and is_complex(dtype_of(leaf))


def check_coefficients(what: str, coefficients: Any) -> None:
    """Raises unless there are three finite numbers; tracers pass."""
    is_three = isinstance(coefficients, Sequence) and len(coefficients) == 3
    if not is_three or not all(_is_number(one) for one in coefficients):
        raise ValueError(f"{what} must be three finite numbers, got {coefficients!r}")


def _is_number(value: Any) -> bool:
    if is_traced(value):
        return True
    is_real = isinstance(value, int | float | np.generic | jax.Array) and not isinstance(value, bool | np.bool_)
    return is_real and np.shape(value) == () and not np.iscomplexobj(value) and bool(np.isfinite(value))


def output_axes(where: str, output_axis: OutputAxis, tree: Any) -> Any:
    """The output's axis of every leaf, 0 or 1, as a tree."""

    def read(path: str, shape: tuple[int, ...], value: Any) -> int:
        return place_of(f"{where}: output_axis" + (f" of {path}" if path else ""), value, len(shape))

    return by_leaf(output_axis, read, tree)
