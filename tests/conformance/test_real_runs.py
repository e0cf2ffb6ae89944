"""Whole training runs that move between the frameworks, with gradients from each framework's own backward pass.

Every run is 60 steps in PyTorch. Its first 20 in PyTorch and the other 40 in JAX end at the same weights, and so do its
first 20 in JAX and the other 40 in PyTorch.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from linkax import adamw, apply_updates, chain, muon, param_groups
from linkax.chains.algebra._paths import leaves_with_path, path_text
from linkax.chains.torch_interop import (
    RESNET_NAMES,
    Tied,
    export_params,
    export_state,
    from_torch,
    fused_attention,
    import_params,
    import_state,
    join_state_dicts,
    recurrent,
    renamed,
    split_state_dict,
    torch_labels,
    torch_name,
)
from linkax.transforms import clip_grad_norm

torch = pytest.importorskip("torch", reason="continues the runs of the installed PyTorch")

from . import models  # noqa: E402
from .torch_reference import in_full_precision  # noqa: E402

BEFORE, AFTER = 20, 40
# Both frameworks round differently in float64 (1e-16), and training amplifies that; 1e-11 is what a user is promised.
TOLERANCE = 1e-11


pytestmark = pytest.mark.usefixtures("float64")


class Run(NamedTuple):
    """A model, its optimizer and its schedule in PyTorch, and its counterpart in JAX."""

    model: Any
    optimizer: Any
    scheduler: Any
    batches: list[tuple[np.ndarray, np.ndarray]]
    like: Any  # JAX's parameters, or their shapes
    apply: Callable[[Any, Any, Any], tuple[Any, Any]]  # of parameters, statistics and inputs, to logits and statistics
    statistics: Any = None
    names: Any = torch_name
    layouts: Any = None
    chain: Any = None  # the optimizer, if it is not simply PyTorch's
    clip: float | None = None
    steps: int | None = None  # if PyTorch does not count them
    to_jax: Callable[[Any], Any] = lambda x: x  # PyTorch's inputs, in JAX's layout

    @property
    def mapping(self) -> dict[str, Any]:
        return {"names": self.names, "layouts": self.layouts}


def torch_steps(run: Run, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for x, y in batches:
        run.optimizer.zero_grad()
        logits = run.model(torch.from_numpy(x))
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.from_numpy(y).reshape(-1))
        loss.backward()
        if run.clip is not None:
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.clip)
        run.optimizer.step()
        if run.scheduler is not None:
            run.scheduler.step()


def jax_steps(run: Run, tx: Any, params: Any, state: Any, statistics: Any, batches: list) -> tuple[Any, Any, Any]:
    @jax.jit
    def step(params, state, statistics, x, y):
        def loss(params):
            logits, new = run.apply(params, statistics, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

        grads, statistics = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state, statistics

    for x, y in batches:
        params, state, statistics = step(params, state, statistics, run.to_jax(x), y)
    return params, state, statistics


def trees(params: Any, statistics: Any) -> Any:
    """What PyTorch's model has, as one tree."""
    return params if statistics is None else {"params": params, "batch_stats": statistics}


def moved(run: Run) -> tuple[Any, Any]:
    """The weights of a run, and its statistics, in JAX."""
    found = import_params(trees(run.like, run.statistics), run.model.state_dict(), **run.mapping)
    return (found, None) if run.statistics is None else (found["params"], found["batch_stats"])


def chain_of(run: Run) -> Any:
    """The chain that is PyTorch's optimizer, with its groups, schedule and clipping."""
    if run.chain is not None:
        return run.chain
    groups = run.optimizer.state_dict()["param_groups"]
    labels = torch_labels(groups, run.like, **run.mapping) if len(groups) > 1 else None
    tx = from_torch(run.optimizer, labels, schedulers=run.scheduler, layouts=run.layouts, report=None)
    return tx if run.clip is None else chain(clip_grad_norm(run.clip), tx)


def assert_same_weights(run: Run, params: Any, statistics: Any) -> None:
    """PyTorch's weights are those of JAX: compared there, where an LSTM's two biases are their sum."""
    theirs = dict(leaves_with_path(trees(*moved(run))))
    for path, ours in leaves_with_path(trees(params, statistics)):
        # PyTorch's running variances are those of samples, n / (n - 1) times Flax's.
        if path_text(path).startswith("batch_stats/") and path_text(path).endswith("/var"):
            continue
        np.testing.assert_allclose(ours, theirs[path], rtol=0, atol=TOLERANCE, err_msg=path_text(path))


def tokens() -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of texts, and what comes next at each position."""
    rng = np.random.default_rng(0)
    texts = rng.integers(0, models.VOCABULARY, (BEFORE + AFTER, 4, models.CONTEXT + 1))
    return [(text[:, :-1], text[:, 1:]) for text in texts]


def gpt(apply: Callable[..., Any], like: Any, names: Mapping[str, str]) -> Run:
    """nanoGPT: groups with and without decay, a cosine with warm-up, clipped gradients, tied embeddings."""
    torch.manual_seed(0)
    model = models.TorchGPT()
    named = list(model.named_parameters())
    groups = [
        {"params": [(name, p) for name, p in named if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [(name, p) for name, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=3e-4)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [10])
    layouts = {"*attn": fused_attention("c_attn", "c_proj"), "*wte/embedding": Tied("lm_head.weight")}
    return Run(model, optimizer, scheduler, tokens(), like, apply, names=renamed(names), layouts=layouts, clip=1.0)


def linen_gpt() -> Run:
    net = models.LinenGPT()
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, models.CONTEXT), int))["params"]
    names = {"": "transformer", "h_*": "transformer.h.*", "h_*.c_*": "transformer.h.*.mlp.c_*"}
    return gpt(lambda params, _, x: (net.apply({"params": params}, x), None), like, names)


def nnx_gpt() -> Run:
    graph, like = nnx.split(models.NnxGPT(nnx.Rngs(0)))
    names = {"": "transformer", "h.*": "transformer.h.*", "h.*.c_*": "transformer.h.*.mlp.c_*"}
    return gpt(lambda params, _, x: (nnx.merge(graph, params)(x), None), like, names)


def resnet() -> Run:
    """A ResNet with batch normalisation, under SGD and OneCycle, which cycles the momentum."""
    torch.manual_seed(0)
    model, net = models.TorchResNet(), models.ResNet()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=BEFORE + AFTER + 1)
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(16, 1, 8, 8)), rng.integers(0, 10, 16)) for _ in range(BEFORE + AFTER)]
    like = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))

    def apply(params: Any, statistics: Any, x: Any) -> tuple[Any, Any]:
        logits, new = net.apply({"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    return Run(
        model,
        optimizer,
        scheduler,
        batches,
        like["params"],
        apply,
        statistics=optax.tree.cast(like["batch_stats"], jnp.float64),  # Flax makes them in float32
        names=RESNET_NAMES,
        steps=BEFORE,
        to_jax=lambda x: np.moveaxis(x, 1, -1),
    )


def lstm() -> Run:
    """An LSTM, whose two biases in PyTorch are one in Flax: with twice the rate, which is what their sum has."""
    torch.manual_seed(0)
    model, net = models.TorchLSTM(), models.LSTM()
    named = list(model.named_parameters())
    groups = [[one for one in named if ("bias_" in one[0]) == is_bias] for is_bias in (True, False)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=3e-3, weight_decay=0.1)
    like = net.init(jax.random.key(0), jnp.zeros((1, models.CONTEXT), int))["params"]
    tx = param_groups(
        {"sums": adamw(6e-3, weight_decay=0.05), "others": adamw(3e-3, weight_decay=0.1)},
        lambda path, _: "sums" if "lstm" in path and path.endswith("bias") else "others",
    )
    return Run(
        model,
        optimizer,
        None,
        tokens(),
        like,
        lambda params, _, x: (net.apply({"params": params}, x), None),
        layouts={"lstm": recurrent("LSTM")},
        chain=tx,
    )


def mlp(make: Callable[[Any], Any]) -> Run:
    """Two layers and one for the output."""
    torch.manual_seed(0)
    model, net = models.torch_mlp(), models.MLP()
    optimizer = make(model.named_parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(16, 12)), rng.integers(0, 10, 16)) for _ in range(BEFORE + AFTER)]
    like = net.init(jax.random.key(0), jnp.zeros((1, 12)))["params"]
    return Run(model, optimizer, scheduler, batches, like, lambda p, _, x: (net.apply({"params": p}, x), None))


class Both:
    """Two optimizers of one model, with PyTorch's methods."""

    def __init__(self, *optimizers: Any):
        self.optimizers = optimizers

    def zero_grad(self) -> None:
        for one in self.optimizers:
            one.zero_grad()

    def step(self) -> None:
        with in_full_precision():  # bfloat16's sums are in no defined order, so equality is not possible there
            for one in self.optimizers:
                one.step()

    def state_dict(self) -> dict[str, Any]:
        return join_state_dicts(*(one.state_dict() for one in self.optimizers))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for one, own in zip(self.optimizers, split_state_dict(state_dict, self.optimizers)):
            one.load_state_dict(own)


def muon_and_adamw() -> Run:
    """Muon for the matrices of hidden layers, AdamW for the rest."""
    run = mlp(lambda named: torch.optim.SGD(named))
    named = list(run.model.named_parameters())
    hidden = [one for one in named if one[1].ndim == 2 and "fc3" not in one[0]]
    rest = [one for one in named if one[1].ndim < 2 or "fc3" in one[0]]
    optimizers = torch.optim.Muon(hidden, lr=0.02), torch.optim.AdamW(rest, lr=3e-3)
    both = Both(*optimizers)
    tx = param_groups(
        {"0": muon(0.02, precision="full"), "1": from_torch(optimizers[1])},
        torch_labels(both.state_dict()["param_groups"], run.like),
    )
    return run._replace(optimizer=both, scheduler=None, chain=tx)


def adafactor() -> Run:
    return mlp(lambda named: torch.optim.Adafactor(named, lr=0.01, weight_decay=0.01))


RUNS = {
    "Linen GPT": linen_gpt,
    "NNX GPT": nnx_gpt,
    "ResNet": resnet,
    "LSTM": lstm,
    "Adafactor": adafactor,
    "Muon and AdamW": muon_and_adamw,
}


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
@pytest.mark.filterwarnings("ignore:import_state. (lr|weight_decay) is:UserWarning")  # the LSTM's biases, as said there
def test_runs_go_on_in_the_other_framework(make):
    run = make()
    first, others = run.batches[:BEFORE], run.batches[BEFORE:]

    tx = chain_of(run)
    params, statistics = moved(run)
    params, state, statistics = jax_steps(run, tx, params, tx.init(params), statistics, first)
    torch_steps(run, first)
    assert_same_weights(run, params, statistics)
    back = replaced(run, tx, params, state, statistics)

    tx = chain_of(run)
    params, statistics = moved(run)
    state = import_state(tx, params, run.optimizer.state_dict(), **run.mapping, steps=run.steps)
    params, state, statistics = jax_steps(run, tx, params, state, statistics, others)

    torch_steps(run, others)
    torch_steps(back, others)
    assert_same_weights(run, params, statistics)
    assert_same_weights(run, *moved(back))


def replaced(run: Run, tx: Any, params: Any, state: Any, statistics: Any) -> Run:
    """A copy of a run in PyTorch, with weights and moments from JAX."""
    model, optimizer, scheduler = copy.deepcopy((run.model, run.optimizer, run.scheduler))
    for p in model.parameters():
        p.data.fill_(float("nan"))
    for one in getattr(optimizer, "optimizers", (optimizer,)):
        one.state.clear()
    weights = export_params(trees(params, statistics), **run.mapping)
    rest = model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()}, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in rest.missing_keys)
    assert not rest.unexpected_keys
    template = optimizer.state_dict() if isinstance(optimizer, Both) else optimizer
    optimizer.load_state_dict(export_state(tx, params, state, template, **run.mapping, steps=run.steps))
    return run._replace(model=model, optimizer=optimizer, scheduler=scheduler)
