"""The sum of the squared gradients.

sum_of_squares_t = sum_of_squares_{t−1} + g_t²
"""

from typing import NamedTuple

import optax
from jax import lax

from ._check import Constant
from ._leaves import accumulators, like, map_state, map_updates, on_reals, wide
from ._link import link
from ._meaning import Moment


class SumOfSquaresState(NamedTuple):
    """State of `sum_of_squares`."""

    sum_of_squares: optax.Updates  # shapes of the parameters, at least float32


@link(
    "moment",
    is_leafwise=True,
    is_second_moment=True,
    is_row_local=True,
    state={"sum_of_squares": Moment("sum of squares of {}", power=2, torch="sum")},
    out="sum of squares of {}",
)
def sum_of_squares(initial_accumulator_value: Constant = 0.0) -> optax.GradientTransformation:
    """Replaces the gradient by the sum of its squares so far.

    S_t = S_{t−1} + g_t², from S_0 = `initial_accumulator_value`; returns S_t. Its root is meant as a divisor: use it as
    the second argument of `moment_ratio`.

    Args:
        initial_accumulator_value: S_0 of every element, at least 0.

    Returns:
        A link at the place `"moment"` with state `SumOfSquaresState(sum_of_squares)`, which has the parameters'
        shapes and is at least float32. Complex gradients count as pairs of real ones, as in PyTorch.

    Raises:
        ValueError: If `initial_accumulator_value` is negative or not finite.

    Differences:
        PyTorch starts from 0; Optax and Keras from 0.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.transforms import sum_of_squares
        >>> link = sum_of_squares(1.0)
        >>> total, state = link.update(jnp.float32(2.0), link.init(jnp.float32(0)))
        >>> print(total)
        5.0

    Source:
        Duchi, Hazan and Singer, "Adaptive subgradient methods", 2011; `torch.optim.Adagrad`.
    """

    def init(params):
        return SumOfSquaresState(accumulators(params, initial_accumulator_value))

    def update(updates, state, params=None):
        del params
        add_square = on_reals(lambda g, total: lax.add(total, lax.mul(g, g)))
        total = map_state(lambda g, total: add_square(wide(g), total), updates, state.sum_of_squares)
        return map_updates(lambda g, total: like(total, g), updates, total), SumOfSquaresState(total)

    return optax.GradientTransformation(init, update)
