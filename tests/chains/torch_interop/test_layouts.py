"""Kernels in the other framework's layout: checked by what the modules put out, and never chosen by a guess."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from linkax.chains import sgd
from linkax.chains.torch_interop import (
    CONV,
    CONV_TRANSPOSE,
    CONV_TRANSPOSE_KERNEL,
    HF_CONV1D,
    IDENTITY,
    LINEAR,
    Layout,
    export_params,
    import_params,
    import_state,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        (IDENTITY, (2, 3, 4), (2, 3, 4)),
        (LINEAR, (5, 4), (4, 5)),
        (CONV, (5, 4, 2, 3), (2, 3, 4, 5)),
        (CONV_TRANSPOSE, (4, 5, 2, 3), (2, 3, 4, 5)),
        (CONV_TRANSPOSE_KERNEL, (4, 5, 2, 3), (2, 3, 5, 4)),
        (HF_CONV1D, (4, 5), (4, 5)),
    ],
)
def test_every_layout_leads_there_and_back(layout, theirs, ours):
    w = RNG.normal(size=theirs)
    assert layout.to_jax(w).shape == ours
    np.testing.assert_array_equal(layout.to_torch(layout.to_jax(w)), w)


def channels_last(x):
    return np.moveaxis(x, 1, -1)


@pytest.mark.parametrize("space", [(7,), (7, 6)])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("transpose_kernel", "layout"), [(False, CONV_TRANSPOSE), (True, CONV_TRANSPOSE_KERNEL)])
def test_transposed_convolutions_put_out_what_pytorchs_do(space, strides, transpose_kernel, layout, x64):
    torch = pytest.importorskip("torch")
    window = (3, 2)[: len(space)]
    w, x = RNG.normal(size=(4, 5, *window)), RNG.normal(size=(2, 4, *space))
    function = {1: torch.nn.functional.conv_transpose1d, 2: torch.nn.functional.conv_transpose2d}[len(space)]
    theirs = function(torch.from_numpy(x), torch.from_numpy(w), stride=strides).numpy()
    module = nn.ConvTranspose(
        5,
        window,
        (strides,) * len(space),
        padding="VALID",
        use_bias=False,
        param_dtype=np.float64,
        transpose_kernel=transpose_kernel,
    )
    like = module.init(jax.random.key(0), channels_last(x))
    params = import_params(like, {"weight": w}, names=lambda _: "weight", layouts={"params/kernel": layout})
    ours = module.apply(params, channels_last(x))
    np.testing.assert_allclose(ours, channels_last(theirs), rtol=0, atol=1e-13)  # some rounding of numbers around 10


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("space", [(7,), (7, 6)])
def test_convolutions_put_out_what_pytorchs_do(space, groups, x64):
    torch = pytest.importorskip("torch")
    window = (3, 2)[: len(space)]
    w, x = RNG.normal(size=(6, 4 // groups, *window)), RNG.normal(size=(2, 4, *space))
    function = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}[len(space)]
    theirs = function(torch.from_numpy(x), torch.from_numpy(w), groups=groups).numpy()
    module = nn.Conv(6, window, padding="VALID", use_bias=False, param_dtype=np.float64, feature_group_count=groups)
    like = module.init(jax.random.key(0), channels_last(x))
    for layouts in (None, {"*kernel": CONV}):  # the default for kernels, and said aloud
        params = import_params(like, {"weight": w}, names=lambda _: "weight", layouts=layouts)
        np.testing.assert_allclose(module.apply(params, channels_last(x)), channels_last(theirs), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("layout", "is_transposed"), [(LINEAR, True), (HF_CONV1D, False)])
def test_dense_layers_put_out_what_pytorchs_linear_and_hugging_faces_conv1d_do(layout, is_transposed, x64):
    torch = pytest.importorskip("torch")
    w, x = RNG.normal(size=(5, 4) if is_transposed else (4, 5)), RNG.normal(size=(2, 4))
    if is_transposed:
        theirs = torch.nn.functional.linear(torch.from_numpy(x), torch.from_numpy(w))
    else:  # transformers.pytorch_utils.Conv1D
        theirs = torch.addmm(torch.zeros(5, dtype=torch.float64), torch.from_numpy(x), torch.from_numpy(w))
    module = nn.Dense(5, use_bias=False, param_dtype=np.float64)
    like = module.init(jax.random.key(0), x)
    params = import_params(like, {"weight": w}, names=lambda _: "weight", layouts={"params/kernel": layout})
    np.testing.assert_allclose(module.apply(params, x), theirs.numpy(), rtol=0, atol=1e-14)


def tree(**shapes):
    """Parameters at paths such as `h_0__c_attn__kernel`."""
    params: dict = {}
    for path, shape in shapes.items():
        *modules, leaf = path.split("__")
        node = params.setdefault("params", {})
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = jnp.zeros(shape)
    return params


def weights(params, shapes=None):
    return {name: RNG.normal(size=w.shape) for name, w in export_params(params, layouts=shapes).items()}


def test_a_pattern_gives_a_layout_to_all_that_match(recwarn):
    params = tree(h_0__c_attn__kernel=(2, 6), h_1__c_attn__kernel=(2, 6), h_1__fc__kernel=(2, 6))
    layouts = {"params/*/c_attn/kernel": HF_CONV1D}
    theirs = weights(params, layouts)
    assert theirs["h_1.c_attn.weight"].shape == (2, 6)
    assert theirs["h_1.fc.weight"].shape == (6, 2)
    ours = import_params(params, theirs, layouts=layouts)
    np.testing.assert_allclose(ours["params"]["h_0"]["c_attn"]["kernel"], theirs["h_0.c_attn.weight"], rtol=1e-7)
    np.testing.assert_allclose(ours["params"]["h_1"]["fc"]["kernel"], theirs["h_1.fc.weight"].T, rtol=1e-7)
    back = export_params(ours, layouts=layouts)
    assert all(np.allclose(back[name], value) for name, value in theirs.items())


def test_a_path_comes_before_a_pattern_and_patterns_must_not_disagree():
    params = tree(a__kernel=(3, 3), b__kernel=(3, 3))
    theirs = weights(params)
    ours = import_params(params, theirs, layouts={"params/*/kernel": IDENTITY, "params/a/kernel": LINEAR})
    np.testing.assert_allclose(ours["params"]["a"]["kernel"], theirs["a.weight"].T, rtol=1e-7)
    np.testing.assert_allclose(ours["params"]["b"]["kernel"], theirs["b.weight"], rtol=1e-7)
    with pytest.raises(ValueError, match="layouts has different ones for params/a/kernel: params/a/\\*, \\*/kernel"):
        import_params(params, theirs, layouts={"params/a/*": LINEAR, "*/kernel": IDENTITY})


def test_a_pattern_or_path_that_stands_for_no_parameter_is_refused():
    params = tree(a__kernel=(3, 3))
    for one in ("params/b/kernel", "params/*/c_attn/kernel"):
        with pytest.raises(ValueError, match="layouts has one for .*, which is not a parameter"):
            import_params(params, weights(params), layouts={one: IDENTITY})


@pytest.mark.parametrize("wrong", [[IDENTITY], {"params/a/kernel": np.transpose}, {1: IDENTITY}])
def test_what_is_no_layout_is_refused(wrong):
    params = tree(a__kernel=(3, 3))
    with pytest.raises(ValueError, match="layouts must "):
        import_params(params, weights(params), layouts=wrong)


@pytest.mark.parametrize(
    ("shape", "theirs", "names"),
    [
        ((4, 5), (4, 5), "IDENTITY"),
        ((2, 3, 4, 5), (4, 5, 2, 3), "CONV_TRANSPOSE"),
        ((2, 3, 5, 4), (4, 5, 2, 3), None),  # what the default gives
        ((2, 3, 4, 5), (2, 3, 4, 5), "IDENTITY"),
    ],
)
def test_a_kernel_that_fits_only_in_another_layout_is_refused_with_the_layout_to_give(shape, theirs, names):
    params = tree(m__kernel=shape)
    state_dict = {"m.weight": np.ones(theirs)}
    if names is None:
        import_params(params, state_dict)
        return
    with pytest.raises(ValueError, match="m.weight has the shape") as error:
        import_params(params, state_dict)
    assert f"it fits with layouts={{'params/m/kernel': torch_interop.{names}}}" in str(error.value)


@pytest.mark.parametrize("layout", [CONV_TRANSPOSE, CONV_TRANSPOSE_KERNEL])
def test_a_transposed_convolution_with_as_many_channels_in_as_out_needs_a_layout(layout):
    params, theirs = tree(ConvTranspose_0__kernel=(3, 4, 4)), {"ConvTranspose_0.weight": RNG.normal(size=(4, 4, 3))}
    with pytest.raises(ValueError, match="may be CONV_TRANSPOSE or, with transpose_kernel=True, CONV_TRANSPOSE_KERNEL"):
        import_params(params, theirs)
    import_params(params, theirs, layouts={"*/kernel": layout})


def gpt2(square):
    return tree(
        h_0__attn__c_attn__kernel=(4, 12),
        h_0__attn__c_proj__kernel=(4, 4),
        h_0__mlp__c_proj__kernel=(4, 4) if square else (8, 4),
        wte__embedding=(7, 4),
        **{"head__kernel": (4, 4)},
    )


def test_square_kernels_left_to_the_default_beside_others_of_their_name_are_warned_of():
    params = gpt2(square=False)
    layouts = {"*/c_attn/kernel": HF_CONV1D, "*/mlp/c_proj/kernel": HF_CONV1D}
    theirs = weights(params, {"*/c_*/kernel": HF_CONV1D})
    with pytest.warns(UserWarning, match="params/h_0/attn/c_proj/kernel used the default layout") as caught:
        import_params(params, theirs, layouts=layouts)
    text = str(caught[0].message)
    assert "params/h_0/mlp/c_proj/kernel" in text
    assert "argument layouts, by a pattern such as '*/c_proj/kernel'" in text
    assert "head" not in text


def test_square_kernels_of_numbered_modules_are_warned_of_in_states_too():
    params = tree(h_0__proj_0__kernel=(4, 4), h_1__proj_1__kernel=(4, 8))
    layouts = {"params/h_1/proj_1/kernel": IDENTITY}
    buffers = {0: {"momentum_buffer": np.ones((4, 4))}, 1: {"momentum_buffer": np.ones((4, 8))}}
    names = ["h_0.proj_0.weight", "h_1.proj_1.weight"]
    state_dict = {"state": buffers, "param_groups": [{"params": [0, 1], "param_names": names}]}
    with pytest.warns(UserWarning, match="params/h_0/proj_0/kernel used the default") as caught:
        import_state(sgd(0.1, momentum=0.9), params, state_dict, layouts=layouts)
    assert "'*/proj*/kernel'" in str(caught[0].message)


@pytest.mark.parametrize(
    "layouts",
    [
        {"*/c_*/kernel": HF_CONV1D},  # all of them
        {"*/c_attn/kernel": LINEAR, "*/mlp/c_proj/kernel": LINEAR},  # what they would get anyway
        {"*/c_attn/kernel": HF_CONV1D},  # its siblings are not square
    ],
)
def test_no_warning_where_nothing_is_left_open(layouts):
    params = gpt2(square=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_params(params, weights(params, layouts), layouts=layouts)


def test_a_layout_of_ones_own_that_fails_is_a_problem_and_no_crash():
    params = tree(a__kernel=(3, 4))
    broken = Layout(lambda w: w.reshape(5, 5), lambda w: w)
    with pytest.raises(ValueError, match=r"a.weight has the shape \(4, 3\), which its layout does not accept"):
        import_params(params, {"a.weight": np.ones((4, 3))}, layouts={"params/a/kernel": broken})
