"""Data are arguments of the program, the memory decides how many points run at once, and a point may span devices."""

import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from linkax.chains import sgd, sweep
from linkax.chains.laboratory import _placement, _sweep_points
from linkax.chains.laboratory._design import Design
from linkax.chains.laboratory._functions import functions_of
from linkax.chains.laboratory._placement import Placement, hash_arrays
from linkax.chains.laboratory._sweep_points import Points, _live_bytes

from . import sweep_meshes

sweep_silently = functools.partial(sweep, progress=False)
_X = {"x": [1.0, 2.0, 3.0]}


def times(x, data):
    return {"y": x * sum(jnp.sum(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(data))}


# data


@pytest.mark.parametrize(
    "data",
    [
        3,
        2.5,
        np.float64(6),
        [1, {"a": 2.0, "b": None}],
        np.arange(4),
        np.arange(12.0).reshape(3, 4)[:, ::2],
        jnp.asarray(2.0),
        np.ones(3, jnp.bfloat16),
        np.arange(4) > 2,
        np.zeros((0, 2)),
        (),
    ],
    ids=str,
)
def test_data_of_all_kinds(data):
    total = sum(float(np.sum(leaf)) for leaf in jax.tree.leaves(data))
    assert sweep_silently(times, _X, data=data)["y"].values.tolist() == [total, 2 * total, 3 * total]


def test_data_give_what_a_closure_gives_and_are_no_part_of_the_program():
    data = {"inputs": np.random.default_rng(0).normal(size=(500, 40)).astype(np.float32), "key": jax.random.key(0)}

    def run(tx, x, data):
        weights = jax.random.normal(data["key"], (40,))
        gradient = jax.grad(lambda w: jnp.mean(jnp.tanh(data["inputs"] @ w) ** 2))(weights)
        return {"y": jnp.sum(x * tx.update(gradient, tx.init(weights), weights)[0])}

    expected = sweep_silently(lambda tx, x: run(tx, x, data), _X, {"sgd": sgd(0.1)})
    # The same arithmetic, but XLA may have computed the constant part of it beforehand, with another order of sums.
    np.testing.assert_allclose(
        sweep_silently(run, _X, {"sgd": sgd(0.1)}, data=data)["y"], expected["y"], rtol=1e-4, atol=1e-7
    )
    (function,) = functions_of(lambda x, data: run(sgd(0.1), x, data), _X, None, has_data=True).values()
    points = Points(function, Design({}, {"x": np.float32([1.0, 2.0])}), Placement(data))
    points.chunks(np.arange(2), None, None)
    assert points._programs[0].memory_analysis().argument_size_in_bytes > data["inputs"].nbytes


def test_a_file_of_other_data_is_refused(tmp_path):
    data = {"a": np.arange(3.0), "b": np.ones((2, 2))}
    found = sweep_silently(times, _X, data=data, file=tmp_path / "table.nc")
    same = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    xarray.testing.assert_identical(sweep_silently(times, _X, data=same, file=tmp_path / "table.nc"), found)
    changed = {"a": np.arange(3.0) + 1e-6, "b": np.ones((2, 2))}
    for other in (changed, {"b": data["a"], "a": data["b"]}, {"a": data["a"], "b": np.ones(4)}, [*data.values()]):
        with pytest.raises(ValueError, match="^sweep: file must be new or hold this sweep"):
            sweep_silently(times, _X, data=other, file=tmp_path / "table.nc")


def test_large_arrays_are_hashed_in_parts(monkeypatch):
    arrays = [np.arange(100.0).reshape(10, 10).T, np.arange(1000, dtype=np.int8), np.float32(3), np.ones((3, 0))]
    whole = [hash_arrays([np.asarray(array)]) for array in arrays]
    assert len(set(whole)) == 4
    monkeypatch.setattr(_placement, "_SLAB", 256)
    assert [hash_arrays([np.asarray(array)]) for array in arrays] == whole
    assert [hash_arrays([jnp.asarray(array, array.dtype)]) for array in arrays[1:3]] == whole[1:3]


def test_a_placement_travels_to_other_processes():
    data = {"key": jax.random.key(3, impl="rbg"), "x": jnp.ones(3, jnp.bfloat16), "none": None, "n": np.arange(3)}
    one, other = pickle.loads(pickle.dumps([Placement(data, {"a": 1})] * 2))
    assert one is other  # and so is sent once for all variants
    placement = Placement(data, {"a": 1})
    assert (one.fingerprint, one.shapes, one.mesh) == (placement.fingerprint, placement.shapes, placement.mesh)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(*map(_bytes, (a, b))), one.data(), placement.data())


def _bytes(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@pytest.mark.parametrize(
    ("run", "grid", "options", "error", "message"),
    [
        (lambda x: {"y": x}, _X, {"data": 3}, ValueError, "run must take the argument data"),
        (times, _X, {}, ValueError, "run must take only axes, got data"),
        (times, {**_X, "data": [1]}, {"data": 3}, ValueError, "an axis must not be called data"),
        (times, _X, {"data": {"a": "text"}}, TypeError, "data['a'] must be an array of numbers, got 'text'"),
        (times, _X, {"data": [object()]}, TypeError, "data[0] must be an array of numbers"),
        (times, _X, {"data": 2**40}, ValueError, "data must fit into int32"),
        (times, _X, {"data": np.array([1e300])}, ValueError, "data must fit into float32"),
        (times, _X, {"data": 1, "mesh_per_point": {}}, TypeError, "mesh_per_point must be a dictionary"),
        (times, _X, {"data": 1, "mesh_per_point": 4}, TypeError, "mesh_per_point must be a dictionary"),
        (times, _X, {"data": 1, "mesh_per_point": {"a": 0}}, ValueError, "mesh_per_point['a'] must be an integer of"),
        (times, _X, {"data": 1, "mesh_per_point": {"a": 3}}, ValueError, "which has 3; this host has 1"),
        (
            times,
            _X,
            {
                "data": 1,
                "mesh_per_point": jax.sharding.AbstractMesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Manual,)),
            },
            ValueError,
            "mesh_per_point must have automatic or explicit axes",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(run, grid, options, error, message, monkeypatch):
    monkeypatch.setattr(Points, "_compile", lambda *_: pytest.fail("it compiles"))
    with pytest.raises(error) as raised:
        sweep_silently(run, grid, **options)
    assert str(raised.value).startswith("sweep: ")
    assert message in str(raised.value)


# memory


def square(x):
    return {"square": x * x}


class Accelerator:
    """Pretends that the CPU is an accelerator, whose compiler or memory has no room for larger batches."""

    def __init__(self, monkeypatch, memory=1e9, compiles=10**9, runs=10**9):
        self.batches = []  # of every compilation
        original = Points._compile

        def compile_(points, size, batch):
            self.batches.append(batch)
            if batch > compiles:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory")
            programs = original(points, size, batch)
            return [self.exhausted] if batch > runs else programs

        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        monkeypatch.setattr(_sweep_points, "_free_memory", lambda: memory)
        monkeypatch.setattr(Points, "_compile", compile_)

    class exhausted:
        def __new__(cls, *arguments):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

        @staticmethod
        def memory_analysis():
            return None


def test_the_first_compilation_fits_by_the_shapes(monkeypatch):
    accelerator = Accelerator(monkeypatch, memory=1e6)
    found = sweep_silently(lambda x: {"y": jnp.sum(jnp.sort(x * jnp.arange(1000.0)))}, {"x": np.arange(200.0)})
    np.testing.assert_allclose(found["y"], np.arange(200) * 499_500.0, rtol=1e-6)  # rounded ten times, in pairs
    # A point keeps x·n and what is sorted of it, 4 kB each: half a megabyte has room for 62, in powers of two for 32.
    assert accelerator.batches[0] == 32


def test_a_busy_accelerator_saves_often(monkeypatch, tmp_path):
    sizes = []
    original = Points.compute
    monkeypatch.setattr(Points, "compute", lambda self, indices: sizes.append(len(indices)) or original(self, indices))
    accelerator = Accelerator(monkeypatch)
    sweep_silently(square, {"x": np.arange(64.0)}, file=tmp_path / "few.nc")
    assert (accelerator.batches, sizes) == ([64], [64])  # a few numbers keep nothing busy, so all run at once
    monkeypatch.setattr(_sweep_points, "_BUSY", 64)
    sizes.clear()
    sweep_silently(square, {"x": np.arange(640.0)}, file=tmp_path / "many.nc")
    assert (accelerator.batches[1:], sizes) == ([40], [40] * 16)


@pytest.mark.parametrize("chunk_size", [None, 3, 50])
def test_it_backs_off_where_the_compiler_runs_out_of_memory(chunk_size, monkeypatch):
    accelerator = Accelerator(monkeypatch, compiles=5)
    found = sweep_silently(square, {"x": np.arange(64.0)}, chunk_size=chunk_size)
    np.testing.assert_array_equal(found["square"], np.arange(64.0) ** 2)
    assert accelerator.batches == [64, 32, 16, 8, 4]  # whatever the chunks: results do not depend on them


def test_it_backs_off_where_a_run_does_and_says_so(monkeypatch):
    accelerator = Accelerator(monkeypatch, runs=20)
    with pytest.warns(RuntimeWarning) as warned:
        found = sweep_silently(square, {"x": np.arange(64.0)})
    assert [str(warning.message).split(";")[0] for warning in warned] == [
        "sweep: 64 points side by side were too many for the memory",
        "sweep: 32 points side by side were too many for the memory",
    ]
    np.testing.assert_array_equal(found["square"], np.arange(64.0) ** 2)
    assert accelerator.batches == [64, 32, 16]


@pytest.mark.parametrize("limit", ["compiles", "runs"])
@pytest.mark.parametrize(
    ("batch_size", "message"),
    [(8, "batch_size must be small enough for the memory of a device, got 8"), (1, "a point must fit")],
)
def test_a_batch_size_is_kept_or_refused(batch_size, message, limit, monkeypatch):
    Accelerator(monkeypatch, **{limit: batch_size - 1})
    with pytest.raises(MemoryError) as raised:
        sweep_silently(square, {"x": np.arange(64.0)}, batch_size=batch_size)
    assert str(raised.value).startswith(f"sweep: {message}")
    assert "RESOURCE_EXHAUSTED" in str(raised.value)


def test_data_that_lie_there_already_are_not_counted_again(monkeypatch):
    accelerator = Accelerator(monkeypatch, memory=20_000)  # half of it is less than the data
    found = sweep_silently(times, {"x": np.arange(32.0)}, data=np.ones(4000, np.float32))
    np.testing.assert_array_equal(found["y"], 4000 * np.arange(32.0))
    assert accelerator.batches == [32]


def test_other_errors_are_not_taken_for_lack_of_memory(monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(Points, "_compile", refuse)
    with pytest.raises(jax.errors.JaxRuntimeError, match="^INTERNAL"):
        sweep_silently(square, _X)


@pytest.mark.parametrize(
    ("function", "kilobytes"),
    [
        (lambda x: x + 1, 4),
        (lambda x: jnp.sin(jnp.cos(x)), 8),  # one while it is read, and one that is written
        (lambda x: jnp.stack([x, x]) * 2, 16),
        (lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=100)[0], 4),
        (lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), c), x, length=100)[1], 404),
    ],
    ids=["one", "two", "stack", "loop", "stacking_loop"],
)
def test_live_bytes(function, kilobytes):
    assert _live_bytes(jax.make_jaxpr(function)(jnp.ones(1000)).jaxpr) == 1000 * kilobytes


# meshes


@pytest.fixture(scope="module")
def on_eight_devices():
    """What sweep_meshes.py prints: found out in another process, because devices are counted once."""
    root = pathlib.Path(__file__).parents[3]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "error", "-m", "tests.chains.laboratory.sweep_meshes"]
    done = subprocess.run(command, cwd=root, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_one_device():
    return sweep_meshes.losses()


def test_devices_do_not_change_a_bit(on_eight_devices, on_one_device):
    assert on_eight_devices["alone"] == sweep_meshes.bits(on_one_device)


def test_eight_devices_compile_once(on_eight_devices):
    assert on_eight_devices["compilations"] == 1


@pytest.mark.parametrize("types", ["Auto", "Explicit"])
def test_a_mesh_around_a_sweep_changes_nothing(types, on_eight_devices):
    assert on_eight_devices[f"inside {types}"] == sweep_meshes.bits(sweep_meshes.losses(variants=sweep_meshes.ADAM))


@pytest.mark.parametrize("how", ["Auto", "Explicit", "Explicit, side by side"])
def test_a_point_on_four_devices_gives_what_one_device_gives(how, on_eight_devices, on_one_device):
    expected = sweep_meshes.losses(variants=sweep_meshes.ADAM) if "side by side" in how else on_one_device
    # Four steps, whose sums have another order: some roundings of 6e-8, on numbers of about 1.
    np.testing.assert_allclose(on_eight_devices[f"on {how}"], expected, rtol=1e-5, atol=1e-5)


def test_all_groups_of_devices_give_the_same_bits(on_eight_devices):
    one, other = on_eight_devices["groups"]
    assert one == other


@pytest.mark.parametrize("batch_size", [1, 2])
def test_shard_map_finds_the_mesh_of_the_point(batch_size, on_eight_devices):
    assert on_eight_devices[f"shard_map {batch_size}"] == [[28.0, 56.0, 84.0], [4, 4, 4]]


def test_metrics_divided_among_devices_come_out_whole(on_eight_devices):
    whole = np.arange(8.0)
    assert on_eight_devices["a divided metric"] == [[28.0, 56.0], [whole.tolist(), (2 * whole).tolist()]]


def test_what_fits_no_mesh_is_refused(on_eight_devices):
    assert on_eight_devices["refused"] == [
        "sweep: mesh_per_point must have a number of devices that divides those of a host, got {'a': 3}, which has 3; "
        "this host has 8",
        "sweep: data must be sharded over axes of mesh_per_point, which are b, got a",
        "sweep: run must not close over arrays with explicit axes, got float32[8@a]; give them as data",
        "sweep: data[0] must be divisible among the devices of mesh_per_point, which is {'a': 8}, got the shape "
        "(6,) with P('a',)",
    ]
