"""What every test runs under: JAX at its strictest; warnings are errors (pyproject.toml)."""

from collections.abc import Iterator

import hypothesis
import jax
import pytest

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
