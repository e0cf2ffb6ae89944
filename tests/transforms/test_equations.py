"""Every link against its equation, written out in NumPy, for hyperparameters that hypothesis makes up."""

from collections.abc import Callable
from typing import Any

import hypothesis
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from linkax.transforms import (
    add_eps,
    add_l2_to_grad,
    at_least_eps,
    average_weights,
    bias_correction,
    clip_by_rms,
    clip_grad_norm,
    clip_grad_value,
    decoupled_weight_decay,
    deviation,
    factored_mean_square,
    infinity_norm,
    limit_learning_rate,
    mean_square,
    moment_ratio,
    negate_grad,
    orthogonalize,
    power_bias_correction,
    rectification,
    running_max,
    scale_by_adadelta,
    scale_by_blended_momentum,
    scale_by_inverse_time_decay,
    scale_by_learning_rate,
    scale_by_matrix_shape,
    scale_by_momentum,
    scale_by_nesterov,
    scale_by_param_rms,
    scale_by_past_rms,
    scale_by_rms,
    scale_by_rss,
    scale_by_sign,
    scale_by_sign_agreement,
    scale_by_stddev,
    scale_by_trust_ratio,
    sum_of_squares,
    variance,
)

RNG = np.random.default_rng(3)
GRADS = RNG.normal(size=(12, 2, 2))
WEIGHTS = RNG.normal(size=(2, 2))

fraction = st.floats(0, 1)
proper = st.floats(0, 0.999)
eps = st.floats(1e-8, 1)
size = st.floats(0, 2)


def momentum(decay, dampening, first_step):
    mu = np.zeros_like(GRADS[0])
    for t, g in enumerate(GRADS):
        mu = g if t == 0 and first_step == "gradient" else decay * mu + (1 - dampening) * g
        yield mu


def nesterov(decay, form, momentum_decay=None):
    mu, product = np.zeros_like(GRADS[0]), 1.0
    for t, g in enumerate(GRADS, start=1):
        mu = decay * mu + (g if form == "accumulated" else (1 - decay) * g)
        if form == "accumulated":
            yield g + decay * mu
        elif form == "averaged":
            yield (1 - decay) * g + decay * mu
        else:
            now, ahead = (
                decay if momentum_decay is None else decay * (1 - 0.5 * 0.96 ** (s * momentum_decay))
                for s in (t, t + 1)
            )
            product *= now
            yield (1 - now) / (1 - product) * g + ahead / (1 - product * ahead) * mu


def blended(blend, decay):
    mu = np.zeros_like(GRADS[0])
    for g in GRADS:
        yield blend * mu + (1 - blend) * g
        mu = decay * mu + (1 - decay) * g


def agreeing(size, shrink, grow, smallest, largest):
    before, size = np.zeros_like(GRADS[0]), np.full_like(GRADS[0], size)
    for g in GRADS:
        same = g * before
        size = np.clip(size * np.where(same > 0, grow, np.where(same < 0, shrink, 1)), smallest, largest)
        before = np.where(same < 0, 0, g)
        yield size * np.sign(before)


def squares(decay):
    nu = np.zeros_like(GRADS[0])
    for g in GRADS:
        nu = decay * nu + (1 - decay) * g**2
        yield nu


def sums(start):
    total = np.full_like(GRADS[0], start)
    for g in GRADS:
        total = total + g**2
        yield total


def largest(decay, eps):
    nu = np.zeros_like(GRADS[0])
    for g in GRADS:
        nu = np.maximum(decay * nu, np.abs(g) + eps)
        yield nu


def factored(decay, power, eps):
    row, col = np.zeros((2, 1)), np.zeros((1, 2))
    for t, g in enumerate(GRADS, start=1):
        kept = decay if power is None else min(decay, 1 - t**-power)
        row = kept * row + (1 - kept) * (g**2).mean(1, keepdims=True)
        col = kept * col + (1 - kept) * (g**2).mean(0, keepdims=True)
        yield row * col / max(row.mean(), eps)


def orthogonal(coefficients, steps, eps):
    a, b, c = coefficients
    for g in GRADS:
        x = g / max(np.linalg.norm(g), eps)
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        yield x


def rms(x):
    return np.sqrt(np.mean(x**2))


def variances(decay):
    mu = np.zeros_like(GRADS[0])
    for g, nu in zip(GRADS, squares(decay)):
        mu = decay * mu + (1 - decay) * g
        yield nu - mu**2


def rectified(decay, threshold):
    # As a plain sum: the weight of the gradient from k steps ago is (1 − decay) decay^k.
    longest = 2 / (1 - decay) - 1
    for t, g in enumerate(GRADS, start=1):
        weights = decay ** np.arange(t)
        length = 1 + 2 * (np.arange(t) @ weights) / weights.sum()
        inverse, limit = ((n - 4) * (n - 2) / n for n in (length, longest))
        yield g * limit / inverse if min(length, longest) > threshold else np.ones_like(g)


def divided(seconds, eps, eps_in_sqrt):
    for g, v in zip(GRADS, seconds):
        yield g / np.sqrt(v + eps) if eps_in_sqrt else g / (np.sqrt(v) + eps)


def past_rms(inputs, decay, eps):
    a = np.zeros_like(GRADS[0])
    for u in inputs:
        step = np.sqrt(a + eps) * u
        a = decay * a + (1 - decay) * step**2
        yield step


EQUATIONS: dict[str, tuple[st.SearchStrategy, Callable[..., Any], Callable[..., Any]]] = {
    "scale_by_momentum": (
        st.fixed_dictionaries(
            {"decay": fraction, "dampening": fraction, "first_step": st.sampled_from(["zeros", "gradient"])}
        ),
        scale_by_momentum,
        momentum,
    ),
    "scale_by_nesterov": (
        st.fixed_dictionaries({"decay": fraction, "form": st.sampled_from(["accumulated", "averaged"])}),
        scale_by_nesterov,
        nesterov,
    ),
    "scale_by_nesterov, corrected": (
        st.fixed_dictionaries(
            {"decay": proper, "form": st.just("corrected"), "momentum_decay": st.none() | st.floats(0, 3)}
        ),
        scale_by_nesterov,
        nesterov,
    ),
    "scale_by_blended_momentum": (
        st.fixed_dictionaries({"blend": fraction, "decay": fraction}),
        scale_by_blended_momentum,
        blended,
    ),
    "scale_by_sign": (st.just({}), scale_by_sign, lambda: np.where(GRADS > 0, 1.0, -1.0)),
    "scale_by_sign_agreement": (
        st.fixed_dictionaries(
            {
                "size": size,
                "shrink": st.floats(0.01, 0.99),
                "grow": st.floats(1.01, 4),
                "smallest": st.floats(0, 0.1),
                "largest": st.floats(0.1, 9),
            }
        ),
        lambda size, **rest: scale_by_sign_agreement(size, **rest),
        agreeing,
    ),
    "mean_square": (st.fixed_dictionaries({"decay": fraction}), mean_square, squares),
    "sum_of_squares": (st.fixed_dictionaries({"start": size}), lambda start: sum_of_squares(start), sums),
    "deviation": (
        st.fixed_dictionaries({"decay": fraction}),
        deviation,
        lambda decay: (g - m for g, m in zip(GRADS, momentum(decay, decay, "zeros"))),
    ),
    "infinity_norm": (st.fixed_dictionaries({"decay": fraction, "eps": eps}), infinity_norm, largest),
    "factored_mean_square": (
        st.fixed_dictionaries({"decay": fraction, "power": st.none() | st.floats(0, 2), "eps": st.floats(1e-8, 0.1)}),
        lambda decay, **rest: factored_mean_square(decay, **rest),
        factored,
    ),
    "factored_mean_square, not factored": (
        st.just({}),
        lambda: factored_mean_square(power=1.0, axes=None),
        lambda: (np.mean(GRADS[:t] ** 2, axis=0) for t in range(1, len(GRADS) + 1)),
    ),
    "at_least_eps": (
        st.fixed_dictionaries({"eps": eps}),
        lambda eps: optax.chain(mean_square(0.5), at_least_eps(eps)),
        lambda eps: (np.maximum(v, eps**2) for v in squares(0.5)),
    ),
    "clip_by_rms": (
        st.fixed_dictionaries({"threshold": st.floats(0.1, 3)}),
        clip_by_rms,
        lambda threshold: (g / max(1, rms(g) / threshold) for g in GRADS),
    ),
    "scale_by_param_rms": (
        st.fixed_dictionaries({"smallest": size}),
        scale_by_param_rms,
        lambda smallest: GRADS * max(smallest, rms(WEIGHTS)),
    ),
    "limit_learning_rate": (
        st.fixed_dictionaries({"learning_rate": st.floats(1e-3, 2), "power": size}),
        limit_learning_rate,
        lambda learning_rate, power: (
            g * min(learning_rate, t**-power) / learning_rate for t, g in enumerate(GRADS, start=1)
        ),
    ),
    # Coefficients that lead away from 1 amplify from step to step, and rounding with it.
    "orthogonalize": (
        st.fixed_dictionaries(
            {
                "coefficients": st.sampled_from([(3.4445, -4.775, 2.0315), (1.875, -1.25, 0.375)]),
                "steps": st.integers(0, 5),
                "eps": eps,
            }
        ),
        lambda **rest: orthogonalize(**rest, precision="full"),
        orthogonal,
    ),
    "scale_by_matrix_shape": (st.just({}), scale_by_matrix_shape, lambda: GRADS),
    "scale_by_matrix_shape, for AdamW's rates": (
        st.just({}),
        lambda: scale_by_matrix_shape("match_rms_adamw"),
        lambda: GRADS * 0.2 * np.sqrt(2),
    ),
    # Close to 0 a variance is the difference of equal numbers, and close to 1 an average of nothing.
    "variance": (st.fixed_dictionaries({"decay": st.floats(0.1, 0.99)}), variance, variances),
    "running_max": (st.just({}), running_max, lambda: np.maximum.accumulate(np.maximum(GRADS, 0))),
    "bias_correction": (
        st.fixed_dictionaries({"decay": proper}),
        bias_correction,
        lambda decay: (g / (1 - decay**t) for t, g in enumerate(GRADS, start=1)),
    ),
    "power_bias_correction, scheduled": (
        st.fixed_dictionaries({"decay": proper}),
        lambda decay: power_bias_correction(lambda count: decay / (1 + count)),
        lambda decay: (g / (1 - (decay / t) ** t) for t, g in enumerate(GRADS, start=1)),
    ),
    "rectification": (
        st.fixed_dictionaries({"decay": proper, "threshold": st.sampled_from([4.0, 5.0, 8.0])}),
        rectification,
        rectified,
    ),
    "add_eps": (
        st.fixed_dictionaries({"eps": eps, "eps_in_sqrt": st.booleans()}),
        lambda eps, eps_in_sqrt: optax.chain(mean_square(0.5), add_eps(eps, eps_in_sqrt)),
        lambda eps, eps_in_sqrt: (v + eps if eps_in_sqrt else (np.sqrt(v) + eps) ** 2 for v in squares(0.5)),
    ),
    "scale_by_rms": (
        st.fixed_dictionaries({"decay": proper, "eps": eps, "eps_in_sqrt": st.booleans()}),
        scale_by_rms,
        lambda decay, eps, eps_in_sqrt: divided(squares(decay), eps, eps_in_sqrt),
    ),
    "scale_by_rss": (
        st.fixed_dictionaries({"start": size, "eps": eps, "eps_in_sqrt": st.booleans()}),
        lambda start, eps, eps_in_sqrt: scale_by_rss(start, eps, eps_in_sqrt),
        lambda start, eps, eps_in_sqrt: divided(sums(start), eps, eps_in_sqrt),
    ),
    "scale_by_stddev": (
        st.fixed_dictionaries({"decay": st.floats(0.1, 0.99), "eps": eps, "eps_in_sqrt": st.booleans()}),
        scale_by_stddev,
        lambda decay, eps, eps_in_sqrt: divided(variances(decay), eps, eps_in_sqrt),
    ),
    "moment_ratio": (
        st.fixed_dictionaries({"b1": proper, "b2": proper, "eps": eps}),
        lambda b1, b2, eps: moment_ratio(scale_by_momentum(b1, dampening=b1), mean_square(b2), eps),
        lambda b1, b2, eps: (m / (np.sqrt(v) + eps) for m, v in zip(momentum(b1, b1, "zeros"), squares(b2))),
    ),
    "moment_ratio, of an infinity norm": (
        st.fixed_dictionaries({"b1": proper, "b2": proper, "eps": eps}),
        lambda b1, b2, eps: moment_ratio(scale_by_momentum(b1, dampening=b1), infinity_norm(b2, eps), None),
        lambda b1, b2, eps: (m / v for m, v in zip(momentum(b1, b1, "zeros"), largest(b2, eps))),
    ),
    "scale_by_past_rms": (
        st.fixed_dictionaries({"decay": fraction, "eps": eps}),
        scale_by_past_rms,
        lambda decay, eps: past_rms(GRADS, decay, eps),
    ),
    "scale_by_adadelta": (
        st.fixed_dictionaries({"rho": fraction, "eps": eps}),
        scale_by_adadelta,
        lambda rho, eps: past_rms(divided(squares(rho), eps, True), rho, eps),
    ),
    "scale_by_trust_ratio": (
        st.just({}),
        scale_by_trust_ratio,
        lambda: (g * np.linalg.norm(WEIGHTS) / np.linalg.norm(g) for g in GRADS),
    ),
    "scale_by_learning_rate": (
        st.fixed_dictionaries({"learning_rate": size}),
        scale_by_learning_rate,
        lambda learning_rate: -learning_rate * GRADS,
    ),
    "scale_by_learning_rate, scheduled": (
        st.fixed_dictionaries({"size": size}),
        lambda size: scale_by_learning_rate(lambda count: size / (1 + count)),
        lambda size: (-size / (1 + t) * g for t, g in enumerate(GRADS)),
    ),
    "scale_by_inverse_time_decay": (
        st.fixed_dictionaries({"decay": size}),
        scale_by_inverse_time_decay,
        lambda decay: (g / (1 + t * decay) for t, g in enumerate(GRADS)),
    ),
    "scale_by_inverse_time_decay, with a power": (
        st.fixed_dictionaries({"decay": size, "power": size}),
        scale_by_inverse_time_decay,
        lambda decay, power: (g / (1 + t * decay) ** power for t, g in enumerate(GRADS)),
    ),
    "average_weights": (
        st.fixed_dictionaries({"decay": st.one_of(st.none(), fraction), "start": st.floats(0, 9)}),
        average_weights,
        lambda **_: GRADS,
    ),
    "clip_grad_norm": (
        st.fixed_dictionaries({"max_norm": size, "norm_type": st.sampled_from([2, 1, 0.5, 3, 0, -1, np.inf, -np.inf])}),
        clip_grad_norm,
        lambda max_norm, norm_type: (
            g * min(1, max_norm / (np.linalg.norm(g.ravel(), norm_type) ** (norm_type != 0) + 1e-6)) for g in GRADS
        ),
    ),
    "clip_grad_value": (
        st.fixed_dictionaries({"clip_value": size}),
        clip_grad_value,
        lambda clip_value: np.clip(GRADS, -clip_value, clip_value),
    ),
    "negate_grad": (st.just({}), negate_grad, lambda: -GRADS),
    "add_l2_to_grad": (
        st.fixed_dictionaries({"weight_decay": size}),
        add_l2_to_grad,
        lambda weight_decay: GRADS + weight_decay * WEIGHTS,
    ),
    "add_l2_to_grad, scheduled": (
        st.fixed_dictionaries({"size": size}),
        lambda size: add_l2_to_grad(lambda count: size * count),
        lambda size: (g + size * t * WEIGHTS for t, g in enumerate(GRADS)),
    ),
    "decoupled_weight_decay": (
        st.fixed_dictionaries({"weight_decay": size}),
        decoupled_weight_decay,
        lambda weight_decay: GRADS + weight_decay * WEIGHTS,
    ),
    "decoupled_weight_decay, by the schedule only": (
        st.fixed_dictionaries({"weight_decay": size, "peak": st.floats(0.1, 2)}),
        lambda weight_decay, peak: decoupled_weight_decay(
            weight_decay, multiplied_by="schedule", peak_learning_rate=peak
        ),
        lambda weight_decay, peak: GRADS + weight_decay / peak * WEIGHTS,
    ),
    "decoupled_weight_decay, independent": (
        st.fixed_dictionaries({"weight_decay": size}),
        lambda weight_decay: decoupled_weight_decay(weight_decay, multiplied_by="nothing"),
        lambda weight_decay: GRADS - weight_decay * WEIGHTS,
    ),
}


def warm(n):
    return 0.9 * (1 + n) / (10 + n)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    decay=st.one_of(st.none(), fraction, st.just(warm)),
    start=st.one_of(st.integers(0, 9), st.floats(0, 9)),
    every=st.integers(1, 4),
)
def test_averaged_weights_follow_their_equation(x64, decay, start, every):
    tx = average_weights(decay, start=start, every=every)

    w, ours = jnp.asarray(WEIGHTS), []
    state = tx.init(w)
    for g in jnp.asarray(GRADS):
        updates, state = tx.update(g, state, w)
        w = w + updates
        ours.append(state)
    expected, average, n, ns = [], None, 0, []
    for t, w in enumerate(WEIGHTS + np.cumsum(GRADS, axis=0), start=1):
        since = t - int(np.ceil(start))
        due = since > 0 and since % every == 0
        if n == 0:
            average = w
        elif due:
            d = n / (n + 1) if decay is None else decay(n) if callable(decay) else decay
            average = d * average + (1 - d) * w
        n += due
        expected.append(average)
        ns.append(n)
    averages, counts = [one.average for one in ours], [one.n_averaged for one in ours]
    np.testing.assert_allclose(averages, expected, rtol=1e-12, atol=1e-13)  # sums of twelve numbers of about 1
    np.testing.assert_array_equal(counts, ns)


@pytest.mark.parametrize("name", EQUATIONS)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_link_follows_its_equation(x64, name, data):
    strategy, link, equation = EQUATIONS[name]
    arguments = data.draw(strategy)
    tx, weights = link(**arguments), jnp.asarray(WEIGHTS)
    ours, state = [], tx.init(weights)
    for g in jnp.asarray(GRADS):  # not in a scan, which every number would compile anew
        updates, state = tx.update(g, state, weights)
        ours.append(updates)
    # Twelve steps of float64 roundings; where an equation subtracts, at most a hundredfold cancellation.
    np.testing.assert_allclose(ours, np.stack(list(equation(**arguments))), rtol=1e-12, atol=1e-14)
