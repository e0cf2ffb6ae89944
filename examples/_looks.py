"""What several examples share: a look for each optimizer, the same in every picture."""

from typing import Any

from matplotlib.axes import Axes

# Hues by Okabe and Ito, which colour-blind people can tell apart; close relatives share one and differ in their dashes.
_COLORS = {
    "SGD": "black",
    "SGD, momentum": "black",
    "SGD, Nesterov": "black",
    "Adagrad": "#009E73",
    "RMSprop": "#56B4E9",
    "Adadelta": "#E69F00",
    "Adam": "#D55E00",
    "AMSGrad": "#D55E00",
    "AdamW": "#0072B2",
    "NAdam": "#CC79A7",
}
_DASHES = dict.fromkeys(_COLORS, "-") | {"SGD, momentum": "--", "SGD, Nesterov": ":", "AMSGrad": "--", "AdamW": "-."}
_MARKERS = dict(zip(_COLORS, "o^vsDXPp*h"))
BETTER, WORSE, NEITHER = "#0072B2", "#D55E00", "#777777"


def look(optimizer: str) -> dict[str, Any]:
    """The keywords of an optimizer's line in Matplotlib."""
    return {"color": _COLORS[optimizer], "linestyle": _DASHES[optimizer], "marker": _MARKERS[optimizer]}


def log_scale(axes: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers at 1, 2 and 5 of every power of ten."""
    axes.set_yscale("log", subs=[2, 5])
    axes.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
