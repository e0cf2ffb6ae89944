"""Hyperparameters that can be read and set while training runs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linkax.transforms._check import Number
from linkax.transforms._describe import describe
from linkax.transforms._leaves import at_step, increment
from linkax.transforms._link import recall, remember

from ..algebra._chain import Chain, chain
from ..algebra._parts import Part, Path, parts, rewrite


class LiveState(NamedTuple):
    """State of a `Live` optimizer."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken
    hyperparams: dict[str, jax.Array]  # () float: the values that are live, as the last step used them
    inner: Any  # the chain's state


class _Found(NamedTuple):
    """Where a hyperparameter is."""

    path: Path
    argument: str
    value: Number | Any  # or a schedule


class Live(optax.GradientTransformationExtraArgs):
    """A chain some of whose hyperparameters are part of its state, so that they can be read and set; see `live`.

    Attributes:
        init: From parameters to `LiveState(count, hyperparams, inner)`.
        update: From (updates, state, parameters) to (updates, state), as in Optax.
        chain: The chain, with the values that the hyperparameters begin with.
        names: The live hyperparameters.
    """

    chain: Chain
    names: tuple[str, ...]
    _found: Mapping[str, _Found]

    def __new__(cls, init: optax.TransformInitFn, update: optax.TransformUpdateExtraArgsFn) -> "Live":
        if (known := recall(cls, init, update)) is not None:
            return known
        return super().__new__(cls, init, update)

    def hyperparams(self, state: LiveState) -> dict[str, float]:
        """Returns the values of the live hyperparameters: those set, and of schedules what the last step used.

        Example:
            >>> import jax.numpy as jnp
            >>> from linkax.chains import live, sgd
            >>> tx = live(sgd(0.5))
            >>> tx.hyperparams(tx.init(jnp.ones(2)))
            {'learning_rate': 0.5}
        """
        return {name: float(value) for name, value in state.hyperparams.items()}

    def set_hyperparams(
        self, state: LiveState, values: Mapping[str, Number] | None = None, **more: Number
    ) -> LiveState:
        """Returns the state with some live hyperparameters set; a compiled step takes it without compiling again.

        Args:
            state: The optimizer's state. Not changed.
            values: New values by name, for names with dots: `{"head.learning_rate": 1e-3}`.
            **more: New values by name: `learning_rate=1e-3`.

        Raises:
            ValueError: If a name is not live, its hyperparameter is a schedule, or the value is out of its range.

        Example:
            >>> import jax.numpy as jnp
            >>> from linkax.chains import live, sgd
            >>> tx = live(sgd(0.5))
            >>> state = tx.set_hyperparams(tx.init(jnp.ones(2)), learning_rate=0.25)
            >>> updates, state = tx.update(jnp.ones(2), state)
            >>> print(updates)
            [-0.25 -0.25]
        """
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
                    f"Live.set_hyperparams: {name!r} must not be a schedule, got {schedule}; give the chain a number "
                    "to set it from outside"
                )
        _with_values(self.chain, self._found, new)  # the links check the ranges
        arrays = {name: jnp.asarray(value, state.hyperparams[name].dtype) for name, value in new.items()}
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
    """Makes hyperparameters of a chain part of its state, to read and to set them while training runs.

    Values in the state are arrays, so that setting one compiles nothing anew; a schedule's value can be read. The
    updates are those of the chain itself, with the values at that step.

    Args:
        tx: A chain, such as `adamw(1e-3)` or `param_groups(...)`.
        *names: The hyperparameters, each by its name in its link, `"learning_rate"`, with as much of the links and
            groups it is inside of in front as it takes to tell it from others: `"second.mean_square.decay"`,
            `"head.learning_rate"`. If none are given, the learning rate.

    Returns:
        A `Live`, an Optax transformation with the methods `hyperparams(state)` and `set_hyperparams(state, ...)`.

    Raises:
        ValueError: If a name stands for no hyperparameter that is a number or a schedule, or for several.
        TypeError: If `tx` is not a transformation.

    Differences:
        `optax.inject_hyperparams(adamw)(...)` puts every number into the state, which takes away the digits that links
        keep of a β that they know; it takes the arguments of a function, where this takes any chain. PyTorch:
        `optimizer.param_groups[0]["lr"] = ...`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from linkax.chains import adamw, live
        >>> tx = live(adamw(1e-3), "learning_rate", "weight_decay")
        >>> params = jnp.ones(2)
        >>> step = jax.jit(tx.update)
        >>> updates, state = step(params, tx.init(params), params)
        >>> state = tx.set_hyperparams(state, learning_rate=0.0, weight_decay=0.1)
        >>> updates, state = step(params, state, params)
        >>> print(updates)
        [-0. -0.]

    Source:
        `optax.inject_hyperparams`.
    """
    its = chain(tx)
    every = list(parts(its.links))
    found = {name: _find(name, every) for name in names or ("learning_rate",)}

    def init(params: Any) -> LiveState:
        count = jnp.zeros((), jnp.int32)
        values = {name: jnp.asarray(at_step(one.value, count), _dtype()) for name, one in found.items()}
        return LiveState(count, values, _with_values(its, found, values).init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        scheduled = {name: one.value for name, one in found.items() if callable(one.value)}
        now = {name: jnp.asarray(at_step(schedule, state.count), _dtype()) for name, schedule in scheduled.items()}
        values = {**state.hyperparams, **now}
        updates, inner = _with_values(its, found, values).update(updates, state.inner, params, **extra_args)
        return updates, LiveState(increment(state.count), values, inner)

    self = Live(init, update)
    self.chain, self.names, self._found = its, tuple(found), found
    remember(self)
    return self


def _dtype() -> jnp.dtype:
    """The widest real dtype that JAX is set to: hyperparameters are never rounded to the dtype of the parameters."""
    return jnp.dtype(jnp.result_type(float))


def _find(name: str, every: list[Part]) -> _Found:
    """The one hyperparameter that a name stands for: some of the words of its full name in order, and the last one."""
    full = {
        f"{part.name}.{argument}": _Found(part.path, argument, part.link.hyperparams[argument])
        for part in every
        for argument in part.link.numbers
    }
    matches = [one for one in full if _is_short_for(name.split("."), one.split("."))]
    if len(matches) != 1:
        kind = f"{len(matches)} are called so: {', '.join(matches)}" if matches else f"there are {', '.join(full)}"
        raise ValueError(f"live: {name!r} must be the name of one hyperparameter of the chain; {kind}")
    return full[matches[0]]


def _is_short_for(words: list[str], full: list[str]) -> bool:
    rest = iter(full)
    return words[-1] == full[-1] and all(word in rest for word in words)


def _with_values(its: Chain, found: Mapping[str, _Found], values: Mapping[str, Any]) -> Chain:
    """The chain with other values for hyperparameters."""
    for name, value in values.items():
        path, argument, _ = found[name]
        old = next(part.link for part in parts(its.links) if part.path == path)
        its = chain(*rewrite(its.links, {path: (old.replace(**{argument: value}),)}, chain))
    return its
