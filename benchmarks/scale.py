"""How large a sweep can be: its speed, memory, files, and what a kill costs, from a thousand to a million points.

Each point is a training run of a few steps of gradient descent on one number; it returns the final loss, and with
curves all losses. So nearly all of the time is what `sweep` adds: chunks, files, checksums. Each line is a process of
its own.

    python benchmarks/scale.py            # ten minutes and a gigabyte of disk, in the folder for temporary files
    python benchmarks/scale.py --quick    # few points, seconds: does it still run?

How to read the tables:

    points/s     all points, divided by the seconds of the whole call, with compiling, writing and reading back
    MiB peak     the process's peak resident memory above what it had when JAX was ready; from NetCDF the finished table
                 is loaded, from Zarr it is not
    file         the finished file
    written      what the process had written to disk at the end, as the system counts it; NetCDF is written twice,
                 first as the Zarr store of the running sweep
    files        the most files there were at once

    done         the points that were saved when a kill -9 came, after half the time of an unbroken run
    lost         the seconds that it cost: both parts together, minus an unbroken run. Most of it is starting, compiling
                 and checking the file again; of the points, at most those of one chunk, a sixteenth, are run twice
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _tables import add_save, finish
from tqdm import tqdm

from linkax import sweep

STEPS = 100
FILES = {"memory": None, "NetCDF": "table.nc", "Zarr": "table.zarr"}


def train(rate: jax.Array, start: jax.Array, curves: bool) -> dict[str, jax.Array]:
    def step(w: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return w - rate * w, w**2

    w, losses = jax.lax.scan(step, start, length=STEPS)
    return {"final": w**2, **({"loss": losses} if curves else {})}


def one_sweep(points: int, curves: bool, file: str | None) -> dict[str, float]:
    """Runs a sweep; what it took and left."""
    jax.block_until_ready(jnp.zeros(3) + 1)
    before, started = _peak(), time.perf_counter()
    side = round(points**0.5)
    grid = {"rate": np.linspace(0, 1, side), "start": np.linspace(1, 2, points // side)}
    sweep(lambda rate, start: train(rate, start, curves), grid, file=file, progress=False)
    return {"seconds": time.perf_counter() - started, "peak": _peak() - before, "written": _written()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB; Linux counts in KiB


def _written() -> float:
    lines = pathlib.Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"]) / 2**20


def start(points: int, curves: bool, file: pathlib.Path | None) -> subprocess.Popen:
    command = [sys.executable, __file__, "--points", str(points), *(["--curves"] if curves else [])]
    return subprocess.Popen(
        [*command, *([] if file is None else ["--file", str(file)])], stdout=subprocess.PIPE, text=True
    )


def size_of(file: pathlib.Path) -> float:
    paths = [file] if file.is_file() else [path for path in file.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in paths) / 2**20


def measure(points: int, curves: bool, name: str) -> str:
    """A line of the first table."""
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        file = None if FILES[name] is None else folder / FILES[name]
        process = start(points, curves, file)
        most = 0
        while process.poll() is None:
            most = max(most, sum(len(files) for _, _, files in os.walk(folder)))
            time.sleep(0.1)
        assert process.stdout is not None
        found: dict[str, float] = json.loads(process.stdout.read())
        size = "" if file is None else f"{size_of(file):8.1f}"
        written = "" if file is None else f"{found['written']:8.1f}"
        return (
            f"{points:>9,}  {'yes' if curves else 'no':>6}  {name:<6}  {found['seconds']:7.1f}  "
            f"{points / found['seconds']:10,.0f}  {found['peak']:8.0f}  {size:>8}  {written:>8}  {most or '':>5}"
        )
    finally:
        shutil.rmtree(folder)


def killed(points: int, curves: bool, name: str) -> str:
    """A line of the second table."""
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        unbroken = _seconds(start(points, curves, folder / f"whole{FILES[name]}"))
        began, file = time.perf_counter(), folder / str(FILES[name])
        process = start(points, curves, file)
        time.sleep(0.5 * unbroken)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = _done(file.with_name(file.name + ".partial"))
        _seconds(start(points, curves, file))
        lost = time.perf_counter() - began - unbroken
        settings = f"{points:>9,}  {'yes' if curves else 'no':>6}  {name:<6}"
        return f"{settings}  {unbroken:8.1f}  {done / points:6.0%}  {lost:5.1f}"
    finally:
        shutil.rmtree(folder)


def _seconds(process: subprocess.Popen) -> float:
    began = time.perf_counter()
    if process.wait():
        sys.exit("a sweep failed")
    return time.perf_counter() - began


def _done(partial: pathlib.Path) -> int:
    import xarray

    if not partial.exists():
        return 0
    with xarray.open_zarr(partial, chunks=None) as table:
        return int((table["status"] == 1).sum())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures sweeps of many points.")
    parser.add_argument("--quick", action="store_true", help="few points")
    add_save(parser)
    parser.add_argument("--points", type=int, help=argparse.SUPPRESS)  # the rest is for the subprocesses
    parser.add_argument("--curves", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.points:
        print(json.dumps(one_sweep(options.points, options.curves, options.file)))
        return
    sizes = (100,) if options.quick else (1000, 10_000, 100_000, 1_000_000)
    cases: list[tuple[int, bool, Any]] = [
        (points, curves, name) for points in sizes for curves in (False, True) for name in FILES
    ]
    lines = [
        f"{datetime.date.today()}: jax {jax.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPU "
        f"cores; curves of {STEPS} steps",
        "",
        f"{'points':>9}  {'curves':>6}  {'file':<6}  {'seconds':>7}  {'points/s':>10}  {'MiB peak':>8}  "
        f"{'file MiB':>8}  {'written':>8}  {'files':>5}",
    ]
    with tqdm(total=len(cases) + 2, unit="run") as bar:
        for case in cases:
            lines.append(measure(*case))
            bar.update()
        lines += ["", f"{'points':>9}  {'curves':>6}  {'file':<6}  {'unbroken':>8}  {'done':>6}  {'lost':>5}"]
        for name in ("NetCDF", "Zarr"):
            lines.append(killed(sizes[-1], True, name))
            bar.update()
    print("\n".join(lines))
    finish(options, lines, [])


if __name__ == "__main__":
    main()
