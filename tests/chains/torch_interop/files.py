"""PyTorch optimizers' files without PyTorch: what `state_dict()` gives, of NumPy arrays."""

import copy
from typing import Any

import jax.numpy as jnp
import numpy as np

HYPERPARAMS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False},
    "Adagrad": {
        "lr": 0.1,
        "lr_decay": 0.05,
        "eps": 1e-10,
        "weight_decay": 0.01,
        "initial_accumulator_value": 0,
        "maximize": False,
    },
    "RMSprop": {
        "lr": 0.01,
        "momentum": 0.9,
        "alpha": 0.95,
        "eps": 1e-8,
        "centered": True,
        "weight_decay": 0.01,
        "maximize": False,
    },
    "Adadelta": {"lr": 1.0, "rho": 0.95, "eps": 1e-6, "weight_decay": 0, "maximize": True},
    "Adam": {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "amsgrad": True,
        "maximize": False,
        "decoupled_weight_decay": False,
    },
    "AdamW": {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "amsgrad": False,
        "maximize": False,
        "decoupled_weight_decay": True,
    },
    "NAdam": {
        "lr": 2e-3,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0,
        "momentum_decay": 4e-3,
        "decoupled_weight_decay": False,
        "maximize": False,
    },
    "RAdam": {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "decoupled_weight_decay": True,
        "differentiable": False,
    },
    "Adamax": {
        "lr": 2e-3,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "capturable": False,
    },
    "ASGD": {
        "lr": 0.1,
        "lambd": 0.01,
        "alpha": 0.5,
        "t0": 5,
        "weight_decay": 0.1,
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "capturable": False,
    },
    "Rprop": {
        "lr": 0.01,
        "etas": (0.5, 1.5),
        "step_sizes": (1e-6, 50),
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "capturable": False,
    },
}
KEEPS = {
    "SGD": "momentum_buffer",
    "Adagrad": "step sum",
    "RMSprop": "step square_avg grad_avg momentum_buffer",
    "Adadelta": "step square_avg acc_delta",
    "Adam": "step exp_avg exp_avg_sq max_exp_avg_sq",
    "AdamW": "step exp_avg exp_avg_sq",
    "NAdam": "step mu_product exp_avg exp_avg_sq",
    "RAdam": "step exp_avg exp_avg_sq",
    "Adamax": "step exp_avg exp_inf",
    "Rprop": "step prev step_size",
    "ASGD": "step eta mu ax",
}
SHAPES = {"fc.weight": (3, 2), "fc.bias": (3,), "norm.weight": (3,)}
STEPS = 7


def params(dtype: Any = None) -> Any:
    """The parameters that the files are for."""
    w = jnp.arange(6.0, dtype=dtype).reshape(2, 3) / 10
    return {"params": {"fc": {"kernel": w, "bias": jnp.ones(3, dtype)}, "norm": {"scale": jnp.ones(3, dtype)}}}


def gradients(seed: int) -> Any:
    """Some gradients of them."""
    rng = np.random.default_rng(seed)
    new = {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)}
    return {"params": {"fc": new, "norm": {"scale": rng.normal(size=3)}}}


def torch_file(name: str, *groups: list[str], **hyperparams: Any) -> dict[str, Any]:
    """A `state_dict` of an optimizer that has taken some steps."""
    rng = np.random.default_rng(0)
    given = {**HYPERPARAMS[name], **hyperparams}
    product = (
        np.prod([given["betas"][0] * (1 - 0.5 * 0.96 ** (t * 4e-3)) for t in range(1, STEPS + 1)])
        if "betas" in given
        else 0
    )

    def value(key: str, shape: tuple[int, ...]) -> Any:
        if key == "step":
            return np.float32(STEPS)
        if key == "mu_product":
            return np.asarray(product)
        if key in ("eta", "mu"):
            return np.asarray(0.1 / (1 + 1e-3 * STEPS) ** 0.5 if key == "eta" else 1 / 2)
        drawn = rng.normal(size=shape)
        # Larger than the square of any average, as the mean of squares is; a maximum is larger still.
        has_sign = key in ("momentum_buffer", "exp_avg", "grad_avg", "prev")
        return drawn if has_sign else 10 + drawn**2 + 10 * (key[:3] == "max")

    names = list(groups) or [list(SHAPES)]
    order = [one for group in names for one in group]
    return {
        "state": {
            index: {key: value(key, SHAPES[one]) for key in KEEPS[name].split()} for index, one in enumerate(order)
        },
        "param_groups": [
            {**copy.deepcopy(given), "params": [order.index(one) for one in group], "param_names": list(group)}
            for group in names
        ],
    }
