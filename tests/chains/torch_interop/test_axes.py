"""Where PyTorch's axes are, for the optimizers that do not treat all of them alike."""

import jax
import jax.numpy as jnp
import optax
import pytest

from linkax import adam, muon, param_groups
from linkax.chains.torch_interop import (
    CONV_TRANSPOSE,
    HF_CONV1D,
    LINEAR,
    Layout,
    Stacked,
    Tied,
    export_state,
    from_torch,
    fused_attention,
    import_state,
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


def test_a_chain_with_another_output_axis_is_refused():
    params = {"fc": {"kernel": jnp.ones((4, 3))}}
    entry = {"lr": 0.1, "params": [0], "param_names": ["fc.weight"]}
    layouts = {"fc/kernel": HF_CONV1D}
    file = {"state": {0: {"momentum_buffer": jnp.ones((4, 3))}}, "param_groups": [entry]}
    import_state(from_torch(("Muon", entry), layouts=layouts), params, file, layouts=layouts, steps=3)
    for tx in (from_torch(("Muon", entry)), muon(0.1)):
        with pytest.raises(ValueError, match="fc/kernel has its outputs along axis 0 by its layout, and along 1 by"):
            import_state(tx, params, file, layouts=layouts, steps=3)
        state = tx.init(params)
        with pytest.raises(ValueError, match="fc/kernel has its outputs along axis 0"):
            export_state(tx, params, state, file, layouts=layouts, steps=3)


def test_what_never_stepped_among_what_has_is_said():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    moments = {"step": 7.0, "exp_avg": jnp.ones(2), "exp_avg_sq": jnp.ones(2)}
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    group |= {"params": [0, 1], "param_names": ["a", "b"]}
    with pytest.warns(UserWarning, match="b never stepped in PyTorch, .* the chain counts 7 steps"):
        import_state(adam(), params, {"state": {0: moments}, "param_groups": [group]})
    apart = param_groups({"a": adam(), "b": adam()}, lambda path, _: path)
    state = import_state(apart, params, {"state": {0: moments}, "param_groups": [group]})
    assert len({int(count) for _, count in optax.tree.get_all_with_path(state, "count")}) == 2  # 7 and 0
