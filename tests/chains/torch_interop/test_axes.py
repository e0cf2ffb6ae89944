"""Where PyTorch's axes are, for the optimizers that do not treat all of them alike."""

import jax
import jax.numpy as jnp
import pytest

from linkax.chains.torch_interop import (
    CONV_TRANSPOSE,
    HF_CONV1D,
    LINEAR,
    Layout,
    Stacked,
    Tied,
    from_torch,
    fused_attention,
)
from linkax.chains.torch_interop._axes import factored_axes, output_axis


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("path", "shape", "layouts", "output", "factored"),
    [
        ("fc/kernel", (4, 3), {}, 1, (1, 0)),
        ("fc/weight", (4, 3), {}, 0, (0, 1)),
        ("fc/kernel", (4, 3), {"fc/*": HF_CONV1D}, 0, (0, 1)),
        ("wte/embedding", (4, 3), {"*wte/embedding": Tied("lm_head.weight", LINEAR)}, 1, (1, 0)),
        ("conv/kernel", (5, 6, 2, 3), {}, 3, (0, 1)),
        ("up/kernel", (5, 6, 2, 3), {"up/kernel": CONV_TRANSPOSE}, 2, (0, 1)),
    ],
)
def test_axes_are_where_the_layout_puts_them(path, shape, layouts, output, factored):
    assert output_axis(layouts, path, leaf(*shape)) == output
    assert factored_axes(layouts, path, leaf(*shape)) == factored


def test_an_array_of_one_axis_is_not_factored():
    assert factored_axes({}, "fc/bias", leaf(3)) is None


@pytest.mark.parametrize(
    ("path", "layouts", "rule"),
    [
        ("h/attn/query/kernel", {"*attn": fused_attention("c_attn", "c_proj")}, "fused_attention"),
        ("h/attn/query/kernel", {"*attn": (fused_attention("c_attn", "c_proj"),)}, "fused_attention"),
        ("h/attn/query/kernel", {}, "MULTIHEAD_ATTENTION"),
        ("cell/hf/kernel", {}, "LSTM_CELL"),
        ("blocks/fc/kernel", {"blocks": Stacked()}, "Stacked"),
    ],
)
def test_parts_of_a_tensor_are_refused(path, layouts, rule):
    with pytest.raises(ValueError, match=f"from_torch: {path} must be a whole tensor of PyTorch's, .*{rule}"):
        output_axis(layouts, path, leaf(4, 4))
    assert output_axis(layouts | {path: LINEAR}, path, leaf(4, 4)) == 1  # unless it is said to be whole


def test_an_axis_that_is_split_is_refused():
    joined = Layout(lambda w: w.reshape(2, 2, 3), lambda w: w.reshape(4, 3))
    with pytest.raises(ValueError, match="its layout splits or joins PyTorch's"):
        output_axis({"w": joined}, "w", leaf(2, 2, 3))


def test_from_torch_gives_the_layouts_to_the_chain():
    tx = from_torch(("Muon", {"lr": 0.1}), layouts={"*attn": fused_attention("c_attn", "c_proj")})
    with pytest.raises(ValueError, match="must be a whole tensor"):
        tx.init({"attn": {"query": {"kernel": jnp.ones((4, 4))}}})
