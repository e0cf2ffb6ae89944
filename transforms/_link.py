"""What a link is: an Optax gradient transformation that knows its name, its hyperparameters and its place.

`@link(place)` on an ordinary factory function gives the links it builds all three, and makes them comparable, hashable,
printable and picklable; the factory itself stays an ordinary function. What a link holds, where the state of that is,
and what its own state means are declared there too.
"""

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, get_args

import jax
import jax.numpy as jnp
import optax

from ._check import Arguments, is_traced
from ._describe import call_text, describe
from ._foreign import Anatomy, Held, anatomy_of
from ._identity import identity_of
from ._leaves import at_step, check_leaves, entering, increment
from ._meaning import Count, Field, Stream

_P = ParamSpec("_P")
_T = TypeVar("_T", bound=optax.GradientTransformation)

Place = Literal["gradient", "moment", "step", "update"]
"""Where in w ← w − α·m/√V a link acts: on the gradient, in the moments, on the direction, on the finished update."""

_PLACES = ", ".join(map(repr, get_args(Place)))

Live = bool | frozenset[tuple[Any, str]]
"""Which hyperparameters may have been set to other values: the given names of the given links; `True`: all arrays."""

StatePath = tuple[Any, ...]
"""The path from a link's state to a part of it: field names, dictionary keys, tuple indices."""


class View(NamedTuple):
    """How to read the state of what a link holds, if the link stores that state in another form.

    Attributes:
        open: Maps the stored form to the state.
        close: Maps a state of which parts have changed, the opened state, and its stored form, to the new stored form.
            What has not changed is the same array as in the opened state.
    """

    open: Callable[[Any], Any]
    close: Callable[[Any, Any, Any], Any]


class Slot(NamedTuple):
    """What a link holds: one transformation or a sequence of them, and where its state is.

    Attributes:
        links: The links in it, in order.
        is_sequence: Whether its state is a tuple with a state for each of the links, as a chain's is; otherwise it is
            the state of the only link.
        path: Where its state is within the link's state.
        is_flat: Whether the link concatenates all parameters into one vector.
        is_live: Which hyperparameters of the links in it are in the link's state, where they may have other values;
            `True` for all that are arrays.
        gates: Whether what is in it skips some of the link's steps.
        kind: `"group"` if it is one of several groups of parameters; `"moment"` if the links see the gradient at the
            link's own place; `"label"` if its name is only used to find what is in it; `"around"` if the link wraps a
            whole optimizer.
        view: How to read its state, if the link stores it in another form.
    """

    links: tuple["Link", ...]
    is_sequence: bool
    path: StatePath
    kind: Literal["group", "moment", "label", "around"]
    is_flat: bool = False
    is_live: Live = False
    gates: bool = False
    view: View | None = None


class Alternative(NamedTuple):
    """What a link is usually compared with, for `linkax.ablations`.

    Attributes:
        name: The name of the chain with it; `{}` stands for the name of the link.
        links: What replaces the link.
        replaces_correction: Whether the bias correction after the link is removed with it.
        elsewhere: Whether the replacement goes to its own place instead of the link's position.
    """

    name: str
    links: tuple["Link", ...]
    replaces_correction: bool = False
    elsewhere: bool = False


class InFront(NamedTuple):
    """In `knobs`, marks an argument that repeats the argument of an average before the link and changes with it.

    Attributes:
        slot: Where the average is if it is not next to the link, but inside a preceding `moment_ratio` or in another
            moment of the same one: `"first"` or `"second"`.
        knob: The name under which the number before the link is set, if only a number of that name is meant.
    """

    slot: str
    knob: str = ""


class ScheduledState(NamedTuple):
    """State of a link with a hyperparameter that is a schedule."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken
    inner: Any  # the state of the link itself


class Link(optax.GradientTransformationExtraArgs):
    """One mechanism of an optimizer: an Optax gradient transformation that knows what it is.

    Links come from the factories of `linkax.transforms`; `link` makes such factories. Calling `Link` itself on an
    `init` and an `update` function gives a *foreign* link: its name and hyperparameters are read off the functions as
    far as possible, and so is what Optax's combinators hold.

    Attributes:
        init: Maps the parameters to the link's state, as in Optax.
        update: Maps (updates, state, parameters) to (updates, state), as in Optax.
        name: The factory's name, such as `"scale_by_momentum"`.
        hyperparams: The factory's arguments by name, defaults included.
        numbers: Those of them that are numbers or schedules of the step count, and not `None`.
        constants: Those of the numbers that are read only once, when the state is initialised.
        place: `"gradient"`, `"moment"`, `"step"` or `"update"`; `None` for a foreign link, and for one that wraps whole
            optimizers.
        is_second_moment: Whether the link's output is a mean or sum of squares, whose root is a divisor.
        is_root: Whether that output is the divisor itself, and not its square.
        sets_sign: Whether it decides if the optimizer minimises or maximises: the learning rate, a negation.
        is_row_local: Whether a row with a zero gradient gets no update and keeps its state.
        covers_rows: Whether what it holds may get row-sparse gradients, whatever that is.
        slots: What the link holds, by name, and where the state of that is.
        is_opaque: Whether it holds something that cannot be looked into.

    Example:
        >>> from linkax.transforms import scale_by_momentum
        >>> link = scale_by_momentum(0.9)
        >>> link
        scale_by_momentum(decay=0.9, dampening=0.0)
        >>> link.place, link.hyperparams["decay"]
        ('moment', 0.9)
        >>> link == scale_by_momentum(0.9)
        True
    """

    name: str
    hyperparams: Mapping[str, Any]
    numbers: tuple[str, ...]
    constants: tuple[str, ...]
    place: Place | None
    is_second_moment: bool
    is_root: bool
    sets_sign: bool
    is_row_local: bool
    covers_rows: bool
    slots: Mapping[str, Slot]
    is_opaque: bool
    _declared: "_Declaration"
    _inside: optax.GradientTransformationExtraArgs  # what it does once its leaves have been checked
    _factory: Callable[..., "Link"] | None
    _written: Callable[..., optax.GradientTransformation] | None  # the factory as it was written, undecorated
    _defaults: Mapping[str, Any]
    _anatomy: Anatomy | None  # of a foreign link

    def __new__(cls, init: optax.TransformInitFn, update: optax.TransformUpdateExtraArgsFn) -> "Link":
        if (known := recall(cls, init, update)) is not None:
            return known
        self = super().__new__(cls, init, update)
        anatomy = anatomy_of(optax.GradientTransformationExtraArgs(init, update))
        vars(self).update(
            name=anatomy.name,
            hyperparams=MappingProxyType(dict(anatomy.hyperparams)),
            numbers=(),
            constants=(),
            place=None,
            is_second_moment=False,
            is_root=False,
            sets_sign=anatomy.factor == 0.0,
            is_row_local=anatomy.is_identity,
            covers_rows=False,
            is_opaque=anatomy.is_opaque,
            _declared=_Declaration(state=anatomy.state, out=anatomy.out, factor=anatomy.factor),
            _factory=None,
            _written=None,
            _defaults=anatomy.defaults,
            _anatomy=anatomy,
        )
        vars(self)["slots"] = {name: _slot(anatomy.name, held) for name, held in anatomy.holds.items()}
        return self

    @classmethod
    def _make(cls, iterable: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cls(*iterable)

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_setting(self, name, "link.replace(...) makes a link with other hyperparameters")

    @functools.cached_property
    def _identity(self) -> Hashable:
        if self._anatomy is not None:
            if self.slots and not self.is_opaque:
                held = {name: (slot.links, slot.is_sequence) for name, slot in self.slots.items()}
                return "foreign", self.name, identity_of(dict(self.hyperparams)), tuple(held.items())
            return "foreign", identity_of(self.init), identity_of(self.update)
        return identity_of(self._written), identity_of(dict(self.hyperparams))

    @property
    def is_identity(self) -> bool:
        """Whether it is `optax.identity()`."""
        return self._anatomy is not None and self._anatomy.is_identity

    @property
    def held(self) -> tuple["Link", ...]:
        """The links in all of its slots."""
        return tuple(inner for slot in self.slots.values() for inner in slot.links)

    @property
    def around(self) -> tuple["Link", ...]:
        """The links that it wraps, as `lazy` does: their output is its output."""
        return tuple(inner for slot in self.slots.values() if slot.kind == "around" for inner in slot.links)

    @functools.cached_property
    def is_final(self) -> bool:
        """Whether its updates must reach the parameters unchanged: nothing may come after it or round them."""
        return self._declared.is_final or any(inner.is_final for inner in self.held)

    @property
    def is_observer(self) -> bool:
        """Whether it leaves the updates unchanged, and must see them as they reach the parameters."""
        return self._declared.is_observer or (bool(self.around) and all(inner.is_observer for inner in self.around))

    @functools.cached_property
    def holds_observer(self) -> bool:
        """Whether it or a link in it must see the updates as they reach the parameters."""
        return self.is_observer or any(inner.holds_observer for inner in self.held)

    @functools.cached_property
    def is_leafwise(self) -> bool:
        """Whether it may be traced once for all leaves of the same shape."""
        return self.is_identity or (self._declared.is_leafwise and all(inner.is_leafwise for inner in self.held))

    @property
    def is_foreign(self) -> bool:
        """Whether it is an Optax transformation that no link factory has built."""
        return self._factory is None

    def replace(self, **changes: Any) -> "Link":
        """Returns this link rebuilt with some of its hyperparameters changed.

        Args:
            **changes: New values for arguments of the link's factory.

        Raises:
            TypeError: If the link is foreign, or its factory has no such argument.
            ValueError: If the factory rejects a value.

        Example:
            >>> from linkax.transforms import scale_by_rms
            >>> scale_by_rms(0.99).replace(eps_in_sqrt=True)
            scale_by_rms(decay=0.99, eps=1e-08, eps_in_sqrt=True)
        """
        if self._factory is None:
            raise TypeError(f"Link.replace: {self.name!r} was not built by a link factory; build a new one instead")
        return self._factory(**{**self.hyperparams, **changes})

    def with_slots(self, changes: Mapping[str, optax.GradientTransformation]) -> "Link":
        """Returns this link with other transformations in some of its slots.

        Args:
            changes: The new transformations by slot name.

        Raises:
            ValueError: If the link has no such slot.

        Example:
            >>> import optax
            >>> from linkax.transforms import mean_square, moment_ratio
            >>> ratio = moment_ratio(optax.identity(), mean_square(0.9), eps=1e-8)
            >>> ratio.with_slots({"second": mean_square(0.5)}).slots["second"].links
            (mean_square(decay=0.5),)
        """
        if wrong := changes.keys() - self.slots.keys():
            raise ValueError(f"Link.with_slots: changes must be for {', '.join(self.slots)}, got {', '.join(wrong)}")
        if not changes:
            return self
        if self._anatomy is not None:
            made = optax.with_extra_args_support(self._anatomy.rebuild(dict(changes)))
            return made if isinstance(made, Link) else Link(made.init, made.update)
        arguments = {}
        for argument in self.holders():
            value = self.hyperparams[argument]
            if isinstance(value, Mapping):
                arguments[argument] = {name: changes.get(name, tx) for name, tx in value.items()}
            elif argument in changes:
                arguments[argument] = changes[argument]
        return self.replace(**arguments)

    def holders(self) -> list[str]:
        """Returns the arguments that hold transformations."""
        return [name for name, value in self.hyperparams.items() if _holds(value)]

    def settled(self, is_live: Live) -> Mapping[str, Any]:
        """Returns the hyperparameters, with NaN for those that may have been set to anything."""
        if not is_live:
            return self.hyperparams
        return {
            name: math.nan if (isinstance(value, jax.Array) if is_live is True else (self, name) in is_live) else value
            for name, value in self.hyperparams.items()
        }

    def labels_for(self, params: Any) -> Any:
        """The tree or function that assigns each parameter to a group, as `linkax.param_groups` takes it."""
        if self._anatomy is None:
            return self.hyperparams[self._declared.labels]
        labels = self._anatomy.labels
        return labels(params) if callable(labels) else labels

    @functools.cached_property
    def fields(self) -> Mapping[StatePath, Field]:
        """What the fields of the link's state mean, by their paths in it."""
        found = {
            (*_own_path(self), *((name,) if isinstance(name, str) else name)): field
            for name, field in self._declared.state.items()
        }
        return {("count",): Count(), **found} if self.is_scheduled else found

    @functools.cached_property
    def knobs(self) -> Mapping[str, str | InFront]:
        """The names under which some of its arguments are set during training; see `linkax.live`.

        Example:
            >>> from linkax.transforms import scale_by_momentum
            >>> scale_by_momentum(0.9, dampening=0.9).knobs
            {'decay': 'momentum', 'dampening': 'momentum'}
        """
        declared = self._declared.knobs
        return declared(**self.hyperparams) if callable(declared) else declared

    def if_misplaced(self, is_late: bool) -> str:
        """What to do instead if it comes too late in a chain, or too early; empty if it does not say."""
        early = self._declared.too_early if self.place == "step" else ""
        return self._declared.too_late if is_late else early

    def alternatives(self, *, is_corrected: bool) -> Iterator[Alternative]:
        """Yields what people usually compare the link with; `is_corrected` is whether a bias correction follows it."""
        if self._declared.alternatives is not None:
            yield from self._declared.alternatives(**self.hyperparams, is_corrected=is_corrected)

    @property
    def is_scheduled(self) -> bool:
        """Whether one of its hyperparameters is a schedule."""
        return not self.is_foreign and any(callable(self.hyperparams[name]) for name in self.numbers)

    @functools.cached_property
    def definition(self) -> Slot | None:
        """The links that this one is an abbreviation for: `moment_ratio(...)` for `scale_by_rms(...)`."""
        if self._written is None or self.slots:
            return None
        start = jnp.zeros((), jnp.int32)
        schedules = [name for name in self.numbers if callable(self.hyperparams[name])]
        now = {name: at_step(self.hyperparams[name], start) for name in schedules}
        made = self._written(**{**self.hyperparams, **now})
        found: Any = getattr(made.update, "_linkax_definition", made)
        if isinstance(found, Link):
            found = Slot((found,), False, (), "moment")
        elif is_sequence(found):
            found = Slot(found.links, True, (), "moment")
        return found._replace(path=_own_path(self)) if isinstance(found, Slot) else None

    def out(self, stream: Stream, *, is_live: Live = False) -> Stream:
        """Returns the link's output for the input `stream`; hyperparameters that are live may have other values.

        Example:
            >>> from linkax.transforms import mean_square, Stream
            >>> mean_square(0.9).out(Stream("gradient")).quantity
            'mean square of gradient'
        """
        if self.definition is not None:
            return through(self.definition.links, stream, is_live=is_live)
        outs = {
            through(slot.links, stream, is_live=is_live or slot.is_live)
            for slot in self.slots.values()
            if slot.kind in ("around", "group")
        }
        if outs:  # groups with different outputs: a mixture, which is only named after the link
            stream = outs.pop() if len(outs) == 1 else stream.through(f"{self.name} of {{}}", 1.0)
        for slot in self.slots.values():
            stream = through(slot.links, stream, is_live=is_live) if slot.kind == "label" else stream
        stream = stream.squared() if self.is_second_moment and not self.is_root and not outs else stream
        declared = self._declared
        factor = declared.factor(**self.settled(is_live)) if callable(declared.factor) else declared.factor
        if isinstance(factor, float) and math.isnan(factor):
            factor = f"the {self.name} of each step"
        if factor is None:
            factor = self._identity
        if isinstance(factor, jax.Array):
            factor = identity_of(factor) if is_traced(factor) else float(factor)
        if declared.out is not None:
            return stream.through(declared.out, factor)
        is_around = any(slot.kind == "around" for slot in self.slots.values())  # its output is that of what it wraps
        if self.place in ("gradient", "step", "update") or is_around:
            return stream.through("{}", factor)
        return stream.through(f"{self.name} of {{}}", 1.0 if self.place else self._identity)

    def described(self) -> dict[str, str]:
        """Returns the hyperparameters as strings, by name: every number, and whatever else differs from its default.

        Example:
            >>> from linkax.transforms import scale_by_rms
            >>> scale_by_rms(0.99).described()
            {'decay': '0.99', 'eps': '1e-08'}
        """

        def is_silent(name, value):
            if name not in self._defaults:
                return False
            if self.is_foreign:  # an argument of an Optax function left at its default is not shown
                return value is self._defaults[name] or identity_of(value) == identity_of(self._defaults[name])
            switched_off = value is None or isinstance(value, bool | str)
            return switched_off and value == self._defaults[name]

        return {name: describe(value) for name, value in self.hyperparams.items() if not is_silent(name, value)}

    def __repr__(self) -> str:
        return call_text(self.name, self.described())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Link) and self._identity == other._identity

    def __ne__(self, other: object) -> bool:  # tuple defines its own
        return not self == other

    def __hash__(self) -> int:
        return hash(self._identity)

    def __reduce__(self) -> tuple:
        if self._factory is None:
            return Link, (self.init, self.update)
        return _build, (self._factory, dict(self.hyperparams))


class _Declaration(NamedTuple):
    """What a link declares where it is defined; the arguments of `link`."""

    state: Mapping[Any, Field] = MappingProxyType({})
    out: str | None = None
    factor: Any = 1.0
    holds: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
    alternatives: Callable[..., Iterator[Alternative]] | None = None
    labels: str = ""
    knobs: Mapping[str, str | InFront] | Callable[..., Mapping[str, str | InFront]] = MappingProxyType({})
    too_late: str = ""
    too_early: str = ""
    view: Callable[..., View] | None = None
    is_final: bool = False
    is_observer: bool = False
    is_leafwise: bool = False


class _SlotName:
    """The type of `SLOT`, which stands for the slot's name in a path."""


SLOT = _SlotName()
"""In `holds`, stands for the slot's name in the path to its state."""


def remember(tx: optax.GradientTransformationExtraArgs) -> None:
    """Stores a link or chain on its update function, so that it can be found again where only the functions are left.

    To JAX a named tuple is a tree; `jax.tree.map`, and Flax's `nnx.split` and `nnx.merge`, rebuild it from its leaves.
    """
    vars(tx.update)["_linkax"] = tx


def recall(cls: type[_T], init: optax.TransformInitFn, update: optax.TransformUpdateExtraArgsFn) -> _T | None:
    """The link or chain the functions belonged to before a tree map took it apart, if a `cls`; see `remember`."""
    known = getattr(update, "_linkax", None)
    return known if isinstance(known, cls) and known.init is init else None


def refuse_setting(tx: Any, name: str, hint: str) -> None:
    """Raises, because links and chains never change."""
    raise AttributeError(
        f"{type(tx).__name__}: {name!r} cannot be set, because links and chains never change; {hint}, and "
        "linkax.live makes hyperparameters that can be set during training"
    )


def _own(
    name: str, place: Place | None, tx: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """The same transformation with new functions that belong to one link only.

    A link with a place checks that its inputs fit the parameters. One that wraps whole optimizers leaves that to them,
    because the parameters of a group may be integers.
    """

    def init(params):
        if place is not None:
            check_leaves(f"{name}: params", params, rows=False)
        return tx.init(params)

    def update(updates, state, params=None, **extra_args):
        if place is not None:
            updates = entering(f"{name}: an update", updates, params)
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def _unchecked(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """What a factory has made; if that is a link, only its unchecked functions."""
    return optax.with_extra_args_support(getattr(tx, "_inside", tx))


def links_of(where: str, tx: Any) -> tuple[Link, ...]:
    """The links that a transformation consists of: a chain's links, a link itself, or else a foreign link."""
    if isinstance(tx, Link):
        return (tx,)
    if is_sequence(tx):
        return tx.links
    if isinstance(tx, optax.GradientTransformation):
        return (Link(tx.init, optax.with_extra_args_support(tx).update),)
    if isinstance(tx, optax.MultiSteps):
        return (Link(tx.init, tx.update),)  # type: ignore[arg-type]
    hint = f"; call it: {tx.__name__}(...)" if hasattr(tx, "__name__") else ""
    raise TypeError(f"{where} must be a link, a chain or an Optax transformation, got {tx!r}{hint}")


def is_sequence(tx: Any) -> bool:
    """Whether it is a chain, whose state is a tuple with a state for each of its links."""
    return isinstance(tx, optax.GradientTransformation) and hasattr(tx, "links")


def as_one_link(tx: optax.GradientTransformation) -> Link:
    """A transformation as a single link: a chain becomes a link that holds its links."""
    return tx if isinstance(tx, Link) else Link(tx.init, optax.with_extra_args_support(tx).update)


def _holds(value: Any) -> bool:
    """Whether an argument holds transformations."""
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(tx, optax.GradientTransformation) for tx in value.values())
    return isinstance(value, optax.GradientTransformation | optax.MultiSteps)


def _hides(value: Any) -> bool:
    """Whether an argument holds transformations where they cannot be found."""
    return (
        isinstance(value, list | tuple)
        and not isinstance(value, optax.GradientTransformation)
        and any(map(_holds, value))
    )


def _build(factory: Callable[..., Link], hyperparams: dict[str, Any]) -> Link:
    return factory(**hyperparams)


def through(links: tuple[Link, ...], stream: Stream, *, is_live: Live = False) -> Stream:
    """The output of the last link when `stream` is the input of the first."""
    return functools.reduce(lambda passing, link: link.out(passing, is_live=is_live), links, stream)


def _slot(where: str, held: Held) -> Slot:
    """What a foreign link holds."""
    if isinstance(held.tx, optax.GradientTransformation) or not isinstance(held.tx, tuple):
        return Slot(links_of(where, held.tx), is_sequence(held.tx), *held[1:])
    return Slot(tuple(map(as_one_link, held.tx)), True, held.path, held.kind)


def _own_path(link: Link) -> StatePath:
    """Where in its state a link keeps the state it has without schedules."""
    return ("inner",) if link.is_scheduled else ()


def _slots(link: Link) -> Iterator[tuple[str, Slot]]:
    """What a link of ours holds: the arguments that are transformations, or dictionaries of them by group."""
    for argument in link.holders():
        value, path = link.hyperparams[argument], link._declared.holds.get(argument, (SLOT,))
        groups = isinstance(value, Mapping)
        kind = "group" if groups else "moment" if len(link.holders()) > 1 else "around"
        for name, tx in value.items() if groups else [(argument, value)]:
            here = (*_own_path(link), *(name if step is SLOT else step for step in path))
            view = link._declared.view and link._declared.view(**link.hyperparams)
            yield name, Slot(links_of(f"{link.name}: {name}", tx), is_sequence(tx), here, kind, view=view)


_IN_ALL_RANGES = 0.5
"""A number that takes the place of schedules, whose values are not known yet."""


def _scheduled(
    factory: Callable[..., optax.GradientTransformation], hyperparams: dict[str, Any], schedules: list[str]
) -> optax.GradientTransformationExtraArgs:
    """What `factory` makes, with the values of its schedules at each step."""

    def at(count: jax.Array) -> optax.GradientTransformationExtraArgs:
        now = {name: at_step(hyperparams[name], count) for name in schedules}
        return _unchecked(factory(**{**hyperparams, **now}))

    def init(params):
        count = jnp.zeros((), jnp.int32)
        return ScheduledState(count, at(count).init(params))

    def update(updates, state, params=None, **extra_args):
        updates, inner = at(state.count).update(updates, state.inner, params, **extra_args)
        return updates, ScheduledState(increment(state.count), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def link(
    place: Place | None,
    *,
    place_from: Callable[..., Place | None] | None = None,
    is_second_moment: bool = False,
    is_root: bool = False,
    sets_sign: bool = False,
    is_row_local: bool = False,
    covers_rows: bool = False,
    state: Mapping[str, Field] = MappingProxyType({}),
    out: str | None = None,
    factor: float | Callable[..., Any] | None = 1.0,
    holds: Mapping[str, StatePath] = MappingProxyType({}),
    alternatives: Callable[..., Iterator[Alternative]] | None = None,
    labels: str = "",
    knobs: Mapping[str, str | InFront] | Callable[..., Mapping[str, str | InFront]] = MappingProxyType({}),
    too_late: str = "",
    too_early: str = "",
    view: Callable[..., View] | None = None,
    is_final: bool = False,
    is_observer: bool = False,
    is_leafwise: bool = False,
) -> Callable[[Callable[_P, optax.GradientTransformation]], Callable[_P, Link]]:
    """Turns a function that returns an Optax gradient transformation into a factory of links.

    The factory's name becomes the link's name and its arguments the link's hyperparameters. Arguments annotated with
    `NonNegative`, `Positive`, `Fraction`, `ProperFraction`, `Rate`, `bool` or a `Literal` are checked on every call;
    where the annotation allows a schedule, the factory is called with the schedule's value at each step.

    These declarations are all that `migrate`, the exchange with PyTorch, and everything else that acts on whole
    optimizers know about the link.

    Args:
        place: Where the link acts: `"gradient"` (before any moment sees the gradient), `"moment"`, `"step"` (on the
            finished direction, before the learning rate multiplies it), or `"update"` (after the learning rate). `None`
            for a link that wraps whole optimizers; it may be placed anywhere.
        place_from: If the place depends on the hyperparameters, a function from them, by name, to the place.
        is_second_moment: Whether the link returns a mean or sum of squares, which only makes sense in the second
            argument of `moment_ratio`.
        is_root: Whether what a second moment returns is the divisor itself, and not its square, whose root would be
            taken. Such a link must be the last one in its moment.
        sets_sign: Whether it decides if the optimizer minimises or maximises. At the place `"step"` it is the learning
            rate, the last one there.
        is_row_local: Whether a row with a zero gradient gets no update and keeps its state, apart from what is inside
            the link. Then the link can take row-sparse gradients (`row_gradient`).
        covers_rows: Whether what the link holds may get row-sparse gradients, whatever that is.
        state: What the fields of its state mean: `Moment`, `Count`, `Gathered` or `Own`, by name. A field that is not
            listed is the link's own.
        out: The link's output, in words, with `{}` for its input. The default is the same quantity at all places but
            `"moment"`, and for a link that wraps others their output.
        factor: What the link multiplies by: a number, or a function from its hyperparameters to one; `None` if the
            factor changes from step to step.
        holds: For arguments that hold transformations, where in the link's state their states are: a path of names and
            keys, in which `SLOT` stands for the name in a dictionary of them; `()` for the whole state. The default is
            the field with the argument's name.
        alternatives: What `linkax.ablations` swaps the link for: a function that yields `Alternative`s. It gets
            the link's hyperparameters by name, and `is_corrected`: whether a bias correction follows.
        labels: If it holds groups of parameters, the argument that assigns each parameter to a group.
        knobs: The names of its decays in `linkax.live`, by argument, if they differ from the arguments'; or a
            function from the hyperparameters to these. Arguments with the same name change together. For an argument
            that holds links, the name of the decays inside; for one that has to equal that of an average before the
            link, `InFront`.
        too_late: What the error message suggests if the link comes after links that it cannot follow.
        too_early: The same, if it comes before links that it cannot precede.
        view: If it stores the state of what it holds in another form, a function from its hyperparameters, by name, to
            the `View` through which other code sees that state.
        is_final: Whether its updates must reach the parameters unchanged: with no link after it, and not rounded to the
            parameters' dtypes.
        is_observer: Whether it leaves the updates unchanged and must see them as they reach the parameters: no link
            that changes them may come after it.
        is_leafwise: Whether everything it does to the leaves of the updates goes through `map_updates` and `map_state`,
            one leaf at a time, and it does not look at leaves in any other way. Then a chain traces it once for all
            leaves of the same shape, if the same holds for what is inside it.

    Returns:
        A decorator.

    Raises:
        ValueError: If `place` is none of the four.
        TypeError: If it is written without a place: `@link` instead of `@link("moment")`.

    Example:
        >>> import jax, optax
        >>> from linkax.transforms import Rate, link
        >>> @link("gradient")
        ... def scale_gradient(factor: Rate) -> optax.GradientTransformation:
        ...     return optax.stateless(lambda g, _: jax.tree.map(lambda x: factor * x, g))
        >>> scale_gradient(2.0)
        scale_gradient(factor=2.0)
        >>> scale_gradient(-1.0)
        Traceback (most recent call last):
        ...
        ValueError: scale_gradient: factor must be a number in [0, inf) or a schedule, got -1.0
    """
    if callable(place):
        raise TypeError(
            f"link: place must be one of {_PLACES} or None; write @link('moment'), not @link, got {place!r}"
        )
    if place is not None and place not in get_args(Place):
        raise ValueError(f"link: place must be one of {_PLACES} or None, got {place!r}")
    declared = _Declaration(
        state=dict(state),
        out=out,
        factor=factor,
        holds=dict(holds),
        alternatives=alternatives,
        labels=labels,
        knobs=knobs,
        too_late=too_late,
        too_early=too_early,
        view=view,
        is_final=is_final,
        is_observer=is_observer,
        is_leafwise=is_leafwise,
    )

    def decorate(factory: Callable[_P, optax.GradientTransformation]) -> Callable[_P, Link]:
        arguments = Arguments(factory)

        @functools.wraps(factory)
        def build(*args: _P.args, **kwargs: _P.kwargs) -> Link:
            hyperparams = arguments(*args, **kwargs)
            numbers = tuple(
                name
                for name in arguments.numbers
                if hyperparams[name] is not None and not (name in arguments.own_counts and callable(hyperparams[name]))
            )
            schedules = [name for name in numbers if callable(hyperparams[name])]
            if schedules:
                # Run the factory's own checks now.
                factory(**{**hyperparams, **dict.fromkeys(schedules, _IN_ALL_RANGES)})  # type: ignore[call-arg]
                tx = _scheduled(factory, hyperparams, schedules)
            else:
                tx = _unchecked(factory(**hyperparams))  # type: ignore[call-arg]
            its_place = place if place_from is None else place_from(**hyperparams)
            self = optax.GradientTransformationExtraArgs.__new__(Link, *_own(factory.__name__, its_place, tx))
            vars(self).update(
                _inside=tx,
                name=factory.__name__,
                hyperparams=MappingProxyType(hyperparams),
                numbers=numbers,
                constants=arguments.constants,
                place=its_place,
                is_second_moment=is_second_moment,
                is_root=is_root,
                sets_sign=sets_sign,
                is_row_local=is_row_local,
                covers_rows=covers_rows,
                is_opaque=any(map(_hides, hyperparams.values())),
                _declared=declared,
                _factory=build,
                _written=factory,
                _defaults=arguments.defaults,
                _anatomy=None,
            )
            vars(self)["slots"] = dict(_slots(self))
            vars(self)["is_second_moment"] = is_second_moment or any(one.is_second_moment for one in self.around)
            vars(self)["is_root"] = is_root or any(one.is_root for one in self.around)
            remember(self)
            return self

        return build

    return decorate
