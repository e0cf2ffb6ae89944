"""A sweep in shares: processes that know nothing of each other compute a part each, and the parts are put together."""

import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._layout import Layout, layout_of
from ._results import Results

if TYPE_CHECKING:
    import xarray


def merge_shares(files: Iterable[str | os.PathLike], file: str | os.PathLike | None = None) -> "xarray.Dataset":
    """Puts the shares of a sweep together: the table that one process would have computed.

    It is the same to the last bit (apart from the date and the devices), fingerprint included: `sweep` without `share`
    reads its file, and tries again the points that failed.

    Args:
        files: The finished files of all shares, `sweep(..., share=(0, n), file=...)` and so on, in any order.
        file: Where to save the table: a new file, NetCDF or Zarr by its name, as in `sweep`. If `None`, it is put
            together in memory and not saved.

    Returns:
        The table, as `sweep` returns it.

    Raises:
        ValueError: If a share is missing, there twice or damaged, if files belong to different sweeps or are no shares,
            or if `file` exists.
        TypeError: If `files` is a single path.
        OSError: If `file` cannot be written or there is no room for it.

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
    if isinstance(files, str | os.PathLike):
        raise TypeError(f"merge_shares: files must be a sequence of files, got {files!r}")
    paths = [pathlib.Path(path).absolute() for path in files]
    target = None if file is None else pathlib.Path(file).absolute()
    if not paths:
        raise ValueError("merge_shares: files must have at least one file, got none")
    if target is not None and target.exists():
        raise ValueError(f"merge_shares: file must be new, got {str(target)!r}, which exists")
    if target is not None and not target.parent.is_dir():
        raise ValueError(f"merge_shares: file must be in a folder that exists, got {str(target)!r}")
    found: dict[int, tuple[pathlib.Path, Layout]] = {}
    first = paths[0], _layout(paths[0])
    shares = _share(first[1])[1]
    for path in paths:
        layout = _layout(path)
        number, count = _share(layout)
        if (count, layout.attributes["fingerprint"]) != (shares, first[1].attributes["fingerprint"]):
            raise ValueError(
                f"merge_shares: files must be shares of one sweep, got {str(path)!r}, which is of another than "
                f"{str(first[0])!r}"
            )
        if number in found:
            raise ValueError(
                f"merge_shares: files must have each share once, got share {number} in {str(found[number][0])!r} and "
                f"in {str(path)!r}"
            )
        found[number] = path, layout
    if missing := sorted(set(range(shares)) - found.keys()):
        raise ValueError(f"merge_shares: files must have all {shares} shares, got none for {missing}")

    whole = _whole([layout for _, (_, layout) in sorted(found.items())])
    with Results(whole, target) as results:
        results.reserve(whole.count)
        for path, layout in found.values():
            if damage := results.absorb(path, layout):
                raise ValueError(
                    f"merge_shares: files must be intact, got {str(path)!r}, which is damaged: "
                    f"{', '.join(damage[:5])}; run its share again, which says how to keep what is intact"
                )
        return results.finish()


def _layout(path: pathlib.Path) -> Layout:
    """What the table of a finished share looks like."""
    from ._saved import open_table

    if not path.exists():
        unfinished = path.with_name(path.name + ".partial").exists()
        why = "is not finished: run its share again" if unfinished else "does not exist"
        raise ValueError(f"merge_shares: files must be finished shares, got {str(path)!r}, which {why}")
    try:
        with open_table(path) as table:
            layout = layout_of(table)
    except Exception as error:  # whatever the readers raise for bytes that are not theirs
        raise ValueError(f"merge_shares: files must be finished shares, got {str(path)!r}: {error}") from None
    if layout.share is None:
        raise ValueError(
            f"merge_shares: files must be finished shares, got {str(path)!r}, which has no attribute 'share'"
        )
    return layout


def _share(layout: Layout) -> tuple[int, int]:
    assert layout.share is not None
    return layout.share


def _whole(layouts: list[Layout]) -> Layout:
    """What the whole table looks like; it has the last date, and every kind of devices."""
    first = layouts[0]
    attributes = {name: value for name, value in first.attributes.items() if name != "share"}
    attributes["date"] = max(layout.attributes["date"] for layout in layouts)
    attributes["device"] = "; ".join(dict.fromkeys(layout.attributes["device"] for layout in layouts))
    return Layout(first.variants, first.has_variants, first.design, first.metrics, first.dims, attributes)
