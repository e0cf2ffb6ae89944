"""The named optimizers as one table, and what every test runs them on."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import (
    Chain,
    adabelief,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    lamb,
    lion,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
)
from linkax.transforms._check import Arguments

VALUES = {
    # Two values of every numeric hyperparameter. ε is large, so that changing it shows.
    "learning_rate": (0.1, 0.03),
    "weight_decay": (0.01, 0.1),
    "momentum": (0.9, 0.5),
    "dampening": (0.2, 0.6),
    "lr_decay": (0.01, 0.3),
    "initial_accumulator_value": (0.1, 0.5),
    "decay": (0.99, 0.8),
    "rho": (0.9, 0.6),
    "b1": (0.9, 0.6),
    "b2": (0.999, 0.95),
    "momentum_decay": (0.004, 0.1),
    "eps": (1e-3, 1e-2),
    "power": (0.75, 0.5),
    "eps1": (0.4, 0.9),
    "eps2": (1.5, 2.5),
    "threshold": (1.2, 2.5),
    "start": (1.5, 2.5),
    "shrink": (0.5, 0.7),
    "grow": (1.2, 1.5),
    "smallest": (0.03, 0.05),
    "largest": (0.2, 0.15),
}


@dataclass(frozen=True)
class Optimizer:
    """A row of the table: calling it builds the chain, with some of its arguments changed."""

    name: str
    factory: Callable[..., Chain]
    hyperparameters: tuple[str, ...]
    switches: dict[str, Any] = field(default_factory=dict)
    sporadic: tuple[str, ...] = ()  # hyperparameters that only change some elements in some steps
    unseen: tuple[str, ...] = ()  # hyperparameters that only change what is in the state
    is_elementwise: bool = True  # whether its state has the parameters' shapes, and no element sees another

    @property
    def numbers(self) -> dict[str, float]:
        return {name: VALUES[name][0] for name in self.hyperparameters}

    @property
    def other_numbers(self) -> dict[str, float]:
        return {name: VALUES[name][1] for name in self.hyperparameters}

    @property
    def schedulable(self) -> tuple[str, ...]:
        """All hyperparameters but those that are read before the first step only."""
        constants = Arguments(self.factory).constants
        return tuple(name for name in self.hyperparameters if name not in constants)

    def has_link(self, name: str) -> bool:
        """Whether the chain has a link of this name, other than in an abbreviation."""
        return f" {name}(" in repr(self())

    def __call__(self, **changes: Any) -> Any:  # a Chain; Optax's types take states and updates for bare arrays
        return self.factory(**{**self.numbers, **self.switches, **changes})


_BOTH = ("learning_rate", "weight_decay")
_RPROP = ("shrink", "grow", "smallest", "largest")
_ADAM = (*_BOTH, "b1", "b2", "eps")
OPTIMIZERS = [
    Optimizer("sgd", sgd, _BOTH),
    Optimizer("sgd_momentum", sgd, (*_BOTH, "momentum", "dampening")),
    Optimizer("sgd_nesterov", sgd, (*_BOTH, "momentum"), {"nesterov": True}),
    Optimizer("adagrad", adagrad, (*_BOTH, "lr_decay", "initial_accumulator_value", "eps")),
    Optimizer("rmsprop", rmsprop, (*_BOTH, "decay", "eps")),
    Optimizer("rmsprop_centered", rmsprop, (*_BOTH, "decay", "eps"), {"centered": True}),
    Optimizer("rmsprop_momentum", rmsprop, (*_BOTH, "decay", "eps", "momentum"), {"eps_in_sqrt": True}),
    Optimizer("adadelta", adadelta, (*_BOTH, "rho", "eps")),
    Optimizer("adam", adam, _ADAM),
    Optimizer("amsgrad", adam, _ADAM, {"amsgrad": True}),
    Optimizer("adamw", adamw, _ADAM),
    Optimizer("adamw_maximize", adamw, _ADAM, {"maximize": True}),
    Optimizer("nadam", nadam, (*_ADAM, "momentum_decay")),
    Optimizer("nadam_decoupled", nadam, (*_ADAM, "momentum_decay"), {"decoupled_weight_decay": True}),
    Optimizer("adamax", adamax, _ADAM, sporadic=("b2",)),
    Optimizer("radam", radam, _ADAM),
    Optimizer("radam_decoupled", radam, _ADAM, {"decoupled_weight_decay": True}),
    Optimizer("adabelief", adabelief, _ADAM),
    Optimizer("lamb", lamb, _ADAM),
    Optimizer("rprop", rprop, ("learning_rate", *_RPROP), sporadic=_RPROP),
    Optimizer("asgd", asgd, (*_BOTH, "lr_decay", "power", "start"), unseen=("start",)),
    Optimizer(
        "adafactor",
        adafactor,
        (*_BOTH, "power", "eps1", "eps2", "threshold"),
        sporadic=("eps1", "threshold"),
        is_elementwise=False,
    ),
    Optimizer("lion", lion, (*_BOTH, "b1", "b2"), sporadic=("b1", "b2")),
]
MECHANISMS = [
    row
    for row in OPTIMIZERS
    if row.name not in ("sgd_momentum", "rmsprop", "adam", "adamw", "nadam_decoupled", "radam")
]
"""Rows that together have every link: enough where each link is compiled anew, which is what takes the tests' time."""
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
each_mechanism = pytest.mark.parametrize("optimizer", MECHANISMS, ids=lambda optimizer: optimizer.name)
each_with_a_rate = pytest.mark.parametrize(
    "optimizer", [row for row in OPTIMIZERS if "learning_rate" in row.schedulable], ids=lambda optimizer: optimizer.name
)
each_hyperparameter = pytest.mark.parametrize(
    ("optimizer", "name"),
    [pytest.param(o, name, id=f"{o.name}-{name}") for o in OPTIMIZERS for name in o.hyperparameters],
)


def some_params(dtype: Any = None) -> dict[str, jax.Array]:
    """Two leaves of different rank, in the default dtype if none is given."""
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=(2, 3)), dtype), "b": jnp.asarray(rng.normal(size=3), dtype)}


def some_gradients(steps: int = 5, dtype: Any = None) -> dict[str, jax.Array]:
    """A gradient for every step, stacked along the first axis."""
    rng = np.random.default_rng(1)
    return {
        "w": jnp.asarray(rng.normal(size=(steps, 2, 3)), dtype),
        "b": jnp.asarray(rng.normal(size=(steps, 3)), dtype),
    }


@functools.partial(jax.jit, static_argnums=0)
def run(tx: optax.GradientTransformation, params: Any, gradients: Any) -> tuple[Any, Any]:
    """Parameters and state after one step with every one of the stacked gradients."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), gradients)[0]


def nth(stacked: Any, index: int) -> Any:
    """One of the trees that are stacked along the first axis."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def signature(tree: Any) -> Any:
    """The structure of a tree, with shape, dtype and weak type of every leaf: what makes `jax.jit` trace again."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12, message: str = "") -> None:
    """The default is for float64: the same arithmetic in another order, some tens of roundings of 1e-16 each."""
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance, custom_message=message)


def by_hand(optimizer: Optimizer, changes: list[dict[str, Any]], params: Any, gradients: Any) -> Any:
    """Parameters after steps with a chain built anew for every step, around the numbers that are to hold in it."""

    @jax.jit
    def step(numbers, params, state, gradient):
        updates, state = optimizer(**numbers).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer().init(params)
    for index, numbers in enumerate(changes):
        arrays = {name: jnp.asarray(value, jnp.result_type(float)) for name, value in numbers.items()}
        params, state = step(arrays, params, state, nth(gradients, index))
    return params
