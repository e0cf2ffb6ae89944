"""A small table whose values are known, for the tests of files: nothing has to be traced or compiled."""

import itertools

import jax
import numpy as np

from linkax.chains.laboratory._design import design_of
from linkax.chains.laboratory._layout import Layout
from linkax.chains.laboratory._results import Results

VARIANTS = ["adam", "sgd"]
SIZE = 24  # points of a variant


def layout(fingerprint="f" * 64, variants=VARIANTS):
    """The layout of a table with a curve and a number."""
    metrics = {"loss": jax.ShapeDtypeStruct((3,), np.float32), "steps": jax.ShapeDtypeStruct((), np.int32)}
    attributes = {"date": "2026", "fingerprint": fingerprint, "chain 'adam'": "chain\n└─ adam"}
    design = design_of({"rate": np.linspace(0, 1, 6), "seed": range(4)}, None)
    return Layout(variants, len(variants) > 1, design, metrics, {"loss": ["step"], "steps": []}, attributes)


def values(variant, indices):
    """The metrics of some points; one of them diverges."""
    points = np.asarray(indices) + SIZE * VARIANTS.index(variant)
    loss = (points[:, None] + np.array([0.0, 0.25, 0.5])).astype(np.float32)
    loss[points == 5, 1] = np.inf
    return {"loss": loss, "steps": points.astype(np.int32)}


def fill(results, sizes=(5,), errors=None):
    """Adds all points that are left, in chunks of these sizes in turn; yields after each of them."""
    sizes = itertools.cycle(sizes)
    for variant in VARIANTS:
        left = results.left(variant)
        while len(left):
            chunk, left = np.split(left, [next(sizes)])
            results.add(variant, chunk, values(variant, chunk), errors)
            yield variant, chunk


def expected(failed=()):
    """The variables of the finished table; points of the first variant at the indices `failed` have failed."""
    found = [values(variant, np.arange(SIZE)) for variant in VARIANTS]
    table = {name: np.stack([metrics[name] for metrics in found]) for name in found[0]}
    table["loss"][0, list(failed)] = np.nan
    table["steps"][0, list(failed)] = 0
    table["failed"] = np.zeros((2, SIZE), bool)
    table["failed"][0, list(failed)] = True
    table["diverged"] = ~np.isfinite(table["loss"]).all(axis=-1) & ~table["failed"]
    return {name: array.reshape(2, 6, 4, *array.shape[2:]) for name, array in table.items()}


def check(table, failed=()):
    """Fails unless the table is the expected one to the last bit."""
    for name, array in expected(failed).items():
        assert table[name].dtype == array.dtype
        np.testing.assert_array_equal(table[name].values, array, err_msg=name)
    assert set(table.data_vars) == set(expected())
    assert list(table["variant"].values) == VARIANTS


def run(file, sizes=(5,), errors=None, **options):
    """A sweep without its computation."""
    with Results(layout(**options), file) as results:
        for _ in fill(results, sizes, errors):
            pass
        return results.finish()
