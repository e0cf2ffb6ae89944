"""A PyTorch run with a model of 16 bits and float32 master weights goes on in JAX, and back, without losing a bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adamw, full_weights, param_groups, precise_weights, with_full_weights
from linkax.chains.torch_interop import export_params, export_state, import_params, import_state

torch = pytest.importorskip("torch", reason="moves from the installed PyTorch")

SHAPES = {"fc.weight": (3, 4), "fc.bias": (3,)}
LIKE = {"params": {"fc": {"kernel": jnp.zeros((4, 3), jnp.bfloat16), "bias": jnp.zeros(3, jnp.bfloat16)}}}
RATE = 1e-4
STEPS = 20


def gradients(index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


class Torch:
    """The usual recipe: the optimizer has float32 master weights, and the model's are rounded from them."""

    def __init__(self) -> None:
        start = gradients(1000)
        self.model = {name: torch.from_numpy(w).bfloat16() for name, w in start.items()}
        self.master = {name: torch.nn.Parameter(w.float().clone()) for name, w in self.model.items()}
        self.optimizer = torch.optim.AdamW(list(self.master.items()), lr=RATE)

    def steps(self, first: int, last: int) -> None:
        for index in range(first, last):
            for name, gradient in gradients(index).items():
                self.master[name].grad = torch.from_numpy(gradient).bfloat16().float()
            self.optimizer.step()
            self.model = {name: w.detach().bfloat16() for name, w in self.master.items()}


def jax_steps(tx: Any, params: Any, state: Any, first: int, last: int) -> tuple[Any, Any]:
    step = jax.jit(tx.update)
    for index in range(first, last):
        g = gradients(index)
        like = {"params": {"fc": {"kernel": g["fc.weight"].T, "bias": g["fc.bias"]}}}
        updates, state = step(jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), like), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def imported(run: Torch, tx: Any) -> tuple[Any, Any]:
    params = import_params(LIKE, run.model)
    masters = import_params(jax.tree.map(lambda p: p.astype(jnp.float32), params), run.master)
    state = import_state(tx, params, run.optimizer.state_dict())
    moved, state = with_full_weights(tx, state, params, masters)
    for own, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(params)):
        np.testing.assert_array_equal(own, theirs)  # the model's are what they are without us
    return moved, state


def assert_same(own: dict[str, np.ndarray], theirs: dict[str, Any]) -> None:
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(own[name], tensor.detach().numpy())


@pytest.mark.parametrize("by", ["master_copy", "lost_bits"])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_run_moves_in_and_goes_on(by, grouped):
    tx = precise_weights(adamw(RATE), by)
    tx = param_groups({"all": tx}, lambda path, w: "all") if grouped else tx
    run = Torch()
    run.steps(0, STEPS)
    params, state = imported(run, tx)
    assert_same(export_params(full_weights(tx, state, params)), run.master)
    params, state = jax_steps(tx, params, state, STEPS, 2 * STEPS)
    run.steps(STEPS, 2 * STEPS)
    full = export_params(full_weights(tx, state, params))
    for name, master in run.master.items():
        # Both round a weight of at most 4 to float32 in each step, PyTorch in several.
        np.testing.assert_allclose(full[name], master.detach().numpy(), rtol=0, atol=STEPS * 4 * 2.0**-24)


@pytest.mark.parametrize("by", ["master_copy", "lost_bits"])
def test_a_run_moves_out_and_goes_on(by):
    tx = precise_weights(adamw(RATE), by)
    run = Torch()
    run.steps(0, STEPS)
    params, state = jax_steps(tx, *imported(run, tx), STEPS, 2 * STEPS)
    full = full_weights(tx, state, params)
    there = Torch()
    with torch.no_grad():
        for name, w in export_params(full).items():
            there.master[name].copy_(torch.from_numpy(w))
        there.model = {name: torch.from_numpy(w).bfloat16() for name, w in export_params(params).items()}
    there.optimizer.load_state_dict(export_state(tx, params, state, there.optimizer))
    assert_same(export_params(full), there.master)
    # What comes back is what went out: weights, moments and step counts. Numbers that follow from the steps are made
    # from these, where the chain has summed them up: some 40 roundings to float32 of a number below 1.
    back_params, back_state = imported(there, tx)
    for own, back in zip(jax.tree.leaves((params, state)), jax.tree.leaves((back_params, back_state))):
        is_number = own.ndim == 0 and own.dtype == jnp.float32
        np.testing.assert_allclose(own, back, rtol=0, atol=40 * 2.0**-24 if is_number else 0)
    before = {name: w.detach().clone() for name, w in there.master.items()}
    there.steps(2 * STEPS, 2 * STEPS + 1)
    assert any(not torch.equal(before[name], w) for name, w in there.master.items())


def test_moments_and_weights_arrive_to_the_bit():
    tx = precise_weights(adamw(RATE), by="lost_bits")
    run = Torch()
    run.steps(0, STEPS)
    params, state = imported(run, tx)
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(params))
    moments = run.optimizer.state_dict()["state"][0]
    (momentum, _), (square, _) = state[0].inner[0].first, state[0].inner[0].second
    np.testing.assert_array_equal(momentum.mu["params"]["fc"]["kernel"], moments["exp_avg"].numpy().T)
    np.testing.assert_array_equal(square.nu["params"]["fc"]["kernel"], moments["exp_avg_sq"].numpy().T)
    assert int(momentum.count) == STEPS
