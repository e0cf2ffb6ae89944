"""A saved table of a sweep, finished or not, as NetCDF or Zarr: what of it is intact."""

import json
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._blocks import Blocks
from ._layout import Layout
from ._zarr import DONE, FAILED, open_folder

if TYPE_CHECKING:
    import xarray


class Piece(NamedTuple):
    """Some points of a saved table: their metrics and status, or what is wrong with them."""

    variant: int
    indices: np.ndarray
    metrics: dict[str, np.ndarray]
    status: np.ndarray
    damage: str = ""


class Saved:
    """A saved table, opened without reading its values.

    Raises:
        ValueError: If it belongs to another sweep, or is damaged where this cannot be told for single points.
    """

    def __init__(self, path: pathlib.Path, layout: Layout):
        self.path, self._layout = path, layout
        try:
            self.table = _open(path)
        except Exception as error:  # whatever the readers raise for bytes that are not theirs
            raise self._refused(str(error)) from None
        try:
            self._check()
        except BaseException:
            self.table.close()
            raise

    def __enter__(self) -> "Saved":
        return self

    def __exit__(self, *_: object) -> None:
        self.table.close()

    @property
    def has_failed(self) -> bool:
        """Whether there are points that failed or that were never run."""
        return bool((self._status() != DONE).any())

    def errors(self) -> dict[tuple[int, int], str]:
        """The errors of the points that failed, by variant and flat index."""
        failed = np.argwhere(self._status() == FAILED).tolist()
        return {tuple(at): entry["error"] for at, entry in zip(failed, json.loads(self.table.attrs["errors"]))}

    def pieces(self) -> Iterator[Piece]:
        """The blocks of the table in which a point was run, one after the other."""
        status = self._status()
        lead = int(self._layout.has_variants)
        shape = self._layout.design.shape
        encoding = self.table["diverged"].encoding
        chunks = encoding.get("chunks") or encoding.get("chunksizes") or (1,) * lead + shape
        blocks = Blocks(shape, tuple(chunks[lead:]))
        for variant in range(len(status)):
            for number in range(len(blocks)):
                start, stop = blocks.range(number)
                which = np.flatnonzero(status[variant, start:stop])
                if len(which) == 0:
                    continue
                region = (slice(variant, variant + 1),) * lead + blocks.region(number)
                metrics, damage = {}, ""
                for name in self._layout.variables:
                    try:
                        found = np.asarray(self.table.variables[name][region])
                    except Exception as error:  # as above
                        damage = f"{name} at {start} to {stop - 1} ({error})"
                        break
                    metrics[name] = found.reshape(stop - start, *found.shape[len(region) :])[which]
                yield Piece(variant, start + which, metrics, status[variant, start + which], damage)

    def _status(self) -> np.ndarray:
        if "status" in self.table.variables:
            found = self.table["status"].values
        else:
            found = np.where(self.table["failed"].values, FAILED, DONE)
        return found.astype(np.uint8).reshape(len(self._layout.variants), -1)

    def _check(self) -> None:
        layout, table = self._layout, self.table
        if table.attrs.get("fingerprint") != layout.fingerprint:
            raise self._refused("which holds one with another function, other points or other names, or something else")
        if not layout.describes(table.attrs):
            raise self.damaged("its attributes", 0)
        expected = {**layout.variables, "failed": (*layout.flags, np.dtype(bool))}
        for name, (dims, shape, dtype) in expected.items():
            if name not in table or (table[name].dims, table[name].shape, table[name].dtype) != (dims, shape, dtype):
                raise self.damaged(name, 0)
        for name, values in layout.coords().coords.items():
            if name not in table.coords or not table[name].astype(values.dtype).equals(values):
                raise self.damaged(str(name), 0)
        try:
            if self._status().max() > FAILED:
                raise ValueError("no status")
        except Exception as error:  # as above
            raise self.damaged(f"failed ({error})", 0) from None

    def _refused(self, why: str) -> ValueError:
        return ValueError(
            f"sweep: file must be new or hold this sweep, got {str(self.path)!r}, {why}; remove it to start again"
        )

    def damaged(self, what: str, intact: int) -> ValueError:
        """The error that says what is damaged and how to keep the rest."""
        points = len(self._layout.variants) * self._layout.design.size
        return ValueError(
            f"sweep: file must be intact, got {str(self.path)!r}, which is damaged: {what}; {intact} of {points} "
            f"points are intact: rename it to {self.path.name + '.damaged'!r} to keep them and run the others, or "
            "remove it"
        )


def _open(path: pathlib.Path) -> "xarray.Dataset":
    import xarray

    return open_folder(path) if path.is_dir() else xarray.open_dataset(path, engine="h5netcdf", cache=False)
