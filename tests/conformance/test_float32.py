"""In float32 the updates are at least as close to the exact ones as PyTorch's."""

import json

import jax
import numpy as np
import optax
import pytest

from .cases import chain_like
from .float32 import CASES, relative_error, stream, updates_from_zero
from .test_recorded import FILE

# Where a step is a handful of operations (Adagrad, Adadelta), both errors are those of single roundings, and which is
# larger is chance; two units in the last place of float32 allow for that.
TWO_ROUNDINGS = 2 * float(np.finfo(np.float32).eps)


def exact_updates(name, arguments):
    jax.config.update("jax_enable_x64", True)
    try:
        return updates_from_zero(chain_like(name, arguments), stream(), np.float64)
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_error_is_at_most_pytorchs(name, arguments):
    with np.load(FILE) as recorded:
        theirs = float(recorded[f"float32/{name}/{json.dumps(arguments)}"])
    ours = relative_error(
        updates_from_zero(chain_like(name, arguments), stream(), np.float32), exact_updates(name, arguments)
    )
    assert ours <= theirs + TWO_ROUNDINGS


def test_adams_error_is_far_below_optaxs():
    exact = exact_updates("Adam", {})
    ours = relative_error(updates_from_zero(chain_like("Adam", {}), stream(), np.float32), exact)
    optaxs = relative_error(updates_from_zero(optax.adam(1e-3), stream(), np.float32), exact)
    assert ours < 1e-6 < 5e-6 < optaxs
