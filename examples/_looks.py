"""What several examples share: a look for each optimizer, the same in every picture, and how a picture is saved."""

import argparse
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Hues by Okabe and Ito, which colour-blind people can tell apart; close relatives share one and differ in their dashes.
_COLORS = {
    "SGD": "black",
    "SGD, momentum": "black",
    "SGD, Nesterov": "black",
    "Adagrad": "#009E73",
    "RMSprop": "#56B4E9",
    "Adadelta": "#E69F00",
    "Adam": "#D55E00",
    "AMSGrad": "#7A3500",
    "AdamW": "#0072B2",
    "NAdam": "#CC79A7",
}
_DASHES = dict.fromkeys(_COLORS, "-") | {"SGD, momentum": "--", "SGD, Nesterov": ":", "AMSGrad": "--", "AdamW": "-."}
_MARKERS = dict(zip(_COLORS, "o^vsDXPp*h"))
# Optimizers that often take the same path are drawn in this order: the lower ones are wider and show as borders.
_WIDTHS = dict.fromkeys(_COLORS, 1.6) | {"SGD, momentum": 3.0, "Adagrad": 4.0, "Adam": 5.0, "AMSGrad": 3.2}
BETTER, WORSE, NEITHER = "#0072B2", "#D55E00", "#BBBBBB"
QUICK = "quick run: not a result"


def look(optimizer: str) -> dict[str, Any]:
    """The keywords of an optimizer's line in Matplotlib."""
    return {
        "color": _COLORS[optimizer],
        "linestyle": _DASHES[optimizer],
        "marker": _MARKERS[optimizer],
        "linewidth": _WIDTHS[optimizer],
    }


def log_scale(axes: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers at 1, 2 and 5 of every power of ten."""
    axes.set_yscale("log", subs=[2, 5])
    axes.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")


def save(figure: Figure, args: argparse.Namespace) -> None:
    """Saves the picture where the options say, and says so; that of a quick run says that it is not a result."""
    if args.quick:
        figure.text(0.5, 0.5, QUICK, ha="center", va="center", fontsize=32, rotation=20, color="red", alpha=0.5)
        print(QUICK)
    figure.savefig(args.out)
    print(f"The picture is {args.out}")
