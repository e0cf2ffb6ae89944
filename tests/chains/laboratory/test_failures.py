"""A point that fails stops only itself, its error is kept, and it alone is tried again."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linkax.chains import sgd, sweep
from linkax.chains.laboratory import _sweep_points
from linkax.chains.laboratory._failures import divide
from linkax.chains.laboratory._sweep_points import Points

sweep_silently = functools.partial(sweep, progress=False)


class Fragile:
    """A function that calls Python, which fails at the values in `bad`; it notes the values it was called with."""

    def __init__(self, bad):
        self.bad, self.ran = set(bad), []

    def __call__(self, x):
        def square(x):
            self.ran.append(float(x))
            if float(x) in self.bad:
                raise ValueError(f"cannot square {float(x)},\nnot today")
            return np.float32(x * x)

        found = jax.pure_callback(square, jax.ShapeDtypeStruct((), np.float32), x, vmap_method="sequential")
        return {"square": found, "count": jnp.int32(7), "big": x > 1, "curve": jnp.sin(x * jnp.arange(3.0))}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("chunk_size", [3, 16])
def test_only_points_that_fail_are_missing_and_tried_again(chunk_size, batch_size, tmp_path):
    path, options = tmp_path / "table.nc", {"chunk_size": chunk_size, "batch_size": batch_size}
    fragile, grid = Fragile([3.0, 11.0, 12.0]), {"x": np.arange(16.0)}
    whole = sweep_silently(Fragile([]), grid, **options)
    assert not whole["failed"].any()
    assert whole.attrs["errors"] == "[]"
    with pytest.warns(
        RuntimeWarning, match="^sweep: 3 of 16 points failed, the first with: {'x': 3.0, 'error': 'Value"
    ):
        found = sweep_silently(fragile, grid, **options, file=path)
    assert found["x"][found["failed"].values].values.tolist() == [3.0, 11.0, 12.0]
    assert json.loads(found.attrs["errors"]) == [
        {"x": x, "error": f"ValueError: cannot square {x}, not today"} for x in (3.0, 11.0, 12.0)
    ]
    assert not found["diverged"].any()
    bad = found.sel(x=[3.0, 11.0, 12.0])
    assert np.isnan(bad["square"]).all()
    assert np.isnan(bad["curve"]).all()
    assert not bad["count"].any()
    assert not bad["big"].any()
    good = ~found["failed"].values
    for name in ("square", "count", "big", "curve"):
        assert found[name].values[good].tobytes() == whole[name].values[good].tobytes()

    fragile.bad, fragile.ran = {12.0}, []
    with pytest.warns(RuntimeWarning, match="^sweep: 1 of 16 points failed"):
        found = sweep_silently(fragile, grid, **options, file=path)
    assert set(fragile.ran) == {3.0, 11.0, 12.0}
    assert found["failed"].values.sum() == 1
    fragile.bad = set()
    found = sweep_silently(fragile, grid, **options, file=path)
    for name, values in found.data_vars.items():
        assert values.values.tobytes() == whole[name].values.tobytes(), name
    fragile.ran = []
    sweep_silently(fragile, grid, **options, file=path)
    assert not fragile.ran


def test_the_variant_and_the_place_in_the_list_of_a_failure_are_kept():
    fragile = Fragile([2.0])
    with pytest.warns(RuntimeWarning, match="2 of 8 points failed"):
        found = sweep_silently(
            lambda tx, x, seed: fragile(x * seed),
            {"seed": [1, 2]},
            {"sgd": sgd()},
            points={"x": [2.0, 1.0, 5.0, 6.0]},
        )
    assert [{**error, "error": ""} for error in json.loads(found.attrs["errors"])] == [
        {"variant": "sgd", "point": 0, "x": 2.0, "seed": 1, "error": ""},
        {"variant": "sgd", "point": 1, "x": 1.0, "seed": 2, "error": ""},
    ]


def test_an_error_may_stop_the_sweep_and_what_was_done_before_stays(tmp_path):
    fragile, grid = Fragile([5.0]), {"x": np.arange(8.0)}
    options = {"chunk_size": 2, "file": tmp_path / "table.nc"}
    with pytest.raises(jax.errors.JaxRuntimeError, match="cannot square"):
        sweep_silently(fragile, grid, **options, on_error="raise")
    fragile.bad, fragile.ran = set(), []
    sweep_silently(fragile, grid, **options, on_error="raise")
    assert sorted(fragile.ran) == [4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")])
def test_want_of_memory_is_no_points_fault(error, monkeypatch):
    def compute(self, indices):
        raise error

    monkeypatch.setattr(Points, "compute", compute)
    with pytest.raises(type(error)):
        sweep_silently(lambda x: {"y": x}, {"x": np.arange(4.0)})


def test_an_error_while_tracing_is_raised_before_anything_runs(monkeypatch):
    monkeypatch.setattr(Points, "_compile", lambda *_: pytest.fail("it compiles"))

    def run(tx, x):
        raise KeyError("no such layer")

    with pytest.raises(KeyError, match="no such layer"):
        sweep_silently(run, {"x": [1.0]}, {"sgd": sgd()})
    with pytest.raises(ValueError, match="on_error must be 'record' or 'raise', got 'ignore'"):
        sweep_silently(lambda x: {"y": x}, {"x": [1.0]}, on_error="ignore")


def test_few_calls_find_few_failures():
    calls = []

    def compute(indices):
        calls.append(len(indices))
        if 700 in indices:
            raise ValueError
        return {"y": indices}

    computed = divide(compute, np.arange(1024), {"y": jax.ShapeDtypeStruct((), int)})
    assert list(computed.errors) == [700]
    assert len(calls) == 1 + 2 * 10  # the whole, and two halves at each of ten levels
    expected = np.arange(1024)
    expected[700] = 0
    np.testing.assert_array_equal(computed.metrics["y"], expected)


def test_other_lanes_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(_sweep_points, "_cores", lambda: 4)
    with pytest.warns(RuntimeWarning, match="1 of 12 points failed"):
        found = sweep_silently(Fragile([9.0]), {"x": np.arange(12.0)}, chunk_size=12)
    np.testing.assert_array_equal(found["square"].dropna("x"), np.delete(np.arange(12.0), 9) ** 2)
