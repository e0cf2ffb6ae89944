"""Two chains side by side."""

import difflib

from linkax.transforms._identity import identity_of

from ._chain import Chain
from ._tree import Line, lines, own_text


class Diff(str):
    """A comparison of two chains as text; its repr is the text itself, which is empty if the chains are equal."""

    def __repr__(self) -> str:
        return str(self)


def diff(a: Chain, b: Chain) -> Diff:
    """Puts two chains side by side and marks the links and hyperparameters that differ.

    A line with `<` is a link that only `a` has, one with `>` a link that only `b` has, and one with `|` a link that
    both have with different hyperparameters, which are marked with asterisks.

    Args:
        a: A chain.
        b: Another chain.

    Returns:
        The text, which a notebook or a prompt shows as is; empty if the chains are equal.

    Raises:
        TypeError: If `a` or `b` is not a chain.

    Example:
        >>> from linkax import adam, adamw, diff
        >>> diff(adam(1e-3, weight_decay=1e-2), adamw(1e-3, weight_decay=1e-2, eps=1e-6))
        chain                                                    chain
        ├─ add_l2_to_grad(weight_decay=0.01)                  <
        ├─ moment_ratio(*eps=1e-08*)                          |  ├─ moment_ratio(*eps=1e-06*)
        │  ├─ first                                              │  ├─ first
        │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)     │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)
        │  │  └─ bias_correction(decay=0.9)                      │  │  └─ bias_correction(decay=0.9)
        │  └─ second                                             │  └─ second
        │     ├─ mean_square(decay=0.999)                        │     ├─ mean_square(decay=0.999)
        │     └─ bias_correction(decay=0.999)                    │     └─ bias_correction(decay=0.999)
                                                              >  ├─ decoupled_weight_decay(weight_decay=0.01)
        └─ scale_by_learning_rate(learning_rate=0.001)           └─ scale_by_learning_rate(learning_rate=0.001)
    """
    for name, tx in (("a", a), ("b", b)):
        if not isinstance(tx, Chain):
            raise TypeError(f"diff: {name} must be a chain, got {tx!r}; make one with linkax.chain")
    if a == b:
        return Diff("")
    left, right = list(lines(a.links)), list(lines(b.links))
    rows: list[tuple[str, str, str]] = [("chain", " ", "chain")]
    matcher = difflib.SequenceMatcher(None, [_kind(line) for line in left], [_kind(line) for line in right], False)
    for _, i, i_end, j, j_end in matcher.get_opcodes():
        if i_end - i == j_end - j and [_kind(x) for x in left[i:i_end]] == [_kind(y) for y in right[j:j_end]]:
            rows += (_row(x, y) for x, y in zip(left[i:i_end], right[j:j_end]))
        else:
            rows += ((x.branch + x.text, "<", "") for x in left[i:i_end])
            rows += (("", ">", y.branch + y.text) for y in right[j:j_end])
    width = max(len(text) for text, _, _ in rows)
    return Diff("\n".join(f"{x:<{width}}  {mark}  {y}".rstrip() for x, mark, y in rows))


def _kind(line: Line) -> tuple:
    """What two lines must share to be the same link, whatever its hyperparameters."""
    return (*line.where, line.link.name if line.link else line.text)


def _row(x: Line, y: Line) -> tuple[str, str, str]:
    if x.link is None or y.link is None or x.link == y.link:
        return x.branch + x.text, " ", y.branch + y.text
    own, others = ({k: identity_of(v) for k, v in z.hyperparams.items()} for z in (x.link, y.link))
    slots = {*x.link.holders(), *y.link.holders()}  # these have their own lines
    changed = {name for name in (own | others).keys() - slots if own.get(name) != others.get(name)}
    mark = "|" if changed or not (x.link.slots or y.link.slots) else " "
    return x.branch + own_text(x.link, changed), mark, y.branch + own_text(y.link, changed)
