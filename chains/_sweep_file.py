"""What a sweep has found so far, kept in a file so that it can go on after an interruption."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from ._sweep_points import Points


class Progress:
    """The metrics of every point of every variant, and which of them are there already.

    While a sweep runs, they are kept beside `file` in a file of the same name with `.partial` behind it.
    """

    def __init__(self, variants: Mapping[str, Points], size: int, file: pathlib.Path | None, fingerprint: str):
        self._partial = None if file is None else file.with_name(file.name + ".partial")
        self._fingerprint = fingerprint
        self.done = {name: np.zeros(size, bool) for name in variants}
        self.values = {
            name: {metric: np.zeros((size, *like.shape), like.dtype) for metric, like in points.metrics.items()}
            for name, points in variants.items()
        }
        if self._partial is not None and self._partial.exists():
            self._load(self._partial)

    def add(self, variant: str, indices: np.ndarray, metrics: Mapping[str, np.ndarray]) -> None:
        """Takes in the metrics of some points and writes all to the file."""
        for metric, values in metrics.items():
            self.values[variant][metric][indices] = values
        self.done[variant][indices] = True
        if self._partial is not None and jax.process_index() == 0:
            self._save(self._partial)

    def forget_file(self) -> None:
        """Removes the file, once the results are kept elsewhere."""
        if self._partial is not None and jax.process_index() == 0:
            self._partial.unlink(missing_ok=True)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {}
        for at, name in enumerate(self.done):
            arrays[f"{at}/done"] = self.done[name]
            arrays.update({f"{at}/metrics/{metric}": values for metric, values in self.values[name].items()})
        return arrays

    def _save(self, partial: pathlib.Path) -> None:
        new = partial.with_name(partial.name + ".new")  # replaced in one go: an interruption leaves the old one whole
        with new.open("wb") as stream:
            np.savez(stream, allow_pickle=False, fingerprint=np.array(self._fingerprint), **self._arrays())
        new.replace(partial)

    def _load(self, partial: pathlib.Path) -> None:
        with np.load(partial) as saved:
            refuse_another(str(saved["fingerprint"]), self._fingerprint, partial)
            for key, array in self._arrays().items():
                array[...] = saved[key]


def refuse_another(found: str, expected: str, file: pathlib.Path) -> None:
    """Raises if a file belongs to another sweep."""
    if found != expected:
        raise ValueError(
            f"sweep: file must be new or hold this sweep, got {str(file)!r}, which holds one with another function, "
            "grid or variants; remove it or name another"
        )
