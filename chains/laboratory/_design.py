"""The points of a sweep: the cells of a grid of hyperparameters, a list of points, or every pair of the two."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OWN_NAMES = ("variant", "point", "diverged", "failed", "status")


class Design(NamedTuple):
    """All points of a sweep, in a fixed order: a point is known by its flat index."""

    listed: Mapping[str, np.ndarray]  # hyperparameters that vary together: one value of each per listed point
    grid: Mapping[str, np.ndarray]  # hyperparameters of which every combination is a point

    @property
    def axes(self) -> dict[str, np.ndarray]:
        """The values of each hyperparameter."""
        return {**self.listed, **self.grid}

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions of the table, without that of the variants."""
        return (*(("point",) if self.listed else ()), *self.grid)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many points there are along each of the dimensions."""
        listed = [len(column) for column in self.listed.values()][:1]
        return (*listed, *(len(values) for values in self.grid.values()))

    @property
    def size(self) -> int:
        """How many points there are."""
        return math.prod(self.shape)

    @property
    def coords(self) -> dict[str, Any]:
        """The coordinates of the table, as xarray takes them."""
        return {**{name: ("point", column) for name, column in self.listed.items()}, **self.grid}

    @property
    def identity(self) -> Any:
        """What makes it another design, as JSON."""
        return [
            {name: [str(values.dtype), hashlib.sha256(values.tobytes()).hexdigest()] for name, values in part.items()}
            for part in (self.listed, self.grid)
        ]

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The hyperparameters of the points at flat indices."""
        at = dict(zip(self.dims, np.unravel_index(indices, self.shape)))
        return {
            **{name: column[at["point"]] for name, column in self.listed.items()},
            **{name: values[at[name]] for name, values in self.grid.items()},
        }

    def coordinates(self, index: int) -> dict[str, Any]:
        """The place of one point in the table, as JSON: its number in the list, and its hyperparameters."""
        at = dict(zip(self.dims, np.unravel_index(index, self.shape)))
        listed = {"point": int(at["point"])} if self.listed else {}
        return {**listed, **{name: column.item() for name, column in self.columns(np.asarray(index)).items()}}


def design_of(grid: Mapping[str, Any] | None, points: Any) -> Design:
    """The design whose points are all combinations of the grid's axes, with each of the listed points."""
    if grid is None and points is None:
        raise ValueError("sweep: grid or points must be given, got neither")
    if grid is not None and (not isinstance(grid, Mapping) or not grid):
        raise ValueError(f"sweep: grid must be a dictionary with at least one axis, got {grid!r}")
    if points is not None and not (hasattr(points, "keys") and hasattr(points, "__getitem__")):
        raise TypeError(f"sweep: points must be a dictionary of columns or a data frame, got {points!r}")
    listed = {} if points is None else {name: _values("column", name, points[name]) for name in points}
    axes = {name: _values("axis", name, values) for name, values in (grid or {}).items()}
    if points is not None and not listed:
        raise ValueError(f"sweep: points must have at least one column, got {points!r}")
    if len({len(column) for column in listed.values()}) > 1:
        lengths = ", ".join(f"{name!r}: {len(column)}" for name, column in listed.items())
        raise ValueError(f"sweep: the columns of points must be of equal length, got {lengths}")
    if twice := sorted(listed.keys() & axes.keys()):
        raise ValueError(f"sweep: a hyperparameter must be in grid or in points, got {twice} in both")
    for name, values in axes.items():
        if len(np.unique(values)) < len(values):
            raise ValueError(
                f"sweep: axis {name!r} must have no duplicate values (as {values.dtype}), got {(grid or {})[name]!r}"
            )
    return Design(listed, axes)


def _values(what: str, name: Any, values: Any) -> np.ndarray:
    """The values of a hyperparameter, in the dtype in which JAX computes with them."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"sweep: the names of axes and columns must be valid argument names, got {name!r}")
    if name in OWN_NAMES:
        raise ValueError(f"sweep: a hyperparameter must not be called {' or '.join(OWN_NAMES)}, got {name!r}")
    try:
        array = np.asarray(values if hasattr(values, "__array__") else list(values))
    except (TypeError, ValueError):  # not a sequence, or sequences of different lengths
        raise TypeError(f"sweep: {what} {name!r} must be a sequence of numbers, got {values!r}") from None
    if np.ma.is_masked(values):
        raise TypeError(f"sweep: {what} {name!r} must be without masked values, got {values!r}")
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4:
        array = array.astype(np.float32)  # including those unknown to NumPy, such as bfloat16
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # long double, unknown to JAX
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"sweep: {what} {name!r} must have one dimension and at least one value, got {values!r}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"sweep: {what} {name!r} must be numeric, got {values!r}")
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    with np.errstate(over="ignore"):
        held = array.astype(dtype)
    if not np.allclose(held, array, rtol=1e-6, atol=0, equal_nan=True):
        raise ValueError(f"sweep: {what} {name!r} must fit into {dtype}, got {values!r}; or enable jax_enable_x64")
    return held
