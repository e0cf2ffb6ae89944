"""A saved table of a sweep, finished or not, as NetCDF or Zarr: what of it is intact."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._blocks import Blocks, is_block
from ._layout import DONE, FAILED, TO_DO, Layout
from ._zarr import open_folder

if TYPE_CHECKING:
    import xarray


class Piece(NamedTuple):
    """Some points of a saved table: their metrics, `diverged` and status, or what is wrong with them."""

    variant: int
    indices: np.ndarray
    values: dict[str, np.ndarray]
    status: np.ndarray
    damage: str = ""


class Saved:
    """A saved table, opened without reading its values.

    Attributes:
        flaws: What of it is damaged, apart from the values of points.

    Raises:
        ValueError: If it belongs to another sweep, or is so damaged that this cannot be known.
    """

    def __init__(self, path: pathlib.Path, layout: Layout):
        self.path, self._layout = path, layout
        try:
            self.table = open_table(path)
        except Exception as error:  # whatever the readers raise for bytes that are not theirs
            raise self._refused(f"which cannot be read ({error})") from None
        try:
            if not layout.is_of(self.table.attrs):
                raise self._refused(
                    "which holds one with another function, other points, names or share, or something else"
                )
            self.flaws = [] if layout.describes(self.table.attrs) else ["its attributes"]
            self.flaws += [
                str(name)
                for name, values in layout.coords().coords.items()
                if not _holds(lambda name=name, values=values: self.table[name].astype(values.dtype).equals(values))
            ]
            self._status = self._found_status()
        except BaseException:
            self.table.close()
            raise

    def __enter__(self) -> "Saved":
        return self

    def __exit__(self, *_: object) -> None:
        self.table.close()

    @property
    def is_complete(self) -> bool:
        """Whether all points that it is to have are done."""
        return bool((self._status == DONE)[self._layout.own].all())

    def errors(self) -> dict[tuple[int, int], str]:
        """The errors of the points that failed, by variant and flat index; unknown if they are damaged."""
        failed = [(variant, index) for variant, index in np.argwhere(self._status == FAILED).tolist()]
        listed = [entry["error"] for entry in json.loads(self.table.attrs["errors"])] if not self.flaws else []
        return dict(zip(failed, listed or ["unknown"] * len(failed)))

    def pieces(self) -> Iterator[Piece]:
        """The blocks of the table in which a point was run, one after the other."""
        lead, shape = int(self._layout.has_variants), self._layout.design.shape
        blocks = self._blocks(lead, shape)
        for variant in range(len(self._status)):
            for number in range(len(blocks)):
                start, stop = blocks.range(number)
                indices = start + np.flatnonzero(self._status[variant, start:stop])
                if len(indices) == 0:
                    continue
                region = (slice(variant, variant + 1),) * lead + blocks.region(number)
                values, damage = {}, ""
                for name, expected in self._layout.variables.items():
                    try:
                        array = self.table.variables[name]
                        if (array.dims, array.shape, array.dtype) != expected:
                            raise ValueError(f"{array.dims}, {array.shape}, {array.dtype}")
                        found = np.asarray(array[region])
                    except Exception as error:  # as above
                        damage = f"{name} at {start} to {stop - 1} ({error})"
                        break
                    values[name] = found.reshape(stop - start, *found.shape[len(region) :])[indices - start]
                yield Piece(variant, indices, values, self._status[variant, indices], damage)

    def _blocks(self, lead: int, shape: tuple[int, ...]) -> Blocks:
        """The blocks in which the file can be read, by the chunks of any variable; one block if there are none."""
        for name in self._layout.variables:
            encoding = self.table[name].encoding if name in self.table else {}
            chunks = tuple(encoding.get("chunks") or encoding.get("chunksizes") or ())[lead:][: len(shape)]
            if is_block(chunks, shape):
                return Blocks(shape, chunks)
        return Blocks(shape, shape)

    def _found_status(self) -> np.ndarray:
        name = "status" if "status" in self.table.variables else "failed"
        shape = len(self._layout.variants), self._layout.design.size
        try:
            found = self.table[name].values.astype(np.uint8).reshape(shape)
            if found.max() > FAILED:
                raise ValueError("no status")
            return found if name == "status" else np.where(found, np.uint8(FAILED), np.uint8(DONE))
        except Exception as error:  # as above
            none_failed = name == "failed" and not self.flaws and self.table.attrs["errors"] == "[]"
            self.flaws.append(f"{name} ({error})")
            return np.full(shape, DONE if none_failed else TO_DO, np.uint8)

    def _refused(self, why: str) -> ValueError:
        return ValueError(
            f"sweep: file must be new or hold this sweep, got {str(self.path)!r}, {why}; remove it to start again"
        )

    def damaged(self, what: str, intact: int) -> ValueError:
        """The error that says what is damaged and how to keep the rest."""
        return ValueError(
            f"sweep: file must be intact, got {str(self.path)!r}, which is damaged: {what}; {intact} of "
            f"{self._layout.count} points are intact: rename it to {self.path.name + '.damaged'!r} to keep them and "
            "run the others, or remove it"
        )


def _holds(condition: Callable[[], bool]) -> bool:
    """Whether something holds; it does not if it cannot be read."""
    try:
        return condition()
    except Exception:  # as above
        return False


def open_table(path: pathlib.Path) -> "xarray.Dataset":
    """The table in a file or a folder, whose values are read when they are used."""
    import h5py
    import xarray

    if path.is_dir():
        return open_folder(path)
    h5py.File(path).close()  # h5netcdf also complains when what it could not open is closed
    return xarray.open_dataset(path, engine="h5netcdf", cache=False)
