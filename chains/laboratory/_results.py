"""The results of a sweep so far: in memory, or in a file, from which an interrupted sweep resumes."""

import contextlib
import math
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.experimental import multihost_utils

from ._hosts import from_first_host, on_first_host
from ._layout import DONE, FAILED, TO_DO, Layout, fill_of

if TYPE_CHECKING:
    import xarray

    from ._lock import Lock
    from ._zarr import Folder


class Results:
    """The metrics of every point of every variant, and which of them are done.

    Without a file they are in memory. With one, only the first of several hosts writes, and the values are on disk:
    while the sweep runs in the folder with the same name plus `.partial`, a Zarr store that xarray reads at any time.
    What `add` was given is there when it returns, also after a power failure. No other sweep may use the file then.

    Used in a `with` statement, which frees the file at its end.
    """

    def __init__(self, layout: Layout, file: pathlib.Path | None):
        self._layout = layout
        self._file = file
        self._errors: dict[tuple[int, int], str] = {}
        self._status = np.zeros((len(layout.variants), layout.design.size), np.uint8)
        self._values = {}
        self._lock: Lock | None = None
        self._folder: Folder | None = None
        if file is None:
            for name, (_, shape, dtype) in layout.variables.items():
                own = shape[layout.has_variants + len(layout.design.shape) :]
                self._values[name] = np.full((*self._status.shape, *own), fill_of(dtype))
        else:
            on_first_host(self._open)
            self._status = from_first_host(self._status)

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def left(self, variant: str) -> np.ndarray:
        """The flat indices of the points that are not done, including those that failed."""
        at = self._layout.variants.index(variant)
        return np.flatnonzero((self._status[at] != DONE) & self._layout.own[at])

    def reserve(self, points: int) -> None:
        """Raises if there is no room for so many more points in the file."""
        if self._file is not None:
            on_first_host(lambda: self._check_room(points))

    def add(
        self,
        variant: str,
        indices: np.ndarray,
        metrics: Mapping[str, np.ndarray],
        errors: Mapping[int, str] | None = None,
    ) -> None:
        """Adds some points of a variant, and writes them to the file.

        Args:
            variant: Its name.
            indices: The flat indices of the points, in any order.
            metrics: The metrics of these points, in the same order.
            errors: Messages by flat index: these of the points failed, and what `metrics` has for them is ignored. If
                all of them failed, `metrics` may be empty.
        """
        at, errors = self._layout.variants.index(variant), errors or {}
        failed = np.isin(indices, list(errors))
        values = {}
        diverged = np.zeros(len(indices), bool)
        for name, like in self._layout.metrics.items():
            if failed.any():
                values[name] = np.full((len(indices), *like.shape), fill_of(like.dtype))
                if not failed.all():
                    values[name][~failed] = metrics[name][~failed]
            else:
                values[name] = metrics[name]
            diverged |= ~np.isfinite(values[name]).all(axis=tuple(range(1, 1 + len(like.shape))))
        values["diverged"] = diverged & ~failed
        status = np.where(failed, np.uint8(FAILED), np.uint8(DONE))
        if self._file is None:
            self._write(at, indices, values, status)
        else:
            on_first_host(lambda: self._write(at, indices, values, status))
        self._note(at, indices, status, errors)

    def absorb(self, file: pathlib.Path, layout: Layout | None = None) -> list[str]:
        """Adds the points of another file of this sweep, finished or not, that are not done here.

        Args:
            file: The file.
            layout: Its own layout, if it is that of a share.

        Returns:
            What of it is damaged, on the first host; points in it are left out.

        Raises:
            ValueError: If it holds another sweep, or is so damaged that this cannot be known.
        """
        layout = layout or self._layout
        if self._file is None:
            return self._absorb(file, layout)
        damage: list[str] = []
        on_first_host(lambda: damage.extend(self._absorb(file, layout)))
        self._status = from_first_host(self._status)
        return damage

    def finish(self) -> "xarray.Dataset":
        """The table of all results; writes the file itself, and removes what else there was."""
        if self._file is None:
            return self._table()
        on_first_host(self._finish)
        return _load(self._file, self._layout)

    def _table(self) -> "xarray.Dataset":
        import xarray

        dims, shape = self._layout.flags
        variables = {
            name: xarray.Variable(dims, self._values[name].reshape(shape))
            for name, (dims, shape, _) in self._layout.variables.items()
        }
        variables["failed"] = xarray.Variable(dims, (self._status == FAILED).reshape(shape))
        return _arranged(variables, self._layout.described(self._errors), self._layout)

    def _note(self, at: int, indices: np.ndarray, status: np.ndarray, errors: Mapping[int, str]) -> None:
        self._status[at, indices] = status
        for index in indices.tolist():
            self._errors.pop((at, index), None)
        self._errors.update({(at, index): text for index, text in errors.items()})

    # What follows happens on the first host.

    @property
    def _partial(self) -> pathlib.Path:
        assert self._file is not None
        return self._file.with_name(self._file.name + ".partial")

    def _open(self) -> None:
        from ._lock import Lock
        from ._zarr import NEW, Folder, check_names, repair

        assert self._file is not None
        with self._saying_what_is_missing():
            self._lock = Lock(self._file)
        try:
            for leftover in (self._file, self._partial):
                _remove(leftover.with_name(leftover.name + NEW))
            check_names(self._layout)
            if not _is_zarr(self._file):
                from ._netcdf import check_names as check_names_of_netcdf

                check_names_of_netcdf(self._layout)
            if self._partial.exists():
                with self._saying_what_is_missing():
                    self._folder = Folder.open(self._partial, self._layout)
                self._status, damage = self._folder.status()
                if damage:
                    for at, status in enumerate(self._status):
                        self._folder.forget(at, status)
                    self._warn(self._partial, damage)
            broken = self._file.with_name(self._file.name + ".damaged")
            for other in (self._file, broken):
                if other.exists():
                    if other == broken and other.is_dir():
                        repair(other, self._layout, "failed")
                    damage = self._absorb(other, self._layout)
                    if other == broken or damage:
                        self._warn(other, damage)
        except BaseException:
            self.__exit__()
            raise

    def _warn(self, path: pathlib.Path, damage: list[str]) -> None:
        intact, points = int((self._status != TO_DO).sum()), self._layout.count
        listed = ", ".join(damage[:5]) + (f" and {len(damage) - 5} more" if len(damage) > 5 else "")
        warnings.warn(
            f"sweep: {str(path)!r} is damaged: {listed or 'nothing that matters'}; {intact} of {points} points are "
            "intact, the others are run again",
            stacklevel=2,
        )

    def _absorb(self, file: pathlib.Path, layout: Layout) -> list[str]:
        from ._saved import Saved

        with Saved(file, layout) as saved:
            damage, errors = [*saved.flaws], saved.errors()
            for piece in saved.pieces():
                if piece.damage:
                    damage.append(piece.damage)
                    continue
                new = self._status[piece.variant, piece.indices] != DONE
                if new.any():
                    indices, status = piece.indices[new], piece.status[new]
                    self._write(piece.variant, indices, {name: it[new] for name, it in piece.values.items()}, status)
                    failed = indices[status == FAILED].tolist()
                    texts = {index: errors.get((piece.variant, index), "unknown") for index in failed}
                    self._note(piece.variant, indices, status, texts)
        return damage

    def _write(self, at: int, indices: np.ndarray, values: Mapping[str, np.ndarray], status: np.ndarray) -> None:
        if self._file is None:
            for name, found in values.items():
                self._values[name][at, indices] = found
            return
        from ._zarr import Folder

        with self._saying_what_is_missing():
            if self._folder is None:
                self._folder = Folder.create(self._partial, self._layout, len(indices))
            self._folder.add(at, indices, values, status, self._status[at])

    def _finish(self) -> None:
        from ._zarr import Folder, drop_status, sync_folder

        assert self._file is not None
        with self._saying_what_is_missing():
            if self._folder is None:  # a share without any point
                self._folder = Folder.create(self._partial, self._layout, self._layout.design.size)
            old = self._file.with_name(self._file.name + ".old")
            if _is_zarr(self._file):
                self._folder.finish(self._status, self._errors)
                self._folder.close()
                if self._file.exists():
                    _remove(old)
                    self._file.rename(old)
                self._partial.rename(self._file)
                sync_folder(self._file.parent)
                if (self._status != TO_DO).all():
                    drop_status(self._file)
            else:
                from ._netcdf import write_netcdf

                pieces = self._folder.pieces(self._status)
                write_netcdf(self._file, self._layout, self._folder.blocks, pieces, self._status, self._errors)
                self._folder.close()
        for leftover in (self._partial, old, self._file.with_name(self._file.name + ".damaged")):
            _remove(leftover)

    def _check_room(self, points: int) -> None:
        assert self._file is not None
        needed = points * self._layout.bytes_per_point
        whole = 0  # of a share only its own points take room, and some flags
        if not _is_zarr(self._file):
            whole = self._layout.count * self._layout.bytes_per_point + 2 * self._status.size
        free = shutil.disk_usage(self._file.parent).free
        if needed + whole > free:
            rest = f" while the sweep runs and {_mib(whole)} for the file at its end" if whole else ""
            raise OSError(
                f"sweep: file must be where there is room, got {str(self._file)!r}, which needs {_mib(needed)}{rest}; "
                f"{_mib(free)} are free"
            )
        limit = _largest_file()
        if whole > limit:
            raise OSError(
                f"sweep: file must not be larger than this process may write, {_mib(limit)}, got {str(self._file)!r}, "
                f"which will have {_mib(whole)}; raise the limit (ulimit -f), or use a name that ends with .zarr"
            )

    @contextlib.contextmanager
    def _saying_what_is_missing(self) -> Iterator[None]:
        """Explains the errors of the operating system."""
        assert self._file is not None
        try:
            yield
        except OSError as error:
            missing = int(((self._status == TO_DO) & self._layout.own).sum()) * self._layout.bytes_per_point
            try:
                free = _mib(shutil.disk_usage(self._file.parent).free)
            except OSError:
                free = "unknown"
            raise OSError(
                f"sweep: file must be where it can be written, got {str(self._file)!r}: {error}; the points to do need "
                f"{_mib(missing)}, and {free} are free; what is done is kept: call sweep again to go on"
            ) from error


def finished(file: pathlib.Path, layout: Layout) -> "xarray.Dataset | None":
    """The table in a file, if there is one and no point of it failed; all hosts look before any of them goes on.

    Raises:
        ValueError: If the file holds something else or is damaged, or if only some hosts see it.
    """
    seen = multihost_utils.process_allgather(np.array([file.exists(), file.with_name(file.name + ".partial").exists()]))
    if (seen != seen[0]).any():
        raise ValueError(f"sweep: file must be one that all hosts see, got {str(file)!r}, which only some of them do")
    if not file.exists():
        return None
    from ._lock import remove_dead_lock

    complete = np.zeros((), bool)

    def check() -> None:  # a partial file beside it is finished, too: a kill can leave it, or the lock
        complete[...] = _is_complete(file, layout) and not file.with_name(file.name + ".partial").exists()
        if complete:
            remove_dead_lock(file)

    on_first_host(check)
    return _load(file, layout) if from_first_host(complete) else None


def _is_complete(file: pathlib.Path, layout: Layout) -> bool:
    """Whether all points of a finished file are done; raises if it is damaged."""
    from ._saved import Saved

    with Saved(file, layout) as saved:
        damage, intact = [*saved.flaws], 0
        for piece in saved.pieces():
            if piece.damage:
                damage.append(piece.damage)
            else:
                intact += len(piece.indices)
        if damage:
            raise saved.damaged(", ".join(damage[:5]), intact)
        return saved.is_complete


def _load(file: pathlib.Path, layout: Layout) -> "xarray.Dataset":
    import xarray

    from ._zarr import LocalStore, WholeStore, open_folder

    if file.is_dir():  # a part of a table has no chunks for the points of the other parts
        table = open_folder(file, LocalStore if (file / "status").exists() else WholeStore)
    else:
        table = xarray.load_dataset(file, engine="h5netcdf")
    variables = {name: table.variables[name] for name in (*layout.variables, "failed", "status") if name in table}
    return _arranged(variables, table.attrs, layout)


def _arranged(variables: Mapping[str, Any], attributes: Mapping[str, Any], layout: Layout) -> "xarray.Dataset":
    """The table, which is the same from memory and from each file format."""
    import xarray

    names = {"variant": layout.variants} if layout.has_variants else {}
    return xarray.Dataset(variables, {**names, **layout.design.coords}, attributes)


def _is_zarr(file: pathlib.Path) -> bool:
    return file.suffix == ".zarr"


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _largest_file() -> float:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
