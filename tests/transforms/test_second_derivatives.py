"""Second derivatives with respect to every number of every optimizer, where some elements' gradients are exactly zero.

They are compared with central differences of first derivatives; these are compared with central differences of the loss
in `tests/chains/test_under_jax.py`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.chains.optimizers import MECHANISMS, Optimizer, each_mechanism

# By step, which elements have a gradient: never, in the last steps, in the first ones, now and then, always.
_HAS_GRADIENT = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 0, 1], [0, 1, 0, 1, 1], [0, 1, 0, 1, 1]], bool)
_SIZES = np.array([1.0, 0.7, -1.3, 0.4, 2.0])
_START = np.array([0.0, 0.0, 2.0, 0.3, 1.5])  # where the weights are 0, their decay adds nothing to a gradient of 0
_DIRECTION = np.array([1.0, -0.7, 0.3, 0.9, -0.5, 0.4])  # of the numbers, in their units

# Compiling is what takes time here; nothing runs long.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _loss_after(
    optimizer: Optimizer, names: list[str], unrolled: bool, numbers: jax.Array, has_gradient: np.ndarray = _HAS_GRADIENT
) -> jax.Array:
    """The loss after steps whose gradients depend on the weights, but for those that are exactly 0."""
    tx = optimizer(**dict(zip(names, numbers, strict=True)))

    def step(carry: Any, has_gradient: jax.Array) -> Any:
        w, state = carry
        gradient = jnp.where(has_gradient, jnp.sin(w) + _SIZES, 0.0)
        updates, state = tx.update(gradient, state, w)
        return (w + updates, state), None

    start = jnp.asarray(_START)
    carry: Any = (start, tx.init(start))
    if unrolled:
        for index in range(len(has_gradient)):
            carry, _ = step(carry, jnp.asarray(has_gradient[index]))
    else:
        carry, _ = jax.lax.scan(step, carry, jnp.asarray(has_gradient))
    return jnp.sum(carry[0] ** 2 * _SIZES + carry[0])


# Forward over reverse, of each optimizer: compiled once for all tests.
_HESSIANS = {
    row.name: _jit(jax.hessian(functools.partial(_loss_after, row, list(row.numbers), False))) for row in MECHANISMS
}


def _differences(gradient: Any, numbers: jax.Array, units: np.ndarray) -> jax.Array:
    """Central differences of first derivatives, of fourth order, because some losses are bent much."""
    offsets, weights = 1e-3 * np.array([-2.0, -1.0, 1.0, 2.0]), np.array([1.0, -8.0, 8.0, -1.0]) / 12e-3
    moved = numbers[None, None] + jnp.asarray(offsets[:, None, None] * np.diag(units))
    return jnp.einsum("o,oij->ij", weights, jax.vmap(jax.vmap(gradient))(moved)) / units[:, None]


@each_mechanism
def test_second_derivatives_are_differences_of_first_ones(optimizer: Optimizer, x64):
    names = list(optimizer.numbers)
    numbers = jnp.asarray([optimizer.numbers[name] for name in names])
    units = np.asarray(jnp.minimum(numbers, 1 - numbers))  # what matters of a decay near 1 is what it is less than 1
    direction = units * _DIRECTION[: len(names)]
    in_scan, unrolled = (functools.partial(_loss_after, optimizer, names, unrolled) for unrolled in (False, True))
    short = functools.partial(unrolled, has_gradient=_HAS_GRADIENT[1:3])

    @_jit
    def found(numbers):
        gradient = jax.grad(in_scan)
        return {
            "differences": _differences(gradient, numbers, units),
            "reverse over reverse": jax.grad(lambda numbers: gradient(numbers) @ direction)(numbers),
            "unrolled": jax.jvp(jax.grad(short), (numbers,), (direction,))[1],
            "unrolled, differences": _differences(jax.grad(short), numbers, units).T @ direction,
        }

    results = jax.tree.map(np.asarray, found(numbers))
    differences, hessian = results["differences"], np.asarray(_HESSIANS[optimizer.name](numbers, _HAS_GRADIENT))

    def assert_close(actual, expected, units):
        # What differences of fourth order with a step of a thousandth leave out is about 1e-10 of the largest; their
        # rounding, 1e-16 over that step, less.
        largest = np.abs(expected * units).max()
        np.testing.assert_allclose(actual * units, expected * units, rtol=1e-6, atol=1e-7 * largest)
        assert largest > 1e-6

    assert_close(hessian, differences, np.outer(units, units))
    assert_close(results["reverse over reverse"], hessian @ direction, units)
    assert_close(results["unrolled"], results["unrolled, differences"], units)


@each_mechanism
def test_second_derivatives_are_finite_where_decays_are_zero(optimizer: Optimizer, x64):
    zeroed = {"momentum", "dampening", "decay", "rho", "b1", "b2", "momentum_decay", "lr_decay", "weight_decay"}
    names = list(optimizer.numbers)
    numbers = jnp.asarray([0.0 if name in zeroed else optimizer.numbers[name] for name in names])
    # Not where a gradient is only the decay of the weights, whose root has a kink at 0: those always have one here.
    has_gradient = np.ones_like(_HAS_GRADIENT)
    hessian = _HESSIANS[optimizer.name](numbers, has_gradient)
    assert np.isfinite(hessian).all(), dict(zip(names, np.asarray(hessian), strict=True))
