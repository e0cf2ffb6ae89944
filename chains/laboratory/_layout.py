"""What a sweep's table looks like."""

import json
import math
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ._design import Design

if TYPE_CHECKING:
    import xarray

TO_DO, DONE, FAILED = range(3)  # the status of a point


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
    def fingerprint(self) -> str:
        """A string that changes when the computation, the points or the names change."""
        return self.attributes["fingerprint"]

    @property
    def variables(self) -> dict[str, tuple[tuple[str, ...], tuple[int, ...], np.dtype]]:
        """Dimensions, shape and dtype of the metrics, and of `diverged`, in the table."""
        dims = ("variant",) * self.has_variants + self.design.dims
        shape = (len(self.variants),) * self.has_variants + self.design.shape
        variables = {
            name: ((*dims, *self.dims[name]), (*shape, *like.shape), np.dtype(like.dtype))
            for name, like in self.metrics.items()
        }
        return {**variables, "diverged": (dims, shape, np.dtype(bool))}

    @property
    def flags(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Dimensions and shape of what has one value a point, such as `failed`."""
        return self.variables["diverged"][:2]

    @property
    def bytes_per_point(self) -> int:
        """What a point's metrics take, with what is kept about them."""
        return sum(math.prod(like.shape) * like.dtype.itemsize for like in self.metrics.values()) + 3

    def coords(self) -> "xarray.Dataset":
        """A table of the coordinates only."""
        import xarray

        names = {"variant": np.array(self.variants, object)} if self.has_variants else {}
        return xarray.Dataset(coords={**names, **self.design.coords})

    def point(self, variant: int, index: int) -> dict[str, Any]:
        """A point of a variant by the names and values of its hyperparameters."""
        columns = self.design.columns(np.array([index]))
        name = {"variant": self.variants[variant]} if self.has_variants else {}
        return {**name, **{axis: values[0].item() for axis, values in columns.items()}}

    def described(self, errors: Mapping[tuple[int, int], str]) -> dict[str, str]:
        """The attributes of the table, with the errors of the points that failed and a checksum of all of them."""
        listed = [{**self.point(*at), "error": errors[at]} for at in sorted(errors)]
        attributes = {**self.attributes, "errors": json.dumps(listed)}
        return {**attributes, "checksum": _checksum(attributes)}

    def describes(self, attributes: Mapping[str, Any]) -> bool:
        """Whether attributes of a table are as they were written; others may have been added."""
        ours = {name: attributes.get(name) for name in (*self.attributes, "errors")}
        return attributes.get("checksum") == _checksum(ours)


def _checksum(attributes: Mapping[str, Any]) -> str:
    """A checksum of attributes, which the checksums of files leave out."""
    return f"{zlib.crc32(json.dumps(attributes, sort_keys=True).encode()):08x}"


def fill_of(dtype: np.dtype) -> Any:
    """The value where there is none: NaN if the dtype has it, else 0."""
    return np.dtype(dtype).type(np.nan if np.dtype(dtype).kind in "fc" else 0)
