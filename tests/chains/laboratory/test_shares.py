"""The shares of a sweep, put together, are the table that one process computes; what does not fit is refused."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

from linkax.chains import merge_shares, sgd, sweep
from linkax.chains.laboratory._design import Design
from linkax.chains.laboratory._layout import Layout

from .sweep_hosts import GRID, VARIANTS, train
from .test_failures import Fragile

sweep_silently = functools.partial(sweep, progress=False)


def write_shares(folder, shares, *arguments, suffix=".nc", **options):
    files = [folder / f"{number}_of_{shares}{suffix}" for number in range(shares)]
    for number, file in enumerate(files):
        sweep_silently(*arguments, **options, share=(number, shares), file=file)
    return files


@pytest.mark.parametrize(("shares", "suffix"), [(1, ".nc"), (4, ".nc"), (4, ".zarr")])
def test_shares_are_the_table_of_one_process(shares, suffix, tmp_path):
    options = {"metric_dims": {"loss": ["step"]}, "chunk_size": 3}
    files = write_shares(tmp_path, shares, train, GRID, VARIANTS, **options, suffix=suffix)
    whole = sweep_silently(train, GRID, VARIANTS, **options)
    merged = merge_shares(files[::-1], tmp_path / "table.nc")
    times = {"date": "", "checksum": ""}  # the checksum is of all attributes
    assert {**merged.attrs, **times} == {**whole.attrs, **times}
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "table.nc", engine="h5netcdf"), merged)
    merged.attrs = whole.attrs
    xarray.testing.assert_identical(merged, whole)
    again = sweep_silently(train, GRID, VARIANTS, **options, file=tmp_path / "table.nc")
    xarray.testing.assert_equal(again, whole)


def test_a_share_computes_only_its_own_points_and_says_which_it_is(tmp_path):
    fragile, points = Fragile([]), {"x": np.arange(10.0)}
    found = sweep_silently(fragile, points=points, share=(1, 3), file=tmp_path / "1.nc")
    assert sorted(fragile.ran) == [3.0, 4.0, 5.0]
    assert found.attrs["share"] == "1 of 3"
    assert np.isfinite(found["square"]).values.tolist() == [3 <= x < 6 for x in range(10)]
    assert not found["diverged"].any()
    fragile.ran = []
    xarray.testing.assert_identical(sweep_silently(fragile, points=points, share=(1, 3), file=tmp_path / "1.nc"), found)
    assert fragile.ran == []
    with pytest.raises(ValueError, match="^sweep: file must be new or hold this sweep"):
        sweep_silently(fragile, points=points, share=(2, 3), file=tmp_path / "1.nc")


def test_failed_points_of_shares_are_tried_again_in_the_merged_file(tmp_path):
    fragile, grid = Fragile([2.0, 8.0]), {"x": np.arange(9.0)}
    with pytest.warns(RuntimeWarning, match="1 of 3 points failed"):
        files = write_shares(tmp_path, 3, fragile, grid)
    merged = merge_shares(files, tmp_path / "table.nc")
    assert [error["x"] for error in json.loads(merged.attrs["errors"])] == [2.0, 8.0]
    assert merged["failed"].values.sum() == 2
    fragile.bad, fragile.ran = set(), []
    found = sweep_silently(fragile, grid, file=tmp_path / "table.nc")
    assert set(fragile.ran) == {2.0, 8.0}
    np.testing.assert_array_equal(found["square"], np.arange(9.0) ** 2)


@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 30))
def test_every_point_has_one_share_and_shares_differ_by_one(variants, size, shares):
    names, design = [str(at) for at in range(variants)], Design({}, {"x": np.arange(size)})
    layouts = [Layout(names, True, design, {}, {}, {}, (number, shares)) for number in range(shares)]
    assert (sum(layout.own.astype(int) for layout in layouts) == 1).all()
    counts = [layout.count for layout in layouts]
    assert counts == [layout.own.sum() for layout in layouts]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_damage_of_what_has_no_checksum_of_its_own_is_noticed(suffix, tmp_path):
    grid, values = {"x": np.arange(100.0, 103.0)}, np.arange(100, 103, dtype=np.float32).tobytes()
    options = {"metric_dims": {"cube": ["steps"]}}
    cube = lambda tx, x: {"cube": x**3 * jnp.ones(2)}  # noqa: E731
    files = write_shares(tmp_path, 2, cube, grid, {"plain": sgd(0.1)}, **options, suffix=suffix)
    parts = files[:1] if suffix == ".nc" else [files[0] / "x" / "c" / "0", files[0] / "zarr.json"]
    for old in (values, b"plain") if suffix == ".nc" else (values, b"steps"):  # HDF5 has checksums of its names
        part = next(path for path in parts if old in path.read_bytes())
        intact = part.read_bytes()
        part.write_bytes(intact.replace(old, old[::-1]))
        with pytest.raises(ValueError, match="^merge_shares: files must be (intact|finished)"):
            merge_shares(files)
        part.write_bytes(intact)
    merge_shares(files)


def test_what_does_not_fit_is_refused(tmp_path):
    square = lambda x: {"square": x * x}  # noqa: E731
    files = write_shares(tmp_path, 3, square, {"x": [1.0, 2.0, 3.0]})
    whole, foreign, text = tmp_path / "whole.nc", tmp_path / "foreign.nc", tmp_path / "text.nc"
    sweep_silently(square, {"x": [1.0, 2.0, 3.0]}, file=whole)
    sweep_silently(lambda x: {"square": x + jnp.pi}, {"x": [1.0, 2.0, 3.0]}, share=(0, 3), file=foreign)
    text.write_text("no table")
    (tmp_path / "running.nc.partial").touch()
    for given_files, message in (
        ([], "files must have at least one file"),
        (files[:1], r"files must have all 3 shares, got none for \[1, 2\]"),
        ([*files, files[1]], "files must have each share once, got share 1 in"),
        (
            [*files[1:], foreign],
            "files must be shares of one sweep, got .*foreign.nc', which is of another than .*1_of_3.nc'",
        ),
        ([*files, whole], "whole.nc', which has no attribute 'share'"),
        ([*files[1:], text], "files must be finished shares, got .*text.nc'"),
        ([*files[1:], tmp_path / "running.nc"], "running.nc', which is not finished: run its share again"),
        ([*files[1:], tmp_path / "none.nc"], "none.nc', which does not exist"),
    ):
        with pytest.raises(ValueError, match=f"^merge_shares: .*{message}"):
            merge_shares(given_files, tmp_path / "table.nc")
        assert not (tmp_path / "table.nc").exists()
    for path in (files[0], str(files[0])):
        with pytest.raises(TypeError, match="^merge_shares: files must be a sequence of files"):
            merge_shares(path)
    with pytest.raises(ValueError, match="^merge_shares: file must be new"):
        merge_shares(files, whole)
    for share, error in (((3, 3), ValueError), ((-1, 3), ValueError), ((0, 0), ValueError), ((0.0, 3), TypeError)):
        with pytest.raises(error, match="^sweep: share must be"):
            sweep_silently(square, {"x": [1.0]}, share=share)
    for share in (3, "13", (1, 2, 3), (True, 2)):
        with pytest.raises(TypeError, match="^sweep: share must be two integers"):
            sweep_silently(square, {"x": [1.0]}, share=share)
