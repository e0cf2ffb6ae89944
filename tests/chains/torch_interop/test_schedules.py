"""Schedules from saved schedulers: what is refused, what is the same, and what they are wrapped in."""

import json
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adamw, live, migrate, param_groups, sgd
from linkax.chains.torch_interop import (
    TorchSchedule,
    export_plateau,
    from_torch,
    import_state,
    schedule_from_torch,
)
from linkax.transforms import Plateau, power_bias_correction, scale_by_plateau

BASE = {"base_lrs": [0.1], "_last_lr": [0.1], "last_epoch": 0, "_step_count": 1}
STEP = ("StepLR", BASE | {"step_size": 2, "gamma": 0.5})
CYCLE = BASE | {
    "max_lrs": [0.2],
    "total_size": 10.0,
    "step_ratio": 0.5,
    "mode": "triangular",
    "gamma": 1.0,
    "scale_mode": "cycle",
    "cycle_momentum": True,
    "_scale_fn_custom": None,
    "base_momentums": [0.8],
    "max_momentums": [0.9],
}
PLATEAU = {
    "mode": "min",
    "factor": 0.5,
    "patience": 1,
    "threshold": 1e-4,
    "threshold_mode": "rel",
    "cooldown": 0,
    "min_lrs": [0.0],
    "eps": 1e-8,
    "best": math.inf,
    "num_bad_epochs": 0,
    "cooldown_counter": 0,
    "last_epoch": 0,
}
GROUP = {"lr": 0.1, "initial_lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
NAMED = {"params": [0], "param_names": ["w"]}


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("StepLR", "scheduler must be a scheduler of torch.optim.lr_scheduler, or a pair"),
        (("StepLR", 3), "must be a class's name and a state_dict()"),
        (("NoLR", BASE), "must be one of LambdaLR, .* got NoLR"),
        (("__import__('os').system('true')", BASE), "must be one of LambdaLR"),
        (("StepLR", BASE), "the state of scheduler, a StepLR, has no step_size, gamma"),
        (("StepLR", STEP[1] | {"gamma": "half"}), "gamma of StepLR must be a number, got 'half'"),
        (("StepLR", STEP[1] | {"gamma": math.nan}), "gamma of StepLR must be a finite number"),
        (("StepLR", STEP[1] | {"step_size": 0}), "step_size of StepLR must be above 0, got 0"),
        (("StepLR", STEP[1] | {"last_epoch": 1.5}), "last_epoch of scheduler must be an integer, got 1.5"),
        (("StepLR", STEP[1] | {"last_epoch": -1}), "StepLR has not begun: its last_epoch is -1"),
        (("StepLR", STEP[1] | {"base_lrs": "0.1"}), "base_lrs of StepLR must have a number for group 0"),
        (("StepLR", {k: v for k, v in STEP[1].items() if k != "_last_lr"}), "has no _last_lr for group 0; give groups"),
        (
            ("SequentialLR", {"_schedulers": [STEP[1], STEP[1]], "_milestones": [3], "last_epoch": 0}),
            r"does not say their classes; write them behind its name, such as 'SequentialLR\(LinearLR",
        ),
        (
            ("SequentialLR(StepLR, StepLR)", {"_schedulers": [STEP[1]] * 2, "_milestones": [], "last_epoch": 0}),
            "the milestones of SequentialLR must be 1 integers in ascending order",
        ),
        (
            ("ChainedScheduler(StepLR, ReduceLROnPlateau)", {"_schedulers": [STEP[1], PLATEAU]}),
            "must not hold a ReduceLROnPlateau",
        ),
        (("LambdaLR", BASE | {"lr_lambdas": [None]}), "lambdas must give the lr_lambda of LambdaLR"),
        (
            ("OneCycleLR", BASE | {"total_steps": 9, "_schedule_phases": [], "_anneal_func_type": "cos"}),
            "has no cycle_momentum",
        ),
        (
            ("SWALR", BASE | {"anneal_epochs": 5, "_anneal_strategy": "cos"}),
            "groups must be the optimizer's param_groups, of which SWALR needs swa_lr, got none",
        ),
        (
            ("CosineAnnealingWarmRestarts", BASE | {"T_i": 5, "T_cur": 1.5, "T_mult": 1, "eta_min": 0}),
            "T_cur of CosineAnnealingWarmRestarts must be an integer, got 1.5: it was stepped by fractions",
        ),
        (("ReduceLROnPlateau", PLATEAU), "ReduceLROnPlateau is no function of the step: from_torch"),
        ([], "at least one scheduler, got an empty list"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value[:20],
)
def test_a_broken_scheduler_is_refused(scheduler, message):
    with pytest.raises(ValueError, match=f"(?s)schedule_from_torch: .*({message})"):
        schedule_from_torch(scheduler)


def test_all_problems_are_listed_at_once():
    with pytest.raises(ValueError, match="(?s)step_size of StepLR.*gamma of StepLR"):
        schedule_from_torch(("StepLR", STEP[1] | {"step_size": -1, "gamma": None}))


@pytest.mark.parametrize(
    ("given", "error"),
    [({"steps_per_epoch": 0}, ValueError), ({"offset": 0.5}, TypeError), ({"total_steps": 0}, ValueError)],
)
def test_the_clock_is_checked(given, error):
    with pytest.raises(error, match=f"schedule_from_torch: {next(iter(given))} must be an integer"):
        schedule_from_torch(STEP, **given)


@pytest.mark.parametrize(
    "spec", [{}, {"form": {}, "now": 1, "last_epoch": 0}, {"now": "a", "form": {}, "last_epoch": 0}]
)
def test_a_broken_spec_is_refused(spec):
    with pytest.raises(ValueError, match="TorchSchedule.from_spec"):
        TorchSchedule.from_spec(spec)


def test_equal_schedules_make_equal_chains():
    one, other = schedule_from_torch(STEP)[0].lr, schedule_from_torch(STEP)[0].lr
    assert one is not other
    assert one == other
    assert sgd(one) == sgd(other)
    assert len({sgd(one), sgd(other)}) == 1
    assert pickle.loads(pickle.dumps(sgd(one))) == sgd(one)
    assert one != schedule_from_torch(STEP, offset=1)[0].lr
    assert "StepLR(epoch=0, base=0.1, step_size=2, gamma=0.5)" in repr(sgd(one))
    assert TorchSchedule.from_spec(json.loads(json.dumps(one.spec()))) == one


def test_epochs_and_offsets_move_the_clock():
    lr, _ = schedule_from_torch(STEP, steps_per_epoch=3, offset=2)[0]
    values = lr(np.arange(16))
    assert np.isnan(values[1])  # before its clock begins, but for step 0, at which wrappers start
    np.testing.assert_array_equal(values[2:], [0.1] * 6 + [0.05] * 6 + [0.025] * 2)


def test_a_million_steps_lose_no_digits_in_float32():
    state = BASE | {"gamma": 0.999999}
    lr, _ = schedule_from_torch(("ExponentialLR", state))[0]
    found = jax.jit(lr)(jnp.int32(1_000_000))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 0.1 * 0.999999**1_000_000, rtol=1e-6)  # an ulp is 6e-8; of the exponent too


def test_a_function_whose_square_overflows_late_takes_a_table():
    state = BASE | {"lr_lambdas": [None]}
    with pytest.raises(ValueError, match="total_steps must say"):  # from 46341 on the square is no int32
        schedule_from_torch(("LambdaLR", state), lambdas=lambda epoch: 1 / (1 + 1e-9 * epoch**2))
    for good in (lambda epoch: 1 / (1 + 1e-9 * (1.0 * epoch) ** 2), lambda epoch: (1 - epoch / 2000) ** 0.5):
        schedule_from_torch(("LambdaLR", state), lambdas=good)  # the second one ends: there is no root in Python


def test_a_function_that_overflows_when_traced_takes_a_table():
    state = BASE | {"lr_lambdas": [None]}
    with pytest.raises(ValueError, match="total_steps must say"):
        schedule_from_torch(("LambdaLR", state), lambdas=lambda epoch: 1 / 2**epoch)
    lr, _ = schedule_from_torch(("LambdaLR", state), lambdas=lambda epoch: 1 / 2**epoch, total_steps=100)[0]
    assert lr(64) == 0.1 / 2**64


def chain_with_a_cycle():
    group = GROUP | NAMED | {"max_momentum": 0.9, "base_momentum": 0.8}
    return from_torch(("AdamW", [group]), schedulers=("CyclicLR", CYCLE), report=None)


def params():
    return {"w": jnp.linspace(-1, 1, 12, dtype=jnp.bfloat16).reshape(3, 4)}


def test_optax_injects_a_schedule_from_the_middle_of_a_run():
    state = BASE | {"gamma": 0.5, "last_epoch": 4, "_last_lr": [0.01]}
    lr, _ = schedule_from_torch(("ExponentialLR", state))[0]
    tx = optax.inject_hyperparams(adamw, hyperparam_dtype=jnp.float32)(learning_rate=lr)
    file = file_after(4)
    file["param_groups"][0] |= {"lr": 0.01, "weight_decay": 0.01}
    state = import_state(tx, params(), file, names=lambda path: path)
    for expected in (0.01, 0.005):
        _, state = tx.update(params(), state, params())
        np.testing.assert_allclose(state.hyperparams["learning_rate"], expected, rtol=1e-6)  # an ulp of float32
    for other in (adamw(lr), tx, optax.adam(lr), param_groups({"all": tx}, lambda path, w: "all")):
        with pytest.raises(ValueError, match="taken 5 steps, and the scheduler of (the chain|all) 4"):
            import_state(other, params(), file_after(5), names=lambda path: path)
    fresh = adamw(lr)
    _, state = fresh.update(params(), fresh.init(params()), params())
    assert np.isnan(fresh.update(params(), state, params())[0]["w"].astype(jnp.float32)).all()


WRAPPED = {
    "optax.chain": lambda tx: optax.chain(tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked": lambda tx: optax.masked(tx, {"w": True}),
    "live": live,
    "groups": lambda tx: param_groups({"all": tx}, lambda path, w: "all"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_change_nothing(name):
    tx, weights = chain_with_a_cycle(), params()
    wrapped = WRAPPED[name](tx)
    jax.eval_shape(wrapped.init, weights)

    def last(tx):
        updates, state, update = weights, tx.init(weights), jax.jit(tx.update)
        for _ in range(4):
            updates, state = update({"w": weights["w"]}, state, weights)
        return updates["w"]

    assert last(wrapped).dtype == jnp.bfloat16
    np.testing.assert_array_equal(last(wrapped), last(tx))


def test_the_report_says_what_was_understood():
    said: list[str] = []
    group = GROUP | NAMED | {"max_momentum": 0.9, "base_momentum": 0.8}
    from_torch(("AdamW", [group]), schedulers=("CyclicLR", CYCLE), steps_per_epoch=5, report=said.append)
    (text,) = said
    for part in ("AdamW, 1 group", "1 parameter", "lr        0.1 now, CyclicLR(", "b1        0.9 now", "0 to 4"):
        assert part in text


def test_a_scheduled_beta_is_corrected_as_in_pytorch():
    tx = chain_with_a_cycle()
    (first,) = (link for link in tx.links[0].slots["first"].links if "correction" in link.name)
    assert first == power_bias_correction(first.hyperparams["decay"])
    assert isinstance(first.hyperparams["decay"], TorchSchedule)


@pytest.mark.parametrize(
    ("name", "group", "scheduler", "more", "message"),
    [
        ("ASGD", {"lr": 0.1, "lambd": 1e-4}, STEP, {}, "ASGD has no schedule"),
        ("Rprop", {"lr": 0.1, "etas": (0.5, 1.2)}, STEP, {}, "Rprop has no schedule"),
        (
            "Adafactor",
            {"lr": 0.1, "beta2_decay": -0.8},
            ("ReduceLROnPlateau", PLATEAU),
            {},
            "smaller of the reduced rate",
        ),
        ("Adagrad", {"lr": 0.1, "lr_decay": 0}, ("CyclicLR", CYCLE), {}, "momentum of group 0"),
        (
            "SGD",
            {"lr": 0.1, "momentum": 0.9, "base_momentum": 0.0, "max_momentum": 0.9},
            ("CyclicLR", CYCLE),
            {},
            "the momentum of group 0 must stay above 0",
        ),
        ("SGD", {"lr": 0.1}, [("ReduceLROnPlateau", PLATEAU), STEP], {}, "ReduceLROnPlateau must be the last"),
        (
            "SGD",
            {"lr": 0.1, "momentum": 0.9},
            [("CyclicLR", CYCLE), ("ReduceLROnPlateau", PLATEAU)],
            {},
            "must come with schedulers that scale the learning rate they find",
        ),
        ("SGD", {"lr": 0.1}, [STEP, STEP], {"steps_per_epoch": [1, 5]}, "steps_per_epoch must be the same for all"),
        ("SGD", {"lr": 0.1}, [STEP, STEP], {"steps_per_epoch": [1]}, "steps_per_epoch must be one or 2"),
        ("SGD", {"lr": 0.1}, STEP, {"learning_rate": 0.1}, "learning_rate must not be given with schedulers"),
        ("SGD", [{"lr": 0.1}] * 2, STEP, {}, "the scheduler has 1 groups, but the optimizer 2"),
    ],
)
def test_what_cannot_be_in_a_chain_is_refused(name, group, scheduler, more, message):
    with pytest.raises(ValueError, match=f"(?s)from_torch: .*{message}"):
        from_torch((name, group), schedulers=scheduler, report=None, **more)


def test_a_scheduled_group_needs_its_schedulers():
    with pytest.raises(ValueError, match="initial_lr is what a learning-rate scheduler leaves behind; .* schedulers"):
        from_torch(("AdamW", GROUP))


def file_after(steps):
    moments = {"step": float(steps), "exp_avg": np.ones((3, 4)), "exp_avg_sq": np.ones((3, 4))}
    return {"state": {0: moments}, "param_groups": [GROUP | NAMED]}


@pytest.mark.parametrize(("steps", "per_epoch", "fits"), [(4, 1, True), (5, 1, False), (23, 5, True), (25, 5, False)])
@pytest.mark.parametrize("kind", ["schedule", "plateau"])
def test_steps_that_disagree_are_refused(kind, steps, per_epoch, fits):
    scheduler = ("StepLR", STEP[1] | {"last_epoch": 4})
    if kind == "plateau":
        scheduler = ("ReduceLROnPlateau", PLATEAU | {"last_epoch": 4})
    given = {"schedulers": scheduler, "steps_per_epoch": per_epoch, "report": None}
    file = file_after(steps)
    tx = from_torch(("AdamW", file["param_groups"]), **given)
    if fits:
        import_state(tx, params(), file, names=lambda path: path)
        return
    with pytest.raises(ValueError, match=f"taken {steps} steps, and the scheduler of the chain 4"):
        import_state(tx, params(), file, names=lambda path: path)
    with pytest.raises(ValueError, match=f"offset={per_epoch} to from_torch"):
        import_state(live(tx), params(), file, names=lambda path: path)
    said = from_torch(("AdamW", file["param_groups"]), **given, offset=per_epoch)
    import_state(said, params(), file, names=lambda path: path)


def test_a_plateau_survives_a_change_of_the_chain():
    tx = sgd(0.5).swap(
        "scale_by_learning_rate", scale_by_plateau(0.5, start=Plateau(1.0, 1, 0, 3), patience=1, offset=-4)
    )
    weights = {"w": jnp.ones(2)}
    _, state = tx.update(weights, tx.init(weights), weights, value=2.0)
    assert export_plateau(tx, state)["_last_lr"] == [pytest.approx(0.05)]
    new = optax.apply_if_finite(tx, 3)
    state = migrate(tx, state, new, weights).state
    assert export_plateau(new, state) == {
        "best": 1.0,
        "num_bad_epochs": 0,
        "cooldown_counter": 0,
        "last_epoch": 4,
        "_last_lr": [pytest.approx(0.05)],
    }
    with pytest.raises(ValueError, match="tx must have a scale_by_plateau"):
        export_plateau(adamw(0.1), adamw(0.1).init(weights))
    changing = live(tx)
    with pytest.raises(ValueError, match="learning rate that is live"):
        export_plateau(changing, changing.init(weights))
