"""A sweep gives what a loop over its points gives: compiled once, labelled, in chunks, on many devices, from a file."""

import functools
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import flax.linen as nn
import h5netcdf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray

from linkax.chains import ablations, adam, adamw, sgd, sweep
from linkax.chains.laboratory import _sweep_points
from linkax.chains.laboratory._results import Results
from linkax.chains.laboratory._sweep_points import Points

from . import sweep_hosts
from .sweep_hosts import GRID, VARIANTS, train

sweep_silently = functools.partial(sweep, progress=False)


def square(x, y=2.0):
    return {"square": x * x + y, "curve": jnp.arange(3) * x}


def assert_same_bits(a: xarray.Dataset, b: xarray.Dataset):
    assert a.sizes == b.sizes
    for name, values in a.data_vars.items():
        assert values.values.tobytes() == b[name].values.tobytes(), name


@pytest.fixture
def compilations():
    """The compilations that JAX reports from here on."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def table():
    return sweep_silently(train, GRID, VARIANTS, metric_dims={"loss": ["step"]})


# what comes out


def test_dimensions_are_labelled_and_curves_keep_their_own(table):
    assert dict(table.sizes) == {"variant": 2, "learning_rate": 3, "seed": 5, "step": 6}
    assert table["loss"].dims == ("variant", "learning_rate", "seed", "step")
    assert table["final"].dims == table["diverged"].dims == ("variant", "learning_rate", "seed")
    assert list(table["variant"].values) == ["sgd", "adam"]
    np.testing.assert_array_equal(table["learning_rate"], np.float32(GRID["learning_rate"]))
    np.testing.assert_array_equal(table["seed"], range(5))


def test_attributes_say_where_the_results_come_from(table):
    assert table.attrs["chain 'adam'"].startswith("chain\n├─ moment_ratio")
    assert "scale_by_learning_rate(learning_rate=<traced float32>)" in table.attrs["chain 'sgd'"]
    assert {f"{name}_version" for name in ("linkax", "jax", "jaxlib", "optax")} <= table.attrs.keys()
    assert table.attrs["jax_version"] == jax.__version__
    assert table.attrs["date"].endswith("+00:00")


def test_it_gives_what_a_loop_gives(table):
    loop = {name: jax.jit(lambda rate, seed, make=make: train(make(rate), seed)) for name, make in VARIANTS.items()}
    for name, rate, seed in itertools.product(VARIANTS, GRID["learning_rate"], GRID["seed"]):
        expected = loop[name](jnp.float32(rate), seed)
        here = table.sel(variant=name, learning_rate=rate, seed=seed)
        for metric in ("loss", "final"):  # six steps, each some tens of roundings of 6e-8
            np.testing.assert_allclose(here[metric], expected[metric], rtol=1e-5)


def test_a_flax_network_gives_what_a_loop_gives():
    net = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(1)])

    def run(tx, seed):
        params = net.init(jax.random.key(seed), sweep_hosts.INPUTS)
        loss = lambda params: jnp.mean((net.apply(params, sweep_hosts.INPUTS) - sweep_hosts.TARGETS) ** 2)  # noqa: E731
        updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
        return {"loss": loss(optax.apply_updates(params, updates))}

    found = sweep_silently(run, {"seed": range(3)}, {"adamw": adamw(0.1)})
    for seed in range(3):  # one step, some tens of roundings of 6e-8
        np.testing.assert_allclose(found["loss"].sel(variant="adamw", seed=seed), run(adamw(0.1), seed)["loss"], 1e-5)


def test_without_variants_there_is_no_such_dimension():
    found = sweep_silently(square, {"x": [1.0, 2.0], "y": [0.0, 3.0]})
    assert dict(found.sizes) == {"x": 2, "y": 2, "curve_0": 3}
    np.testing.assert_array_equal(found["square"], [[1.0, 4.0], [4.0, 7.0]])
    assert "variant" not in found.coords


def test_an_axis_may_be_taken_by_run_and_variants_both():
    run = lambda tx, x: {"step": tx.update(x, tx.init(x), x)[0]}  # noqa: E731
    found = sweep_silently(run, {"x": [1.0, 2.0]}, {"by run": lambda: sgd(1.0)})
    assert found["step"].values.tolist() == [[-1.0, -2.0]]
    found = sweep_silently(run, {"x": [1.0, 2.0]}, {"by both": lambda x: sgd(x)})
    assert found["step"].values.tolist() == [[-1.0, -4.0]]


def test_ablations_are_variants():
    tx = adamw(0.1)
    run = lambda tx, seed: train(tx, seed, steps=2)  # noqa: E731
    found = sweep_silently(run, {"seed": range(2)}, {"as it is": tx, **dict(list(ablations(tx).items())[:3])})
    assert found.sizes["variant"] == 4
    assert not found["diverged"].any()
    assert found.attrs["chain 'as it is'"] == repr(tx)


# compilation


def test_one_compilation_a_variant_however_large_the_grid(compilations):
    def count(points):
        traces = []

        def run(tx, seed):
            traces.append(None)
            return {"x": tx.update(jnp.float32(seed), tx.init(jnp.float32(0)), jnp.float32(0))[0]}

        compilations.clear()
        sweep_silently(run, {"seed": range(points)}, {"sgd": sgd(), "momentum": sgd(momentum=0.9)})
        return len(traces), len(compilations)

    count(2)  # small helpers compile here, the first time
    assert count(2) == count(100)
    assert count(100)[1] == 2


# chunks, batches and memory


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 15])
def test_chunks_do_not_change_a_bit(chunk_size, table):
    found = sweep_silently(train, GRID, VARIANTS, metric_dims={"loss": ["step"]}, chunk_size=chunk_size)
    assert_same_bits(found, table)


def test_chunks_of_batches_do_not_change_a_bit():
    grid, variants = {"learning_rate": [0.1, 0.2], "seed": range(5)}, {"sgd": VARIANTS["sgd"]}
    found = [sweep_silently(train, grid, variants, batch_size=4, chunk_size=size) for size in (1, 8, None)]
    for other in found[1:]:
        assert_same_bits(found[0], other)


def convolution(seed):
    """A network that XLA rounds otherwise where it knows that a loop has a single round."""
    net = nn.Sequential(
        [
            *(nn.Conv(8, (3, 3)), nn.relu, lambda x: nn.avg_pool(x, (2, 2), (2, 2))),
            *(nn.Conv(16, (3, 3)), nn.relu, lambda x: x.reshape(len(x), -1), nn.Dense(10)),
        ]
    )
    x = jnp.asarray(np.random.default_rng(0).random((32, 8, 8, 1), np.float32))
    logits = net.apply(net.init(jax.random.key(seed), x[:1]), x)
    return {"loss": optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(32) % 10).mean()}


def test_chunks_and_cores_do_not_change_a_bit_of_a_convolution(monkeypatch):
    monkeypatch.setattr(_sweep_points, "_cores", lambda: 1)
    whole = sweep_silently(convolution, {"seed": range(12)})
    for cores, chunk_size in ((1, 1), (1, 5), (12, None), (5, 5), (16, 12)):
        monkeypatch.setattr(_sweep_points, "_cores", lambda cores=cores: cores)
        assert_same_bits(sweep_silently(convolution, {"seed": range(12)}, chunk_size=chunk_size), whole)


def test_no_point_is_run_twice(monkeypatch):
    ran = []

    def run(x):
        jax.debug.callback(lambda x: ran.append(float(x)), x)
        return {"y": 2 * x}

    for cores, points in ((1, 3), (2, 3), (8, 3), (8, 20), (3, 1)):
        ran.clear()
        monkeypatch.setattr(_sweep_points, "_cores", lambda cores=cores: cores)
        found = sweep_silently(run, {"x": np.arange(float(points))})
        jax.effects_barrier()
        assert sorted(ran) == list(range(points))
        np.testing.assert_array_equal(found["y"], 2 * np.arange(points))


def test_settings_around_the_sweep_hold_inside():
    with jax.enable_x64(True):
        found = sweep_silently(lambda x, seed: {"y": x / 3, "z": seed}, {"x": [0.1, 0.2], "seed": range(3)})
    assert found["y"].dtype == np.float64
    assert found["z"].dtype == np.int64
    np.testing.assert_array_equal(found["y"].sel(x=0.1), 0.1 / 3)


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_cores_do_not_change_a_bit(cores, table, monkeypatch):
    monkeypatch.setattr(_sweep_points, "_cores", lambda: cores)
    assert_same_bits(sweep_silently(train, GRID, VARIANTS, metric_dims={"loss": ["step"]}), table)


@pytest.mark.parametrize("batch_size", [None, 1, 4, 100])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_with_little_memory_chunks_are_small_and_results_right(backend, batch_size, monkeypatch):
    sizes = []
    original = Points._compile

    def compile_and_note(self, size, batch):
        sizes.append(size)
        return original(self, size, batch)

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(_sweep_points, "_free_memory", lambda: 200.0)
    monkeypatch.setattr(Points, "_compile", compile_and_note)
    found = sweep_silently(square, {"x": np.arange(64.0)}, batch_size=batch_size)
    np.testing.assert_array_equal(found["square"], np.arange(64.0) ** 2 + 2)
    assert sizes[-1] <= max(5, 2 * (batch_size or 1))  # half of 200 bytes holds five points of 20; or two batches


def test_a_point_that_needs_much_memory_runs_alone(monkeypatch):
    at_once = []
    original = Points.compute

    def compute_and_note(self, indices):
        at_once.append(self._sizes.lanes)
        return original(self, indices)

    monkeypatch.setattr(_sweep_points, "_cores", lambda: 4)
    monkeypatch.setattr(_sweep_points, "_free_memory", lambda: 1e5)
    monkeypatch.setattr(Points, "compute", compute_and_note)

    def run(x):
        return {"norm": jnp.linalg.norm(jnp.sort(x * jnp.arange(10_000.0)))}  # sorting needs a place for 40 kB

    sweep_silently(run, {"x": np.arange(1.0, 9.0)})
    assert set(at_once) == {1}


# progress


def test_the_progress_bar_moves_and_can_be_switched_off(capsys):
    sweep(square, {"x": [1.0, 2.0, 3.0]}, chunk_size=1)
    assert "3/3" in capsys.readouterr().err
    sweep(square, {"x": [1.0, 2.0, 3.0]}, progress=False)
    assert capsys.readouterr().err == ""


# divergence


def test_a_diverging_point_shows_and_disturbs_no_neighbour():
    def run(x):
        return {"loss": jnp.log(x) * jnp.ones(2), "inverse": 1 / x}

    values = [-1.0, 0.0, 1.0, 2.0, 1e-45]
    found = sweep_silently(run, {"x": values[:4]}, chunk_size=3)
    assert found["diverged"].values.tolist() == [True, True, False, False]
    alone = sweep_silently(run, {"x": [1.0, 2.0]})
    assert_same_bits(found.sel(x=[1.0, 2.0]), alone)


def test_a_diverging_training_disturbs_no_neighbour():
    run = functools.partial(train, steps=30)
    make = {"sgd": lambda learning_rate: sgd(learning_rate)}
    found = sweep_silently(
        lambda tx, seed: run(tx, seed), {"learning_rate": [0.01, 1e30, 0.1], "seed": range(2)}, make, batch_size=2
    )
    assert found["diverged"].values.tolist() == [[[False] * 2, [True] * 2, [False] * 2]]
    calm = sweep_silently(
        lambda tx, seed: run(tx, seed), {"learning_rate": [0.01, 0.1], "seed": range(2)}, make, batch_size=2
    )
    assert_same_bits(found.sel(learning_rate=[0.01, 0.1]), calm)


# kinds of axes and metrics


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (range(3), "int32"),
        ([False, True], "bool"),
        ([1, 2.5], "float32"),
        (np.arange(3, dtype=np.uint32), "uint32"),
        (np.arange(3, dtype=np.float16), "float32"),
        (np.arange(3, dtype=np.longdouble), "float32"),
        (jnp.arange(3.0), "float32"),
        ((0.1,), "float32"),
    ],
    ids=["range", "bool", "mixed", "uint32", "float16", "longdouble", "jax", "tuple"],
)
def test_axes_of_all_kinds_of_numbers(values, dtype, tmp_path):
    found = sweep_silently(lambda x: {"same": x}, {"x": values}, file=tmp_path / "table.nc")
    assert found["same"].dtype == found["x"].dtype == dtype
    np.testing.assert_array_equal(found["same"], found["x"])
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "table.nc", engine="h5netcdf"), found)


@pytest.mark.parametrize("value", [0, False, 0.0])
def test_an_axis_of_only_zero_is_read_from_zarr(value, tmp_path):
    options = {"file": tmp_path / "table.zarr"}
    for _ in range(2):
        found = sweep_silently(lambda x: {"y": 1 * x}, {"x": [value]}, **options)
        assert found["y"].values.tolist() == found["x"].values.tolist() == [value]


def test_integers_are_seeds():
    found = sweep_silently(lambda seed: {"bits": jax.random.bits(jax.random.key(seed))}, {"seed": range(3)})
    assert found["bits"].values.tolist() == [int(jax.random.bits(jax.random.key(seed))) for seed in range(3)]


def test_axes_are_wide_when_jax_is(x64):
    found = sweep_silently(lambda x, seed: {"a": x, "b": seed}, {"x": [0.1, 1e300], "seed": [0, 2**40]})
    assert found["a"].dtype == found["x"].dtype == np.float64
    assert found["b"].dtype == found["seed"].dtype == np.int64
    assert found["a"].values.tolist() == [[0.1, 0.1], [1e300, 1e300]]
    assert found["b"].values.tolist() == [[0, 2**40], [0, 2**40]]


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(
    ("metric", "dtype", "shape"),
    [
        (lambda x: x > 1, "bool", ()),
        (lambda x: x.astype(int), "int32", ()),
        (lambda x: 1, "int32", ()),
        (lambda x: True, "bool", ()),
        (lambda x: 0.5, "float32", ()),
        (lambda x: np.ones((2, 3)), "float32", (2, 3)),
        (lambda x: jnp.zeros((0, 2)), "float32", (0, 2)),
        (lambda x: x.astype(jnp.bfloat16), "float32", ()),
        (lambda x: x * 1j, "complex64", ()),
    ],
    ids=["bool", "int", "python_int", "python_bool", "python_float", "constant", "empty", "bfloat16", "complex"],
)
def test_metrics_of_all_kinds_of_numbers(metric, dtype, shape, batch_size, tmp_path):
    path = tmp_path / "table.nc"
    found = sweep_silently(lambda x: {"metric": metric(x)}, {"x": [0.0, 1.0, 2.0]}, batch_size=batch_size, file=path)
    assert found["metric"].dtype == dtype
    assert found["metric"].shape == (3, *shape)
    for at in range(3):
        np.testing.assert_array_equal(found["metric"][at], metric(jnp.float32(at)))
    xarray.testing.assert_identical(xarray.load_dataset(path, engine="h5netcdf"), found)


def test_python_numbers_and_arrays_of_one_dtype_are_the_same_metric():
    found = sweep_silently(
        lambda tx, x: {"metric": x * 1.0 if "momentum" in repr(tx) else 1.0},
        {"x": [2.0]},
        {"a": sgd(), "b": sgd(momentum=0.9)},
    )
    assert found["metric"].values.tolist() == [[1.0], [2.0]]


# files


def test_a_file_reads_back_equal_with_its_attributes(tmp_path):
    path = tmp_path / "table.nc"
    found = sweep_silently(train, {"seed": range(2)}, {"α": sgd(0.1)}, metric_dims={"loss": ["step"]}, file=path)
    read = xarray.load_dataset(path, engine="h5netcdf")
    xarray.testing.assert_identical(read, found)
    assert read.attrs == found.attrs
    found.to_netcdf(tmp_path / "again.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "again.nc", engine="h5netcdf"), found)


def test_a_finished_file_is_read(tmp_path, compilations):
    path = tmp_path / "table.nc"
    first = sweep_silently(square, {"x": [1.0, 2.0]}, file=str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["table.nc"]
    written = path.stat().st_mtime_ns
    compilations.clear()
    xarray.testing.assert_identical(sweep_silently(square, {"x": [1.0, 2.0]}, file=path), first)
    assert not compilations
    assert path.stat().st_mtime_ns == written


_CHEAP = {"sgd": lambda learning_rate: sgd(learning_rate), "momentum": VARIANTS["sgd"]}


def interrupt_after(chunks, monkeypatch):
    """Makes a sweep stop as by Ctrl-C when it has run so many chunks."""
    original = Results.add
    count = itertools.count(1)

    def add(self, *args):
        original(self, *args)
        if next(count) == chunks:
            raise KeyboardInterrupt

    monkeypatch.setattr(Results, "add", add)


def note_points(monkeypatch):
    """The points that are computed from here on, with the padding."""
    ran = []
    original = Points.compute
    monkeypatch.setattr(
        Points, "compute", lambda self, indices: ran.append(indices.tolist()) or original(self, indices)
    )
    return ran


@pytest.mark.parametrize("batch_size", [4])
def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, monkeypatch, batch_size):
    monkeypatch.setattr(_sweep_points, "_cores", lambda: 1)  # with more of them, the grid would be a single chunk
    path = tmp_path / "table.nc"
    arguments = {"run": train, "grid": {"learning_rate": [0.1, 0.2, 0.3], "seed": range(2)}, "variants": _CHEAP}
    options = {"chunk_size": 4, "batch_size": batch_size}
    whole = sweep_silently(**arguments, **options)
    for chunks in (1, 2):
        with monkeypatch.context() as patch:
            interrupt_after(chunks, patch)
            with pytest.raises(KeyboardInterrupt):
                sweep_silently(**arguments, **options, file=path)
        assert [file.name for file in tmp_path.iterdir()] == ["table.nc.partial"]
    ran = note_points(monkeypatch)
    found = sweep_silently(**arguments, **options, file=path)
    assert_same_bits(found, whole)
    # First four of the first six points, then the other two and four of the second six: two are left.
    assert [set(chunk) for chunk in ran] == [{4, 5}]
    assert [file.name for file in tmp_path.iterdir()] == ["table.nc"]
    xarray.testing.assert_identical(xarray.load_dataset(path, engine="h5netcdf"), found)


def test_an_interruption_while_writing_leaves_the_results(tmp_path, monkeypatch):
    path, grid = tmp_path / "table.nc", {"x": [1.0, 2.0, 3.0]}
    whole = sweep_silently(square, grid)

    original = h5netcdf.File.create_variable

    def write_half(self, name, *args, **kwargs):
        if list(tmp_path.glob("*.partial")):  # before the first run, it is tried without values
            raise KeyboardInterrupt
        return original(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(h5netcdf.File, "create_variable", write_half)
        with pytest.raises(KeyboardInterrupt):
            sweep_silently(square, grid, file=path)
    assert not path.exists()
    ran = note_points(monkeypatch)
    assert_same_bits(sweep_silently(square, grid, file=path), whole)
    assert not ran
    assert [file.name for file in tmp_path.iterdir()] == ["table.nc"]


_DATA = np.arange(3.0)


def _closed_over(data):
    return lambda x: {"square": jnp.sum(data * x)}


def _closed_over_inside_jit(data):
    inner = jax.jit(lambda x: jnp.sum(data * x))
    return lambda x: {"square": inner(x)}


def _with_rate(rate):
    return {"tx": sgd(rate)}


def _step(tx, x):
    return {"square": tx.update(x, tx.init(x), x)[0]}


def _files(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((square, {"x": [1.0, 2.0]}), (square, {"x": [1.0, 3.0]})),
        ((square, {"x": [1.0, 2.0]}), (square, {"x": [1, 2]})),
        ((square, {"x": [1.0, 2.0]}), (square, {"y": [1.0, 2.0], "x": [1.0]})),
        ((square, {"x": [1.0, 2.0]}), (lambda x: {"square": x * x + 3, "curve": jnp.arange(3) * x}, {"x": [1.0, 2.0]})),
        ((lambda x: {"a": x}, {"x": [1.0, 2.0]}), (lambda x: {"b": x}, {"x": [1.0, 2.0]})),
        ((_closed_over(_DATA), {"x": [1.0, 2.0]}), (_closed_over(_DATA + 1e-6), {"x": [1.0, 2.0]})),
        (
            (_closed_over_inside_jit(_DATA), {"x": [1.0, 2.0]}),
            (_closed_over_inside_jit(_DATA + 1e-6), {"x": [1.0, 2.0]}),
        ),
        ((_step, {"x": [1.0, 2.0]}, _with_rate(0.1)), (_step, {"x": [1.0, 2.0]}, _with_rate(0.2))),
        ((_step, {"x": [1.0, 2.0]}, {"a": sgd()}), (_step, {"x": [1.0, 2.0]}, {"b": sgd()})),
    ],
    ids=["value", "dtype", "axis", "body", "metric", "constant", "constant_inside_jit", "chain", "variant"],
)
def test_a_file_of_another_sweep_is_refused_and_left_alone(one, other, finished, tmp_path, monkeypatch):
    path = tmp_path / "table.nc"
    if finished:
        sweep_silently(*one, file=path)
    else:
        with monkeypatch.context() as patch:
            interrupt_after(1, patch)
            with pytest.raises(KeyboardInterrupt):
                sweep_silently(*one, file=path, chunk_size=1)
    before = _files(tmp_path)
    with pytest.raises(ValueError, match="^sweep: file must be new or hold this sweep"):
        sweep_silently(*other, file=path)
    assert _files(tmp_path) == before


def test_other_random_numbers_are_another_sweep(tmp_path):
    run = lambda seed: {"noise": jax.random.normal(jax.random.key(seed), (3,))}  # noqa: E731
    options = {"grid": {"seed": [0]}, "file": tmp_path / "table.nc"}
    with jax.threefry_partitionable(True):
        sweep_silently(run, **options)
    with jax.threefry_partitionable(False), pytest.raises(ValueError, match="^sweep: file must be new"):
        sweep_silently(run, **options)


def test_another_name_for_a_dimension_is_another_sweep(tmp_path):
    sweep_silently(square, {"x": [1.0]}, file=tmp_path / "table.nc")
    with pytest.raises(ValueError, match="^sweep: file must be new"):
        sweep_silently(square, {"x": [1.0]}, file=tmp_path / "table.nc", metric_dims={"curve": ["step"]})


# devices and hosts


def _start(file, *arguments, devices=1):
    root = pathlib.Path(__file__).parents[3]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.chains.laboratory.sweep_hosts",
        str(file),
        *map(str, arguments),
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True)


def _printed(process):
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])  # gloo prints lines of its own before


def test_eight_devices_give_the_same_bits_as_one(tmp_path):
    path = tmp_path / "table.nc"
    found = _printed(_start(path, devices=8))
    assert found["devices"] == 8
    assert found["results"] == found["again"] == sweep_hosts.results()
    assert found["results"] == sweep_hosts.results(path)  # a file is the same sweep in another process


def test_two_hosts_share_a_grid_and_both_get_all_of_it(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [_start(tmp_path / "table.nc", port, host, 2) for host in range(2)]
    for found in map(_printed, processes):
        assert found["devices"] == 2
        assert found["refused"] == "sweep: data must be the same on all hosts, got others"
        assert found["results"] == found["again"] == sweep_hosts.results()
        assert found["refusal"].startswith("sweep: file must be where it can be written")
    assert [file.name for file in tmp_path.iterdir()] == ["table.nc"]


# bad input


def _chain_run(tx, seed):
    return {"x": 1.0 * seed}


_SEED, _X = {"seed": [0, 1]}, {"x": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((square, {}), {}, ValueError, "grid"),
        ((square,), {}, ValueError, "grid or points must be given"),
        ((square, [1.0]), {}, ValueError, "grid"),
        ((square, {"x": []}), {}, ValueError, "axis 'x' must have one dimension and at least one value"),
        ((square, {"x": np.ones((2, 2))}), {}, ValueError, "axis 'x' must have one dimension"),
        ((square, {"x": [[1.0], [1.0, 2.0]]}), {}, TypeError, "axis 'x' must be a sequence of numbers"),
        ((square, {"x": 1.0}), {}, TypeError, "axis 'x' must be a sequence of numbers"),
        ((square, {"x": ["a", "b"]}), {}, TypeError, "axis 'x' must be numeric"),
        ((square, {"x": [None]}), {}, TypeError, "axis 'x' must be numeric"),
        ((square, {"x": [1j]}), {}, TypeError, "axis 'x' must be numeric"),
        ((square, {"x": [1.0, 2.0, 1.0]}), {}, ValueError, "axis 'x' must have no duplicate values"),
        ((square, {"x": [1.0, 1.0 + 1e-12]}), {}, ValueError, "axis 'x' must have no duplicate values (as float32)"),
        ((square, {"x": [0, 2**40]}), {}, ValueError, "axis 'x' must fit into int32"),
        ((square, {"x": [1e300]}), {}, ValueError, "axis 'x' must fit into float32"),
        (
            (lambda x, variant: {"a": x}, {**_X, "variant": [1]}),
            {},
            ValueError,
            "a hyperparameter must not be called variant",
        ),
        ((lambda x, z: {"a": x}, _X), {}, ValueError, "run must take only axes, got z; the axes are x"),
        ((square, {**_X, "z": [1.0]}), {}, ValueError, "['z'], which neither takes"),
        ((3, _X), {}, TypeError, "run must be"),
        ((_chain_run, _SEED, {}), {}, ValueError, "variants must be None or have at least one"),
        ((_chain_run, _SEED, {"a": 3}), {}, TypeError, "variant 'a' must be a chain or a function"),
        ((_chain_run, _SEED, {"a": lambda: 3}), {}, TypeError, "a variant must be or return a chain"),
        (
            (_chain_run, _SEED, {"a": lambda rate: sgd(rate)}),
            {},
            ValueError,
            "variant 'a' must take only axes, got rate",
        ),
        (
            (_chain_run, {**_SEED, "rate": [0.1]}, {"a": lambda rate: sgd(rate), "b": adam()}),
            {},
            ValueError,
            "variants must all take the same axes, got 'a': rate; 'b': none",
        ),
        (
            (lambda tx, seed: {repr(tx)[8:20]: 1.0}, _SEED, {"a": sgd(), "b": adam()}),
            {},
            ValueError,
            "variants must return the same metrics",
        ),
        (
            (lambda tx, seed: {"m": jnp.zeros(len(tx.links))}, _SEED, {"a": sgd(), "b": adam()}),
            {},
            ValueError,
            "variants must return the same metrics",
        ),
        ((lambda x: x, _X), {}, TypeError, "run must return a dictionary"),
        ((lambda x: {}, _X), {}, TypeError, "run must return a dictionary"),
        ((lambda x: {1: x}, _X), {}, TypeError, "run must return a dictionary"),
        ((lambda x: {"m": "text"}, _X), {}, TypeError, "metric 'm' must be a number"),
        ((lambda x: {"m": None}, _X), {}, TypeError, "metric 'm' must be a number"),
        ((lambda x: {"m": {"n": x}}, _X), {}, TypeError, "metric 'm' must be a number"),
        ((lambda x: {"m": jax.random.key(0)}, _X), {}, TypeError, "metric 'm' must be a number"),
        ((lambda x: {"x": x}, _X), {}, ValueError, "a metric must not be named like an axis"),
        ((lambda x: {"diverged": x}, _X), {}, ValueError, "a metric must not be named like an axis"),
        ((square, _X), {"metric_dims": {"curve": ["a", "b"]}}, ValueError, "metric_dims of 'curve' must name 1"),
        ((square, _X), {"metric_dims": {"curve": "step"}}, ValueError, "metric_dims of 'curve' must name 1"),
        ((square, _X), {"metric_dims": {"curve": "s"}}, ValueError, "must name 1 dimensions in a list, got 's'"),
        ((square, _X), {"metric_dims": {"curve": None}}, ValueError, "metric_dims of 'curve' must name 1"),
        ((square, _X), {"metric_dims": {"curve": [1]}}, ValueError, "metric_dims of 'curve' must name 1"),
        ((square, _X), {"metric_dims": {"curve": [""]}}, ValueError, "metric_dims of 'curve' must name 1"),
        ((square, _X), {"metric_dims": [("curve", ["a"])]}, TypeError, "metric_dims must be a dictionary"),
        ((square, _X), {"file": 3}, TypeError, "file must be a path or None"),
        ((square, _X), {"metric_dims": {"curv": ["a"]}}, ValueError, "metric_dims must name metrics, got ['curv']"),
        (
            (square, _X),
            {"metric_dims": {"curve": ["x"]}},
            ValueError,
            "metric_dims of 'curve' must be unique names",
        ),
        ((square, _X), {"metric_dims": {"curve": ["curve"]}}, ValueError, "metric_dims of 'curve' must be unique"),
        (
            (lambda x: {"a": jnp.ones(2), "b": jnp.ones(3)}, _X),
            {"metric_dims": {"a": ["step"], "b": ["step"]}},
            ValueError,
            "metric_dims must use one name for one length",
        ),
        ((square, _X), {"chunk_size": 0}, ValueError, "chunk_size must be an integer of at least 1"),
        ((square, _X), {"chunk_size": True}, ValueError, "chunk_size must be an integer of at least 1"),
        ((square, _X), {"batch_size": -1}, ValueError, "batch_size must be an integer of at least 1"),
        ((square, _X), {"batch_size": 2.0}, ValueError, "batch_size must be an integer of at least 1"),
        ((square, _X), {"file": "no/such/folder/table.nc"}, ValueError, "file must be in a folder that exists"),
        ((lambda x: {"a/b": x}, _X), {"file": "table.nc"}, ValueError, "names must not contain '/'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(arguments, options, error, message, monkeypatch):
    monkeypatch.setattr(Points, "_compile", lambda *_: pytest.fail("it compiles"))
    with pytest.raises(error) as raised:
        sweep_silently(*arguments, **options)
    assert str(raised.value).startswith("sweep: ")
    assert message in str(raised.value)
