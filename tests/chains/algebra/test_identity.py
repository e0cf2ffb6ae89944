"""Chains are values: equal when built alike, hashable, copied and pickled whole."""

import copy
import functools
import importlib
import pickle
import sys
import types

import chex
import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkax.chains import Chain, adam, adamw, chain, rmsprop, sgd
from linkax.transforms import (
    add_l2_to_grad,
    bias_correction,
    link,
    matrices_only,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
)

from ..optimizers import VALUES, Optimizer, each_hyperparameter, each_optimizer, nth, some_gradients, some_params


@each_optimizer
def test_chains_built_alike_are_equal_and_hash_alike(optimizer: Optimizer):
    assert optimizer() is not optimizer()
    assert optimizer() == optimizer()
    assert not optimizer() != optimizer()  # noqa: SIM202  (tuple has a != of its own)
    assert hash(optimizer()) == hash(optimizer())


@each_hyperparameter
def test_one_other_number_makes_another_chain(optimizer: Optimizer, name):
    assert optimizer(**{name: VALUES[name][1]}) != optimizer()


@each_optimizer
def test_arrays_as_hyperparameters_are_compared_by_value(optimizer: Optimizer):
    def build(scale=1.0):
        return optimizer(**{name: jnp.asarray(value * scale) for name, value in optimizer.numbers.items()})

    assert build() == build()
    assert hash(build()) == hash(build())
    assert build() != build(0.9)


_numbers = st.fixed_dictionaries(
    {
        "learning_rate": st.sampled_from([0, 0.0, 1, 1.0, 1e-3]),
        "b1": st.sampled_from([0, 0.0, 0.9]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "amsgrad": st.booleans(),
    }
)


@given(_numbers, _numbers)
def test_chains_are_equal_exactly_when_their_arguments_are(a, b):
    assert (adam(**a) == adam(**b)) == (a == b)
    assert len({adam(**a), adam(**b)}) == (1 if a == b else 2)


def _power_schedule(power):
    return lambda count: (count + 1.0) ** power


def _decays(count):
    return 0.1 / (count + 1)


def _from_table(table):
    return lambda count: jnp.asarray(table)[count]


class _Decays:
    def rate(self, count):
        return 0.1


_BUILT_TWICE = {
    "exponential": lambda rate: optax.exponential_decay(rate, transition_steps=10, decay_rate=0.5),
    "warmup_cosine": lambda rate: optax.warmup_cosine_decay_schedule(0.0, rate, 10, 100),
    "piecewise": lambda rate: optax.piecewise_constant_schedule(rate, {10: 0.1}),
    "joined": lambda rate: optax.join_schedules(
        [optax.linear_schedule(0.0, rate, 5), optax.constant_schedule(1.0)], [5]
    ),
    "lambda": lambda rate: lambda count: rate / (count + 1),
    "lambda_default": lambda rate: lambda count, rate=rate: rate,
    "nested": lambda rate: lambda count: (lambda: rate * count)(),
    "partial": lambda rate: functools.partial(np.multiply, rate),
    "array": lambda rate: _from_table(np.array([rate, 0.0])),
}


@pytest.mark.parametrize("make", _BUILT_TWICE.values(), ids=_BUILT_TWICE.keys())
@pytest.mark.parametrize("argument", ["learning_rate", "weight_decay"])
def test_schedules_are_compared_by_what_they_compute_with(make, argument):
    assert adamw(**{argument: make(0.1)}) == adamw(**{argument: make(0.1)})
    assert hash(adamw(**{argument: make(0.1)})) == hash(adamw(**{argument: make(0.1)}))
    assert adamw(**{argument: make(0.1)}) != adamw(**{argument: make(0.2)})


def test_schedules_of_one_shape_and_different_code_differ():
    assert sgd(lambda count: count + 1) != sgd(lambda count: count + 2)
    assert sgd(_power_schedule(1)) != sgd(_power_schedule(2))
    assert sgd(_decays) == sgd(_decays)
    assert sgd(_decays) != sgd(_power_schedule(-1))


def test_a_schedule_that_is_a_method_is_only_the_same_as_itself():
    a, b = _Decays(), _Decays()
    rate, tx = a.rate, sgd(a.rate)
    assert tx == tx.add(bias_correction(0.9)).drop("bias_correction")
    assert sgd(rate) == sgd(rate)
    assert sgd(a.rate) != sgd(b.rate)


# What could change without the function changing: equality would keep a compiled step that has become wrong.


def _times(factor):
    def decorate(function):
        @functools.wraps(function)
        def scaled(count):
            return factor * function(count)

        return scaled

    return decorate


def test_a_wrapped_function_is_not_the_one_it_wraps():
    assert sgd(_times(1e-3)(_decays)) == sgd(_times(1e-3)(_decays))
    assert sgd(_times(1e-3)(_decays)) != sgd(_times(0.5)(_decays))
    assert sgd(_times(1.0)(_decays)) != sgd(_decays)


@pytest.mark.parametrize("holder", [types.SimpleNamespace(rate=1e-3), type("Holder", (), {"rate": 1e-3})])
def test_functions_that_read_an_object_are_only_the_same_as_themselves(holder):
    def schedule():
        return lambda count: holder.rate

    one = schedule()
    assert sgd(one) == sgd(one)
    assert sgd(schedule()) != sgd(schedule())


def test_a_step_sees_what_a_schedule_reads_now():
    settings = types.SimpleNamespace(rate=1e-3)

    @functools.partial(jax.jit, static_argnums=0)
    def step(tx):
        return tx.update(jnp.ones(()), tx.init(jnp.ones(())))[0]

    assert step(sgd(lambda count: settings.rate)) == jnp.float32(-1e-3)
    settings.rate = 0.5
    assert step(sgd(lambda count: settings.rate)) == -0.5


def test_a_reloaded_module_is_another_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "reloaded_settings.py"
    path.write_text("RATE = 1e-3\ndef rate(count):\n    return RATE\n")
    module = importlib.import_module("reloaded_settings")
    before = sgd(module.rate)
    path.write_text("RATE = 0.5000\ndef rate(count):\n    return RATE\n")
    assert before != sgd(importlib.reload(module).rate)


def test_a_global_that_changed_makes_another_function():
    source = compile("lambda count: RATE", "<cell>", "eval")
    one, two = (sgd(eval(source, {"RATE": rate})) for rate in (1e-3, 0.5))
    assert one != two
    assert one == sgd(eval(source, {"RATE": 1e-3, "unrelated": 3}))


def test_integers_and_floats_in_closures_differ():
    def power(base):
        return lambda count: base**count

    assert sgd(power(2)) != sgd(power(2.0))
    assert sgd(power(2)) == sgd(power(2))


def test_a_deleted_or_large_array_does_not_hinder():
    array = jnp.ones(())
    array.delete()
    assert hash(sgd(lambda count: 0.1 * (array is not None))) != 0
    large = np.zeros(100_000)
    assert sgd(lambda count: large[0]) != sgd(lambda count: large[0])


def test_links_of_differently_decorated_factories_differ():
    def make(factor):
        @link("gradient")
        def scale() -> optax.GradientTransformation:
            return optax.scale(factor)

        return scale

    assert make(2.0)() == make(2.0)()
    assert make(2.0)() != make(3.0)()


@pytest.mark.parametrize(
    "make",
    [
        lambda flag: {"w": True, "b": flag},
        lambda flag: {"layers": [{"w": True}, {"b": flag}], "rest": (flag, None)},
        lambda flag: lambda params: jax.tree.map(lambda p: p.ndim > 1 or flag, params),
        lambda flag: matrices_only if flag else None,
    ],
    ids=["dict", "nested", "function", "ready"],
)
def test_masks_are_compared_by_value(make):
    assert adamw(weight_decay_mask=make(True)) == adamw(weight_decay_mask=make(True))
    assert hash(adamw(weight_decay_mask=make(True))) == hash(adamw(weight_decay_mask=make(True)))
    assert adamw(weight_decay_mask=make(True)) != adamw(weight_decay_mask=make(False))


@pytest.mark.parametrize(
    "foreign",
    [
        optax.clip_by_global_norm,
        optax.clip,
        lambda number: optax.scale_by_adam(b1=number / 2),
        lambda number: optax.masked(optax.clip(number), {"w": True, "b": False}),
        lambda number: optax.apply_if_finite(optax.scale(number), 3),
        lambda number: optax.chain(optax.clip(number), optax.scale(2.0)),
        lambda number: optax.add_noise(number, 0.5, jax.random.key(0)),
    ],
    ids=["clip_by_global_norm", "clip", "scale_by_adam", "masked", "apply_if_finite", "chain", "add_noise"],
)
def test_chains_with_optax_transformations_are_compared_by_their_numbers(foreign):
    assert chain(foreign(1.0), adam()) == chain(foreign(1.0), adam())
    assert hash(chain(foreign(1.0), adam())) == hash(chain(foreign(1.0), adam()))
    assert chain(foreign(1.0), adam()) != chain(foreign(0.5), adam())


def test_order_and_length_of_links_count():
    a, b, lr = scale_by_momentum(0.9), scale_by_rms(0.9), scale_by_learning_rate(0.1)
    assert chain(a, b, lr) != chain(b, a, lr)
    assert chain(a, lr) != chain(a, b, lr)
    assert chain(chain(a, b), lr) == chain(a, b, lr)


def test_a_chain_is_equal_to_nothing_but_a_chain():
    tx = adam()
    assert tx != optax.chain(*tx.links)
    assert tx != tuple(tx)
    assert chain(*tx.links[:1]) != tx.links[0]


@each_optimizer
def test_as_a_static_argument_a_chain_built_anew_does_not_retrace(optimizer: Optimizer):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def init(tx, params):
        traces.append(None)
        return tx.init(params)

    for _ in range(3):
        init(optimizer(), some_params())
    assert len(traces) == 1
    init(optimizer(learning_rate=0.5), some_params())
    assert len(traces) == 2


@each_optimizer
def test_a_chain_is_a_dictionary_key(optimizer: Optimizer):
    runs = {optimizer(): "first", optimizer(learning_rate=0.5): "second"}
    assert runs[optimizer()] == "first"
    assert runs[optimizer(learning_rate=0.5)] == "second"
    assert optimizer(learning_rate=0.25) not in runs


_COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda tx: pickle.loads(pickle.dumps(tx)),
    "cloudpickle": lambda tx: pickle.loads(cloudpickle.dumps(tx)),
}


def _assert_same(copied: Chain, tx: Chain):
    assert isinstance(copied, Chain)
    assert copied == tx
    assert hash(copied) == hash(tx)
    assert repr(copied) == repr(tx)
    assert [a.place for a in copied.links] == [b.place for b in tx.links]
    params, gradients = some_params(), nth(some_gradients(), 0)
    chex.assert_trees_all_equal(
        copied.update(gradients, copied.init(params), params), tx.update(gradients, tx.init(params), params)
    )


@each_optimizer
@pytest.mark.parametrize("copied", _COPIES.values(), ids=_COPIES.keys())
def test_copies_are_whole(optimizer: Optimizer, copied):
    _assert_same(copied(optimizer()), optimizer())


@pytest.mark.parametrize("copied", _COPIES.values(), ids=_COPIES.keys())
def test_copies_with_arrays_and_importable_functions_are_whole(copied):
    tx = adamw(_decays, b1=jnp.float32(0.5), eps=jnp.float32(1e-6), weight_decay_mask=matrices_only)
    _assert_same(copied(tx), tx)


@link("gradient")
def scale_gradient(factor: float = 2.0) -> optax.GradientTransformation:
    """A link of a user's own."""
    return optax.scale(factor)


@pytest.mark.parametrize("copied", _COPIES.values(), ids=_COPIES.keys())
def test_copies_of_chains_with_a_link_of_ones_own_are_whole(copied):
    tx = chain(scale_gradient(3.0), adam())
    _assert_same(copied(tx), tx)


@pytest.mark.parametrize("name", ["copy", "deepcopy", "cloudpickle"])  # pickle itself cannot do closures
@pytest.mark.parametrize(
    "make",
    [
        lambda: adamw(optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)),
        lambda: adamw(_power_schedule(-0.5)),
        lambda: adamw(weight_decay_mask=lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params)),
        lambda: chain(optax.clip_by_global_norm(0.5), adam()),
        lambda: chain(optax.masked(optax.clip(0.1), {"w": True, "b": False}), rmsprop(momentum=0.9)),
        lambda: sgd(0.1).swap("scale_by_learning_rate", optax.scale(-0.1)),
    ],
    ids=["schedule", "lambda", "mask", "clip", "masked", "foreign_end"],
)
def test_copies_of_chains_with_closures_are_whole(make, name):
    _assert_same(_COPIES[name](make()), make())


def test_a_copy_can_still_be_taken_apart():
    copied = pickle.loads(pickle.dumps(adam(weight_decay=0.1)))
    assert copied.drop("add_l2_to_grad") == adam()
    assert copied.swap("add_l2_to_grad", add_l2_to_grad(0.5)) == adam(weight_decay=0.5)


@each_optimizer
@pytest.mark.parametrize("fn", [lambda f: None, lambda f: 1, lambda f: jnp.ones(3)], ids=["none", "number", "array"])
def test_a_tree_map_over_a_chain_leaves_something_that_can_be_printed(optimizer: Optimizer, fn):
    mapped = jax.tree.map(fn, optimizer())
    assert repr(mapped).startswith("chain")
    assert mapped != optimizer()  # its links are no longer known


@each_optimizer
def test_a_chain_put_together_again_from_its_leaves_is_the_chain(optimizer: Optimizer):
    tx = optimizer()
    assert jax.tree.map(lambda f: f, tx) is tx
    assert jax.tree.map(lambda f: f, tx.links[0]) is tx.links[0]
