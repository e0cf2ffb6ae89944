"""A chain as a small tree: one link per line, with its hyperparameters and its place."""

import html
from collections.abc import Collection, Iterator
from typing import NamedTuple

from linkax.transforms import Link
from linkax.transforms._describe import describe


class Line(NamedTuple):
    """A line of the tree."""

    branch: str  # the characters that connect it to the lines above
    text: str  # a link, or the name of the slot that holds the links below it
    link: Link | None
    where: tuple[str, ...]  # the links and slots it is inside of


def lines(links: tuple[Link, ...], indent: str = "", where: tuple[str, ...] = ()) -> Iterator[Line]:
    """Yields the lines of the tree."""
    for index, link in enumerate(links):
        last = index == len(links) - 1
        yield Line(indent + ("└─ " if last else "├─ "), own_text(link), link, where)
        below = indent + ("   " if last else "│  ")
        within = (*where, link.name)
        for name, slot in link.slots.items():
            if slot.kind == "around":  # there is only one
                yield from lines(slot.links, below, within)
                continue
            last_slot = name == list(link.slots)[-1]
            text = name if slot.links else f"{name}: the input"
            yield Line(below + ("└─ " if last_slot else "├─ "), text, None, within)
            yield from lines(slot.links, below + ("   " if last_slot else "│  "), (*within, name))


def own_text(link: Link, marked: Collection[str] = ()) -> str:
    """A link as a call, without the links inside it, which have their own lines.

    Arguments in `marked` are put between asterisks, and are shown even at their default value.
    """
    described = link.described()
    hidden = link.holders() if link.slots else ()
    shown = [name for name in link.hyperparams if name in {*described, *marked}.difference(hidden)]
    texts = {name: f"{name}={described.get(name) or describe(link.hyperparams[name])}" for name in shown}
    return f"{link.name}({', '.join(f'*{texts[name]}*' if name in marked else texts[name] for name in shown)})"


def tree_text(links: tuple[Link, ...]) -> str:
    """The tree as text, with the places in a column on the right."""
    rows = [(line.branch + line.text, _tag(line.link)) for line in lines(links)]
    width = max((len(text) for text, _ in rows if len(text) <= 88), default=0)  # a long schedule may exceed it
    return "\n".join(["chain", *(f"{text:<{width}}  {place}".rstrip() for text, place in rows)])


def _tag(link: Link | None) -> str:
    """The text in the column on the right."""
    return "" if link is None else "opaque" if link.is_opaque else link.place or ""


_STYLE = {
    "gradient": "background:#0072b2;color:#fff",
    "moment": "background:#e69f00;color:#000",
    "step": "background:#009e73;color:#fff",
    "update": "background:#cc79a7;color:#000",
    "opaque": "background:#666;color:#fff",
}


def tree_html(links: tuple[Link, ...]) -> str:
    """The tree as an HTML table, with the places as tags in colours that colour-blind readers can tell apart."""
    rows = []
    for line in lines(links):
        place = _tag(line.link)
        tag = (
            f'<span style="{_STYLE[place]};border-radius:4px;padding:0 6px;font-size:80%">{place}</span>'
            if place
            else ""
        )
        text = html.escape(line.branch).replace(" ", "&nbsp;") + html.escape(line.text)
        rows.append(
            f'<tr><td style="text-align:right;padding:0 8px 0 0">{tag}</td>'
            f'<td style="text-align:left;font-family:monospace;white-space:pre;padding:0">{text}</td></tr>'
        )
    return '<table style="line-height:1.5;border-collapse:collapse">' + "".join(rows) + "</table>"
