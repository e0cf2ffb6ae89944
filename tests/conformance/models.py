"""Networks that exist twice, in PyTorch and in Flax: with fused attention, batch normalisation, or recurrence."""

from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen as nn
from flax import nnx
from torch.nn import functional as F

VOCABULARY, WIDTH, HEADS, LAYERS, CONTEXT = 17, 12, 3, 2, 8


class TorchBlock(torch.nn.Module):
    """A Transformer's block as nanoGPT writes it: one matrix for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = torch.nn.LayerNorm(WIDTH)
        self.attn = torch.nn.ModuleDict(
            {"c_attn": torch.nn.Linear(WIDTH, 3 * WIDTH), "c_proj": torch.nn.Linear(WIDTH, WIDTH)}
        )
        self.ln_2 = torch.nn.LayerNorm(WIDTH)
        self.mlp = torch.nn.ModuleDict(
            {"c_fc": torch.nn.Linear(WIDTH, 4 * WIDTH), "c_proj": torch.nn.Linear(4 * WIDTH, WIDTH)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.attn["c_attn"](self.ln_1(x)).split(WIDTH, dim=2)
        q, k, v = (one.view(batch, length, HEADS, -1).transpose(1, 2) for one in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, WIDTH)
        x = x + self.attn["c_proj"](mixed)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class TorchGPT(torch.nn.Module):
    """nanoGPT, with one tensor for the embeddings and the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(VOCABULARY, WIDTH),
                "wpe": torch.nn.Embedding(CONTEXT, WIDTH),
                "h": torch.nn.ModuleList([TorchBlock() for _ in range(LAYERS)]),
                "ln_f": torch.nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.shape[1]))
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))


class LinenBlock(nn.Module):
    has_tanh: bool = False  # GPT-2's approximation of GELU

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, param_dtype=jnp.float64)
        mask = nn.make_causal_mask(x[..., 0])
        attention = nn.MultiHeadDotProductAttention(HEADS, param_dtype=jnp.float64, name="attn")
        x = x + attention(norm(name="ln_1")(x), mask=mask)
        hidden = nn.gelu(
            nn.Dense(4 * WIDTH, param_dtype=jnp.float64, name="c_fc")(norm(name="ln_2")(x)), approximate=self.has_tanh
        )
        return x + nn.Dense(WIDTH, param_dtype=jnp.float64, name="c_proj")(hidden)


class LinenGPT(nn.Module):
    has_tanh: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        wte = nn.Embed(VOCABULARY, WIDTH, param_dtype=jnp.float64, name="wte")
        wpe = nn.Embed(CONTEXT, WIDTH, param_dtype=jnp.float64, name="wpe")
        x = wte(tokens) + wpe(jnp.arange(tokens.shape[1]))[None]
        for index in range(LAYERS):
            x = LinenBlock(self.has_tanh, name=f"h_{index}")(x)
        return wte.attend(nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, param_dtype=jnp.float64, name="ln_f")(x))


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array, **_: Any) -> jax.Array:
    """Attention in float64: NNX's own has its softmax in float32."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(mask, logits, -jnp.inf)), value)


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        norm = partial(nnx.LayerNorm, WIDTH, epsilon=1e-5, use_fast_variance=False, param_dtype=jnp.float64, rngs=rngs)
        self.ln_1, self.ln_2 = norm(), norm()
        self.attn = nnx.MultiHeadAttention(
            HEADS, WIDTH, decode=False, attention_fn=attend, param_dtype=jnp.float64, rngs=rngs
        )
        self.c_fc = nnx.Linear(WIDTH, 4 * WIDTH, param_dtype=jnp.float64, rngs=rngs)
        self.c_proj = nnx.Linear(4 * WIDTH, WIDTH, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.ln_1(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.c_proj(nnx.gelu(self.c_fc(self.ln_2(x)), approximate=False))


class NnxGPT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wte = nnx.Embed(VOCABULARY, WIDTH, param_dtype=jnp.float64, rngs=rngs)
        self.wpe = nnx.Embed(CONTEXT, WIDTH, param_dtype=jnp.float64, rngs=rngs)
        self.h = nnx.List([NnxBlock(rngs) for _ in range(LAYERS)])
        self.ln_f = nnx.LayerNorm(WIDTH, epsilon=1e-5, use_fast_variance=False, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))[None]
        for block in self.h:
            x = block(x)
        return self.wte.attend(self.ln_f(x))


class TorchResidual(torch.nn.Module):
    """A block of a ResNet with torchvision's names."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(out)
        self.conv2 = torch.nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1:
            shortcut = torch.nn.Conv2d(channels, out, 1, stride=stride, bias=False)
            self.downsample = torch.nn.Sequential(shortcut, torch.nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + short)


class TorchResNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(4)
        self.layer1 = torch.nn.Sequential(TorchResidual(4, 4, 1))
        self.layer2 = torch.nn.Sequential(TorchResidual(4, 6, 2))
        self.fc = torch.nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of images (batch, 1, 8, 8)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean(dim=(2, 3)))


class Residual(nn.Module):
    out: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(nn.Conv, self.out, use_bias=False, param_dtype=jnp.float64)
        short = x
        if self.stride != 1:
            short = conv(kernel_size=(1, 1), strides=self.stride, name="downsample_0")(x)
            short = _norm(train, "downsample_1")(short)
        x = conv(kernel_size=(3, 3), strides=self.stride, padding=1, name="conv1")(x)
        x = nn.relu(_norm(train, "bn1")(x))
        x = conv(kernel_size=(3, 3), padding=1, name="conv2")(x)
        return nn.relu(_norm(train, "bn2")(x) + short)


def _norm(train: bool, name: str) -> nn.BatchNorm:
    exact = {"use_fast_variance": False, "dtype": jnp.float64, "param_dtype": jnp.float64}
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=name, **exact)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """The logits of images (batch, 8, 8, 1)."""
        x = nn.Conv(4, (3, 3), padding=1, use_bias=False, param_dtype=jnp.float64, name="conv1")(x)
        x = nn.relu(_norm(train, "bn1")(x))
        x = Residual(4, 1, name="layer1_0")(x, train)
        x = Residual(6, 2, name="layer2_0")(x, train)
        return nn.Dense(10, param_dtype=jnp.float64, name="fc")(x.mean(axis=(1, 2)))


class TorchLSTM(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, 6)
        self.lstm = torch.nn.LSTM(6, WIDTH, batch_first=True)
        self.fc = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(self.embed(tokens))[0])


class LSTM(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, 6, param_dtype=jnp.float64, name="embed")(tokens)
        cell: Any = nn.OptimizedLSTMCell(WIDTH, param_dtype=jnp.float64, name="lstm")
        return nn.Dense(VOCABULARY, param_dtype=jnp.float64, name="fc")(nn.RNN(cell)(x))


def torch_mlp() -> torch.nn.Module:
    layers = {"fc1": torch.nn.Linear(12, 16), "act": torch.nn.Tanh(), "fc2": torch.nn.Linear(16, 8)}
    return torch.nn.Sequential(OrderedDict(layers | {"act2": torch.nn.Tanh(), "fc3": torch.nn.Linear(8, 10)}))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index, width in enumerate((16, 8), start=1):
            x = nn.tanh(nn.Dense(width, param_dtype=jnp.float64, name=f"fc{index}")(x))
        return nn.Dense(10, param_dtype=jnp.float64, name="fc3")(x)
