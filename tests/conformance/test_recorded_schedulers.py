"""The schedules of saved schedulers against recorded values of real PyTorch."""

import json

import numpy as np
import pytest

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


def test_the_recording_is_complete():
    pytest.importorskip("torch", reason="names PyTorch's classes")
    assert names() == [*schedulers(None)], "recorded_schedulers.json is out of date: run record_schedulers.py"
