"""Hyperparameters that can be read and set during training."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linkax.transforms import Count, Link, Own
from linkax.transforms._check import Number, is_traced
from linkax.transforms._describe import describe
from linkax.transforms._foreign import Anatomy, Held
from linkax.transforms._leaves import at_step, increment
from linkax.transforms._link import recall, refuse_setting, remember

from ..algebra._chain import Chain, chain
from ..algebra._structure import Path, explain_state, get_at, part_at, parts, rewrite
from ._devices import put_like
from ._knobs import Knob, Panel, Target


class LiveState(NamedTuple):
    """State of a `Live` optimizer."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: updates made, for users to read
    hyperparams: dict[str, jax.Array]  # () float: the live values, as the last step used them
    inner: Any  # the chain's state


class Live(optax.GradientTransformationExtraArgs):
    """A chain some of whose hyperparameters are part of its state, so that they can be read and set; see `live`.

    Attributes:
        init: Maps the parameters to `LiveState(count, hyperparams, inner)`.
        update: Maps (updates, state, parameters) to (updates, state), as in Optax.
        chain: The chain, with the initial values of the hyperparameters.
        names: The live hyperparameters.
    """

    chain: Chain
    names: tuple[str, ...]
    _found: Mapping[str, Knob]

    def __new__(cls, init: optax.TransformInitFn, update: optax.TransformUpdateExtraArgsFn) -> Any:
        # For other functions it is unknown which of their numbers are live.
        return recall(cls, init, update) or Chain(init, update)

    @classmethod
    def _make(cls, iterable: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cls(*iterable)

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_setting(self, name, "tx.set_hyperparams(state, ...) makes a state with other values")

    def anatomy(self) -> Anatomy:
        """What it is when used as a link; see `linkax.transforms._foreign`."""
        return Anatomy(
            "live",
            {"names": list(self.names)},
            holds={"inner": Held(self.chain, ("inner",), is_live=self._settable())},
            rebuild=lambda changes: live(changes["inner"], *self.names),
            state={
                "count": Count(is_needed=False),
                **{
                    ("hyperparams", name): Own(is_value=True, is_scheduled=callable(knob.value))
                    for name, knob in self._found.items()
                },
            },
            out="{}",
            factor=1.0,
        )

    def _settable(self) -> frozenset[tuple[Link, str]]:
        numbers = [knob for knob in self._found.values() if not callable(knob.value)]
        return frozenset((part_at(self.chain.links, path), name) for knob in numbers for path, name in knob.targets)

    def _check_state(self, method: str, state: Any) -> None:
        """Raises if it is not a state of this optimizer."""
        given = set(state.hyperparams) if isinstance(state, LiveState) else None
        if given != set(self.names):
            got = (
                type(state).__name__
                if given is None
                else f"one in which {', '.join(sorted(given)) or 'nothing'} is live"
            )
            raise ValueError(
                f"Live.{method}: state must be one that this optimizer's init has made, with {', '.join(self.names)} "
                f"live, got {got}; linkax.migrate converts the state of one optimizer into that of another"
            )

    def hyperparams(self, state: LiveState) -> dict[str, Any]:
        """Returns the values of the live hyperparameters: those that are set and, for schedules, the last step's.

        They are Python numbers; inside `jax.jit`, and for batched states (`jax.vmap`), arrays.

        Example:
            >>> import jax.numpy as jnp
            >>> from linkax import live, sgd
            >>> tx = live(sgd(0.5))
            >>> tx.hyperparams(tx.init(jnp.ones(2)))
            {'learning_rate': 0.5}
        """
        self._check_state("hyperparams", state)
        values = {name: jnp.asarray(state.hyperparams[name]) for name in self.names}
        return {name: value if is_traced(value) or value.ndim else float(value) for name, value in values.items()}

    def set_hyperparams(
        self, state: LiveState, values: Mapping[str, Number] | None = None, **more: Number
    ) -> LiveState:
        """Returns the state with some live hyperparameters set; a compiled step takes it without recompiling.

        The new values are on the devices on which the old ones are, in all processes if there are several.

        Args:
            state: The optimizer's state. Not changed.
            values: New values by name, for names with dots: `{"head.learning_rate": 1e-3}`.
            **more: New values by name: `learning_rate=1e-3`.

        Raises:
            ValueError: If a name is not live, its hyperparameter is a schedule, or the value is outside its range.

        Example:
            >>> import jax.numpy as jnp
            >>> from linkax import live, sgd
            >>> tx = live(sgd(0.5))
            >>> state = tx.set_hyperparams(tx.init(jnp.ones(2)), learning_rate=0.25)
            >>> updates, state = tx.update(jnp.ones(2), state)
            >>> print(updates)
            [-0.25 -0.25]
        """
        self._check_state("set_hyperparams", state)
        new = {**(values or {}), **more}
        for name in new:
            if name not in self._found:
                raise ValueError(
                    f"Live.set_hyperparams: {name!r} must be one of the live hyperparameters {', '.join(self.names)}"
                )
            if callable(new[name]):
                raise ValueError(f"Live.set_hyperparams: {name!r} must be a number, got {describe(new[name])}")
            if callable(self._found[name].value):
                schedule = describe(self._found[name].value)
                raise ValueError(
                    f"Live.set_hyperparams: {name!r} must not be a schedule, got {schedule}; build the chain with a "
                    "number to set it from outside"
                )
        _with_values(self.chain, self._found, new)  # the links check the ranges
        # (Flax NNX wraps the arrays of a state; a tree map keeps the wrappers.)
        arrays = {
            name: jax.tree.map(lambda old, value=value: put_like(value, old), state.hyperparams[name])
            for name, value in new.items()
        }
        return state._replace(hyperparams={**state.hyperparams, **arrays})

    def __repr__(self) -> str:
        return f"{self.chain!r}\nlive: {', '.join(self.names)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Live) and (self.chain, self.names) == (other.chain, other.names)

    def __ne__(self, other: object) -> bool:  # tuple defines its own
        return not self == other

    def __hash__(self) -> int:
        return hash((Live, self.chain, self.names))

    def __reduce__(self) -> tuple:
        return live, (self.chain, *self.names)


def live(tx: optax.GradientTransformation, *names: str) -> Live:
    """Makes hyperparameters of a chain part of its state, so that they can be read and set during training.

    Values in the state are arrays, so setting one does not recompile anything; a schedule's value can be read. The
    updates are those of the chain itself with the values at that step.

    A name may stand for several numbers that only make sense together. `"b1"` and `"b2"` are the decays of the two
    moments of a `moment_ratio` together with their bias corrections. `"momentum"` is the decay of an average outside a
    ratio; the dampening changes with it if the link is an average. Bias correction keeps the product of the decays so
    far, so it is exact whatever has been set.

    Args:
        tx: A chain, such as `adamw(1e-3)` or `param_groups(...)`, or an Optax wrapper around one, such as
            `optax.MultiSteps(adamw(1e-3), 4)`.
        *names: The hyperparameters by name, such as `"learning_rate"` or `"b1"`, prefixed with as many of the
            surrounding links and groups as make the name unambiguous: `"head.learning_rate"`. Of several numbers that
            belong together, the full name selects a single one: `"first.bias_correction.decay"`. By default all
            learning rates.

    Returns:
        A `Live`, an Optax transformation with the methods `hyperparams(state)` and `set_hyperparams(state, ...)`.

    Raises:
        ValueError: If a name stands for no hyperparameter that is a number or a schedule, or for several; if two names
            stand for the same number, or a number is live already, or inside `optax.inject_hyperparams`.
        TypeError: If `tx` is not a transformation, or a name is not a string.

    Differences:
        `optax.inject_hyperparams(adamw)(...)` puts every number into the state, which loses the digits that links keep
        of a β known as a Python number. It takes the arguments of a function, `live` takes any chain. PyTorch:
        `optimizer.param_groups[0]["lr"] = ...`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from linkax import adamw, live
        >>> tx = live(adamw(1e-3), "learning_rate", "b1", "weight_decay")
        >>> params = jnp.ones(2)
        >>> step = jax.jit(tx.update)
        >>> updates, state = step(params, tx.init(params), params)
        >>> state = tx.set_hyperparams(state, learning_rate=0.0, b1=0.5, weight_decay=0.1)
        >>> updates, state = step(params, state, params)
        >>> print(updates)
        [-0. -0.]

    Source:
        `optax.inject_hyperparams`.
    """
    its = chain(tx)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"live: names must be strings, each a separate argument, got {name!r}")
    panel, taken = Panel(its.links), dict(live_already(its.links))
    if names:
        found = {name: panel.find(name) for name in names}
    else:
        found = {name: one for name, one in panel.named("learning_rate") if one.targets[0] not in taken}
        if not found and any(argument == "learning_rate" for _, argument in taken):
            raise ValueError("live: names must be given, because the chain's learning rates are live already, got none")
        if not found:
            panel.find("learning_rate")  # raises, and says what there is instead
    _check(its, panel, found, taken)
    numbers = {name: knob for name, knob in found.items() if not callable(knob.value)}
    schedules = {name: knob for name, knob in found.items() if callable(knob.value)}

    def init(params: Any) -> LiveState:
        count = jnp.zeros((), jnp.int32)
        # The widest real dtype enabled in JAX: hyperparameters are never rounded to the dtype of the parameters.
        values = {name: jnp.asarray(at_step(knob.value, count), jnp.result_type(float)) for name, knob in found.items()}
        return LiveState(count, values, with_numbers(values).init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        self._check_state("update", state)
        try:
            values = {**state.hyperparams, **{name: at_present(name, state) for name in schedules}}
            updates, inner = with_numbers(values).update(updates, state.inner, params, **extra_args)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            explain_state("Live.update", error, self, state, updates if params is None else params)
            raise
        return updates, LiveState(increment(state.count), values, inner)

    def with_numbers(values: Mapping[str, jax.Array]) -> Chain:
        return _with_values(its, numbers, {name: values[name] for name in numbers})

    def at_present(name: str, state: LiveState) -> jax.Array:
        """A schedule's value at the next step. Its link has its own count, because wrappers may skip steps."""
        (path, _), *_ = schedules[name].targets
        value = at_step(schedules[name].value, _state_at(its.links, path, state.inner).count)
        return jnp.asarray(value, state.hyperparams[name].dtype)

    self = optax.GradientTransformationExtraArgs.__new__(Live, init, update)
    vars(self).update(chain=its, names=tuple(found), _found=found)
    remember(self)
    return self


def live_already(links: tuple[Link, ...]) -> Iterator[tuple[Target, str]]:
    """The numbers that are live in a `Live` among the links, and their names there."""
    for part in parts(links):
        inner = getattr(part.link.update, "_linkax", None)
        if isinstance(inner, Live):
            for name, knob in inner._found.items():
                for path, argument in knob.targets:
                    yield ((*part.path, "inner", *path), argument), name


def _check(its: Chain, panel: Panel, found: Mapping[str, Knob], taken: Mapping[Target, str]) -> None:
    """Raises if a knob cannot be live."""
    owners: dict[Target, str] = {}
    for name, knob in found.items():
        for target in knob.targets:
            if target in taken:
                raise ValueError(
                    f"live: {name!r} must not be live already, got a live(...) inside the chain where it is called "
                    f"{taken[target]!r}; set it there, or name it only here"
                )
            if target in owners:
                both = f"{owners[target]!r} and {name!r}"
                raise ValueError(f"live: names must be of different hyperparameters, got {both} for the same one")
            owners[target] = name
        if not callable(knob.value):
            try:
                _with_values(its, found, {name: knob.value})
            except ValueError as error:
                reason = str(error).removeprefix("chain: ")
                raise ValueError(f"live: {name!r} must be a number that can be changed: {reason}") from None


def _with_values(its: Chain, knobs: Mapping[str, Knob], values: Mapping[str, Any]) -> Chain:
    """The chain with other values for hyperparameters."""
    changes: dict[Path, dict[str, Any]] = {}
    for name, value in values.items():
        for path, argument in knobs[name].targets:
            changes.setdefault(path, {})[argument] = value
    # The innermost links first, so that the links around them are changed with these already in place.
    for depth in sorted({len(path) for path in changes}, reverse=True):
        now = {path: part_at(its.links, path) for path in changes if len(path) == depth}
        its = chain(*rewrite(its.links, {path: (link.replace(**changes[path]),) for path, link in now.items()}, chain))
    return its


def _state_at(links: tuple[Link, ...], path: Path, state: Any) -> Any:
    """The state of the link at a path, within the state of the chain of `links`."""
    index, *rest = path
    link, state = links[int(index)], state[index]
    while rest:
        slot_name, index, *rest = rest
        slot = link.slots[str(slot_name)]
        link, state = slot.links[int(index)], get_at(state, slot.path)
        state = state[index] if slot.is_sequence else state
    return state
