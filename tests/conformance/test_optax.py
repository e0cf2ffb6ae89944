"""The chains against Optax, where Optax has the same semantics or they are one link away."""

import jax.numpy as jnp
import optax
import pytest

from linkax.chains import (
    adabelief,
    adadelta,
    adagrad,
    adam,
    adamax,
    adamw,
    chain,
    lamb,
    lion,
    nadam,
    radam,
    rmsprop,
    sgd,
)
from linkax.transforms import (
    add_eps,
    add_l2_to_grad,
    bias_correction,
    decoupled_weight_decay,
    mean_square,
    moment_ratio,
    running_max,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
    scale_by_sign,
    scale_by_trust_ratio,
)

from .stream import assert_same_path, gradients, parameters, walk

# Its values are exact in float32, in which Optax computes schedules of an int32 count.
SCHEDULE = optax.piecewise_constant_schedule(0.125, {100: 0.5, 300: 0.25})

PAIRS = {
    "sgd": (sgd(0.1), optax.sgd(0.1)),
    "momentum": (sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
    "nesterov": (sgd(0.1, momentum=0.9, nesterov=True), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "l2 in front of momentum": (
        sgd(0.1, momentum=0.9, weight_decay=0.01),
        optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9)),
    ),
    "adagrad": (
        adagrad(0.1, initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True),
        optax.adagrad(0.1, initial_accumulator_value=0.1, eps=1e-7),
    ),
    "rmsprop": (rmsprop(0.01, decay=0.9), optax.rmsprop(0.01, decay=0.9, eps=1e-8, eps_in_sqrt=False)),
    "rmsprop with eps in the root": (rmsprop(0.01, decay=0.9, eps_in_sqrt=True), optax.rmsprop(0.01, decay=0.9)),
    "rmsprop, centered": (
        rmsprop(0.01, decay=0.9, centered=True, eps_in_sqrt=True),
        optax.rmsprop(0.01, decay=0.9, centered=True),
    ),
    "rmsprop with the learning rate inside the momentum": (
        chain(scale_by_rms(0.9, eps_in_sqrt=True), scale_by_learning_rate(SCHEDULE), scale_by_momentum(0.9)),
        optax.rmsprop(SCHEDULE, decay=0.9, momentum=0.9),
    ),
    "adadelta": (adadelta(0.5, rho=0.95), optax.adadelta(0.5, rho=0.95)),
    "adam": (adam(1e-2), optax.adam(1e-2)),
    "adam under a schedule": (adam(SCHEDULE), optax.adam(SCHEDULE)),
    "adam with L2": (adam(1e-2, weight_decay=0.1), optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2))),
    "adamw": (adamw(1e-2, weight_decay=0.1), optax.adamw(1e-2, weight_decay=0.1)),
    "amsgrad, maximum of the corrected moment": (
        adam(1e-2).swap("mean_square", mean_square(0.999)).add(running_max(), after="second.bias_correction"),
        optax.amsgrad(1e-2),
    ),
    "amsgrad written out": (
        chain(
            moment_ratio(
                chain(scale_by_momentum(0.9, dampening=0.9), bias_correction(0.9)),
                chain(mean_square(0.999), bias_correction(0.999), running_max()),
                eps=1e-8,
            ),
            scale_by_learning_rate(1e-2),
        ),
        optax.amsgrad(1e-2),
    ),
    "nadam with constant momentum": (nadam(1e-2, momentum_decay=None), optax.nadam(1e-2)),
    "nadamw with constant momentum": (
        nadam(1e-2, momentum_decay=None, weight_decay=0.1, decoupled_weight_decay=True),
        optax.nadamw(1e-2, weight_decay=0.1),
    ),
    "adamax": (adamax(1e-2), optax.adamax(1e-2)),
    "radam, eps after the bias correction": (
        radam(1e-2).drop("add_eps").add(add_eps(1e-8), after="second.bias_correction"),
        optax.radam(1e-2),
    ),
    "adabelief": (adabelief(1e-2, eps=1e-5), optax.adabelief(1e-2, eps=0.0, eps_root=1e-8)),
    "lamb": (lamb(1e-2), optax.lamb(1e-2)),
    "lamb with decay": (lamb(SCHEDULE, weight_decay=0.1), optax.lamb(SCHEDULE, weight_decay=0.1)),
    "trust ratio of the gradient": (
        chain(decoupled_weight_decay(0.1), scale_by_trust_ratio(), scale_by_learning_rate(0.01)),
        optax.lars(1.0, weight_decay=0.1, trust_coefficient=0.01, momentum=0.0),
    ),
    "lion": (lion(1e-3), optax.lion(1e-3)),
    "lion with other numbers": (
        lion(SCHEDULE, b1=0.95, b2=0.8, weight_decay=0.1),
        optax.lion(SCHEDULE, b1=0.95, b2=0.8, weight_decay=0.1),
    ),
    "sign of the gradient": (chain(scale_by_sign(), scale_by_learning_rate(0.1)), optax.sign_sgd(0.1)),
    "adamaxw": (adamax(1e-2).add(decoupled_weight_decay(0.1)), optax.adamaxw(1e-2, weight_decay=0.1)),
    "decay that the learning rate does not multiply": (
        adam(1e-2).add(decoupled_weight_decay(0.1, multiplied_by="nothing")),
        optax.chain(optax.adam(1e-2), optax.add_decayed_weights(-0.1)),
    ),
    "decay that only the schedule multiplies": (
        adam(SCHEDULE).add(decoupled_weight_decay(0.01, multiplied_by="schedule", peak_learning_rate=0.125)),
        optax.chain(
            optax.adam(SCHEDULE),
            optax.add_decayed_weights(lambda count: -0.01 / 0.125 * jnp.asarray(SCHEDULE(count), jnp.float64)),
        ),
    ),
    "scheduled L2": (
        chain(add_l2_to_grad(SCHEDULE), scale_by_learning_rate(0.1)),
        optax.chain(optax.add_decayed_weights(SCHEDULE), optax.sgd(0.1)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_path_is_optaxs(x64, name):
    ours, theirs = PAIRS[name]
    # (Optax does not take `None` for the gradient of an array.)
    grads = {key: value for key, value in gradients().items() if key != "idle"}
    params = {key: parameters()[key] for key in grads}
    assert_same_path(walk(ours, params, grads), walk(theirs, params, grads))
