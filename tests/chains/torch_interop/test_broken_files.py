"""Files that are broken, or written by somebody who means no good: one error that lists everything, and no state."""

import copy
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from linkax.chains import adagrad, adam, adamw, nadam, param_groups, rmsprop
from linkax.chains.torch_interop import export_state, from_torch, import_state, torch_labels

from .files import HYPERPARAMS, STEPS, params, torch_file

TX = adamw(1e-3, b2=0.99)


def broken(change, name="AdamW"):
    """A file with a change made to it."""
    file = torch_file(name)
    change(file)
    return file


def problems_of(file, tx=TX, **options):
    """What an import lists."""
    with pytest.raises(ValueError, match="^import_state: ") as error:
        import_state(tx, params(), file, **options)
    return str(error.value)


# The dictionary.


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (None, "got a NoneType"),
        ([], "got a list"),
        ("checkpoint.pt", "got a str"),
        ({}, "'state' must be a dictionary of the parameters' states, got none"),
        ({"state": None, "param_groups": []}, "'state' must be a dictionary of the parameters' states, got None"),
        ({"state": [], "param_groups": []}, "'state' must be a dictionary of the parameters' states, got a list"),
        ({"state": {}}, "'param_groups' must be a list of groups, got none"),
        ({"state": {}, "param_groups": None}, "'param_groups' must be a list of groups, got None"),
        ({"state": {}, "param_groups": {"lr": 1}}, "'param_groups' must be a list of groups, got a dictionary of 'lr'"),
        ({"state": {}, "param_groups": [1]}, "'param_groups' must hold dictionaries, got 1 for group 0"),
        ({"state": {}, "param_groups": [{"lr": 1}]}, "group 0 must have a list of the parameters' indices"),
        ({"state": {}, "param_groups": [{"params": 3}]}, "group 0 must have a list of the parameters' indices"),
        ({"state": {}, "param_groups": [{"params": [[0]]}]}, "group 0 must have a list of the parameters' indices"),
        (
            {"state": {}, "param_groups": [{"params": [0]}, {"params": [1, 0]}]},
            "groups 0 and 1 both have the parameter 0",
        ),
        ({"state": {0: None}, "param_groups": []}, "must have a dictionary of names and tensors for 0, got None"),
        ({"state": {0: [1]}, "param_groups": []}, r"must have a dictionary of names and tensors for 0, got \[1\]"),
        ({"state": {0: {1: 2.0}}, "param_groups": []}, "must have a dictionary of names and tensors for 0"),
    ],
)
def test_what_is_no_state_dict(file, says):
    with pytest.raises(ValueError, match=f"^import_state: state_dict must be an optimizer's state_dict(?s:.*){says}"):
        import_state(TX, params(), file)
    with pytest.raises(ValueError, match=f"^export_state: template must be an optimizer's state_dict(?s:.*){says}"):
        export_state(TX, params(), TX.init(params()), file)


def test_everything_that_is_wrong_with_the_dictionary_is_listed_with_its_values():
    file = torch_file("AdamW")
    file["state"][0]["step"] = -1
    file["state"][1] = None
    file["param_groups"].append({"lr": 1.0})
    text = problems_of(file)
    assert "must have a dictionary of names and tensors for 1" in text
    assert "group 1 must have a list" in text
    assert "step of the state's entry 0 must be an integer number of steps" in text


# Names.


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["fc.weight", "fc.weight", "norm.weight"], "param_names must name each of the 3 parameters of its group"),
        (["fc.weight", "fc.bias"], "param_names must name each of the 3 parameters of its group"),
        (None, "param_names must name each of the 3 parameters of its group, got None"),
        ([1, 2, 3], "param_names must name each of the 3 parameters of its group"),
    ],
)
def test_wrong_parameter_names(names, says):
    file = torch_file("AdamW")
    file["param_groups"][0]["param_names"] = names
    assert says in problems_of(file)


def test_a_name_in_two_groups():
    file = torch_file("AdamW", ["fc.weight", "fc.bias"], ["norm.weight"])
    file["param_groups"][1]["param_names"] = ["fc.bias"]
    assert "groups 0 and 1 both have a parameter fc.bias" in problems_of(file)
    with pytest.raises(ValueError, match="torch_labels: groups 0 and 1 both have a parameter fc.bias"):
        torch_labels(file["param_groups"])


def test_without_names_the_error_says_how_to_list_them():
    file = torch_file("AdamW", ["fc.weight", "norm.weight"], ["fc.bias"])  # matrices decay, vectors do not, say
    for group in file["param_groups"]:
        del group["param_names"]
    file["state"][2]["exp_avg"] = np.full(3, np.nan)
    text = problems_of(file)
    assert text.startswith("import_state: order must list the parameters' names in the optimizer's order")
    assert "[name for group in groups for name, _ in group]" in text
    assert "torch.optim.AdamW(model.named_parameters())" in text
    assert "exp_avg of the state's entry 2 must be finite" in text  # what else is wrong
    with pytest.raises(ValueError, match="torch_labels: order must list the parameters' names"):
        torch_labels(file["param_groups"])


@pytest.mark.parametrize("order", [["fc.weight"], ["a", "a", "b"], "abc", 3, [1, 2, 3], ["fc.weight", None, "fc.bias"]])
def test_an_order_that_is_none(order):
    file = torch_file("AdamW")
    del file["param_groups"][0]["param_names"]
    assert "order must have 3 different names" in problems_of(file, order=order)


def test_an_order_that_is_not_the_files():
    file = torch_file("AdamW")
    names = file["param_groups"][0]["param_names"]
    import_state(TX, params(), file, order=tuple(names))
    assert "order must be that of the names that the optimizer stores" in problems_of(file, order=names[::-1])


# Steps.


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (-1, "must be an integer number of steps from 0 to 2147483647, got -1"),
        (2.5, "must be an integer number of steps from 0 to 2147483647, got 2.5"),
        (np.nan, "must be a finite number, got nan"),
        (np.inf, "must be a finite number, got inf"),
        (np.float32(-np.inf), "must be a finite number, got -inf"),
        (2**31, "must be an integer number of steps from 0 to 2147483647, got 2147483648"),
        (10**40, "step of fc.weight must be"),
        ("seven", "must be a number, got 'seven'"),
        ("7", "must be a number, got '7'"),
        (b"7", "must be a number, got b'7'"),
        (np.array("7"), "must be an array of numbers"),
        (True, "must be a number, got True"),
        (1j, "must be a number, got 1j"),
        (np.array([7.0, 7.0, 9.0]), "must be one number, got an array of 2 different ones (7, 9, …)"),
        (np.zeros(0), "must be a number, got"),
        ([1, [2]], "must be an array of numbers"),
        ({"a": 1}, "must be an array of numbers"),
        (object(), "must be an array of numbers"),
    ],
)
def test_steps_that_are_none(step, says):
    text = problems_of(broken(lambda file: file["state"][0].update(step=step)))
    assert "step of fc.weight" in text
    assert says in text


@pytest.mark.parametrize("step", [7, 7.0, np.int64(7), np.array([7.0]), np.array([[7, 7]]), jnp.float32(7)])
def test_steps_in_any_form_that_is_clear(step):
    state = import_state(TX, params(), broken(lambda file: file["state"][0].update(step=step)))
    assert int(state[0].first[0].count) == 7


@pytest.mark.parametrize("steps", [-1, 2.0, 2**31, "7", True, np.nan, [7]])
def test_the_argument_steps_is_checked_with_everything_else(steps):
    text = problems_of(broken(lambda file: file["state"][0].pop("exp_avg")), steps=steps)
    assert "steps must be an integer" in text
    assert "the state of fc.weight has no exp_avg" in text
    with pytest.raises(ValueError, match="steps must be an integer"):
        export_state(TX, params(), TX.init(params()), torch_file("AdamW"), steps=steps)


def test_the_argument_steps_must_not_contradict_the_file():
    assert "steps is 3, but PyTorch has taken 7" in problems_of(torch_file("AdamW"), steps=3)
    fresh = {**torch_file("AdamW"), "state": {}}
    assert "steps is 3, but PyTorch has taken 0" in problems_of(fresh, steps=3)
    import_state(TX, params(), torch_file("AdamW"), steps=np.int32(STEPS))


def test_a_state_without_steps_can_be_told_them():
    file = torch_file("AdamW")
    for entry in file["state"].values():
        del entry["step"]
    text = problems_of(file)
    assert "the state of fc.weight has no step" in text
    assert int(import_state(TX, params(), file, steps=5)[0].first[0].count) == 5


def test_a_product_of_momenta_that_is_none():
    for product in (np.nan, "x", np.array([0.1, 0.2])):
        text = problems_of(
            broken(lambda f, value=product: f["state"][0].update(mu_product=value), "NAdam"), nadam(b2=0.99)
        )
        assert "mu_product of fc.weight must be" in text


# Moments.


@pytest.mark.parametrize(
    ("moment", "says"),
    [
        (np.ones((3, 2), bool), "must be of floating-point numbers, got bool"),
        (np.ones((3, 2), np.int32), "must be of floating-point numbers, got int32"),
        (np.ones((3, 2), np.uint8), "must be of floating-point numbers, got uint8"),
        (np.ones((3, 2), object), "must be an array of numbers"),
        (np.full((3, 2), "1"), "must be an array of numbers"),
        (np.ones((3, 2), "M8[s]"), "must be an array of numbers"),
        (np.ones((3, 2), ml_dtypes.int4), "must be an array of numbers"),
        ([[1.0, 2.0], [3.0], [4.0, 5.0]], "must be an array of numbers, got one that cannot be read"),
        ({}, "must be an array of numbers"),
        ("moment", "must be a number, got 'moment'"),
        (np.array([[1, 2], [3, np.nan], [5, np.inf]]), "must be finite, got 2 of 6 that are infinite or NaN"),
        (np.ones((3, 2), complex), "is complex, but its parameter is real"),
        (np.ones((2, 3)), "has the shape (2, 3)"),
        (np.ones(()), "has the shape ()"),
        (np.full((3, 2), 1e300), "has numbers that do not fit into float32"),
        (-np.ones((3, 2)), "must not be negative, because it is the mean square of gradient"),
    ],
)
def test_moments_that_are_none(moment, says):
    text = problems_of(broken(lambda file: file["state"][0].update(exp_avg_sq=moment)))
    assert f"exp_avg_sq of fc.weight {says}" in text


@pytest.mark.parametrize(
    ("name", "key", "tx"),
    [
        ("Adagrad", "sum", adagrad(0.1, lr_decay=0.05, weight_decay=0.01)),
        ("RMSprop", "square_avg", rmsprop(0.01, decay=0.95, centered=True, momentum=0.9, weight_decay=0.01)),
        ("Adam", "max_exp_avg_sq", adam(b2=0.99, weight_decay=0.01, amsgrad=True)),
    ],
)
def test_negative_squares(name, key, tx):
    import_state(tx, params(), torch_file(name))
    file = broken(lambda one: one["state"][1][key].__setitem__(0, -1e-30), name)
    assert f"{key} of fc.bias must not be negative" in problems_of(file, tx)
    first = "momentum_buffer" if name == "RMSprop" else "exp_avg"
    if first in file["state"][1]:  # which may be negative
        import_state(tx, params(), broken(lambda one: one["state"][1][first].__setitem__(0, -1.0), name))


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
def test_moments_of_other_precisions_are_read(dtype):
    values = np.array([0.5, -2.0, 0.25])
    state = import_state(TX, params(), broken(lambda file: file["state"][1].update(exp_avg=values.astype(dtype))))
    mu = state[0].first[0].mu["params"]["fc"]["bias"]
    assert mu.dtype == jnp.float32
    np.testing.assert_array_equal(mu, values)


def test_tensors_of_kinds_that_hold_no_numbers():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are going to disappear
        quantised = torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8)
    for tensor, says in (
        (torch.ones(3, 2).to_sparse(), "got one with the layout torch.sparse_coo"),
        (torch.ones(3, 2, device="meta"), "got one on the device meta, which has no values"),
        (quantised, "got a quantised one of torch.qint8"),
        (torch.ones(3, 2, dtype=torch.bool), "got bool"),
        (torch.ones(3, 2, dtype=torch.int64), "got int64"),
    ):
        text = problems_of(broken(lambda file, value=tensor: file["state"][0].update(exp_avg=value)))
        assert "exp_avg of fc.weight must be" in text
        assert says in text


def test_tensors_of_other_precisions_are_read():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64):
        tensor = torch.tensor([0.5, -2.0, 0.25]).to(dtype)
        state = import_state(TX, params(), broken(lambda file, value=tensor: file["state"][1].update(exp_avg=value)))
        np.testing.assert_array_equal(state[0].first[0].mu["params"]["fc"]["bias"], [0.5, -2.0, 0.25])


def test_a_list_of_numbers_is_an_array():
    file = broken(lambda one: one["state"][1].update(exp_avg=[0.5, 1.0, 2.0]))
    np.testing.assert_array_equal(import_state(TX, params(), file)[0].first[0].mu["params"]["fc"]["bias"], [0.5, 1, 2])


# Hyperparameters that are none.


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": np.nan},
        {"lr": "fast"},
        {"betas": 0.9},
        {"betas": (0.9, 1.5)},
        {"eps": -1.0},
        {"amsgrad": "yes"},
        {"lr": np.ones(2)},
    ],
)
def test_hyperparameters_that_are_none(wrong):
    text = problems_of(broken(lambda file: file["param_groups"][0].update(wrong)))
    assert "PyTorch's group 0 must have hyperparameters of AdamW: " in text


# All together.


def test_every_problem_is_in_one_error_and_nothing_is_half_loaded():
    file = torch_file("AdamW")
    file["state"][0] |= {"step": 2.5, "exp_avg": np.full((3, 2), np.nan)}
    file["state"][1] |= {"exp_avg_sq": -np.ones(3), "extra": np.ones(3)}
    file["state"][2] = {"step": 7, "exp_avg": np.ones(4)}
    file["state"][9] = {"step": 7}
    file["param_groups"][0] |= {"betas": (0.5, 0.99), "amsgrad": True}
    before = copy.deepcopy(file)
    text = problems_of(file, steps="many", layouts={"params/nowhere": 1})
    for problem in (
        "steps must be an integer, got 'many'",
        "step of fc.weight must be an integer number of steps",
        "exp_avg of fc.weight must be finite, got 6 of 6",
        "exp_avg_sq of fc.bias must not be negative",
        "the state of fc.bias has extra, for which the chain has no place",
        "the state of norm.weight has no exp_avg_sq",
        "exp_avg of norm.weight has the shape (4,)",
        "the state has an entry 9 that belongs to no group",
        "betas is (0.5, 0.99) in PyTorch's group 0, but the chain has decay=0.9 in first",
        "amsgrad is True in PyTorch's group 0, but the chain has no second.running_max",
        "layouts must have a Layout or a rule for 'params/nowhere', got 1",
    ):
        assert problem in text
    assert text.count("\n") == int(text.split("got ")[1].split()[0])  # one line each
    jax.tree.map(np.testing.assert_array_equal, file["state"], before["state"])


def test_an_import_changes_nothing_in_the_file_and_shares_no_memory():
    file = torch_file("AdamW")
    before = copy.deepcopy(file)
    state = import_state(TX, params(), file)
    kept = jax.tree.map(np.array, state)
    for entry in file["state"].values():
        entry["exp_avg"] *= 2
        entry["exp_avg_sq"] *= 2
    jax.tree.map(np.testing.assert_array_equal, state, kept)
    np.testing.assert_array_equal(
        kept[0].first[0].mu["params"]["fc"]["bias"], before["state"][1]["exp_avg"].astype("f4")
    )


def test_several_groups_are_named_in_their_problems():
    file = torch_file("AdamW", ["fc.weight", "fc.bias"], ["norm.weight"])
    file["param_groups"][1]["betas"] = (0.5, 0.99)
    groups = {"a": TX, "b": TX}
    tx = param_groups(groups, lambda path, leaf: "b" if "norm" in path else "a")
    text = problems_of(file, tx)
    assert "betas is (0.5, 0.99) in PyTorch's group 1" in text
    assert "group 0" not in text


@pytest.mark.parametrize("name", HYPERPARAMS)
def test_what_is_in_order_warns_of_nothing(name):
    file = torch_file(name)
    import_state(from_torch((name, file["param_groups"])), params(), file)
