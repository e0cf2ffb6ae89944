"""Code shared by several benchmarks: a table that is also written to a file, and bytes as XLA allocates them."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def add_save(parser: argparse.ArgumentParser) -> None:
    """The option that `save` follows."""
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the table there too")


def save(options: argparse.Namespace, lines: Sequence[str]) -> None:
    """Writes the table to the requested file, if any."""
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text("\n".join(lines) + "\n", encoding="utf-8")


def finish(options: argparse.Namespace, lines: Sequence[str], wrong: Sequence[str]) -> None:
    """Saves the table, and exits with an error if something is wrong."""
    save(options, lines)
    if wrong:
        sys.exit("\n".join(wrong))


def check_count(parser: argparse.ArgumentParser, options: argparse.Namespace, name: str) -> None:
    """Exits with the parser's error if a count that was given is below 1."""
    count = getattr(options, name)
    if count is not None and count < 1:
        parser.error(f"--{name} must be at least 1, got {count}")


def size_in_bytes(tree: Any) -> float:
    """The bytes XLA allocates for all arrays or shapes of a tree; `nbytes` would count a whole byte for four bits."""

    def bits(dtype: Any) -> int:
        return 4 if dtype in (jnp.int4, jnp.uint4) else 8 * jnp.dtype(dtype).itemsize

    return sum(math.prod(leaf.shape) * bits(leaf.dtype) / 8 for leaf in jax.tree.leaves(tree))
