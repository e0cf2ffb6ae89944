"""Rules: what applies to which leaves, what is refused, and how moments, steps and groups go with the tensors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adam, live, param_groups, sgd
from linkax.chains.torch_interop import (
    HEADS,
    IDENTITY,
    LINEAR,
    LSTM_CELL,
    MULTIHEAD_ATTENTION,
    Block,
    Rule,
    Stacked,
    Tied,
    correspondence,
    export_params,
    export_state,
    from_torch,
    fused,
    fused_attention,
    import_params,
    import_state,
    recurrent,
    renamed,
    separate_attention,
    torch_labels,
)
from linkax.transforms import Moment, link

RNG = np.random.default_rng(0)


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


def attention(name="attn", bias=True, stack=()):
    shapes = {}
    for one in ("query", "key", "value"):
        shapes[f"{name}__{one}__kernel"] = (*stack, 6, 2, 3)
        shapes |= {f"{name}__{one}__bias": (*stack, 2, 3)} if bias else {}
    shapes[f"{name}__out__kernel"] = (*stack, 2, 3, 6)
    return shapes | ({f"{name}__out__bias": (*stack, 6)} if bias else {})


def drawn(params, **hooks):
    return {name: RNG.normal(size=one.shape) for name, one in export_params(params, **hooks).items()}


def problems_of(call, *arguments, **hooks):
    with pytest.raises(ValueError, match="must fit") as error:
        call(*arguments, **hooks)
    return str(error.value).split("\n  ")[1:]


def state_dict(optimizer, weights, groups=None, steps=None):
    """The file of an optimizer with a moment for each weight."""
    names = list(weights)
    keys = {"sgd": ["momentum_buffer"], "adam": ["step", "exp_avg", "exp_avg_sq"]}[optimizer]

    def value(name, key):
        if key == "step":
            return float((steps or {}).get(name, 7))
        drawn = RNG.normal(size=weights[name].shape)
        return drawn**2 if key == "exp_avg_sq" else drawn

    given = [{"params": [names.index(name) for name in group], "param_names": group} for group in groups or [names]]
    return {"state": {names.index(n): {key: value(n, key) for key in keys} for n in names}, "param_groups": given}


def test_rows_of_one_tensor_are_the_queries_the_keys_and_the_values():
    params = tree(**attention())
    theirs = drawn(params)
    assert {name: one.shape for name, one in theirs.items()} == {
        "attn.in_proj_weight": (18, 6),
        "attn.in_proj_bias": (18,),
        "attn.out_proj.weight": (6, 6),
        "attn.out_proj.bias": (6,),
    }
    ours = import_params(params, theirs)["params"]["attn"]
    for index, name in enumerate(("query", "key", "value")):
        rows = theirs["attn.in_proj_weight"][6 * index : 6 * index + 6]
        np.testing.assert_allclose(ours[name]["kernel"], rows.T.reshape(6, 2, 3), rtol=1e-7)
        np.testing.assert_allclose(ours[name]["bias"].ravel(), theirs["attn.in_proj_bias"][6 * index :][:6], rtol=1e-7)
    back = export_params({"params": {"attn": ours}})
    assert all(np.allclose(back[name], one) for name, one in theirs.items())


def test_parts_need_not_be_of_the_same_size():
    grouped = Rule("grouped", [fused("qkv.weight", ("q/kernel", "k/kernel", "v/kernel"), LINEAR)])
    params = tree(q__kernel=(4, 8), k__kernel=(4, 2), v__kernel=(4, 2))
    weight = RNG.normal(size=(12, 4))
    ours = import_params(params, {"qkv.weight": weight}, layouts={"params": grouped})["params"]
    np.testing.assert_allclose(ours["v"]["kernel"], weight[10:].T, rtol=1e-7)
    assert export_params(ours, layouts={"": grouped})["qkv.weight"].shape == (12, 4)


def test_stacked_layers_are_pytorchs_layers_one_by_one():
    params = tree(**attention("blocks__attn", stack=(3,)), blocks__fc__kernel=(3, 4, 5), head__kernel=(5, 2))
    layouts = {"params/blocks": Stacked()}
    theirs = drawn(params, layouts=layouts)
    assert theirs["blocks.2.fc.weight"].shape == (5, 4)
    assert theirs["blocks.0.attn.in_proj_weight"].shape == (18, 6)
    ours = import_params(params, theirs, layouts=layouts)
    alone = import_params(
        tree(**attention("attn")), {f"attn.{k[14:]}": v for k, v in theirs.items() if k[:14] == "blocks.2.attn."}
    )
    inside = jax.tree.map(lambda one: one[2], ours["params"]["blocks"]["attn"])
    jax.tree.map(np.testing.assert_array_equal, inside, alone["params"]["attn"])


def test_moments_and_steps_go_with_the_tensors():
    params = tree(**attention("blocks__attn", bias=False, stack=(2,)))
    layouts = {"params/blocks": Stacked()}
    weights = drawn(params, layouts=layouts)
    file = state_dict("adam", weights)
    state = import_state(adam(), params, file, layouts=layouts)
    mu = state[0].first[0].mu["params"]["blocks"]["attn"]["key"]["kernel"]
    index = list(weights).index("blocks.1.attn.in_proj_weight")
    np.testing.assert_allclose(mu[1], file["state"][index]["exp_avg"][6:12].T.reshape(6, 2, 3), rtol=1e-6)
    group = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "lr": 1e-3, "amsgrad": False}
    template = {"state": {}, "param_groups": [group | file["param_groups"][0]]}
    back = export_state(adam(), params, state, template, layouts=layouts)
    for key, own in file["state"].items():
        assert back["state"][key]["step"] == 7
        np.testing.assert_allclose(back["state"][key]["exp_avg_sq"], own["exp_avg_sq"], rtol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [lambda tx: optax.MultiSteps(tx, 2), lambda tx: optax.apply_if_finite(tx, 3), optax.flatten, lambda tx: live(tx)],
    ids=["MultiSteps", "apply_if_finite", "flatten", "live"],
)
def test_rules_reach_into_wrappers(wrap):
    params = tree(**attention("blocks__attn", bias=False, stack=(2,)))
    layouts = {"params/blocks": Stacked()}
    tx, file = wrap(adam()), state_dict("adam", drawn(params, layouts=layouts))
    state = import_state(tx, params, file, layouts=layouts)
    group = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "lr": 1e-3, "amsgrad": False}
    template = {"state": {}, "param_groups": [group | file["param_groups"][0]]}
    back = export_state(tx, params, state, template, layouts=layouts)
    for key, own in file["state"].items():
        np.testing.assert_allclose(back["state"][key]["exp_avg"], own["exp_avg"], rtol=1e-6)


def test_half_precision_leaves_get_and_give_their_numbers():
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), tree(**attention("blocks__attn", stack=(2,))))
    layouts = {"params/blocks": Stacked()}
    theirs = drawn(params, layouts=layouts)
    ours = import_params(params, theirs, layouts=layouts)
    assert {one.dtype for one in jax.tree.leaves(ours)} == {jnp.dtype(jnp.bfloat16)}
    for name, one in export_params(ours, layouts=layouts).items():
        assert one.dtype == np.float32  # PyTorch cannot read NumPy's bfloat16
        np.testing.assert_allclose(one, theirs[name], rtol=2**-8)


def test_layers_that_become_one_leaf_must_agree_in_steps_and_groups():
    params = tree(blocks__kernel=(2, 4, 5))
    layouts = {"params/blocks": Stacked()}
    weights = drawn(params, layouts=layouts)
    file = state_dict("adam", weights, steps={"blocks.1.weight": 8})
    text = problems_of(import_state, adam(), params, file, layouts=layouts)
    assert text == [
        "the parameters of a group must have the same step, as a chain has only one (blocks.0.weight: 7, "
        "blocks.1.weight: 8)"
    ]
    file = state_dict("adam", weights, groups=[["blocks.0.weight"], ["blocks.1.weight"]])
    text = problems_of(import_state, adam(), params, file, layouts=layouts)
    assert text[0] == (
        "blocks.0.weight, blocks.1.weight must be in one group of PyTorch's, because params/blocks/kernel is all of "
        "them, got [0, 1]"
    )


def test_a_layer_without_state_among_others_that_have_one_is_refused():
    params = tree(blocks__kernel=(2, 4, 5))
    layouts = {"params/blocks": Stacked()}
    file = state_dict("sgd", drawn(params, layouts=layouts))
    del file["state"][1]
    tx = sgd(0.1, momentum=0.9)
    assert problems_of(import_state, tx, params, file, layouts=layouts) == [
        "momentum_buffer of blocks.1.weight is missing, but params/blocks/kernel needs all of its parts"
    ]
    del file["state"][0]  # none of them has been reached by a gradient yet
    state = import_state(tx, params, file, layouts=layouts)
    jax.tree.map(np.testing.assert_array_equal, state, tx.init(params))


def test_a_part_that_the_chain_keeps_nothing_for_is_named():
    params = tree(**attention(bias=False))
    file = state_dict("sgd", drawn(params))
    labels = jax.tree_util.tree_map_with_path(lambda path, _: "still" if path[2].key == "key" else "moving", params)
    tx = param_groups({"still": sgd(0.1), "moving": sgd(0.1, momentum=0.9)}, labels)
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False}
    template = {"state": {}, "param_groups": [group | file["param_groups"][0]]}
    _, state = tx.update(params, tx.init(params), params)
    text = problems_of(export_state, tx, params, state, template)
    only = (
        "momentum_buffer of attn.in_proj_weight is for params/attn/query/kernel, params/attn/key/kernel, "
        "params/attn/value/kernel, but the chain keeps it only for params/attn/query/kernel, params/attn/value/kernel"
    )
    assert only in text
    assert only in problems_of(import_state, tx, params, file)


def test_labels_of_groups_follow_the_tensors():
    params = tree(**attention())
    weights = drawn(params)
    decayed = [name for name in weights if name.endswith("weight")]
    others = [name for name in weights if name not in decayed]
    file = state_dict("adam", weights, groups=[decayed, others])
    groups = [group | {"lr": 0.1, "weight_decay": w} for group, w in zip(file["param_groups"], (0.1, 0))]
    labels = torch_labels(groups, params)
    assert labels("params/attn/key/kernel", None) == "0"
    assert labels("params/attn/key/bias", None) == "1"
    tx = from_torch(("AdamW", groups), labels)
    import_state(tx, params, file | {"param_groups": groups})
    assert problems_of(torch_labels, groups, tree(**attention(bias=False))) == [
        f"PyTorch has {name}, but no parameter has that name" for name in others
    ]
    with pytest.raises(ValueError, match="torch_labels: params must be given with layouts, got None"):
        torch_labels(groups, layouts={})


def test_tied_weights():
    params = tree(wte__embedding=(5, 4))
    hooks = {"layouts": {"params/wte/embedding": Tied("lm_head.weight")}}
    weight = RNG.normal(size=(5, 4))
    for given in (("wte.weight", "lm_head.weight"), ("wte.weight",), ("lm_head.weight",)):
        ours = import_params(params, dict.fromkeys(given, weight), **hooks)
        np.testing.assert_allclose(ours["params"]["wte"]["embedding"], weight, rtol=1e-7)
        assert export_params(ours, **hooks).keys() == {"wte.weight", "lm_head.weight"}
        import_state(sgd(0.1, momentum=0.9), params, state_dict("sgd", {given[0]: weight}), **hooks)
    text = problems_of(import_params, params, {"wte.weight": weight, "lm_head.weight": weight + 1}, **hooks)
    assert text == [
        "wte.weight and lm_head.weight must be equal, because params/wte/embedding is both; if they are not tied in "
        "PyTorch, they need a parameter each"
    ]


# --- recurrent cells -------------------------------------------------------------------------------------------------


def lstm_cell():
    shapes = {f"cell__i{gate}__kernel": (3, 4) for gate in "ifgo"}
    shapes |= {f"cell__h{gate}__kernel": (4, 4) for gate in "ifgo"}
    return tree(**shapes, **{f"cell__h{gate}__bias": (4,) for gate in "ifgo"})


def test_two_biases_are_added_up_and_shared_out():
    params = lstm_cell()
    theirs = drawn(params)
    ours = import_params(params, theirs)["params"]["cell"]
    total = theirs["cell.bias_ih"] + theirs["cell.bias_hh"]
    np.testing.assert_allclose(ours["hg"]["bias"], total[8:12], rtol=1e-6)
    back = export_params({"params": {"cell": ours}})
    np.testing.assert_array_equal(back["cell.bias_ih"], back["cell.bias_hh"])
    np.testing.assert_allclose(back["cell.bias_ih"] + back["cell.bias_hh"], total, rtol=1e-6)


def test_the_moment_of_a_sum_is_that_of_either_bias():
    params = lstm_cell()
    weights = drawn(params)
    file = state_dict("sgd", weights)
    index = {name: key for key, name in enumerate(weights)}
    a, b = (file["state"][index[f"cell.bias_{one}"]]["momentum_buffer"] for one in ("ih", "hh"))
    tx = sgd(0.1, momentum=0.9)
    with pytest.warns(UserWarning, match="momentum_buffer of cell.bias_ih and cell.bias_hh differ, so .* their mean"):
        state = import_state(tx, params, file)
    np.testing.assert_allclose(state[0].mu["params"]["cell"]["hf"]["bias"], (a + b)[4:8] / 2, rtol=1e-6)
    b[...] = a
    state = import_state(tx, params, file)
    np.testing.assert_allclose(state[0].mu["params"]["cell"]["hf"]["bias"], a[4:8], rtol=1e-6)
    given = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "nesterov": False}
    template = {"state": {}, "param_groups": [given | file["param_groups"][0]]}
    back = export_state(tx, params, state, template)
    np.testing.assert_allclose(back["state"][index["cell.bias_hh"]]["momentum_buffer"], a, rtol=1e-6)


def test_a_layer_of_another_name_and_kind():
    with pytest.raises(ValueError, match="recurrent: kind must be one of LSTM, GRU, RNN, got 'Lstm'"):
        recurrent("Lstm")
    assert repr(recurrent("GRU", 2, reverse=True)) == "recurrent('GRU', 2, reverse=True)"
    back = recurrent("LSTM", 1, reverse=True)
    assert "cell.weight_ih_l1_reverse" in export_params(lstm_cell(), layouts={"params/cell": back})


# --- what is refused -------------------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit_are_listed_with_what_fits():
    params = tree(**attention(bias=False))
    theirs = drawn(params) | {"attn.in_proj_weight": np.ones((18, 7)), "attn.out_proj.weight": np.ones((6, 5))}
    assert problems_of(import_params, params, theirs) == [
        "attn.out_proj.weight has the shape (6, 5), but (6, 6) would fit params/attn/out/kernel (2, 3, 6)",
        "attn.in_proj_weight has the shape (18, 7), but (18, 6) would fit params/attn/query/kernel (6, 2, 3), "
        "params/attn/key/kernel (6, 2, 3), params/attn/value/kernel (6, 2, 3)",
    ]


def test_biases_that_one_side_lacks_are_listed():
    without, with_biases = tree(**attention(bias=False)), tree(**attention())
    assert problems_of(import_params, without, drawn(with_biases)) == [
        "PyTorch has attn.out_proj.bias, but no parameter has that name",
        "PyTorch has attn.in_proj_bias, but no parameter has that name",
    ]
    assert problems_of(import_params, with_biases, drawn(without)) == [
        "PyTorch has nothing for params/attn/out/bias (6,): no attn.out_proj.bias (6,)",
        "PyTorch has nothing for params/attn/query/bias (2, 3), params/attn/key/bias (2, 3), params/attn/value/bias "
        "(2, 3): no attn.in_proj_bias (18,)",
    ]


def test_numbers_of_layers_that_differ_are_listed():
    params, layouts = tree(blocks__fc__kernel=(3, 4, 5)), {"params/blocks": Stacked()}
    theirs = drawn(params, layouts=layouts)
    theirs["blocks.3.fc.weight"] = theirs["blocks.0.fc.weight"]
    del theirs["blocks.2.fc.weight"]
    assert problems_of(import_params, params, theirs, layouts=layouts) == [
        "PyTorch has no blocks.2.fc.weight, which params/blocks/fc/kernel needs besides blocks.0.fc.weight",
        "PyTorch has blocks.3.fc.weight, but no parameter has that name",
    ]
    text = problems_of(import_params, tree(blocks__step=()), {"blocks.0.step": np.ones(())}, layouts=layouts)
    assert text[0] == "params/blocks/step has the shape (), so it has no axis 0 of stacked layers"


@pytest.mark.parametrize(
    ("layouts", "problem"),
    [
        (
            {"params/nowhere": MULTIHEAD_ATTENTION},
            "layouts has one for params/nowhere, which is not a module",
        ),
        ({"*/nowhere": Stacked()}, "layouts has Stacked for */nowhere, which is not a module"),
        (
            {"params/fc": LSTM_CELL},
            "layouts has LSTM_CELL for params/fc, which needs ii/kernel, if/kernel, ig/kernel, io/kernel, hi/kernel, "
            "hf/kernel, hg/kernel, ho/kernel or ii/kernel, if_/kernel, ig/kernel, io/kernel, hi/kernel, hf/kernel, "
            "hg/kernel, ho/kernel or dense_i/kernel, dense_h/kernel or weight_ih, weight_hh, "
            "but params/fc has kernel (4, 4)",
        ),
        (
            {"*/attn": fused_attention("qkv"), "params/*": separate_attention()},
            "layouts has different ones for params/attn/query/kernel: */attn, params/*",
        ),
        (
            {"params/attn": fused_attention("qkv"), "params/attn/query/kernel": HEADS},
            "layouts has different ones for params/attn/query/kernel: params/attn, params/attn/query/kernel",
        ),
        (
            {"*/attn": fused_attention("qkv"), "params/attn/query/kernel": HEADS},
            "layouts has fused_attention('qkv', 'proj') for params/attn, but something else for "
            "params/attn/query/kernel, which is part of it",
        ),
        (
            {"params": Stacked(), "params/fc": Stacked()},
            "params/fc/kernel is in two modules of stacked layers, params and params/fc",
        ),
        ({"params/attn": (1,)}, "layouts must have a Layout or a rule for 'params/attn', got (1,)"),
    ],
)
def test_rules_that_do_not_apply_are_refused(layouts, problem):
    params = tree(**attention(bias=False), fc__kernel=(4, 4))
    assert problem in correspondence(params, layouts=layouts).problems
    with pytest.raises(ValueError, match="export_params: "):
        export_params(params, layouts=layouts)


def test_a_rule_of_ones_own_that_fails_is_a_problem_and_no_crash():
    params = tree(a__kernel=(3, 4))

    def fails(*_):
        raise RuntimeError("oh")

    for rule, problem in (
        (Block(("w",), ("kernel",), fails, lambda ours: ours), "a.w: mine does not accept it (oh)"),
        (
            Block(("w",), ("kernel",), lambda theirs, _: [theirs[0].T], lambda ours: ours),
            "mine has converted a.w to the shapes (4, 3), instead of params/a/kernel (3, 4)",
        ),
    ):
        layouts = {"params/a": Rule("mine", [rule])}
        assert problems_of(import_params, params, {"a.w": np.ones((3, 4))}, layouts=layouts) == [problem]


def test_names_that_are_missing_for_a_module():
    params = tree(**attention(bias=False))
    names = {"params/other": "other"}
    text = correspondence(params, names=names).problems
    assert "names has no name for the module params/attn, which MULTIHEAD_ATTENTION is for" in text
    named = {"params/attn": "encoder.attn"}
    assert "encoder.attn.in_proj_weight" in export_params(params, names=named)
    stacked = correspondence(tree(b__kernel=(2, 3)), names={"params/b/kernel": "w"}, layouts={"params/b": Stacked()})
    assert "names must have a name for params/b with which that of params/b/kernel begins, got None" in stacked.problems


def test_a_leaf_that_has_a_name_of_its_own_is_no_part_of_a_standard_module():
    params = tree(**attention(bias=False))
    names = {f"params/attn/{one}/kernel": f"{one}.w" for one in ("query", "key", "value", "out")}
    assert export_params(params, names=names, layouts={"*/kernel": IDENTITY}).keys() == set(names.values())


class Row(NamedTuple):
    row: Any


@link("moment", state={"row": Moment("row mean of {}", torch="row_var", is_nonnegative=True)}, out="{}")
def row_mean() -> optax.GradientTransformation:
    """A link whose moment has one number for each row of PyTorch's matrix, as Adafactor's has."""

    def init(params):
        return Row(jax.tree.map(lambda w: jnp.zeros((*w.shape[:-2], 1, w.shape[-1])), params))

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


def test_factored_moments_are_refused_where_a_rule_would_have_to_split_them():
    def file(weights):
        rows = {index: {"row_var": np.ones((one.shape[0], 1))} for index, one in enumerate(weights.values())}
        return {"state": rows, "param_groups": [{"params": list(rows), "param_names": list(weights)}]}

    plain = tree(fc__kernel=(4, 5))
    state = import_state(row_mean(), plain, file(drawn(plain)))
    assert state.row["params"]["fc"]["kernel"].shape == (1, 5)
    params = tree(blocks__kernel=(2, 4, 5))
    layouts = {"params/blocks": Stacked()}
    assert problems_of(import_state, row_mean(), params, file(drawn(params, layouts=layouts)), layouts=layouts) == [
        "row_var of blocks.0.weight is factored, and LINEAR cannot convert it to params/blocks/kernel: start without "
        "it, or keep the parameter as PyTorch does"
    ]


# --- what one sees ---------------------------------------------------------------------------------------------------


def test_the_table_shows_what_was_understood():
    params = tree(**attention("h__attn", bias=False, stack=(4,)), fc__kernel=(6, 5))
    layouts = {"params/h": Stacked()}
    theirs = drawn(params, layouts=layouts)
    theirs["fc.weight"] = np.ones((5, 7))
    table = correspondence(jax.eval_shape(lambda: params), theirs, layouts=layouts)
    first, *rest = (" ".join(line.split()) for line in str(table).splitlines())
    assert first == "params/fc/kernel (6, 5) <- fc.weight (5, 7) LINEAR, default"
    assert rest[1].split("<- ")[1] == (
        "h.0.attn.in_proj_weight … h.3.attn.in_proj_weight (18, 6) MULTIHEAD_ATTENTION, stacked, default"
    )
    assert rest[-1].startswith("problem: fc.weight has the shape (5, 7), in JAX (7, 5), instead of (6, 5)")
    assert table.rows[1].shape == (4, 2, 3, 6)


def test_names_of_other_modules():
    names = renamed({"": "model", "h_*": "model.layers.*", "h_*.attn_*": "model.layers.*.self_attn.*", "head": "head"})
    assert names("params/h_12/mlp/kernel") == "model.layers.12.mlp.weight"
    assert names("params/h_12/attn_q/kernel") == "model.layers.12.self_attn.q.weight"
    assert names("params/head/bias") == "head.bias"
    assert names("params/header/bias") == "model.header.bias"
    assert names("params/h_3") == "model.layers.3"
    assert names("params") == "model"
    assert names("batch_stats/norm/mean") == "model.norm.running_mean"
    with pytest.raises(ValueError, match="renamed: changes must not have more \\* in PyTorch's name, got 'h': 'h.\\*'"):
        renamed({"h": "h.*"})
