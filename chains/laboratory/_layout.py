"""What a sweep's table looks like."""

import json
import math
import numbers
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ._design import OWN_NAMES, Design

if TYPE_CHECKING:
    import xarray

TO_DO, DONE, FAILED = range(3)  # the status of a point


_IDENTITY = ("fingerprint", "share")  # attributes


class Layout:
    """What a sweep's table looks like, and where it comes from.

    Attributes:
        variants: The names of the variants; a single "" without variants.
        has_variants: Whether the table has a dimension for them.
        design: The points of each variant.
        metrics: Shape and dtype of each metric at one point.
        dims: The names of each metric's own dimensions.
        attributes: The attributes of the table, such as the printed chains and the fingerprint.
        share: The part of the points that the table is to have, as (number, shares); `None` for all of them.
    """

    def __init__(
        self,
        variants: list[str],
        has_variants: bool,
        design: Design,
        metrics: Mapping[str, jax.ShapeDtypeStruct],
        dims: Mapping[str, list[str]],
        attributes: Mapping[str, str],
        share: tuple[int, int] | None = None,
    ):
        self.variants = variants
        self.has_variants = has_variants
        self.design = design
        self.metrics = metrics
        self.dims = dims
        self.attributes = {**attributes, **({} if share is None else {"share": f"{share[0]} of {share[1]}"})}
        self.share = share

    @property
    def identity(self) -> dict[str, Any]:
        """The attributes that change when the computation, the points, the names or the share change."""
        return {name: self.attributes[name] for name in _IDENTITY if name in self.attributes}

    def is_of(self, attributes: Mapping[str, Any]) -> bool:
        """Whether attributes of a table are those of this sweep and this share."""
        return {name: attributes[name] for name in _IDENTITY if name in attributes} == self.identity

    @property
    def count(self) -> int:
        """How many points the table is to have, of all variants."""
        start, stop = self._bounds
        return stop - start

    @property
    def own(self) -> np.ndarray:
        """Whether the table is to have a point, by variant and flat index."""
        own = np.zeros(len(self.variants) * self.design.size, bool)
        own[slice(*self._bounds)] = True
        return own.reshape(len(self.variants), self.design.size)

    @property
    def _bounds(self) -> tuple[int, int]:
        """The first point of the share and the one after its last; those of all variants are counted through."""
        number, shares = self.share or (0, 1)
        size = len(self.variants) * self.design.size
        return size * number // shares, size * (number + 1) // shares

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
        """A point of a variant by its place in the table and its hyperparameters."""
        name = {"variant": self.variants[variant]} if self.has_variants else {}
        return {**name, **self.design.coordinates(index)}

    def described(self, errors: Mapping[tuple[int, int], str]) -> dict[str, str]:
        """The attributes of the table, with the errors of the points that failed and a checksum."""
        listed = [{**self.point(*at), "error": errors[at]} for at in sorted(errors)]
        attributes = {**self.attributes, "errors": json.dumps(listed)}
        return {**attributes, "checksum": self._checksum(attributes)}

    def describes(self, attributes: Mapping[str, Any]) -> bool:
        """Whether attributes are those of a table as it was written; others may have been added."""
        ours = {name: attributes.get(name) for name in (*self.attributes, "errors")}
        return attributes.get("checksum") == self._checksum(ours)

    def _checksum(self, attributes: Mapping[str, Any]) -> str:
        """A checksum of attributes, coordinates and dimensions, which the checksums of files leave out."""
        covered = [attributes, self.variants, self.design.identity, self.dims]
        return f"{zlib.crc32(json.dumps(covered, sort_keys=True).encode()):08x}"


def fill_of(dtype: np.dtype) -> Any:
    """The value where there is none: NaN if the dtype has it, else 0."""
    return np.dtype(dtype).type(np.nan if np.dtype(dtype).kind in "fc" else 0)


def layout_of(table: "xarray.Dataset") -> Layout:
    """The layout of a finished table.

    Raises:
        LookupError: If the table is not a sweep's.
    """
    if missing := {"fingerprint", "date", "device"} - table.attrs.keys():
        raise LookupError(f"it has no attributes {', '.join(sorted(missing))}")
    attributes = {name: str(text) for name, text in table.attrs.items()}
    own = {name: text for name, text in attributes.items() if name not in ("errors", "checksum", "share")}
    share = None
    if "share" in attributes:
        number, _, shares = attributes["share"].partition(" of ")
        share = int(number), int(shares)
    dims = [str(dim) for dim in table["failed"].dims]
    lead, points = len(dims), [dim for dim in dims if dim != "variant"]
    listed = {str(name): values.values for name, values in table.coords.items() if values.dims == ("point",)}
    grid = {dim: table.coords[dim].values for dim in points if dim != "point"}
    metrics = {str(name): values for name, values in table.data_vars.items() if name not in OWN_NAMES}
    return Layout(
        [str(name) for name in table.coords["variant"].values] if "variant" in dims else [""],
        "variant" in dims,
        Design(listed, grid),
        {name: jax.ShapeDtypeStruct(values.shape[lead:], values.dtype) for name, values in metrics.items()},
        {name: [str(dim) for dim in values.dims[lead:]] for name, values in metrics.items()},
        own,
        share,
    )


def check_share(share: Any) -> tuple[int, int]:
    """The share as two integers; refuses what is none."""
    is_pair = isinstance(share, Sequence) and len(share) == 2
    if not is_pair or not all(isinstance(part, numbers.Integral) and not isinstance(part, bool) for part in share):
        raise TypeError(f"sweep: share must be two integers, (number, shares), got {share!r}")
    number, shares = map(int, share)
    if not 0 <= number < shares:
        raise ValueError(f"sweep: share must be (number, shares) with 0 <= number < shares, got {share!r}")
    return number, shares
