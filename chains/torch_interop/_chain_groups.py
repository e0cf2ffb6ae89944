"""A chain's groups of parameters and PyTorch's."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

from linkax.transforms import Link, Moment, Own

from ..algebra._structure import Groups, StateArray, flatten, groups_of, part_at
from ..running._live import Live, live_already
from ._group_matches import several_of_theirs
from ._names import TorchParam
from ._reference import Fields, field_of, line, sign_of, within


class Group(NamedTuple):
    """The chain, or one of its groups of parameters."""

    label: Groups
    links: list[Link]  # in sequence
    arrays: list[StateArray]
    live: frozenset[tuple[Link, str]]  # the arguments of links that may be set at any time
    is_injected: bool  # whether it is inside optax.inject_hyperparams, where every number may be set
    members: list[str]  # PyTorch's names of its parameters
    group: int | None  # PyTorch's group, or one that stands for several; None if none of its parameters is in one

    @property
    def has_live_rate(self) -> bool:
        """Whether the learning rate may be live."""
        return self.is_injected or any(link.sets_sign for link, _ in self.live)


def chain_groups(
    tx: optax.GradientTransformation,
    arrays: list[StateArray],
    params: Any,
    found: Mapping[tuple[str, ...], TorchParam],
    hyperparams: Sequence[Mapping[str, Any]],
    problems: list[str],
) -> list[Group]:
    """The chain's groups, and the one of PyTorch's groups that each of them corresponds to.

    Groups do not have to match one to one: `_group_matches` says when they are the same.
    """
    links = flatten("torch_interop: tx", tx)
    live = frozenset((part_at(links, path), argument) for (path, argument), _ in live_already(links))
    group_of = groups_of(links, params)
    kept = [array for array in arrays if _is_kept(array)]
    every: list[Group] = []
    for label in dict.fromkeys([*group_of.values(), *(array.site.groups for array in kept)]):
        own = [array.param for array in kept if array.site.groups == label and array.param is not None]
        paths = dict.fromkeys(own or [path for path, its in group_of.items() if its == label])
        theirs = sorted({found[path].group for path in paths if path in found})
        group = theirs[0] if theirs else None
        if len(theirs) > 1:
            members = {path: found[path].group for path in paths if path in found}
            whole = list(within(links, label))
            group = several_of_theirs(
                ".".join(label) or "the chain", whole, theirs, members, hyperparams, params, problems
            )
        every.append(
            Group(
                label,
                list(line(links, label)),
                [array for array in arrays if array.site.groups == label],
                live,
                any(
                    isinstance(array.field, Own)
                    and array.field.is_value
                    and not isinstance(getattr(array.site.link.update, "_linkax", None), Live)
                    and label[: len(array.site.groups)] == array.site.groups
                    for array in arrays
                ),
                [found[path].name for path in paths if path in found],
                group,
            )
        )
    lacking = {array.param: str(array) for array in kept if array.param not in found}
    problems += [f"PyTorch's optimizer has no parameter for {array}" for array in lacking.values()]
    return every


def _is_kept(array: StateArray) -> bool:
    """Whether PyTorch must have an equivalent: a moment, or what may be one."""
    if array.param is None or array.site.link.is_opaque:
        return False
    if isinstance(array.field, Moment):
        return not array.field.if_unchanged  # such as a wrapper's partial sum of gradients
    return isinstance(array.field, Own) and not array.site.link.slots


def check_kept(arrays: Iterable[StateArray], problems: list[str]) -> None:
    """Rejects what has no equivalent in PyTorch, and what cannot be looked into."""
    for array in arrays:
        if array.site.link.is_opaque:
            problems.append(
                f"{array.site.link.name} holds something that cannot be looked into, so the meaning of its "
                "state is unknown; use Optax's own combinators, or leave it out"
            )
        elif _is_kept(array) and not (isinstance(array.field, Moment) and array.field.torch):
            problems.append(f"PyTorch has no equivalent of {array.name}")


def check_signs(group: Group, fields: Fields, problems: list[str]) -> None:
    """Refuses to flip a moment's sign if it is unknown whether the chain minimises or maximises."""
    for array in group.arrays:
        partner = fields.get(field_of(array))
        if partner is not None and partner.factor < 0 and sign_of(group.links) is None:
            problems.append(
                f"{array.name} has a different sign from PyTorch's {partner.key}, and it is unknown whether it should"
            )
