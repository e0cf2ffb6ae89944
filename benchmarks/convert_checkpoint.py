"""How much memory it takes to convert a PyTorch checkpoint to an Orbax one, and back.

A checkpoint of a model with AdamW's state is made, and converted by `python -m linkax.chains.torch_interop convert`,
each time in a process of its own. While it runs, the memory that it has allocated is read every few milliseconds
(`RssAnon`: pages of the file itself, which the system may drop at any time, do not count).

    beyond      the most that was allocated, less what the process had before, less the result: parameters and moments
    largest     the largest tensor
    ratio       beyond / largest

    python benchmarks/convert_checkpoint.py            # 1.2 GB, two minutes
    python benchmarks/convert_checkpoint.py --quick    # a few MB: does it still run?

It needs PyTorch, and reads memory as Linux reports it.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MEGA = 1e6


def anonymous() -> int:
    """The bytes that this process has allocated."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024


def make(path: Path, layers: int, width: int, dtype: str) -> None:
    """A checkpoint with `layers` square matrices."""
    import torch

    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
    model = model.to(getattr(torch, dtype))
    optimizer = torch.optim.AdamW(model.named_parameters())
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


def measure(source: Path, out: Path) -> None:
    """Converts, and prints the bytes that it took beyond those at the start."""
    from linkax.chains.torch_interop.__main__ import main

    with tempfile.TemporaryDirectory() as folder:  # what JAX, PyTorch and Orbax need for themselves, at any size
        first, second, third = (Path(folder) / name for name in ("first.pt", "second", "third.pt"))
        make(first, 2, 64, "float32")
        assert not main(["convert", str(first), str(second)])
        assert not main(["convert", str(second), str(third)])
    before, most, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    failed = main(["convert", str(source), str(out)])
    done.set()
    watcher.join()
    print(f"{failed} {most - before}")


def row(way: str, source: Path, out: Path, result: float, largest: float) -> None:
    """Converts in a process of its own, and prints a line of the table."""
    command = [sys.executable, __file__, "--measure", str(source), str(out)]
    start = time.perf_counter()
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    failed, peak = map(int, run.stdout.split()[-2:])
    assert not failed, run.stderr
    beyond = peak - result
    seconds = time.perf_counter() - start
    numbers = f"{result / MEGA:9.1f}  {largest / MEGA:10.1f}  {beyond / MEGA:9.1f}  {beyond / largest:5.2f}"
    print(f"{way:26}  {numbers}  {seconds:7.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the memory that converting a checkpoint takes.")
    parser.add_argument("--quick", action="store_true", help="a few MB: does it still run?")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    layers, width = (3, 256) if args.quick else (8, 3584)
    print(f"{'':26}  result MB  largest MB  beyond MB  ratio  seconds")
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        with tempfile.TemporaryDirectory() as folder:
            torch_file, orbax, back = (Path(folder) / name for name in ("run.pt", "orbax", "back.pt"))
            make(torch_file, layers, width, dtype)
            numbers = layers * width**2
            result = numbers * (size + 2 * 4)  # the chain's moments are float32
            row(f"{dtype} to Orbax", torch_file, orbax, result, width**2 * 4)
            row(f"{dtype} back to PyTorch", orbax, back, result, width**2 * 4)


if __name__ == "__main__":
    main()
