"""The averages of PyTorch's `AveragedModel`: the second state that a run may have, next to the optimizer's."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linkax.transforms import Averages
from linkax.transforms._leaves import dtype_of
from linkax.transforms._trees import listed

from ..algebra._paths import leaves_with_path, path_text, words
from ..algebra._structure import StateArray, param_text, state_arrays
from ..running._averaged_weights import average_called, averaged_weights, averages_of
from ..running._devices import whole
from ._check_file import TorchFile
from ._names import Names, export_params, imported, torch_name
from ._reference import Reference
from ._rules import Layouts
from ._tensors import as_steps

_MODULE = "module."  # what AveragedModel puts in front of its model's names
_NUMBER = "n_averaged"


def averages_apart(
    arrays: Iterable[StateArray], references: Iterable[Reference | None], file: TorchFile
) -> tuple[list[StateArray], list[StateArray]]:
    """The averages of the weights that PyTorch's optimizer does not keep itself, and all other arrays."""
    every = list(arrays)
    keys = {key for own in file.keys.values() for key in own}.union(*(one.keeps for one in references if one))
    apart = [
        array
        for average in averages_of(every).values()
        for pair in average.values()
        if keys.isdisjoint(_torch_names(pair.average))
        for array in pair
    ]
    places = {array.place for array in apart}
    return apart, [array for array in every if array.place not in places]


def _torch_names(array: StateArray) -> tuple[str, ...]:
    assert isinstance(array.field, Averages)
    return array.field.torch_names


def read_averages(
    arrays: Sequence[StateArray],
    params: Any,
    averages: Any,
    names: Names,
    layouts: Layouts | None,
    problems: list[str],
    notes: list[str],
) -> list[tuple[StateArray, str, np.ndarray]]:
    """PyTorch's values for arrays of the chain's averages, and what they are called in messages."""
    links = averages_of(arrays)
    if not links:
        problems.append("averages are given, but the chain keeps none of its own (average_weights does)")
        return []
    every = _by_link(averages, list(links), problems)
    own = {words(path): leaf for path, leaf in leaves_with_path(params)}
    found: list[tuple[StateArray, str, np.ndarray]] = []
    for name in links:
        what = "averages" if len(links) == 1 else f"averages of {name}"
        if name not in every:
            continue
        values, number = _read(what, every[name], params, names, layouts, problems)
        for path in values.keys() & links[name].keys():
            average, count = links[name][path]
            found += [(average, f"the average of {param_text(path)}", values[path]), (count, _NUMBER, number)]
        rest = [path for path in values if path not in links[name] and not _are_equal(values[path], own[path])]
        if rest:
            notes.append(f"the chain keeps no average of {listed(map(param_text, rest))}, so PyTorch's is left out")
    return found


def _are_equal(average: np.ndarray, param: Any) -> bool:
    """Whether an average is its parameter, of which it has no fewer digits; a shape is equal to anything."""
    if isinstance(param, jax.ShapeDtypeStruct):
        return True
    dtype = jnp.promote_types(dtype_of(param), jnp.float32)
    with np.errstate(over="ignore"):
        return np.array_equal(average.astype(dtype), whole(param).astype(dtype))


def _by_link(averages: Any, links: list[str], problems: list[str]) -> dict[str, Mapping[str, Any]]:
    """The state_dicts by the names of the links."""
    if not isinstance(averages, Mapping):
        problems.append(
            f"averages must be the state_dict() of PyTorch's AveragedModel, got a {type(averages).__name__}"
        )
        return {}
    if not all(isinstance(one, Mapping) for one in averages.values()) or not averages:
        averages = {links[0]: averages} if len(links) == 1 else {"": averages}
    if averages.keys() != set(links):
        got = ", ".join(map(str, averages)).strip() or "one without a name"
        problems.append(f"averages must be a dictionary of state_dicts for {', '.join(links)}, got {got}")
        return {}
    return dict(averages)


def _read(
    what: str,
    state_dict: Mapping[str, Any],
    params: Any,
    names: Names,
    layouts: Layouts | None,
    problems: list[str],
) -> tuple[dict[tuple[str, ...], np.ndarray], np.ndarray]:
    """The averages by the words of the parameters' paths, and how many weights are in them."""
    before = len(problems)
    number = None
    if _NUMBER not in state_dict:
        hint = (
            "" if any(str(key).startswith(_MODULE) for key in state_dict) else ": give that of the AveragedModel itself"
        )
        problems.append(f"{what} must have {_NUMBER}, as the state_dict() of PyTorch's AveragedModel has{hint}")
    else:
        number = as_steps(f"{_NUMBER} in {what}", state_dict[_NUMBER], problems)
    rest = {key: value for key, value in state_dict.items() if key != _NUMBER}
    wrong = [key for key in rest if not (isinstance(key, str) and key.startswith(_MODULE))]
    problems += [f"{what} has {key!r}, which does not start with {_MODULE!r}" for key in wrong]
    model = {key.removeprefix(_MODULE): value for key, value in rest.items() if key not in wrong}
    paths = {path_text(path): words(path) for path, _ in leaves_with_path(params)}
    unfit: list[str] = []
    with warnings.catch_warnings():  # of layouts, which import_state gives itself
        warnings.simplefilter("ignore", UserWarning)
        values = {paths[path]: value for path, value in imported(params, model, names, layouts, unfit)}
    problems += [f"{what}: {one}" for one in dict.fromkeys(unfit)]
    infinite = [path for path, value in values.items() if not np.isfinite(value).all()]
    problems += [f"{what} must be finite, got infinity or NaN in that of {param_text(path)}" for path in infinite]
    return ({} if len(problems) > before else values), np.asarray(number or 0, np.int32)


def export_averages(
    tx: optax.GradientTransformation,
    params: Any,
    state: Any,
    *,
    names: Names = torch_name,
    layouts: Layouts | None = None,
    name: str | None = None,
) -> dict[str, np.ndarray]:
    """Creates the `state_dict` with which PyTorch's `AveragedModel` continues the average of a chain.

    The arrays may be sharded over several processes, as for `export_state`: all call this, and each gets everything.

    Args:
        tx: The chain, in any wrappers, with an `average_weights`.
        params: Its parameters.
        state: Its state.
        names: As for `import_state`.
        layouts: As for `import_state`.
        name: If there are several averages, which one, as for `linkax.averaged_weights`.

    Returns:
        Arrays by name: `n_averaged`, and the averages with PyTorch's names behind `module.`. As tensors,
        `averaged_model.load_state_dict({key: torch.from_numpy(value) for key, value in ....items()})` takes them. The
        buffers of batch normalisation are not among them: add them as `module.` and their names, or load with
        `strict=False`. `import_state(..., averages=...)` is the inverse.

    Raises:
        ValueError: If the chain keeps no average, or several and no `name`; if the groups of parameters have averaged
            different numbers of weights; if `names` has none for a parameter, or the same for two.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax import chain, sgd
        >>> from linkax.chains.torch_interop import export_averages
        >>> from linkax.transforms import average_weights
        >>> tx, params = chain(sgd(0.1), average_weights(0.999)), {"params": {"fc": {"kernel": jnp.ones((2, 3))}}}
        >>> _, state = tx.update(params, tx.init(params), params)
        >>> {key: (value.shape, value.max().item()) for key, value in export_averages(tx, params, state).items()}
        {'n_averaged': ((), 1), 'module.fc.weight': ((3, 2), 0.8999999761581421)}

    Source:
        `torch.optim.swa_utils.AveragedModel`.
    """
    where = "export_averages"
    average = average_called(where, name, state_arrays(f"{where}: state", tx, state, params))
    numbers = {pair.number.name: int(pair.number.value) for pair in average.values()}
    if len(set(numbers.values())) != 1:
        each = ", ".join(f"{name}: {number}" for name, number in numbers.items()) or "none"
        raise ValueError(f"{where}: state must have averaged the same number of weights everywhere, got {each}")
    weights = export_params(averaged_weights(tx, state, params, name), names=names, layouts=layouts)
    number = np.asarray(next(iter(numbers.values())), np.int64)
    return {_NUMBER: number, **{_MODULE + key: value for key, value in weights.items()}}
