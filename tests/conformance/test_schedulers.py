"""Every scheduler of the installed PyTorch as a schedule, from whatever point of its run."""

import copy
import json
import math
import pickle
import warnings

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from linkax.chains.torch_interop import (
    TorchSchedule,
    export_plateau,
    export_state,
    from_torch,
    import_state,
    schedule_from_torch,
)
from linkax.chains.torch_interop._read_scheduler import KNOWN

torch = pytest.importorskip("torch", reason="compares with the installed PyTorch")
lr_scheduler = torch.optim.lr_scheduler
swa_utils = torch.optim.swa_utils

# Of the largest rate: PyTorch multiplies step by step, with an error of 1e-16 in each of up to a few hundred steps.
TOLERANCE = 1e-12
RATES = (0.1, 0.03)


pytestmark = pytest.mark.usefixtures("float64")


def optimizer(kind="SGD", **options):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in RATES]
    return getattr(torch.optim, kind)(groups, **({"momentum": 0.9} if kind == "SGD" else {}), **options)


def stepped(optimizer, scheduler, times):
    """The learning rates and momenta of all groups, before the first and after each of the scheduler's steps."""

    def now():
        groups = optimizer.param_groups
        return [(group["lr"], group["betas"][0] if "betas" in group else group["momentum"]) for group in groups]

    found = [now()]
    for _ in range(times):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EncodingWarning)
            optimizer.step()
            scheduler.step()
        found.append(now())
    return np.asarray(found, float)  # (step, group, number)


def assert_equal(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(1e-3, np.max(np.abs(theirs))))


def assert_follows(optimizer, scheduler, steps, more, **given):
    """The schedules give what PyTorch's scheduler goes on to set."""
    made = schedule_from_torch(scheduler, **given)
    theirs = stepped(optimizer, scheduler, more)
    at = np.arange(steps, steps + more + 1)
    for index, (lr, momentum) in enumerate(made):
        assert_equal(lr(at), theirs[:, index, 0])
        if momentum is None:
            assert np.ptp(theirs[:, index, 1]) == 0
        else:
            assert_equal(momentum(at), theirs[:, index, 1])
    return made


whole = st.integers(1, 30)
share = st.floats(0.05, 1.0)
FORMS = {
    "StepLR": st.builds(lambda size, gamma: lambda o: lr_scheduler.StepLR(o, size, gamma), whole, share),
    "MultiStepLR": st.builds(
        lambda at, gamma: lambda o: lr_scheduler.MultiStepLR(o, at, gamma),
        st.lists(st.integers(0, 40), max_size=5),
        share,
    ),
    "ConstantLR": st.builds(lambda factor, end: lambda o: lr_scheduler.ConstantLR(o, factor, end), share, whole),
    "LinearLR": st.builds(
        lambda start, stop, end: lambda o: lr_scheduler.LinearLR(o, start, stop, end), share, st.floats(0, 1), whole
    ),
    "ExponentialLR": st.builds(lambda gamma: lambda o: lr_scheduler.ExponentialLR(o, gamma), share),
    "PolynomialLR": st.builds(
        lambda end, power: lambda o: lr_scheduler.PolynomialLR(o, end, power), whole, st.floats(0, 3)
    ),
    "CosineAnnealingLR": st.builds(
        lambda end, low: lambda o: lr_scheduler.CosineAnnealingLR(o, end, low), whole, st.floats(0, 0.02)
    ),
    "CosineAnnealingWarmRestarts": st.builds(
        lambda first, times, low: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, first, times, low),
        whole,
        st.integers(1, 3),
        st.floats(0, 0.02),
    ),
    "CyclicLR": st.builds(
        lambda up, down, mode, gamma, cycled: (
            lambda o: lr_scheduler.CyclicLR(
                o, [0.01, 0.02], 0.2, up, down, mode=mode, gamma=gamma, cycle_momentum=cycled
            )
        ),
        whole,
        st.none() | whole,
        st.sampled_from(["triangular", "triangular2", "exp_range"]),
        share,
        st.booleans(),
    ),
    "OneCycleLR": st.builds(
        lambda start, anneal, cycled, three: (
            lambda o: lr_scheduler.OneCycleLR(
                o, [0.3, 0.2], 160, pct_start=start, anneal_strategy=anneal, cycle_momentum=cycled, three_phase=three
            )
        ),
        st.floats(0.1, 0.45),
        st.sampled_from(["cos", "linear"]),
        st.booleans(),
        st.booleans(),
    ),
    "SWALR": st.builds(
        lambda rate, end, anneal: lambda o: swa_utils.SWALR(o, rate, end, anneal),
        st.floats(1e-3, 0.2),
        st.integers(0, 30),
        st.sampled_from(["cos", "linear"]),
    ),
    "LambdaLR": st.builds(
        lambda base: lambda o: lr_scheduler.LambdaLR(o, [lambda e: base**e, lambda e: 1 / (1 + base * e)]), share
    ),
}
PERIOD = 70  # two periods of each, and beyond their ends


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=15)
@given(data=st.data())
def test_a_schedule_goes_on_as_pytorch_does(name, data):
    make = data.draw(FORMS[name])
    start = data.draw(st.integers(0, 80))
    by_hand = data.draw(st.sampled_from([1.0, 1.0, 0.3]))
    theirs = optimizer()
    scheduler = make(theirs)
    stepped(theirs, scheduler, start)
    for group in theirs.param_groups:
        group["lr"] *= by_hand
    made = assert_follows(theirs, scheduler, start, PERIOD)
    for lr, _ in made:
        if name != "LambdaLR":
            assert TorchSchedule.from_spec(json.loads(json.dumps(lr.spec()))) == lr
            assert hash(pickle.loads(pickle.dumps(lr))) == hash(lr)
        at = np.arange(start)
        assert np.isnan(cloudpickle.loads(cloudpickle.dumps(lr))(at[1:])).all()


@pytest.mark.parametrize("name", FORMS)
def test_traced_steps_give_what_integers_give(name):
    theirs = optimizer()
    scheduler = _some(name)(theirs)
    stepped(theirs, scheduler, 3)
    (lr, _), _ = schedule_from_torch(scheduler)
    at = np.arange(0, 150)
    expected = np.asarray([lr(int(step)) for step in at])
    assert expected[0] == lr.now
    assert np.isnan(expected[1:3]).all()
    at, expected = at[3:], expected[3:]
    assert_equal(jax.jit(jax.vmap(lr))(jnp.asarray(at)), expected)
    assert_equal(jax.lax.scan(lambda _, step: (None, lr(step)), None, jnp.asarray(at))[1], expected)
    with jax.enable_x64(False):
        found = jax.jit(jax.vmap(lr))(jnp.asarray(at, jnp.int32))
        assert found.dtype == jnp.float32
        # A hundred roundings of 6e-8.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


def _some(name):
    """One scheduler of each class."""
    return {
        "StepLR": lambda o: lr_scheduler.StepLR(o, 7, 0.5),
        "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 9, 9, 20], 0.3),
        "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 7),
        "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.2, 0.9, 11),
        "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.97),
        "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 23, 1.7),
        "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 17, 0.01),
        "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 3, 0.001),
        "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 7, 5, mode="triangular2"),
        "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.3, 160),
        "SWALR": lambda o: swa_utils.SWALR(o, 0.01, 13),
        "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.95**epoch),
    }[name]


ALONE = sorted({*FORMS} - {"LambdaLR"})
TOGETHER = {
    "warm-up, then a cosine": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 40, 1e-3)], [5]
    ),
    "three, one of them a product": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.ConstantLR(o, 0.1, 5),
            lr_scheduler.ExponentialLR(o, 0.9),
            lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9 + 0.01 * (epoch % 3)),
        ],
        [6, 20],
    ),
    "SWA in the middle": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.StepLR(o, 2, 0.5),
            swa_utils.SWALR(o, 1e-3, 6),
            lr_scheduler.CosineAnnealingWarmRestarts(o, 7, 2),
        ],
        [5, 12],
    ),
    "a cycle later": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 5), lr_scheduler.CyclicLR(o, 0.01, 0.1, 7, 5)], [5]
    ),
    "a product of two": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 5), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "a cosine between two": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 13), lr_scheduler.StepLR(o, 7, 0.5)]
    ),
    "a cosine that does not reach 0": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 13, 1e-3)]
    ),
    "one that sets what others scale": lambda o: lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.ExponentialLR(o, 0.9),
            lr_scheduler.CosineAnnealingWarmRestarts(o, 7, 2),
            lr_scheduler.LinearLR(o, 0.1, 1.0, 9),
        ]
    ),
    "a sequence in a chain": lambda o: lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.SequentialLR(
                o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 20, 1e-3)], [5]
            ),
            lr_scheduler.ExponentialLR(o, 0.99),
        ]
    ),
}


@pytest.mark.parametrize("start", [0, 4, 5, 14, 33])
@pytest.mark.parametrize("name", TOGETHER)
def test_several_schedulers_go_on_as_pytorchs_do(name, start):
    theirs = optimizer()
    scheduler = TOGETHER[name](theirs)
    stepped(theirs, scheduler, start)
    made = assert_follows(theirs, scheduler, start, PERIOD, total_steps=200)
    (lr, _), _ = made
    assert TorchSchedule.from_spec(json.loads(json.dumps(lr.spec()))) == lr
    at = np.arange(start, start + PERIOD)
    assert_equal(jax.jit(jax.vmap(lr))(jnp.asarray(at)), lr(at))


@given(
    names=st.lists(st.sampled_from(ALONE), min_size=2, max_size=3),
    start=st.integers(0, 40),
    data=st.data(),
)
def test_any_list_of_schedulers_steps_as_one_after_another(names, start, data):
    assume(sum(name in ("CyclicLR", "OneCycleLR") for name in names) <= 1)  # these share the group's momenta
    theirs = optimizer()
    every = [data.draw(FORMS[name])(theirs) for name in names]

    class Both:
        def step(self):
            for one in every:
                one.step()

    stepped(theirs, Both(), start)
    made = schedule_from_torch(every, total_steps=200)
    rates = stepped(theirs, Both(), 40)
    for index, (lr, momentum) in enumerate(made):
        assert_equal(lr(np.arange(start, start + 41)), rates[:, index, 0])
        if momentum is not None:
            assert_equal(momentum(np.arange(start, start + 41)), rates[:, index, 1])


def test_a_table_ends_where_a_one_cycle_in_it_ends():
    theirs = optimizer()
    every = [lr_scheduler.OneCycleLR(theirs, 0.3, 50, cycle_momentum=False), lr_scheduler.CosineAnnealingLR(theirs, 9)]
    [(lr, _), _] = schedule_from_torch(every, total_steps=200)
    assert np.isfinite(lr(np.arange(50))).all()
    assert np.isnan(lr(np.asarray([60, 199]))).all()


@pytest.mark.parametrize("start", [0, 5, 12, 19])
def test_schedulers_may_take_turns(start):
    theirs = optimizer()
    main, swa = lr_scheduler.CosineAnnealingLR(theirs, 30), swa_utils.SWALR(theirs, 0.02, 5)

    class Turns:
        steps = 0

        def step(self):
            self.steps += 1
            (swa if self.steps >= 12 else main).step()

    turns = Turns()
    stepped(theirs, turns, start)
    made = schedule_from_torch([main, swa], milestones=[12])
    rates = stepped(theirs, turns, 30)
    for index, (lr, _) in enumerate(made):
        assert_equal(lr(np.arange(start, start + 31)), rates[:, index, 0])


def test_a_cosine_loses_the_digits_that_pytorch_loses():
    theirs = optimizer()
    scheduler = lr_scheduler.CosineAnnealingLR(theirs, 1205)
    made = assert_follows(theirs, scheduler, 0, 4900)
    # At the restart PyTorch divides by a difference of nearly equal numbers, of about 1 / T²; the closed form does not.
    assert abs(made[0].lr(2410) / RATES[0] - 1) > 1e-11


def test_last_epoch_may_be_set_by_hand():
    theirs = optimizer()
    for group in theirs.param_groups:
        group["initial_lr"] = group["lr"]
    scheduler = lr_scheduler.LinearLR(theirs, 0.1, 1.0, 20, last_epoch=7)
    assert scheduler.last_epoch == 8
    assert_follows(theirs, scheduler, 8, 30)


def test_a_python_function_takes_a_table():
    theirs = optimizer()
    scheduler = lr_scheduler.LambdaLR(theirs, lambda epoch: min(1.0, (epoch + 1) / 10))
    with pytest.raises(ValueError, match="total_steps must say how many steps the run has"):
        schedule_from_torch(scheduler)
    (lr, _), _ = assert_follows(theirs, scheduler, 0, 40, total_steps=40)
    assert np.isnan(lr(41))
    own = optimizer()
    cyclic = lr_scheduler.CyclicLR(own, 0.01, 0.1, 7, 5, scale_fn=lambda cycle: 1 / math.sqrt(cycle))
    assert_follows(own, cyclic, 0, 60, total_steps=60)


def test_one_cycle_ends_where_pytorch_raises():
    theirs = optimizer()
    scheduler = lr_scheduler.OneCycleLR(theirs, 0.3, 20)
    (lr, _), _ = assert_follows(theirs, scheduler, 0, 20)
    with pytest.raises(ValueError, match="Tried to step"):
        stepped(theirs, scheduler, 1)
    assert np.isnan(lr(21))


@pytest.mark.parametrize("name", [*FORMS, *TOGETHER])
def test_a_saved_scheduler_is_the_live_one(name):
    theirs = optimizer()
    scheduler = (TOGETHER[name] if name in TOGETHER else _some(name))(theirs)
    stepped(theirs, scheduler, 8)
    lambdas = [one for one in _each(scheduler) if hasattr(one, "lr_lambdas")]
    functions = lambdas[0].lr_lambdas if lambdas else None
    saved = (_written(scheduler), pickle.loads(pickle.dumps(scheduler.state_dict())))
    given = schedule_from_torch(saved, theirs.state_dict()["param_groups"], lambdas=functions, total_steps=200)
    assert given == schedule_from_torch(scheduler, total_steps=200)


def _each(scheduler):
    yield scheduler
    for one in getattr(scheduler, "_schedulers", ()):
        yield from _each(one)


def _written(scheduler):
    inner = getattr(scheduler, "_schedulers", ())
    name = type(scheduler).__name__
    return f"{name}({', '.join(map(_written, inner))})" if inner else name


def test_every_scheduler_of_pytorch_is_known():
    named = {
        name
        for module in (lr_scheduler, swa_utils)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert named - {"LRScheduler"} == {*KNOWN}  # the base class schedules nothing


def test_fractions_of_an_epoch_become_steps():
    theirs, parts = optimizer(), 4
    scheduler = lr_scheduler.CosineAnnealingWarmRestarts(theirs, 3, 2, 1e-3)

    class Fractions:
        steps = 0

        def step(self):  # after each step of the optimizer, as PyTorch's documentation has it
            scheduler.step(self.steps / parts)
            self.steps += 1

    each = Fractions()
    stepped(theirs, each, 31)
    state = scheduler.state_dict()
    with pytest.raises(ValueError, match="stepped by fractions of an epoch; give T_cur, T_i and last_epoch in steps"):
        schedule_from_torch(("CosineAnnealingWarmRestarts", state), theirs.param_groups)
    state = state | {
        "T_i": state["T_i"] * parts,
        "T_cur": round(state["T_cur"] * parts),
        "last_epoch": round((state["last_epoch"] + state["T_cur"] % 1) * parts),
    }
    made = schedule_from_torch(("CosineAnnealingWarmRestarts", state), theirs.param_groups, offset=1)
    rates = stepped(theirs, each, 80)
    for index, (lr, _) in enumerate(made):
        assert_equal(lr(np.arange(31, 112)), rates[:, index, 0])


def test_a_users_scheduler_is_refused_by_name():
    class Mine(lr_scheduler.StepLR):
        pass

    with pytest.raises(ValueError, match="got .*Mine; any other one can be given as a LambdaLR"):
        schedule_from_torch(Mine(optimizer(), 3))


RNG = np.random.default_rng(0)
WEIGHTS, GRADIENTS = RNG.normal(size=(4, 3)), RNG.normal(size=(120, 4, 3))


class Run:
    """A PyTorch optimizer with a scheduler, on fixed gradients."""

    def __init__(self, name, options, make, steps_per_epoch=1):
        self.weight = torch.nn.Parameter(torch.tensor(WEIGHTS))
        self.optimizer = getattr(torch.optim, name)([("w", self.weight)], **options)
        self.scheduler, self.steps_per_epoch, self.steps = make(self.optimizer), steps_per_epoch, 0

    def step(self, metric=None):
        self.weight.grad = torch.tensor(GRADIENTS[self.steps])
        self.optimizer.step()
        self.steps += 1
        if self.steps % self.steps_per_epoch == 0:
            self.scheduler.step(*(() if metric is None else (metric,)))

    def params(self):
        return {"w": jnp.asarray(self.weight.detach().numpy().copy())}


CYCLED = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=100),
    "triangles": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 7, 5),
}


@pytest.mark.parametrize("start", [0, 13])
@pytest.mark.parametrize("cycle", CYCLED)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.9}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {}),
        ("NAdam", {}),
        ("RAdam", {}),
        ("Adamax", {}),
        ("RMSprop", {"momentum": 0.9}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_cycled_momenta_go_into_the_chain(name, options, cycle, start):
    theirs = Run(name, {"lr": 0.1, **options}, CYCLED[cycle])
    for _ in range(start):
        theirs.step()
    tx, params = from_torch(theirs.optimizer, schedulers=theirs.scheduler, report=None), theirs.params()
    steps = start if name == "SGD" else None
    state = import_state(tx, params, theirs.optimizer.state_dict(), names=lambda path: path, steps=steps)
    update = jax.jit(tx.update)
    for step in range(start, 98):
        theirs.step()
        updates, state = update({"w": jnp.asarray(GRADIENTS[step])}, state, params)
        params = optax.apply_updates(params, updates)
        # As for every optimizer here: 1e-16 per operation, over a hundred steps.
        np.testing.assert_allclose(params["w"], theirs.weight.detach(), rtol=TOLERANCE, atol=TOLERANCE)
    theirs.optimizer.load_state_dict(export_state(tx, params, state, theirs.optimizer, names=lambda path: path))


def test_two_groups_have_schedules_of_their_own_and_go_back():
    weights = {name: torch.nn.Parameter(torch.tensor(WEIGHTS)) for name in ("a", "b")}
    groups = [{"params": [("a", weights["a"])]}, {"params": [("b", weights["b"])], "lr": 0.03}]
    theirs = torch.optim.AdamW(groups, lr=0.1)
    scheduler = lr_scheduler.OneCycleLR(theirs, [0.1, 0.02], 60, max_momentum=[0.95, 0.9])

    def step(now):
        for index, weight in enumerate(weights.values()):
            weight.grad = torch.tensor(GRADIENTS[now + index])
        theirs.step()
        scheduler.step()

    def same():
        for name, weight in weights.items():
            np.testing.assert_allclose(params[name], weight.detach(), rtol=TOLERANCE, atol=TOLERANCE)

    for now in range(15):
        step(now)
    params = {name: jnp.asarray(weight.detach().numpy().copy()) for name, weight in weights.items()}
    said = []
    tx = from_torch(theirs, {"a": "0", "b": "1"}, schedulers=scheduler, report=said.append)
    assert said[0].count("OneCycleLR(epoch=15") == 4
    file, old = copy.deepcopy(theirs.state_dict()), copy.deepcopy(scheduler.state_dict())
    state = import_state(tx, params, file, names=lambda path: path)
    for now in range(15, 40):
        gradients = {name: jnp.asarray(GRADIENTS[now + index]) for index, name in enumerate(params)}
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        step(now)
    same()
    # Back: the scheduler takes the steps that were taken here, from its old state, and the optimizer the moments.
    theirs.load_state_dict(file)
    scheduler.load_state_dict(old)
    for _ in range(15, 40):
        scheduler.step()
    theirs.load_state_dict(export_state(tx, params, state, theirs, names=lambda path: path))
    for now in range(40, 58):
        gradients = {name: jnp.asarray(GRADIENTS[now + index]) for index, name in enumerate(params)}
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        step(now)
    same()


def test_a_scheduler_of_epochs_goes_on_in_the_middle_of_one():
    theirs = Run("AdamW", {"lr": 0.1}, lambda o: lr_scheduler.StepLR(o, 2, 0.5), steps_per_epoch=7)
    for _ in range(17):
        theirs.step()
    tx = from_torch(theirs.optimizer, schedulers=theirs.scheduler, steps_per_epoch=7, report=None)
    params = theirs.params()
    state = import_state(tx, params, theirs.optimizer.state_dict(), names=lambda path: path)
    for step in range(17, 60):
        theirs.step()
        updates, state = tx.update({"w": jnp.asarray(GRADIENTS[step])}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], theirs.weight.detach(), rtol=TOLERANCE, atol=TOLERANCE)


def test_skipped_steps_need_an_offset():
    theirs = Run("Adam", {"lr": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, 50))
    for step in range(20):
        theirs.step()
        if step in (3, 7, 9):  # as GradScaler does after an overflow
            theirs.scheduler.step()
    params, file = theirs.params(), theirs.optimizer.state_dict()
    tx = from_torch(theirs.optimizer, schedulers=theirs.scheduler, report=None)
    with pytest.raises(ValueError, match="taken 20 steps, and the scheduler of the chain 23, one each.*offset=-3"):
        import_state(tx, params, file, names=lambda path: path)
    tx = from_torch(theirs.optimizer, schedulers=theirs.scheduler, offset=-3, report=None)
    state = import_state(tx, params, file, names=lambda path: path)
    for step in range(20, 60):
        theirs.step()
        updates, state = tx.update({"w": jnp.asarray(GRADIENTS[step])}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], theirs.weight.detach(), rtol=TOLERANCE, atol=TOLERANCE)


@settings(max_examples=10)
@given(
    options=st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["min", "max"]),
            "factor": st.floats(0.1, 0.9),
            "patience": st.integers(0, 3),
            "threshold": st.sampled_from([0.0, 1e-4, 0.1]),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 3),
            "min_lr": st.sampled_from([0.0, 1e-3]),
        }
    ),
    start=st.integers(0, 50),
    is_scaled=st.booleans(),
    metrics=st.lists(st.integers(-20, 20).map(lambda tenths: tenths / 10), min_size=40, max_size=40),
)
def test_a_rate_on_a_plateau_goes_on_as_pytorchs(options, start, is_scaled, metrics):
    theirs = Run("SGD", {"lr": 0.1}, lambda o: lr_scheduler.ReduceLROnPlateau(o, **options), steps_per_epoch=3)
    warm_up = lr_scheduler.LinearLR(theirs.optimizer, 0.2, 1.0, 30) if is_scaled else None

    def step():
        theirs.weight.grad = torch.tensor(GRADIENTS[theirs.steps])
        theirs.optimizer.step()
        theirs.steps += 1
        if warm_up:
            warm_up.step()
        if theirs.steps % 3 == 0:
            theirs.scheduler.step(metrics[theirs.steps // 3 - 1])

    for _ in range(start):
        step()
    schedulers = [warm_up, theirs.scheduler] if warm_up else theirs.scheduler
    clocks = [1, 3] if warm_up else 3
    tx = from_torch(theirs.optimizer, schedulers=schedulers, steps_per_epoch=clocks, report=None)
    params = theirs.params()
    state = import_state(tx, params, theirs.optimizer.state_dict(), names=lambda path: path, steps=start)
    update = jax.jit(tx.update)
    for now in range(start, 115):
        metric = metrics[now // 3 - 1] if now >= 3 else math.inf
        updates, state = update({"w": jnp.asarray(GRADIENTS[now])}, state, params, value=metric)
        params = optax.apply_updates(params, updates)
        step()
    np.testing.assert_allclose(params["w"], theirs.weight.detach(), rtol=TOLERANCE, atol=TOLERANCE)
    theirs_now = theirs.scheduler.state_dict()
    ours_now = export_plateau(tx, state)
    assert {key: theirs_now[key] for key in ours_now if key != "_last_lr"} | {"_last_lr": None} == ours_now | {
        "_last_lr": None
    }
    np.testing.assert_allclose(ours_now["_last_lr"], theirs_now["_last_lr"], rtol=TOLERANCE)
    theirs.scheduler.load_state_dict(ours_now)
