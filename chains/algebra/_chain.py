"""A chain: a sequence of links that remembers its links, prints them, and can be edited.

Chains never change; `swap`, `drop` and `add` return new ones.
"""

from collections.abc import Mapping
from typing import Any

import optax

from linkax.transforms import Link
from linkax.transforms._foreign import Anatomy, Held
from linkax.transforms._leaves import check_leaves, in_dtype_of, in_dtype_unless_low, map_updates, widened
from linkax.transforms._link import recall, refuse_setting, remember
from linkax.transforms._per_leaf import deferred, is_deferred, settled
from linkax.transforms._precision import wide_inside
from linkax.transforms._rows import has_rows, update_rows

from ._places import check_places, check_rows, own_index
from ._structure import Part, Path, explain_state, flatten, joined, part_at, parts, rewrite
from ._tree import tree_html, tree_text


class Chain(optax.GradientTransformationExtraArgs):
    """An optimizer as a sequence of links; an Optax gradient transformation in every respect.

    Two chains of equal links are equal and hash alike, so a chain can be a static argument of `jax.jit` and a
    dictionary key. Chains are made by `chain` and by the named optimizers.

    Attributes:
        init: Maps the parameters to the chain's state, a tuple of its links' states, as in Optax.
        update: Maps (updates, state, parameters) to (updates, state), as in Optax.
        links: The links in order. A foreign Optax transformation is a link without a place.

    Example:
        >>> from linkax import adam
        >>> adam(1e-3, weight_decay=1e-2)
        chain
        ├─ add_l2_to_grad(weight_decay=0.01)                  gradient
        ├─ moment_ratio(eps=1e-08)                            moment
        │  ├─ first
        │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
        │  │  └─ bias_correction(decay=0.9)                   moment
        │  └─ second
        │     ├─ mean_square(decay=0.999)                     moment
        │     └─ bias_correction(decay=0.999)                 moment
        └─ scale_by_learning_rate(learning_rate=0.001)        step
    """

    links: tuple[Link, ...]
    _inside: optax.GradientTransformationExtraArgs  # its links alone, without checks and without rounding at the end

    def __new__(cls, init: optax.TransformInitFn, update: optax.TransformUpdateExtraArgsFn) -> "Chain":
        if (known := recall(cls, init, update)) is not None:
            return known
        self = super().__new__(cls, init, update)
        vars(self)["links"] = (Link(init, update),)
        return self

    @classmethod
    def _make(cls, iterable: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cls(*iterable)

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_setting(self, name, "tx.swap(...), tx.drop(...) and tx.add(...) make other chains")

    def anatomy(self) -> Anatomy:
        """What it is when used as a single link; see `linkax.transforms._foreign`."""
        held = {"inner": Held(self, ())}
        return Anatomy("chain", {}, holds=held, rebuild=lambda changes: changes["inner"], out="{}", factor=1.0)

    def swap(self, name: str, link: optax.GradientTransformation) -> "Chain":
        """Returns the chain with one link replaced by another.

        The new link takes the old one's position if both have the same place, or if one of them is an Optax
        transformation, whose place is unknown. Otherwise it goes to its own place: swapping `add_l2_to_grad` for
        `decoupled_weight_decay` moves the decay from the gradient to the step, right before the learning rate. Nothing
        carries over from the old link: pass a mask to the new one again.

        Args:
            name: The name of the link to remove, which may be inside a `moment_ratio`. If several links have that name,
                prefix the moment it is in: `"second.bias_correction"`.
            link: The link (or chain, or Optax transformation) to insert.

        Raises:
            ValueError: If no link or more than one has that name, or `link` cannot be placed there.
            TypeError: If `link` is not a gradient transformation.

        Example:
            >>> from linkax import adam, adamw
            >>> from linkax.transforms import decoupled_weight_decay
            >>> tx = adam(1e-3, weight_decay=1e-2)
            >>> tx.swap("add_l2_to_grad", decoupled_weight_decay(1e-2)) == adamw(1e-3, weight_decay=1e-2)
            True
        """
        old = self._find_one("swap", name)
        new = flatten("Chain.swap: link", link)
        whole, within = self._whole_around(old.path)
        if whole:  # a whole optimizer inside a link is a chain of its own
            slot = part_at(self.links, whole[:-1]).slots[str(whole[-1])]
            part = next(part for part in parts(slot.links) if part.path == within)
            changed = joined(slot, chain(*slot.links)._swap(part, new).links, chain)
            return self._rewrite({whole[:-1]: (part_at(self.links, whole[:-1]).with_slots({str(whole[-1]): changed}),)})
        return self._swap(old, new)

    def _swap(self, old: Part, new: tuple[Link, ...]) -> "Chain":
        places = {old.link.place, *(link.place for link in new)}
        if len(old.path) == 1 and len(places) > 1 and None not in places:
            return self._rewrite({old.path: ()}).add(chain(*new))
        return self._rewrite({old.path: new})

    def _whole_around(self, path: Path) -> tuple[Path, Path]:
        """The path of the innermost slot with a whole optimizer around a link, and the rest of the link's path."""
        for end in range(len(path) - 1, 1, -1):
            step = path[end - 1]
            if isinstance(step, str) and part_at(self.links, path[: end - 1]).slots[step].kind != "moment":
                return path[:end], path[end:]
        return (), path

    def drop(self, name: str) -> "Chain":
        """Returns the chain without the links of a given name.

        A link that wraps others, such as `stored` or `lazy`, is replaced by these.

        Args:
            name: As in `swap`, but every link with that name is removed: `drop("bias_correction")` removes the
                corrections of both moments, `drop("first.bias_correction")` one of them.

        Raises:
            ValueError: If no link has that name, or the rest makes no sense (a `moment_ratio` without a second moment).

        Example:
            >>> from linkax import rmsprop
            >>> rmsprop(1e-2, momentum=0.9).drop("scale_by_momentum") == rmsprop(1e-2)
            True
        """
        return self._rewrite({part.path: part.link.around for part in self._find("drop", name)})

    def add(
        self, link: optax.GradientTransformation, *, before: str | None = None, after: str | None = None
    ) -> "Chain":
        """Returns the chain with one more link.

        Without `before` and `after`, a link goes to the end of its own place: a gradient link before any moment, a
        moment after the others, a step link right before the learning rate, an update link to the end. An Optax
        transformation, whose place is unknown, needs one of the two.

        Args:
            link: The link (or chain, or Optax transformation) to insert.
            before: The name of the link to insert it before, as in `swap`.
            after: The name of the link to insert it after.

        Raises:
            ValueError: If both `before` and `after` are given, or the name is unknown or ambiguous, or `link` cannot be
                placed there, or its position is not specified.
            TypeError: If `link` is not a gradient transformation.

        Example:
            >>> import optax
            >>> from linkax import adam
            >>> from linkax.transforms import running_max
            >>> adam().add(running_max(), after="mean_square") == adam(amsgrad=True)
            True
            >>> adam().add(optax.clip_by_global_norm(1.0), before="moment_ratio").links[0]
            clip_by_global_norm(max_norm=1.0)
        """
        new = flatten("Chain.add: link", link)
        if before is not None and after is not None:
            raise ValueError(f"Chain.add: before or after may be given, got both {before!r} and {after!r}")
        if before is not None:
            old = self._find_one("add", before)
            return self._rewrite({old.path: (*new, old.link)})
        if after is not None:
            old = self._find_one("add", after)
            return self._rewrite({old.path: (old.link, *new)})
        links = self.links
        for one in new:
            index = own_index(links, one)
            links = (*links[:index], one, *links[index:])
        return chain(*links)

    def _rewrite(self, changes: Mapping[Path, tuple[Link, ...]]) -> "Chain":
        return chain(*rewrite(self.links, changes, chain))

    def _find(self, method: str, name: str) -> list[Part]:
        every = list(parts(self.links))
        found = [part for part in every if f".{part.name}".endswith(f".{name}")]
        if not found:
            names = ", ".join(part.name for part in every) or "none"
            raise ValueError(
                f"Chain.{method}: no link is called {name!r}; the links are {names} (a named optimizer leaves out a "
                "link whose number is None or the plain 0)"
            )
        return found

    def _find_one(self, method: str, name: str) -> Part:
        found = self._find(method, name)
        if len(found) > 1:
            names = ", ".join(part.name for part in found)
            raise ValueError(f"Chain.{method}: {len(found)} links are called {name!r}: {names}; name one of them")
        return found[0]

    def __repr__(self) -> str:
        return tree_text(self.links)

    def _repr_html_(self) -> str:
        return tree_html(self.links)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.links == other.links

    def __ne__(self, other: object) -> bool:  # tuple defines its own
        return not self == other

    def __hash__(self) -> int:
        return hash((Chain, self.links))

    def __reduce__(self) -> tuple:
        return chain, self.links


def _in_sequence(links: tuple[Link, ...]) -> optax.GradientTransformationExtraArgs:
    """The links in sequence, like `optax.chain`, as used inside a chain; leaves of equal shapes are traced once."""
    inside = [wide_inside(link) for link in links]

    def init(params: Any) -> Any:
        return tuple(tx.init(params) for tx in inside)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        is_outermost = not is_deferred(updates)
        states = []
        for link, tx, old in zip(links, inside, state, strict=True):
            if link.is_leafwise:
                updates = deferred(updates)
            elif is_deferred(updates):
                updates, states = settled((updates, states))
            updates, new = tx.update(updates, old, params, **extra_args)
            states.append(new)
        updates, states = settled((updates, states)) if is_outermost else (updates, states)
        return updates, tuple(states)

    return optax.GradientTransformationExtraArgs(init, update)


def chain(*links: optax.GradientTransformation) -> Chain:
    """Applies links one after the other, as `optax.chain` does, and remembers them.

    u_0 = g, u_i = link_i(u_{i−1}); the last one is the update. Chains among the links are flattened, so
    `chain(chain(a, b), c)` is `chain(a, b, c)`. Optax's combinators stay as they are, and linkax can look into them.

    Between the links everything is at least float32. The update is returned in its parameter's dtype if parameters are
    given, otherwise in the gradient's.

    Args:
        *links: Links, chains and Optax transformations in the order in which they act.

    Returns:
        A `Chain`; its state is the tuple of its links' states.

    Raises:
        TypeError: If an argument is not a gradient transformation.
        ValueError: If a link is placed where it would not do what its name says: weight decay on the wrong side of the
            moments or of the learning rate, a second learning rate, or a second moment before the learning rate.

    A chain takes row-sparse gradients (`row_gradient`) if all of its links can: those of `sgd` without momentum, of
    `adagrad` and of `sparse_adam`. It then reads and writes the touched rows only.

    Differences:
        The states of nested chains are one flat tuple here, nested ones in Optax.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax import chain
        >>> from linkax.transforms import scale_by_learning_rate, scale_by_momentum
        >>> tx = chain(scale_by_momentum(0.5), scale_by_learning_rate(0.1))
        >>> params = {"w": jnp.ones(2)}
        >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
        >>> print(updates["w"])
        [-0.1 -0.1]

    Source:
        `optax.chain`.
    """
    flat = flatten("chain: an argument", *links)
    check_places(flat)
    tx = _in_sequence(flat) if flat else optax.with_extra_args_support(optax.identity())
    checks = any(link.place is not None for link in flat)  # others may hold transformations that handle integers
    # The updates of a final link are returned in float32 if the parameter is narrower.
    as_delivered = in_dtype_unless_low if any(link.is_final for link in flat) else in_dtype_of
    looks_after_rows = all(link.covers_rows and link.place is None for link in flat)

    def init(params: Any) -> Any:
        if checks:
            check_leaves("chain: params", params)
        return tx.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if checks:
            check_leaves("chain: a gradient", updates, params)
        try:
            if not has_rows(updates):
                return at_full_precision.update(updates, state, params, **extra_args)
            if looks_after_rows:
                return tx.update(updates, state, params, **extra_args)
            check_rows(flat)
            return update_rows(at_full_precision, updates, state, params, **extra_args)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            explain_state("Chain.update", error, self, state, updates if params is None else params)
            raise

    def links_update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        as_wide_as = None if isinstance(params, optax.LookaheadParams) else params  # these are two trees
        out, state = tx.update(widened(updates, as_wide_as), state, params, **extra_args)
        return map_updates(as_delivered, out, updates if params is None else params), state

    at_full_precision = optax.GradientTransformationExtraArgs(tx.init, links_update)
    self = optax.GradientTransformationExtraArgs.__new__(Chain, init, update)
    vars(self).update(links=flat, _inside=tx)
    remember(self)
    return self
