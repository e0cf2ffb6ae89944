"""The results of a sweep so far, saved to a file so that it can resume after an interruption."""

import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from ._sweep_points import Points


class Progress:
    """The metrics of every point of every variant, and which of them are done.

    While a sweep runs, they are saved next to `file`, in a file with the same name plus `.partial`.
    """

    def __init__(self, variants: Mapping[str, Points], size: int, file: pathlib.Path | None, fingerprint: str):
        self._file = file
        self._partial = None if file is None else file.with_name(file.name + ".partial")
        self._fingerprint = fingerprint
        self.done = {name: np.zeros(size, bool) for name in variants}
        self.values = {
            name: {metric: np.zeros((size, *like.shape), like.dtype) for metric, like in points.metrics.items()}
            for name, points in variants.items()
        }
        if self._partial is not None and self._partial.exists():
            self._load(self._partial)
        if file is not None:
            multihost_utils.sync_global_devices("sweep: the file is read")

    def add(self, variant: str, indices: np.ndarray, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics of some points and writes everything to the file."""
        for metric, values in metrics.items():
            self.values[variant][metric][indices] = values
        self.done[variant][indices] = True
        if self._partial is not None and jax.process_index() == 0:
            _replace(self._partial, self._save)

    def finish(self, write: Callable[[pathlib.Path], object]) -> None:
        """Writes the file itself, with `write`, and removes the partial one."""
        if self._file is None or self._partial is None:
            return
        if jax.process_index() == 0:
            _replace(self._file, write)
            self._partial.unlink(missing_ok=True)
        multihost_utils.sync_global_devices("sweep: the file is written")

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {}
        for at, name in enumerate(self.done):
            arrays[f"{at}/done"] = self.done[name]
            arrays.update({f"{at}/metrics/{metric}": values for metric, values in self.values[name].items()})
        return arrays

    def _save(self, new: pathlib.Path) -> None:
        with new.open("wb") as stream:
            np.savez(stream, allow_pickle=False, fingerprint=np.array(self._fingerprint), **self._arrays())

    def _load(self, partial: pathlib.Path) -> None:
        try:
            with np.load(partial) as file:
                saved = dict(file)
            fingerprint = str(saved["fingerprint"])
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise ValueError(
                f"sweep: {str(partial)!r} must be a sweep's, got {error}; remove it to start again"
            ) from None
        refuse_another(fingerprint, self._fingerprint, partial)
        for key, array in self._arrays().items():
            array[...] = saved[key]


def _replace(file: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Writes a file atomically: an interruption leaves the old one intact."""
    new = file.with_name(file.name + ".new")
    write(new)
    new.replace(file)


def check_shared(file: pathlib.Path) -> None:
    """Raises if some hosts see a file that others do not; no host continues before all have looked."""
    seen = multihost_utils.process_allgather(np.array([file.exists(), file.with_name(file.name + ".partial").exists()]))
    if (seen != seen[0]).any():
        raise ValueError(f"sweep: file must be one that all hosts see, got {str(file)!r}, which only some of them do")


def refuse_another(found: str, expected: str, file: pathlib.Path) -> None:
    """Raises if a file belongs to another sweep."""
    if found != expected:
        raise ValueError(
            f"sweep: file must be new or hold this sweep, got {str(file)!r}, which holds one with another function, "
            "grid or variants; remove it or use another"
        )
