"""Every optimizer that the installed PyTorch has, and each of its arguments, is known here or refused by name."""

import inspect
import pathlib
import re

import pytest

from linkax.chains.torch_interop import from_torch
from linkax.chains.torch_interop._spec import _IMPLEMENTATION, _KINDS, _REFUSED

torch = pytest.importorskip("torch", reason="asks the installed PyTorch what it has")

TABLE = (pathlib.Path(__file__).parents[2] / "docs" / "from_pytorch.md").read_text()
CLASSES = sorted(
    name
    for name in dir(torch.optim)
    if inspect.isclass(one := getattr(torch.optim, name)) and issubclass(one, torch.optim.Optimizer)
)


def row_of(name: str) -> str:
    """The rows of the documentation's table that are about a class, and those about all."""
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")]
    return "\n".join(row for row in rows if re.search(rf"\b{name}\b", row) or row.startswith("| any"))


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "Optimizer"])
def test_class_and_arguments_are_known_or_refused(name):
    own = set(inspect.signature(getattr(torch.optim, name)).parameters) - {"self", "params"}
    assert re.search(rf"\b{name}\b", row_of(name)), f"docs/from_pytorch.md does not mention {name}"
    if name in _REFUSED:
        with pytest.raises(ValueError, match=f"from_torch: .*, got {name}, which "):
            from_torch((name, {}))
        return
    known = set(_KINDS[name].arguments.split()) | _IMPLEMENTATION
    known |= {"decoupled_weight_decay"} if name == "Adam" else set()  # which makes it an AdamW
    assert own <= known, f"from_torch does not know {sorted(own - known)} of {name}"
    missing = [one for one in own if not re.search(rf"\b{one}\b", row_of(name))]
    assert not missing, f"docs/from_pytorch.md does not mention {missing} of {name}"


def test_nothing_is_known_that_pytorch_has_not():
    assert set(CLASSES) - {"Optimizer"} == _KINDS.keys() | _REFUSED.keys()
    for name, kind in _KINDS.items():
        own = set(inspect.signature(getattr(torch.optim, name)).parameters)
        assert set(kind.arguments.split()) <= own, name
