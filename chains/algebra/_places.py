"""Which link may be placed where.

In w ← w − α·m/√V the gradient comes first, then the moments, the step, the learning rate, and the resulting update.
Links keep that order, with one exception: a moment may follow the learning rate (the velocity form of momentum).
"""

from linkax.transforms import Link

from ._structure import parts

_ORDER = ("gradient", "moment", "step", "learning rate", "update", "observer")


def rank(link: Link) -> int | None:
    """The position of a link's place in the order, or `None` for a foreign link, which may be placed anywhere."""
    if link.sets_sign and link.place == "step":
        return _ORDER.index("learning rate")
    if link.is_observer:
        return _ORDER.index("observer")
    return None if link.place is None else _ORDER.index(link.place)


def own_index(links: tuple[Link, ...], new: Link) -> int:
    """The index that puts a new link at the end of its own place."""
    new_rank = rank(new)
    if new_rank is None:
        raise ValueError(
            f"Chain.add: before or after must be given for {new!r}, whose place is unknown; "
            f"the links are {_names(links)}"
        )
    ranks = [rank(link) for link in links]
    start = max((index + 1 for index, other in enumerate(ranks) if other is not None and other <= new_rank), default=0)
    for index in range(start, len(links)):
        if (other := ranks[index]) is not None and other > new_rank:
            return index
    if None in ranks[start:] and new_rank < _ORDER.index("update"):
        raise ValueError(
            f"Chain.add: before or after must be given for {new!r}, because the place of a link after it is unknown; "
            f"the links are {_names(links)}"
        )
    return len(links)


def check_places(links: tuple[Link, ...]) -> None:
    """Raises if a link is placed where it would not do what its name says."""
    for index, later in enumerate(links):
        for earlier in links[:index]:
            _check_order(earlier, later)


def _check_order(earlier: Link, later: Link) -> None:
    if earlier.is_final and not later.is_identity:
        raise ValueError(
            f"chain: {earlier.name} must be the last link, because it computes the new parameters itself, got "
            f"{later.name} after it; put that before it, or inside"
        )
    if earlier.holds_observer and not later.is_identity and not later.is_observer:
        raise ValueError(
            f"chain: {earlier.name} must come after every link that changes the updates, because it averages the "
            f"parameters that they lead to, got {later.name} after it; put that before it"
        )
    before, after = rank(earlier), rank(later)
    if before is None or after is None:
        return
    names = _ORDER[before], _ORDER[after]
    if earlier.is_second_moment and names[1] not in ("gradient", "moment"):
        raise ValueError(
            f"chain: {earlier!r} returns a second moment, whose root must be a divisor, got {later.name} after it; use "
            "scale_by_rms, scale_by_rss or scale_by_stddev, or put it into moment_ratio(first, second, eps)"
        )
    if names == ("learning rate", "learning rate"):
        raise ValueError(
            "chain: one learning rate is allowed, because each flips the sign of the updates, got two of them; "
            "multiply by optax.scale or optax.scale_by_schedule instead"
        )
    if before <= after or names == ("learning rate", "moment"):
        return
    raise ValueError(
        f"chain: the order must be {', '.join(_ORDER)}, got {later.name} ({names[1]}) after {earlier.name} "
        f"({names[0]})" + _hint(earlier, later)
    )


def _hint(earlier: Link, later: Link) -> str:
    said = later.if_misplaced(is_late=True) or earlier.if_misplaced(is_late=False)
    return f"; {said or 'to merge two optimizers into one, combine their .links'}"


def _names(links: tuple[Link, ...]) -> str:
    return ", ".join(link.name for link in links)


def check_rows(links: tuple[Link, ...]) -> None:
    """Raises if a link cannot take row-sparse gradients."""
    every = list(parts(links))
    covered = [part.path for part in every if part.link.covers_rows]
    wrong = [
        part
        for part in every
        if not part.link.is_row_local and not any(part.path[: len(path)] == path for path in covered)
    ]
    if any(part.link.covers_rows and not part.link.is_row_local for part in every):
        raise TypeError(
            "Chain.update: param_groups takes row-sparse gradients only without links next to it, got "
            f"{_names(links)}; put these links into the groups' chains"
        )
    if wrong:
        raise TypeError(
            f"Chain.update: {', '.join(part.name for part in wrong)} cannot take row-sparse gradients and leave the "
            "other rows alone; sgd (without momentum), adagrad and sparse_adam can (without weight decay), also next "
            "to other chains in param_groups; lazy(...) around a moment leaves untouched rows unchanged; .todense() "
            "makes the gradient dense"
        )
