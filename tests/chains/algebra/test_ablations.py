"""The chains one step away from a given one: valid, all different, and the ones that people would build by hand."""

import jax
import jax.numpy as jnp
import optax
import pytest

from linkax.chains import Chain, ablations, adadelta, adagrad, adam, adamw, chain, nadam, rmsprop, sgd, sweep
from linkax.transforms import (
    bias_correction,
    decoupled_weight_decay,
    matrices_only,
    mean_square,
    moment_ratio,
    running_max,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_nesterov,
    scale_by_rms,
    variance,
)

from ..optimizers import Optimizer, each_optimizer, run, some_gradients, some_params

_FIRST, _SECOND = scale_by_momentum(0.9, dampening=0.9), mean_square(0.999)
_CORRECT_FIRST, _CORRECT_SECOND = bias_correction(0.9), bias_correction(0.999)
_DECAY, _RATE = decoupled_weight_decay(0.01), scale_by_learning_rate(0.001)
_CORRECTED_FIRST, _CORRECTED_SECOND = chain(_FIRST, _CORRECT_FIRST), chain(_SECOND, _CORRECT_SECOND)

ADAMW = {
    "without first.scale_by_momentum": chain(moment_ratio(chain(), _CORRECTED_SECOND, 1e-8), _DECAY, _RATE),
    "without first.bias_correction": chain(moment_ratio(_FIRST, _CORRECTED_SECOND, 1e-8), _DECAY, _RATE),
    "without second.mean_square": chain(_FIRST, _CORRECT_FIRST, _DECAY, _RATE),
    "without second.bias_correction": chain(moment_ratio(_CORRECTED_FIRST, _SECOND, 1e-8), _DECAY, _RATE),
    "without bias_correction": chain(moment_ratio(_FIRST, _SECOND, 1e-8), _DECAY, _RATE),
    "without decoupled_weight_decay": adam(),
    "add_l2_to_grad for decoupled_weight_decay": adam(weight_decay=0.01),
    "with running_max": adamw(amsgrad=True),
    "eps in the root": chain(moment_ratio(_CORRECTED_FIRST, _CORRECTED_SECOND, 1e-8, eps_in_sqrt=True), _DECAY, _RATE),
    "scale_by_nesterov for scale_by_momentum": chain(
        moment_ratio(scale_by_nesterov(0.9, form="corrected"), _CORRECTED_SECOND, 1e-8), _DECAY, _RATE
    ),
}


def test_ablations_of_adamw_are_those_built_by_hand():
    assert ablations(adamw()) == ADAMW


@pytest.mark.parametrize(
    ("tx", "name", "expected"),
    [
        (adam(), "scale_by_nesterov for scale_by_momentum", nadam(1e-3, momentum_decay=None)),
        (adam(amsgrad=True), "without second.running_max", adam()),
        (adam(amsgrad=True), "without second.mean_square", chain(_FIRST, _CORRECT_FIRST, _RATE)),
        (
            adam(weight_decay=0.1, weight_decay_mask=matrices_only),
            "decoupled_weight_decay for add_l2_to_grad",
            adamw(weight_decay=0.1, weight_decay_mask=matrices_only),
        ),
        (
            nadam(),
            "without first.scale_by_nesterov",
            chain(moment_ratio(chain(), _CORRECTED_SECOND, 1e-8), nadam().links[-1]),
        ),
        (sgd(momentum=0.9), "scale_by_nesterov for scale_by_momentum", sgd(momentum=0.9, nesterov=True)),
        (sgd(momentum=0.9), "without scale_by_momentum", sgd()),
        (
            chain(scale_by_momentum(0.9, dampening=0.9), _RATE),
            "scale_by_nesterov for scale_by_momentum",
            chain(scale_by_nesterov(0.9, form="averaged"), _RATE),
        ),
        (rmsprop(), "eps in the root", rmsprop(eps_in_sqrt=True)),
        (rmsprop(eps_in_sqrt=True), "eps outside the root", rmsprop()),
        (rmsprop(momentum=0.9), "without scale_by_rms", chain(scale_by_momentum(0.9), scale_by_learning_rate(0.01))),
        (
            rmsprop(),
            "with running_max",
            chain(moment_ratio(chain(), chain(mean_square(0.99), running_max()), 1e-8), scale_by_learning_rate(0.01)),
        ),
        (
            rmsprop(centered=True),
            "with running_max",
            chain(moment_ratio(chain(), chain(variance(0.99), running_max()), 1e-8), scale_by_learning_rate(0.01)),
        ),
        (adagrad(lr_decay=0.1), "without scale_by_inverse_time_decay", adagrad()),
        (adagrad(), "eps in the root", adagrad(eps_in_sqrt=True)),
        (adadelta(), "without scale_by_adadelta", sgd(1.0)),
        (chain(optax.clip(1.0), adam()), "without clip", adam()),
    ],
)
def test_ablations_are_those_built_by_hand(tx, name, expected):
    assert ablations(tx)[name] == expected


@each_optimizer
def test_every_ablation_is_valid_and_steps(optimizer: Optimizer):
    params, gradients = some_params(), some_gradients(3)
    found = ablations(optimizer())
    assert found
    for name, tx in found.items():
        assert isinstance(tx, Chain), name
        stepped, _ = run(tx, params, gradients)
        for leaf in params:
            assert jnp.isfinite(stepped[leaf]).all(), name
            assert (stepped[leaf] != params[leaf]).any(), name


@each_optimizer
def test_ablations_differ_from_the_chain_and_from_each_other(optimizer: Optimizer):
    every = [optimizer(), *ablations(optimizer()).values()]
    assert len(set(every)) == len(every)


@each_optimizer
def test_names_say_what_was_done(optimizer: Optimizer):
    for name, tx in ablations(optimizer()).items():
        kind, _, link = name.partition(" ")
        if kind == "without":
            assert link in repr(optimizer()) or link.rpartition(".")[2] in repr(optimizer())
            assert repr(tx).count(link.rpartition(".")[2]) < repr(optimizer()).count(link.rpartition(".")[2])
        elif " for " in name:
            new, _, old = name.partition(" for ")
            assert new in repr(tx)
            assert repr(tx).count(old.rpartition(".")[2]) < repr(optimizer()).count(old.rpartition(".")[2])
        else:
            assert name in ("with running_max", "eps in the root", "eps outside the root", "not factored")


@each_optimizer
def test_the_sign_is_kept(optimizer: Optimizer):
    for tx in ablations(optimizer()).values():
        names = [link.name for link in tx.links]
        assert "scale_by_learning_rate" in names
        assert ("negate_grad" in names) == optimizer.switches.get("maximize", False)


def test_links_of_one_name_get_a_number():
    found = ablations(chain(optax.clip(1.0), optax.clip(2.0), sgd()))
    assert found["without clip"] == chain(optax.clip(2.0), sgd())
    assert found["without clip (2)"] == chain(optax.clip(1.0), sgd())


def test_equal_ablations_are_one():
    assert ablations(chain(optax.clip(1.0), optax.clip(1.0), sgd())) == {"without clip": chain(optax.clip(1.0), sgd())}


def test_ratios_inside_a_ratio():
    inner, second = adam().links[0], adam().links[0].hyperparams["second"]
    found = ablations(chain(moment_ratio(inner, second, 1e-6), _RATE))
    assert found["eps in the root"] == chain(moment_ratio(inner, second, 1e-6, eps_in_sqrt=True), _RATE)
    assert found["eps in the root (2)"] == chain(moment_ratio(inner.replace(eps_in_sqrt=True), second, 1e-6), _RATE)
    assert found["without second.mean_square"] == adam()


def test_steps_that_make_no_chain_are_left_out():
    foreign_end = chain(optax.scale_by_adam(), decoupled_weight_decay(0.1), optax.scale(-0.1))
    assert not any(" for " in name for name in ablations(foreign_end))
    foreign_second = chain(moment_ratio(optax.identity(), optax.stateless(lambda g, _: g), 1e-3), _RATE)
    assert list(ablations(foreign_second)) == ["eps in the root"]


def test_an_empty_chain_has_none():
    assert ablations(chain()) == {}


def test_ablations_of_ablations():
    for tx in ablations(adamw()).values():
        for second in ablations(tx).values():
            assert isinstance(second, Chain)
            assert second != tx


def test_traced_numbers_and_schedules_are_kept():
    @jax.jit
    def first_steps(rate):
        params = jnp.ones((2, 2))
        found = ablations(adamw(rate, b1=rate, weight_decay=lambda count: 0.1 / (count + 1)))
        return {name: tx.update(params, tx.init(params), params)[0] for name, tx in found.items()}

    expected = ablations(adamw(0.5, b1=0.5, weight_decay=lambda count: 0.1 / (count + 1)))
    found = first_steps(0.5)
    assert found.keys() == expected.keys()
    for name, tx in expected.items():
        params = jnp.ones((2, 2))  # one step: some roundings of 6e-8
        update, _ = tx.update(params, tx.init(params), params)
        assert jnp.allclose(found[name], update, rtol=1e-6), name


def test_ablations_go_into_a_sweep():
    tx = rmsprop(0.1, weight_decay=0.1)

    def train(tx, seed):
        w = jax.random.normal(jax.random.key(seed), (3,))
        updates, _ = tx.update(2 * w, tx.init(w), w)
        return {"loss": jnp.sum(optax.apply_updates(w, updates) ** 2)}

    table = sweep(train, {"seed": range(3)}, {"as it is": tx, **ablations(tx)}, progress=False)
    assert list(table["variant"].values) == ["as it is", *ablations(tx)]
    assert not table["diverged"].any()
    for name, ablation in ablations(tx).items():
        assert table.attrs[f"chain {name!r}"] == repr(ablation)


@pytest.mark.parametrize(
    "wrong", [None, "adam", adam, optax.adam(0.1), scale_by_rms(0.9), [adam()]], ids=lambda wrong: type(wrong).__name__
)
def test_only_chains_have_ablations(wrong):
    with pytest.raises(TypeError, match="^ablations: tx must be a chain, got"):
        ablations(wrong)
