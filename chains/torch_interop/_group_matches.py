"""Groups of parameters that do not match PyTorch's one to one.

Two frameworks may divide the same parameters differently: one of PyTorch's groups may be several of the chain's, and
several of PyTorch's one of the chain's. That is the same optimizer if the hyperparameters are the same. Weight decay
may differ between PyTorch's groups, if the chain's mask says the same about every parameter.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from linkax.transforms import Link

from ..algebra._paths import leaves_with_path, words
from ._spec import class_of, known_hyperparams


def several_of_theirs(
    called: str,
    links: Sequence[Link],
    theirs: Sequence[int],
    members: Mapping[tuple[str, ...], int],
    hyperparams: Sequence[Mapping[str, Any]],
    params: Any,
    problems: list[str],
) -> int:
    """The one of PyTorch's groups that stands for several, which are one of the chain's.

    Args:
        called: What the chain's group is called.
        links: Its links.
        theirs: PyTorch's groups.
        members: For the words of each parameter's path, the one of PyTorch's groups that it is in.
        hyperparams: The hyperparameters of all of PyTorch's groups.
        params: The parameters.
        problems: Where the reasons go why they are not the same optimizer.
    """
    own = {group: _hyperparams(hyperparams[group]) for group in theirs}
    decays = {group: _plain(given.pop("weight_decay", 0)) for group, given in own.items()}
    decaying = [group for group in theirs if decays[group]]
    one = (decaying or list(theirs))[0]
    keys = sorted({key for given in own.values() for key in given})
    apart = [key for key in keys if any(given.get(key) != own[one].get(key) for given in own.values())]
    where = f"the parameters of {called} are in several groups of PyTorch's, {list(theirs)}"
    if apart:
        problems.append(f"{where}, with different {', '.join(apart)}")
    if len({decays[group] for group in decaying}) > 1:
        every = ", ".join(str(decays[group]) for group in theirs)
        problems.append(f"{where}, with different weight decays ({every})")
    elif decaying and len(decaying) < len(theirs):
        problems += _other_masks(called, links, {path: decays[group] != 0 for path, group in members.items()}, params)
    return one


def _hyperparams(group: Mapping[str, Any]) -> dict[str, Any]:
    """What two groups must have in common to be one."""
    name = class_of(group)
    given = group if name is None else known_hyperparams(name, group)
    return {key: _plain(value) for key, value in given.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) in (1,) else value


def _other_masks(called: str, links: Sequence[Link], decays: Mapping[tuple[str, ...], bool], params: Any) -> list[str]:
    """The parameters that decay on one side only: found by letting a decaying link act on ones."""
    ones = jax.tree.map(lambda leaf: jnp.ones((1,) * jnp.ndim(leaf), jnp.result_type(leaf)), params)
    ours: set[tuple[str, ...]] = set()
    for link in _decaying(links):
        try:
            added, _ = link.update(jax.tree.map(jnp.zeros_like, ones), link.init(ones), ones)
        except Exception as error:  # the mask may be the user's
            return [f"{link.name} of {called} cannot be compared with PyTorch's groups ({error})"]
        ours |= {words(path) for path, leaf in leaves_with_path(added) if jnp.any(leaf != 0)}
    return [
        f"{'/'.join(path)} {'decays' if is_decayed else 'does not decay'} in PyTorch, unlike in the chain"
        for path, is_decayed in decays.items()
        if is_decayed != (path in ours)
    ]


def _decaying(links: Iterable[Link]) -> Iterator[Link]:
    """The links that make weights decay, with the mask around them if that is a link of its own."""
    for link in links:
        inside = [one for slot in link.slots.values() if slot.kind in ("around", "label") for one in slot.links]
        if "weight_decay" in link.hyperparams or (link.name == "masked" and any(_decaying(inside))):
            yield link
        else:
            yield from _decaying(inside)


def check_equal(
    chains: Iterable[tuple[str, Sequence[Link], Iterable[str]]], theirs: Sequence[Iterable[str]], problems: list[str]
) -> None:
    """Rejects different chains for parameters that are in one of PyTorch's groups, which has one set of numbers.

    Args:
        chains: What each of the chain's groups is called, its links, and PyTorch's names of its parameters.
        theirs: The names in each of PyTorch's groups.
        problems: Where the differences go.
    """
    group_of = {name: group for group, names in enumerate(theirs) for name in names}
    first: dict[int, tuple[str, list[Link]]] = {}
    for called, links, names in chains:
        for group in dict.fromkeys(group_of[name] for name in names):
            other, its = first.setdefault(group, (called, list(links)))
            if its != list(links):
                problems.append(
                    f"the parameters of PyTorch's group {group} are in both {other} and {called}, whose chains differ"
                )
