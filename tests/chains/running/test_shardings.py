"""Where the arrays of a state are on a mesh."""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from linkax import adamw, chain, init_sharded, param_shardings, state_shardings
from linkax.transforms import Moment, link

P = PartitionSpec
MESH = AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)  # of devices that need not exist


def on_mesh(shape, *axes, mesh=MESH):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))


@pytest.fixture(scope="module")
def found():
    """What eight devices gave: found out in another process, because devices are counted once."""
    root = pathlib.Path(__file__).parents[3]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-W", "error", "-m", "tests.chains.running.on_eight_devices"]
    return json.loads(subprocess.run(command, cwd=root, env=env, check=True, stdout=subprocess.PIPE).stdout)


# Training

UP, BIAS = 128 * 256, 256
ALL, BYTES = 2 * UP + BIAS, 8  # parameters in float64
SCALARS = 64  # bytes, at most, of counts and accumulated weights

# Of all parameters, as a fraction: those on a device, and those whose moments are on a device. The bias of 256 is too
# small to be split by ZeRO and FSDP.
ON_A_DEVICE = {
    "data parallel": (1, 1),
    "ZeRO-1": (1, (2 * UP / 8 + BIAS) / ALL),
    "ZeRO-2": (1, (2 * UP / 8 + BIAS) / ALL),
    "FSDP": ((2 * UP / 8 + BIAS) / ALL, (2 * UP / 8 + BIAS) / ALL),
    "tensor parallel": ((2 * UP / 8 + BIAS / 8) / ALL, (2 * UP / 8 + BIAS / 8) / ALL),
    "FSDP and tensor parallel": ((2 * UP / 8 + BIAS / 2) / ALL, (2 * UP / 8 + BIAS / 2) / ALL),
    "tensor parallel and ZeRO-1": (1 / 2, (2 * UP / 8 + BIAS / 2) / ALL),
}
RUNS = [
    *(f"{mode} auto" for mode in ON_A_DEVICE),
    *(f"{mode} {kind}" for kind in ("explicit", "clipped") for mode in ("ZeRO-2", "FSDP and tensor parallel")),
]


@pytest.mark.parametrize("run", RUNS)
def test_training_gives_what_one_device_gives_and_everything_stays_where_it_is(run, found):
    its = found["trained"][run]
    assert its["init"]
    assert its["step"]
    assert its["difference"] < 1e-10  # float64; sums over the batch and the norm are taken in another order


@pytest.mark.parametrize("run", RUNS)
def test_bytes_on_a_device(run, found):
    its, (params, state) = found["trained"][run], ON_A_DEVICE[run.rpartition(" ")[0]]
    assert its["params"] == params * ALL * BYTES
    assert 0 <= its["state"] - 2 * state * ALL * BYTES <= SCALARS


@pytest.mark.parametrize("run", RUNS)
def test_what_the_optimizer_sends(run, found):
    """Nothing, but one number for a norm, and with ZeRO the parameters that were updated elsewhere."""
    sent = found["trained"][run]["sent by the optimizer"]
    assert sent.pop("all-reduce", 0) == (1 if "clipped" in run else 0)
    gathered = {"ZeRO-1": UP, "ZeRO-2": UP, "tensor parallel and ZeRO-1": UP / 2}.get(run.rpartition(" ")[0])
    assert sent == ({} if gathered is None else {"all-gather": gathered})


@pytest.mark.parametrize(
    "name", ["radam", "rprop", "averaged", "muon", "master copy", "lost bits", "stochastic rounding"]
)
def test_zero_on_explicit_axes_gives_what_one_device_gives(name, found):
    its = found["mixed"][name]
    assert its["lies"]
    # Muon's products are added up in another order: up to 256 roundings of float32, in 5 iterations, of 1e-2.
    # The others do the same on each element; the compiler may fuse it differently, in each of two steps one unit in the
    # last place of a weight below 1.
    assert its["difference"] <= (5 * 256 * 2**-24 * 1e-2 if name == "muon" else 2 * 2**-24)


# The state of every kind of optimizer, of "up" (None, "model"), "bias" ("model",) and "down" ("model", None)

PLAIN = {"(128, 256)": (None, "model"), "(256,)": ("model",), "(256, 128)": ("model", None)}
SPLIT = {"(128, 256)": ("data", "model"), "(256,)": ("model",), "(256, 128)": ("model", "data")}
ROWS, COLUMNS = {"(128, 1)": (None, None), "(256, 1)": ("model", None)}, {"(1, 256)": (None, "model")}
OWN = {  # what else there is: as the parameters, and over "data"
    "scales": ({**COLUMNS, "(256, 1)": ("model", None)},) * 2,
    "means": (
        {**ROWS, **COLUMNS, "(1, 128)": (None, None)},
        {**ROWS, **COLUMNS, "(128, 1)": ("data", None), "(1, 128)": (None, "data")},
    ),
    "Optax's means": ({"(128,)": (None,), "(1,)": (None,)}, {"(128,)": ("data",), "(1,)": (None,)}),
    "history": tuple(
        {shape.replace("(", "(3, ").replace(",)", ")"): (None, *spec) for shape, spec in all_.items()}
        for all_ in (PLAIN, SPLIT)
    ),
}
HAS = {
    "int8": "scales",
    "int4": "scales",
    "master copy": "scales",
    "groups": "scales",
    "factored": "means",
    "Optax's Adafactor": "Optax's means",
    "Optax's L-BFGS": "history",
}
WITHOUT_BIAS = ("masked", "partition")
WITHOUT_MATRICES = ("factored", "Optax's Adafactor")
NOT_OURS = ("MultiSteps", "partition", "Optax's Adam", "Optax's Adafactor", "Optax's L-BFGS")


def test_every_array_is_where_its_parameter_is_or_split_further(found):
    for kind in ("states", "states on explicit axes"):
        for name, its in found[kind].items():
            for index, over in enumerate(("as parameters", "data")):
                expected = dict((PLAIN, SPLIT)[index])
                for shape in list(expected):
                    is_bias = shape == "(256,)"
                    if (name in WITHOUT_BIAS and is_bias) or (name in WITHOUT_MATRICES and not is_bias):
                        del expected[shape]
                expected |= OWN[HAS[name]][index] if name in HAS else {}
                expected |= {"(3,)": (None,)} if name == "Optax's L-BFGS" else {}
                assert its[over]["specs"] == {shape: [str(spec)] for shape, spec in expected.items()}, (
                    name,
                    kind,
                    over,
                )
                assert its[over]["lies"], (name, kind, over)
                assert its[over]["structure"], (name, kind, over)


def test_a_compiled_init_of_ours_puts_the_state_where_the_parameters_are(found):
    wrong = {name for name, its in found["states"].items() if not its["jitted"]}
    assert wrong == set(NOT_OURS)
    assert all(its["jitted"] for its in found["states on explicit axes"].values())


def test_boxed_parameters_and_a_train_state_that_is_restored_on_two_devices(found):
    assert found["linen"] == {"equal": True, "boxed": True, "restored": True, "same": True, "devices": 2}


def test_an_nnx_optimizer_with_zero(found):
    its = dict(found["nnx"])
    # One unit in the last place of float32 weights of up to 1, now and then, from sums in another order.
    assert its.pop("difference") < 1e-6
    assert its == {"structure": True, "placed": True, "stays": True}


# Which axis is split

sizes = st.sampled_from([1, 3, 4, 8, 30, 64, 100])


@given(st.lists(sizes, max_size=3), st.data())
def test_a_parameter_is_split_evenly_and_once(shape, data):
    free = [None, None, "model"] if shape else []
    spec = [None] * len(shape)
    if shape and data.draw(st.sampled_from(free)) and shape[0] % 2 == 0:
        spec[0] = "model"
    param = on_mesh(tuple(shape), *spec)
    if np.prod(shape) >= 4096 and not any(size % (8 if axis else 4) == 0 for size, axis in zip(shape, spec)):
        with pytest.warns(UserWarning, match="no axis can be divided"):
            sharding = param_shardings(param, over="data")
        assert sharding == param.sharding
        return
    sharding = param_shardings(param, over="data")
    pieces = np.prod(shape) / np.prod(sharding.shard_shape(param.shape))
    before = np.prod(shape) / np.prod(param.sharding.shard_shape(param.shape))
    assert pieces == before * (4 if np.prod(shape) >= 4096 else 1)


@pytest.mark.parametrize(
    ("shape", "axes", "over", "expected"),
    [
        ((64, 128), (), "data", (None, "data")),  # the longest
        ((128, 128), (), "data", (None, "data")),  # the last of the longest
        ((64, 130), (), "data", ("data", None)),  # that can be divided
        ((512, 64), ("model",), "data", ("model", "data")),  # one that is not split
        ((512, 63), ("model",), "data", (("model", "data"), None)),  # unless there is none
        ((64, 128), (), ("data", "model"), (None, ("data", "model"))),
        ((64, 128), ("data",), ("data", "model"), ("data", "model")),  # as far as it is not split over them already
        ((64, 63), (), "data", ()),  # small
        ((64, 128), (None, ("model", "data")), "data", (None, ("model", "data"))),
    ],
)
def test_which_axis_is_split(shape, axes, over, expected):
    assert param_shardings(on_mesh(shape, *axes), over=over) == NamedSharding(MESH, P(*expected))


def test_over_explicit_axes_an_axis_is_split_only_once():
    """JAX refuses to add an array split over "model" to one that is split over "model" and "data"."""
    explicit = AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    split = param_shardings(on_mesh((512, 64), "model", mesh=explicit), over="data")
    assert split.spec == P("model", "data")
    param = on_mesh((512, 63), "model", mesh=explicit)
    with pytest.warns(UserWarning, match=r"no axis can be divided .* \(512, 63\)"):
        assert param_shardings(param, over="data") == param.sharding


def test_memory_kinds_remain():
    pinned = NamedSharding(MESH, P(), memory_kind="pinned_host")
    param = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=pinned)
    assert param_shardings(param, over="data").memory_kind == "pinned_host"


# What is not known

PARAMS = {"w": on_mesh((64, 128), "model"), "b": on_mesh((128,))}


class Kept(NamedTuple):
    trail: optax.Updates


def keeping(init, **state):
    @link("moment", state=state, out="trail of {}")
    def keep() -> optax.GradientTransformation:
        return optax.GradientTransformation(lambda p: Kept(init(p)), lambda u, s, p=None: (u, s))

    return chain(keep())


def test_a_link_of_ones_own_takes_part():
    declared = keeping(
        lambda p: jax.tree.map(lambda w: {"a": w, "b": w[:1] if w.ndim else w}, p), trail=Moment("trail")
    )
    assert state_shardings(declared, PARAMS, over="data")[0].trail["w"] == {
        "a": NamedSharding(MESH, P("model", "data")),
        "b": NamedSharding(MESH, P(None, "data")),
    }
    by_path = keeping(lambda p: p)
    assert state_shardings(by_path, PARAMS)[0].trail == {name: one.sharding for name, one in PARAMS.items()}


def test_what_is_like_no_parameter_is_replicated_with_a_warning():
    unknown = keeping(lambda p: {"gram": jnp.zeros((100, 100)), "small": jnp.zeros(10)})
    with pytest.warns(UserWarning, match=r"state_shardings: .* replicated .*: keep\.trail\.gram \(100, 100\);"):
        shardings = state_shardings(unknown, PARAMS)
    assert shardings[0].trail == {"gram": NamedSharding(MESH, P()), "small": NamedSharding(MESH, P())}
    state_shardings(unknown, {"w": on_mesh((64, 128))})  # where all is replicated, it is as it should be


def test_a_vector_of_all_parameters():
    params = {"w": on_mesh((64, 128)), "b": on_mesh((128,))}
    vectors = {leaf.spec for leaf in jax.tree.leaves(state_shardings(optax.flatten(adamw(1e-3)), params, over="data"))}
    assert vectors == {P(), P("data")}
    with pytest.warns(UserWarning, match="replicated"):
        state_shardings(optax.flatten(adamw(1e-3)), PARAMS)


# One device, and what is refused


def test_on_one_device_all_is_there():
    params = {"w": jnp.ones((64, 128))}
    tx = adamw(1e-3)
    shardings = state_shardings(tx, params)
    assert set(jax.tree.leaves(shardings)) == {params["w"].sharding}
    assert jax.tree.structure(shardings) == jax.tree.structure(tx.init(params))
    for one, other in zip(*map(jax.tree.leaves, (init_sharded(tx, params), tx.init(params)))):
        assert np.array_equal(one, other)


def test_without_parameters_there_is_nothing_to_place():
    assert jax.tree.leaves(param_shardings({})) == []


@pytest.mark.parametrize("function", [param_shardings, lambda p, **more: state_shardings(adamw(1e-3), p, **more)])
@pytest.mark.parametrize(
    ("params", "over", "message"),
    [
        ({"w": np.ones(3), "v": on_mesh((3,))}, None, "no sharding for w$"),
        ({"w": jax.ShapeDtypeStruct((3,), jnp.float32)}, None, "no sharding for w$"),
        ({"w": jnp.ones(3), "v": on_mesh((3,))}, None, "on the same devices"),
        ({"w": on_mesh((67, 128), "data")}, None, r"split evenly.* got w \(67, 128\) with NamedSharding"),
        ({"w": on_mesh((64, 128), P.UNCONSTRAINED)}, "data", r"or not at all, got w \(64, 128\) with NamedSharding"),
        (PARAMS, "batch", "over must be an axis of the parameters' mesh.*'data', 'model'; got 'batch'"),
        (PARAMS, ("data", "data"), "several different ones"),
        ({"w": jnp.ones(3)}, "data", "no axes; got 'data'"),
    ],
)
def test_what_is_refused(function, params, over, message):
    with pytest.raises(ValueError, match=f"_shardings: .*{message}"):
        function(params, over=over)


def test_over_must_be_names():
    with pytest.raises(TypeError, match="over must be the name of an axis, several names, or None, got 0"):
        param_shardings(PARAMS, over=0)


def test_a_state_needs_devices():
    with pytest.raises(ValueError, match="init_sharded: params must be on a mesh of devices, got an AbstractMesh"):
        init_sharded(adamw(1e-3), PARAMS)


def test_traced_parameters_are_refused():
    with pytest.raises(ValueError, match="outside of jax.jit"):
        jax.jit(lambda w: init_sharded(adamw(1e-3), w))(jnp.ones(3))


def test_what_is_no_transformation_is_refused():
    for function in (state_shardings, init_sharded):
        with pytest.raises(TypeError, match="tx must be a link, a chain or an Optax transformation"):
            function(adamw, {"w": jnp.ones(3)})
