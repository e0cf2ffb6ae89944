"""The named optimizers against the installed PyTorch, for hyperparameters that hypothesis makes up."""

import hypothesis
import pytest
from hypothesis import strategies as st

from .cases import chain_like
from .stream import assert_same_path, gradients_for, parameters, walk

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
}


@pytest.mark.parametrize("case", ARGUMENTS)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_path_is_pytorchs(x64, case, data):
    from .torch_reference import torch_walk

    name, arguments = case.partition("-")[0], data.draw(ARGUMENTS[case])
    grads = gradients_for(arguments)
    theirs = torch_walk(name, arguments, parameters(), grads)
    assert_same_path(walk(chain_like(name, arguments), parameters(), grads), theirs)
