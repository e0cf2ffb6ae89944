"""Row-sparse gradients against the installed PyTorch, with rows that come several times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linkax.chains import adagrad, apply_updates, sgd, sparse_adam
from linkax.transforms import row_gradient

torch = pytest.importorskip("torch", reason="compares with the installed PyTorch")

CASES = {
    "SGD": ({"lr": 0.1}, sgd(0.1)),
    "SGD, maximize": ({"lr": 0.1, "maximize": True}, sgd(0.1, maximize=True)),
    "Adagrad": ({}, adagrad()),
    "Adagrad, all": (
        {"lr": 0.1, "lr_decay": 0.05, "initial_accumulator_value": 0.5, "eps": 1e-3, "maximize": True},
        adagrad(0.1, lr_decay=0.05, initial_accumulator_value=0.5, eps=1e-3, maximize=True),
    ),
    "SparseAdam": ({}, sparse_adam()),
    "SparseAdam, all": (
        {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-3, "maximize": True},
        sparse_adam(0.1, b1=0.8, b2=0.99, eps=1e-3, maximize=True),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_is_pytorchs(name, x64):
    arguments, tx = CASES[name]
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 3))
    weight = torch.nn.Parameter(torch.from_numpy(table.copy()))
    optimizer = getattr(torch.optim, name.partition(",")[0])([weight], **arguments)
    params, update = jnp.asarray(table), jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(50):
        ids, values = rng.integers(0, 12, 7), rng.normal(size=(7, 3))  # twelve rows: some come twice, eight never
        coordinates, rows = torch.from_numpy(ids[None]), torch.from_numpy(values)
        with torch.sparse.check_sparse_tensor_invariants():
            weight.grad = torch.sparse_coo_tensor(coordinates, rows, weight.shape)
            optimizer.step()
        updates, state = update(row_gradient(params, ids, values), state, params)
        params = apply_updates(params, updates)
        # Sums of up to seven gradients in another order, and then some roundings a step, in float64.
        np.testing.assert_allclose(params, weight.detach().numpy(), rtol=0, atol=1e-12 * np.abs(table).max())
    np.testing.assert_array_equal(params[12:], table[12:])
