"""What every test runs under: JAX at its strictest; warnings are errors (pyproject.toml)."""

import os
from collections.abc import Iterator

import hypothesis
import jaxlib.version
import pytest

# Compiling is most of what the tests take, and this way it takes a third: XLA's older code for CPUs, which versions up
# to 0.10 have (it ends the process at a flag that it does not know), and LLVM without optimisation. Processes that
# tests start inherit it: results that are compared to the bit must come from the same compiler. Whoever sets flags, if
# only empty ones (XLA_FLAGS= python -m pytest), gets these instead.
if "XLA_FLAGS" not in os.environ:
    older = " --xla_cpu_use_fusion_emitters=false" if jaxlib.version.__version_info__[:2] <= (0, 10) else ""
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0" + older

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling takes as long as it takes, so no deadline; the same examples every time, so that a red run can be repeated.
hypothesis.settings.register_profile("linkax", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("linkax")


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs a test in float64: equalities with other implementations are only sharp there."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
