"""Checkpoints that the installed PyTorch writes: read, converted and written back; and files that mean no good."""

import argparse
import collections
import io
import json
import os
import pickle
import warnings
import zipfile

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from linkax.chains.torch_interop import (
    TorchSchedule,
    from_torch,
    import_params,
    import_state,
    inspect_checkpoint,
    optimizer_order,
)
from linkax.chains.torch_interop.__main__ import main
from linkax.chains.torch_interop._layouts import IDENTITY

torch = pytest.importorskip("torch", reason="reads what the installed PyTorch writes")


def trained(steps=3, wrap=lambda model: model, dtype=torch.float32, make=torch.optim.AdamW, **options):
    """A model with batch normalisation, tied weights, a frozen and an unreached parameter, and its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3), torch.nn.Linear(3, 4)
    ).to(dtype)
    model[3].weight = model[0].weight
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(2, dtype=dtype)))
    model.register_parameter("frozen", torch.nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False))
    optimizer = make([(name, one) for name, one in model.named_parameters() if one.requires_grad], lr=1e-2, **options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    wrapped = wrap(model)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(5, 3, dtype=dtype)) ** 2).sum().backward()
        optimizer.step()
        scheduler.step()
    return wrapped, optimizer, scheduler


def write(path, model, optimizer, scheduler, **more):
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save({**parts, **more}, path)
    return path


def assert_same(a, b, where=""):
    """Two files hold the same, with the same types of tensors."""
    assert isinstance(b, dict) == isinstance(a, dict), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (one, other) in enumerate(zip(a, b)):
            assert_same(one, other, f"{where}.{index}")
    elif torch.is_tensor(a):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def plain(model):
    """No wrapper."""
    return model


MAKERS = {
    "fused": (torch.float32, torch.optim.AdamW, {"fused": True}, plain),
    "compiled": (torch.float32, torch.optim.AdamW, {"foreach": True}, torch.compile),
    "lr is a tensor": (torch.float32, torch.optim.Adam, {"weight_decay": 0.1}, torch.nn.DataParallel),
    "float64": (torch.float64, torch.optim.RMSprop, {"momentum": 0.9}, plain),
    "bfloat16": (torch.bfloat16, torch.optim.Adamax, {}, plain),
    "SGD": (torch.float32, torch.optim.SGD, {"momentum": 0.9}, plain),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize(("dtype", "make", "options", "wrap"), MAKERS.values(), ids=MAKERS)
def test_a_file_is_converted_and_comes_back_to_the_last_bit(tmp_path, capsys, wrap, dtype, make, options):
    model, optimizer, scheduler = trained(wrap=wrap, dtype=dtype, make=make, **options)
    if make is torch.optim.Adam:
        optimizer.param_groups[0]["lr"] = torch.tensor(1e-2)
        optimizer.param_groups[0]["initial_lr"] = torch.tensor(1e-2)
    source = write(tmp_path / "run.pt", model, optimizer, scheduler, epoch=2, global_step=3, args={"width": 3})
    saved = inspect_checkpoint(source)
    assert saved.tied == {"3.weight": "0.weight"}
    assert "1 parameter never stepped" in repr(saved)
    assert main(["convert", str(source), str(tmp_path / "orbax")]) == 0, capsys.readouterr().err
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "back.pt"), "--template", str(source)]) == 0
    back = torch.load(tmp_path / "back.pt")
    idle = back["optimizer"]["state"].pop(0)  # PyTorch would make it in the first step
    assert not any(one.any() for what, one in idle.items() if what not in ("step", "mu_product"))
    assert_same(torch.load(source), back)
    out = capsys.readouterr().out
    assert "note: left out: args" in out
    assert "note: idle has never had a gradient" in out
    assert "the learning rate stays as it is in the file" in out
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "plain.pt")]) == 0
    plain = torch.load(tmp_path / "plain.pt")
    assert_same(plain["model"], saved.model)


def test_what_was_converted_is_an_ordinary_orbax_checkpoint(tmp_path):
    source = write(tmp_path / "run.pt", *trained(), scaler=torch.amp.GradScaler("cpu").state_dict())
    assert main(["convert", str(source), str(tmp_path / "orbax")]) == 0
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(spec=ocp.JsonCheckpointHandler())) as checkpointer:
        spec = checkpointer.restore(tmp_path / "orbax", ocp.args.Composite(spec=ocp.args.JsonRestore())).spec
    assert spec["optimizer"]["name"] == "AdamW"
    assert spec["schedulers"][0]["T_max"] == 10
    assert spec["scaler"]["growth_interval"] == 2000
    weights = ocp.StandardCheckpointHandler().restore(tmp_path / "orbax" / "params")
    np.testing.assert_array_equal(weights["0"]["weight"], inspect_checkpoint(source).model["0.weight"])


def test_a_named_scheduler_becomes_a_schedule_which_the_spec_has(tmp_path, capsys):
    model, optimizer, scheduler = trained()
    source = write(tmp_path / "run.pt", model, optimizer, scheduler)
    named = ["--scheduler", "CosineAnnealingLR"]
    assert main(["convert", str(source), str(tmp_path / "orbax"), *named]) == 0, capsys.readouterr().err
    assert "the learning rate stays" not in capsys.readouterr().out
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(spec=ocp.JsonCheckpointHandler())) as checkpointer:
        spec = checkpointer.restore(tmp_path / "orbax", ocp.args.Composite(spec=ocp.args.JsonRestore())).spec
    schedules = [TorchSchedule.from_spec(one) for one in spec["optimizer"]["rates"]]
    done = int(scheduler.last_epoch)
    for step in range(done, 30):
        for schedule, group in zip(schedules, optimizer.param_groups, strict=True):
            np.testing.assert_allclose(schedule(step), group["lr"], rtol=1e-6)  # in float32
        optimizer.step()
        scheduler.step()
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "back.pt"), "--template", str(source)]) == 0
    assert_same(torch.load(source)["model"], torch.load(tmp_path / "back.pt")["model"])
    assert main(["convert", str(source), str(tmp_path / "other"), "--scheduler", "StepLR"]) == 2
    assert "StepLR" in capsys.readouterr().err


def test_averages_are_a_tree_like_the_parameters(tmp_path):
    model, optimizer, scheduler = trained()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    source = write(tmp_path / "run.pt", model, optimizer, scheduler, ema=average.state_dict())
    averages = inspect_checkpoint(source).averages
    assert averages is not None
    assert int(averages["n_averaged"]) == 1
    assert main(["convert", str(source), str(tmp_path / "orbax")]) == 0
    tree = ocp.StandardCheckpointHandler().restore(tmp_path / "orbax" / "averages")
    np.testing.assert_array_equal(tree["2"]["bias"], average.module[2].bias.detach())


def test_what_has_no_counterpart_ends_with_2_and_one_message(tmp_path, capsys):
    model, optimizer, scheduler = trained()
    with torch.no_grad():
        model[0].bias[0] = torch.nan
        model[2].bias[1] = torch.inf
    source = write(tmp_path / "run.pt", model, optimizer, scheduler)
    assert main(["convert", str(source), str(tmp_path / "orbax")]) == 2
    err = capsys.readouterr().err
    assert f"error: {source} has something without a counterpart" in err
    assert "0/bias is infinite or NaN" in err
    assert "2/bias is infinite or NaN" in err
    torch.save({"optimizers": [optimizer.state_dict()] * 2, "model": {"w": torch.ones(2)}}, source)
    assert main(["convert", str(source), str(tmp_path / "orbax")]) == 2  # one dictionary, twice: one optimizer
    assert not (tmp_path / "orbax").exists()
    unnamed = torch.optim.AdamW(model.parameters())
    torch.save({"model": model.state_dict(), "optimizer": unnamed.state_dict()}, source)
    assert main(["convert", str(source), str(tmp_path / "orbax")]) == 2
    assert "its optimizer does not name its parameters: say how it was made, with --order" in capsys.readouterr().err
    assert main(["convert", str(source), str(source)]) == 2
    assert "OUT must not exist yet" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "x"), "--params", "nothing"]) == 2
    assert "--params must be module:function" in capsys.readouterr().err


def test_into_the_users_own_tree_with_the_users_own_chain(tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text(
        "import jax.numpy as jnp, optax\n"
        "from linkax import adamw\n"
        "def shapes():\n"
        "    dense = lambda i, o: {'kernel': jnp.zeros((i, o)), 'bias': jnp.zeros(o)}\n"
        "    return {'params': {'a': dense(3, 4), 'b': dense(4, 2)}}\n"
        "def names(path):\n"
        "    return {'a': '0.', 'b': '1.'}[path.split('/')[1]] + {'kernel': 'weight'}.get(path.split('/')[2], 'bias')\n"
        "def chain():\n"
        "    return adamw(optax.linear_schedule(1e-2, 0.0, 100), weight_decay=0.1)\n"
    )
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    torch.save((model.state_dict(), optimizer.state_dict()), "run.pt")
    own = ["--params", "own_model:shapes", "--optimizer", "own_model:chain"]
    assert main(["convert", "run.pt", "orbax", "--order", "model", *own]) == 0
    tree = ocp.StandardCheckpointHandler().restore(tmp_path / "orbax" / "params")
    np.testing.assert_array_equal(tree["params"]["b"]["kernel"], model[1].weight.detach().T)
    assert main(["convert", "orbax", "back.pt", "--template", "run.pt"]) == 2  # whose tree?
    assert main(["convert", "orbax", "back.pt", "--template", "run.pt", *own]) == 0
    assert_same(torch.load("run.pt"), torch.load("back.pt"))


def test_the_flattened_and_the_full_states_of_torch_distributed():
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam([{"params": model[0].parameters()}, {"params": model[1].parameters(), "eps": 1e-3}])
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    for flatten in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flatten, full_state_dict=True)
        weights, state = get_state_dict(model, optimizer, options=options)
        (own,) = inspect_checkpoint({"model": weights, "optim": state}).optimizers
        assert own.name == "Adam"
        assert [group["param_names"] for group in own.param_groups] == [["0.weight", "0.bias"], ["1.weight", "1.bias"]]
        moment = own.state_dict["state"]["1.weight"]["exp_avg"]
        torch.testing.assert_close(moment, optimizer.state[model[1].weight]["exp_avg"])


def test_a_folder_of_the_trainer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the Trainer writes the folder")
    pytest.importorskip("accelerate", reason="the Trainer needs it")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=11, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 4
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=2, report_to=[], use_cpu=True, weight_decay=0.1, disable_tqdm=True,
        dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    trainer.train()
    saved = inspect_checkpoint(tmp_path / "checkpoint-2")
    assert saved.kind == "Hugging Face Trainer"
    assert (saved.step, saved.is_ordered) == (2, False)
    with pytest.raises(ValueError, match="a safetensors file sorts them"):
        optimizer_order(saved, "trainer")
    order = optimizer_order(saved, "trainer", names=[name for name, _ in model.named_parameters()])
    by_id = {id(one): name for name, one in model.named_parameters()}
    assert order == [by_id[id(one)] for group in trainer.optimizer.param_groups for one in group["params"]]
    with pytest.raises(ValueError, match="it has several checkpoints"):
        inspect_checkpoint(tmp_path)
    convert = ["convert", str(tmp_path / "checkpoint-2"), str(tmp_path / "orbax"), "--order", "trainer"]
    assert main(convert) == 2
    (tmp_path / "names").write_text("\n".join(name for name, _ in model.named_parameters()))
    assert main([*convert, "--names", str(tmp_path / "names")]) == 0
    tree = ocp.StandardCheckpointHandler().restore(tmp_path / "orbax" / "params")
    np.testing.assert_array_equal(tree["transformer"]["ln_f"]["weight"], model.transformer.ln_f.weight.detach())


def test_a_folder_of_accelerate_with_shards_of_pickles(tmp_path):
    model, optimizer, _ = trained()
    weights = model.state_dict()
    shards = {f"pytorch_model-0000{index + 1}-of-00002.bin": {} for index in range(2)}
    for index, (name, weight) in enumerate(weights.items()):
        list(shards.values())[index * 2 // len(weights)][name] = weight
    for name, shard in shards.items():
        torch.save(shard, tmp_path / name)
    index = {name: file for file, shard in shards.items() for name in shard}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": dict(sorted(index.items()))}))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    saved = inspect_checkpoint(tmp_path)
    assert saved.is_ordered
    assert list(saved.model) == [name for name in weights if name != "3.weight" or "3.weight" not in saved.tied]
    assert saved.optimizers[0].has_names


# Files that mean no good.


class Bomb:
    """A pickle of it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Lie:
    """A tensor that declares more than its storage has."""

    def __init__(self, size, stride):
        self.size, self.stride = size, stride

    def __reduce__(self):
        with warnings.catch_warnings():  # typed storages are deprecated
            warnings.simplefilter("ignore")
            storage = torch.ones(4).storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, self.size, self.stride, False, collections.OrderedDict())


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("name", ["run.pt", "run.ckpt", "optimizer.pt", "scaler.pt"])
def test_no_file_runs_code(tmp_path, name, is_new):
    folder = tmp_path / "folder"
    folder.mkdir()
    bomb = {"model": {"w": torch.ones(2)}, "x": Bomb(f"touch {tmp_path / 'ran'}")}
    torch.save(bomb, folder / name, _use_new_zipfile_serialization=is_new)
    with pytest.raises(ValueError, match=r"posix.system|nt.system") as error:
        inspect_checkpoint(folder if name in ("optimizer.pt", "scaler.pt") else folder / name)
    assert str(folder / name) in str(error.value)
    (folder / name).write_bytes(pickle.dumps(bomb["x"]))
    with pytest.raises(ValueError, match="must be a checkpoint that can be read safely"):
        inspect_checkpoint(folder / name)
    assert not (tmp_path / "ran").exists()


def test_what_is_not_tensors_is_named_with_what_can_be_done(tmp_path):
    path = tmp_path / "run.pt"
    torch.save({"args": argparse.Namespace(lr=0.1), "loss": np.float64(3), "model": {"w": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match=r"it has argparse.Namespace, numpy.*scalar.*safe_globals"):
        inspect_checkpoint(path)
    torch.save({"args": argparse.Namespace(lr=0.1), "model": {"w": torch.ones(2)}}, path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert list(inspect_checkpoint(path).model) == ["w"]


@pytest.mark.parametrize(
    ("size", "stride", "says"),
    [
        ((1000,), (1,), "not resizable|wrong byte size"),
        ((2**40,), (1,), "not resizable|memory|wrong byte size"),
        ((10**12,), (0,), "declared with the shape"),
        ((2**40, 2**40), (0, 0), "cannot read it|declared with the shape"),
        ((-1,), (1,), "cannot read it"),
    ],
)
def test_shapes_that_lie(tmp_path, size, stride, says):
    path = tmp_path / "run.pt"
    torch.save({"w": Lie(size, stride)}, path)
    with pytest.raises(ValueError, match=says) as error:
        inspect_checkpoint(path)
    assert str(path) in str(error.value)


def test_odd_tensors_and_numbers_do_not_crash(tmp_path):
    path = tmp_path / "run.pt"
    odd = {"w": torch.ones(2), "sparse": torch.eye(2).to_sparse(), "complex": torch.ones(2, dtype=torch.complex64)}
    torch.save({"model": odd, "step": 10**400, "epoch": torch.tensor([1, 2]), "other": 10**500}, path)
    saved = inspect_checkpoint(path)
    assert (list(saved.model), saved.step, saved.epoch) == (list(odd), None, None)
    assert "3 tensors of 8 numbers" in repr(saved)
    torch.save({"model": {"w": torch.ones(2, device="meta")}, "step": torch.ones((), device="meta")}, path)
    with pytest.raises(ValueError, match="w has a shape, but no values"):
        inspect_checkpoint(path)


def test_archives_that_pytorch_does_not_write(tmp_path):
    path = tmp_path / "run.pt"
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(100_000)}, buffer)
    whole = buffer.getvalue()
    for cut in (10, 1000, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="must be a checkpoint that can be read safely") as error:
            inspect_checkpoint(path)
        assert str(path) in str(error.value)
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(ValueError, match="it is compressed, which torch.save never does"):
        inspect_checkpoint(path)
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("readme", "text")
    with pytest.raises(ValueError, match="it is an archive, but not one of torch.save"):
        inspect_checkpoint(path)
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("run/constants.pkl", "text")
    with pytest.raises(ValueError, match="it is a TorchScript program"):
        inspect_checkpoint(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="cannot read it"):
        inspect_checkpoint(path)


def test_pytorch_before_2_6_is_refused(tmp_path, monkeypatch):
    torch.save({"w": torch.ones(1)}, tmp_path / "run.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ImportError, match="must be read with PyTorch 2.6 or newer, got 2.5.1"):
        inspect_checkpoint(tmp_path / "run.pt")


def test_bfloat16_weights_with_float32_moments():
    """Mixed precision keeps the moments in float32, next to a model in bfloat16."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.named_parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moment = optimizer.state[model.weight]["exp_avg"].clone()
    saved = inspect_checkpoint({"model": model.bfloat16().state_dict(), "optimizer": optimizer.state_dict()})
    (own,) = saved.optimizers
    tree = {"weight": jnp.zeros((2, 3), jnp.bfloat16), "bias": jnp.zeros(2, jnp.bfloat16)}
    params = import_params(tree, saved.model, layouts={"*": IDENTITY})
    tx = from_torch((own.name, own.param_groups))
    state = import_state(tx, params, own.state_dict, layouts={"*": IDENTITY})
    mu = state[0].first[0].mu["weight"]
    assert mu.dtype == jnp.float32
    np.testing.assert_array_equal(mu, moment)
    np.testing.assert_array_equal(params["weight"].astype(np.float32), model.weight.detach().float())
