"""All the chains one step away from a given one."""

import itertools
from collections.abc import Iterator, Mapping

from linkax.transforms import (
    Link,
    add_l2_to_grad,
    decoupled_weight_decay,
    mean_square,
    moment_ratio,
    running_max,
    scale_by_nesterov,
    variance,
)
from linkax.transforms._identity import identity_of

from ._chain import Chain, chain
from ._parts import Part, Path, flatten, inside, is_partition, parts, rewrite, with_inside

_OTHER_DECAY = {"add_l2_to_grad": decoupled_weight_decay, "decoupled_weight_decay": add_l2_to_grad}
_SECOND_MOMENT_OF = {"scale_by_rms": mean_square, "scale_by_stddev": variance}
_AVERAGES = ("scale_by_momentum", "scale_by_nesterov")
_SIGNS = ("scale_by_learning_rate", "negate_grad", "set_to_zero")


def ablations(tx: Chain) -> dict[str, Chain]:
    """Takes one link at a time out of a chain, or swaps it for its usual alternative.

    The chains one step away from `tx`, wherever the step makes sense:

    - every link left out. Of a moment, its bias correction goes with it; without a second moment, a `moment_ratio` is
      its first moment alone; without a bias correction, once for each moment and once for all;
    - weight decay of the other kind (with its strength and mask);
    - the running maximum of the second moment added (AMSGrad);
    - ε moved into the root, or out of it;
    - Nesterov's momentum for momentum.

    What sets the sign of the update is never left out: the learning rate, and the negation of `maximize`. Groups of
    parameters (`param_groups`) are taken apart one by one; a frozen one stays frozen.

    Args:
        tx: A chain.

    Returns:
        The chains by readable names, such as `"without bias_correction"`, each once; `tx` itself is not among them.

    Raises:
        TypeError: If `tx` is not a chain.

    Example:
        >>> from linkax.chains import ablations, adam, adamw
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
        raise TypeError(f"ablations: tx must be a chain, got {tx!r}; make one with linkax.chains.chain")
    every = [part for part in parts(tx.links) if not is_partition(tx.links[int(part.path[0])])]
    steps = [step for part in every for step in _without(part, every)]
    corrections = {part.path: () for part in every if part.link.name == "bias_correction"}
    if len(corrections) > 1:
        steps.append(("without bias_correction", corrections))
    steps += [step for part in every for step in _swapped(part, every)]
    steps += [step for part in every for step in _other_decay(part)]
    found: dict[str, Chain] = {}
    for name, changes, *added in steps:
        try:
            new = chain(*rewrite(tx.links, changes, chain))
            for link in added:
                new = new.add(link)
        except ValueError:  # makes no sense here, such as a moment_ratio whose foreign second moment is left out
            continue
        if new != tx and new not in found.values():
            found[_free(name, found)] = new
    for index, link in enumerate(tx.links):
        if is_partition(link):
            for group, inner in inside(link).items():
                for name, new in ablations(chain(inner)).items():
                    links = (*tx.links[:index], with_inside(link, {group: new}), *tx.links[index + 1 :])
                    found[_free(f"{group}: {name}", found)] = chain(*links)
    return found


_Step = tuple[str, Mapping[Path, tuple[Link, ...]]] | tuple[str, Mapping[Path, tuple[Link, ...]], Link]
"""A name, what to put where, and possibly a link to add in its own place."""


def _free(name: str, taken: Mapping[str, Chain]) -> str:
    """The name, with a number behind it if links of one name have made it ambiguous."""
    numbered = (name if count == 1 else f"{name} ({count})" for count in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)


def _without(part: Part, every: list[Part]) -> Iterator[_Step]:
    """Leaves one link out, with what makes no sense without it."""
    if part.link.name in (*_SIGNS, "moment_ratio", "identity"):
        return
    if part.link.name == "lazy":
        yield f"without {part.name}", {part.path: flatten("ablations", part.link.hyperparams["inner"])}
    elif part.link.is_second_moment:
        ratio = next(other for other in every if other.path == part.path[:-2])
        yield f"without {part.name}", {ratio.path: flatten("ablations", ratio.link.hyperparams["first"])}
    else:
        correction = _correction(part, every) if part.link.name in _AVERAGES else None
        yield f"without {part.name}", {part.path: (), **({correction.path: ()} if correction else {})}


def _swapped(part: Part, every: list[Part]) -> Iterator[_Step]:
    """Swaps one link for its usual alternative."""
    link, given = part.link, part.link.hyperparams
    behind = [other.link.name for other in every if other.path[:-1] == part.path[:-1] and other.path > part.path]
    if link.name in ("mean_square", "variance") and "running_max" not in behind:
        yield "with running_max", {part.path: (link, running_max())}
    if link.name in _SECOND_MOMENT_OF:
        second = chain(_SECOND_MOMENT_OF[link.name](given["decay"]), running_max())
        ratio = moment_ratio(chain(), second, given["eps"], given["eps_in_sqrt"])
        yield "with running_max", {part.path: (ratio,)}
    if "eps_in_sqrt" in given:
        where = "outside" if given["eps_in_sqrt"] else "in"
        yield f"eps {where} the root", {part.path: (link.replace(eps_in_sqrt=not given["eps_in_sqrt"]),)}
    if link.name == "scale_by_momentum":
        yield from _nesterov(part, every)


def _other_decay(part: Part) -> Iterator[_Step]:
    if len(part.path) == 1 and part.link.name in _OTHER_DECAY:
        other = _OTHER_DECAY[part.link.name](part.link.hyperparams["weight_decay"], part.link.hyperparams["mask"])
        yield f"{other.name} for {part.name}", {part.path: ()}, other


def _nesterov(part: Part, every: list[Part]) -> Iterator[_Step]:
    decay, dampening = part.link.hyperparams["decay"], part.link.hyperparams["dampening"]
    name = "scale_by_nesterov for scale_by_momentum"
    if identity_of(dampening) == identity_of(0.0):
        yield name, {part.path: (scale_by_nesterov(decay),)}
    elif identity_of(dampening) == identity_of(decay):
        correction = _correction(part, every)
        form = "corrected" if correction else "averaged"
        yield name, {part.path: (scale_by_nesterov(decay, form=form),), **({correction.path: ()} if correction else {})}


def _correction(part: Part, every: list[Part]) -> Part | None:
    """The bias correction behind an average, in the same moment."""
    for other in every:
        same_moment = other.path[:-1] == part.path[:-1] and other.path > part.path
        if same_moment and other.link.name == "bias_correction":
            return other
    return None
