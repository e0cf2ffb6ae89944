"""What `inspect_checkpoint` finds in dictionaries and folders, without PyTorch; groups that match in several ways."""

import json
import sys

import chex
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from linkax.chains import adamw, param_groups
from linkax.chains.torch_interop import (
    export_state,
    from_torch,
    import_params,
    import_state,
    inspect_checkpoint,
    optimizer_order,
    torch_labels,
)
from linkax.chains.torch_interop.__main__ import main
from linkax.chains.torch_interop._convert import read_spec
from linkax.transforms import matrices_only

from .files import SHAPES, STEPS, params, torch_file

SCHEDULER = {"base_lrs": [0.1], "last_epoch": 7, "_step_count": 8, "_last_lr": [0.05], "T_max": 10}
SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}


def weights(prefix=""):
    rng = np.random.default_rng(1)
    return {prefix + name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def safetensors(path, tensors, header=None):
    """Writes a safetensors file as the format is described."""
    own, data = {}, b""
    names = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.int64): "I64"}
    for name, array in sorted(tensors.items()):
        entry = {
            "dtype": names[array.dtype],
            "shape": array.shape,
            "data_offsets": (len(data), len(data) + array.nbytes),
        }
        own[name] = entry
        data += array.tobytes()
    text = json.dumps(own if header is None else header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


NESTED = {
    "tuple": lambda m, o, s: (m, o, s),
    "model and optimizer": lambda m, o, s: {"model": m, "optimizer": o, "scheduler": s},
    "state_dict": lambda m, o, s: {"state_dict": m, "optimizer": o, "scheduler": s, "arch": "resnet"},
    "model_state_dict": lambda m, o, s: {"model_state_dict": m, "optimizer_state_dict": o, "sched": s, "epoch": 2},
    "lists": lambda m, o, s: {"state": {"model": m}, "optimizers": [o], "schedulers": [s]},
    "Lightning": lambda m, o, s: {
        "epoch": 2,
        "global_step": STEPS,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": m,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": np.zeros(()), "best_model_path": "x"}},
        "optimizer_states": [o],
        "lr_schedulers": [s],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 3},
    },
}


@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_nested_in_any_way_and_wrapped_in_anything(nest, prefix):
    optimizer = torch_file("AdamW", ["fc.weight"], ["fc.bias", "norm.weight"])
    for group in optimizer["param_groups"]:
        group["param_names"] = [prefix + name for name in group["param_names"]]
    saved = inspect_checkpoint(nest(weights(prefix), optimizer, SCHEDULER))
    assert saved.schedulers == [SCHEDULER]
    np.testing.assert_equal(saved.model, weights())
    (own,) = saved.optimizers
    assert own.name == "AdamW"
    assert own.has_names
    tx = from_torch((own.name, own.param_groups), torch_labels(own.param_groups))
    moved = import_params(params(), saved.model)
    state = import_state(tx, moved, own.state_dict)
    back = export_state(tx, moved, state, own.state_dict)
    for key, entry in back["state"].items():
        for what, value in entry.items():
            np.testing.assert_allclose(value, optimizer["state"][key][what], rtol=1e-7)  # one rounding to float32


def test_the_table_says_everything_and_nothing_that_could_harm():
    file = {
        "net": {**weights("_orig_mod."), "_orig_mod.tied": None},
        "optimizer": torch_file("AdamW"),
        "scheduler": SCHEDULER,
        "scaler": SCALER,
        "averages": {"n_averaged": np.array(3), **weights("module.")},
        "global_step": np.array(7),
        "epoch": 1.5,
        "<b>\x1b[2J": 1,
    }
    first = file["net"]["_orig_mod.fc.weight"]
    file["net"]["_orig_mod.tied"] = first
    saved = inspect_checkpoint(file)
    text = repr(saved)
    for line in ("3 tensors of 12 numbers, 48 B: float32", "AdamW: 3 parameters in 1 group, by name", "7 steps"):
        assert line in text
    assert "is fc.weight" in text
    assert saved.tied == {"tied": "fc.weight"}
    assert saved.scaler == SCALER
    assert (saved.step, saved.epoch) == (7, 1.5)
    assert "\x1b" not in text
    assert "<b>" not in saved._repr_html_()
    assert saved.averages is not None


def test_names_of_fsdp_and_of_flattened_states():
    file = torch_file("AdamW", ["fc.weight"], ["fc.bias", "norm.weight"])
    file["param_groups"][1]["weight_decay"] = 0.0
    names = [name for group in file["param_groups"] for name in group["param_names"]]
    full = {
        "state": {f"_fsdp_wrapped_module.{name}": file["state"][index] for index, name in enumerate(names)},
        "param_groups": [
            {
                **{key: value for key, value in group.items() if key != "param_names"},
                "params": [f"_fsdp_wrapped_module.{name}" for name in group["param_names"]],
            }
            for group in file["param_groups"]
        ],
    }
    flat = {f"state.{name}.{k}": v for index, name in enumerate(names) for k, v in file["state"][index].items()}
    for group in file["param_groups"]:
        hyperparams = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        flat |= {f"param_groups.{name}.{k}": v for name in group["param_names"] for k, v in hyperparams.items()}
    tx = adamw(1e-3, b2=0.99, weight_decay_mask=matrices_only)
    wanted = import_state(tx, params(), file)
    for one in (full, flat):
        (own,) = inspect_checkpoint({"model": weights(), "optim": one}).optimizers
        assert [group["param_names"] for group in own.param_groups] == [["fc.weight"], ["fc.bias", "norm.weight"]]
        chex.assert_trees_all_equal(import_state(tx, params(), own.state_dict), wanted)
    with pytest.raises(ValueError, match="state.other.step belongs to no parameter"):
        inspect_checkpoint({**flat, "state.other.step": 1.0})


def test_lightnings_own_prefix_only_if_asked():
    optimizer = torch_file("AdamW")
    optimizer["param_groups"][0]["param_names"] = [f"model.{name}" for name in SHAPES]
    file = {"state_dict": weights("model."), "optimizer_states": [optimizer]}
    assert list(inspect_checkpoint(file).model) == [f"model.{name}" for name in SHAPES]
    saved = inspect_checkpoint(file, strip="model.")
    assert list(saved.model) == saved.optimizers[0].param_groups[0]["param_names"] == list(SHAPES)
    with pytest.raises(ValueError, match="strip must be a prefix of some names, got 'net.'"):
        inspect_checkpoint(file, strip="net.")


def test_several_models_must_be_chosen_from():
    file = {"generator": weights(), "discriminator": {"w": np.ones(2)}}
    with pytest.raises(ValueError, match="model must say which of the models is meant: generator, discriminator"):
        inspect_checkpoint(file)
    assert list(inspect_checkpoint(file, model="discriminator").model) == ["w"]
    assert "left out  " in repr(inspect_checkpoint(file, model="discriminator"))
    with pytest.raises(ValueError, match="model must be one of generator, discriminator, got 'x'"):
        inspect_checkpoint(file, model="x")


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ({}, "it has neither weights nor an optimizer: a dictionary of none"),
        ({"a": 1}, "it has neither weights nor an optimizer: a dictionary of a"),
        ([], "it has neither weights nor an optimizer: a list"),
        ({"model": weights(), "step": np.nan}, "step must be a number of at least 0, got nan"),
        ({"model": weights(), "step": 2**40}, "step must be an integer number of steps"),
        (
            {"model": weights(), "optimizer": {"state": [], "param_groups": []}},
            "optimizer: 'state' must be",
        ),
        ({"model": weights(), "optimizer": {"state": {}, "param_groups": [1]}}, "optimizer: 'param_groups' must hold"),
        ({"model": {"a": np.ones(1), "_orig_mod.a": np.ones(1)}}, "are both called a without their wrappers"),
    ],
)
def test_what_is_no_checkpoint(file, says):
    with pytest.raises(ValueError, match=f"^inspect_checkpoint: (?s:.*){says}"):
        inspect_checkpoint(file)


def test_a_container_may_hold_itself():
    file: dict = {"model": weights()}
    file["more"] = file
    file["list"] = [file, [file] * 50] * 50
    assert list(inspect_checkpoint(file).model) == list(SHAPES)


def test_adam_and_adamw_of_old_versions_look_the_same():
    optimizer = torch_file("AdamW")
    del optimizer["param_groups"][0]["decoupled_weight_decay"]
    (own,) = inspect_checkpoint({"model": weights(), "optimizer": optimizer}).optimizers
    assert own.name is None
    assert "Adam or AdamW (the file does not tell)" in repr(own)


# Folders.


def test_a_folder_with_shards(tmp_path):
    short = {name: one.astype(ml_dtypes.bfloat16) for name, one in weights().items()}
    first, second = (dict(list(short.items())[part]) for part in (slice(1), slice(1, None)))
    safetensors(tmp_path / "model-00001-of-00002.safetensors", first)
    safetensors(tmp_path / "model-00002-of-00002.safetensors", second)
    index = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    index |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 7, "epoch": 0.5}))
    (tmp_path / "training_args.bin").write_bytes(b"cos\nsystem\n(S'touch run'\ntR.")  # never opened
    saved = inspect_checkpoint(tmp_path)
    assert saved.kind == "Hugging Face Trainer"
    assert (saved.step, saved.epoch, saved.is_ordered) == (7, 0.5, False)
    np.testing.assert_equal(dict(sorted(saved.model.items())), dict(sorted(short.items())))
    moved = import_params(params(np.float32), saved.model)
    np.testing.assert_array_equal(moved["params"]["fc"]["kernel"], short["fc.weight"].T.astype(np.float32))


@pytest.mark.parametrize(
    "file",
    [
        "../x.safetensors",
        "/x.safetensors",
        "a/x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        3,
        "model.bin",
        ".safetensors",
    ],
)
def test_an_index_leads_nowhere_else(tmp_path, file):
    folder = tmp_path / "run"
    folder.mkdir()
    safetensors(tmp_path / "x.safetensors", weights())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"fc.weight": file}}))
    with pytest.raises(ValueError, match="index.json: it must name .safetensors files in its folder, got"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("{", "it must be JSON"),
        ("[" * 100_000, "it must be JSON"),
        ("[]", "it must have a weight_map"),
        ('{"weight_map": {"a": "b.safetensors", "a": "b.safetensors"}}', r"it must be JSON \(a name occurs twice"),
        ('{"weight_map": {"a": "b.safetensors"}}', "it names b.safetensors, which is missing"),
        ('{"weight_map": {"a": "one.safetensors"}}', "it and one.safetensors disagree about a, fc.bias, fc.weight"),
    ],
)
def test_a_broken_index(tmp_path, index, says):
    safetensors(tmp_path / "one.safetensors", weights())
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=f"model.safetensors.index.json: {says}"):
        inspect_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "it has no checkpoint (it is empty)"),
        (["config.json"], "it has no checkpoint (config.json)"),
        ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
        (["checkpoint-20", "checkpoint-100"], "checkpoint-100"),
        (["latest"], "DeepSpeed"),
        (["_CHECKPOINT_METADATA"], "Orbax"),
    ],
)
def test_a_folder_without_a_checkpoint(tmp_path, names, says):
    for name in names:
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch run'\ntR.")
    with pytest.raises(ValueError, match="got .*") as error:
        inspect_checkpoint(tmp_path)
    assert says in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_paths_that_lead_to_nothing(tmp_path):
    with pytest.raises(ValueError, match="there is no such file or folder"):
        inspect_checkpoint(tmp_path / "run.pt")
    with pytest.raises(TypeError, match="path must be a path or a dictionary, got 3"):
        inspect_checkpoint(3)


def test_pytorch_is_needed_for_its_own_files_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "run.pt").write_bytes(b"")
    with pytest.raises(ImportError, match=r'pip install "linkax\[checkpoints\]"'):
        inspect_checkpoint(tmp_path / "run.pt")
    assert main(["inspect", str(tmp_path / "run.pt")]) == 2
    assert "error: " in capsys.readouterr().err
    safetensors(tmp_path / "model.safetensors", weights())
    assert main(["inspect", str(tmp_path)]) == 0
    assert "3 tensors of 12 numbers" in capsys.readouterr().out
    assert main(["convert", str(tmp_path), str(tmp_path / "orbax")]) == 0
    tree = ocp.StandardCheckpointHandler().restore(tmp_path / "orbax" / "params")
    np.testing.assert_array_equal(tree["fc"]["weight"], weights()["fc.weight"])
    assert read_spec(tmp_path / "orbax")["optimizer"] is None
    (tmp_path / "orbax" / "spec" / "metadata").write_text("[]")
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "back.pt")]) == 2
    assert "spec" in capsys.readouterr().err


# Safetensors.

ENTRY = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ([], "its header must be a JSON object"),
        ({"a": 1}, "a must have a shape and two data_offsets"),
        ({"a": {**ENTRY, "shape": [-3]}}, "a must have a shape"),
        ({"a": {**ENTRY, "shape": [3.0]}}, "a must have a shape"),
        ({"a": {**ENTRY, "shape": [True]}}, "a must have a shape"),
        ({"a": {**ENTRY, "data_offsets": [0]}}, "a must have a shape"),
        ({"a": {**ENTRY, "dtype": "F4"}}, "a is of F4, which NumPy cannot hold"),
        ({"a": {**ENTRY, "dtype": ["F32"]}}, "a is of"),
        ({"a": {**ENTRY, "shape": [4]}}, "a is declared as float32 of the shape (4,)"),
        ({"a": {**ENTRY, "shape": [2**62, 4]}}, "a is declared as float32"),
        ({"a": {**ENTRY, "data_offsets": [0, 2**60], "shape": [2**58]}}, "a is declared as float32"),
        ({"a": {**ENTRY, "data_offsets": [12, 0]}}, "a is declared as float32"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "its tensors must fill the file"),
        ({"a": ENTRY, "b": ENTRY}, "its tensors must fill the file"),
        ({}, "its tensors must fill the file"),
    ],
)
def test_safetensors_that_lie(tmp_path, header, says):
    path = tmp_path / "model.safetensors"
    safetensors(path, {"a": np.ones(3, np.float32)}, header)
    with pytest.raises(ValueError, match="must be a checkpoint that can be read safely") as error:
        inspect_checkpoint(path)
    assert f"{path}: " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("content", [b"", b"1234", (2**63).to_bytes(8, "little"), (10).to_bytes(8, "little") + b"{}"])
def test_safetensors_that_are_too_short(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is longer than the file"):
        inspect_checkpoint(path)


def test_empty_tensors_and_scalars(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"none": np.zeros((0, 3), np.float32), "one": np.array(2, np.int64), "w": np.ones(3, np.float32)}
    safetensors(path, tensors)
    np.testing.assert_equal(inspect_checkpoint(path).model, tensors)
    safetensors(path, {})
    with pytest.raises(ValueError, match="neither weights nor an optimizer"):
        inspect_checkpoint(path)


# The order of parameters without names.


def nameless(*groups):
    """A checkpoint whose optimizer does not name its parameters."""
    optimizer = torch_file("AdamW", *groups)
    for group in optimizer["param_groups"]:
        del group["param_names"]
    return {"model": weights(), "optimizer": optimizer}


def test_the_order_follows_from_the_rule_by_which_the_optimizer_was_made():
    trainer = inspect_checkpoint(nameless(["fc.weight"], ["fc.bias", "norm.weight"]))
    assert not trainer.optimizers[0].has_names
    assert optimizer_order(trainer, "trainer") == ["fc.weight", "fc.bias", "norm.weight"]
    plain = inspect_checkpoint(nameless(list(SHAPES)))
    assert optimizer_order(plain, "model") == list(SHAPES)
    assert optimizer_order(inspect_checkpoint({"o": torch_file("AdamW")}), "model") == list(SHAPES)  # it has names
    with pytest.raises(ValueError, match="the rule 'trainer' makes groups of 1, 2 parameters, but the optimizer has 3"):
        optimizer_order(plain, "trainer")
    with pytest.raises(ValueError, match=r"exp_avg of fc.bias has the shape \(3, 2\) instead of \(3,\)"):
        optimizer_order(plain, "model", names=["fc.bias", "fc.weight", "norm.weight"])
    with pytest.raises(ValueError, match="names must be different ones of the model's, got fc.wait"):
        optimizer_order(plain, "model", names=["fc.wait", "fc.bias", "norm.weight"])
    with pytest.raises(ValueError, match="rule must be 'model' or 'trainer', got 'sgd'"):
        optimizer_order(plain, "sgd")
    with pytest.raises(ValueError, match="optimizer must be one of the 1 there are, got 1"):
        optimizer_order(plain, "model", optimizer=1)


def test_an_order_that_is_ambiguous_is_refused(tmp_path):
    safetensors(tmp_path / "model.safetensors", weights())
    sorted_ = inspect_checkpoint(tmp_path)
    file = nameless(list(SHAPES))
    both = type(sorted_)(**{**vars(sorted_), "optimizers": inspect_checkpoint(file).optimizers})
    with pytest.raises(ValueError, match="names must be given, because a safetensors file sorts them"):
        optimizer_order(both, "model")
    assert optimizer_order(both, "model", names=list(SHAPES)) == list(SHAPES)
    vectors = {"a": np.ones(2), "b": np.ones(2), "w": np.ones((2, 2))}
    groups = [{"params": [0, 1]}, {"params": [2]}]
    saved = inspect_checkpoint({"model": vectors, "optimizer": {"state": {}, "param_groups": groups}})
    with pytest.raises(ValueError, match="it is ambiguous which 1 of these decay, so give the order yourself: a, b"):
        optimizer_order(saved, "trainer")


# Groups that do not match one to one.


def assert_there_and_back(tx, file):
    state = import_state(tx, params(), file)
    back = export_state(tx, params(), state, file)
    for key, entry in file["state"].items():
        for what, value in entry.items():
            np.testing.assert_allclose(back["state"][key][what], value, rtol=1e-7)  # one rounding to float32


@pytest.mark.parametrize(
    "tx",
    [
        adamw(1e-3, b2=0.99, weight_decay_mask=matrices_only),
        optax.adamw(1e-3, b2=0.99, weight_decay=0.01, mask=matrices_only),
        optax.chain(optax.clip_by_global_norm(1.0), adamw(1e-3, b2=0.99, weight_decay_mask=matrices_only)),
        optax.MultiSteps(adamw(1e-3, b2=0.99, weight_decay_mask=matrices_only), 2).gradient_transformation(),
        optax.apply_if_finite(adamw(1e-3, b2=0.99, weight_decay_mask=matrices_only), 2),
        param_groups({"all": adamw(1e-3, b2=0.99, weight_decay_mask=matrices_only)}, lambda path, w: "all"),
    ],
    ids=["ours", "Optax's", "clipped", "MultiSteps", "apply_if_finite", "one group"],
)  # fmt: skip
def test_several_of_pytorchs_groups_are_one_with_a_mask(tx):
    file = torch_file("AdamW", ["fc.weight"], ["fc.bias", "norm.weight"])
    file["param_groups"][1]["weight_decay"] = 0.0
    assert_there_and_back(tx, file)


def test_a_mask_that_says_something_else_is_refused():
    file = torch_file("AdamW", ["fc.weight"], ["fc.bias", "norm.weight"])
    file["param_groups"][1]["weight_decay"] = 0.0
    with pytest.raises(ValueError, match="params/norm/scale does not decay in PyTorch, unlike in the chain"):
        import_state(adamw(1e-3, b2=0.99), params(), file)
    with pytest.raises(ValueError, match="params/fc/kernel decays in PyTorch, unlike in the chain"):
        import_state(adamw(1e-3, b2=0.99, weight_decay_mask={"params": {"fc": False, "norm": False}}), params(), file)
    file["param_groups"][1] |= {"lr": 0.5, "weight_decay": 0.3}
    with pytest.raises(ValueError, match=r"several groups of PyTorch's, \[0, 1\], with different lr(?s:.*)decays"):
        import_state(adamw(1e-3, b2=0.99), params(), file)


def test_one_of_pytorchs_groups_is_several():
    def tx(rate=1e-3):
        chains = {"kernel": adamw(1e-3, b2=0.99), "bias": adamw(1e-3, b2=0.99), "scale": adamw(rate, b2=0.99)}
        return param_groups(chains, lambda path, w: path.rpartition("/")[2])

    file = torch_file("AdamW")
    assert_there_and_back(tx(), file)
    # The other way, a chain may have other learning rates, and PyTorch's group has only one.
    with pytest.warns(UserWarning, match="lr is 0.001 in PyTorch's group 0, and 0.5 in the chain"):
        state = import_state(tx(0.5), params(), file)
    with pytest.raises(ValueError, match="PyTorch's group 0 are in both bias and scale, whose chains"):
        export_state(tx(0.5), params(), state, file)
