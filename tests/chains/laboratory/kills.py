"""Kills processes that write results, at random moments, and has many of them start at once; run by test_files.py.

python -m tests.chains.laboratory.kills FOLDER

One process that has imported everything forks all others, before JAX has started its threads.
"""

import json
import os
import pathlib
import random
import signal
import struct
import sys
import time
import traceback

import numpy as np

from linkax.chains.laboratory import _netcdf, _saved  # noqa: F401  (once, not in every process)
from linkax.chains.laboratory._lock import Lock, _start, _this_host
from linkax.chains.laboratory._results import Results, finished

from . import tables

CHUNK = 3


def forked(work):
    """Starts a process; returns its number and the end of a pipe that reads what it writes."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    code = 1
    try:
        os.close(reading)
        work(writing)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def received(reading):
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read()


def sweep(file, done_before):
    """A process that reports every chunk when it is saved; fails if a chunk that was reported earlier is missing."""

    def work(writing):
        if finished(file, tables.layout()) is None:
            with Results(tables.layout(), file) as results:
                for variant, indices in done_before:
                    assert not np.isin(indices, results.left(variant)).any(), "a saved chunk is lost"
                to_do = sum(len(results.left(variant)) for variant in tables.VARIANTS)
                os.write(writing, struct.pack("3i", -1, to_do, 0))
                for variant, indices in tables.fill(results, [CHUNK]):
                    os.write(writing, struct.pack("3i", tables.VARIANTS.index(variant), indices[0], indices[-1]))
                results.finish()
        tables.check(finished(file, tables.layout()))

    return work


def kill_at_random_moments(file, rounds):
    """Kills so many sweeps, after one that shows how long it takes; each goes on where the one before was killed."""
    done, lost, kills, duration = [], 0, 0, 0.0
    while True:
        process, reading = forked(sweep(file, done))
        started = time.perf_counter()
        if duration and kills < rounds:
            time.sleep(random.uniform(0.2, 1) * duration)
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        for variant, first, last in struct.iter_unpack("3i", received(reading)):
            if variant < 0:  # how many points it found to do
                lost = max(lost, first - (tables.SIZE * len(tables.VARIANTS) - sum(len(chunk) for _, chunk in done)))
            else:
                done.append((tables.VARIANTS[variant], np.arange(first, last + 1)))
        if os.WIFSIGNALED(status):
            kills += 1
            continue
        assert status == 0
        duration = duration or time.perf_counter() - started
        if kills >= rounds:
            return {"kills": kills, "lost": lost, "left": sorted(path.name for path in file.parent.iterdir())}
        done = []
        for path in sorted(file.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def dead_owner():
    """The contents of the lock of a process that has been killed."""
    process, _ = forked(lambda writing: time.sleep(60))
    owner = {"process": process, "start": _start(process), **_this_host()}
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return json.dumps(owner)


def at_once(file, processes=4):
    """Has many processes lock one file at the same instant; the winner keeps it until all have tried."""
    start = time.time() + 0.05
    waiting, ending = os.pipe()

    def work(writing):
        os.close(ending)
        while time.time() < start:
            pass
        try:
            lock = Lock(file)
        except ValueError as error:
            os.write(writing, str(error).encode() + b"\n")
            return
        os.write(writing, b"won\n")
        os.read(waiting, 1)  # until the other end is closed
        lock.release()

    children = [forked(work) for _ in range(processes)]
    pipes = [os.fdopen(reading, "r") for _, reading in children]
    answers = [pipe.readline() for pipe in pipes]
    os.close(ending)
    for (process, _), pipe in zip(children, pipes):
        os.waitpid(process, 0)
        pipe.close()
    os.close(waiting)
    return answers


if __name__ == "__main__":
    random.seed(0)
    folder, report = pathlib.Path(sys.argv[1]), {}
    for name in ("table.nc", "table.zarr"):
        (folder / name[6:]).mkdir()
        report[name] = kill_at_random_moments(folder / name[6:] / name, 5)
    report["at once"] = [at_once(folder / "new") for _ in range(4)]
    for _ in range(4):
        (folder / "stale.lock").write_text(dead_owner())
        report["at once"].append(at_once(folder / "stale"))
    print(json.dumps(report))
