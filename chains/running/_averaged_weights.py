"""The averages of the parameters that a chain keeps: reading them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linkax.transforms import Averages
from linkax.transforms._leaves import shape_of, split_alike

from ..algebra._paths import path_text, words
from ..algebra._structure import StateArray, state_arrays
from ._full_weights import full_weights


def averaged_weights(tx: optax.GradientTransformation, state: Any, params: Any, name: str | None = None) -> Any:
    """Returns the average of the parameters that `average_weights` keeps, for evaluation.

    The statistics of batch normalisation belong to the parameters, not to their average: compute them anew, with the
    average and some batches, before the evaluation.

    Args:
        tx: The optimizer, with an `average_weights` anywhere in it: in wrappers, in some or all groups of parameters.
        state: Its state.
        params: Its parameters.
        name: If there are several averages, the name of one of them: `"average_weights"` for the first,
            `"average_weights (2)"` for the second.

    Returns:
        A tree like the parameters: their averages, which are at least float32. Where nothing is in the average yet, or
        none is kept (a group without one), it is the parameter, or the float32 weight that `precise_weights` trains.

    Raises:
        ValueError: If `state` is not a state of `tx`, or not for parameters of these shapes; if `tx` keeps no average,
            or several and no `name`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from linkax import averaged_weights, chain, sgd
        >>> from linkax.transforms import average_weights
        >>> tx, w = chain(sgd(1.0), average_weights()), jnp.float32(0)
        >>> state = tx.init(w)
        >>> for _ in range(3):
        ...     updates, state = tx.update(jnp.float32(-1), state, w)
        ...     w = optax.apply_updates(w, updates)
        >>> print(w, averaged_weights(tx, state, w))
        3.0 2.0

    Source:
        `torch.optim.swa_utils.AveragedModel`.
    """
    arrays = state_arrays("averaged_weights: state", tx, state, params)
    average = average_called("averaged_weights", name, arrays)

    def read(path: Any, weight: Any) -> Any:
        found = average.get(words(path))
        if found is None:
            return weight
        if shape_of(weight) != shape_of(found.average.value):
            raise ValueError(
                f"averaged_weights: params must be those of the state, with {path_text(path) or 'one array'} of shape "
                f"{shape_of(found.average.value)}, got {shape_of(weight)}"
            )
        weight, its_average = split_alike(weight, found.average.value)
        return jnp.where(found.number.value == 0, weight, its_average)

    return jax.tree_util.tree_map_with_path(read, full_weights(tx, state, params))


class Average(NamedTuple):
    """The average of one parameter."""

    average: StateArray
    number: StateArray  # how many weights are in it


def averages_of(arrays: Iterable[StateArray]) -> dict[str, dict[tuple[str, ...], Average]]:
    """The averages in a state, by the names of their links, and for each by the words of the parameters' paths."""
    arrays = list(arrays)
    numbers = {
        (array.site.groups, array.site.name, array.field_words): array for array in arrays if not array.is_moment
    }
    found: dict[str, dict[tuple[str, ...], Average]] = {}
    for array in arrays:
        if any(isinstance(field, Averages) for field in array.site.link.fields.values()):
            found.setdefault(array.site.name, {})  # also for a tree without parameters
        if isinstance(array.field, Averages) and array.param is not None:
            number = numbers[array.site.groups, array.site.name, (array.field.number,)]
            found[array.site.name][array.param] = Average(array, number)
    return found


def average_called(where: str, name: str | None, arrays: Iterable[StateArray]) -> dict[tuple[str, ...], Average]:
    """The average of that name, or the only one; raises if there is none."""
    every = averages_of(arrays)
    if name in every:
        return every[name]
    if name is None and len(every) == 1:
        return next(iter(every.values()))
    there = ", ".join(every) or "none; linkax.transforms.average_weights keeps one"
    raise ValueError(f"{where}: name must be that of one average in the chain, got {name!r}; there is {there}")
