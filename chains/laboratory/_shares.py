"""A sweep in shares: processes that know nothing of each other compute a part each, and the parts are put together."""

import json
import numbers
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._results import write

if TYPE_CHECKING:
    import xarray


def check_share(share: Any) -> tuple[int, int]:
    """The share as two integers; refuses what is none."""
    is_pair = isinstance(share, Sequence) and len(share) == 2
    if not is_pair or not all(isinstance(part, numbers.Integral) and not isinstance(part, bool) for part in share):
        raise TypeError(f"sweep: share must be two integers, (number, shares), got {share!r}")
    number, shares = map(int, share)
    if not 0 <= number < shares:
        raise ValueError(f"sweep: share must be (number, shares) with 0 <= number < shares, got {share!r}")
    return number, shares


def bounds(share: tuple[int, int], runs: int) -> tuple[int, int]:
    """The first run of a share and the one after its last; all points of all variants are counted through."""
    number, shares = share
    return runs * number // shares, runs * (number + 1) // shares


def own_points(share: tuple[int, int], variant: int, variants: int, size: int) -> np.ndarray:
    """The flat indices of the points of one variant that belong to a share."""
    start, stop = bounds(share, variants * size)
    return np.arange(max(start - variant * size, 0), max(min(stop - variant * size, size), 0))


def merge_shares(files: Iterable[str | os.PathLike], file: str | os.PathLike | None = None) -> "xarray.Dataset":
    """Puts the shares of a sweep together: the table that one process would have computed.

    It is the same to the last bit (apart from the date and the devices), fingerprint included: `sweep` without `share`
    reads its file, and tries again the points that failed.

    Args:
        files: The finished files of all shares, `sweep(..., share=(0, n), file=...)` and so on, in any order.
        file: Where to save the table: a new file, as in `sweep`. If `None`, it is not saved.

    Returns:
        The table, as `sweep` returns it.

    Raises:
        ValueError: If a share is missing or there twice, if files belong to different sweeps or are no shares, or if
            `file` exists. Nothing is written then.

    Example:
        >>> import pathlib, tempfile
        >>> from linkax import merge_shares, sweep
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> files = [folder / f"share_{number}.nc" for number in range(3)]
        >>> for number, file in enumerate(files):  # usually in three processes, which need not run at the same time
        ...     _ = sweep(
        ...         lambda x: {"square": x * x}, {"x": range(7)}, share=(number, 3), file=file, progress=False
        ...     )
        >>> merge_shares(files)["square"].values.tolist()
        [0, 1, 4, 9, 16, 25, 36]

    Source:
        Job arrays, as in Slurm's `--array`.
    """
    paths = [pathlib.Path(path) for path in files]
    target = None if file is None else pathlib.Path(file)
    if not paths:
        raise ValueError("merge_shares: files must have at least one file, got none")
    if target is not None and target.exists():
        raise ValueError(f"merge_shares: file must be new, got {str(target)!r}, which exists")
    if target is not None and not target.absolute().parent.is_dir():
        raise ValueError(f"merge_shares: file must be in a folder that exists, got {str(target)!r}")
    found: dict[int, pathlib.Path] = {}
    first: Any = None
    for path in paths:
        if not path.exists():
            unfinished = path.with_name(path.name + ".partial").exists()
            why = "is not finished: run its share again" if unfinished else "does not exist"
            raise ValueError(f"merge_shares: files must be finished shares, got {str(path)!r}, which {why}")
        try:
            with _open(path) as table:
                attributes = dict(table.attrs)
        except (OSError, ValueError) as error:
            raise ValueError(f"merge_shares: files must be finished shares, got {str(path)!r}: {error}") from None
        if not {"share", "fingerprint"} <= attributes.keys():
            raise ValueError(
                f"merge_shares: files must be finished shares, got {str(path)!r}, which has no attribute 'share'"
            )
        number, shares = map(int, attributes["share"].split(" of "))
        first = first or (path, shares, attributes["fingerprint"])
        if (shares, attributes["fingerprint"]) != first[1:]:
            raise ValueError(
                f"merge_shares: files must be shares of one sweep, got {str(path)!r}, which is of another than "
                f"{str(first[0])!r}"
            )
        if number in found:
            raise ValueError(
                f"merge_shares: files must have each share once, got share {number} in {str(found[number])!r} and in "
                f"{str(path)!r}"
            )
        found[number] = path
    if missing := sorted(set(range(first[1])) - found.keys()):
        raise ValueError(f"merge_shares: files must have all {first[1]} shares, got none for {missing}")

    with _open(found[0]) as table:
        whole = table.load()
    all_attributes = []
    for number, path in sorted(found.items()):
        with _open(path) as table:
            start, stop = bounds((number, first[1]), table["failed"].size)
            runs = table["failed"].dims
            for name, values in whole.data_vars.items():
                flat = (table["failed"].size, *values.shape[len(runs) :])
                values.values.reshape(flat)[start:stop] = table[name].values.reshape(flat)[start:stop]
            all_attributes.append(table.attrs)
    whole.attrs = _merged(all_attributes)
    if target is not None:
        write(target, whole)
    return whole


def _merged(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """The attributes of the whole table: all errors in order, the last date, and every kind of devices."""
    merged = {name: value for name, value in attributes[0].items() if name != "share"}
    merged["errors"] = json.dumps([error for its in attributes for error in json.loads(its["errors"])])
    merged["date"] = max(its["date"] for its in attributes)
    merged["device"] = "; ".join(dict.fromkeys(its["device"] for its in attributes))
    return merged


def _open(path: pathlib.Path) -> "xarray.Dataset":
    import xarray

    return xarray.open_dataset(path, engine="zarr" if path.suffix == ".zarr" else "h5netcdf")
