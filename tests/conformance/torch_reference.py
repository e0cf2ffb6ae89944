"""PyTorch walking along the stream."""

import contextlib
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch


def in_full_precision(name: str = "Muon") -> contextlib.AbstractContextManager[Any]:
    """PyTorch's Muon without its cast to bfloat16 (in place of which a copy is needed: what follows works in place)."""
    if name != "Muon":
        return contextlib.nullcontext()
    return mock.patch.object(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())


def _options(name: str) -> dict[str, Any]:
    return {} if name == "Muon" else {"foreach": False}  # of which Muon has no other


def torch_walk(
    name: str,
    arguments: Mapping[str, Any],
    params: Any,
    grads: Any,
    nudge: int | None = None,
    clip: str | None = None,
) -> dict[str, np.ndarray]:
    """The parameters after every step of `torch.optim.<name>(**arguments)` along the stream, stacked.

    `nudge` seeds a generator that moves every weight up or down by one rounding after each step. `clip` is run before
    each step, with the parameters as `w`.
    """
    rng = None if nudge is None else np.random.default_rng(nudge)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # NAdam keeps its product of momenta in the default dtype
    try:
        leaves = {key: torch.nn.Parameter(torch.from_numpy(np.array(value))) for key, value in params.items()}
        optimizer = getattr(torch.optim, name)(leaves.values(), **_options(name), **arguments)
        path = {key: [] for key in leaves}
        for step in range(len(grads["wild" if "wild" in grads else "tame"])):
            for key, leaf in leaves.items():
                leaf.grad = None if grads[key] is None else torch.from_numpy(np.array(grads[key][step]))
            if clip is not None:
                eval(clip, {"torch": torch, "w": list(leaves.values()), "inf": float("inf")})
            with in_full_precision(name):
                optimizer.step()
            for key, leaf in leaves.items():
                if rng is not None:
                    leaf.data *= torch.from_numpy(np.asarray(1 + rng.choice([-1, 1], size=leaf.shape) * 2.0**-52))
                path[key].append(leaf.detach().numpy().copy())
        return {key: np.stack(values) for key, values in path.items()}
    finally:
        torch.set_default_dtype(default)


def torch_updates_from_zero(name: str, arguments: Mapping[str, Any], grads: np.ndarray, dtype: Any) -> np.ndarray:
    """What PyTorch adds to a parameter at every step, taken at 0 each time so that adding does not round it."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        leaf = torch.nn.Parameter(torch.zeros(grads.shape[1:], dtype=dtype))
        optimizer = getattr(torch.optim, name)([leaf], **_options(name), **arguments)
        updates = []
        for g in grads:
            leaf.data.zero_()
            leaf.grad = torch.from_numpy(g.copy()).to(dtype)
            with in_full_precision(name):
                optimizer.step()
            updates.append(leaf.detach().double().numpy().copy())
        return np.stack(updates)
    finally:
        torch.set_default_dtype(default)
