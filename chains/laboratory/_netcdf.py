"""A NetCDF file that is written block by block, with checksums, and gets its name when it is complete."""

import io
import os
import pathlib
from collections.abc import Iterable, Mapping

import h5netcdf
import numpy as np
import xarray
from xarray.backends import H5NetCDFStore

from ._blocks import Blocks
from ._layout import FAILED, TO_DO, Layout, fill_of
from ._zarr import NEW, sync_folder

Piece = tuple[tuple[slice, ...], Mapping[str, np.ndarray]]


def write_netcdf(
    file: pathlib.Path,
    layout: Layout,
    blocks: Blocks,
    pieces: Iterable[Piece],
    status: np.ndarray,
    errors: Mapping[tuple[int, int], str],
) -> None:
    """Writes a finished table; `pieces` are the blocks, with their places in it."""
    new = file.with_name(file.name + NEW)
    flags = {"failed": status == FAILED, **({"status": status} if (status == TO_DO).any() else {})}
    try:
        with _begun(new, layout, blocks, errors) as table:
            for name, values in flags.items():
                dims, shape = layout.flags
                _create(table, name, dims, shape, values.dtype, shape)[...] = _stored(values.reshape(shape))
            for region, values in pieces:
                for name, array in values.items():
                    if array.size:
                        table.variables[name][region] = _stored(array)
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
        new.replace(file)
        sync_folder(file.parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def check_names(layout: Layout) -> None:
    """Raises if NetCDF cannot hold a table as it is, such as one of more than 32 dimensions or an empty name."""
    file = io.BytesIO()
    try:
        with _begun(file, layout, Blocks(layout.design.shape, (1,) * len(layout.design.shape)), {}):
            pass
        with xarray.open_dataset(file, engine="h5netcdf") as table:
            found = {name: values.dims for name, values in table.variables.items()}
        expected = {name: dims for name, (dims, _, _) in layout.variables.items()}
        if lost := sorted(name for name, dims in expected.items() if found.get(name) != dims):
            raise ValueError(f"it would not be the same for {lost}")
    except Exception as error:  # whatever HDF5 raises
        raise ValueError(f"sweep: file must be able to hold the table, got one that NetCDF cannot: {error}") from error


def _begun(
    file: pathlib.Path | io.BytesIO, layout: Layout, blocks: Blocks, errors: Mapping[tuple[int, int], str]
) -> h5netcdf.File:
    """A table with its coordinates and attributes, but without the values of its variables."""
    # The format of HDF5 1.10 is the first whose own data structures have checksums, too.
    table = h5netcdf.File(file, "w", libver=("v110", "v110"))
    try:
        layout.coords().assign_attrs(layout.described(errors)).dump_to_store(H5NetCDFStore(table))
        for name, (dims, shape, dtype) in layout.variables.items():
            lead = (1,) * layout.has_variants
            own = shape[len(lead) + len(blocks.shape) :]
            _create(table, name, dims, shape, dtype, (*lead, *blocks.block, *own))
    except BaseException:
        table.close()
        raise
    return table


def _create(
    table: h5netcdf.File,
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: np.dtype,
    chunks: tuple[int, ...],
) -> h5netcdf.Variable:
    for dim, length in zip(dims, shape):
        if dim not in table.dimensions:
            table.dimensions[dim] = length
    is_bool = dtype.kind == "b"
    dtype = np.dtype(np.int8) if is_bool else dtype
    storage = {"chunks": chunks, "fletcher32": True} if 0 not in shape else {}
    fill = fill_of(dtype) if dtype.kind == "f" else None  # xarray takes other fill values for missing ones
    variable = table.create_variable(name, dims, dtype, fillvalue=fill, **storage)
    if is_bool:
        variable.attrs["dtype"] = "bool"  # as xarray writes it
    return variable


def _stored(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int8) if values.dtype.kind == "b" else values
