"""Hyperparameters in PyTorch's file that are not the chain's: an error, or a warning where they may be meant."""

import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adadelta, adagrad, adam, adamw, chain, live, nadam, rmsprop, sgd
from linkax.chains.torch_interop import from_torch, import_state
from linkax.transforms import decoupled_weight_decay, matrices_only

from .files import HYPERPARAMS, params, torch_file


def fresh(name, **hyperparams):
    """A file of an optimizer that has not taken a step, so that nothing but the hyperparameters can be wrong."""
    return {**torch_file(name, **hyperparams), "state": {}}


CONTRADICTIONS = [
    (
        "SGD",
        {"momentum": 0.8},
        "momentum is 0.8 in PyTorch's group 0, but the chain has decay=0.9 in scale_by_momentum",
    ),
    ("SGD", {"momentum": 0}, "momentum is 0 in PyTorch's group 0, but the chain has scale_by_momentum"),
    ("SGD", {"dampening": 0.5}, "dampening is 0.5 in PyTorch's group 0, but the chain has dampening=0.0"),
    ("SGD", {"nesterov": True}, "nesterov is True in PyTorch's group 0, but the chain has scale_by_momentum"),
    ("SGD", {"maximize": True}, "maximize is True in PyTorch's group 0, but the chain minimises"),
    ("Adagrad", {"eps": 1e-8}, "eps is 1e-08 in PyTorch's group 0, but the chain has eps=1e-10 in moment_ratio"),
    ("Adagrad", {"lr_decay": 0.5}, "lr_decay is 0.5 in PyTorch's group 0, but the chain has decay=0.05"),
    ("Adagrad", {"lr_decay": 0}, "lr_decay is 0 in PyTorch's group 0, but the chain has scale_by_inverse_time_decay"),
    ("RMSprop", {"alpha": 0.5}, "alpha is 0.5 in PyTorch's group 0, but the chain has decay=0.95 in second.variance"),
    ("RMSprop", {"centered": False}, "centered is False in PyTorch's group 0, but the chain has variance"),
    ("RMSprop", {"momentum": 0.5}, "momentum is 0.5 in PyTorch's group 0, but the chain has decay=0.9"),
    ("RMSprop", {"eps": 1.0}, "eps is 1.0 in PyTorch's group 0, but the chain has eps=1e-08 in moment_ratio"),
    ("Adadelta", {"rho": 0.5}, "rho is 0.5 in PyTorch's group 0, but the chain has decay=0.95"),
    ("Adadelta", {"eps": 1.0}, "eps is 1.0 in PyTorch's group 0, but the chain has eps=1e-06"),
    ("Adadelta", {"maximize": False}, "maximize is False in PyTorch's group 0, but the chain maximises"),
    ("Adam", {"betas": (0.8, 0.99)}, "betas is (0.8, 0.99) in PyTorch's group 0, but the chain has decay=0.9 in first"),
    ("Adam", {"betas": [0.9, 0.9]}, "betas is [0.9, 0.9] in PyTorch's group 0, but the chain has decay=0.99 in second"),
    ("Adam", {"amsgrad": False}, "amsgrad is False in PyTorch's group 0, but the chain has running_max"),
    ("AdamW", {"amsgrad": True}, "amsgrad is True in PyTorch's group 0, but the chain has no second.running_max"),
    ("AdamW", {"eps": 1e-6}, "eps is 1e-06 in PyTorch's group 0, but the chain has eps=1e-08 in moment_ratio"),
    ("NAdam", {"momentum_decay": 0.1}, "momentum_decay is 0.1 in PyTorch's group 0, but the chain has momentum_decay="),
    (
        "NAdam",
        {"betas": (0.5, 0.99)},
        "betas is (0.5, 0.99) in PyTorch's group 0, but the chain has decay=0.9 in first",
    ),
    (
        "RAdam",
        {"betas": (0.9, 0.5)},
        "betas is (0.9, 0.5) in PyTorch's group 0, but the chain has decay=0.99 in second",
    ),
    ("RAdam", {"eps": 1e-6}, "eps is 1e-06 in PyTorch's group 0, but the chain has eps=1e-08 in second.add_eps"),
    ("Adamax", {"eps": 1e-6}, "eps is 1e-06 in PyTorch's group 0, but the chain has eps=1e-08 in second.infinity_norm"),
    (
        "Adamax",
        {"betas": (0.9, 0.5)},
        "betas is (0.9, 0.5) in PyTorch's group 0, but the chain has decay=0.99 in second",
    ),
    ("ASGD", {"alpha": 0.75}, "alpha is 0.75 in PyTorch's group 0, but the chain has power=0.5"),
    ("ASGD", {"t0": 1}, "t0 is 1 in PyTorch's group 0, but the chain has start=6.0 in average_weights"),
    ("ASGD", {"lambd": 0.02}, "lambd is 0.02 in PyTorch's group 0, but the chain has "),
    ("Rprop", {"etas": (0.6, 1.5)}, "etas is (0.6, 1.5) in PyTorch's group 0, but the chain has shrink=0.5"),
    ("Rprop", {"etas": (0.5, 1.2)}, "etas is (0.5, 1.2) in PyTorch's group 0, but the chain has grow=1.5"),
    ("Rprop", {"step_sizes": (1e-6, 1)}, "step_sizes is (1e-06, 1) in PyTorch's group 0, but the chain has largest=50"),
]


@pytest.mark.parametrize(("name", "hyperparams", "says"), CONTRADICTIONS)
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_hyperparameter_that_is_not_the_chains(name, hyperparams, says, has_begun):
    tx = from_torch((name, HYPERPARAMS[name]))
    file = torch_file(name, **hyperparams) if has_begun else fresh(name, **hyperparams)
    with pytest.raises(ValueError, match="import_state: the state must fit") as error:
        import_state(tx, params(), file)
    assert says in str(error.value)


OF_AXES = {
    "Adafactor": {"beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "weight_decay": 0.0, "maximize": False},
    "Muon": {"momentum": 0.95, "nesterov": True, "eps": 1e-7, "ns_steps": 5, "adjust_lr_fn": None, "weight_decay": 0.1}
    | {"ns_coefficients": (3.4445, -4.775, 2.0315)},
}


@pytest.mark.parametrize(
    ("name", "hyperparams", "says"),
    [
        ("Adafactor", {"beta2_decay": -0.5}, "power=0.8 in second.factored_mean_square"),
        ("Adafactor", {"eps": (1e-2, 1e-3)}, "eps=None in second.at_least_eps"),
        ("Adafactor", {"eps": (None, 1.0)}, "smallest=0.001 in scale_by_param_rms"),
        ("Adafactor", {"d": 2.0}, "threshold=1.0 in clip_by_rms"),
        ("Muon", {"momentum": 0.9}, "decay=0.95 in scale_by_nesterov"),
        ("Muon", {"nesterov": False}, "scale_by_nesterov"),
        ("Muon", {"ns_steps": 4}, "steps=5 in orthogonalize"),
        ("Muon", {"ns_coefficients": (3.4445, -4.775, 2.0)}, "coefficients=[3.4445, -4.775, 2.0315] in orthogonalize"),
        ("Muon", {"adjust_lr_fn": "match_rms_adamw"}, "rule='original' in scale_by_matrix_shape"),
    ],
)
def test_a_hyperparameter_of_muon_or_adafactor_that_is_not_the_chains(name, hyperparams, says):
    params = {"params": {"fc": {"kernel": jnp.ones((2, 3))}}}
    tx = from_torch((name, OF_AXES[name]))
    group = {"lr": 1e-3, **OF_AXES[name], "params": [0], "param_names": ["fc.weight"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lr
        import_state(tx, params, {"state": {}, "param_groups": [group]})
        with pytest.raises(ValueError, match="in PyTorch's group 0, but the chain has") as error:
            import_state(tx, params, {"state": {}, "param_groups": [group | hyperparams]})
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("make", "name", "hyperparams", "says"),
    [
        (lambda: optax.adam(1e-3, b2=0.99), "Adam", {"betas": (0.8, 0.99)}, "betas"),
        (lambda: optax.adam(1e-3, b2=0.99), "Adam", {"betas": (0.9, 0.9)}, "betas"),
        (lambda: optax.adam(1e-3, b2=0.99), "Adam", {"eps": 1e-6}, "eps"),
        (lambda: optax.sgd(0.1, momentum=0.9), "SGD", {"momentum": 0.8}, "momentum"),
        (lambda: optax.sgd(0.1, momentum=0.9), "SGD", {"nesterov": True}, "nesterov"),
        (lambda: optax.sgd(0.1, momentum=0.9, nesterov=True), "SGD", {}, "nesterov"),
    ],
)
def test_optaxs_own_optimizers(make, name, hyperparams, says):
    given = {"weight_decay": 0, **({"amsgrad": False} if name == "Adam" else {})}
    import_state(
        make(),
        params(),
        fresh(name, **given, nesterov=True) if says == "nesterov" and not hyperparams else fresh(name, **given),
    )
    with pytest.raises(ValueError, match=f"{says} is .* in PyTorch's group 0, but the chain has"):
        import_state(make(), params(), fresh(name, **given, **hyperparams))


@pytest.mark.parametrize(
    ("tx", "name", "says"),
    [
        (adamw(1e-2, b2=0.99), "AdamW", "lr is 0.001 in PyTorch's group 0, and 0.01 in the chain"),
        (
            optax.adamw(1e-2, b2=0.99, weight_decay=0.01),
            "AdamW",
            "lr is 0.001 in PyTorch's group 0, and 0.01 in the chain",
        ),
        (sgd(0.2, momentum=0.9), "SGD", "lr is 0.1 in PyTorch's group 0, and 0.2 in the chain"),
        (
            adamw(1e-3, b2=0.99, weight_decay=0.1),
            "AdamW",
            r"weight_decay is 0.01 \(decoupled_weight_decay\) in PyTorch's group 0, and decoupled_weight_decay"
            r"\(weight_decay=0.1\) in the chain",
        ),
        (
            adamw(1e-3, b2=0.99, weight_decay=0.0),
            "AdamW",
            r"weight_decay is 0.01 .* in PyTorch's group 0, and 0 in the",
        ),
        (
            sgd(0.1, momentum=0.9, weight_decay=0.1),
            "SGD",
            r"weight_decay is 0 in PyTorch's group 0, and add_l2_to_grad",
        ),
        (
            adam(1e-3, b2=0.99, weight_decay=0.01, amsgrad=True).swap("add_l2_to_grad", decoupled_weight_decay(0.01)),
            "Adam",
            r"weight_decay is 0.01 \(add_l2_to_grad\) in PyTorch's group 0, and decoupled_weight_decay",
        ),
        (
            chain(sgd(0.1, momentum=0.9), decoupled_weight_decay(0.1, multiplied_by="nothing")),
            "SGD",
            "weight_decay is 0 in PyTorch's group 0, and decoupled_weight_decay",
        ),
    ],
)
def test_another_learning_rate_or_decay_may_be_meant_and_is_warned_of(tx, name, says):
    with pytest.warns(UserWarning, match=says) as caught:
        import_state(tx, params(), torch_file(name))
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("tx", "name"),
    [
        (adamw(optax.constant_schedule(1.0), b2=0.99), "AdamW"),
        (adamw(1e-3, b2=0.99, weight_decay=optax.constant_schedule(1.0)), "AdamW"),
        (live(adamw(1.0, b2=0.99)), "AdamW"),
        (live(adamw(1.0, b2=0.99, weight_decay=5.0), "learning_rate", "weight_decay"), "AdamW"),
        (live(adamw(1e-3, b1=0.5, b2=0.5), "b1", "b2"), "AdamW"),
        (live(adamw(1e-3, b2=0.99, eps=1.0), "eps"), "AdamW"),
        (live(adadelta(rho=0.5, maximize=True), "rho"), "Adadelta"),
        (live(rmsprop(0.01, decay=0.5, centered=True, momentum=0.9, weight_decay=0.01), "decay"), "RMSprop"),
        (optax.inject_hyperparams(adamw)(1.0, b1=0.5, b2=0.5, eps=1.0, weight_decay=5.0), "AdamW"),
        (optax.inject_hyperparams(optax.adamw)(1.0, b1=0.5, b2=0.5, eps=1.0, weight_decay=5.0), "AdamW"),
        (adamw(1e-3, b2=optax.constant_schedule(0.5)), "AdamW"),
        (adamw(1e-3, b2=0.99, weight_decay_mask=matrices_only), "AdamW"),
        (adamw(jnp.float32(1e-3), b1=jnp.float32(0.9), b2=jnp.float32(0.99)), "AdamW"),  # rounded
        (chain(optax.clip_by_global_norm(1.0), adamw(1e-3, b2=0.99)), "AdamW"),
        (adagrad(0.1, lr_decay=0.05, weight_decay=0.01, initial_accumulator_value=0.5), "Adagrad"),
        (adamw(1e-3, b2=0.99).drop("first.bias_correction"), "AdamW"),
    ],
)
def test_schedules_live_values_and_what_is_no_hyperparameter_of_pytorchs_are_not_compared(tx, name):
    import_state(tx, params(), torch_file(name))


def test_only_what_the_group_has_is_compared():
    file = torch_file("AdamW")
    group = file["param_groups"][0]
    for key in ("lr", "eps", "weight_decay", "maximize"):
        del group[key]
    import_state(adamw(1.0, b2=0.99, eps=1.0, weight_decay=5.0, maximize=True), params(), file)
    with pytest.raises(ValueError, match="betas is"):
        import_state(adamw(b1=0.5, b2=0.99), params(), file)
    file["param_groups"] = [{"params": group["params"], "param_names": group["param_names"]}]
    import_state(adamw(1.0, b1=0.5, b2=0.5, eps=1.0), params(), file)


def test_old_versions_do_not_tell_adam_from_adamw():
    file = torch_file("AdamW")
    del file["param_groups"][0]["decoupled_weight_decay"]
    import_state(adamw(1e-3, b2=0.99), params(), file)
    import_state(adam(1e-3, b2=0.99, weight_decay=0.01), params(), file)
    with pytest.warns(UserWarning, match="weight_decay is 0.01"):
        import_state(adamw(1e-3, b2=0.99, weight_decay=0.5), params(), file)


def test_what_schedulers_and_libraries_leave_in_a_group_is_no_contradiction():
    file = torch_file("AdamW")
    file["param_groups"][0] |= {"initial_lr": 0.1, "max_lr": 0.1, "base_momentum": 0.8, "lr_scale": 0.5, "fused": True}
    import_state(adamw(1e-3, b2=0.99), params(), file)
    file["param_groups"][0]["betas"] = (0.5, 0.99)
    with pytest.raises(ValueError, match="betas is"):
        import_state(adamw(1e-3, b2=0.99), params(), file)


def test_tensors_as_hyperparameters():
    file = torch_file("AdamW", lr=np.array(1e-3), betas=(np.array(0.9), np.array(0.99)))
    import_state(adamw(1e-3, b2=0.99), params(), file)


def test_another_optimizers_hyperparameters_are_not_taken_for_one_of_ours():
    """Sophia's `rho` is not Adadelta's; its state is read by its names."""
    file = torch_file("AdamW")
    file["param_groups"][0] = {
        **{key: file["param_groups"][0][key] for key in ("params", "param_names", "lr", "betas")},
        "rho": 0.04,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_state(adamw(1e-3, b2=0.99), params(), file)


def test_betas_alone_are_nobodys():
    """Other libraries' Adams have the hyperparameters of PyTorch's Adamax, but not its switches."""
    file = torch_file("AdamW")
    kept = ("params", "param_names", "lr", "betas", "eps", "weight_decay")
    file["param_groups"][0] = {key: file["param_groups"][0][key] for key in kept}
    import_state(adamw(1e-3, b2=0.99), params(), file)


def test_nadam_with_constant_momentum_is_optaxs_and_not_pytorchs():
    with pytest.raises(
        ValueError, match="momentum_decay is 0.004 in PyTorch's group 0, but the chain has momentum_decay=None"
    ):
        import_state(nadam(b2=0.99, momentum_decay=None), params(), torch_file("NAdam"))


def test_a_dampened_buffer_goes_on_where_only_the_momentum_is_a_schedule():
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "nesterov": False, "weight_decay": 0, "maximize": False}
    group |= {"params": [0], "param_names": ["w"]}
    buffer = np.arange(3.0, dtype=np.float32)
    tx = sgd(0.1, momentum=lambda count: 0.9 - 0.01 * count, dampening=0.5)
    params = {"w": jnp.ones(3)}
    state = import_state(tx, params, {"state": {0: {"momentum_buffer": buffer}}, "param_groups": [group]}, steps=7)
    np.testing.assert_array_equal(optax.tree.get(state, "mu")["w"], buffer)
