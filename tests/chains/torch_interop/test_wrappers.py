"""What a chain is wrapped in makes no difference to what goes in and out of it."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adam, adamw, chain, live, nadam, param_groups, rmsprop, sgd, sparse_adam
from linkax.chains.torch_interop import export_state, from_torch, import_state
from linkax.transforms import (
    Count,
    Moment,
    add_l2_to_grad,
    link,
    negate_grad,
    scale_by_learning_rate,
    scale_by_momentum,
)

from .files import HYPERPARAMS, STEPS, gradients, params, torch_file

# Both ways do the same arithmetic in float64; a compiler may order it otherwise, over a dozen steps.
TOLERANCE = 1e-12


@pytest.fixture(autouse=True)
def float64(x64):
    return x64


def walk(tx, state, weights, steps=6, times=1):
    update = jax.jit(tx.update)
    for step in range(steps):
        for _ in range(times):
            updates, state = update(gradients(step), state, weights)
            weights = optax.apply_updates(weights, updates)
    return weights, state


@functools.cache
def unwrapped(name):
    """Where PyTorch's optimizer goes on to, as a chain without anything around it."""
    file, weights = torch_file(name), params()
    tx = from_torch((name, file["param_groups"]))
    return walk(tx, import_state(tx, weights, file), weights)


def assert_same(ours, theirs):
    chex.assert_trees_all_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def split(path: str, leaf: Any) -> str:
    del leaf
    return "fc" if "/fc/" in path else "norm"


AROUND = {
    "optax.chain": lambda tx: optax.chain(optax.clip(1e9), tx),
    "chain": lambda tx: chain(optax.clip_by_global_norm(1e9), tx),
    "optax.chain in optax.chain": lambda tx: optax.chain(optax.chain(tx), optax.identity()),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(1e9)), ("optimizer", tx)),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "MultiSteps as a transformation": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: step >= 0),
    "masked": lambda tx: optax.masked(tx, True),
    "flatten": optax.flatten,
    "param_groups": lambda tx: param_groups({"all": tx}, lambda path, leaf: "all"),
    "partition": lambda tx: optax.partition({"all": tx}, "all"),
    "live": live,
    "live in MultiSteps in optax.chain": lambda tx: optax.chain(optax.clip(1e9), optax.MultiSteps(live(tx), 1)),
    "groups in live in apply_if_finite": lambda tx: optax.apply_if_finite(
        live(param_groups({"all": chain(tx)}, lambda path, leaf: "all")), 2
    ),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", HYPERPARAMS)
def test_state_goes_in_and_out_through_wrappers(name, around):
    file, weights = torch_file(name), params()
    plain = from_torch((name, file["param_groups"]))
    wrapped = AROUND[around](plain)
    steps = STEPS if name == "SGD" else None  # which counts none, and conditionally_transform does
    expected, plain_state = unwrapped(name)
    actual, state = walk(wrapped, import_state(wrapped, weights, file, steps=steps), weights)
    assert_same(actual, expected)
    # Of Adadelta's links none counts; the wrappers may.
    theirs = export_state(plain, expected, plain_state, file, steps=STEPS + 6)
    ours = export_state(wrapped, actual, state, file, steps=STEPS + 6)
    assert ours["param_groups"] == file["param_groups"]
    assert ours["state"].keys() == file["state"].keys()
    assert all(ours["state"][key].keys() == file["state"][key].keys() for key in file["state"])
    assert_same(ours["state"], theirs["state"])


INJECTED = {
    "SGD": lambda: optax.inject_hyperparams(sgd)(0.1, momentum=0.9),
    "RMSprop": lambda: optax.inject_hyperparams(rmsprop)(
        0.01, decay=0.95, centered=True, momentum=0.9, weight_decay=0.01
    ),
    "Adam": lambda: optax.inject_hyperparams(adam)(1e-3, b2=0.99, weight_decay=0.01, amsgrad=True),
    "AdamW": lambda: optax.inject_hyperparams(adamw)(1e-3, b2=0.99),
    "NAdam": lambda: optax.inject_hyperparams(nadam)(2e-3, b2=0.99),
}


@pytest.mark.parametrize("name", INJECTED)
def test_injected_hyperparameters(name):
    file, weights = torch_file(name), params()
    plain, wrapped = from_torch((name, file["param_groups"])), INJECTED[name]()
    expected, plain_state = unwrapped(name)
    actual, state = walk(wrapped, import_state(wrapped, weights, file), weights)
    assert_same(actual, expected)
    assert_same(
        export_state(wrapped, actual, state, file)["state"], export_state(plain, expected, plain_state, file)["state"]
    )


def test_several_groups_inside_wrappers():
    file = torch_file("AdamW", ["fc.weight", "fc.bias"], ["norm.weight"])
    file["param_groups"][1] |= {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.0}
    file["state"][2]["step"] = np.float32(3)  # a group that was added later
    groups = {"fc": adamw(1e-3, b2=0.99), "norm": adamw(1e-2, b1=0.8, b2=0.9, weight_decay=0.0)}
    weights, plain = params(), param_groups(groups, split)
    expected, _ = walk(plain, import_state(plain, weights, file), weights)
    for wrapped in (
        optax.chain(optax.clip(1e9), optax.MultiSteps(plain, 1)),
        live(plain, "fc.learning_rate"),
        optax.partition(groups, {"params": {"fc": "fc", "norm": "norm"}}),
    ):
        actual, state = walk(wrapped, import_state(wrapped, weights, file), weights)
        assert_same(actual, expected)
        exported = export_state(wrapped, actual, state, file)["state"]
        assert [float(exported[index]["step"]) for index in range(3)] == [STEPS + 6, STEPS + 6, 3 + 6]


def test_accumulated_gradients_count_as_one_step():
    file, weights = torch_file("AdamW"), params()
    plain = adamw(1e-3, b2=0.99)
    wrapped = optax.MultiSteps(plain, 2, accumulator_dtype=jnp.float64)
    expected, _ = walk(plain, import_state(plain, weights, file), weights)
    actual, state = walk(wrapped, import_state(wrapped, weights, file), weights, times=2)
    assert_same(actual, expected)
    assert float(export_state(wrapped, actual, state, file)["state"][0]["step"]) == STEPS + 6
    live_around = live(optax.chain(wrapped.gradient_transformation()))
    actual, state = walk(live_around, import_state(live_around, weights, file), weights, times=2)
    assert_same(actual, expected)
    assert float(export_state(live_around, actual, state, file)["state"][0]["step"]) == STEPS + 6


def test_half_a_step_cannot_be_exported():
    file, weights = torch_file("AdamW"), params()
    wrapped = optax.MultiSteps(adamw(1e-3, b2=0.99), 2)
    state = import_state(wrapped, weights, file)
    _, state = wrapped.update(gradients(0), state, weights)
    with pytest.raises(ValueError, match="MultiSteps.acc_grads holds gradients of a step that has not been taken yet"):
        export_state(wrapped, weights, state, file)


def test_only_some_parameters_inside_a_mask():
    file = torch_file("AdamW", ["fc.weight", "fc.bias"])
    weights = params()
    mask = {"params": {"fc": True, "norm": False}}
    wrapped = optax.masked(adamw(1e-3, b2=0.99), mask)
    alone = {"params": {"fc": weights["params"]["fc"]}}
    plain = adamw(1e-3, b2=0.99)
    state = import_state(wrapped, weights, file)
    expected, _ = plain.update(
        {"params": {"fc": gradients(0)["params"]["fc"]}}, import_state(plain, alone, file), alone
    )
    actual, state = wrapped.update(gradients(0), state, weights)
    assert_same(actual["params"]["fc"], expected["params"]["fc"])
    assert export_state(wrapped, weights, state, file)["state"].keys() == {0, 1}
    with pytest.raises(ValueError, match=r"norm.weight has a state, but the chain keeps none for it"):
        import_state(wrapped, weights, torch_file("AdamW"))


# Other links that mean the same.


OTHERS: list[tuple[str, Any, dict[str, Any]]] = [
    ("AdamW", lambda: optax.adamw(1e-3, b2=0.99, weight_decay=0.01), {}),
    ("Adam", lambda: optax.adam(1e-3, b2=0.99), {"amsgrad": False, "weight_decay": 0}),
    ("SGD", lambda: optax.sgd(0.1, momentum=0.9), {}),
    ("SGD", lambda: optax.sgd(0.1, momentum=0.9, nesterov=True), {"nesterov": True}),
    ("SGD", lambda: optax.chain(optax.scale(-1.0), optax.sgd(0.1, momentum=0.9)), {"maximize": True}),
    (
        "RMSprop",
        lambda: optax.rmsprop(0.01, 0.95, eps_in_sqrt=False),
        {"centered": False, "momentum": 0, "weight_decay": 0},
    ),
    ("Adadelta", lambda: optax.chain(optax.scale(-1.0), optax.adadelta(1.0, 0.95)), {}),
    (
        "Adagrad",
        lambda: optax.chain(optax.scale_by_rss(0.0, 0.0), optax.scale(-0.1)),
        {"lr_decay": 0, "weight_decay": 0, "eps": 0.0},
    ),
]


@pytest.mark.parametrize(("name", "make", "hyperparams"), OTHERS)
def test_optaxs_own_optimizers(name, make, hyperparams):
    file, weights = torch_file(name, **hyperparams), params()
    if name != "SGD":  # what those hyperparameters leave out
        for entry in file["state"].values():
            for key in {"max_exp_avg_sq", "grad_avg", "momentum_buffer"} & entry.keys():
                del entry[key]
    plain, theirs = from_torch((name, file["param_groups"])), make()
    expected, plain_state = walk(plain, import_state(plain, weights, file), weights)
    actual, state = walk(theirs, import_state(theirs, weights, file), weights)
    assert_same(actual, expected)
    exported = export_state(theirs, actual, state, file, steps=STEPS + 6)["state"]
    assert_same(exported, export_state(plain, expected, plain_state, file, steps=STEPS + 6)["state"])


def test_a_momentum_behind_the_learning_rate_is_converted_there_and_back():
    file, weights = torch_file("SGD"), params()
    plain = from_torch(("SGD", file["param_groups"]))
    velocity = chain(scale_by_learning_rate(0.1), scale_by_momentum(0.9))
    expected, plain_state = walk(plain, import_state(plain, weights, file), weights)
    state = import_state(velocity, weights, file)
    np.testing.assert_allclose(state[1].mu["params"]["fc"]["bias"], -0.1 * file["state"][1]["momentum_buffer"])
    actual, state = walk(velocity, state, weights)
    assert_same(actual, expected)
    exported = export_state(velocity, actual, state, file)["state"]
    assert_same(exported, export_state(plain, expected, plain_state, file)["state"])


def test_a_momentum_behind_a_learning_rate_that_is_live_goes_neither_in_nor_out():
    file, weights = torch_file("SGD"), params()
    tx = live(chain(scale_by_learning_rate(0.1), scale_by_momentum(0.9)))
    with pytest.raises(ValueError, match="momentum_buffer: a factor that changes from step to step, or is unknown"):
        import_state(tx, weights, file)
    with pytest.raises(ValueError, match="momentum_buffer: a factor that|after a learning rate that is live"):
        export_state(tx, weights, tx.init(weights), file)


def test_a_momentum_behind_a_learning_rate_of_0_remembers_nothing():
    tx = chain(scale_by_learning_rate(0.0), scale_by_momentum(0.9))
    with pytest.raises(ValueError, match="cannot be made from PyTorch's momentum_buffer: it is multiplied by 0"):
        import_state(tx, params(), torch_file("SGD"))


def test_a_sum_of_gradients_becomes_an_average():
    file, weights = torch_file("Adam", amsgrad=False, weight_decay=0), params()
    for entry in file["state"].values():
        del entry["max_exp_avg_sq"]
    summed = adam(1e-3, b2=0.99).swap("scale_by_momentum", scale_by_momentum(0.9))
    state = import_state(summed, weights, file)
    np.testing.assert_allclose(
        state[0].first[0].mu["params"]["fc"]["bias"], 10 * file["state"][1]["exp_avg"], rtol=TOLERANCE
    )
    exported = export_state(summed, weights, state, file)["state"]
    assert_same(exported, file["state"])


def test_what_only_looks_alike_is_refused():
    weights = params()
    behind = chain(optax.scale_by_schedule(lambda step: -0.1 / (1 + step)), scale_by_momentum(0.9))
    with pytest.raises(ValueError, match="scale_by_momentum.mu cannot be made from PyTorch's momentum_buffer"):
        import_state(behind, weights, torch_file("SGD"), steps=STEPS)
    laprop = rmsprop(0.01, decay=0.95, momentum=0.9, weight_decay=0.01)
    before = chain(add_l2_to_grad(0.01), scale_by_momentum(0.9), *laprop.drop("scale_by_momentum").links[1:])
    file = torch_file("RMSprop", centered=False)
    for entry in file["state"].values():
        del entry["grad_avg"]
    import_state(laprop, weights, file)
    with pytest.raises(ValueError, match="momentum_buffer: it was the average of direction of gradient"):
        import_state(before, weights, file)
    with pytest.raises(ValueError, match="momentum_buffer: it was the average of direction of gradient"):
        export_state(before, weights, before.init(weights), file, steps=3)


class CurvatureState(NamedTuple):
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    h: Any


@link("moment", state={"count": Count(), "h": Moment("curvature of {}", power=2, torch="exp_hessian")})
def scale_by_curvature(decay: float = 0.5) -> optax.GradientTransformation:
    """A link that linkax has never heard of."""

    def init(weights):
        return CurvatureState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, weights))

    def update(updates, state, weights=None):
        del weights
        h = jax.tree.map(lambda g, h: decay * h + (1 - decay) * g * g, updates, state.h)
        return jax.tree.map(lambda g, h: g / (1 + h), updates, h), CurvatureState(state.count + 1, h)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("around", AROUND)
def test_a_link_of_ones_own_takes_part(around):
    weights, rng = params(), np.random.default_rng(0)
    plain = chain(scale_by_curvature(), scale_by_learning_rate(0.1))
    wrapped = AROUND[around](plain)
    shapes = {0: (3, 2), 1: (3,), 2: (3,)}
    file = {
        "state": {key: {"step": 5, "exp_hessian": rng.normal(size=shape) ** 2} for key, shape in shapes.items()},
        "param_groups": [{"lr": 0.1, "params": [0, 1, 2], "param_names": ["fc.weight", "fc.bias", "norm.weight"]}],
    }
    state = import_state(wrapped, weights, file)
    exported = export_state(wrapped, weights, state, file)
    assert_same(exported["state"], {key: {**one, "step": np.float32(5)} for key, one in file["state"].items()})
    expected, _ = walk(plain, import_state(plain, weights, file), weights)
    assert_same(walk(wrapped, state, weights)[0], expected)


def test_moments_that_pytorch_has_not_are_refused_by_name():
    weights = params()
    for tx, name in (
        (chain(optax.ema(0.9), adamw(1e-3, b2=0.99)), "ema.ema"),
        (optax.amsgrad(1e-3, b2=0.99), "scale_by_amsgrad.nu_max"),
        (chain(link("moment")(lambda: optax.trace(0.5))(), adamw(1e-3, b2=0.99)), "trace"),
    ):
        file = torch_file("AdamW")
        with pytest.raises(ValueError, match=f"PyTorch has no equivalent of .*{name}"):
            import_state(tx, weights, file)
        with pytest.raises(ValueError, match=f"PyTorch has no equivalent of .*{name}"):
            export_state(tx, weights, tx.init(weights), file)


def veil(inner):
    def update(updates, state, weights=None):
        return inner.update(updates, state, weights)

    return optax.GradientTransformation(inner.init, update)


def test_what_cannot_be_looked_into_is_refused_by_name():
    tx, weights = veil(adamw(1e-3, b2=0.99)), params()
    with pytest.raises(ValueError, match="veil holds something that cannot be looked into"):
        import_state(tx, weights, torch_file("AdamW"))
    with pytest.raises(ValueError, match="veil holds something that cannot be looked into"):
        export_state(tx, weights, tx.init(weights), torch_file("AdamW"))


def test_a_state_of_which_nothing_is_known_does_not_start_anew_in_silence():
    tx, weights = chain(optax.add_noise(0.0, 0.5, key=0), adamw(1e-3, b2=0.99)), params()
    with pytest.warns(UserWarning, match="add_noise.rng_key restarts, because its meaning is unknown"):
        import_state(tx, weights, torch_file("AdamW"))


# Steps.

HALVING = optax.exponential_decay(0.125, 4, 0.5, staircase=True)  # powers of 2, which no dtype rounds
SCHEDULED = {
    "sgd": lambda: sgd(HALVING, momentum=0.9),
    "live": lambda: live(sgd(HALVING, momentum=0.9)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(sgd)(HALVING, momentum=0.9),
    "inject_hyperparams of Optax's": lambda: optax.inject_hyperparams(optax.sgd)(HALVING, momentum=0.9),
    "scale_by_schedule": lambda: optax.chain(
        scale_by_momentum(0.9), optax.scale_by_schedule(lambda step: -HALVING(step))
    ),
    "optax.sgd": lambda: optax.sgd(HALVING, momentum=0.9),
    "one of several groups": lambda: param_groups(
        {"fc": sgd(HALVING, momentum=0.9), "norm": sgd(HALVING, momentum=0.9)}, split
    ),
    "in MultiSteps": lambda: optax.MultiSteps(optax.chain(optax.clip(1e9), live(sgd(HALVING, momentum=0.9))), 1),
    "in apply_if_finite": lambda: optax.apply_if_finite(sgd(HALVING, momentum=0.9), 2),
}


@pytest.mark.parametrize("where", SCHEDULED)
def test_a_schedule_needs_the_steps_and_goes_on_with_them_wherever_it_is(where):
    tx, weights = SCHEDULED[where](), params()
    names = [["fc.weight", "fc.bias"], ["norm.weight"]] if where == "one of several groups" else []
    file = torch_file("SGD", *names)
    with pytest.raises(ValueError, match="steps must be given: PyTorch's SGD does not count them, and .*count does"):
        import_state(tx, weights, file)
    plain = sgd(HALVING, momentum=0.9)
    expected, _ = walk(plain, import_state(plain, weights, torch_file("SGD"), steps=4), weights)
    actual, _ = walk(tx, import_state(tx, weights, file, steps=4), weights)
    assert_same(actual, expected)
    at_step_4 = gradients(0)["params"]["fc"]["bias"] + 0.9 * file["state"][1]["momentum_buffer"]
    updates, _ = tx.update(gradients(0), import_state(tx, weights, file, steps=4), weights)
    np.testing.assert_allclose(updates["params"]["fc"]["bias"], -0.0625 * at_step_4, rtol=TOLERANCE)


def test_a_schedule_in_one_group_of_several_is_enough():
    file = torch_file("SGD", ["fc.weight", "fc.bias"], ["norm.weight"])
    tx = param_groups({"fc": sgd(0.1, momentum=0.9), "norm": sgd(HALVING, momentum=0.9)}, split)
    with pytest.raises(ValueError, match="steps must be given: .* norm.scale_by_learning_rate.count does"):
        import_state(tx, params(), file)
    import_state(tx, params(), file, steps=3)


def test_a_schedule_without_any_moments_needs_the_steps_too():
    file = torch_file("SGD", momentum=0)
    file["state"] = {}
    with pytest.raises(ValueError, match="steps must be given"):
        import_state(sgd(HALVING), params(), file)
    state = import_state(sgd(HALVING), params(), file, steps=9)
    assert int(state[0].count) == 9
    import_state(sgd(0.1), params(), file)


def test_a_schedule_of_a_moment_needs_the_steps_too():
    tx = live(sgd(0.1, momentum=optax.linear_schedule(0.5, 0.9, 10)), "momentum")
    with pytest.raises(ValueError, match="steps must be given"):
        import_state(tx, params(), torch_file("SGD"))
    import_state(tx, params(), torch_file("SGD"), steps=3)


def every_count(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        int(leaf)
        for path, leaf in leaves
        if jax.tree_util.keystr(path[-1:], simple=True) in ("count", "gradient_step", "step")
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda tx: live(tx),
        lambda tx: optax.MultiSteps(live(tx), lambda step: 1),
        lambda tx: optax.inject_hyperparams(lambda learning_rate: adam(learning_rate, b2=0.99))(HALVING),
        lambda tx: optax.chain(live(tx), optax.scale_by_schedule(lambda step: 1.0)),
        lambda tx: optax.conditionally_transform(param_groups({"all": tx}, lambda *_: "all"), lambda step: True),
    ],
)
def test_every_count_is_set_where_the_file_tells_the_steps(make):
    file = torch_file("Adam", amsgrad=False, weight_decay=0)
    for entry in file["state"].values():
        del entry["max_exp_avg_sq"]
    tx = make(adam(HALVING, b2=0.99))
    assert every_count(import_state(tx, params(), file)) == {STEPS}
    with pytest.raises(ValueError, match="steps is 8, but PyTorch has taken 7"):
        import_state(tx, params(), file, steps=8)


def test_what_stands_around_groups_of_different_ages_needs_one_number():
    file = torch_file("AdamW", ["fc.weight", "fc.bias"], ["norm.weight"])
    file["state"][2]["step"] = np.float32(3)
    groups = param_groups({"fc": adamw(1e-3, b2=0.99), "norm": adamw(1e-3, b2=0.99)}, split)
    import_state(optax.MultiSteps(groups, 2), params(), file)  # counts, but nothing depends on it
    with pytest.raises(ValueError, match="scale_by_schedule.count counts for all of them, and PyTorch has taken 3, 7"):
        import_state(optax.chain(groups, optax.scale_by_schedule(lambda step: 1.0)), params(), file)


def test_a_chain_that_goes_the_other_way_is_a_contradiction_wherever_the_sign_is():
    weights = params()
    for tx in (
        chain(negate_grad(), sgd(0.1, momentum=0.9)),
        optax.chain(optax.scale(-1.0), optax.sgd(0.1, momentum=0.9)),
    ):
        with pytest.raises(ValueError, match="maximize is False in PyTorch's group 0, but the chain maximises"):
            import_state(tx, weights, torch_file("SGD"))
        import_state(tx, weights, torch_file("SGD", maximize=True))
    tx = sgd(0.1, momentum=0.9)
    with pytest.raises(ValueError, match="maximize is True in PyTorch's group 0, but the chain minimises"):
        import_state(tx, weights, torch_file("SGD", maximize=True))
    with pytest.raises(ValueError, match="maximize is True in PyTorch's group 0, but the chain minimises"):
        export_state(tx, weights, tx.init(weights), torch_file("SGD", maximize=True))
    unknown = chain(optax.scale(-1.0), scale_by_momentum(0.9), optax.scale_by_schedule(lambda step: 0.1))
    with pytest.raises(ValueError, match="has a different sign from PyTorch's momentum_buffer"):
        import_state(unknown, weights, torch_file("SGD"), steps=3)


# Out of chains that have been changed.


def test_moments_that_have_begun_anew_cannot_be_exported_as_if_they_had_not():
    file, weights = torch_file("AdamW"), params()
    tx = adamw(1e-3, b2=0.99)
    state = import_state(tx, weights, file)
    ratio = state[0]
    first = (ratio.first[0]._replace(count=jnp.zeros((), jnp.int32)), ratio.first[1])
    with pytest.raises(ValueError, match="bias_correction.weight is .*, but 0 after 0 steps"):
        export_state(tx, weights, (ratio._replace(first=first), *state[1:]), file)


def test_steps_are_given_where_the_chain_does_not_count_them():
    weights = params()
    tx = from_torch(("Adagrad", {"lr": 0.1}))
    file = torch_file("Adagrad", lr_decay=0.0, weight_decay=0)
    state = import_state(tx, weights, file)
    assert float(export_state(tx, weights, state, file, steps=9)["state"][0]["step"]) == 9
    with pytest.raises(ValueError, match="steps must be given: the chain does not count them, and PyTorch's Adagrad"):
        export_state(tx, weights, state, torch_file("Adagrad"))
    tx = adamw(1e-3, b2=0.99)
    with pytest.raises(ValueError, match="steps is 9, but the chain has counted 7"):
        export_state(tx, weights, import_state(tx, weights, torch_file("AdamW")), torch_file("AdamW"), steps=9)


def test_where_the_template_does_not_say_what_it_is_the_moment_tells_the_name():
    tx, weights, file = adamw(1e-3, b2=0.99), params(), torch_file("AdamW")
    state = import_state(tx, weights, file)
    group = file["param_groups"][0]
    group = {"lr": 1e-3, "params": group["params"], "param_names": group["param_names"]}
    for template in ({}, file["state"]):
        exported = export_state(tx, weights, state, {"state": template, "param_groups": [group]})
        assert_same(exported["state"], file["state"])


def test_a_lazy_adam_is_pytorchs_sparse_adam():
    file, tx, weights = torch_file("AdamW"), sparse_adam(b2=0.99), params()
    group = file["param_groups"][0]
    file["param_groups"] = [{"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "maximize": False}]
    file["param_groups"][0] |= {key: group[key] for key in ("params", "param_names")}
    state = import_state(tx, weights, file)
    assert_same(export_state(tx, weights, state, file)["state"], file["state"])
    # The next step, at the point where all that was is forgotten but what the file has.
    updates, _ = tx.update(gradients(0), state, weights)
    m = 0.9 * file["state"][2]["exp_avg"] + 0.1 * gradients(0)["params"]["norm"]["scale"]
    v = 0.99 * file["state"][2]["exp_avg_sq"] + 0.01 * gradients(0)["params"]["norm"]["scale"] ** 2
    step = 1e-3 * m / (1 - 0.9**8) / (np.sqrt(v) + 1e-8) * np.sqrt(1 - 0.99**8)
    np.testing.assert_allclose(updates["params"]["norm"]["scale"], -step, rtol=1e-7)


def test_parameters_that_pytorch_calls_otherwise_are_all_that_is_complained_of():
    file = torch_file("AdamW")
    file["param_groups"][0]["param_names"] = [f"module.{name}" for name in file["param_groups"][0]["param_names"]]
    with pytest.raises(ValueError, match="PyTorch has module.fc.weight, but no parameter has that name") as error:
        import_state(adamw(1e-3, b2=0.99), params(), file)
    assert "steps must be given" not in str(error.value)
