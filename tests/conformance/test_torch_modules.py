"""The modules of PyTorch in those of Flax Linen, Flax NNX and Equinox, there and back.

For each: the outputs are equal, and so are the weights and moments after further steps on the same gradients.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from linkax.chains import chain
from linkax.chains.torch_interop import (
    CONV_TRANSPOSE,
    HF_CONV1D,
    HF_GPT2,
    HF_GPT2_NAMES,
    RESNET_NAMES,
    Stacked,
    correspondence,
    equinox_conv_transpose,
    export_params,
    export_state,
    from_torch,
    fused_attention,
    import_params,
    import_state,
    recurrent,
    renamed,
    separate_attention,
)

torch = pytest.importorskip("torch", reason="compares with the installed PyTorch")

# Sums of some dozen products of numbers around 1, in float64, added up in different orders.
OUTPUTS = 1e-12
# Both frameworks round once or twice an operation in float64 (1e-16), over a handful of steps.
STEPS = 1e-12
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


pytestmark = pytest.mark.usefixtures("float64")


def randomised(module):
    """The module with numbers in which nothing is 0, 1 or equal to anything else."""
    for one in [*module.parameters(), *module.buffers()]:
        if one.is_floating_point():
            one.data = torch.randn_like(one) / 2
            if one.ndim == 1 and any(one is buffer for buffer in module.buffers()):
                one.data = one.data.abs() + 0.5  # variances
    return module.eval()


def numpy(*tensors):
    return [one.detach().numpy() for one in tensors]


def tensors(arrays):
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def assert_close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max(initial=0)))


def check_weights(module, like, apply, theirs, **hooks):
    """Weights move there, where the outputs are the same, and back."""
    assert not correspondence(like, module.state_dict(), **hooks).problems
    params = import_params(like, module.state_dict(), **hooks)
    assert_close(np.asarray(apply(params)), theirs.detach().numpy(), OUTPUTS)
    back = export_params(params, **hooks)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(tensors(back), strict=False)
    assert before.keys() - back.keys() <= {name for name in before if name.endswith("num_batches_tracked")}
    for name, value in back.items():
        np.testing.assert_array_equal(value, before[name])
    return params


def check_moments(module, params, **hooks):
    """Moments move there and back in the middle of a run on the same gradients."""
    optimizer = torch.optim.AdamW(module.named_parameters(), lr=0.1, weight_decay=0.1)
    shared = {id(one): name for name, one in module.named_parameters()}
    names = {name: shared[id(one)] for name, one in module.named_parameters(remove_duplicate=False)}

    def step():
        grads = {}
        for name, one in module.named_parameters():
            one.grad = torch.from_numpy(RNG.normal(size=one.shape))
            grads[name] = one.grad.numpy().copy()
        optimizer.step()
        return {name: grads[own] for name, own in names.items()}

    for _ in range(3):
        step()
    trainable = import_params(params, dict(module.named_parameters(remove_duplicate=False)), **hooks)
    tx = from_torch(optimizer)
    state = import_state(tx, trainable, optimizer.state_dict(), **hooks)
    update = jax.jit(tx.update)
    for _ in range(3):
        grads = import_params(trainable, step(), **hooks)
        updates, state = update(grads, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    for name, value in export_params(trainable, **hooks).items():
        assert_close(value, dict(module.named_parameters(remove_duplicate=False))[name].detach().numpy(), STEPS)
    exported, theirs = export_state(tx, trainable, state, optimizer, **hooks), optimizer.state_dict()
    assert exported["state"].keys() == theirs["state"].keys()
    for index, own in theirs["state"].items():
        assert exported["state"][index].keys() == own.keys()
        for key, value in own.items():
            assert_close(exported["state"][index][key].numpy(), value.numpy(), STEPS)


def in_float64(like):
    """The statistics of a batch normalisation are always float32."""
    return jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, np.float64), like)


def linen(module, *inputs):
    return jax.eval_shape(module.init, KEY, *inputs), jax.jit(lambda params: module.apply(params, *inputs))


def of_nnx(model, call, *kinds):
    """An NNX model's state as the tree, and its call."""
    graph, state, rest = nnx.split(model, nnx.Any(nnx.Param, *kinds), ...)
    return state, lambda params: call(nnx.merge(graph, params, rest))


def of_equinox(eqx, model, call):
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, jax.jit(lambda params: call(eqx.combine(params, static)))


# --- attention -------------------------------------------------------------------------------------------------------

X, Y, Z = RNG.normal(size=(2, 5, 8)), RNG.normal(size=(2, 7, 6)), RNG.normal(size=(2, 7, 4))


@pytest.mark.parametrize(("library", "bias"), [("linen", True), ("linen", False), ("nnx", True)])
def test_multihead_attention(library, bias):
    module = randomised(torch.nn.MultiheadAttention(8, 2, bias=bias, batch_first=True))
    x = torch.from_numpy(X)
    if library == "linen":
        like, apply = linen(nn.MultiHeadDotProductAttention(2, use_bias=bias, param_dtype=np.float64), X)
    else:
        # Its own function has float32 logits.
        exact = lambda q, k, v, **_: nn.dot_product_attention(q, k, v)  # noqa: E731
        own = nnx.MultiHeadAttention(
            2, 8, use_bias=bias, decode=False, param_dtype=np.float64, attention_fn=exact, rngs=nnx.Rngs(0)
        )
        like, apply = of_nnx(own, lambda model: model(X))
    params = check_weights(module, like, apply, module(x, x, x)[0])
    check_moments(module, params)


def test_multihead_attention_with_keys_and_values_of_other_sizes():
    module = randomised(torch.nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True))
    like, apply = linen(nn.MultiHeadDotProductAttention(2, param_dtype=np.float64), X, Y, Z)
    params = check_weights(module, like, apply, module(*map(torch.from_numpy, (X, Y, Z)))[0])
    check_moments(module, params)


class CausalSelfAttention(torch.nn.Module):
    """As in nanoGPT, or with Hugging Face's Conv1D as in GPT-2."""

    def __init__(self, features, heads, conv1d=False):
        super().__init__()
        self.heads = heads
        kind = Conv1D if conv1d else (lambda out, into: torch.nn.Linear(into, out))
        self.c_attn, self.c_proj = kind(3 * features, features), kind(features, features)

    def forward(self, x):
        batch, length, features = x.shape
        q, k, v = (
            one.view(batch, length, self.heads, -1).transpose(1, 2) for one in self.c_attn(x).split(features, dim=2)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, length, features))


class Conv1D(torch.nn.Module):
    """Hugging Face's linear layer, whose weight is (in, out)."""

    def __init__(self, out, into):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(into, out))
        self.bias = torch.nn.Parameter(torch.empty(out))

    def forward(self, x):
        return x @ self.weight + self.bias


class DenseAttention(nn.Module):
    """The same with plain dense layers, in one kernel or in three."""

    heads: int
    is_fused: bool

    @nn.compact
    def __call__(self, x):
        features = x.shape[-1]
        if self.is_fused:
            q, k, v = jnp.split(nn.Dense(3 * features, param_dtype=np.float64, name="c_attn")(x), 3, -1)
        else:
            q, k, v = (nn.Dense(features, param_dtype=np.float64, name=name)(x) for name in ("query", "key", "value"))
        q, k, v = (one.reshape(*x.shape[:2], self.heads, -1) for one in (q, k, v))
        y = nn.dot_product_attention(q, k, v, mask=nn.make_causal_mask(x[..., 0])).reshape(x.shape)
        return nn.Dense(features, param_dtype=np.float64, name="c_proj" if self.is_fused else "out")(y)


@pytest.mark.parametrize(
    ("ours", "conv1d"),
    [("attention", False), ("attention", True), ("fused dense", False), ("fused dense", True), ("three dense", False)],
)
def test_fused_queries_keys_and_values(ours, conv1d):
    module = randomised(CausalSelfAttention(8, 2, conv1d))
    layouts = {"params": fused_attention("c_attn", "c_proj", conv1d=conv1d)}
    if ours == "attention":
        attention = nn.MultiHeadDotProductAttention(2, param_dtype=np.float64)
        apply = lambda params: attention.apply(params, X, mask=nn.make_causal_mask(X[..., 0]))  # noqa: E731
        like = attention.init(KEY, X)
    else:
        like, apply = linen(DenseAttention(2, ours == "fused dense"), X)
        if ours == "fused dense":
            layouts = {"*/kernel": HF_CONV1D} if conv1d else {}
    params = check_weights(module, like, apply, module(torch.from_numpy(X)), layouts=layouts)
    check_moments(module, params, layouts=layouts)


def test_separate_layers_for_queries_keys_and_values():
    class Attention(CausalSelfAttention):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.heads = 2
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (torch.nn.Linear(8, 8) for _ in range(4))
            self.c_attn = lambda x: torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], 2)
            self.c_proj = lambda x: self.o_proj(x)

    module = randomised(Attention())
    attention = nn.MultiHeadDotProductAttention(2, param_dtype=np.float64)
    layouts = {"params": separate_attention("q_proj", "k_proj", "v_proj", "o_proj")}
    like = jax.eval_shape(attention.init, KEY, X)
    apply = jax.jit(lambda params: attention.apply(params, X, mask=nn.make_causal_mask(X[..., 0])))
    params = check_weights(module, like, apply, module(torch.from_numpy(X)), layouts=layouts)
    check_moments(module, params, layouts=layouts)


# --- recurrent layers ------------------------------------------------------------------------------------------------

CELLS = {
    ("LSTM", "linen"): lambda: nn.OptimizedLSTMCell(4, param_dtype=np.float64),
    ("LSTM", "linen, plain"): lambda: nn.LSTMCell(4, param_dtype=np.float64),
    ("LSTM", "nnx"): lambda: nnx.OptimizedLSTMCell(3, 4, param_dtype=np.float64, rngs=nnx.Rngs(0)),
    ("LSTM", "nnx, plain"): lambda: nnx.LSTMCell(3, 4, param_dtype=np.float64, rngs=nnx.Rngs(0)),
    ("GRU", "linen"): lambda: nn.GRUCell(4, param_dtype=np.float64),
    ("GRU", "nnx"): lambda: nnx.GRUCell(3, 4, param_dtype=np.float64, rngs=nnx.Rngs(0)),
    ("RNN", "linen"): lambda: nn.SimpleCell(4, param_dtype=np.float64),
    ("RNN", "nnx"): lambda: nnx.SimpleCell(3, 4, dtype=np.float64, param_dtype=np.float64, rngs=nnx.Rngs(0)),
}
SEQUENCE = RNG.normal(size=(2, 6, 3))


def cell_of(kind, library):
    cell = CELLS[kind, library]()
    if isinstance(cell, nn.Module):
        return linen(nn.RNN(cell), SEQUENCE)
    return of_nnx(nnx.RNN(cell, rngs=nnx.Rngs(0)), lambda model: model(SEQUENCE))


def assert_same_layer(module, weights):
    """PyTorch's layer gets back what it had, except for how it splits the sum of two biases."""
    theirs = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    assert weights.keys() == theirs.keys()
    again = {name: value.copy() for name, value in theirs.items()}
    for name in weights:
        if name.startswith("weight"):
            np.testing.assert_array_equal(weights[name], again[name])
    inputs = torch.from_numpy(SEQUENCE)
    before = module(inputs)[0].detach().numpy()
    module.load_state_dict(tensors(weights))
    assert_close(module(inputs)[0].detach().numpy(), before, OUTPUTS)


@pytest.mark.parametrize(("kind", "library"), CELLS)
def test_recurrent_layers(kind, library):
    module = randomised(getattr(torch.nn, kind)(3, 4, batch_first=True))
    if (kind, library) == ("GRU", "nnx"):
        module.bias_hh_l0.data[8:] = 0  # it has no such bias
    like, apply = cell_of(kind, library)
    hooks = {"layouts": {"*cell": recurrent(kind)}, "names": renamed({"cell": ""})}
    params = import_params(like, module.state_dict(), **hooks)
    assert_close(apply(params), module(torch.from_numpy(SEQUENCE))[0].detach().numpy(), OUTPUTS)
    assert_same_layer(module, export_params(params, **hooks))


def test_a_bias_that_a_cell_lacks_is_refused():
    module = randomised(torch.nn.GRU(3, 4, batch_first=True))
    like, _ = cell_of("GRU", "nnx")
    with pytest.raises(ValueError, match="the bias inside r \\* \\(...\\), must be 0, because nnx.GRUCell has none"):
        import_params(like, module.state_dict(), layouts={"*cell": recurrent("GRU")}, names=renamed({"cell": ""}))


def test_both_directions_and_layers():
    module = randomised(torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True))

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            for layer in range(2):
                there, back = (
                    nn.RNN(
                        nn.OptimizedLSTMCell(4, param_dtype=np.float64, name=f"{way}_{layer}"),
                        reverse=way == "back",
                        keep_order=True,
                    )
                    for way in ("there", "back")
                )
                x = jnp.concatenate([there(x), back(x)], -1)
            return x

    like, apply = linen(Layers(), SEQUENCE)
    rules = {
        f"params/{way}_{layer}": recurrent("LSTM", layer, reverse=way == "back")
        for layer in range(2)
        for way in ("there", "back")
    }
    hooks = {"layouts": rules, "names": renamed({"there_*": "", "back_*": ""})}
    params = import_params(like, module.state_dict(), **hooks)
    assert_close(apply(params), module(torch.from_numpy(SEQUENCE))[0].detach().numpy(), OUTPUTS)
    assert_same_layer(module, export_params(params, **hooks))


@pytest.mark.parametrize(
    ("kind", "optimizer", "arguments"), [("LSTM", "Adam", {}), ("GRU", "SGD", {"momentum": 0.9, "weight_decay": 0.1})]
)
def test_a_recurrent_layer_trains_on_if_its_summed_biases_take_twice_the_step(kind, optimizer, arguments):
    module = randomised(getattr(torch.nn, kind)(3, 4, batch_first=True))
    made = getattr(torch.optim, optimizer)(module.named_parameters(), lr=0.05, **arguments)
    x = torch.from_numpy(SEQUENCE)

    def step():
        made.zero_grad()
        module(x)[0].square().mean().backward()
        made.step()

    for _ in range(3):
        step()
    like, apply = cell_of(kind, "linen")
    hooks = {"layouts": {"*cell": recurrent(kind)}, "names": renamed({"cell": ""})}
    params = import_params(like, module.state_dict(), **hooks)
    summed = {"LSTM": ("hi", "hf", "hg", "ho"), "GRU": ("ir", "iz")}[kind]
    twice = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "bias" and path[-2].key in summed, params)
    decay = arguments.get("weight_decay", 0)  # half of it for these biases, so by hand
    plain = from_torch((optimizer, {"lr": 0.05, **arguments, "weight_decay": 0}))
    tx = chain(plain, optax.masked(optax.scale(2.0), twice))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = import_state(tx, params, made.state_dict(), **hooks)
    told = " ".join(str(one.message) for one in caught)
    assert "lr is 0.05 in PyTorch's group 0, and 0.1 in the chain" in told
    assert ("bias_ih_l0 and bias_hh_l0 differ" in told) == bool(decay)
    gradient = jax.jit(jax.grad(lambda params: jnp.mean(apply(params) ** 2)))
    for _ in range(5):
        step()
        grads = jax.tree.map(lambda g, w, half: g + decay * w / (1 + half), gradient(params), params, twice)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    theirs = import_params(like, module.state_dict(), **hooks)
    # Every step's rounding goes through the gradients of the next.
    jax.tree.map(lambda a, b: assert_close(a, np.asarray(b), 1e-11), params, theirs)
    if not decay:  # otherwise the two biases have different moments in PyTorch
        exported = export_state(tx, params, state, made, **hooks)
        for index, own in made.state_dict()["state"].items():
            for key, value in own.items():
                assert_close(exported["state"][index][key].numpy(), value.numpy(), 1e-11)


# --- stacked layers, tied embeddings, whole models -------------------------------------------------------------------


class Layer(nn.Module):
    """A block of GPT-2, as Hugging Face names its parts."""

    @nn.compact
    def __call__(self, x, _=None):
        attention = nn.MultiHeadDotProductAttention(2, param_dtype=np.float64, name="attn")
        y = nn.LayerNorm(1e-5, param_dtype=np.float64, name="ln_1")(x)
        x = x + attention(y, mask=nn.make_causal_mask(x[..., 0]))
        y = nn.LayerNorm(1e-5, param_dtype=np.float64, name="ln_2")(x)
        return x + MLP(name="mlp")(y), None


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(32, param_dtype=np.float64, name="c_fc")(x))
        return nn.Dense(8, param_dtype=np.float64, name="c_proj")(y)


class GPT2(nn.Module):
    axis: int | None = None  # of stacked layers

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8, param_dtype=np.float64, name="wte")
        x = embed(tokens) + nn.Embed(6, 8, param_dtype=np.float64, name="wpe")(jnp.arange(tokens.shape[1]))[None]
        if self.axis is None:
            for index in range(3):
                x, _ = Layer(name=f"h_{index}")(x)
        else:
            layers = nn.scan(Layer, {"params": self.axis}, split_rngs={"params": True}, length=3)
            x, _ = layers(name="h")(x, None)
        return embed.attend(nn.LayerNorm(1e-5, param_dtype=np.float64, name="ln_f")(x))


class TorchGPT2(torch.nn.Module):
    def __init__(self):
        super().__init__()
        block = lambda: torch.nn.ModuleDict(  # noqa: E731
            {
                "ln_1": torch.nn.LayerNorm(8),
                "attn": CausalSelfAttention(8, 2, conv1d=True),
                "ln_2": torch.nn.LayerNorm(8),
                "mlp": torch.nn.ModuleDict({"c_fc": Conv1D(32, 8), "c_proj": Conv1D(8, 32)}),
            }
        )
        embeddings = {"wte": torch.nn.Embedding(11, 8), "wpe": torch.nn.Embedding(6, 8)}
        inside = {"h": torch.nn.ModuleList(block() for _ in range(3)), "ln_f": torch.nn.LayerNorm(8)}
        self.transformer = torch.nn.ModuleDict(embeddings | inside)
        self.lm_head = torch.nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, tokens):
        own = self.transformer
        x = own.wte(tokens) + own.wpe(torch.arange(tokens.shape[1]))
        for block in own.h:
            x = x + block["attn"](block["ln_1"](x))
            inner = torch.nn.functional.gelu(block["mlp"]["c_fc"](block["ln_2"](x)), approximate="tanh")
            x = x + block["mlp"]["c_proj"](inner)
        return self.lm_head(own.ln_f(x))


@pytest.mark.parametrize("axis", [None, 1])
def test_gpt2_of_hugging_face_with_tied_embeddings_and_stacked_layers(axis):
    module, tokens = randomised(TorchGPT2()), RNG.integers(0, 11, (2, 6))
    layouts = HF_GPT2 | ({} if axis is None else {"params/h": Stacked(axis)})
    like, apply = linen(GPT2(axis), tokens)
    hooks = {"layouts": layouts, "names": HF_GPT2_NAMES}
    params = check_weights(module, like, apply, module(torch.from_numpy(tokens)), **hooks)
    check_moments(module, params, **hooks)


def test_embeddings_that_are_not_tied_after_all_are_refused():
    module = TorchGPT2()
    like, _ = linen(GPT2(), np.zeros((1, 6), int))
    weights = dict(module.state_dict())
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    with pytest.raises(ValueError, match="transformer.wte.weight and lm_head.weight must be equal"):
        import_params(like, weights, layouts=HF_GPT2, names=HF_GPT2_NAMES)
    del weights["lm_head.weight"]  # as safetensors has it
    import_params(like, weights, layouts=HF_GPT2, names=HF_GPT2_NAMES)


def test_layers_stacked_by_nnx():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def layers(rngs):
        return nnx.Linear(8, 8, param_dtype=np.float64, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self):
            self.layers = layers(nnx.Rngs(0))

        def __call__(self, x):
            return nnx.scan(lambda x, layer: jnp.tanh(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
                x, self.layers
            )

    module = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))})
    theirs = torch.from_numpy(X)
    for layer in randomised(module)["layers"]:
        theirs = torch.tanh(layer(theirs))
    like, apply = of_nnx(Model(), lambda model: model(X))
    params = check_weights(module, like, apply, theirs, layouts={"layers": Stacked()})
    check_moments(module, params, layouts={"layers": Stacked()})


# --- other modules ---------------------------------------------------------------------------------------------------


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def images(*shape):
    return RNG.normal(size=shape)


F64 = {"param_dtype": np.float64}
MODULES = {
    "conv1d": (lambda: torch.nn.Conv1d(4, 6, 3), lambda: nn.Conv(6, (3,), padding="VALID", **F64), (2, 4, 7)),
    "grouped conv": (
        lambda: torch.nn.Conv2d(4, 6, (3, 2), groups=2),
        lambda: nn.Conv(6, (3, 2), padding="VALID", feature_group_count=2, **F64),
        (2, 4, 7, 6),
    ),
    "depthwise conv": (
        lambda: torch.nn.Conv2d(4, 8, 3, groups=4),
        lambda: nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4, **F64),
        (2, 4, 7, 6),
    ),
    "conv3d": (
        lambda: torch.nn.Conv3d(2, 3, 2),
        lambda: nn.Conv(3, (2, 2, 2), padding="VALID", **F64),
        (2, 2, 4, 3, 5),
    ),
    "transposed conv3d": (
        lambda: torch.nn.ConvTranspose3d(2, 3, 2),
        lambda: nn.ConvTranspose(3, (2, 2, 2), padding="VALID", **F64),
        (2, 2, 4, 3, 5),
    ),
    "layer norm": (lambda: torch.nn.LayerNorm(4), lambda: nn.LayerNorm(1e-5, **F64), (2, 4)),
    "rms norm": (lambda: torch.nn.RMSNorm(4, eps=1e-5), lambda: nn.RMSNorm(1e-5, **F64), (2, 4)),
    "group norm": (lambda: torch.nn.GroupNorm(2, 4), lambda: nn.GroupNorm(2, epsilon=1e-5, **F64), (2, 4, 5)),
    "prelu": (lambda: torch.nn.PReLU(), lambda: nn.PReLU(param_dtype=np.float64), (2, 4)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_linen(name):
    theirs, ours, shape = MODULES[name]
    module, x = randomised(theirs()), images(*shape)
    like, apply = linen(ours(), channels_last(x))
    layouts = {"params/kernel": CONV_TRANSPOSE} if "transposed" in name else None
    expected = torch.movedim(module(torch.from_numpy(x)), 1, -1)
    params = check_weights(module, like, apply, expected, layouts=layouts)
    check_moments(module, params, layouts=layouts)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_batch_norm_with_its_statistics(library):
    module, x = randomised(torch.nn.BatchNorm2d(4)), images(2, 4, 3, 5)
    if library == "linen":
        like, apply = linen(nn.BatchNorm(True, epsilon=1e-5, **F64, dtype=np.float64), channels_last(x))
        like = in_float64(like)
    else:
        own = nnx.BatchNorm(4, epsilon=1e-5, use_running_average=True, **F64, rngs=nnx.Rngs(0))
        like, apply = of_nnx(own, lambda model: model(channels_last(x)), nnx.BatchStat)
        like = in_float64(like)
    expected = torch.movedim(module(torch.from_numpy(x)), 1, -1)
    check_weights(module, like, apply, expected)


def test_boxed_parameters():
    module = randomised(torch.nn.MultiheadAttention(8, 2, batch_first=True))
    boxed = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "heads", "kv"))
    like, apply = linen(nn.MultiHeadDotProductAttention(2, param_dtype=np.float64, kernel_init=boxed), X)
    x = torch.from_numpy(X)
    params = check_weights(module, like, apply, module(x, x, x)[0])
    assert isinstance(params["params"]["query"]["kernel"], nn.LogicallyPartitioned)
    check_moments(module, params)


# --- a ResNet with torchvision's names -------------------------------------------------------------------------------


class TorchBlock(torch.nn.Module):
    def __init__(self, into, out, stride):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(into, out, 3, stride, 1, bias=False), torch.nn.BatchNorm2d(out)
        self.conv2, self.bn2 = torch.nn.Conv2d(out, out, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(out)
        if stride > 1:
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(into, out, 1, stride, bias=False), torch.nn.BatchNorm2d(out)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class TorchResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 4, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(4)
        self.layer1 = torch.nn.Sequential(TorchBlock(4, 4, 1), TorchBlock(4, 4, 1))
        self.layer2 = torch.nn.Sequential(TorchBlock(4, 6, 2), TorchBlock(6, 6, 1))
        self.fc = torch.nn.Linear(6, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    out: int
    stride: int

    @nn.compact
    def __call__(self, x):
        conv = lambda size, stride, name: nn.Conv(  # noqa: E731
            self.out, (size, size), stride, size // 2, use_bias=False, name=name, **F64
        )
        norm = lambda name: nn.BatchNorm(True, epsilon=1e-5, name=name, **F64)  # noqa: E731
        y = nn.relu(norm("bn1")(conv(3, self.stride, "conv1")(x)))
        y = norm("bn2")(conv(3, 1, "conv2")(y))
        if self.stride > 1:
            x = norm("downsample_1")(conv(1, self.stride, "downsample_0")(x))
        return nn.relu(y + x)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), 1, 1, use_bias=False, name="conv1", **F64)(x)
        x = nn.relu(nn.BatchNorm(True, epsilon=1e-5, name="bn1", **F64)(x))
        for layer, out in ((1, 4), (2, 6)):
            for block in range(2):
                x = Block(out, 2 if layer > 1 and not block else 1, name=f"layer{layer}_{block}")(x)
        return nn.Dense(5, name="fc", **F64)(x.mean((1, 2)))


def test_a_resnet_with_torchvisions_names():
    module, x = randomised(TorchResNet()), images(2, 3, 8, 8)
    like, apply = linen(ResNet(), channels_last(x))
    like = in_float64(like)
    params = check_weights(module, like, apply, module(torch.from_numpy(x)), names=RESNET_NAMES)
    check_moments(module, {"params": params["params"]}, names=RESNET_NAMES)


# --- Equinox ---------------------------------------------------------------------------------------------------------


def equinox_cases(eqx):
    """PyTorch's module, Equinox's, and the calls of both."""
    x, image = RNG.normal(size=3), RNG.normal(size=(4, 7, 6))
    key = {"key": KEY, "dtype": np.float64}

    def sequence(theirs):
        return lambda module: module(torch.from_numpy(x)[None], theirs)

    hidden = RNG.normal(size=(2, 4))
    return {
        "mlp": (
            torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)])}),
            eqx.nn.MLP(3, 2, 4, 1, **key),
            lambda module: module["layers"][1](torch.relu(module["layers"][0](torch.from_numpy(x)))),
            lambda model: model(x),
        ),
        "conv": (
            torch.nn.Conv2d(4, 6, 3, groups=2),
            eqx.nn.Conv2d(4, 6, 3, groups=2, **key),
            lambda module: module(torch.from_numpy(image)),
            lambda model: model(image),
        ),
        "transposed conv": (
            torch.nn.ConvTranspose2d(4, 6, 3, groups=2),
            eqx.nn.ConvTranspose2d(4, 6, 3, groups=2, **key),
            lambda module: module(torch.from_numpy(image)),
            lambda model: model(image),
            {"layouts": {"weight": equinox_conv_transpose(2)}},
        ),
        "attention": (
            torch.nn.MultiheadAttention(8, 2, batch_first=True),
            eqx.nn.MultiheadAttention(
                2,
                8,
                use_query_bias=True,
                use_key_bias=True,
                use_value_bias=True,
                use_output_bias=True,
                **key,
            ),
            lambda module: module(*[torch.from_numpy(X[0])] * 3)[0],
            lambda model: model(*[jnp.asarray(X[0])] * 3),
        ),
        "norm": (
            torch.nn.LayerNorm(3),
            eqx.nn.LayerNorm(3, dtype=np.float64),
            lambda module: module(torch.from_numpy(x)),
            lambda model: model(x),
        ),
        "lstm": (
            torch.nn.LSTMCell(3, 4),
            eqx.nn.LSTMCell(3, 4, **key),
            lambda module: module(torch.from_numpy(x), tuple(torch.from_numpy(hidden)))[0],
            lambda model: model(x, tuple(hidden))[0],
        ),
        "gru": (
            torch.nn.GRUCell(3, 4),
            eqx.nn.GRUCell(3, 4, **key),
            lambda module: module(torch.from_numpy(x), torch.from_numpy(hidden[0])),
            lambda model: model(x, hidden[0]),
        ),
    }


@pytest.mark.parametrize("name", ["mlp", "conv", "transposed conv", "attention", "norm", "lstm", "gru"])
def test_equinox(name):
    eqx = pytest.importorskip("equinox")
    module, model, theirs, ours, *hooks = equinox_cases(eqx)[name]
    hooks = hooks[0] if hooks else {}
    randomised(module)
    like, apply = of_equinox(eqx, model, ours)
    if name in ("lstm", "gru"):
        params = import_params(like, module.state_dict())
        before = theirs(module).detach().numpy()
        assert_close(apply(params), before, OUTPUTS)
        module.load_state_dict(tensors(export_params(params)))
        assert_close(theirs(module).detach().numpy(), before, OUTPUTS)
    else:
        params = check_weights(module, like, apply, theirs(module), **hooks)
        check_moments(module, params, **hooks)
