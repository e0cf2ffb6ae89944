"""Files of a sweep outlast kills, full disks, damage and each other; what is in a table was computed."""

import contextlib
import errno
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray

from linkax.chains import sweep
from linkax.chains.laboratory import _lock, _zarr
from linkax.chains.laboratory._blocks import MOST_BLOCKS, blocks_for
from linkax.chains.laboratory._results import Results, finished
from linkax.chains.laboratory._sweep_points import Points

from . import tables
from .tables import check, fill, layout, run

NAMES = ("table.nc", "table.zarr")
both = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def without_sync(monkeypatch):
    """Makes nothing durable, which takes most of the time of a small file."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def interrupted(file, chunks=4, **options):
    """Leaves the file of a sweep that was stopped after some chunks of five points."""
    with Results(layout(**options), file) as results:
        for _ in zip(range(chunks), fill(results)):
            pass


# blocks


@pytest.mark.parametrize("shape", [(5,), (3, 4, 5), (1, 7, 1), (2, 3, 1, 4), (1000, 7), (13, 1, 1), (1, 1)])
@pytest.mark.parametrize("points", [1, 2, 3, 8, 20, 59, 10**6])
def test_blocks_are_ranges_and_rectangles(shape, points):
    blocks = blocks_for(shape, points, 1)
    flat = np.arange(np.prod(shape))
    seen = []
    for number in range(len(blocks)):
        range_ = np.arange(*blocks.range(number))
        np.testing.assert_array_equal(flat.reshape(shape)[blocks.region(number)].ravel(), range_)
        assert set(blocks.of(range_)) == {number}
        assert len(range_) <= max(points, -(-len(flat) // MOST_BLOCKS))
        seen += range_.tolist()
    assert seen == flat.tolist()


@pytest.mark.parametrize("points", [1, 16, 62_500, 10**6])
def test_a_million_points_are_not_a_million_files(points):
    # At most twice as many as there should be: blocks are rectangles, which do not have all sizes.
    assert len(blocks_for((100, 100, 100), points, 4)) <= 2 * MOST_BLOCKS
    blocks = blocks_for((100, 100, 100), points, 40_000)  # curves of 10,000 steps
    assert np.diff(blocks.range(0)) * 40_000 <= 2**26


# results


@both
@pytest.mark.parametrize("sizes", [(5,), (1, 7, 2), (24,)])
def test_results_in_files_are_those_in_memory(name, sizes, tmp_path, without_sync):
    memory = run(None, sizes)
    check(memory)
    found = run(tmp_path / name, sizes)
    check(found)
    xarray.testing.assert_identical(found.load(), memory)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert list(found.sizes) == list(memory.sizes)
    assert list(found.variables) == list(memory.variables)
    again = finished(tmp_path / name, layout())
    assert again is not None
    xarray.testing.assert_identical(again.load(), memory)
    found.to_netcdf(tmp_path / "again.nc", engine="h5netcdf")  # the settings of one format do not disturb the other
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "again.nc", engine="h5netcdf"), memory)


def test_a_table_from_zarr_is_read_when_it_is_used(tmp_path):
    found = run(tmp_path / "table.zarr")
    assert not found["loss"].variable._in_memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_zarr.WholeStore, "get", lambda *_: pytest.fail("it reads"))
        found.isel(variant=0)
    check(xarray.open_zarr(tmp_path / "table.zarr"))  # without any warning
    shutil.rmtree(tmp_path / "table.zarr" / "loss")
    with pytest.raises(FileNotFoundError, match="is missing"):
        found["loss"].load()


def test_points_may_come_in_any_order_and_more_than_once(tmp_path, without_sync):
    rng = np.random.default_rng(0)
    with Results(layout(), tmp_path / "table.zarr") as results:
        for variant in tables.VARIANTS:
            order = rng.permutation(np.r_[np.arange(tables.SIZE), rng.integers(tables.SIZE, size=9)])
            for indices in np.array_split(order, 7):
                results.add(variant, indices, tables.values(variant, indices))
        check(results.finish())


@both
def test_the_partial_file_is_a_table_that_xarray_reads(name, tmp_path, without_sync):
    interrupted(tmp_path / name)
    table = xarray.open_zarr(tmp_path / (name + ".partial"))
    done = table["status"].values == 1
    assert done.sum() == 20
    for metric, array in tables.expected().items():
        if metric != "failed":
            np.testing.assert_array_equal(table[metric].values[done], array[done])
    assert np.isnan(table["loss"].values[~done]).all()


def test_chunks_of_another_size_fit_into_the_blocks_of_the_first(tmp_path, without_sync):
    interrupted(tmp_path / "table.zarr", chunks=2)
    with Results(layout(), tmp_path / "table.zarr") as results:
        assert results.left("adam").tolist() == list(range(10, 24))
        assert results.left("sgd").tolist() == list(range(24))
        for _ in fill(results, (1, 11)):
            pass
        check(results.finish())


def test_each_value_is_written_once(tmp_path, monkeypatch):
    written = []
    replace = _zarr.replace
    monkeypatch.setattr(_zarr, "replace", lambda path, data: written.append(path) or replace(path, data))
    run(tmp_path / "table.zarr", sizes=(4,))
    chunks = [path for path in written if path.name.startswith("c.")]
    assert len(chunks) == len(set(chunks))
    assert sum(path.parent.name == "loss" for path in chunks) == 2 * 24 // 4


def test_a_file_is_durable_before_it_has_its_name_and_metrics_before_their_status(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, pathlib.Path.replace

    def note_sync(descriptor):
        events.append(("sync", pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def note_name(self, target):
        events.append(("name", target))
        assert ("sync", self) in events
        return replace(self, target)

    with Results(layout(), tmp_path / "table.nc") as results:
        chunks = fill(results)
        next(chunks)
        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(pathlib.Path, "replace", note_name)
        next(chunks)
    names = [path.parent.name for kind, path in events if kind == "name"]
    assert names[-1] == "status"
    first = next(at for at, (kind, path) in enumerate(events) if kind == "name" and path.parent.name == "status")
    for metric in ("loss", "steps", "diverged"):
        assert ("sync", tmp_path / "table.nc.partial" / metric) in events[:first]
    assert events[-1][0] == "sync"


# points that failed


@both
def test_failed_points_are_empty_and_are_run_again(name, tmp_path, without_sync):
    errors = {3: "out of memory", 7: "broken"}
    listed = [
        {"variant": "adam", "rate": 0.0, "seed": 3, "error": "out of memory"},
        {"variant": "adam", "rate": float(np.float32(0.2)), "seed": 3, "error": "broken"},
    ]

    def with_errors(file):
        with Results(layout(), file) as results:
            for variant in tables.VARIANTS:
                indices = results.left(variant)
                metrics = tables.values(variant, indices)
                results.add(variant, indices, metrics, errors if variant == "adam" else None)
            assert results.left("adam").tolist() == [3, 7]
            return results.finish()

    for table in (with_errors(None), with_errors(tmp_path / name)):
        check(table, failed=[3, 7])
        assert json.loads(table.attrs["errors"]) == listed
    for chunks in (1, 2):
        assert finished(tmp_path / name, layout()) is None
        with Results(layout(), tmp_path / name) as results:
            assert results.left("adam").tolist() == [3, 7][chunks - 1 :]
            assert not len(results.left("sgd"))
            next(fill(results, [1]))
            if chunks == 2:
                table = results.finish()
    check(table)
    assert table.attrs["errors"] == "[]"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_point_needs_no_metrics(tmp_path, without_sync):
    with Results(layout(), tmp_path / "table.zarr") as results:
        results.add("adam", np.arange(2), {}, {0: "a", 1: "b"})
        assert results.left("adam").tolist() == list(range(24))
        for _ in fill(results):
            pass
        check(results.finish())


# parts of a table


@both
@pytest.mark.parametrize("are_ranges", [True, False])
def test_the_points_of_other_files_are_added(name, are_ranges, tmp_path, without_sync):
    parts = [tmp_path / f"{at}{name}" for at in range(3)]
    for at, part in enumerate(parts):
        with Results(layout(), part) as results:
            for variant in tables.VARIANTS:
                indices = np.arange(8 * at, 8 * at + 8) if are_ranges else np.arange(at, tables.SIZE, 3)
                results.add(
                    variant, indices, tables.values(variant, indices), {10: "broken"} if 10 in indices else None
                )
            if at < 2:
                assert int((results.finish().load()["status"] == 0).sum()) == 32
    with Results(layout(), tmp_path / name) as results:
        for at, part in enumerate(parts):
            other = part if at < 2 else part.with_name(part.name + ".partial")
            assert results.absorb(other) == []
        assert results.left("adam").tolist() == results.left("sgd").tolist() == [10]
        results.add("sgd", np.array([10]), tables.values("sgd", [10]))
        found = results.finish()
    check(found, failed=[10])
    assert json.loads(found.attrs["errors"])[0]["error"] == "broken"


# damage


def _damage(path, rng):
    """Changes a byte of a file, or cuts it off."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    if rng.random() < 0.7:
        data[at] ^= rng.randrange(1, 256)
    else:
        del data[at:]
    path.write_bytes(data)


def test_damage_of_a_partial_file_is_noticed_and_its_points_are_run_again(tmp_path, without_sync, recwarn):
    rng = random.Random(0)
    interrupted(tmp_path / "whole.nc", chunks=3)
    files = sorted(path for path in (tmp_path / "whole.nc.partial").rglob("*") if path.is_file())
    for at, damaged in enumerate(rng.sample(files, 10)):
        partial = tmp_path / f"{at}.nc.partial"
        shutil.copytree(tmp_path / "whole.nc.partial", partial)
        relative = damaged.relative_to(tmp_path / "whole.nc.partial")
        _damage(partial / relative, rng)
        warnings.simplefilter("always")
        recwarn.clear()
        with Results(layout(), tmp_path / f"{at}.nc") as results:
            left = len(results.left("adam"))
            for _ in fill(results, [24]):
                pass
            check(results.finish())
        if relative.name.startswith("c."):  # of the other files, not every byte matters
            assert left > 24 - 15
            assert relative.as_posix() in str(recwarn.list[0].message)


@both
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # HDF5's, when it closes damaged files
def test_damage_of_a_finished_file_is_an_error_and_the_rest_can_be_kept(name, tmp_path, without_sync, recwarn):
    rng = random.Random(0)
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole / name)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    files = rng.sample(files, 10) if name == "table.zarr" else files * 25
    noticed = kept = 0
    for at, damaged in enumerate(files):
        copy = tmp_path / f"{at}"
        shutil.copytree(whole, copy)
        _damage(copy / damaged, rng)
        file = copy / name
        try:
            found, message = finished(file, layout()), ""
        except ValueError as error:
            found, message = None, str(error)
        if found is not None:
            check(found.load())
            assert layout().describes(found.attrs)
            continue
        assert message.startswith("sweep: file must be")
        assert str(file) in message
        noticed += 1
        if "points are intact" in message and kept < 4:
            kept += 1
            file.rename(file.with_name(name + ".damaged"))
            warnings.simplefilter("always")
            recwarn.clear()
            with Results(layout(), file) as results:
                assert any("is damaged" in str(found.message) for found in recwarn.list)
                for _ in fill(results, [24]):
                    pass
                check(results.finish())
            assert [path.name for path in copy.iterdir()] == [name]
    assert noticed > len(files) / 2
    assert kept


def test_what_is_intact_is_counted(tmp_path, without_sync):
    run(tmp_path / "table.zarr")
    chunk = next((tmp_path / "table.zarr" / "loss").glob("c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(ValueError, match="which is damaged: loss at .* to .*; 44 of 48 points are intact"):
        finished(tmp_path / "table.zarr", layout())


def test_an_empty_metric_is_no_damage(tmp_path, without_sync, recwarn, monkeypatch):
    def run(x):
        return {"empty": jnp.zeros((3, 0)) * x, "square": x * x}

    add = Results.add

    def add_and_stop(*arguments):
        add(*arguments)
        raise InterruptedError

    options = {"points": {"x": np.arange(9.0)}, "chunk_size": 4, "file": tmp_path / "table.zarr", "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", add_and_stop)
        with pytest.raises(InterruptedError):
            sweep(run, **options)
    found = sweep(run, **options)
    assert found["empty"].shape == (9, 3, 0)
    assert found["square"].values.tolist() == [x * x for x in range(9)]
    assert not recwarn.list


def test_a_lost_chunk_is_damage(tmp_path, without_sync):
    interrupted(tmp_path / "table.nc")
    (tmp_path / "table.nc.partial" / "steps" / "c.0.0.0").unlink()
    with pytest.warns(UserWarning, match=r"steps/c.0.0.0 .*is missing.*; 16 of 48 points are intact"):
        results = Results(layout(), tmp_path / "table.nc")
    with results:
        assert results.left("adam").tolist() == [0, 1, 2, 3, 20, 21, 22, 23]


def test_damage_while_the_sweep_runs_is_an_error(tmp_path, without_sync):
    chunk = tmp_path / "table.nc.partial" / "loss" / "c.0.0.0.0"

    def damage_and(then):
        with Results(layout(), tmp_path / "table.nc") as results:
            for at, _ in enumerate(fill(results)):
                if at == 0:
                    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
                    then(results)

    with pytest.raises(ValueError, match="^sweep: .*c.0.0.0.0.* has been damaged .* call sweep again"):
        damage_and(lambda results: results.add("adam", np.arange(2), tables.values("adam", np.arange(2))))
    with (
        pytest.warns(UserWarning, match="are intact, the others are run again"),
        pytest.raises(ValueError, match="^sweep: .*c.0.0.0.0.* has been damaged"),
    ):
        damage_and(lambda results: results.finish())
    with pytest.warns(UserWarning, match="are intact, the others are run again"):
        check(run(tmp_path / "table.nc"))


def test_a_kill_between_the_last_two_steps_leaves_no_partial_file(tmp_path, without_sync):
    with Results(layout(), tmp_path / "table.nc") as results:
        for _ in fill(results):
            pass
        shutil.copytree(tmp_path / "table.nc.partial", tmp_path / "kept")
        results.finish()
    (tmp_path / "table.nc.lock").write_text(_owner(start=1.0))
    assert finished(tmp_path / "table.nc", layout()) is not None
    assert not (tmp_path / "table.nc.lock").exists()
    (tmp_path / "kept").rename(tmp_path / "table.nc.partial")
    assert finished(tmp_path / "table.nc", layout()) is None
    with Results(layout(), tmp_path / "table.nc") as results:
        assert not len(results.left("adam"))
        check(results.finish())
    assert [path.name for path in tmp_path.iterdir()] == ["table.nc"]


# locks


def _owner(**changes):
    return json.dumps({"process": os.getpid(), "start": _lock._start(os.getpid()), **_lock._this_host(), **changes})


def test_a_file_in_use_is_refused(tmp_path):
    with Results(layout(), tmp_path / "table.nc"):
        with pytest.raises(ValueError, match=f"which process {os.getpid()} on .*; if that process is gone, remove"):
            Results(layout(), tmp_path / "table.nc")
        with Results(layout(), tmp_path / "other.nc"):
            pass
    with Results(layout(), tmp_path / "table.nc"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({}, True),
        ({"start": 1.0}, False),  # another process had this number before
        ({"process": 2**22 + 1}, False),  # Linux has no such process
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "boot": "another"}, True),
        ({"boot": "before"}, False),
        ({"machine": "another", "boot": "another"}, True),
        ({"processes": "pid:[1]"}, True),  # a container counts its own
    ],
)
def test_the_lock_of_a_dead_process_is_taken_over(changes, is_refused, tmp_path):
    lock = tmp_path / "table.nc.lock"
    lock.write_text(_owner(**changes))
    if is_refused:
        with pytest.raises(ValueError, match="^sweep: file must not be in use by another sweep"):
            Results(layout(), tmp_path / "table.nc")
        assert lock.read_text() == _owner(**changes)
    else:
        with Results(layout(), tmp_path / "table.nc"):
            assert lock.read_text() == _owner()
        assert not lock.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_lock_that_says_nothing_is_respected(text, tmp_path):
    (tmp_path / "table.nc.lock").write_text(text)
    with pytest.raises(ValueError, match="only just started"):
        Results(layout(), tmp_path / "table.nc")


def test_an_error_frees_the_file(tmp_path, without_sync):
    interrupted(tmp_path / "table.nc")
    with pytest.raises(ValueError, match="must be new or hold this sweep"):
        Results(layout(fingerprint="e" * 64), tmp_path / "table.nc")
    with pytest.raises(ZeroDivisionError), Results(layout(), tmp_path / "table.nc"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["table.nc.partial"]


# full disks


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@both
def test_a_disk_that_becomes_full_keeps_what_is_done(name, small_disk):
    with Results(layout(), small_disk / name) as results:
        chunks = fill(results)
        next(chunks)
        with pytest.raises(OSError, match=r"^sweep: file must be where there is room, got .* needs 3.0 MiB"):
            results.reserve(2**20 * 3 // layout().bytes_per_point + 1)
        with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"0" * 4096)
        with pytest.raises(OSError, match="^sweep: file must be where it can be written.*No space left.*what is done"):
            for _ in chunks:
                pass
    assert not list(small_disk.rglob("*.new"))
    (small_disk / "filler").unlink()
    with Results(layout(), small_disk / name) as results:
        assert len(results.left("adam")) < 24
        for _ in fill(results):
            pass
        check(results.finish())
    assert [path.name for path in small_disk.iterdir()] == [name]


@contextlib.contextmanager
def _file_size_limit(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_of_the_size_of_files_is_found_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Points, "_compile", lambda *_: pytest.fail("it compiles"))
    run = lambda x: {"curve": x * jnp.ones(1000)}  # noqa: E731
    with _file_size_limit(100_000), pytest.raises(OSError, match=r"0.1 MiB, got .*, which will have 0.4 MiB"):
        sweep(run, {"x": np.arange(100.0)}, file=tmp_path / "table.nc", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_share_needs_room_only_for_its_own_points(tmp_path):
    run = lambda x: {"curve": x * jnp.ones(10_000)}  # noqa: E731
    with _file_size_limit(2**20):  # the whole table has 4 MB, and a share 0.4
        found = sweep(run, {"x": np.arange(100.0)}, file=tmp_path / "table.nc", share=(3, 10), progress=False)
    assert int(found["curve"].notnull().all("curve_0").sum()) == 10


def test_a_limit_of_the_size_of_files_keeps_what_is_done(tmp_path, without_sync):
    interrupted(tmp_path / "table.zarr")
    with Results(layout(), tmp_path / "table.zarr") as results:
        with _file_size_limit(10), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            next(fill(results))
        assert not list(tmp_path.rglob("*.new"))
        for _ in fill(results):
            pass
        check(results.finish())


@pytest.mark.parametrize("missing", [28, 2**20])
def test_a_disk_without_room_is_found_before_the_first_run(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(Points, "_compile", lambda *_: pytest.fail("it compiles"))
    free = shutil._ntuple_diskusage(2**30, 0, 700 + 700 - missing)  # 100 points of 7 bytes, twice
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(OSError, match="^sweep: file must be where there is room"):
        sweep(lambda x: {"y": x}, {"x": np.arange(100.0)}, file=tmp_path / "table.nc", progress=False)


def test_a_place_that_cannot_be_written_is_found_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Points, "_compile", lambda *_: pytest.fail("it compiles"))
    folder = pathlib.Path("/proc/self")  # root may write everywhere else
    with pytest.raises(OSError, match="^sweep: file must be where it can be written, got '/proc/self/table.nc'"):
        sweep(lambda x: {"y": x}, {"x": [1.0]}, file=folder / "table.nc", progress=False)


@both
def test_names_that_a_file_cannot_hold_are_found_before_the_first_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Points, "_compile", lambda *_: pytest.fail("it compiles"))
    with pytest.raises(ValueError, match="^sweep: file must be able to hold the table"):
        sweep(lambda x: {"..": x}, {"x": [1.0]}, file=tmp_path / name, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", ["hidden", "without text", "null", "dimensions"])
def test_what_netcdf_cannot_hold_is_found_before_the_first_run(case, tmp_path, monkeypatch):
    monkeypatch.setattr(Points, "_compile", lambda *_: pytest.fail("it compiles"))
    curve = lambda tx, x: {"curve": x * jnp.ones(2)}  # noqa: E731
    arguments, dims = {
        "hidden": ((lambda tx, x: {"_nc4_non_coord_y": x}, "a"), {}),  # NetCDF's own prefix, which readers leave out
        "without text": ((curve, "a"), {"curve": [""]}),
        "null": ((curve, "a\0b"), {}),
        "dimensions": ((lambda tx, x: {"y": x * jnp.ones([1] * 31)}, "a"), {}),  # HDF5 has chunks of up to 32
    }[case]
    run, name = arguments
    options = {"metric_dims": dims, "file": tmp_path / "table.nc", "progress": False}
    with pytest.raises(ValueError, match="^sweep: (file must be able to hold the table|metric_dims)"):
        sweep(run, {"x": [1.0]}, {name: optax.sgd(0.1)}, **options)
    assert not list(tmp_path.iterdir())


# Ctrl-C


def _square(x):
    return {"square": x * x}


def _interrupting(monkeypatch, times):
    original, ran = Points.compute, []

    def compute(self, indices):
        ran.append(len(indices))
        if len(ran) == 2:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return original(self, indices)

    monkeypatch.setattr(Points, "compute", compute)


@both
@pytest.mark.parametrize("times", [1, 2])
def test_the_first_interrupt_saves_the_running_chunk(name, times, tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGINT)
    sweep_it = lambda: sweep(_square, {"x": np.arange(8.0)}, file=tmp_path / name, chunk_size=1, progress=False)  # noqa: E731
    monkeypatch.setattr("linkax.chains.laboratory._sweep_points._cores", lambda: 1)
    with monkeypatch.context() as patch:
        _interrupting(patch, times)
        with pytest.raises(KeyboardInterrupt):
            sweep_it()
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
    with xarray.open_zarr(tmp_path / (name + ".partial"), chunks=None) as partial:
        assert int(partial["status"].sum()) == (2 if times == 1 else 1)
    np.testing.assert_array_equal(sweep_it()["square"], np.arange(8.0) ** 2)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_without_a_file_an_interrupt_acts_at_once(monkeypatch, capsys):
    _interrupting(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        sweep(_square, {"x": np.arange(8.0)}, chunk_size=1, progress=False)
    assert capsys.readouterr().err == ""


# many processes


def test_kills_lose_at_most_a_chunk_and_one_of_many_wins(tmp_path):
    root = pathlib.Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.chains.laboratory.kills", str(tmp_path)]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    for name in NAMES:
        assert report[name] == {"kills": 5, "lost": 0, "left": [name]}
    assert len(report["at once"]) == 8
    for answers in report["at once"]:
        assert answers.count("won\n") == 1, answers
        assert all(answer == "won\n" or answer.startswith("sweep: file must not be in use") for answer in answers)
