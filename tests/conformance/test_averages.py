"""Averages of the weights move from the installed PyTorch to a chain and back, and go on as if they had not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adamw, averaged_weights, chain, live, param_groups
from linkax.chains.torch_interop import export_averages, export_state, from_torch, import_params, import_state
from linkax.transforms import average_weights

from .test_torch_exchange import TOLERANCE, saved

torch = pytest.importorskip("torch", reason="compares with the installed PyTorch")
from torch.optim import swa_utils  # noqa: E402

BEFORE, AFTER = 20, 40
NAMES = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "fc.weight", "fc.bias")
SHAPES = ((4, 2, 3, 3), (4,), (4,), (4,), (5, 4), (5,))


pytestmark = pytest.mark.usefixtures("float64")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)  # its buffers are in the averaged model's state_dict as well
        self.fc = torch.nn.Linear(4, 5)


class Run:
    """A PyTorch model, its optimizer and its averages, stepped with fixed gradients."""

    def __init__(self, optimizer, averaged, update_at=lambda step: True):
        torch.manual_seed(0)
        self.rng, self.model, self.steps = np.random.default_rng(5), Model(), 0
        self.optimizer = optimizer(list(self.model.named_parameters()))
        self.averaged, self.update_at = averaged(self.model), update_at

    def step(self):
        """One step; returns the gradients."""
        self.steps += 1
        grads = {name: self.rng.normal(size=shape) for name, shape in zip(NAMES, SHAPES)}
        for name, weight in self.model.named_parameters():
            weight.grad = torch.from_numpy(grads[name].copy())
        self.optimizer.step()
        if self.update_at(self.steps):
            self.averaged.update_parameters(self.model)
        return grads

    def params(self):
        zeros = {
            "conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)},
            "norm": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)},
            "fc": {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(5)},
        }
        return import_params({"params": zeros}, self.model.state_dict())

    def files(self):
        return saved(self.optimizer.state_dict()), saved(self.averaged.state_dict())


def assert_same(tree, module):
    expected = import_params(tree, module.state_dict())
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max()),
        tree,
        expected,
    )


def train_on(run, tx, params, state, steps=AFTER):
    update = jax.jit(tx.update)
    for _ in range(steps):
        grads = import_params(params, run.step())
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert_same(params, run.model)
        assert_same(averaged_weights(tx, state, params), run.averaged.module)
    return params, state


def adamw_there(named):
    return torch.optim.AdamW(named, lr=1e-2)


def moving(model):
    return swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))


def warm(n):
    return jnp.minimum(0.99, (1 + n) / (10 + n))


def warm_there(average, weight, n):
    decay = torch.clamp((1 + n) / (10 + n), max=0.99)
    return decay * average + (1 - decay) * weight


CASES = {
    "EMA": (adamw_there, {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.99)}, 0, 1, {"decay": 0.99}),
    "EMA, one by one": (adamw_there, {"avg_fn": swa_utils.get_ema_avg_fn(0.9)}, 0, 1, {"decay": 0.9}),
    "EMA, warmed up": (adamw_there, {"avg_fn": warm_there}, 0, 1, {"decay": warm}),
    "SWA": (lambda named: torch.optim.SGD(named, lr=0.05, momentum=0.9), {}, 8, 4, {}),
    "SWA, one by one": (
        lambda named: torch.optim.SGD(named, lr=0.05),
        {"avg_fn": swa_utils.get_swa_avg_fn()},
        0,
        1,
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_averages_go_on_there_and_back(case):
    optimizer, function, start, every, ours = CASES[case]
    run = Run(
        optimizer,
        lambda model: swa_utils.AveragedModel(model, **function),
        lambda step: step > start and (step - start) % every == 0,
    )
    for _ in range(BEFORE):
        run.step()
    tx = chain(from_torch(run.optimizer), average_weights(start=start, every=every, **ours))
    params, (optimizer_file, averages) = run.params(), run.files()
    given = {"steps": BEFORE} if "SWA" in case else {}  # SGD counts no steps
    state = import_state(tx, params, optimizer_file, averages=averages, **given)
    assert_same(averaged_weights(tx, state, params), run.averaged.module)
    assert int(optax.tree.get(state, "n_averaged")) == int(run.averaged.n_averaged)
    params, state = train_on(run, tx, params, state)

    exported = export_averages(tx, params, state)
    assert int(exported["n_averaged"]) == int(run.averaged.n_averaged)
    back = swa_utils.AveragedModel(Model(), **function)
    back.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()}, strict=False)
    run.averaged = back
    run.optimizer.load_state_dict(export_state(tx, params, state, run.optimizer))
    train_on(run, tx, params, state, 8)


def test_averages_of_wrapped_and_grouped_chains_are_imported():
    run = Run(adamw_there, moving)
    for _ in range(BEFORE):
        run.step()
    params, (optimizer_file, averages) = run.params(), run.files()
    plain = chain(adamw(1e-2), average_weights(0.9))
    groups = param_groups({"a": plain, "b": plain}, lambda path, w: "a" if "conv" in path else "b")
    optimizer_file["param_groups"] = [
        {**optimizer_file["param_groups"][0], "params": indices, "param_names": NAMES[indices[0] : indices[-1] + 1]}
        for indices in ([0, 1], [2, 3, 4, 5])
    ]
    tx = optax.MultiSteps(live(groups, "a.learning_rate"), 1)
    state = import_state(tx, params, optimizer_file, averages=averages)
    params, state = train_on(run, tx, params, state, 8)
    assert int(export_averages(tx, params, state)["n_averaged"]) == BEFORE + 8


def test_two_averages_are_imported_by_name():
    run = Run(adamw_there, moving)
    other = swa_utils.AveragedModel(run.model)
    for _ in range(BEFORE):
        run.step()
        other.update_parameters(run.model)
    tx, params = chain(adamw(1e-2), average_weights(0.9), average_weights()), run.params()
    optimizer_file, first = run.files()
    with pytest.raises(ValueError, match=r"dictionary of state_dicts for average_weights, average_weights \(2\), got"):
        import_state(tx, params, optimizer_file, averages=first)
    both = {"average_weights": first, "average_weights (2)": other.state_dict()}
    state = import_state(tx, params, optimizer_file, averages=both)
    assert_same(averaged_weights(tx, state, params, "average_weights"), run.averaged.module)
    assert_same(averaged_weights(tx, state, params, "average_weights (2)"), other.module)
    with pytest.raises(
        ValueError, match=r"^export_averages: name must be .*; there is average_weights, average_weights"
    ):
        export_averages(tx, params, state)


def test_an_average_that_restarts_is_told_and_one_without_a_place_refused():
    run = Run(adamw_there, swa_utils.AveragedModel)
    for _ in range(3):
        run.step()
    params, (optimizer_file, averages) = run.params(), run.files()
    tx = chain(adamw(1e-2), average_weights(0.9))
    with pytest.warns(UserWarning, match="average_weights.average restarts: averages must be the state_dict"):
        state = import_state(tx, params, optimizer_file)
    jax.tree.map(np.testing.assert_array_equal, averaged_weights(tx, state, params), params)
    with pytest.raises(ValueError, match=r"averages are given, but the chain keeps none of its own"):
        import_state(adamw(1e-2), params, optimizer_file, averages=averages)
    frozen = param_groups({"a": tx, "b": adamw(1e-2)}, lambda path, w: "a" if "conv" in path else "b")
    optimizer_file["param_groups"] = [
        {**optimizer_file["param_groups"][0], "params": indices, "param_names": NAMES[indices[0] : indices[-1] + 1]}
        for indices in ([0, 1], [2, 3, 4, 5])
    ]
    with pytest.warns(
        UserWarning, match="keeps no average of params/fc/bias, params/fc/kernel, params/norm/bias, .* left out"
    ):
        import_state(frozen, params, optimizer_file, averages=averages)
