"""The named optimizers against the installed PyTorch, for hyperparameters that hypothesis makes up."""

from functools import partial

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from .cases import chain_like
from .stream import assert_same_path, gradients, gradients_for, parameters, walk

pytest.importorskip("torch", reason="compares with the installed PyTorch; test_recorded.py does without")


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers between two powers of ten, all magnitudes alike."""
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


maybe_decay = st.one_of(st.just(0.0), log_uniform(-4, -0.5))
eps = log_uniform(-12, 0)
# Below β2 = 1/2 the second moment forgets within a step: a small g + λ w after a large one is then divided by its own
# size, and whatever the cancellation in that sum has left of its digits is all there is.
betas = st.tuples(st.floats(0, 0.9999), st.floats(0.5, 0.9999))
common = {"weight_decay": maybe_decay, "maximize": st.booleans()}
# lr · weight_decay stays below 1, or the decay itself would make the parameters explode, and their errors with them.
learning_rate = log_uniform(-5, 0)

ARGUMENTS = {
    "SGD": st.fixed_dictionaries(
        {"lr": learning_rate, "momentum": st.one_of(st.just(0.0), st.floats(0, 1)), "dampening": st.floats(0, 1)}
        | common
    ),
    "SGD-nesterov": st.fixed_dictionaries(
        {"lr": learning_rate, "momentum": st.floats(0.01, 1), "nesterov": st.just(True)} | common
    ),
    "Adagrad": st.fixed_dictionaries(
        {
            "lr": learning_rate,
            "lr_decay": st.one_of(st.just(0.0), log_uniform(-4, 1)),
            "initial_accumulator_value": st.one_of(st.just(0.0), log_uniform(-6, 2)),
            "eps": eps,
        }
        | common
    ),
    "RMSprop": st.fixed_dictionaries(
        {"lr": learning_rate, "alpha": st.floats(0, 1), "eps": eps, "momentum": st.floats(0, 1)} | common
    ),
    # Below alpha = 0.1 the variance is a difference of almost equal numbers (at 0, of equal ones), and what is left of
    # it after rounding differs between any two implementations.
    "RMSprop-centered": st.fixed_dictionaries(
        {
            "lr": learning_rate,
            "alpha": st.floats(0.1, 0.9999),
            "eps": eps,
            "momentum": st.floats(0, 1),
            "centered": st.just(True),
        }
        | common
    ),
    "Adadelta": st.fixed_dictionaries({"lr": learning_rate, "rho": st.floats(0, 1), "eps": eps} | common),
    "Adam": st.fixed_dictionaries({"lr": learning_rate, "betas": betas, "eps": eps, "amsgrad": st.booleans()} | common),
    "AdamW": st.fixed_dictionaries(
        {"lr": learning_rate, "betas": betas, "eps": eps, "amsgrad": st.booleans()} | common
    ),
    "NAdam": st.fixed_dictionaries(
        {
            "lr": learning_rate,
            "betas": betas,
            "eps": eps,
            "momentum_decay": st.one_of(st.just(0.0), log_uniform(-4, 1)),
            "decoupled_weight_decay": st.booleans(),
        }
        | common
    ),
    # PyTorch computes ρ_t as a difference of numbers of about 1 / (1 − β2).
    "RAdam": st.fixed_dictionaries(
        {
            "lr": log_uniform(-5, -1),
            "betas": st.tuples(st.floats(0, 0.9999), st.floats(0.5, 0.999)),
            "eps": eps,
            "decoupled_weight_decay": st.booleans(),
        }
        | common
    ),
    "ASGD": st.fixed_dictionaries(
        {
            "lr": learning_rate,
            "lambd": st.one_of(st.just(0.0), log_uniform(-6, -1)),
            "alpha": st.floats(0, 2),
            "t0": st.sampled_from([0, 20, 1e6]),
        }
        | common
    ),
    "Rprop": st.fixed_dictionaries(
        {
            "lr": learning_rate,
            "etas": st.tuples(st.floats(0.01, 0.99), st.floats(1.01, 3)),
            "step_sizes": st.tuples(log_uniform(-8, -3), log_uniform(-3, 1)),
            "maximize": st.booleans(),
        }
    ),
    "Adamax": st.fixed_dictionaries({"lr": learning_rate, "betas": betas, "eps": eps} | common),
}


@pytest.mark.parametrize("case", ARGUMENTS)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_path_is_pytorchs(x64, case, data):
    from .torch_reference import torch_walk

    name, arguments = case.partition("-")[0], data.draw(ARGUMENTS[case])
    # With alpha = 1 no gradient ever enters the mean, and ε alone divides: the decay then multiplies the parameters by
    # 1 − lr · weight_decay / ε in every step, and both explode to infinity, if not to NaN.
    shrinks = arguments["lr"] * arguments.get("weight_decay", 0) < arguments.get("eps", 1.0)
    hypothesis.assume(arguments.get("alpha") != 1 or shrinks)
    grads = gradients_for(arguments)

    theirs = torch_walk(name, arguments, parameters(), grads)
    assert_same_path(
        walk(chain_like(name, arguments), parameters(), grads),
        theirs,
        nudged=partial(torch_walk, name, arguments, parameters(), grads),
    )


COMPLEX = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.5}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("Adadelta", {"weight_decay": 0.1}),
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "maximize": True}),
    ("AdamW", {"amsgrad": True}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adamax", {"weight_decay": 0.1}),
    ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Rprop", {}),
    ("ASGD", {"lr": 0.1, "t0": 5}),
]


@pytest.mark.parametrize(("name", "arguments"), COMPLEX)
def test_complex_path_is_pytorchs(x64, name, arguments):
    """Both take the same numbers for the gradient; that JAX's own are the conjugates of PyTorch's is another matter."""
    from .torch_reference import torch_walk

    tame, wild = gradients()["tame"], gradients()["wild"]
    params, grads = {"tame": np.array([1.0 - 2.0j, 0.5j, -1.0])}, {"tame": tame + 1j * wild[:, 1, :]}
    ours, theirs = walk(chain_like(name, arguments), params, grads), torch_walk(name, arguments, params, grads)
    for part in (np.real, np.imag):
        assert_same_path({"tame": part(ours["tame"])}, {"tame": part(theirs["tame"])})


REFUSED = [
    ("SGD", {"lr": -1.0}),
    ("SGD", {"momentum": -0.1}),
    ("SGD", {"weight_decay": -0.1}),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    ("Adagrad", {"lr": -1.0}),
    ("Adagrad", {"lr_decay": -0.1}),
    ("Adagrad", {"initial_accumulator_value": -0.1}),
    ("Adagrad", {"eps": -1e-8}),
    ("Adagrad", {"weight_decay": -0.1}),
    ("RMSprop", {"alpha": -0.1}),
    ("RMSprop", {"momentum": -0.1}),
    ("RMSprop", {"eps": -1e-8}),
    ("Adadelta", {"rho": 1.5}),
    ("Adadelta", {"rho": -0.1}),
    ("Adadelta", {"eps": -1e-8}),
    ("Adam", {"betas": (1.0, 0.9)}),
    ("Adam", {"betas": (0.9, -0.1)}),
    ("Adam", {"eps": -1e-8}),
    ("Adam", {"lr": float("nan")}),
    ("AdamW", {"betas": (0.9, 1.0)}),
    ("AdamW", {"weight_decay": -0.1}),
    ("NAdam", {"momentum_decay": -0.1}),
    ("NAdam", {"betas": (1.5, 0.9)}),
    ("Adamax", {"eps": -1e-8}),
    ("Adamax", {"betas": (0.9, 1.0)}),
    ("RAdam", {"eps": -1e-8}),
    ("ASGD", {"lr": -1.0}),
    ("ASGD", {"weight_decay": -0.1}),
    ("Rprop", {"etas": (0.5, 0.9)}),
    ("Rprop", {"etas": (1.0, 1.2)}),
    ("Rprop", {"lr": -1.0}),
    ("RAdam", {"betas": (0.9, 1.0)}),
]


@pytest.mark.parametrize(("name", "arguments"), REFUSED)
def test_what_pytorch_refuses_is_refused(name, arguments):
    import torch

    with pytest.raises(ValueError, match="Invalid|requires"):
        getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(()))], **arguments)
    with pytest.raises(ValueError, match=" must "):
        chain_like(name, arguments)
