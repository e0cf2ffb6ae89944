"""In float32 the updates are at least as close to the exact ones as PyTorch's."""

import os

import numpy as np
import optax
import pytest

from .cases import chain_like
from .float32 import CASES, exact_updates, recorded_error, relative_error, stream, updates_from_zero

# Where a step is a handful of operations (Adagrad, Adadelta), both errors are those of single roundings, and which is
# larger is chance; two units in the last place of float32 allow for that.
TWO_ROUNDINGS = 2 * float(np.finfo(np.float32).eps)


# LLVM without optimisation, with which the tests compile by default, has other approximations of roots and powers.
as_users_compile = pytest.mark.skipif(
    "optimization_level=0" in os.environ.get("XLA_FLAGS", ""), reason="XLA_FLAGS= python -m pytest runs it"
)


@as_users_compile
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_error_is_at_most_pytorchs(name, arguments):
    exact = exact_updates(lambda: chain_like(name, arguments), stream(name))
    ours = relative_error(updates_from_zero(chain_like(name, arguments), stream(name), np.float32), exact)
    assert ours <= recorded_error(name, arguments) + TWO_ROUNDINGS


@as_users_compile
def test_adams_error_is_far_below_optaxs():
    exact = exact_updates(lambda: optax.adam(1e-3), stream())
    ours = relative_error(updates_from_zero(chain_like("Adam", {}), stream(), np.float32), exact)
    optaxs = relative_error(updates_from_zero(optax.adam(1e-3), stream(), np.float32), exact)
    assert ours < 1e-6 < 5e-6 < optaxs
