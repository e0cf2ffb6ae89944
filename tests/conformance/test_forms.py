"""Forms of one optimizer that look different and are the same, and known answers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adam, adamw, chain, sgd
from linkax.transforms import (
    bias_correction,
    decoupled_weight_decay,
    scale_by_blended_momentum,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_nesterov,
)

from .stream import assert_same_path, gradients, parameters, walk


def test_worked_average():
    tx = scale_by_momentum(0.7, dampening=0.7)
    corrected = chain(tx, bias_correction(0.7))
    state, corrected_state = tx.init(jnp.zeros(())), corrected.init(jnp.zeros(()))
    averages, corrections = [], []
    for value in (100.0, 114.0, 118.0, 117.0, 120.0, 122.0):
        average, state = tx.update(jnp.asarray(value), state)
        correction, corrected_state = corrected.update(jnp.asarray(value), corrected_state)
        averages.append(average)
        corrections.append(correction)
    # The answers are known to one or two decimals.
    np.testing.assert_allclose(averages, [30, 55.2, 74.04, 86.93, 96.85, 104.4], atol=0.01)
    np.testing.assert_allclose(corrections[:2], [100, 108.24], atol=0.01)
    weights = 1 - 0.7 ** np.arange(1, 7)
    np.testing.assert_allclose(corrections, np.asarray(averages) / weights, rtol=1e-6)  # float32


def test_nesterov_is_looking_ahead(x64):
    """Nesterov's own form takes the gradient at w − α μ v; PyTorch's follows that point itself."""
    rate, mu = 0.05, 0.9

    def gradient(w):
        return jnp.cos(w) + 0.3 * w

    w = jnp.asarray(parameters()["tame"])
    velocity, look_ahead_points = jnp.zeros_like(w), []
    for _ in range(50):
        ahead = w - rate * mu * velocity
        look_ahead_points.append(ahead)
        velocity = mu * velocity + gradient(ahead)
        w = w - rate * velocity

    tx = sgd(rate, momentum=mu, nesterov=True)
    w, state = jnp.asarray(parameters()["tame"]), tx.init(jnp.asarray(parameters()["tame"]))
    points = []
    for _ in range(50):
        points.append(w)
        updates, state = tx.update(gradient(w), state, w)
        w = optax.apply_updates(w, updates)
    # A closed loop amplifies rounding, by less than a thousand over fifty steps of this smooth function.
    np.testing.assert_allclose(points, look_ahead_points, rtol=1e-12, atol=1e-13)


def test_velocity_form_is_the_other_order_and_the_same_at_a_constant_rate(x64):
    velocity = chain(scale_by_learning_rate(0.1), scale_by_momentum(0.9))
    assert_same_path(walk(velocity, parameters(), gradients()), walk(sgd(0.1, momentum=0.9), parameters(), gradients()))


def test_velocity_form_differs_under_a_schedule(x64):
    schedule = optax.piecewise_constant_schedule(0.1, {5: 0.1})
    grads = jnp.ones((10, 3))

    def last(tx):
        return walk(tx, jnp.zeros(3), grads)[-1]

    velocity = last(chain(scale_by_learning_rate(schedule), scale_by_momentum(0.9)))
    buffer = last(chain(scale_by_momentum(0.9), scale_by_learning_rate(schedule)))
    # By hand, 10 gradients of 1: the buffer is (1 − 0.9^t) / 0.1.
    sums = (1 - 0.9 ** np.arange(1, 11)) / 0.1
    rates = np.where(np.arange(10) < 5, 0.1, 0.01)
    np.testing.assert_allclose(buffer, np.full(3, -(sums * rates).sum()), rtol=1e-12)
    v, total = 0.0, 0.0
    for rate in rates:
        v = 0.9 * v + rate
        total -= v
    np.testing.assert_allclose(velocity, np.full(3, total), rtol=1e-12)


def test_averaged_momentum_is_accumulated_momentum_at_another_rate(x64):
    averaged = chain(scale_by_momentum(0.9, dampening=0.9), scale_by_learning_rate(0.1))
    assert_same_path(
        walk(averaged, parameters(), gradients()), walk(sgd(0.01, momentum=0.9), parameters(), gradients())
    )


def test_averaged_nesterov_is_accumulated_nesterov_at_another_rate(x64):
    averaged = chain(scale_by_nesterov(0.9, form="averaged"), scale_by_learning_rate(0.1))
    accumulated = sgd(0.01, momentum=0.9, nesterov=True)
    assert_same_path(walk(averaged, parameters(), gradients()), walk(accumulated, parameters(), gradients()))


def test_blended_momentum_is_momentum_and_nesterovs_in_two_proportions(x64):
    pairs = {0.9: scale_by_momentum(0.9, dampening=0.9), 0.81: scale_by_nesterov(0.9, form="averaged")}
    for blend, other in pairs.items():
        paths = [walk(tx, parameters(), gradients()) for tx in (scale_by_blended_momentum(blend, 0.9), other)]
        assert_same_path(*paths)


def test_l2_is_decoupled_decay_for_plain_sgd_only(x64):
    grads = gradients()["tame"]
    start = parameters()["tame"]
    plain = [walk(tx, start, grads) for tx in (sgd(0.1, weight_decay=0.1), sgd(0.1).add(decoupled_weight_decay(0.1)))]
    np.testing.assert_allclose(*plain, rtol=1e-12)
    adaptive = [walk(tx, start, grads) for tx in (adam(0.1, weight_decay=0.1), adamw(0.1, weight_decay=0.1))]
    assert np.max(np.abs(adaptive[0] - adaptive[1])) > 0.1


def test_decay_conventions_by_hand(x64):
    """One weight, no gradient: what is left of it after each step is the decay alone."""
    rates, decay, peak = np.array([0.1, 0.2, 0.05]), 0.3, 0.2

    def schedule(count):
        return jnp.asarray(rates)[count]

    conventions = {
        "learning_rate": 1 - rates * decay,
        "schedule": 1 - rates / peak * decay,
        "nothing": np.full(3, 1 - decay),
    }
    convention: Any
    for convention, factors in conventions.items():
        peak_argument = {"peak_learning_rate": peak} if convention == "schedule" else {}
        tx = adam(schedule).add(decoupled_weight_decay(decay, multiplied_by=convention, **peak_argument))
        left = walk(tx, jnp.ones(()), jnp.zeros(3))
        np.testing.assert_allclose(left, np.cumprod(factors), rtol=1e-12, err_msg=convention)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999, 0.999999])
def test_bias_correction_is_accurate_in_float32(decay):
    tx = bias_correction(decay)

    def step(state, u):
        updates, state = tx.update(u, state)
        return state, updates

    _, ours = jax.lax.scan(step, tx.init(jnp.zeros(())), jnp.ones(1000))
    exact = -1 / np.expm1(np.arange(1, 1001) * np.log(np.float64(decay))) if decay else np.ones(1000)
    # Three roundings of float32: of log(decay), of its product with t, and of the quotient; expm1 adds its own.
    np.testing.assert_allclose(ours, exact, rtol=4 * float(np.finfo(np.float32).eps))
