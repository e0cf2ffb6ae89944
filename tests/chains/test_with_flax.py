"""Every optimizer in Flax's training loops, and weight decay that leaves biases and normalisation alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

from linkax.chains import Chain, adadelta, adagrad, adam, adamw, asgd, nadam, rmsprop, sgd
from linkax.transforms import matrices_only

from .optimizers import Optimizer, each_mechanism

_STEPS = 100


def _data():
    """A function that a straight line does not fit."""
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x[:, :1]) * x[:, 1:])


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(16)(x)))


class NnxNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(2, 16, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


def _for_training(optimizer: Optimizer) -> Chain:
    # A climber would have to be given the negative loss.
    rates = {sgd: 0.1, asgd: 0.1, adagrad: 0.1, adadelta: 1.0}
    return optimizer(maximize=False, learning_rate=rates.get(optimizer.factory, 0.02))


@each_mechanism
def test_a_linen_train_state_learns_and_traces_once(optimizer: Optimizer):
    x, y = _data()
    network = LinenNetwork()
    tx = _for_training(optimizer)
    state = TrainState.create(apply_fn=network.apply, params=network.init(jax.random.key(0), x), tx=tx)
    traces = []

    @jax.jit
    def step(state):
        traces.append(None)
        loss, gradients = jax.value_and_grad(lambda params: jnp.mean((state.apply_fn(params, x) - y) ** 2))(
            state.params
        )
        return state.apply_gradients(grads=gradients), loss

    losses = []
    for _ in range(_STEPS):
        state, loss = step(state)
        losses.append(float(loss))
    assert len(traces) == 1
    assert state.step == _STEPS
    assert losses[-1] < 0.7 * min(losses[0], float(jnp.var(y)))  # well below what the best constant would leave


@each_mechanism
def test_an_nnx_optimizer_learns_and_traces_once(optimizer: Optimizer):
    x, y = _data()
    model = NnxNetwork(nnx.Rngs(0))
    opt = nnx.Optimizer(model, _for_training(optimizer), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, opt):
        traces.append(None)
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        opt.update(model, gradients)
        return loss

    losses = [float(step(model, opt)) for _ in range(_STEPS)]
    assert len(traces) == 1
    assert opt.step.get_value() == _STEPS
    assert losses[-1] < 0.7 * min(losses[0], float(jnp.var(y)))


@each_mechanism
def test_a_chain_stays_a_chain_when_nnx_splits_and_merges(optimizer: Optimizer):
    opt = nnx.Optimizer(NnxNetwork(nnx.Rngs(0)), optimizer(), wrt=nnx.Param)
    graph, state = nnx.split(opt)
    tx = nnx.merge(graph, state).tx
    assert isinstance(tx, Chain)
    assert tx == optimizer()
    assert repr(tx) == repr(optimizer())


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(5, 4)(tokens)
        x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=4, decode=False, rngs=rngs)
        self.batch_norm = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)


def _last_names(tree: Any) -> set[str]:
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]
    return {path.removesuffix("/value").rpartition("/")[2] for path in paths}


def _names_that_moved(before: Any, after: Any) -> tuple[set[str], set[str]]:
    """The last names of the leaves that decayed, and of those that stayed exactly as they were."""
    same = jax.tree.map(lambda old, new: bool((old == new).all()), before, after)
    moved, stayed = (
        jax.tree.map(lambda flag, wanted=wanted: flag if flag is wanted else None, same) for wanted in (False, True)
    )
    return _last_names(moved), _last_names(stayed)


_DECAYING = {
    "sgd": sgd(0.1, weight_decay=0.1, weight_decay_mask=matrices_only),
    "adagrad": adagrad(0.1, weight_decay=0.1, weight_decay_mask=matrices_only),
    "rmsprop": rmsprop(0.1, weight_decay=0.1, weight_decay_mask=matrices_only),
    "adadelta": adadelta(weight_decay=0.1, weight_decay_mask=matrices_only),
    "adam": adam(0.1, weight_decay=0.1, weight_decay_mask=matrices_only),
    "adamw": adamw(0.1, weight_decay=0.1, weight_decay_mask=matrices_only),
    "nadam": nadam(0.1, weight_decay=0.1, weight_decay_mask=matrices_only),
    "nadam_decoupled": nadam(0.1, weight_decay=0.1, weight_decay_mask=matrices_only, decoupled_weight_decay=True),
}
each_decaying = pytest.mark.parametrize("tx", _DECAYING.values(), ids=_DECAYING.keys())


def _ones(tree: Any) -> Any:
    return jax.tree.map(jnp.ones_like, tree)  # fresh biases are 0, where decay would not show


@each_decaying
def test_in_linen_only_the_matrices_decay(tx):
    params = _ones(jax.eval_shape(LinenBlock().init, jax.random.key(0), jnp.zeros((2, 3), jnp.int32))["params"])
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    moved, stayed = _names_that_moved(params, optax.apply_updates(params, updates))
    assert moved == {"kernel", "embedding"}
    assert stayed == {"bias", "scale"}
    biases = [leaf for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "bias"]
    assert max(leaf.ndim for leaf in biases) == 2  # attention's: dimensions alone would not do


@each_decaying
def test_in_nnx_only_the_matrices_decay(tx):
    model = NnxBlock(nnx.Rngs(0))
    nnx.update(model, _ones(nnx.state(model, nnx.Param)))
    opt = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    opt.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    moved, stayed = _names_that_moved(before, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert moved == {"kernel", "embedding"}
    assert stayed == {"bias", "scale"}


def test_layers_stacked_by_linen_scan_keep_their_biases():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.LayerNorm()(nn.Dense(4)(x)), None

    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    params = jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((2, 4)), None)["params"]
    assert {leaf.ndim for leaf in jax.tree.leaves(params)} == {2, 3}
    selected = jax.tree.leaves_with_path(matrices_only(params))
    assert {path[-1].key for path, flag in selected if flag} == {"kernel"}
    assert {path[-1].key for path, flag in selected if not flag} == {"bias", "scale"}


def test_layers_stacked_by_nnx_vmap_keep_their_biases():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key):
        return nnx.Linear(4, 4, rngs=nnx.Rngs(key))

    state = nnx.state(make(jax.random.split(jax.random.key(0), 3)), nnx.Param)
    assert {leaf.ndim for leaf in jax.tree.leaves(state)} == {2, 3}
    mask = nnx.to_pure_dict(matrices_only(state))
    assert mask == {"kernel": True, "bias": False}
