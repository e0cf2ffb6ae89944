"""The points of a sweep: the cells of a grid of hyperparameters."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OWN_NAMES = ("variant", "diverged", "failed", "status")


class Design(NamedTuple):
    """All points of a sweep, in a fixed order: a point is known by its flat index."""

    axes: Mapping[str, np.ndarray]  # the values of each hyperparameter

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions of the table, without that of the variants."""
        return tuple(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many points there are along each of the dimensions."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def size(self) -> int:
        """How many points there are."""
        return math.prod(self.shape)

    @property
    def coords(self) -> dict[str, Any]:
        """The coordinates of the table, as xarray takes them."""
        return dict(self.axes)

    @property
    def identity(self) -> Any:
        """What makes it another design, as JSON."""
        return {name: [str(axis.dtype), axis.tolist()] for name, axis in self.axes.items()}

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The hyperparameters of the points at flat indices."""
        unraveled = np.unravel_index(indices, self.shape)
        return {name: values[at] for at, (name, values) in zip(unraveled, self.axes.items())}


def grid_design(grid: Mapping[str, Any]) -> Design:
    """The design whose points are all combinations of the axes' values."""
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"sweep: grid must be a dictionary with at least one axis, got {grid!r}")
    axes = {}
    for name, values in grid.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"sweep: the name of an axis must be a valid argument name, got {name!r}")
        if name in OWN_NAMES:
            raise ValueError(f"sweep: an axis must not be called {' or '.join(OWN_NAMES)}, got {name!r}")
        try:
            axis = np.asarray(values if hasattr(values, "__array__") else list(values))
        except (TypeError, ValueError):  # not a sequence, or sequences of different lengths
            raise TypeError(f"sweep: axis {name!r} must be a sequence of numbers, got {values!r}") from None
        if np.ma.is_masked(values):
            raise TypeError(f"sweep: axis {name!r} must be without masked values, got {values!r}")
        if jnp.issubdtype(axis.dtype, jnp.floating) and axis.dtype.itemsize < 4:
            axis = axis.astype(np.float32)  # including those unknown to NumPy, such as bfloat16
        if axis.ndim != 1 or axis.size == 0:
            raise ValueError(f"sweep: axis {name!r} must have one dimension and at least one value, got {values!r}")
        if axis.dtype.kind not in "biuf":
            raise TypeError(f"sweep: axis {name!r} must be numeric, got {values!r}")
        dtype = jax.dtypes.canonicalize_dtype(axis.dtype)
        with np.errstate(over="ignore"):
            axes[name] = axis.astype(dtype)
        if not np.allclose(axes[name], axis, rtol=1e-6, atol=0, equal_nan=True):
            raise ValueError(f"sweep: axis {name!r} must fit into {dtype}, got {values!r}; or enable jax_enable_x64")
        if len(np.unique(axes[name])) < len(axis):
            raise ValueError(f"sweep: axis {name!r} must have no duplicate values (as {dtype}), got {values!r}")
    return Design(axes)
