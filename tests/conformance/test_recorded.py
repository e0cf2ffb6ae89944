"""The named optimizers against recorded paths of real PyTorch."""

import json

import numpy as np
import pytest

from .cases import RECORDED, chain_like
from .float32 import FILE
from .stream import STEPS, assert_same_path, gradients_for, parameters, taken_by, walk


@pytest.mark.parametrize("index", range(len(RECORDED)), ids=[f"{n}-{a}" for n, a in RECORDED])
def test_path_is_pytorchs(x64, index):
    with np.load(FILE) as recorded:
        name, arguments = json.loads(str(recorded[f"{index}/case"]))
        theirs = {key: recorded[f"{index}/{key}"] for key in taken_by(name, parameters()) if key != "idle"}
    assert [name, arguments] == json.loads(json.dumps(RECORDED[index])), "recorded.npz is out of date: run record.py"
    params = taken_by(name, parameters())
    ours = walk(chain_like(name, arguments), params, taken_by(name, gradients_for(arguments)))
    assert_same_path(ours, theirs)
    if "idle" in params:
        np.testing.assert_array_equal(ours["idle"], np.tile(params["idle"], (STEPS, 1)))
