"""What stands around an optimizer in PyTorch, against the installed PyTorch: clipping, loss scaling, batch statistics.

The recipes are those of docs/torch_training.md.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from linkax.chains import adamw, chain
from linkax.transforms import clip_grad_norm, clip_grad_value

from .test_torch_exchange import TOLERANCE, saved

torch = pytest.importorskip("torch", reason="compares with the installed PyTorch")
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "torch_training.md"
SHAPES = ((2, 3), (4,), ())


@pytest.fixture(scope="module")
def recipes():
    """What the page defines."""
    scope = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), scope)
    return scope


def with_gradients(grads):
    leaves = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.from_numpy(np.array(g)).dtype)) for g in grads]
    for leaf, g in zip(leaves, grads):
        leaf.grad = torch.from_numpy(np.array(g))
    return leaves


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 0.5, 3.0, 0.0, -1.0, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # PyTorch's own
def test_clipping_by_norm(norm_type, dtype, x64):
    rng = np.random.default_rng(1)
    for max_norm in (0.0, 0.7, 1e3, np.inf):
        grads = [np.asarray(rng.normal(size=shape) * 3, dtype) for shape in SHAPES]
        if norm_type >= 0:
            grads[1][:2] = 0
        if dtype == np.complex128:
            grads[0] = grads[0] * (1 - 2j)
        leaves = with_gradients(grads)
        norm = torch.nn.utils.clip_grad_norm_(leaves, max_norm, norm_type)
        tx = chain(clip_grad_norm(max_norm, norm_type))
        clipped, (state,) = jax.jit(tx.update)(grads, tx.init(grads))
        # float64, and sums of ten numbers
        np.testing.assert_allclose(state.norm, norm, rtol=TOLERANCE)
        for ours, leaf in zip(clipped, leaves):
            np.testing.assert_allclose(ours, leaf.grad.resolve_conj(), rtol=TOLERANCE)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_clipping_what_is_not_finite(bad, x64):
    grads = [np.array([1.0, bad, 0.0]), np.array(2.0)]
    for clip, ours in (
        (lambda leaves: torch.nn.utils.clip_grad_norm_(leaves, 1.0), clip_grad_norm(1.0)),
        (lambda leaves: torch.nn.utils.clip_grad_norm_(leaves, np.inf), clip_grad_norm(np.inf)),
        (lambda leaves: torch.nn.utils.clip_grad_value_(leaves, 0.5), clip_grad_value(0.5)),
    ):
        leaves = with_gradients(grads)
        clip(leaves)
        for one, leaf in zip(ours.update(grads, ours.init(grads))[0], leaves):
            np.testing.assert_array_equal(one, leaf.grad)


def test_the_norm_of_narrow_gradients_is_the_one_pytorch_rounds():
    for dtype, digits in ((torch.bfloat16, 2**-8), (torch.float16, 2**-10)):
        g = np.random.default_rng(2).normal(size=100).astype(np.float32)
        leaf = torch.nn.Parameter(torch.zeros(100, dtype=dtype))
        leaf.grad = torch.from_numpy(g).to(dtype)
        ours = jnp.asarray(leaf.grad.float().numpy(), str(dtype).removeprefix("torch."))
        norm = torch.nn.utils.clip_grad_norm_([leaf], 1.0)
        assert norm.dtype == dtype
        tx = clip_grad_norm(1.0)
        np.testing.assert_allclose(norm.item(), tx.update(ours, tx.init(ours))[1].norm, rtol=digits)  # one rounding


@pytest.mark.parametrize("interval", [1, 3])
def test_loss_scaling(recipes, interval, x64):
    """The same scales, trackers and weights, with infinities planted, and from a file of PyTorch's in the middle."""
    rng = np.random.default_rng(3)
    batches = rng.normal(size=(40, 4)).astype(np.float32).astype(np.float64)  # Flax rounds gradients to float32
    batches[[4, 5, 17, 25], 0] = np.inf
    batches[30, 2] = np.nan
    weights = torch.nn.Parameter(torch.from_numpy(rng.normal(size=4)))
    optimizer = torch.optim.AdamW([("w", weights)], lr=1e-2)
    options = {"init_scale": 256.0, "growth_factor": 4.0, "backoff_factor": 0.5, "growth_interval": interval}
    scaler = torch.amp.GradScaler("cpu", **options)
    tx, params, state, scale = adamw(1e-2), None, None, None

    def loss_fn(params, x):
        return jnp.sum(params["w"] * x)

    for step, batch in enumerate(batches):
        if step == 7:  # from here on here, too
            scale = recipes["scale_from_torch"](saved(scaler.state_dict()))
            params = {"w": jnp.asarray(weights.detach().numpy())}
            state = recipes["import_state"](tx, params, saved(optimizer.state_dict()))
        optimizer.zero_grad()
        scaler.scale((weights * torch.from_numpy(batch)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if scale is not None:
            scale, params, state, _ = recipes["train_step"](tx, loss_fn, scale, params, state, jnp.asarray(batch))
            assert recipes["scale_to_torch"](scale) == scaler.state_dict()
            np.testing.assert_allclose(params["w"], weights.detach(), rtol=TOLERANCE)  # the scales are powers of 2
    assert int(optax.tree.get_all_with_path(state, "count")[0][1]) == optimizer.state[weights]["step"] == 35
    back = torch.amp.GradScaler("cpu")
    back.load_state_dict(recipes["scale_to_torch"](scale))
    assert back.state_dict() == scaler.state_dict()


def test_batch_statistics(recipes):
    data = np.random.default_rng(4).normal(size=(3, 16, 5)).astype(np.float32)
    theirs = torch.nn.BatchNorm1d(5)
    torch.optim.swa_utils.update_bn(torch.from_numpy(data), theirs)
    model = nn.BatchNorm(momentum=0.9, use_running_average=False)
    variables = model.init(jax.random.key(0), data[0])
    found = recipes["update_bn"](model.apply, variables["params"], variables["batch_stats"], data, momentum=0.9)
    # float32, of which a division by 0.1 leaves seven digits
    np.testing.assert_allclose(found["mean"], theirs.running_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"] * 16 / 15, theirs.running_var, rtol=1e-5)
