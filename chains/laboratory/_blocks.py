"""Blocks: how the points of a table are divided among the chunks of its arrays, each of which is one file."""

import math
from typing import NamedTuple

import numpy as np

MOST_BLOCKS = 1000  # for each variant: so a million points are not a million files
LARGEST_BLOCK = 2**26  # bytes of one metric: what is in memory at once while a file is written
SMALL_BLOCK = 2**20  # bytes of one metric that are soon written


class Blocks(NamedTuple):
    """The points of a variant in blocks: each is a contiguous range of flat indices and rectangular in the table."""

    shape: tuple[int, ...]  # of the points
    block: tuple[int, ...]  # of the blocks; the last ones along an axis may be smaller

    @property
    def _split(self) -> int:
        """The axis that is divided; later ones are whole, and of those before it each block has one value."""
        return next(axis for axis in range(len(self.shape)) if self.block[axis + 1 :] == self.shape[axis + 1 :])

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """The points of a block, those of the axis that is divided, and how many blocks these are."""
        axis = self._split
        whole = math.prod(self.shape[axis + 1 :])
        return self.block[axis] * whole, self.shape[axis] * whole, -(-self.shape[axis] // self.block[axis])

    def __len__(self) -> int:
        return math.prod(self.shape) // self._sizes[1] * self._sizes[2]

    def of(self, indices: np.ndarray) -> np.ndarray:
        """The numbers of the blocks that the points at flat indices are in."""
        size, row, pieces = self._sizes
        return indices // row * pieces + indices % row // size

    def range(self, number: int) -> tuple[int, int]:
        """The flat indices of a block: the first, and the one after the last."""
        size, row, pieces = self._sizes
        at, piece = divmod(number, pieces)
        return at * row + piece * size, at * row + min((piece + 1) * size, row)

    def region(self, number: int) -> tuple[slice, ...]:
        """Where a block is in the table."""
        first = np.unravel_index(self.range(number)[0], self.shape)
        ends = (min(int(start) + step, length) for start, step, length in zip(first, self.block, self.shape))
        return tuple(slice(int(start), end) for start, end in zip(first, ends))


def is_block(block: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether blocks of this shape divide the points as `Blocks` needs it."""
    if len(block) != len(shape) or not all(1 <= step <= length for step, length in zip(block, shape)):
        return False
    whole = next(axis for axis in range(len(shape)) if block[axis + 1 :] == shape[axis + 1 :])
    return all(step == 1 for step in block[:whole])


def blocks_for(shape: tuple[int, ...], points: int, bytes_per_point: int) -> Blocks:
    """Blocks for chunks of so many points, but of no more bytes, and no more of them, than is reasonable.

    A chunk that ends inside a block writes it once more than needed. So where chunks are not whole numbers of blocks,
    large blocks are smaller than they.
    """
    points = max(points, -(-math.prod(shape) // MOST_BLOCKS))
    points = max(1, min(points, LARGEST_BLOCK // max(1, bytes_per_point)))
    blocks = _blocks_of(shape, points)
    if points % blocks._sizes[0]:
        blocks = _blocks_of(shape, min(points, max(points // 8, SMALL_BLOCK // max(1, bytes_per_point), 1)))
    return blocks


def _blocks_of(shape: tuple[int, ...], points: int) -> Blocks:
    """Blocks of about so many points, but not more."""
    block, whole = [1] * len(shape), 1
    for axis in reversed(range(len(shape))):
        if whole * shape[axis] > points:
            pieces = -(-shape[axis] // (points // whole))
            block[axis] = -(-shape[axis] // pieces)
            break
        block[axis] = shape[axis]
        whole *= shape[axis]
    return Blocks(shape, tuple(block))
