"""Files of averaged weights that are broken, or of something else, are refused with all of their problems."""

import jax.numpy as jnp
import numpy as np
import pytest

from linkax.chains import adam, asgd, averaged_weights, chain, param_groups, precise_weights
from linkax.chains.torch_interop import export_averages, from_torch, import_state, inspect_checkpoint
from linkax.transforms import average_weights

PARAMS = {"params": {"fc": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}}
MOMENT = np.ones((3, 2), np.float32), np.ones(3, np.float32)
FILE = {
    "state": {i: {"step": 7.0, "exp_avg": m, "exp_avg_sq": m} for i, m in enumerate(MOMENT)},
    "param_groups": [{"params": [0, 1], "param_names": ["fc.weight", "fc.bias"]}],
}
TX = chain(adam(), average_weights(0.9))
GOOD = {"n_averaged": np.asarray(5), "module.fc.weight": np.arange(6.0).reshape(3, 2), "module.fc.bias": np.zeros(3)}


def without(*keys, **changes):
    return {key: value for key, value in {**GOOD, **changes}.items() if key not in keys}


# What is in place of the file, and what is said about it.
BROKEN = {
    "a tensor": (np.ones(3), ["averages must be the state_dict() of PyTorch's AveragedModel, got a ndarray"]),
    "nothing": ({}, ["must have n_averaged", "PyTorch has nothing for params/fc/kernel"]),
    "the model's": (
        {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)},
        ["give that of the AveragedModel itself", "'fc.weight', which does not start with 'module.'"],
    ),
    "a weight less": (without("module.fc.bias"), ["PyTorch has nothing for params/fc/bias"]),
    "a weight more": (without(**{"module.up.weight": np.ones(2)}), ["PyTorch has up.weight, but no parameter"]),
    "a shape": (without(**{"module.fc.bias": np.zeros(4)}), ["fc.bias has the shape (4,)"]),
    "a NaN": (
        without(**{"module.fc.bias": np.full(3, np.nan)}),
        ["finite, got infinity or NaN in that of params/fc/bias"],
    ),
    "text": (without(**{"module.fc.bias": "zeros"}), ["fc.bias must be an array of numbers, got 'zeros'"]),
    "a negative count": (without(n_averaged=-1), ["n_averaged in averages must be an integer number of steps from 0"]),
    "half a count": (without(n_averaged=0.5), ["n_averaged in averages must be an integer number of steps from 0"]),
    "several at once": (
        without("n_averaged", **{"module.fc.bias": np.zeros(4)}),
        ["averages must have n_averaged", "fc.bias has the shape (4,)"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_averages_are_refused(name):
    given, said = BROKEN[name]
    with pytest.raises(ValueError, match="^import_state: the state must fit") as caught:
        import_state(TX, PARAMS, FILE, averages=given)
    for one in said:
        assert one in str(caught.value)


def test_averages_are_imported_and_exported():
    state = import_state(TX, PARAMS, FILE, averages=GOOD)
    assert (int(state[-1].n_averaged), int(state[-1].count)) == (5, 7)
    np.testing.assert_array_equal(
        averaged_weights(TX, state, PARAMS)["params"]["fc"]["kernel"], GOOD["module.fc.weight"].T
    )
    back = export_averages(TX, PARAMS, state)
    assert back.keys() == GOOD.keys()
    for key, value in GOOD.items():
        np.testing.assert_array_equal(back[key], value)


def test_bfloat16_parameters_have_float32_averages():
    low = {"params": {"fc": {"kernel": jnp.ones((2, 3), jnp.bfloat16), "bias": jnp.ones(3, jnp.bfloat16)}}}
    averages = without(**{"module.fc.bias": np.full(3, 1 / 3, np.float32)})
    for tx in (TX, precise_weights(TX)):
        state = import_state(tx, low, FILE, averages=averages)
        np.testing.assert_array_equal(export_averages(tx, low, state)["module.fc.bias"], np.float32(1 / 3))


def test_asgds_average_is_in_its_own_file():
    ax = {"step": 7.0, "eta": 0.01, "mu": 0.2}
    file = {**FILE, "state": {i: {**ax, "ax": 2 * m} for i, m in enumerate(MOMENT)}}
    hyper = {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 2, "weight_decay": 0, "maximize": False}
    file["param_groups"] = [{**FILE["param_groups"][0], **hyper}]
    tx = asgd(start=3)
    state = import_state(tx, PARAMS, file)
    assert int(state[-1].n_averaged) == 4  # after steps 4 to 7
    np.testing.assert_array_equal(averaged_weights(tx, state, PARAMS)["params"]["fc"]["bias"], 2)
    with pytest.raises(ValueError, match="averages are given, but the chain keeps none of its own"):
        import_state(tx, PARAMS, file, averages=GOOD)


def test_asgds_start_is_a_whole_number_of_steps():
    with pytest.raises(ValueError, match="^from_torch: t0 must be a whole number of steps, got 2.5"):
        from_torch(("ASGD", {"t0": 2.5}))


def test_groups_that_averaged_different_numbers_of_weights_are_not_exported():
    groups = param_groups(
        {"a": TX, "b": chain(adam(), average_weights(0.9, start=3))}, lambda path, w: "a" if "bias" in path else "b"
    )
    state = groups.init(PARAMS)
    _, state = groups.update(PARAMS, state, PARAMS)
    with pytest.raises(ValueError, match="^export_averages: state must have averaged the same number .* got "):
        export_averages(groups, PARAMS, state)


def test_a_rate_that_was_changed_by_hand_is_said():
    ax = {"step": 7.0, "eta": 0.1, "mu": 1.0}  # the rate of the next step, from before the change
    file = {**FILE, "state": {i: {**ax, "ax": m} for i, m in enumerate(MOMENT)}}
    hyper = {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0, "maximize": False}
    file["param_groups"] = [{**FILE["param_groups"][0], **hyper}]
    with pytest.warns(UserWarning, match="eta is 0.1 in the file, but 0.00999995 after 7 steps"):
        import_state(asgd(), PARAMS, file)


def test_wrappers_names_are_removed_from_averages_as_from_weights():
    wrapped = {key if key == "n_averaged" else f"module.{key}": value for key, value in GOOD.items()}  # DDP's
    run = inspect_checkpoint({"model": {"module.fc.weight": np.ones(1)}, "ema": wrapped})
    assert run.averages is not None
    assert run.averages.keys() == GOOD.keys()
