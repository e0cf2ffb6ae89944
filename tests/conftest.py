"""What every test runs under: JAX at its strictest; warnings are errors (pyproject.toml)."""

import os
from collections.abc import Iterator

import hypothesis
import jaxlib.version
import pytest

# Compiling is most of what the tests take, and XLA's older code for CPUs compiles in two thirds of the time. XLA ends
# the process at a flag that it does not know, so only the versions that know it get it. Processes that tests start
# inherit it: results that are compared to the bit must come from the same compiler.
if jaxlib.version.__version_info__[:2] <= (0, 10):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()

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
