"""The schedules of saved schedulers against recorded values of real PyTorch."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkax.chains.torch_interop import schedule_from_torch

from .record_schedulers import FILE, START, STEPS, schedulers

# PyTorch multiplies step by step, with an error of 1e-16 in each.
TOLERANCE = 1e-12


def names() -> list[str]:
    return list(json.loads(FILE.read_text("utf-8")))


@pytest.mark.parametrize("name", names())
def test_values_are_pytorchs(name):
    recorded = json.loads(FILE.read_text("utf-8"))[name]
    at = np.arange(START, START + STEPS + 1)
    made = schedule_from_torch((name, recorded["state"]), recorded["groups"])
    theirs = np.asarray(recorded["values"])
    for index, (lr, momentum) in enumerate(made):
        np.testing.assert_allclose(lr(at), theirs[:, index, 0], rtol=0, atol=TOLERANCE)
        cycled = np.full(len(at), 0.9) if momentum is None else momentum(at)
        np.testing.assert_allclose(cycled, theirs[:, index, 1], rtol=0, atol=TOLERANCE)


JUNK = [
    None,
    "x",
    -1,
    0,
    1.5,
    math.nan,
    math.inf,
    1e300,
    10**30,
    [],
    [None],
    {},
    {"a": 1},
    True,
    b"x",
    1e-300,
    [[0, 0]],
]


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from places(tree[key], (*path, key))


@settings(max_examples=200)
@given(name=st.sampled_from(names()), junk=st.sampled_from(JUNK), data=st.data())
def test_a_broken_file_gives_a_schedule_or_a_list_of_problems(name, junk, data):
    recorded = json.loads(FILE.read_text("utf-8"))[name]
    tree = {key: recorded[key] for key in ("state", "groups")}
    *path, last = data.draw(st.sampled_from([place for place in places(tree) if len(place) > 1]))
    parent = tree
    for key in path:
        parent = parent[key]
    parent[last] = junk
    problem = ""
    try:
        made = schedule_from_torch((name, tree["state"]), tree["groups"])
    except (TypeError, ValueError) as error:
        problem = str(error)
    else:
        assert all(isinstance(lr(20), float) for lr, _ in made)
    assert not problem or "must be one of PyTorch's, whole:\n" in problem or "groups must be a list" in problem


def test_the_recording_is_complete():
    pytest.importorskip("torch", reason="names PyTorch's classes")
    assert names() == [*schedulers(None)], "recorded_schedulers.json is out of date: run record_schedulers.py"
