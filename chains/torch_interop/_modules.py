"""Ready rules for the modules of PyTorch, Flax Linen, Flax NNX and Equinox, and for some well-known models."""

from collections.abc import Callable, Sequence

import numpy as np

from ._layouts import FLAT, HEADS, HF_CONV1D, IDENTITY, LINEAR, MERGED_HEADS, Layout
from ._rules import Block, Layouts, Rule, Shape, Tied, fused, single

_QKV = ("query", "key", "value")
_KERNELS = tuple(f"{one}/kernel" for one in _QKV)
_BIASES = tuple(f"{one}/bias" for one in _QKV)
_CONV1D_HEADS = Layout(lambda w: w, lambda w: w.reshape(w.shape[0], -1), is_flat=True)
_CONV1D_MERGED_HEADS = Layout(lambda w: w, lambda w: w.reshape(-1, w.shape[-1]), is_flat=True)


def fused_attention(qkv: str = "qkv", out: str = "proj", *, conv1d: bool = False) -> Rule:
    """Flax's `MultiHeadDotProductAttention` or `MultiHeadAttention`, if PyTorch's query, key and value are one layer.

    Args:
        qkv: PyTorch's name for that layer: `"c_attn"` in nanoGPT and GPT-2, `"qkv"` in many vision models. Its rows are
            those of the query, then of the key, then of the value.
        out: PyTorch's name for the output layer.
        conv1d: Whether the two are Hugging Face's `Conv1D`, (in, out), instead of `torch.nn.Linear`, (out, in).

    Returns:
        The rule for the attention's path.

    Example:
        >>> from linkax.chains.torch_interop import fused_attention
        >>> layouts = {"params/*/attn": fused_attention("c_attn", "c_proj")}

    Source:
        `flax.linen.MultiHeadDotProductAttention`.
    """
    heads, merged = (_CONV1D_HEADS, _CONV1D_MERGED_HEADS) if conv1d else (HEADS, MERGED_HEADS)
    plain = HF_CONV1D if conv1d else LINEAR
    return Rule(
        f"fused_attention({qkv!r}, {out!r}{', conv1d=True' * conv1d})",
        [
            fused(f"{qkv}.weight", _KERNELS, heads, axis=int(conv1d)),
            fused(f"{qkv}.bias", _BIASES, FLAT, is_optional=True),
            single(f"{out}.weight", "out/kernel", merged),
            single(f"{out}.bias", "out/bias", is_optional=True),
        ],
        [
            fused(f"{qkv}.weight", _KERNELS, plain, axis=int(conv1d)),
            fused(f"{qkv}.bias", _BIASES, is_optional=True),
            single(f"{out}.weight", "out/kernel", plain),
            single(f"{out}.bias", "out/bias", is_optional=True),
        ],
    )


def separate_attention(query: str = "query", key: str = "key", value: str = "value", out: str = "out") -> Rule:
    """Flax's `MultiHeadDotProductAttention` or `MultiHeadAttention`, if PyTorch has four `torch.nn.Linear`.

    Args:
        query: PyTorch's name for the query's layer: `"q_proj"` in many language models.
        key: That of the key's.
        value: That of the value's.
        out: That of the output layer.

    Returns:
        The rule for the attention's path.

    Example:
        >>> from linkax.chains.torch_interop import separate_attention
        >>> layouts = {"params/*/attn": separate_attention("q_proj", "k_proj", "v_proj", "o_proj")}

    Source:
        `flax.linen.MultiHeadDotProductAttention`.
    """
    theirs = (query, key, value)
    return Rule(
        f"separate_attention({query!r}, {key!r}, {value!r}, {out!r})",
        [
            *(single(f"{name}.weight", leaf, HEADS) for name, leaf in zip(theirs, _KERNELS)),
            *(single(f"{name}.bias", leaf, FLAT, is_optional=True) for name, leaf in zip(theirs, _BIASES)),
            single(f"{out}.weight", "out/kernel", MERGED_HEADS),
            single(f"{out}.bias", "out/bias", is_optional=True),
        ],
    )


def _torch_attention() -> Rule:
    flax = (
        fused("in_proj_bias", _BIASES, FLAT, is_optional=True),
        single("out_proj.weight", "out/kernel", MERGED_HEADS),
        single("out_proj.bias", "out/bias", is_optional=True),
    )
    equinox = (
        fused("in_proj_bias", [f"{one}_proj/bias" for one in _QKV], is_optional=True),
        single("out_proj.weight", "output_proj/weight"),
        single("out_proj.bias", "output_proj/bias", is_optional=True),
    )
    return Rule(
        "MULTIHEAD_ATTENTION",
        [fused("in_proj_weight", _KERNELS, HEADS), *flax],
        [*(single(f"{one[0]}_proj_weight", f"{one}/kernel", HEADS) for one in _QKV), *flax],
        [fused("in_proj_weight", [f"{one}_proj/weight" for one in _QKV]), *equinox],
        [*(single(f"{one[0]}_proj_weight", f"{one}_proj/weight") for one in _QKV), *equinox],
    )


MULTIHEAD_ATTENTION = _torch_attention()
"""`torch.nn.MultiheadAttention` in `MultiHeadDotProductAttention` (Flax Linen), `MultiHeadAttention` (NNX) or
`MultiheadAttention` (Equinox). PyTorch has one `in_proj_weight`, or three if keys or values have sizes of their own."""


def _two_biases(
    tensors: tuple[str, str],
    leaves: Sequence[str],
    to_jax: Callable[[np.ndarray, np.ndarray, float, list[Shape]], list[np.ndarray]],
    to_torch: Callable[[list[np.ndarray], float], tuple[np.ndarray, np.ndarray]],
) -> Block:
    """Two biases that PyTorch adds up, in leaves that hold their sum; both always have the same gradient.

    So a leaf's moment is that of either, and their mean where weight decay in the gradient made them differ. The
    functions' number is what one bias is worth: its share in the sum, 1, or in the mean, 1/2.
    """
    moments = Block(
        tensors,
        tuple(leaves),
        lambda theirs, shapes: to_jax(theirs[0], theirs[1], 0.5, shapes),
        lambda ours: to_torch(ours, 1.0),
    )
    return Block(
        tensors,
        tuple(leaves),
        lambda theirs, shapes: to_jax(theirs[0], theirs[1], 1.0, shapes),
        lambda ours: to_torch(ours, 0.5),
        moments,
        is_optional=True,
    )


def _sum_of_biases(tensors: tuple[str, str], *leaves: str) -> Block:
    def to_jax(a: np.ndarray, b: np.ndarray, share: float, shapes: list[Shape]) -> list[np.ndarray]:
        return np.split((a + b) * share, np.cumsum([shape[0] for shape in shapes])[:-1])

    def to_torch(ours: list[np.ndarray], share: float) -> tuple[np.ndarray, np.ndarray]:
        each = np.concatenate(ours) * share
        return each, each

    return _two_biases(tensors, leaves, to_jax, to_torch)


def _gru_biases(
    tensors: tuple[str, str],
    leaves: Sequence[str],
    to_leaves: Callable[[list[np.ndarray]], list[np.ndarray]],
    to_gates: Callable[[list[np.ndarray]], list[np.ndarray]],
) -> Block:
    """A GRU adds up the biases of r and z, but multiplies the hidden one of n by r.

    The last two arguments convert [r, z, n, hidden n] to the leaves' arrays and back.
    """

    def to_jax(a: np.ndarray, b: np.ndarray, share: float, _: list[Shape]) -> list[np.ndarray]:
        (r, z, n), (hidden_r, hidden_z, hidden_n) = np.split(a, 3), np.split(b, 3)
        return to_leaves([(r + hidden_r) * share, (z + hidden_z) * share, n, hidden_n])

    def to_torch(ours: list[np.ndarray], share: float) -> tuple[np.ndarray, np.ndarray]:
        r, z, n, hidden_n = to_gates(ours)
        gates = [r * share, z * share]
        return np.concatenate([*gates, n]), np.concatenate([*gates, hidden_n])

    return _two_biases(tensors, leaves, to_jax, to_torch)


def _to_slope(tensors: list[np.ndarray], shapes: list[Shape]) -> list[np.ndarray]:
    if tensors[0].size != 1 and not shapes[0]:
        raise ValueError("it has one slope for each channel, and the parameter is a scalar")
    return [tensors[0].reshape(shapes[0])]


def _without_hidden_n(gates: list[np.ndarray]) -> list[np.ndarray]:
    if gates[3].any():
        raise ValueError("its last third, the bias inside r * (...), must be 0, because nnx.GRUCell has none")
    return [np.concatenate(gates[:3])]


def _with_hidden_n(ours: list[np.ndarray]) -> list[np.ndarray]:
    gates = np.split(ours[0], 3)
    return [*gates, np.zeros_like(gates[2])]


def _gates(count: int, layout: Layout) -> Layout:
    """The hidden weights of so many gates: other cells have the same names."""

    def to_torch(w: np.ndarray) -> np.ndarray:
        theirs = layout.to_torch(w)
        if theirs.ndim != 2 or theirs.shape[0] != count * theirs.shape[1]:
            raise ValueError(f"it must have the weights of {count} gates")
        return theirs

    return Layout(layout.to_jax, to_torch)


def _lstm(name: str, suffix: str) -> Rule:
    ih, hh = f"weight_ih{suffix}", f"weight_hh{suffix}"
    biases = (f"bias_ih{suffix}", f"bias_hh{suffix}")
    hidden = [f"h{gate}" for gate in "ifgo"]

    def by_gates(*inputs: str) -> list[Block]:
        return [
            fused(ih, [f"{gate}/kernel" for gate in inputs], LINEAR),
            fused(hh, [f"{gate}/kernel" for gate in hidden], LINEAR),
            _sum_of_biases(biases, *(f"{gate}/bias" for gate in hidden)),
        ]

    return Rule(
        name,
        by_gates("ii", "if", "ig", "io"),
        by_gates("ii", "if_", "ig", "io"),  # NNX
        [  # NNX's OptimizedLSTMCell
            single(ih, "dense_i/kernel", LINEAR),
            single(hh, "dense_h/kernel", _gates(4, LINEAR)),
            _sum_of_biases(biases, "dense_h/bias"),
        ],
        [
            single(ih, "weight_ih"),
            single(hh, "weight_hh", _gates(4, IDENTITY)),
            _sum_of_biases(biases, "bias"),
        ],  # Equinox
    )


def _gru(name: str, suffix: str) -> Rule:
    ih, hh = f"weight_ih{suffix}", f"weight_hh{suffix}"
    biases = (f"bias_ih{suffix}", f"bias_hh{suffix}")
    in_one = (lambda four: [np.concatenate(four[:3]), four[3]], lambda ours: [*np.split(ours[0], 3), ours[1]])
    return Rule(
        name,
        [
            fused(ih, [f"i{gate}/kernel" for gate in "rzn"], LINEAR),
            fused(hh, [f"h{gate}/kernel" for gate in "rzn"], LINEAR),
            _gru_biases(biases, ("ir/bias", "iz/bias", "in/bias", "hn/bias"), list, list),
        ],
        [  # NNX
            single(ih, "dense_i/kernel", LINEAR),
            single(hh, "dense_h/kernel", _gates(3, LINEAR)),
            _gru_biases(biases, ("dense_i/bias",), _without_hidden_n, _with_hidden_n),
        ],
        [  # Equinox
            single(ih, "weight_ih"),
            single(hh, "weight_hh", _gates(3, IDENTITY)),
            _gru_biases(biases, ("bias", "bias_n"), *in_one),
        ],
    )


def _rnn(name: str, suffix: str) -> Rule:
    biases = (f"bias_ih{suffix}", f"bias_hh{suffix}")
    return Rule(
        name,
        [
            single(f"weight_ih{suffix}", "i/kernel", LINEAR),
            single(f"weight_hh{suffix}", "h/kernel", LINEAR),
            _sum_of_biases(biases, "i/bias"),
        ],
        [  # NNX
            single(f"weight_ih{suffix}", "dense_i/kernel", LINEAR),
            single(f"weight_hh{suffix}", "dense_h/kernel", _gates(1, LINEAR)),
            _sum_of_biases(biases, "dense_i/bias"),
        ],
    )


LSTM_CELL = _lstm("LSTM_CELL", "")
"""`torch.nn.LSTMCell` in `LSTMCell` or `OptimizedLSTMCell` (Flax Linen, NNX), or `LSTMCell` (Equinox)."""

GRU_CELL = _gru("GRU_CELL", "")
"""`torch.nn.GRUCell` in `GRUCell` (Flax Linen, Equinox); NNX's lacks the hidden bias of n, so PyTorch's must be 0."""

RNN_CELL = _rnn("RNN_CELL", "")
"""`torch.nn.RNNCell` in `SimpleCell` (Flax Linen, NNX)."""


def recurrent(kind: str, layer: int = 0, *, reverse: bool = False) -> Rule:
    """A cell that is one layer, in one direction, of `torch.nn.LSTM`, `GRU` or `RNN`.

    PyTorch has two biases where JAX's libraries have one, their sum, except for the gate n of a GRU. Both get the same
    gradient, so the sum takes twice the step: continue with twice the learning rate, and half the weight decay, for
    these biases. A moment is that of either; where weight decay in the gradient made them differ, their mean.

    Args:
        kind: `"LSTM"`, `"GRU"` or `"RNN"`.
        layer: The index of the layer.
        reverse: Whether it is the backward direction.

    Returns:
        The rule for the cell's path. PyTorch's name for it is that of the whole `torch.nn.LSTM`.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> from linkax.chains.torch_interop import recurrent, renamed
        >>> layouts = {"params/lstm_0/cell": recurrent("LSTM"), "params/lstm_1/cell": recurrent("LSTM", 1)}
        >>> renamed({"lstm_*.cell": "lstm"})("params/lstm_1/cell")
        'lstm'

    Source:
        `torch.nn.LSTM`, `torch.nn.GRU`.
    """
    kinds = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
    if kind not in kinds:
        raise ValueError(f"recurrent: kind must be one of {', '.join(kinds)}, got {kind!r}")
    more = f", {layer}" * bool(layer) + ", reverse=True" * reverse
    return kinds[kind](f"recurrent({kind!r}{more})", f"_l{layer}{'_reverse' * reverse}")


BATCH_NORM = Rule("BATCH_NORM", [single("running_mean", "mean"), single("running_var", "var")])
"""The statistics of `torch.nn.BatchNorm1d` to `3d` in NNX's `BatchNorm`; Linen's are found by their collection."""

PRELU = Rule("PRELU", [Block(("weight",), ("negative_slope",), _to_slope, lambda ours: [ours[0].reshape(-1)])])
"""`torch.nn.PReLU`, (1,), in `PReLU` (Flax Linen, NNX, Equinox), which is a scalar there."""

TORCH_NN: dict[str, tuple[Rule, ...]] = {
    "*": (MULTIHEAD_ATTENTION, LSTM_CELL, GRU_CELL, BATCH_NORM, PRELU),
}
"""What applies everywhere where nothing else is given: PyTorch's modules in those of Flax Linen, NNX and Equinox."""

HF_GPT2: Layouts = {
    "*attn": (fused_attention("c_attn", "c_proj", conv1d=True),),
    "*c_attn/kernel": (HF_CONV1D,),
    "*c_proj/kernel": (HF_CONV1D,),
    "*c_fc/kernel": (HF_CONV1D,),
    "*wte/embedding": (Tied("lm_head.weight"),),
}
"""GPT-2 as Hugging Face writes it, in a model whose modules have the same names; with `names=HF_GPT2_NAMES`."""
