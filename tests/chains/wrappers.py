"""Optax's combinators, each as a function that puts it around an optimizer."""

from collections.abc import Callable
from typing import Any

import optax

from linkax.chains import param_groups


def never(step: Any, **_: Any) -> Any:
    return step < 0


def always(step: Any, **_: Any) -> Any:
    return step >= 0


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e9), tx),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(1e9)), ("optimizer", tx)),
    "partition": lambda tx: optax.partition({"all": tx}, "all"),
    "masked": lambda tx: optax.masked(tx, True),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "gradient_transformation": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, always),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, always),
    "flatten": optax.flatten,
    "with_extra_args_support": optax.with_extra_args_support,
    "param_groups": lambda tx: param_groups({"all": tx}, lambda path, w: "all"),
    "nested": lambda tx: optax.apply_if_finite(
        optax.chain(optax.clip(1e9), optax.masked(optax.named_chain(("inner", tx)), True)), 3
    ),
}
