"""What a link is: an Optax gradient transformation that knows its name, its hyperparameters and its place.

`@link(place)` on an ordinary factory function gives it all three, and makes the links it builds comparable,
hashable, printable and picklable; the factory itself stays as it reads.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import optax

from ._check import Arguments
from ._describe import call_text, describe, describe_transformation
from ._identity import identity_of

_P = ParamSpec("_P")
_T = TypeVar("_T", bound=optax.GradientTransformation)

Place = Literal["gradient", "moment", "step", "update"]
"""Where in w ← w − α·m/√V a link acts: on the gradient, in the moments, on the direction, on the finished update."""


class Link(optax.GradientTransformationExtraArgs):
    """One mechanism of an optimizer: an Optax gradient transformation that knows what it is.

    Links come from the factories of `linkax.transforms`; `link` makes such factories. Calling `Link` itself on an
    `init` and an `update` function gives a *foreign* link: one whose place is unknown, and whose name and
    hyperparameters are read off the functions as far as they can be.

    Attributes:
        init: From parameters to the link's state, as in Optax.
        update: From (updates, state, parameters) to (updates, state), as in Optax.
        name: The factory's name, such as `"scale_by_momentum"`.
        hyperparams: The factory's arguments by name, defaults included.
        numbers: Which of them are numbers or schedules, of those that are given.
        place: `"gradient"`, `"moment"`, `"step"` or `"update"`; `None` for a foreign link, and for one that holds whole
            optimizers.
        is_second_moment: Whether what leaves the link is a mean or sum of squares, to be divided by.
        is_row_local: Whether a row whose gradient is zero gets no update and keeps its state.

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
    place: Place | None
    is_second_moment: bool
    is_row_local: bool
    _factory: Callable[..., "Link"] | None
    _written: Callable[..., optax.GradientTransformation] | None  # the factory as it was written, undecorated
    _defaults: Mapping[str, Any]

    def __new__(cls, init: optax.TransformInitFn, update: optax.TransformUpdateExtraArgsFn) -> "Link":
        if (known := recall(cls, init, update)) is not None:
            return known
        self = super().__new__(cls, init, update)
        self.name, hyperparams = describe_transformation(update)
        self.hyperparams = MappingProxyType(hyperparams)
        self.numbers, self.place = (), None
        self.is_second_moment, self.is_row_local = False, self.name == "identity"
        self._factory, self._written, self._defaults = None, None, {}
        return self

    @functools.cached_property
    def _identity(self) -> Hashable:
        if self._factory is None:
            return "foreign", identity_of(self.init), identity_of(self.update)
        return identity_of(self._written), identity_of(dict(self.hyperparams))

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

    def described(self) -> dict[str, str]:
        """Returns the hyperparameters as text, by name: every number, and whatever else has not its default value.

        Example:
            >>> from linkax.transforms import scale_by_rms
            >>> scale_by_rms(0.99).described()
            {'decay': '0.99', 'eps': '1e-08'}
        """

        def is_silent(name, value):
            switched_off = value is None or isinstance(value, bool | str)
            return switched_off and name in self._defaults and value == self._defaults[name]

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


def remember(tx: optax.GradientTransformationExtraArgs) -> None:
    """Lets the update function of a link or chain know it, so that it is found again where only the functions are left.

    To JAX a named tuple is a tree; `jax.tree.map`, and Flax's `nnx.split` and `nnx.merge`, rebuild it from its leaves.
    """
    vars(tx.update)["_linkax"] = tx


def recall(cls: type[_T], init: optax.TransformInitFn, update: optax.TransformUpdateExtraArgsFn) -> _T | None:
    """What the functions were part of before a tree map took it apart, if it was a `cls`; see `remember`."""
    known = getattr(update, "_linkax", None)
    return known if isinstance(known, cls) and known.init is init else None


def _own(update: optax.TransformUpdateExtraArgsFn) -> optax.TransformUpdateExtraArgsFn:
    """The same update as a function of its own, which only one link has."""

    def call(updates, state, params=None, **extra_args):
        return update(updates, state, params, **extra_args)

    return call


def links_of(where: str, tx: Any) -> tuple[Link, ...]:
    """The links that a transformation consists of: a chain's, a link itself, any other one seen as a foreign link."""
    if isinstance(tx, Link):
        return (tx,)
    if isinstance(tx, optax.GradientTransformation):
        links = getattr(tx, "links", None)
        return (Link(tx.init, optax.with_extra_args_support(tx).update),) if links is None else links
    hint = f"; call it: {tx.__name__}(...)" if hasattr(tx, "__name__") else ""
    raise TypeError(f"{where} must be a link, a chain or an Optax transformation, got {tx!r}{hint}")


def _build(factory: Callable[..., Link], hyperparams: dict[str, Any]) -> Link:
    return factory(**hyperparams)


def link(
    place: Place | Callable[..., Place] | None, *, is_second_moment: bool = False, is_row_local: bool = False
) -> Callable[[Callable[_P, optax.GradientTransformation]], Callable[_P, Link]]:
    """Makes a function that returns an Optax gradient transformation into a factory of links.

    The factory's name becomes the link's name and its arguments the link's hyperparameters. Arguments annotated
    with `NonNegative`, `Positive`, `Fraction`, `ProperFraction`, `Rate`, `bool` or a `Literal` are checked on every
    call.

    Args:
        place: Where the link acts: `"gradient"` (before any moment sees the gradient), `"moment"`, `"step"` (on the
            finished direction, before the learning rate multiplies it), or `"update"` (after the learning rate). Where
            that depends on the hyperparameters, a function from them, by name, to the place. `None` for what holds
            whole optimizers, and may stand anywhere.
        is_second_moment: Whether the link puts out a mean or sum of squares, which only makes sense as the second
            argument of `moment_ratio`.
        is_row_local: Whether a row whose gradient is zero gets no update and keeps its state, apart from what is inside
            the link: then the link can take row-sparse gradients (`row_gradient`).

    Returns:
        A decorator.

    Raises:
        ValueError: If `place` is none of the four.

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

    if place is not None and not callable(place) and place not in get_args(Place):
        raise ValueError(f"link: place must be one of {', '.join(get_args(Place))}, got {place!r}")

    def decorate(factory: Callable[_P, optax.GradientTransformation]) -> Callable[_P, Link]:
        arguments = Arguments(factory)

        @functools.wraps(factory)
        def build(*args: _P.args, **kwargs: _P.kwargs) -> Link:
            hyperparams = arguments(*args, **kwargs)
            tx = optax.with_extra_args_support(factory(**hyperparams))  # type: ignore[call-arg]
            self = Link(tx.init, _own(tx.update))
            self.name, self.hyperparams = factory.__name__, MappingProxyType(hyperparams)
            self.numbers = tuple(name for name in arguments.numbers if hyperparams[name] is not None)
            self.place = place(**hyperparams) if callable(place) else place
            self.is_second_moment, self.is_row_local = is_second_moment, is_row_local
            self._factory, self._written, self._defaults = build, factory, arguments.defaults
            remember(self)
            return self

        return build

    return decorate
