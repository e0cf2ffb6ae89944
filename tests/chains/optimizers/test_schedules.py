"""Every hyperparameter of every named optimizer as a schedule, and what is left out when there is none."""

import inspect
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adadelta, adagrad, adam, adamw, chain, migrate, nadam, rmsprop, sgd, sparse_adam
from linkax.transforms import bias_correction, scale_by_learning_rate, scale_by_momentum, scale_by_nesterov

from . import (
    OPTIMIZERS,
    VALUES,
    Optimizer,
    assert_close,
    by_hand,
    each_optimizer,
    nth,
    run,
    signature,
    some_gradients,
    some_params,
)

STEPS = 5
each_scheduled = pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        pytest.param(optimizer, name, id=f"{optimizer.name}-{name}")
        for optimizer in OPTIMIZERS
        for name in optimizer.schedulable
    ],
)


def between(name):
    """A schedule from one value of a hyperparameter in the table to the other."""
    start, end = VALUES[name]
    return lambda count: start + (end - start) * count / STEPS


@each_scheduled
def test_a_schedule_is_its_number_set_by_hand_before_every_step(optimizer: Optimizer, name, x64):
    params, gradients, schedule = some_params(), some_gradients(STEPS), between(name)
    actual, _ = run(optimizer(**{name: schedule}), params, gradients)
    assert_close(actual, by_hand(optimizer, [{name: schedule(t)} for t in range(STEPS)], params, gradients))


@each_optimizer
def test_all_hyperparameters_can_be_schedules_at_once(optimizer: Optimizer, x64):
    params, gradients = some_params(), some_gradients(STEPS)
    schedules = {name: between(name) for name in optimizer.schedulable}
    numbers = [{name: schedule(t) for name, schedule in schedules.items()} for t in range(STEPS)]
    actual, _ = run(optimizer(**schedules), params, gradients)
    assert_close(actual, by_hand(optimizer, numbers, params, gradients))


@each_optimizer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64], ids=lambda dtype: dtype.__name__)
def test_scheduled_states_keep_their_structure_and_dtypes(optimizer: Optimizer, dtype):
    schedules = {name: between(name) for name in optimizer.schedulable}
    tx = optimizer(**schedules)
    params, gradients = some_params(dtype), nth(some_gradients(dtype=dtype), 0)
    state = tx.init(params)
    assert signature(jax.eval_shape(tx.init, params)) == signature(state)
    updates, after = jax.eval_shape(tx.update, gradients, state, params)
    assert signature(after) == signature(state)
    assert signature(updates) == signature(gradients)
    updates, _ = jax.jit(tx.update)(gradients, state, params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    "name", [name for name in VALUES if name not in ("learning_rate", "initial_accumulator_value")]
)
def test_in_optaxs_wrappers(name, x64):
    optimizer = next(row for row in OPTIMIZERS if name in row.schedulable)
    params, gradients, schedule = some_params(), some_gradients(STEPS), between(name)
    tx = optimizer(**{name: schedule})
    expected, _ = run(tx, params, gradients)
    # Schedules count the steps that are taken, and not the calls.
    twice = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), gradients)
    multi = optax.MultiSteps(tx, 2, accumulator_dtype=jnp.float64).gradient_transformation()
    assert_close(run(multi, params, twice)[0], expected)
    with_nans = jax.tree.map(lambda leaf: leaf.at[1::2].set(jnp.nan), twice)
    assert_close(run(optax.apply_if_finite(tx, 9), params, with_nans)[0], expected)
    groups = optax.partition({"a": tx, "b": optax.masked(tx, True)}, {"w": "a", "b": "b"})
    assert_close(run(groups, params, gradients)[0], expected)
    arguments = {**optimizer.numbers, **optimizer.switches, name: schedule}
    injected = optax.inject_hyperparams(optimizer.factory)(**arguments)
    assert_close(run(injected, params, gradients)[0], expected, tolerance=1e-6)  # Optax computes it in float32


def test_an_untraceable_schedule_works_outside_jit(x64):
    params, gradients = some_params(), some_gradients(STEPS)
    tx = sgd(0.1, momentum=lambda count: 0.5 if count < 2 else 0.9)
    state, actual = tx.init(params), params
    for t in range(STEPS):
        updates, state = tx.update(nth(gradients, t), state, actual)
        actual = optax.apply_updates(actual, updates)
    optimizer = Optimizer("", sgd, ("momentum", "learning_rate"))
    assert_close(actual, by_hand(optimizer, [{"momentum": 0.5}] * 2 + [{"momentum": 0.9}] * 3, params, gradients))


# Against the equations, written out


def cycled(count):
    """The momentum of a one-cycle policy: down and up again."""
    return 0.95 - 0.1 * (1 - abs(2 * count / 20 - 1))


GRADS = np.random.default_rng(7).normal(size=(30, 4))
WEIGHTS = np.random.default_rng(8).normal(size=4)


def ours(tx):
    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    weights = jnp.asarray(WEIGHTS)
    return jax.jit(lambda grads: jax.lax.scan(step, (weights, tx.init(weights)), grads)[1])(jnp.asarray(GRADS))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_cycled_momentum_is_its_equation(nesterov, x64):
    w, buffer, path = WEIGHTS, np.zeros_like(WEIGHTS), []
    for t, g in enumerate(GRADS):
        g = g + 0.01 * w
        buffer = cycled(t) * buffer + g
        w = w - 0.1 * (g + cycled(t) * buffer if nesterov else buffer)
        path.append(w)
    tx = sgd(0.1, momentum=cycled, nesterov=nesterov, weight_decay=0.01)
    np.testing.assert_allclose(ours(tx), path, rtol=1e-13, atol=1e-13)  # thirty steps of a few roundings of 1e-16


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_with_moving_decays_is_its_equation_with_running_products(amsgrad, x64):
    def b1(count):
        return 0.95 - 0.01 * count

    def b2(count):
        return 0.9 + 0.099 * count / 30

    w, m, v, v_max = WEIGHTS, np.zeros(4), np.zeros(4), np.zeros(4)
    left1, left2, path = 1.0, 1.0, []
    for t, g in enumerate(GRADS):
        m = b1(t) * m + (1 - b1(t)) * g
        v = b2(t) * v + (1 - b2(t)) * g**2
        v_max = np.maximum(v_max, v)
        left1, left2 = left1 * b1(t), left2 * b2(t)
        second = (v_max if amsgrad else v) / (1 - left2)
        w = w - 0.1 * (m / (1 - left1) / (np.sqrt(second) + 1e-8) + 0.05 * w)
        path.append(w)
    tx = adamw(0.1, b1=b1, b2=b2, weight_decay=0.05, amsgrad=amsgrad)
    np.testing.assert_allclose(ours(tx), path, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["momentum", "nesterov"])
def test_the_corrected_average_of_a_constant_is_that_constant_whatever_the_decays(form, x64):
    decay: Any = lambda count: 0.5 + 0.4 * jnp.sin(count)  # noqa: E731
    if form == "momentum":
        tx = chain(scale_by_momentum(decay, dampening=decay), bias_correction(decay))
        expected = 3.0
    else:  # (1 − μ_t) / (1 − Π_t) g + μ_{t+1} / (1 − Π_{t+1}) m, where m = (1 − Π_t) g
        tx, products = scale_by_nesterov(decay, form="corrected"), np.cumprod(0.5 + 0.4 * np.sin(np.arange(9)))
        mu = 0.5 + 0.4 * np.sin(np.arange(9))
        expected = 3 * ((1 - mu) / (1 - products) + mu * (1 - products) / (1 - products * mu))
    state, found = tx.init(jnp.zeros(())), []
    for _ in range(9):
        average, state = tx.update(jnp.asarray(3.0), state)
        found.append(average)
    np.testing.assert_allclose(found, np.broadcast_to(expected, 9), rtol=1e-13)


PYTORCH = {
    "SGD": (sgd, {"momentum": "momentum", "weight_decay": "weight_decay", "dampening": "dampening"}, {}),
    "SGD-nesterov": (sgd, {"momentum": "momentum"}, {"nesterov": True}),
    "RMSprop": (rmsprop, {"momentum": "momentum", "decay": "alpha", "eps": "eps"}, {"centered": True}),
    "Adadelta": (adadelta, {"rho": "rho", "eps": "eps"}, {}),
    "Adagrad": (adagrad, {"lr_decay": "lr_decay", "eps": "eps"}, {}),
    "NAdam": (nadam, {"b1": "betas", "momentum_decay": "momentum_decay"}, {}),
}


@pytest.mark.parametrize("case", PYTORCH)
def test_is_pytorch_with_its_groups_numbers_set_before_every_step(case, x64):
    torch = pytest.importorskip("torch", reason="compares with the installed PyTorch")
    factory, renamed, switches = PYTORCH[case]
    schedules = {name: between(name) if name != "momentum" else cycled for name in renamed}

    def theirs_at(count):
        now = {renamed[name]: schedule(count) for name, schedule in schedules.items()}
        return {name: (value, 0.999) if name == "betas" else value for name, value in now.items()}

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # NAdam keeps its product of momenta in the default dtype
    try:
        leaf = torch.nn.Parameter(torch.from_numpy(WEIGHTS.copy()))
        kind = getattr(torch.optim, case.partition("-")[0])
        optimizer = kind([leaf], lr=0.1, foreach=False, **theirs_at(0), **switches)
        path = []
        for count, g in enumerate(GRADS[:STEPS]):
            optimizer.param_groups[0].update(theirs_at(count))
            leaf.grad = torch.from_numpy(g.copy())
            optimizer.step()
            path.append(leaf.detach().numpy().copy())
    finally:
        torch.set_default_dtype(default)
    # The centered second moment is a difference, so that some digits cancel.
    np.testing.assert_allclose(ours(factory(0.1, **schedules, **switches))[:STEPS], path, rtol=1e-11, atol=1e-11)


# What is not there


@pytest.mark.parametrize("factory", [sgd, adagrad, rmsprop, adadelta, adam, nadam, sparse_adam])
def test_by_default_nothing_is_there_that_is_not_asked_for(factory):
    params, gradients = some_params(), nth(some_gradients(), 0)
    plain = factory(0.1)
    arguments = inspect.signature(factory).parameters
    absent = [name for name in ("weight_decay", "momentum", "dampening", "lr_decay") if name in arguments]
    for zero in (None, 0, 0.0, np.float32(0)):
        assert factory(0.1, **dict.fromkeys(absent, zero)) == plain
    injected = optax.inject_hyperparams(factory)(0.1)
    state = injected.init(params)
    assert not set(absent) & state.hyperparams.keys()
    assert jax.tree.structure(state.inner_state) == jax.tree.structure(plain.init(params))
    updates, _ = injected.update(gradients, state)  # nothing decays, so that no parameters are needed
    assert_close(updates, plain.update(gradients, plain.init(params))[0], tolerance=1e-6)


def test_a_scheduled_zero_and_an_array_of_zero_are_there():
    for zero in (lambda count: 0.0, jnp.float32(0)):
        assert [link.name for link in sgd(0.1, momentum=zero).links] == ["scale_by_momentum", "scale_by_learning_rate"]
        assert adam(0.1, weight_decay=zero).links[0].name == "add_l2_to_grad"


@pytest.mark.parametrize("momentum", [None, 0, 0.0, np.float64(0), jnp.float32(0)])
def test_nesterov_needs_momentum(momentum):
    with pytest.raises(ValueError, match="sgd: nesterov must come with momentum above 0 and no dampening, got mom"):
        sgd(0.1, momentum=momentum, nesterov=True)


@pytest.mark.parametrize("dampening", [0.1, jnp.float32(0.1), lambda count: 0.0])
def test_nesterov_takes_no_dampening(dampening):
    with pytest.raises(ValueError, match="sgd: nesterov must come with momentum above 0 and no dampening"):
        sgd(0.1, momentum=0.9, dampening=dampening, nesterov=True)


# What Optax's tree functions and `migrate` find


@pytest.mark.parametrize("tx", [adam(), adam(amsgrad=True), adamw(), adamw(amsgrad=True), nadam()])
def test_there_is_one_count_one_mu_and_one_nu(tx):
    params, gradients = some_params(), some_gradients(3)
    _, state = run(tx, params, gradients)
    assert optax.tree.get(state, "count") == 3
    for name in ("mu", "nu"):
        chex.assert_trees_all_equal_shapes(optax.tree.get(state, name), params)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (adam(b1=cycled, b2=between("b2")), adam(b1=cycled, b2=between("b2"))),
        (nadam(b1=cycled, momentum_decay=between("momentum_decay")), nadam(b1=cycled, momentum_decay=lambda t: 0.01)),
        (sgd(0.1, momentum=cycled), sgd(0.1, momentum=cycled, nesterov=True)),
    ],
    ids=["adam", "nadam", "sgd"],
)
def test_a_scheduled_state_migrates(old, new, x64):
    params, gradients = some_params(), some_gradients(3)
    _, state = run(old, params, gradients)
    migration = migrate(old, state, new, params)
    assert not migration.notes
    assert jax.tree.structure(migration.state) == jax.tree.structure(new.init(params))
    counts = [int(count) for _, count in optax.tree.get_all_with_path(migration.state, "count")]
    assert set(counts) == {3}


@pytest.mark.parametrize("traceable", [True, False])
def test_what_a_scheduled_correction_has_gathered_is_known_afterwards(traceable, x64):
    def decay(count):
        return 0.9 - 0.02 * (count if traceable else float(count))

    def momentum_decay(count):
        return 0.1 * count

    for tx, name in (
        (bias_correction(decay), "weight"),
        (bias_correction(lambda count: 0.0), "weight"),
        (scale_by_nesterov(decay, form="corrected", momentum_decay=momentum_decay), "correction"),
        (scale_by_nesterov(0.9, form="corrected"), "correction"),
    ):
        state = tx.init(jnp.zeros(()))
        for steps in range(6):
            (found,) = (value for path, value in optax.tree.get_all_with_path(state, name))
            gathered = next(field for path, field in tx.fields.items() if path[-1] == name)
            assert gathered.after(steps, **tx.hyperparams) == pytest.approx(float(found), rel=1e-14, abs=1e-15)
            _, state = tx.update(jnp.ones(()), state)


def test_a_chain_prints_its_schedules():
    text = repr(sgd(0.1, momentum=optax.linear_schedule(0.95, 0.85, 10)))
    assert "scale_by_momentum(decay=polynomial_schedule(" in text


def test_equal_schedules_make_equal_chains():
    def build():
        return adam(b1=optax.linear_schedule(0.9, 0.8, 10), eps=optax.constant_schedule(1e-8))

    assert build() == build()
    assert hash(build()) == hash(build())


def test_one_schedule_may_stand_in_several_places():
    shared = optax.linear_schedule(0.9, 0.5, 10)
    tx = chain(scale_by_momentum(shared, dampening=shared), scale_by_learning_rate(shared))
    params = some_params()
    assert jax.tree.structure(jax.eval_shape(tx.init, params)) == jax.tree.structure(tx.init(params))
