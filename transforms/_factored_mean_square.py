"""The running mean of the squared gradients, of which only the means of rows and of columns are kept.

row_t = decay_t · row_{t−1} + (1 − decay_t) · mean over columns of g_t²
col_t = decay_t · col_{t−1} + (1 − decay_t) · mean over rows of g_t²
row_t · col_t / mean of row_t
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._axes import by_leaf, place_of
from ._check import Fraction, NonNegative
from ._leaves import (
    accumulators,
    average,
    complement,
    increment,
    like,
    map_updates,
    mean_accumulator,
    on_reals,
    or_spacing,
    scalar,
    scalar_dtype,
    shape_of,
    shared,
    wide,
)
from ._link import Alternative, link
from ._meaning import Count, Moment
from ._per_leaf import apply

Axes = tuple[int, int] | Callable[[str, Any], tuple[int, int] | None] | None
"""The axes of rows and columns, or a function from a parameter's path and shape to them; `None`: not factored."""


class FactoredMeanSquareState(NamedTuple):
    """State of `factored_mean_square`; all arrays are at least float32."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken
    nu_row: optax.Updates  # shapes of the parameters, but 1 along the axis of columns; missing if not factored
    nu_col: optax.Updates  # shapes of the parameters, but 1 along the axis of rows; missing if not factored
    nu: optax.Updates  # shapes of the parameters; missing if factored


def _alternatives(axes: Axes, **rest: Any) -> Iterator[Alternative]:
    rest.pop("is_corrected")
    if axes is not None:
        yield Alternative("not factored", (factored_mean_square(axes=None, **rest),))


@link(
    "moment",
    is_leafwise=True,
    is_second_moment=True,
    state={
        "count": Count(),
        "nu_row": Moment("row means of squares of {}", power=2, torch="row_var"),
        "nu_col": Moment("column means of squares of {}", power=2, torch="col_var"),
        "nu": Moment("mean square of {}", power=2, torch="variance"),
    },
    out="mean square of {}",
    alternatives=_alternatives,
    knobs={"decay": "decay", "power": "power", "eps": "eps1"},
)
def factored_mean_square(
    decay: Fraction = 1.0,
    *,
    power: NonNegative | None = None,
    axes: Axes = (-2, -1),
    eps: NonNegative | None = None,
) -> optax.GradientTransformation:
    """Replaces the gradient by the running mean of its square, as far as the means of rows and columns tell it.

    An n × m matrix of mean squares is kept as the n means of its rows and the m means of its columns, n + m numbers
    instead of n · m. The product row · col / mean(row) has the same row and column means, and is the matrix itself if
    that has rank 1. Arrays with more axes are stacks of such matrices; those with fewer than two are not factored. Its
    root is meant as a divisor: use it as the second argument of `moment_ratio`.

    With `power`, the share of a new square falls with time: decay_t = 1 − t^−power until that reaches `decay`.
    As decay_1 = 0, the mean is one of gradients only from the first step on, and no `bias_correction` is needed.

    Args:
        decay: How much of the past is kept, in [0, 1], or a schedule of it; with `power` at most.
        power: How fast the share of a new square falls, at least 0, or a schedule of it: 1 for the plain mean of all.
            `None` for a constant decay.
        axes: Which axis counts rows and which columns: `(-2, -1)` for the last two, `None` to factor nothing, or a
            function from a parameter's path and shape to one of these.
        eps: The smallest mean(row) that is divided by, at least 0, in squared units of the gradient; or a schedule of
            it. `None` for the spacing of numbers at 1: 1.2e-7 in float32, 2.2e-16 in float64.

    Returns:
        A link at the place `"moment"` with state `FactoredMeanSquareState(count, nu_row, nu_col, nu)`. Of a parameter
        that is sharded, `nu_row` and `nu_col` are sharded along the axes that they have.

    Raises:
        ValueError: If a number is outside its range; from `init` and `update`, if an array has no such axes.

    Differences:
        PyTorch factors the last two axes, which are the spatial ones of a convolution there, and inputs and outputs in
        Flax. Optax and the paper factor the two largest axes, Optax only those of at least 128 elements; both add ε to
        the squares instead.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import factored_mean_square
        >>> link = factored_mean_square(power=0.8)
        >>> g = jnp.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
        >>> nu, state = link.update(g, link.init(g))
        >>> print(nu.round(3))
        [[ 1.  4.  9.]
         [ 4. 16. 36.]]
        >>> state.nu_row.shape, state.nu_col.shape, state.nu
        ((2, 1), (1, 3), MaskedNode())

    Source:
        Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018;
        `torch.optim.Adafactor`.
    """
    where = "factored_mean_square"
    if axes is not None and not callable(axes):
        _pair(f"{where}: axes", axes, 2)

    def factored(tree):
        """The axes of rows and columns for every leaf, or `None`."""

        def read(path: str, shape: tuple[int, ...], pair: Any) -> tuple[int, int] | None:
            if pair is None or (len(shape) < 2 and not callable(axes)):
                return None
            return _pair(f"{where}: axes" + (f" of {path}" if path else ""), pair, len(shape))

        return by_leaf(axes, read, tree)

    def init(params):
        pairs = factored(params)

        def of(axis):
            def one(leaf, pair):
                return optax.MaskedNode() if pair is None else mean_accumulator(leaf, pair[axis])

            return jax.tree.map(one, params, pairs)

        whole = jax.tree.map(lambda p, pair: accumulators(p) if pair is None else optax.MaskedNode(), params, pairs)
        return FactoredMeanSquareState(jnp.zeros((), jnp.int32), of(1), of(0), whole)

    def update(updates, state, params=None):
        del params
        count = increment(state.count)
        pairs = factored(updates)
        mean = average_with(count, scalar_dtype((state.nu_row, state.nu_col, state.nu)))

        def mean_of(axis):
            def new(g, old, pair):
                along = pair[axis]
                size = max(1, g.shape[along])
                squares = on_reals(lambda g, old: mean(old, jnp.sum(g * g, along, keepdims=True) / size))
                return squares(wide(g), old)

            return new

        whole = on_reals(lambda g, old: mean(old, lax.mul(g, g)))
        nu_row = _kept(mean_of(1), updates, state.nu_row, pairs)
        nu_col = _kept(mean_of(0), updates, state.nu_col, pairs)
        nu = _kept(lambda g, old, _: whole(wide(g), old), updates, state.nu, pairs)

        def joined(g, pair, row, col, nu):
            if pair is None:
                return like(nu, g)

            @on_reals
            def product(row, col):
                epsilon = or_spacing(eps, row)
                # The quotient first: a product of two means of squares might overflow.
                return row / lax.max(jnp.mean(row, pair[0], keepdims=True), epsilon) * col

            return like(product(row, col), g)

        out = map_updates(joined, updates, pairs, nu_row, nu_col, nu)
        return out, FactoredMeanSquareState(count, nu_row, nu_col, nu)

    def average_with(count, dtype):
        """One step of the average, of the old and the new value."""
        if power is None:
            return lambda old, new: average(old, new, decay)
        share = count.astype(dtype) ** -jnp.asarray(power, dtype)
        share = jnp.maximum(share, jnp.asarray(complement(decay), dtype))
        return lambda old, new: shared(old, new, scalar(share, old))

    return optax.GradientTransformation(init, update)


def _pair(what: str, pair: Any, ndim: int) -> tuple[int, int]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{what} must be the axes of rows and columns, or None, got {pair!r}")
    row, column = (place_of(what, axis, ndim) for axis in pair)
    if row == column:
        raise ValueError(f"{what} must be two different axes, got {pair!r}")
    return row, column


def _kept(fn: Callable[..., Any], updates: Any, state: Any, pairs: Any) -> Any:
    """A new state from `fn(g, old, axes)` for each leaf; what is missing, or has no gradient, stays as it is."""
    leaves, structure = jax.tree.flatten(updates, is_leaf=lambda leaf: leaf is None)
    olds, axes = structure.flatten_up_to(state), structure.flatten_up_to(pairs)

    def step(g, old, pair):
        if g is None or isinstance(old, optax.MaskedNode):
            return old
        wanted = shape_of(g)
        ours = wanted if pair is None else tuple(old.shape[i] if i in pair else size for i, size in enumerate(wanted))
        if len(old.shape) != len(wanted) or old.shape != ours:
            raise ValueError(f"factored_mean_square: state must be that of an array of shape {wanted}, got {old.shape}")
        return apply(lambda g, old, pair: like(fn(g, old, pair), old), g, old, pair)

    return structure.unflatten(map(step, leaves, olds, axes))
