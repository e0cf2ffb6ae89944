"""What linkax knows of Optax's transformations: what its combinators hold, and what the states of its optimizers mean.

An Optax transformation is a pair of functions and nothing else. What it was made from is read off the variables that
the functions close over. Combinators that are not in this file, and those of other libraries, stay opaque: code that
would have to look inside one raises. Everything here is for Optax 0.2.8 and newer; `tests/transforms/test_foreign.py`
notices when Optax changes.
"""

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._describe import closed_over
from ._meaning import Count, Field, Moment, Own


class Held(NamedTuple):
    """What a foreign transformation holds; a tuple of transformations has a tuple of states. The rest: see `Slot`."""

    tx: optax.GradientTransformation | tuple[optax.GradientTransformation, ...]
    path: tuple[Any, ...]
    kind: Literal["group", "moment", "label", "around"] = "around"
    is_flat: bool = False
    is_live: bool | frozenset[Any] = False
    gates: bool = False


def _no_rebuild(changes: dict[str, Any]) -> Any:
    raise AssertionError(changes)  # nothing is held


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What is known about a transformation that was not built by a link factory.

    Attributes:
        name: The function that made it.
        hyperparams: The arguments of that function, as far as they are known, except transformations.
        defaults: The default values of these arguments.
        holds: The transformations inside it.
        rebuild: Builds it again with other transformations in some of its slots.
        state: What its state's fields mean, by field name, or by the tuple of names that leads to the field.
        out: What it returns, in words, with `{}` for its input; `None` if unknown.
        factor: What it multiplies by; `None` if unknown.
        is_opaque: Whether it holds something that cannot be looked into.
        labels: Which group each parameter belongs to: a tree, or a function from the parameters to one.
    """

    name: str
    hyperparams: Mapping[str, Any]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    holds: Mapping[str, Held] = dataclasses.field(default_factory=dict)
    rebuild: Callable[[dict[str, Any]], optax.GradientTransformation] = _no_rebuild
    state: Mapping[Any, Field] = dataclasses.field(default_factory=dict)
    out: str | None = None
    factor: float | Callable[..., Any] | None = None
    is_opaque: bool = False
    labels: Any = None

    @property
    def is_identity(self) -> bool:
        """Whether it is `optax.identity()`."""
        return self.name == "identity"


def anatomy_of(tx: optax.GradientTransformation) -> Anatomy:
    """What is known about a transformation, by the function that made it."""
    known: Any = getattr(tx.update, "_linkax", None)
    if hasattr(known, "anatomy"):  # a whole optimizer of ours, used as a link
        return known.anatomy()
    if hasattr(known, "hyperparams"):  # a link of ours of which only the update was taken
        return Anatomy(known.name, known.hyperparams)
    name = _maker(tx.update)
    if name == "with_extra_args_support":  # Optax's adapter: look at what it adapts
        return anatomy_of(closed_over(tx.update)["tx"])
    if isinstance(steps := getattr(tx.update, "__self__", None), optax.MultiSteps):
        return _multi_steps(steps)
    is_optax = (getattr(tx.update, "__module__", None) or "").partition(".")[0] == "optax"
    arguments, defaults = _arguments(name, tx)
    if is_optax and name in _COMBINATORS:
        held, rebuild, hidden, state, given = _COMBINATORS[name](closed_over(tx.init) | closed_over(tx.update))
        shown = {key: value for key, value in (given or arguments).items() if key not in hidden}
        labels = arguments.get("param_labels")
        return Anatomy(name, shown, defaults, held, rebuild, state, out="{}", factor=1.0, labels=labels)
    if is_optax and name in _LEAVES:
        return dataclasses.replace(_LEAVES[name], name=name, hyperparams=arguments, defaults=defaults)
    is_opaque = not isinstance(tx.update, types.FunctionType) or _holds_transformations(tx)
    return Anatomy(name, arguments, defaults, is_opaque=is_opaque)


def _maker(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__).partition(".<locals>")[0]


def _arguments(name: str, tx: optax.GradientTransformation) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments and defaults of the function that made a transformation, as far as they can be seen."""
    found = _closed_over_deeply(tx.init) | _closed_over_deeply(tx.update)
    maker = getattr(sys.modules.get(getattr(tx.update, "__module__", "") or ""), name, None)
    if not isinstance(maker, types.FunctionType):
        numbers = int | float | jax.Array | np.ndarray | optax.GradientTransformation | list | tuple
        return {key: value for key, value in closed_over(tx.update).items() if isinstance(value, numbers)}, {}
    parameters = inspect.signature(maker).parameters
    given = {key: found[key] for key in parameters if key in found}
    return given, {key: one.default for key, one in parameters.items() if one.default is not one.empty}


def _closed_over_deeply(function: Any, depth: int = 2) -> dict[str, Any]:
    """The variables that a function and its helpers close over; the function's own take precedence."""
    own = closed_over(function)
    helpers = [value for value in own.values() if isinstance(value, types.FunctionType)] if depth else []
    found: dict[str, Any] = {}
    for helper in helpers:
        if helper.__module__ == getattr(function, "__module__", None):
            found |= _closed_over_deeply(helper, depth - 1)
    return found | own


def _holds_transformations(tx: optax.GradientTransformation) -> bool:
    """Whether a transformation was made from others."""

    def is_one(value: Any, depth: int = 2) -> bool:
        if isinstance(value, optax.GradientTransformation | optax.MultiSteps):
            return True
        if isinstance(value, Mapping):
            value = tuple(value.values())
        if isinstance(value, list | tuple) and depth:
            return any(is_one(item, depth - 1) for item in value)
        return isinstance(value, types.MethodType) or (
            isinstance(value, types.FunctionType) and value.__name__.removesuffix("_fn") in ("init", "update")
        )

    return any(map(is_one, (_closed_over_deeply(tx.init) | _closed_over_deeply(tx.update)).values()))


class _Combinator(NamedTuple):
    """What a combinator holds, how to rebuild it, which arguments not to show, and what its state means."""

    holds: dict[str, Held]
    rebuild: Callable[[dict[str, Any]], Any]
    hidden: set[str]
    state: dict[Any, Field] = {}  # noqa: RUF012
    arguments: dict[str, Any] | None = None  # if the functions name them differently from the signature


def _chain(given: Mapping[str, Any]) -> _Combinator:
    functions = zip(given["init_fns"], given["update_fns"])
    links = tuple(optax.GradientTransformationExtraArgs(*pair) for pair in functions)

    def rebuild(changes: dict[str, Any]) -> Any:
        new = changes["inner"]
        return optax.chain(*getattr(new, "links", (new,))) if getattr(new, "links", None) != () else optax.identity()

    return _Combinator({"inner": Held(links, ())}, rebuild, {"args"})


def _named_chain(given: Mapping[str, Any]) -> _Combinator:
    pairs = list(given["transforms"])
    held = {name: Held(tx, (name,), "label") for name, tx in pairs}

    def rebuild(changes: dict[str, Any]) -> Any:
        return optax.named_chain(*((name, changes.get(name, tx)) for name, tx in pairs))

    return _Combinator(held, rebuild, {"args"})


def _partition(given: Mapping[str, Any]) -> _Combinator:
    groups, labels = dict(given["transforms"]), given["param_labels"]
    extra = given["mask_compatible_extra_args"]
    held = {str(name): Held(tx, ("inner_states", name, "inner_state"), "group") for name, tx in groups.items()}

    def rebuild(changes: dict[str, Any]) -> Any:
        new = {name: changes.get(str(name), tx) for name, tx in groups.items()}
        return optax.partition(new, labels, mask_compatible_extra_args=extra)

    return _Combinator(held, rebuild, {"transforms"})


def _around(
    make: Callable[..., Any],
    argument: str,
    *others: str,
    path: tuple[str, ...] = ("inner_state",),
    is_flat: bool = False,
    gates: bool = False,
    **state: Field,
) -> Callable[[Mapping[str, Any]], _Combinator]:
    """A combinator that wraps one transformation, its argument `argument`."""

    def read(given: Mapping[str, Any]) -> _Combinator:
        rest = {name: given[name] for name in others}

        def rebuild(changes: dict[str, Any]) -> Any:
            return make(changes["inner"], **rest)

        return _Combinator(
            {"inner": Held(given[argument], path, is_flat=is_flat, gates=gates)}, rebuild, {argument}, dict(state)
        )

    return read


def _masked(given: Mapping[str, Any]) -> _Combinator:
    extra = closed_over(given["maybe_mask_values"])["mask_compatible_extra_args"]

    def rebuild(changes: dict[str, Any]) -> Any:
        return optax.masked(changes["inner"], given["mask"], mask_compatible_extra_args=extra)

    return _Combinator({"inner": Held(given["inner"], ("inner_state",))}, rebuild, {"inner"})


def _inject_hyperparams(given: Mapping[str, Any]) -> _Combinator:
    scheduled = given["sched_hps"]
    # As Optax builds it at every step: with arrays, so that a 0 is kept too.
    numbers = {name: jnp.asarray(value) for name, value in given["numeric_hps"].items()}
    now = {name: schedule(schedule.init()) for name, schedule in scheduled.items()}
    inner = given["inner_factory"](**given["other_hps"], **numbers, **now)

    def rebuild(changes: dict[str, Any]) -> Any:
        del changes
        raise ValueError(
            "chain: what optax.inject_hyperparams holds is rebuilt at every step, so its links cannot be changed; "
            "change the factory that was passed to it, or wrap a chain in linkax.live"
        )

    held = {"inner": Held(inner, ("inner_state",), is_live=True)}
    state: dict[Any, Field] = {"count": Count(is_needed=False)}
    for name in (*numbers, *scheduled):
        state["hyperparams", name] = Own(is_value=True, is_scheduled=name in scheduled)
    for name, schedule in scheduled.items():
        if isinstance(schedule, optax.schedules.WrappedSchedule):  # a function of the step count alone
            state["hyperparams_states", name, "count"] = Count()
    arguments = {name: getattr(schedule, "schedule_fn", schedule) for name, schedule in scheduled.items()}
    others = {name: value for name, value in given["other_hps"].items() if value is not None and value is not False}
    return _Combinator(held, rebuild, set(), state, {**given["numeric_hps"], **arguments, **others})


def _multi_steps(steps: optax.MultiSteps) -> Anatomy:
    every: Any = vars(steps)["_every_k_schedule"]
    every = closed_over(every).get("every_k_schedule", every)  # Optax wraps an integer in a function
    arguments = {
        "every_k_schedule": every,
        "use_grad_mean": vars(steps)["_use_grad_mean"],
        "should_skip_update_fn": vars(steps)["_should_skip_update_fn"],
        "accumulator_dtype": vars(steps)["_accumulator_dtype"],
    }
    skip = arguments["should_skip_update_fn"]
    if _maker(skip).startswith("MultiSteps"):  # Optax's own, which never skips
        del arguments["should_skip_update_fn"]
    defaults = {"use_grad_mean": True, "accumulator_dtype": optax.MultiSteps(steps.inner_opt, 1)._accumulator_dtype}

    def rebuild(changes: dict[str, Any]) -> Any:
        return optax.MultiSteps(changes["inner"], **arguments).gradient_transformation()

    return Anatomy(
        "MultiSteps",
        arguments,
        defaults,
        {"inner": Held(steps.inner_opt, ("inner_opt_state",), gates=True)},
        rebuild,
        {
            "gradient_step": Count(is_inside=True, is_needed=callable(every)),
            "mini_step": Own(if_unchanged=True),
            "acc_grads": Moment("accumulated {}", if_unchanged=True),
            "skip_state": Own(if_unchanged=True),
        },
        out="{}",
        factor=1.0,
    )


_CONDITION = ("should_transform_fn", "forward_extra_args")
_COMBINATORS: dict[str, Callable[[Mapping[str, Any]], _Combinator]] = {
    "chain": _chain,
    "named_chain": _named_chain,
    "partition": _partition,
    "masked": _masked,
    "apply_if_finite": _around(optax.apply_if_finite, "inner", "max_consecutive_errors", gates=True),
    "conditionally_transform": _around(optax.conditionally_transform, "inner", *_CONDITION, gates=True, step=Count()),
    "conditionally_mask": _around(optax.conditionally_mask, "inner", *_CONDITION, gates=True, step=Count()),
    "inject_hyperparams": _inject_hyperparams,
    "flatten": _around(optax.flatten, "inner", path=(), is_flat=True),
    "lookahead": _around(
        optax.lookahead,
        "fast_optimizer",
        "sync_period",
        "slow_step_size",
        "reset_state",
        path=("fast_state",),
        steps_since_sync=Own(if_unchanged=True),
    ),
}


def _leaf(out: str | None = "{}", factor: Any = 1.0, **state: Field) -> Anatomy:
    return Anatomy("", {}, state=state, out=out, factor=factor)


def _mean(of: str, decay: str = "decay", **more: Any) -> Moment:
    """An average; `decay` is Optax's name for the weight of the old value."""
    return Moment(of, lambda **given: 1 - given[decay], lambda **_: True, **more)


def _square_avg(slot: str, **more: Any) -> Moment:
    return Moment("mean square of {}", power=2, torch="square_avg", slot=slot, **more)


_MU = _mean("average of {}", "b1", torch="exp_avg", slot="first")
_NU = Moment("mean square of {}", power=2, torch="exp_avg_sq", slot="second")
_LEAVES: dict[str, Anatomy] = {
    **dict.fromkeys(
        (
            "identity",
            "clip",
            "clip_by_global_norm",
            "clip_by_block_rms",
            "adaptive_grad_clip",
            "centralize",
            "zero_nans",
            "keep_params_nonnegative",
            "add_decayed_weights",
        ),
        _leaf(),
    ),
    "set_to_zero": _leaf(factor=0.0),
    "add_noise": _leaf(count=Count()),
    "scale": _leaf(factor=lambda step_size, **_: step_size),
    "scale_by_schedule": _leaf(factor=None, count=Count()),
    "reduce_on_plateau": _leaf(factor=None),
    "trace": _leaf("average of {}", trace=Moment("average of {}", torch="momentum_buffer")),
    "ema": _leaf("average of {}", count=Count(), ema=_mean("average of {}")),
    "scale_by_adam": _leaf("direction of {}", count=Count(), mu=_MU, nu=_NU),
    "scale_by_amsgrad": _leaf(
        "direction of {}",
        count=Count(),
        mu=_MU,
        nu=_NU,
        nu_max=Moment("maximum of corrected mean square of {}", power=2, slot="second"),
    ),
    "scale_by_rms": _leaf("direction of {}", nu=_square_avg("second alone"), count=Count()),
    "scale_by_stddev": _leaf(
        "direction of {}",
        mu=_mean("average of {}", torch="grad_avg", slot="second alone", is_subtracted=True),
        nu=_square_avg("second alone", is_subtracted=True),
        count=Count(),
    ),
    "scale_by_rss": _leaf(
        "direction of {}",
        sum_of_squares=Moment("sum of squares of {}", power=2, torch="sum", slot="second alone"),
    ),
    "scale_by_adadelta": _leaf(
        "step of direction of {}",
        e_g=_square_avg("second alone"),
        e_x=Moment(
            "mean square of step of direction of {}", power=0, torch="acc_delta", is_nonnegative=True, is_fed_back=True
        ),
    ),
}
