"""PyTorch's optimizers and their arguments, and the chains that are the same."""

from collections.abc import Callable, Mapping
from typing import Any

from linkax.chains import (
    Chain,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    muon,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
    sparse_adam,
)
from linkax.chains.torch_interop._axes import default_factored_axes, default_output_axis

CHAINS: Mapping[str, Callable[..., Chain]] = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adadelta": adadelta,
    "Adam": adam,
    "AdamW": adamw,
    "NAdam": nadam,
    "Adamax": adamax,
    "RAdam": radam,
    "Rprop": rprop,
    "ASGD": asgd,
    "Adafactor": adafactor,
    "Muon": muon,
    "SparseAdam": sparse_adam,
}

PAIRS = {"betas": ("b1", "b2"), "etas": ("shrink", "grow"), "step_sizes": ("smallest", "largest")}
RENAMED = {"lr": "learning_rate", "alpha": "decay", "d": "threshold"}


def chain_like(name: str, arguments: Mapping[str, Any], **own: Any) -> Chain:
    """The chain for a PyTorch optimizer's name and arguments: the README's table, as code; `own` are arguments of ours.

    Muon is computed in full precision, unless these say otherwise.
    """
    ours: dict[str, Any] = own
    if name == "ASGD":
        given = {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0, **arguments}
        decay, rate = given.pop("lambd"), given["lr"]
        ours |= {"power": given.pop("alpha"), "start": given.pop("t0") + 1, "lr_decay": decay * rate}
        arguments = {**given, "weight_decay": given["weight_decay"] + decay}
    if name == "Adafactor":
        given = {"beta2_decay": -0.8, "eps": (None, 1e-3), **arguments}
        ours |= {"power": -given.pop("beta2_decay"), "axes": default_factored_axes}
        ours |= zip(("eps1", "eps2"), given.pop("eps"), strict=True)
        arguments = given
    if name == "Muon":
        ours = {"output_axis": default_output_axis, "precision": "full", **ours}
    for key, value in arguments.items():
        if key in PAIRS:
            ours |= zip(PAIRS[key], value, strict=True)
        else:
            ours[RENAMED.get(key, key)] = value
    return CHAINS[name](**ours)


RECORDED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.95, "nesterov": True, "weight_decay": 0.01}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1.0}),
    ("Adagrad", {"maximize": True, "weight_decay": 0.01}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 1e-3, "alpha": 0.9, "eps": 1e-2, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {"momentum": 0.9, "weight_decay": 0.01}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.8, "alpha": 0.95, "weight_decay": 0.01}),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.95, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.01, "maximize": True}),
    ("Adam", {"betas": (0.0, 0.5)}),
    ("Adam", {"eps": 0.0}),
    ("AdamW", {}),
    ("AdamW", {"lr": 1e-2, "weight_decay": 0.3, "amsgrad": True}),
    ("AdamW", {"betas": (0.95, 0.98), "weight_decay": 0.1, "maximize": True}),
    ("NAdam", {}),
    ("NAdam", {"momentum_decay": 0.1, "betas": (0.95, 0.99), "weight_decay": 0.1, "maximize": True}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adamax", {}),
    ("Adamax", {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("RAdam", {}),
    ("RAdam", {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"betas": (0.9, 0.5), "weight_decay": 0.01}),
    ("ASGD", {}),
    ("ASGD", {"lr": 0.1, "lambd": 0.01, "alpha": 0.5, "t0": 20, "weight_decay": 0.1, "maximize": True}),
    ("ASGD", {"lambd": 0.0, "t0": 0}),
    ("Rprop", {}),
    ("Rprop", {"lr": 1.0, "etas": (0.7, 1.5), "step_sizes": (1e-3, 0.5), "maximize": True}),
    ("Adafactor", {}),
    (
        "Adafactor",
        {"lr": 0.1, "beta2_decay": -0.5, "eps": (0.1, 0.5), "d": 1.5, "weight_decay": 0.1, "maximize": True},
    ),
    ("Muon", {}),
    ("Muon", {"lr": 0.1, "momentum": 0.5, "nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}),
    ("Adafactor", {"lr": 1e-3, "eps": (1e-30, 1e-3), "beta2_decay": -1.0}),
)
