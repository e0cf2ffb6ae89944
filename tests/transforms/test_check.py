"""Bad arguments are refused when a link or chain is built, and named in the message."""

import inspect
import math
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
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
    "eps": 1e-8,
    "weight_decay": 0.1,
    "learning_rate": 0.1,
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
    with pytest.raises(
        ValueError, match=rf"^{factory.__name__}: {argument} must be a number in [\[(]0, .*got ."
    ) as info:
        build(factory, argument, value)
    assert interval.text in str(info.value)


@pytest.mark.parametrize(("factory", "argument", "interval"), list(numeric_arguments()))
def test_a_fraction_ends_at_one(factory, argument, interval):
    if "1" not in interval.text:
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
        build(factory, argument, lambda count: 0.1)
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
