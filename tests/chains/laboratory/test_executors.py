"""An executor's workers compute what this process would have computed, and losing one of them loses nothing."""

import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linkax.chains import adam, sweep
from linkax.chains.laboratory import _executor
from linkax.chains.laboratory._sweep_points import Points

from .sweep_hosts import VARIANTS, train

sweep_silently = functools.partial(sweep, progress=False)
GRID = {"learning_rate": [0.01, 0.1, 0.3], "seed": range(6)}
# A lambda and a schedule in it: neither can be pickled without cloudpickle.
SCHEDULED = {**VARIANTS, "scheduled": lambda learning_rate: adam(lambda step: learning_rate / (1 + step))}


def assert_same_bits(found, expected):
    assert found.sizes == expected.sizes
    for name, values in expected.data_vars.items():
        assert found[name].values.tobytes() == values.values.tobytes(), name


# real ones


def spawned(workers):
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def fragile(killer, x):
    """Squares a number in Python; at 17 it first calls `killer`."""

    def square(x):
        if x == 17:
            killer()
        return np.float32(x * x)

    return {"square": jax.pure_callback(square, jax.ShapeDtypeStruct((), np.float32), x, vmap_method="sequential")}


def kill_once(marker):
    """Kills the process, as kill -9 does, the first time that it is called."""
    if not os.path.exists(marker):
        pathlib.Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_pool_computes_the_same_bits_and_a_broken_one_loses_nothing_that_was_done(tmp_path):
    whole = sweep_silently(train, GRID, SCHEDULED, batch_size=2)
    data = jax.random.normal(jax.random.key(0), (3,))
    x64 = lambda x, seed: {"y": jnp.sum(x * data) / 3, "bits": jax.random.bits(jax.random.key(seed))}  # noqa: E731
    with spawned(1) as pool:
        assert_same_bits(sweep_silently(train, GRID, SCHEDULED, batch_size=2, chunk_size=5, executor=pool), whole)
        with jax.enable_x64(True), jax.default_prng_impl("rbg"):
            grid = {"x": [0.1, 1.3], "seed": range(3)}
            found = sweep_silently(x64, grid, executor=pool)
            assert found["y"].dtype == np.float64
            assert_same_bits(found, sweep_silently(x64, grid))
        run = functools.partial(fragile, functools.partial(kill_once, str(tmp_path / "marker")))
        options = {"chunk_size": 4, "file": tmp_path / "table.nc"}
        with pytest.raises(RuntimeError, match="^sweep: the executor lost .* points from .* on: BrokenProcessPool"):
            sweep_silently(run, {"x": np.arange(40.0)}, **options, executor=pool)
    found = sweep_silently(run, {"x": np.arange(40.0)}, **options)
    np.testing.assert_array_equal(found["square"], np.arange(40.0) ** 2)


# Dask's own threads and sockets are closed by the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_dask_goes_on_when_a_worker_is_killed(tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    run = functools.partial(fragile, functools.partial(kill_once, str(tmp_path / "marker")))
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        variants = {"scheduled": SCHEDULED["scheduled"]}
        found = sweep_silently(train, GRID, variants, executor=client.get_executor())
        assert_same_bits(found, sweep_silently(train, GRID, variants))
        points = {"x": np.arange(40.0)}
        found = sweep_silently(run, points=points, chunk_size=2, executor=client.get_executor())
    assert (tmp_path / "marker").exists()
    np.testing.assert_array_equal(found["square"], np.arange(40.0) ** 2)
    assert not found["failed"].any()


def test_submitit_runs_chunks_as_jobs(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[3]))
    executor = submitit.LocalExecutor(tmp_path)
    executor.update_parameters(timeout_min=5)
    grid, variants = {"learning_rate": [0.1, 0.3], "seed": range(2)}, {"sgd": VARIANTS["sgd"]}
    found = sweep_silently(train, grid, variants, chunk_size=2, executor=executor)
    assert_same_bits(found, sweep_silently(train, grid, variants))


# pretended ones


class Pretended:
    """An executor that calls what it gets when it is asked whether that is done, and remembers how it was used.

    `lose` says for a call's points whether their worker is lost; with `forgets`, each call has a process of its own.
    """

    def __init__(self, lose=lambda indices: False, forgets=False):
        self.lose, self.forgets = lose, forgets
        self.brought, self.under_way, self.most, self.canceled = [], 0, 0, 0
        self.lengths = []

    def submit(self, function, key, work, variant, indices, count):
        self.brought.append(work is not None)
        self.lengths.append(len(indices))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return Job(self, lambda: function(key, work, variant, indices, count), indices)


class Job:
    def __init__(self, executor, call, indices):
        self.executor, self.call, self.indices = executor, call, indices

    def done(self):
        return True

    def result(self):
        self.executor.under_way -= 1
        if self.executor.lose(self.indices):
            raise OSError("no answer")
        if self.executor.forgets:
            _executor._workers.clear()
        return self.call()

    def cancel(self):
        self.executor.canceled += 1


def square(x):
    return {"square": x * x}


def test_few_chunks_are_under_way_however_many_there_are():
    executor = Pretended()
    found = sweep_silently(square, {"x": np.arange(500.0)}, chunk_size=1, executor=executor)
    np.testing.assert_array_equal(found["square"], np.arange(500.0) ** 2)
    assert executor.most == 34  # 32, and two for the only worker
    sizes = Pretended()
    sweep_silently(square, {"x": np.arange(2000.0)}, executor=sizes)
    assert len(sizes.brought) == 250  # chunks of eight points: 256 would be too few by a bit


def test_chunks_are_whole_batches_as_soon_as_a_worker_has_answered():
    executor = Pretended()
    found = sweep_silently(square, {"x": np.arange(100.0)}, chunk_size=1, batch_size=4, executor=executor)
    np.testing.assert_array_equal(found["square"], np.arange(100.0) ** 2)
    assert executor.lengths == [1] * 32 + [4] * 17


@pytest.mark.parametrize("forgets", [False, True])
def test_much_work_travels_only_to_workers_that_do_not_know_it(forgets, monkeypatch):
    monkeypatch.setattr(_executor, "SMALL", 10)
    _executor._workers.clear()
    executor = Pretended(forgets=forgets)
    found = sweep_silently(square, {"x": np.arange(40.0)}, chunk_size=1, executor=executor)
    np.testing.assert_array_equal(found["square"], np.arange(40.0) ** 2)
    assert sum(executor.brought) == (40 if forgets else 4)
    # A worker that comes later asks for it.
    grid, count = {"x": np.arange(40.0)}, []

    def forget_once(indices):
        count.append(None)
        if len(count) == 20:
            _executor._workers.clear()
        return False

    if not forgets:
        executor = Pretended(lose=forget_once)
        found = sweep_silently(square, grid, chunk_size=1, executor=executor)
        np.testing.assert_array_equal(found["square"], np.arange(40.0) ** 2)
        # The first four, and those under way when it was forgotten: six, as there may be.
        assert 4 < sum(executor.brought) <= 4 + 6


def test_a_lost_worker_is_no_points_fault_unless_it_is_lost_again():
    count = []

    def lose(indices):
        count.append(len(indices))
        return len(count) == 3 or 7 in indices

    with pytest.warns(RuntimeWarning, match="1 of 20 points failed, .*its worker was lost twice: OSError: no answer"):
        found = sweep_silently(square, {"x": np.arange(20.0)}, chunk_size=4, executor=Pretended(lose))
    assert found["x"][found["failed"].values].values.tolist() == [7.0]
    np.testing.assert_array_equal(found["square"].dropna("x"), np.delete(np.arange(20.0), 7) ** 2)


@pytest.mark.parametrize(
    ("lose", "on_error"), [(lambda indices: True, "record"), (lambda indices: 7 in indices, "raise")]
)
def test_an_executor_without_any_worker_that_answers_is_an_error_and_the_rest_is_canceled(lose, on_error):
    executor = Pretended(lose)
    with pytest.raises(RuntimeError, match="^sweep: the executor lost 1 points from . on: OSError: no answer"):
        sweep_silently(square, {"x": np.arange(20.0)}, chunk_size=1, executor=executor, on_error=on_error)
    assert executor.canceled > 0
    assert executor.canceled == executor.under_way


def test_interrupting_cancels_what_is_under_way(monkeypatch):
    executor = Pretended()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("linkax.chains.laboratory._results.Results.add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep_silently(square, {"x": np.arange(20.0)}, chunk_size=1, executor=executor)
    assert executor.canceled > 0
    assert executor.canceled == executor.under_way


def _fails_at(bad):
    def run(x):
        def call(x):
            if x == bad:
                raise ValueError("not this one")
            return np.float32(x)

        return {"y": jax.pure_callback(call, jax.ShapeDtypeStruct((), np.float32), x, vmap_method="sequential")}

    return run


def test_points_fail_alone_in_workers_too():
    with pytest.warns(RuntimeWarning, match="1 of 12 points failed"):
        found = sweep_silently(_fails_at(5.0), {"x": np.arange(12.0)}, chunk_size=6, executor=Pretended())
    assert found["x"][found["failed"].values].values.tolist() == [5.0]
    assert "ValueError: not this one" in found.attrs["errors"]
    with pytest.raises(RuntimeError, match="^sweep: worker .*: ValueError: not this one"):
        sweep_silently(_fails_at(5.0), {"x": np.arange(12.0)}, executor=Pretended(), on_error="raise")


def test_data_of_64_bits_reach_a_worker_as_they_are():
    data, grid = np.array([1 / 3, 2**53 + 2.0]), {"x": [1e-300, 1.0]}
    run = lambda x, data: {"y": x * data}  # noqa: E731
    with jax.enable_x64(True):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # its thread has the settings of the whole process
            found = sweep_silently(run, grid, data=data, executor=pool)
        assert_same_bits(found, sweep_silently(run, grid, data=data))


def test_a_worker_with_another_computation_is_refused(monkeypatch):
    class Other(Points):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.fingerprint = "another"

    monkeypatch.setattr("linkax.chains.laboratory._executor.Points", Other)
    with pytest.raises(RuntimeError, match="variant '' is another computation here"):
        sweep_silently(lambda x: {"y": x + 1}, {"x": [1.0]}, executor=Pretended())


def test_bad_executors_are_refused():
    with pytest.raises(TypeError, match="^sweep: executor must have a method submit, .*, got 3"):
        sweep_silently(square, {"x": [1.0]}, executor=3)
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with pytest.raises(ValueError, match="^sweep: executor must not fork its processes"):
        sweep_silently(square, {"x": [1.0]}, executor=pool)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        lock = threading.Lock()
        with pytest.raises(TypeError, match="^sweep: run, the variants and data must be such that cloudpickle"):
            sweep_silently(lambda x: {"square": x, "free": not lock.locked()}, {"x": [1.0]}, executor=pool)
        found = sweep_silently(square, {"x": np.arange(9.0)}, chunk_size=1, executor=pool)
    np.testing.assert_array_equal(found["square"], np.arange(9.0) ** 2)
