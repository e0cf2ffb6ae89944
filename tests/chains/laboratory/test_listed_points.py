"""A sweep over a list of points: columns of hyperparameters that vary together, alone and at every cell of a grid."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

from linkax.chains import sweep
from linkax.chains.laboratory._design import Design

from .sweep_hosts import VARIANTS, train

sweep_silently = functools.partial(sweep, progress=False)


def both(x, y, seed=0):
    return {"sum": x + y, "seed_twice": 2 * seed, "curve": x * jnp.arange(3.0)}


def test_columns_are_coordinates_of_the_points_and_duplicates_are_fine(tmp_path):
    path = tmp_path / "table.nc"
    points = {"x": [3.0, 1.0, 3.0], "y": np.array([1, 2, 1])}
    found = sweep_silently(both, points=points, file=path)
    assert dict(found.sizes) == {"point": 3, "curve_0": 3}
    assert found["sum"].dims == found["x"].dims == found["y"].dims == found["failed"].dims == ("point",)
    assert found["sum"].values.tolist() == [4.0, 3.0, 4.0]
    assert found["y"].dtype == np.int32
    xarray.testing.assert_identical(xarray.load_dataset(path, engine="h5netcdf"), found)
    xarray.testing.assert_identical(sweep_silently(both, points=points, file=path), found)


def test_points_and_a_grid_are_every_pair_of_the_two():
    points = {"learning_rate": [0.01, 0.1]}
    found = sweep_silently(train, {"seed": range(3)}, VARIANTS, points=points)
    same = sweep_silently(train, {**points, "seed": range(3)}, VARIANTS)
    assert dict(found["final"].sizes) == {"variant": 2, "point": 2, "seed": 3}
    assert found["learning_rate"].dims == ("point",)
    assert found["loss"].values.tobytes() == same["loss"].values.tobytes()


def test_a_data_frame_is_a_list_of_points():
    frame = xarray.Dataset({"x": ("row", [1.0, 2.0]), "y": ("row", [5.0, 6.0])}).to_dataframe()
    assert sweep_silently(both, points=frame)["sum"].values.tolist() == [6.0, 8.0]


def test_other_points_are_another_sweep(tmp_path):
    path = tmp_path / "table.nc"
    sweep_silently(both, points={"x": [1.0, 2.0], "y": [1.0, 2.0]}, file=path)
    for options in (
        {"points": {"x": [1.0, 2.0], "y": [1.0, 3.0]}},
        {"points": {"x": [1.0, 2.0]}, "grid": {"y": [1.0, 2.0]}},
        {"grid": {"x": [1.0, 2.0], "y": [1.0, 2.0]}},
    ):
        with pytest.raises(ValueError, match="^sweep: file must be new or hold this sweep"):
            sweep_silently(both, **options, file=path)


@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3), st.integers(0, 10**6))
def test_a_flat_index_is_a_place_in_the_table(listed, first, second, at):
    if listed + first + second == 0:
        return
    columns = {"a": np.arange(listed) + 100.0, "b": -np.arange(listed)} if listed else {}
    axes = {name: np.arange(count) * 7 for name, count in (("c", first), ("d", second)) if count}
    design = Design(columns, axes)
    index = at % design.size
    here = design.coordinates(index)
    table = xarray.DataArray(np.arange(design.size).reshape(design.shape), design.coords, design.dims)
    point = table.isel(point=here.pop("point")) if listed else table
    assert int(point.sel({name: here[name] for name in axes})) == index
    for name, column in design.columns(np.array([index])).items():
        assert column.tolist() == [here[name]]
        assert name in axes or float(point[name]) == here[name]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"points": {"x": [1.0], "y": [1.0, 2.0]}},
            ValueError,
            "columns of points must be of equal length, got 'x': 1",
        ),
        ({"points": {}}, ValueError, "points must have at least one column"),
        ({"points": [1.0]}, TypeError, "points must be a dictionary of columns or a data frame"),
        ({"points": {"x": [], "y": []}}, ValueError, "column 'x' must have one dimension and at least one value"),
        ({"points": {"x": ["a"], "y": [1.0]}}, TypeError, "column 'x' must be numeric"),
        ({"points": {"x": [1e300], "y": [1.0]}}, ValueError, "column 'x' must fit into float32"),
        ({"points": {"x": [1.0], "y": [1.0]}, "grid": {"x": [1.0]}}, ValueError, "in grid or in points, got ['x']"),
        ({"points": {"x": [1.0], "y": [1.0]}, "grid": {}}, ValueError, "grid must be a dictionary with at least one"),
        ({"points": {"x": [1.0], "point": [1.0]}}, ValueError, "a hyperparameter must not be called variant or point"),
        ({"points": {"x": [1.0]}}, ValueError, "run must take only axes, got y; the axes are x"),
    ],
)
def test_bad_points_are_refused(options, error, message):
    with pytest.raises(error) as raised:
        sweep_silently(both, **options)
    assert str(raised.value).startswith("sweep: ")
    assert message in str(raised.value)
