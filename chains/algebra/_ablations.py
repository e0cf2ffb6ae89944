"""All the chains one step away from a given one."""

import itertools
from collections.abc import Iterator, Mapping

from linkax.transforms import Gathered, Link, Moment
from linkax.transforms._link import Alternative

from ._chain import Chain, chain
from ._structure import Part, Path, joined, part_at, parts, rewrite


def ablations(tx: Chain) -> dict[str, Chain]:
    """Removes one link at a time from a chain, or swaps it for its usual alternative.

    Returns the chains one step away from `tx`, wherever the step makes sense:

    - each link left out. A moment takes its bias correction with it. Without its second moment, a `moment_ratio`
      becomes its first moment alone. Bias corrections are left out one by one and all together;
    - weight decay of the other kind (with the same strength and mask);
    - the running maximum of the second moment added (AMSGrad);
    - ε moved into or out of the root;
    - Nesterov's momentum instead of momentum.

    Links that set the sign of the update are never left out: the learning rate, and the negation of `maximize`. Groups
    of parameters (`param_groups`) are ablated one by one; a frozen group stays frozen.

    Args:
        tx: A chain.

    Returns:
        A dictionary from readable names, such as `"without bias_correction"`, to chains, without duplicates and without
        `tx`.

    Raises:
        TypeError: If `tx` is not a chain.

    Example:
        >>> from linkax import ablations, adam, adamw
        >>> for name in ablations(adamw()):
        ...     print(name)
        without first.scale_by_momentum
        without first.bias_correction
        without second.mean_square
        without second.bias_correction
        without decoupled_weight_decay
        without bias_correction
        eps in the root
        scale_by_nesterov for scale_by_momentum
        with running_max
        add_l2_to_grad for decoupled_weight_decay
        >>> ablations(adamw())["without decoupled_weight_decay"] == adam()
        True
        >>> ablations(adamw())["with running_max"] == adamw(amsgrad=True)
        True
    """
    if not isinstance(tx, Chain):
        raise TypeError(f"ablations: tx must be a chain, got {tx!r}; make one with linkax.chain")
    every = [part for part in parts(tx.links) if _is_own(part.path, tx)]
    steps = [step for part in every for step in _without(part, every)]
    corrections: dict[str, dict[Path, tuple[Link, ...]]] = {}
    for part in every:
        if _corrects(part.link) and len(part.path) > 1:
            corrections.setdefault(part.link.name, {})[part.path] = ()
    steps += [(f"without {name}", several) for name, several in corrections.items() if len(several) > 1]
    others = [(part, other) for part in every for other in _alternatives(part, every)]
    steps += [_swapped(part, other, every) for part, other in others if not other.elsewhere]
    steps += [_swapped(part, other, every) for part, other in others if other.elsewhere]
    found: dict[str, Chain] = {}
    for name, changes, *added in steps:
        try:
            new = chain(*rewrite(tx.links, changes, chain))
            for link in added:
                new = new.add(link)
        except ValueError:  # not possible here, such as a moment_ratio without its foreign second moment
            continue
        if new != tx and new not in found.values():
            found[_free(name, found)] = new
    for index, link in enumerate(tx.links):
        for slot_name, slot in link.slots.items():
            if slot.kind == "moment" or link.place is not None:
                continue
            for name, new in ablations(chain(*slot.links)).items():
                try:
                    inside = link.with_slots({slot_name: joined(slot, new.links, chain)})
                except ValueError:  # what optax.inject_hyperparams holds cannot be changed
                    continue
                called = name if slot.kind == "around" else f"{slot_name}: {name}"
                found[_free(called, found)] = chain(*tx.links[:index], inside, *tx.links[index + 1 :])
    return found


_Step = tuple[str, Mapping[Path, tuple[Link, ...]]] | tuple[str, Mapping[Path, tuple[Link, ...]], Link]
"""A name, what to put where, and possibly a link to add in its own place."""


def _free(name: str, taken: Mapping[str, Chain]) -> str:
    """The name, followed by a number if several links with the same name make it ambiguous."""
    numbered = (name if count == 1 else f"{name} ({count})" for count in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)


def _is_own(path: Path, tx: Chain) -> bool:
    """Whether a link belongs to the chain itself and not to a whole optimizer inside one of its links."""
    holders = (part_at(tx.links, path[:end]) for end in range(1, len(path), 2))
    return all(holder.place is not None for holder in holders)


def _corrects(link: Link) -> bool:
    """Whether it corrects its input by the accumulated weight."""
    kinds = {type(field) for field in link.fields.values()}
    return Gathered in kinds and Moment not in kinds


def _without(part: Part, every: list[Part]) -> Iterator[_Step]:
    """Leaves one link out, together with the links that make no sense without it."""
    link = part.link
    kinds = {slot.kind for slot in link.slots.values()}
    if link.sets_sign or "moment" in kinds or (link.is_foreign and (kinds or link.is_identity)):
        return
    if link.place is None and kinds:  # a whole optimizer is inside
        return
    if kinds:
        yield f"without {part.name}", {part.path: next(iter(link.slots.values())).links}
    elif link.is_second_moment:
        ratio = next(other for other in every if other.path == part.path[:-2])
        yield f"without {part.name}", {ratio.path: next(iter(ratio.link.slots.values())).links}
    else:
        correction = _correction(part, every)
        yield f"without {part.name}", {part.path: (), **({correction.path: ()} if correction else {})}


def _alternatives(part: Part, every: list[Part]) -> Iterator[Alternative]:
    """The usual alternatives to a link, as it declares them, and ε moved into or out of the root."""
    given = part.link.hyperparams
    if not part.link.is_foreign and "eps_in_sqrt" in given and given["eps"] is not None:
        where = "outside" if given["eps_in_sqrt"] else "in"
        yield Alternative(f"eps {where} the root", (part.link.replace(eps_in_sqrt=not given["eps_in_sqrt"]),))
    behind = [other.link for other in every if other.path[:-1] == part.path[:-1] and other.path > part.path]
    for other in part.link.alternatives(is_corrected=_correction(part, every) is not None):
        if not any(link in behind for link in other.links):  # a second maximum would change nothing
            yield other
    if part.link.definition is not None:  # an abbreviation: the links it stands for may have alternatives, too
        inside = list(parts(part.link.definition.links))
        idle = {one.path: () for one in inside if one.link.is_identity}
        for one in inside:
            for other in _alternatives(one, inside):
                if "eps_in_sqrt" not in one.link.hyperparams:
                    changes = {**idle, one.path: other.links}
                    yield other._replace(links=tuple(rewrite(part.link.definition.links, changes, chain)))


def _swapped(part: Part, other: Alternative, every: list[Part]) -> _Step:
    correction = _correction(part, every) if other.replaces_correction else None
    changes: dict[Path, tuple[Link, ...]] = {part.path: other.links}
    if correction is not None:
        changes[correction.path] = ()
    name = other.name.format(part.name if other.elsewhere else part.link.name)
    if other.elsewhere:
        return name, {part.path: ()}, other.links[0]
    return name, changes


def _correction(part: Part, every: list[Part]) -> Part | None:
    """The bias correction after an average, in the same moment."""
    if not any(isinstance(field, Moment) and field.weight is not None for field in part.link.fields.values()):
        return None
    for other in every:
        if other.path[:-1] == part.path[:-1] and other.path > part.path and _corrects(other.link):
            return other
    return None
