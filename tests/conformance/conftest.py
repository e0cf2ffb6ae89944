"""What the comparisons with PyTorch share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def float64(x64: None) -> Iterator[None]:
    """Runs a test in float64 in both frameworks, with PyTorch's random numbers from the start."""
    torch = pytest.importorskip("torch", reason="compares with the installed PyTorch")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # NAdam, for example, keeps its product of momenta in the default dtype
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(default)
