"""What a link is: an Optax gradient transformation that knows its name, its hyperparameters and its place.

`@link(place)` on an ordinary factory function gives it all three, and makes the links it builds comparable,
hashable, printable and picklable; the factory itself stays as it reads. What a link holds, where the state of that
is, and what its own state means are declared there too.
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
"""Which hyperparameters may have been set to other values: those of some links, by their names; `True`: all arrays."""

StatePath = tuple[Any, ...]
"""The way from a link's state to a part of it: names of fields, keys of dictionaries, indices of tuples."""


class View(NamedTuple):
    """How the state of what a link holds is read, if the link keeps it in another form.

    Attributes:
        open: From the form in which it is kept to the state.
        close: From a state of which parts have changed, the opened one, and the form in which that was kept, to the
            same form. What has not changed is the same array as in the opened state.
    """

    open: Callable[[Any], Any]
    close: Callable[[Any, Any, Any], Any]


class Slot(NamedTuple):
    """What a link holds: one transformation, or a sequence of them, and where the state of that is.

    Attributes:
        links: The links in it, in order.
        is_sequence: Whether its state is a tuple with a state for each of the links, as a chain's; otherwise it is the
            state of the only one.
        path: Where in the link's state its state is.
        is_flat: Whether the link lays all parameters end to end in one vector.
        is_live: Which hyperparameters of the links in it are in the link's state, and may have other values; `True` for
            all that are arrays.
        gates: Whether what is in it rests in some of the link's steps.
        kind: `"group"` if it is one of several groups of parameters; `"moment"` if the links see the gradient at the
            link's own place; `"label"` if its name only serves to find what is in it; `"around"` if the link stands
            around a whole optimizer.
        view: How its state is read, if the link keeps it in another form.
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
    """What people usually compare a link with, for `linkax.chains.ablations`.

    Attributes:
        name: What the chain with it is called; `{}` stands for the name of the link.
        links: What stands in the place of the link.
        replaces_correction: Whether the bias correction behind the link goes with it.
        elsewhere: Whether it goes to its own place instead.
    """

    name: str
    links: tuple["Link", ...]
    replaces_correction: bool = False
    elsewhere: bool = False


class InFront(NamedTuple):
    """In `knobs`, for an argument that repeats that of an average in front of the link: it moves with it.

    Attributes:
        slot: Where the average is if it is inside a `moment_ratio` in front, and not beside the link: `"first"` or
            `"second"`.
    """

    slot: str


class ScheduledState(NamedTuple):
    """State of a link with a hyperparameter that is a schedule."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken
    inner: Any  # the state of the link itself


class Link(optax.GradientTransformationExtraArgs):
    """One mechanism of an optimizer: an Optax gradient transformation that knows what it is.

    Links come from the factories of `linkax.transforms`; `link` makes such factories. Calling `Link` itself on an
    `init` and an `update` function gives a *foreign* link: its name and hyperparameters are read off the functions as
    far as they can be, and Optax's combinators say what they hold.

    Attributes:
        init: From parameters to the link's state, as in Optax.
        update: From (updates, state, parameters) to (updates, state), as in Optax.
        name: The factory's name, such as `"scale_by_momentum"`.
        hyperparams: The factory's arguments by name, defaults included.
        numbers: Which of them are numbers or schedules, of those that are given.
        constants: Which of these are read only once, when the state is made.
        place: `"gradient"`, `"moment"`, `"step"` or `"update"`; `None` for a foreign link, and for one that holds whole
            optimizers.
        is_second_moment: Whether what leaves the link is a mean or sum of squares, to be divided by.
        sets_sign: Whether it decides if the optimizer goes up or down: the learning rate, a negation.
        is_row_local: Whether a row whose gradient is zero gets no update and keeps its state.
        covers_rows: Whether what it holds may see row-sparse gradients, whatever it is.
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
    sets_sign: bool
    is_row_local: bool
    covers_rows: bool
    slots: Mapping[str, Slot]
    is_opaque: bool
    _declared: "_Declaration"
    _inside: optax.GradientTransformationExtraArgs  # what it does where its leaves have been checked already
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
        """The links that it stands around, as `lazy` does: what comes out of them comes out of it."""
        return tuple(inner for slot in self.slots.values() if slot.kind == "around" for inner in slot.links)

    @functools.cached_property
    def is_final(self) -> bool:
        """Whether its updates must reach the parameters as they are: nothing may stand behind it, nor round them."""
        return self._declared.is_final or any(inner.is_final for inner in self.held)

    @functools.cached_property
    def is_leafwise(self) -> bool:
        """Whether it may be traced once for all leaves of a shape."""
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
            ValueError: If the factory refuses a value.

        Example:
            >>> from linkax.transforms import scale_by_rms
            >>> scale_by_rms(0.99).replace(eps_in_sqrt=True)
            scale_by_rms(decay=0.99, eps=1e-08, eps_in_sqrt=True)
        """
        if self._factory is None:
            raise TypeError(f"Link.replace: {self.name!r} was not built by a link factory; build it anew instead")
        return self._factory(**{**self.hyperparams, **changes})

    def with_slots(self, changes: Mapping[str, optax.GradientTransformation]) -> "Link":
        """Returns the link with other transformations in some of its slots.

        Args:
            changes: The new transformations by the names of their slots.

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
            raise ValueError(f"Link.with_slots: changes must be of {', '.join(self.slots)}, got {', '.join(wrong)}")
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
        """What says which of its groups each parameter belongs to, as `linkax.chains.param_groups` takes it."""
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
        """What some of its arguments are called where they are set while training runs; see `linkax.chains.live`.

        Example:
            >>> from linkax.transforms import scale_by_momentum
            >>> scale_by_momentum(0.9, dampening=0.9).knobs
            {'decay': 'momentum', 'dampening': 'momentum'}
        """
        declared = self._declared.knobs
        return declared(**self.hyperparams) if callable(declared) else declared

    def if_misplaced(self, is_late: bool) -> str:
        """What to do instead if it stands too far back in a chain, or too far in front; empty if it does not say."""
        early = self._declared.too_early if self.place == "step" else ""
        return self._declared.too_late if is_late else early

    def alternatives(self, *, is_corrected: bool) -> Iterator[Alternative]:
        """Yields what people usually compare the link with, whether a bias correction follows it or not."""
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
        """Returns what leaves the link when `stream` comes in; the numbers of links that are live may be others.

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
        if outs:  # groups out of which come different things make a mixture that has no name but their own
            stream = outs.pop() if len(outs) == 1 else stream.through(f"{self.name} of {{}}", 1.0)
        for slot in self.slots.values():
            stream = through(slot.links, stream, is_live=is_live) if slot.kind == "label" else stream
        stream = stream.squared() if self.is_second_moment and not outs else stream
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
        is_around = any(slot.kind == "around" for slot in self.slots.values())  # then what it holds says what comes out
        if self.place in ("gradient", "step", "update") or is_around:
            return stream.through("{}", factor)
        return stream.through(f"{self.name} of {{}}", 1.0 if self.place else self._identity)

    def described(self) -> dict[str, str]:
        """Returns the hyperparameters as text, by name: every number, and whatever else has not its default value.

        Example:
            >>> from linkax.transforms import scale_by_rms
            >>> scale_by_rms(0.99).described()
            {'decay': '0.99', 'eps': '1e-08'}
        """

        def is_silent(name, value):
            if name not in self._defaults:
                return False
            if self.is_foreign:  # what Optax's functions leave at its default says nothing
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
    """What a link says of itself where it is defined; the arguments of `link`."""

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
    is_leafwise: bool = False


class _SlotName:
    """Stands in a path for the name of the slot."""


SLOT = _SlotName()
"""In `holds`, the place of the slot's name in the path to its state."""


def remember(tx: optax.GradientTransformationExtraArgs) -> None:
    """Lets the update function of a link or chain know it, so that it is found again where only the functions are left.

    To JAX a named tuple is a tree; `jax.tree.map`, and Flax's `nnx.split` and `nnx.merge`, rebuild it from its leaves.
    """
    vars(tx.update)["_linkax"] = tx


def recall(cls: type[_T], init: optax.TransformInitFn, update: optax.TransformUpdateExtraArgsFn) -> _T | None:
    """What the functions were part of before a tree map took it apart, if it was a `cls`; see `remember`."""
    known = getattr(update, "_linkax", None)
    return known if isinstance(known, cls) and known.init is init else None


def refuse_setting(tx: Any, name: str, hint: str) -> None:
    """Raises: links and chains never change."""
    raise AttributeError(
        f"{type(tx).__name__}: {name!r} cannot be set, because links and chains never change; {hint}, and "
        "linkax.chains.live makes hyperparameters that can be set while training runs"
    )


def _own(
    name: str, place: Place | None, tx: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """The same transformation in functions of its own, which only one link has.

    A link that has a place sees to it that what comes in fits the parameters; one that holds whole optimizers leaves
    that to them, because a group may be of whole numbers.
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
    """What a factory has made; of a link that another one is an abbreviation for, only what it does."""
    return optax.with_extra_args_support(getattr(tx, "_inside", tx))


def links_of(where: str, tx: Any) -> tuple[Link, ...]:
    """The links that a transformation consists of: a chain's, a link itself, any other one seen as a foreign link."""
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
    """A transformation as a single link: a chain as one that holds its links."""
    return tx if isinstance(tx, Link) else Link(tx.init, optax.with_extra_args_support(tx).update)


def _holds(value: Any) -> bool:
    """Whether an argument holds transformations."""
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(tx, optax.GradientTransformation) for tx in value.values())
    return isinstance(value, optax.GradientTransformation | optax.MultiSteps)


def _hides(value: Any) -> bool:
    """Whether an argument holds transformations where nobody looks for them."""
    return (
        isinstance(value, list | tuple)
        and not isinstance(value, optax.GradientTransformation)
        and any(map(_holds, value))
    )


def _build(factory: Callable[..., Link], hyperparams: dict[str, Any]) -> Link:
    return factory(**hyperparams)


def through(links: tuple[Link, ...], stream: Stream, *, is_live: Live = False) -> Stream:
    """What leaves the last of the links when `stream` comes into the first."""
    return functools.reduce(lambda passing, link: link.out(passing, is_live=is_live), links, stream)


def _slot(where: str, held: Held) -> Slot:
    """What a foreign link holds."""
    if isinstance(held.tx, optax.GradientTransformation) or not isinstance(held.tx, tuple):
        return Slot(links_of(where, held.tx), is_sequence(held.tx), *held[1:])
    return Slot(tuple(map(as_one_link, held.tx)), True, held.path, held.kind)


def _own_path(link: Link) -> StatePath:
    """Where in its state a link keeps what it has without a schedule."""
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
"""A number that stands in for schedules, whose values are not known yet."""


def _scheduled(
    factory: Callable[..., optax.GradientTransformation], hyperparams: dict[str, Any], schedules: list[str]
) -> optax.GradientTransformationExtraArgs:
    """What `factory` makes, with the values that its schedules have at each step."""

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
    is_leafwise: bool = False,
) -> Callable[[Callable[_P, optax.GradientTransformation]], Callable[_P, Link]]:
    """Makes a function that returns an Optax gradient transformation into a factory of links.

    The factory's name becomes the link's name and its arguments the link's hyperparameters. Arguments annotated
    with `NonNegative`, `Positive`, `Fraction`, `ProperFraction`, `Rate`, `bool` or a `Literal` are checked on every
    call; where the annotation allows a schedule, the factory is called with its value at each step.

    What the link says of itself here is all that `migrate`, the exchange with PyTorch, and whatever else acts on whole
    optimizers know of it.

    Args:
        place: Where the link acts: `"gradient"` (before any moment sees the gradient), `"moment"`, `"step"` (on the
            finished direction, before the learning rate multiplies it), or `"update"` (after the learning rate). `None`
            for what holds whole optimizers, and may stand anywhere.
        place_from: Where that depends on the hyperparameters, a function from them, by name, to the place.
        is_second_moment: Whether a mean or sum of squares leaves the link, which only makes sense as the second
            argument of `moment_ratio`.
        sets_sign: Whether it decides if the optimizer goes up or down. At the place `"step"` it is the learning rate,
            the last of that place.
        is_row_local: Whether a row whose gradient is zero gets no update and keeps its state, apart from what is inside
            the link: then the link can take row-sparse gradients (`row_gradient`).
        covers_rows: Whether what the link holds may see row-sparse gradients, whatever it is.
        state: What the fields of its state mean: `Moment`, `Count`, `Gathered` or `Own`, by name. A field that is not
            listed is the link's own.
        out: What leaves the link, in words, with `{}` for what comes in. By default that is the same quantity at all
            places but the moments, and for a link around others what leaves these.
        factor: What the link multiplies by: a number, or a function from its hyperparameters to one; `None` if that
            changes from step to step.
        holds: For arguments that hold transformations, where in the link's state their states are: a path of names and
            keys, in which `SLOT` stands for the name in a dictionary of them; `()` for the whole state. By default the
            field of the argument's name.
        alternatives: What `linkax.chains.ablations` swaps the link for: a function that yields `Alternative`s. It is
            given the link's hyperparameters by name, and `is_corrected`: whether a bias correction follows.
        labels: If it holds groups of parameters, the argument that says which group each belongs to.
        knobs: What its decays are called in `linkax.chains.live`, by argument, if not as the arguments; or a function
            from the hyperparameters to that. Arguments of one name move together. For an argument that holds links,
            what their decays are called in it; for one that has to be that of an average in front, `InFront`.
        too_late: What the error says that one should do if the link stands behind others that it cannot stand behind.
        too_early: The same, if it stands in front of such.
        view: If it keeps the state of what it holds in another form than that has it, a function from its
            hyperparameters, by name, to the `View` through which others see it.
        is_final: Whether its updates must reach the parameters as they are: with no link behind it, and not rounded to
            the parameters' dtypes.
        is_leafwise: Whether all that it does to the leaves of the updates goes through `map_updates` and `map_state`,
            one leaf at a time, and it looks at no leaf otherwise. Then a chain traces it once for all leaves of a
            shape, if that holds for what is inside it, too.

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
        is_leafwise=is_leafwise,
    )

    def decorate(factory: Callable[_P, optax.GradientTransformation]) -> Callable[_P, Link]:
        arguments = Arguments(factory)

        @functools.wraps(factory)
        def build(*args: _P.args, **kwargs: _P.kwargs) -> Link:
            hyperparams = arguments(*args, **kwargs)
            numbers = tuple(name for name in arguments.numbers if hyperparams[name] is not None)
            schedules = [name for name in numbers if callable(hyperparams[name])]
            if schedules:
                # What the factory itself checks, it checks now.
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
            remember(self)
            return self

        return build

    return decorate
