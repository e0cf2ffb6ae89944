"""What several examples share: a look for each optimizer, the same in every picture."""

# Hues by Okabe and Ito, which colour-blind people can tell apart; close relatives share one and differ in their dashes.
COLORS = {
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
DASHES = dict.fromkeys(COLORS, "-") | {"SGD, momentum": "--", "SGD, Nesterov": ":", "AMSGrad": "--", "AdamW": "-."}
MARKERS = dict(zip(COLORS, "o^vsDXPp*h"))
BETTER, WORSE, NEITHER = "#0072B2", "#D55E00", "#777777"
