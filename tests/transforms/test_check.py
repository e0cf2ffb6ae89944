"""Bad arguments are refused when a link or chain is built, and named in the message."""

import functools
import inspect
import math
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linkax.chains
import linkax.transforms
from linkax.transforms._check import Interval, checked, is_absent

MODULES = (linkax.transforms, linkax.chains)
FACTORIES = {
    name: value
    for module in MODULES
    for name, value in vars(module).items()
    if inspect.isfunction(value) and hasattr(value, "__wrapped__")
}
REQUIRED = {
    "decay": 0.9,
    "blend": 0.9,
    "initial_step_size": 0.1,
    "eps": 1e-8,
    "threshold": 1.0,
    "weight_decay": 0.1,
    "learning_rate": 0.1,
    "max_norm": 1.0,
    "clip_value": 1.0,
    "first": linkax.transforms.scale_by_momentum(0.9),
    "second": linkax.transforms.mean_square(0.9),
}

COMPANIONS = {  # without which an argument means nothing
    ("scale_by_nesterov", "momentum_decay"): {"form": "corrected"},
    ("decoupled_weight_decay", "peak_learning_rate"): {"multiplied_by": "schedule"},
}


def numeric_arguments():
    for name, factory in FACTORIES.items():
        hints = get_type_hints(factory, include_extras=True)
        for argument in inspect.signature(factory).parameters:
            intervals = [x for x in _metadata(hints.get(argument)) if isinstance(x, Interval)]
            if intervals:
                yield pytest.param(factory, argument, intervals[0], id=f"{name}-{argument}")


def _metadata(hint):
    own = getattr(hint, "__metadata__", ())
    return own + sum((_metadata(option) for option in getattr(hint, "__args__", ()) or ()), ())


def build(factory, argument, value):
    required = {
        name: REQUIRED[name]
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is parameter.empty
    }
    return factory(**{**required, **COMPANIONS.get((factory.__name__, argument), {}), argument: value})


def test_every_factory_is_found():
    assert {"adam", "sgd", "nadam", "scale_by_momentum", "moment_ratio", "decoupled_weight_decay"} <= FACTORIES.keys()
    assert len(list(numeric_arguments())) > 50


@pytest.mark.parametrize("value", [-1.0, -1e-300, math.nan, math.inf, -math.inf, np.float32(-1), jnp.float32(jnp.nan)])
@pytest.mark.parametrize(("factory", "argument", "interval"), list(numeric_arguments()))
def test_a_number_outside_its_range_is_named(factory, argument, interval, value):
    if float(value) in interval:
        assert (value, interval.text) == (math.inf, "[0, inf]")
        build(factory, argument, value)
        return
    with pytest.raises(
        ValueError, match=rf"^{factory.__name__}: {argument} must be a number in [\[(][0-9], .*got ."
    ) as info:
        build(factory, argument, value)
    assert interval.text in str(info.value)


@pytest.mark.parametrize(("factory", "argument", "interval"), list(numeric_arguments()))
def test_a_fraction_ends_at_one(factory, argument, interval):
    if 1.5 in interval:
        build(factory, argument, 1.5)  # not a fraction: 1.5 is fine
        return
    for value in (1.5, 1.0 + 1e-15, *([1.0] if interval.text.endswith(")") else [])):
        with pytest.raises(ValueError, match=f"^{factory.__name__}: {argument} must be"):
            build(factory, argument, value)


@pytest.mark.parametrize("value", ["0.1", 1j, True, [0.1], jnp.ones((), bool), jnp.ones((), complex)])
@pytest.mark.parametrize(("factory", "argument", "interval"), list(numeric_arguments()))
def test_what_is_no_number_is_refused(factory, argument, interval, value):
    with pytest.raises(TypeError, match=f"^{factory.__name__}: {argument} must be a number in"):
        build(factory, argument, value)


@pytest.mark.parametrize(("factory", "argument", "interval"), list(numeric_arguments()))
def test_an_array_is_refused(factory, argument, interval):
    with pytest.raises(ValueError, match=rf"^{factory.__name__}: {argument} must be .* got an array of shape \(2,\)"):
        build(factory, argument, jnp.full(2, 0.5))


@pytest.mark.parametrize(("factory", "argument", "interval"), list(numeric_arguments()))
def test_tracers_pass(factory, argument, interval):
    # `sgd(nesterov=True)` and the like are checked elsewhere; a tracer's value is not known, so nothing can be wrong.
    jax.jit(lambda value: (build(factory, argument, value), None)[1])(-1.0)


@pytest.mark.parametrize(("factory", "argument", "interval"), list(numeric_arguments()))
def test_schedules_pass_where_they_may(factory, argument, interval):
    if interval.schedule:
        build(factory, argument, lambda count: 0.1 if 0.1 in interval else 1.1)
    else:
        with pytest.raises(TypeError, match=f"^{factory.__name__}: {argument} must be"):
            build(factory, argument, lambda count: 0.1)


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.array(0.5), np.float32(0.5), 0])
def test_numbers_are_kept_as_python_numbers(value):
    kept = linkax.transforms.scale_by_momentum(value).hyperparams["decay"]
    assert type(kept) in (int, float)
    assert kept == value


def test_flags_and_choices():
    with pytest.raises(TypeError, match="^adam: amsgrad must be True or False, got 1$"):
        linkax.chains.adam(amsgrad=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^scale_by_momentum: first_step must be 'zeros' or 'gradient', got 'one'$"):
        linkax.transforms.scale_by_momentum(0.9, first_step="one")  # type: ignore[arg-type]


def test_unknown_and_missing_arguments_are_named():
    with pytest.raises(TypeError, match="^adam: got an unexpected keyword argument 'beta1'; its arguments are .*b1"):
        linkax.chains.adam(beta1=0.9)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="^scale_by_momentum: missing a required argument: 'decay'"):
        linkax.transforms.scale_by_momentum()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("factory", "arguments", "meant"),
    [
        ("adam", {"lr": 0.1}, "learning_rate"),
        ("adam", {"betas": (0.9, 0.99)}, "b1 and b2"),
        ("adam", {"beta_1": 0.9, "epsilon": 1e-8}, "b1 and eps"),
        ("adam", {"lr": 0.1, "betas": (0.9, 0.99)}, "learning_rate, b1 and b2"),
        ("adam", {"learing_rate": 0.1}, "learning_rate"),
        ("adam", {"alpha": 0.1}, "learning_rate"),
        ("adamw", {"mask": None}, "weight_decay_mask"),
        ("rmsprop", {"alpha": 0.1}, "decay"),
        ("rmsprop", {"rho": 0.1}, "decay"),
        ("sparse_adam", {"step_size": 0.1}, "learning_rate"),
        ("scale_by_momentum", {"momentum": 0.9}, "decay"),
        ("scale_by_learning_rate", {"lr": 0.9}, "learning_rate"),
    ],
)
def test_names_from_elsewhere_get_a_hint(factory, arguments, meant):
    with pytest.raises(TypeError, match=rf"^{factory}: .*; its arguments are .*; did you mean {meant}\?$"):
        FACTORIES[factory](**arguments)


def test_what_is_like_nothing_gets_no_hint():
    with pytest.raises(TypeError, match="^adam: got an unexpected keyword argument 'foreach'; .*state$"):
        linkax.chains.adam(foreach=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "nadam", "sparse_adam"])
def test_only_the_learning_rate_needs_no_name(name):
    with pytest.raises(TypeError, match=f"^{name}: too many positional arguments; its arguments are learning_rate"):
        FACTORIES[name](0.1, 0.9)


class Decay:
    """A schedule as an object."""

    def __init__(self, start: float):
        self.start = start

    def __call__(self, count, unused=None):
        return self.start / (1 + count)


WRONG_SCHEDULES = {
    "a factory with several arguments": (
        optax.cosine_decay_schedule,
        TypeError,
        "got cosine_decay_schedule, which takes init_value, decay_steps, alpha, exponent instead of the step count "
        r"alone; call it: cosine_decay_schedule\(...\)$",
    ),
    "a factory with one": (
        optax.constant_schedule,
        TypeError,
        r"got constant_schedule, which returns a function and not a number; call it: constant_schedule\(...\)$",
    ),
    "a class": (Decay, TypeError, r"got Decay, which returns a function and not a number; call it: Decay\(...\)$"),
    "an optimizer": (optax.sgd, TypeError, "got sgd, which returns GradientTransformationExtraArgs"),
    "no arguments": (lambda: 0.1, TypeError, "got <lambda>, which takes nothing instead of the step count alone$"),
    "an array": (lambda count: jnp.full(2, 0.1), ValueError, r"which returns an array of shape \(2,\)$"),
    "a tuple": (lambda count: (0.1,), TypeError, r"which returns \(0.1,\)$"),
    "nothing": (lambda count: None, TypeError, "which returns None$"),
    "text": (lambda count: "0.1", TypeError, "which returns '0.1'$"),
    "a truth value": (lambda count: True, TypeError, "which returns True$"),
    "an array of truth": (lambda count: count > 0, TypeError, "which returns an array of dtype bool$"),
    "a complex number": (lambda count: 1j, TypeError, "which returns 1j$"),
    "a complex array": (lambda count: 1j * count, TypeError, "which returns an array of dtype complex64$"),
    "an error": (lambda count: 1 / 0, ValueError, "which fails at step 0: ZeroDivisionError: division by zero$"),
    "a negative number": (lambda count: -0.1, ValueError, "which starts at -0.1$"),
    "not a number": (lambda count: math.nan, ValueError, "which starts at nan$"),
}


@pytest.mark.parametrize("case", WRONG_SCHEDULES)
@pytest.mark.parametrize("inside_jit", [False, True], ids=["outside", "inside_jit"])
def test_wrong_schedules_are_refused_when_a_link_is_built(case, inside_jit):
    schedule, error, message = WRONG_SCHEDULES[case]
    for factory, argument in (
        ("adam", "learning_rate"),
        ("adam", "b1"),
        ("scale_by_rms", "decay"),
        ("sgd", "momentum"),
    ):

        def build_it(_=None, factory=factory, argument=argument):
            FACTORIES[factory](**{argument: schedule})

        # (JAX adds lines of its own to what is raised while it traces.)
        with pytest.raises(
            error, match=rf"(?m)^{factory}: {argument} must be a number in .* or a schedule, .*{message}"
        ):
            jax.jit(build_it)(1.0) if inside_jit else build_it()


def test_a_first_value_is_checked_where_it_is_known_without_computing_it():
    with pytest.raises(ValueError, match="adam: b1 must be .* or a schedule, got .*, which starts at 1.0$"):
        linkax.chains.adam(b1=optax.constant_schedule(1.0))
    with pytest.raises(ValueError, match="adam: b1 must be .* or a schedule, got .*, which starts at 2.0$"):
        linkax.chains.adam(b1=lambda count: 2.0 if count < 3 else 0.5)
    counts = []
    linkax.chains.adam(lambda count: (counts.append(count), -1.0 * count)[1], b1=optax.linear_schedule(-1.0, 0.5, 9))
    assert all(isinstance(count, jax.core.Tracer) for count in counts)


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (lambda s: linkax.transforms.scale_by_nesterov(s, momentum_decay=0.1), "momentum_decay is only for form='corr"),
        (lambda s: linkax.transforms.decoupled_weight_decay(s, multiplied_by="schedule"), "peak_learning_rate must be"),
        (
            lambda s: linkax.transforms.moment_ratio(optax.identity(), linkax.transforms.scale_by_momentum(0.9), s),
            "second must contain mean_square",
        ),
    ],
)
def test_what_else_is_wrong_is_refused_when_a_link_with_a_schedule_is_built(build_it, message):
    with pytest.raises(ValueError, match=message):
        build_it(lambda count: 0.5)


def _take(rate: linkax.transforms.Rate):
    return rate


@pytest.mark.parametrize(
    "schedule",
    [
        lambda count: 0.1 if count < 3 else 0.01,
        lambda count: [0.1, 0.2][int(count)],
        lambda count: np.interp(count, [0, 10], [0.1, 0.2]),
        lambda count: 1,
        lambda count: count,
        lambda count: np.float64(0.1),
        lambda count: jnp.asarray(0.1, jnp.bfloat16),
        jnp.cos,
        Decay(0.5),
        functools.partial(lambda scale, count: scale * count, 0.5),
    ],
)
def test_other_schedules_pass_inside_and_outside_jit(schedule):
    linkax.chains.sgd(schedule)
    jax.jit(lambda x: (checked(_take)(schedule), x)[1])(1.0)


def test_a_schedule_of_traced_numbers_passes():
    def loss(rate):
        tx = linkax.chains.sgd(optax.exponential_decay(rate, 10, 0.5), momentum=lambda count: rate)
        return tx.update(jnp.ones(()), tx.init(jnp.zeros(())))[0]

    np.testing.assert_allclose(jax.grad(loss)(0.5), -1.0, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(loss)(jnp.array([0.5, 0.25])), [-0.5, -0.25], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(loss)(0.5), -0.5, rtol=1e-6)


def test_constants_are_read_only_once():
    assert linkax.transforms.scale_by_rss().constants == ("initial_accumulator_value",)
    assert linkax.transforms.scale_by_rms(0.9).constants == ()


def test_a_half_precision_hyperparameter_is_explained():
    with pytest.raises(ValueError, match=r"got 1\.0 \(as bfloat16: give hyperparameters in float32"):
        linkax.chains.adam(b2=jnp.asarray(0.999, jnp.bfloat16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nesterov": True}, "momentum above 0"),
        ({"nesterov": True, "momentum": jnp.float32(0)}, "momentum above 0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "no dampening"),
    ],
)
def test_nesterov_needs_momentum_and_no_dampening(arguments, message):
    with pytest.raises(ValueError, match=message):
        linkax.chains.sgd(0.1, **arguments)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5), (-0.1, 1)),
        ("[0, 1]", (0, 1), (1.01, -1e-9)),
        ("(0, inf)", (1e-9, 1e9), (0, math.inf, math.nan)),
    ],
)
def test_interval(text, inside, outside):
    assert all(value in Interval(text) for value in inside)
    assert not any(value in Interval(text) for value in outside)


def test_only_a_plain_zero_is_absent():
    assert is_absent(0)
    assert is_absent(0.0)
    assert is_absent(False)
    assert not is_absent(1e-300)
    assert not is_absent(jnp.float32(0))  # or inject_hyperparams would see another chain at init than under jit
    assert not is_absent(lambda count: 0.0)


def test_checked_keeps_the_signature():
    @checked
    def function(a: linkax.transforms.Fraction, *, flag: bool = False) -> float:
        """Doc."""
        return a + flag  # type: ignore[return-value]

    assert list(inspect.signature(function).parameters) == ["a", "flag"]
    assert function(0.5, flag=True) == 1.5
    assert function.__doc__ == "Doc."
