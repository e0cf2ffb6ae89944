"""The results of a sweep so far, saved to a file so that it can resume after an interruption."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import multihost_utils

from ._design import Design

if TYPE_CHECKING:
    import xarray


class Layout:
    """What a sweep's table looks like, and where it comes from.

    Attributes:
        variants: The names of the variants; a single "" without variants.
        has_variants: Whether the table has a dimension for them.
        design: The points of each variant.
        metrics: Shape and dtype of each metric at one point.
        dims: The names of each metric's own dimensions.
        attributes: The attributes of the table, such as the printed chains and the fingerprint.
    """

    def __init__(
        self,
        variants: list[str],
        has_variants: bool,
        design: Design,
        metrics: Mapping[str, jax.ShapeDtypeStruct],
        dims: Mapping[str, list[str]],
        attributes: Mapping[str, str],
    ):
        self.variants = variants
        self.has_variants = has_variants
        self.design = design
        self.metrics = metrics
        self.dims = dims
        self.attributes = attributes

    @property
    def identity(self) -> str:
        """A string that changes when the computation, the points, the names or the share change."""
        return _identity(self.attributes)


class Results:
    """The metrics of every point of every variant, and which of them are done.

    While a sweep runs, they are saved next to `file`, in a file with the same name plus `.partial`.
    """

    def __init__(self, layout: Layout, file: pathlib.Path | None):
        self._layout = layout
        self._file = file
        self._partial = None if file is None else file.with_name(file.name + ".partial")
        size = layout.design.size
        self._done = {name: np.zeros(size, bool) for name in layout.variants}
        self._values = {
            name: {metric: _blank((size, *like.shape), like.dtype) for metric, like in layout.metrics.items()}
            for name in layout.variants
        }
        self._errors: dict[str, dict[int, str]] = {name: {} for name in layout.variants}
        if file is not None and file.exists():
            self._take(finished(file, layout))
        if self._partial is not None and self._partial.exists():
            self._load(self._partial)
        if file is not None:
            multihost_utils.sync_global_devices("sweep: the file is read")

    def left(self, variant: str) -> np.ndarray:
        """The flat indices of the points that are not done."""
        return np.flatnonzero(~self._done[variant])

    def add(
        self,
        variant: str,
        indices: np.ndarray,
        metrics: Mapping[str, np.ndarray],
        errors: Mapping[int, str] | None = None,
    ) -> None:
        """Adds the metrics of some points and writes everything to the file; points with an error stay to be done."""
        for metric, values in metrics.items():
            self._values[variant][metric][indices] = values
        self._done[variant][indices] = True
        for index in indices.tolist():
            self._errors[variant].pop(index, None)
        for index, message in (errors or {}).items():
            self._done[variant][index] = False
            self._errors[variant][index] = message
            for values in self._values[variant].values():
                values[index] = _blank(values.shape[1:], values.dtype)
        if self._partial is not None and jax.process_index() == 0:
            _replace(self._partial, self._save)

    def finish(self) -> "xarray.Dataset":
        """The table of all results; writes the file itself and removes the partial one."""
        table = self._table()
        if self._file is not None and self._partial is not None:
            if jax.process_index() == 0:
                write(self._file, table)
                self._partial.unlink(missing_ok=True)
            multihost_utils.sync_global_devices("sweep: the file is written")
        return table

    def _table(self) -> "xarray.Dataset":
        import xarray

        dims, shape = self._layout.design.dims, self._layout.design.shape
        variables, diverged = {}, np.zeros((len(self._values), *shape), bool)
        failed = np.zeros((len(self._values), self._layout.design.size), bool)
        for row, errors in zip(failed, self._errors.values()):
            row[list(errors)] = True
        failed = failed.reshape(len(failed), *shape)
        done = np.stack(list(self._done.values())).reshape(failed.shape)
        for metric, own_dims in self._layout.dims.items():
            stacked = np.stack([values[metric] for values in self._values.values()])
            stacked = stacked.reshape(len(stacked), *shape, *stacked.shape[2:])
            variables[metric] = (["variant", *dims, *own_dims], stacked)
            diverged |= ~np.isfinite(stacked).all(axis=tuple(range(1 + len(shape), stacked.ndim)))
        variables["diverged"] = (["variant", *dims], diverged & done)
        variables["failed"] = (["variant", *dims], failed)
        coords = {"variant": self._layout.variants, **self._layout.design.coords}
        attributes = {**self._layout.attributes, "errors": json.dumps(self._described_errors())}
        table = xarray.Dataset(variables, coords, attributes)
        return table if self._layout.has_variants else table.isel(variant=0, drop=True)

    def _described_errors(self) -> list[dict]:
        return [
            {
                **({"variant": variant} if self._layout.has_variants else {}),
                **self._layout.design.coordinates(index),
                "error": message,
            }
            for variant, errors in self._errors.items()
            for index, message in sorted(errors.items())
        ]

    def _take(self, table: "xarray.Dataset") -> None:
        """Takes what a finished file holds; its failed points are to be done again."""
        if not self._layout.has_variants:
            table = table.expand_dims("variant")
        for at, name in enumerate(self._layout.variants):
            self._done[name][...] = ~table["failed"].values[at].ravel()
            for metric, values in self._values[name].items():
                values[...] = table[metric].values[at].reshape(values.shape)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {}
        for at, name in enumerate(self._done):
            arrays[f"{at}/done"] = self._done[name]
            arrays.update({f"{at}/metrics/{metric}": values for metric, values in self._values[name].items()})
        return arrays

    def _save(self, new: pathlib.Path) -> None:
        with new.open("wb") as stream:
            identity = np.array(self._layout.identity)
            errors = np.array(json.dumps(self._errors))
            np.savez(stream, allow_pickle=False, identity=identity, errors=errors, **self._arrays())

    def _load(self, partial: pathlib.Path) -> None:
        try:
            with np.load(partial) as file:
                saved = dict(file)
            identity = str(saved["identity"])
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise ValueError(
                f"sweep: {str(partial)!r} must be a sweep's, got {error}; remove it to start again"
            ) from None
        _refuse_another(identity, self._layout.identity, partial)
        for key, array in self._arrays().items():
            array[...] = saved[key]
        for variant, errors in json.loads(str(saved["errors"])).items():
            self._errors[variant] = {int(index): message for index, message in errors.items()}


def finished(file: pathlib.Path, layout: Layout) -> "xarray.Dataset | None":
    """The table in a file, if there is one; all hosts look before any of them goes on.

    Raises:
        ValueError: If the file holds something else, or if only some hosts see it.
    """
    import xarray

    seen = multihost_utils.process_allgather(np.array([file.exists(), file.with_name(file.name + ".partial").exists()]))
    if (seen != seen[0]).any():
        raise ValueError(f"sweep: file must be one that all hosts see, got {str(file)!r}, which only some of them do")
    if not file.exists():
        return None
    try:
        table = xarray.load_dataset(file, engine="h5netcdf")
    except OSError as error:
        raise ValueError(f"sweep: file must be new or hold this sweep, got {str(file)!r}: {error}") from None
    _refuse_another(_identity(table.attrs), layout.identity, file)
    return table


def write(file: pathlib.Path, table: "xarray.Dataset") -> None:
    """Writes a table atomically."""
    _replace(file, lambda new: table.to_netcdf(new, engine="h5netcdf"))


def _blank(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The values of a metric where there is none: NaN, 0 or False."""
    return np.full(shape, np.nan if np.issubdtype(dtype, np.inexact) else 0, dtype)


def _replace(file: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Writes a file atomically: an interruption leaves the old one intact."""
    new = file.with_name(file.name + ".new")
    write(new)
    new.replace(file)


def _identity(attributes: Mapping[str, str]) -> str:
    return f"{attributes.get('fingerprint')} {attributes.get('share', '')}"


def _refuse_another(found: str, expected: str, file: pathlib.Path) -> None:
    """Raises if a file belongs to another sweep."""
    if found != expected:
        raise ValueError(
            f"sweep: file must be new or hold this sweep, got {str(file)!r}, which holds one with another function, "
            "grid, points, variants or share; remove it or use another"
        )
