"""Chunks of a sweep computed by the workers of an executor: other processes, a Dask cluster, MPI, Slurm."""

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import socket
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from ._failures import Computed, divide, failed, message_of
from ._sweep_points import Points

# The settings of JAX that change what is computed; a worker computes under those of the process that called `sweep`.
SETTINGS = (
    "enable_x64",
    "default_prng_impl",
    "default_matmul_precision",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "threefry_partitionable",
    "softmax_custom_jvp",
    "debug_nans",
    "debug_infs",
)
SMALL = 2**20  # bytes of work that may travel with every chunk
CHUNKS = 256  # of a variant, if chunk_size is None: enough for a hundred workers, few enough to cost nothing
KEPT = 4  # sweeps that a worker remembers


class Executor(Protocol):
    """What `sweep` needs of an executor; its futures need `done`, `result` and `cancel`."""

    def submit(self, function: Any, /, *args: Any) -> Any:
        """Starts the function on some worker and returns a future."""


class Work(NamedTuple):
    """What a worker must know to compute any chunk of a sweep."""

    arguments: bytes  # of `Points`, for each variant, pickled: data are laid out under the settings
    fingerprints: Mapping[str, str]
    settings: Mapping[str, Any]
    size: int  # of the design
    chunk_size: int
    batch_size: int | None
    on_error: str


class Chunk(NamedTuple):
    """Points that one worker computes in one go."""

    variant: str
    indices: np.ndarray
    brings_work: bool = False
    was_lost: bool = False


class Reply(NamedTuple):
    """What a worker answers. Errors travel as text, because not every exception survives the journey."""

    worker: str
    knew: bool  # whether it remembered the work
    length: int = 0  # of a chunk of whole batches on its devices
    computed: Computed | None = None
    error: str = ""


def check_executor(executor: Any) -> None:
    """Refuses what has no `submit`, and processes that would be forked from this one."""
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(f"sweep: executor must have a method submit, as in concurrent.futures, got {executor!r}")
    context = getattr(executor, "_mp_context", None)  # of a ProcessPoolExecutor
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "sweep: executor must not fork its processes, because JAX has threads and a forked process may hang; "
            'use ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))'
        )
    if jax.process_count() > 1:
        raise ValueError(
            "sweep: executor must be None if several processes have called jax.distributed.initialize, which share the "
            f"points themselves; got {executor!r}"
        )


def computed_by(
    executor: Executor,
    arguments: Mapping[str, tuple],
    runs: Mapping[str, Points],
    left: Mapping[str, np.ndarray],
    size: int,
    chunk_size: int | None,
    batch_size: int | None,
    on_error: str,
) -> Generator[tuple[str, np.ndarray, Computed]]:
    """The chunks of every variant, in the order in which the workers return them.

    No more chunks are under way than keep the workers busy that have answered so far, and a few. The work travels with
    the first chunks, until one comes back from a worker that knew it already; from then on it travels only to workers
    that ask. Where every chunk has its own process, as in a job of Slurm, it travels with each.
    """
    import cloudpickle

    length = chunk_size or max(-(-size // CHUNKS), os.cpu_count() or 1)
    work = cloudpickle.dumps(
        Work(
            _pickled(arguments),
            {name: points.fingerprint for name, points in runs.items()},
            {name: getattr(jax.config, f"jax_{name}") for name in SETTINGS},
            size,
            length,
            batch_size,
            on_error,
        )
    )
    key = hashlib.sha256(work).hexdigest()

    def chunks() -> Iterator[Chunk]:
        for name, indices in left.items():
            while len(indices):
                first, indices = indices[:length], indices[length:]  # before the length may change
                yield Chunk(name, first)

    waiting = chunks()
    under_way: dict[Any, Chunk] = {}
    count, workers, is_known = itertools.count(), set(), False
    try:
        while True:
            while len(under_way) < (32 if len(work) <= SMALL else 4) + 2 * len(workers):
                chunk = next(waiting, None)
                if chunk is None:
                    break
                brings = chunk.brings_work or not is_known or len(work) <= SMALL
                # The count makes each call another one: Dask would answer the same call with the same future.
                call = key, work if brings else None, chunk.variant, chunk.indices, next(count)
                under_way[executor.submit(compute_chunk, *call)] = chunk
            if not under_way:
                return
            again = []
            for future in _finished(under_way):
                chunk = under_way.pop(future)
                try:
                    reply: Reply = future.result()
                except Exception as error:
                    divided, computed = _lost(chunk, error, bool(workers), runs[chunk.variant], on_error)
                    again += divided
                else:
                    if reply.error:
                        raise RuntimeError(f"sweep: worker {reply.worker} failed: {reply.error}")
                    workers.add(reply.worker)
                    is_known |= reply.knew
                    length = max(length, reply.length)  # a worker fills up a shorter one
                    computed = reply.computed
                    if computed is None:
                        again.append(chunk._replace(brings_work=True))
                if computed is not None:
                    yield chunk.variant, chunk.indices, computed
            waiting = itertools.chain(again, waiting)
    finally:
        for future in under_way:
            future.cancel()


def _pickled(arguments: Mapping[str, tuple]) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps(arguments)
    except Exception as error:  # whatever the objects raise that are in it
        raise TypeError(
            "sweep: run, the variants and data must be such that cloudpickle can send them to the workers of an "
            f"executor, got some that it cannot: {error}"
        ) from error


def _finished(under_way: Mapping[Any, Chunk]) -> list[Any]:
    """The futures that are done, as soon as there is one. Those of submitit can only be asked."""
    pause = 0.001
    while not (done := [future for future in under_way if future.done()]):
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
    return done


def _lost(
    chunk: Chunk, error: Exception, has_worked: bool, points: Points, on_error: str
) -> tuple[list[Chunk], Computed | None]:
    """What becomes of a chunk whose worker did not answer: its halves are tried again, and a single point once."""
    is_broken = isinstance(error, concurrent.futures.BrokenExecutor | concurrent.futures.CancelledError)
    if is_broken or not has_worked or on_error == "raise":
        where = f"{len(chunk.indices)} points from {int(chunk.indices[0])} on"
        raise RuntimeError(f"sweep: the executor lost {where}: {message_of(error)}") from error
    if len(chunk.indices) == 1 and chunk.was_lost:
        return [], failed(chunk.indices, points.metrics, f"its worker was lost twice: {message_of(error)}")
    if len(chunk.indices) == 1:
        return [chunk._replace(was_lost=True)], None
    half = len(chunk.indices) // 2
    return [chunk._replace(indices=part) for part in (chunk.indices[:half], chunk.indices[half:])], None


class _Worker:
    """The work of a sweep in a worker: each variant is traced and compiled once, when its first chunk comes."""

    def __init__(self, work: Work):
        import cloudpickle

        self._work = work._replace(arguments=b"")  # they may be large
        with self._settings():
            self._arguments: Mapping[str, tuple] = cloudpickle.loads(work.arguments)
        self._ready: dict[str, tuple[Points, int]] = {}

    def compute(self, variant: str, indices: np.ndarray) -> tuple[int, Computed]:
        """The metrics of the points, and how long a chunk should be."""
        with self._settings():
            if variant not in self._ready:
                self._ready[variant] = self._prepare(variant)
            points, length = self._ready[variant]
            if self._work.on_error == "raise":
                return length, Computed(points.compute(indices), {})
            return length, divide(points.compute, indices, points.metrics)

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        """JAX's settings, as they are in the process that called `sweep`."""
        with contextlib.ExitStack() as settings:
            for name, value in self._work.settings.items():
                settings.enter_context(getattr(jax, name)(value))
            yield

    def _prepare(self, variant: str) -> tuple[Points, int]:
        points = Points(*self._arguments[variant])
        if points.fingerprint != self._work.fingerprints[variant]:
            raise ValueError(
                f"variant {variant!r} is another computation here (jax {jax.__version__}, "
                f"{jax.default_backend()}) than in the process that called sweep; install the same versions"
            )
        chunks = points.chunks(np.arange(self._work.size), self._work.chunk_size, self._work.batch_size)
        return points, len(chunks[0])


_workers: collections.OrderedDict[str, _Worker] = collections.OrderedDict()
_one_at_a_time = threading.Lock()  # a chunk keeps all cores busy, and its program is compiled once


def compute_chunk(key: str, work: bytes | None, variant: str, indices: np.ndarray, count: int) -> Reply:
    """Computes a chunk in a worker, which remembers the work by its key; without work and memory it says so."""
    me = f"{socket.gethostname()}:{os.getpid()}"
    with _one_at_a_time:
        knew = key in _workers
        try:
            if not knew:
                if work is None:
                    return Reply(me, False)
                import cloudpickle

                _workers[key] = _Worker(cloudpickle.loads(work))
            _workers.move_to_end(key)
            while len(_workers) > KEPT:
                _workers.popitem(last=False)
            return Reply(me, knew, *_workers[key].compute(variant, indices))
        except Exception as error:
            return Reply(me, knew, error=f"{message_of(error)}\n{traceback.format_exc()}")
