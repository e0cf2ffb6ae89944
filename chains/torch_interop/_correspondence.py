"""A table of what corresponds to what, to be read before anything is converted."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ._counterparts import Counterpart
from ._names import BUFFERS, Names, every_counterpart, torch_name
from ._rules import Layouts, Shape, hollow


class Row(NamedTuple):
    """A parameter and PyTorch's tensors."""

    path: str
    shape: Shape
    names: tuple[str, ...]
    torch_shape: Shape | None  # of the first; None if PyTorch has none
    rule: str
    is_stacked: bool  # whether the names are those of the layers, one after the other


class Correspondence(NamedTuple):
    """Which of PyTorch's tensors hold the numbers of a parameter, and by which rule; printed, it is a table."""

    rows: list[Row]
    problems: list[str]

    def __str__(self) -> str:
        cells = [
            (
                f"{row.path} {row.shape}",
                f"{_short(row)} {'missing' if row.torch_shape is None else row.torch_shape}",
                row.rule,
            )
            for row in self.rows
        ]
        widths = [max((len(cell[column]) for cell in cells), default=0) for column in (0, 1)]
        lines = [f"{ours:{widths[0]}}  <- {theirs:{widths[1]}}  {rule}" for ours, theirs, rule in cells]
        return "\n".join([*lines, *(f"problem: {one}" for one in self.problems)])

    __repr__ = __str__


def correspondence(
    params: Any,
    state_dict: Mapping[str, Any] | None = None,
    *,
    names: Names = torch_name,
    layouts: Layouts | None = None,
) -> Correspondence:
    """Shows which of PyTorch's tensors each parameter corresponds to, and everything that does not fit.

    Args:
        params: The parameters, or their shapes.
        state_dict: The result of `model.state_dict()`; without it, what `export_params` would write.
        names: As for `import_state`.
        layouts: As for `import_state`.

    Returns:
        A table to print; its `rows` and `problems` are lists. Rules that nobody gave are marked "default".

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from linkax.chains.torch_interop import correspondence
        >>> params = {"params": {"fc": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}}
        >>> print(correspondence(params, {"fc.weight": np.zeros((3, 2))}))
        params/fc/bias (3,)      <- fc.bias missing   IDENTITY, default
        params/fc/kernel (2, 3)  <- fc.weight (3, 2)  LINEAR, default
        problem: PyTorch has nothing for params/fc/bias (3,): no fc.bias (3,)

    Source:
        `torch.nn.Module.state_dict`.
    """
    problems: list[str] = []
    every = every_counterpart(params, names, layouts, None if state_dict is None else [state_dict], problems, BUFFERS)
    rows: list[Row] = []
    for one in every:
        theirs = _theirs(one, state_dict)
        if one.group is None:
            problems.append(one.nothing)
        elif state_dict is not None:
            one.to_jax(lambda name, theirs=theirs: hollow(theirs[name]), problems)
        shape = next(iter(theirs.values()), None)
        is_stacked = one.use.stack is not None
        rule = f"{one.use.name}{', stacked' * is_stacked}{', default' * (not one.use.is_given)}"
        rows += [Row(path, ours, one.names, shape, rule, is_stacked) for path, ours in zip(one.use.paths, one.shapes)]
    return Correspondence(rows, list(dict.fromkeys(problems)))


def _theirs(one: Counterpart, state_dict: Mapping[str, Any] | None) -> dict[str, Shape]:
    """The shapes of PyTorch's tensors."""
    if state_dict is not None:
        return {name: tuple(np.shape(state_dict[name])) for name in one.names if name in state_dict}
    return {name: array.shape for name, array in one.to_torch([hollow(shape) for shape in one.shapes]).items()}


def _short(row: Row) -> str:
    return f"{row.names[0]} … {row.names[-1]}" if row.is_stacked else ", ".join(row.names)
