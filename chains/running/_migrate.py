"""The state for a changed optimizer, or for changed parameters, in mid-training."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linkax.transforms._nesterov import weight_after

from ..algebra._parts import flatten, inside, is_partition
from ..algebra._paths import KeyPath, leaves_with_path, path_text
from ..algebra._states import Groups, Site, StateArray, map_states, state_arrays, with_arrays
from ._live import Live
from ._param_groups import labels_by_path


class Migration(NamedTuple):
    """What `migrate` returns: the new state, and what has become of the old one.

    Attributes:
        state: The state for the new optimizer.
        kept: The arrays taken over, such as `"second.mean_square.nu params/Dense_0/kernel"`, with the group's name in
            front if there are groups.
        created: The arrays that the old state does not have. They start anew, but for counts: a new link counts with
            the others of its group.
        dropped: The arrays of the old state that the new optimizer has no use for.
        mixed: Parameters whose moments come from another number of steps than their group counts: new ones in an old
            group, or parameters of several ages in one group. Their bias correction is not exact.
    """

    state: Any
    kept: list[str]
    created: list[str]
    dropped: list[str]
    mixed: list[str]

    def __repr__(self) -> str:
        lists = [(name, getattr(self, name)) for name in ("kept", "created", "dropped", "mixed")]
        return "\n".join(f"{name:<8} {len(found)}" + "".join(f"\n  {one}" for one in found) for name, found in lists)


def migrate(
    old_tx: optax.GradientTransformation, old_state: Any, new_tx: optax.GradientTransformation, params: Any
) -> Migration:
    """Makes the state for a changed optimizer, and keeps everything that survives the change.

    Three things may change at once: links (Adam to AdamW, plain to AMSGrad, momentum to Nesterov's), groups of
    parameters (added, left out, or parameters moved from one to another), and the parameters themselves. An array of
    the old state is kept where the new optimizer has one in a link of the same name (or, inside the same moment, one
    of the same field in a link of another name), for the same parameter, of the same shape. A group's step count comes
    from where its parameters come from; a group of new parameters starts from step 0, as PyTorch's `add_param_group`.

    A group has one step count. New parameters in an old group therefore begin in the middle of its bias correction
    and schedule, and so do parameters of different ages that are put together; these are listed as `mixed`. A group of
    their own avoids that.

    Args:
        old_tx: The chain that made `old_state`.
        old_state: Its state, also as Flax NNX's `optimizer.opt_state` wraps it. Not changed.
        new_tx: The chain to go on with; it may be the same, for other parameters.
        params: The parameters to go on with; for Flax NNX, `nnx.state(model, nnx.Param)`.

    Returns:
        A `Migration(state, kept, created, dropped, mixed)`; prints as a report. Flax's `TrainState` takes the state as
        `opt_state`; an `nnx.Optimizer` starts from it when it is made with
        `optax.GradientTransformation(lambda _: state, new_tx.update)`.

    Raises:
        ValueError: If `old_state` is not a state of `old_tx`, or a label of `new_tx` is wrong (`param_groups`).
        TypeError: If a transformation is none.

    Differences:
        PyTorch: `optimizer.add_param_group` for groups; a changed optimizer starts anew. PyTorch counts the steps of
        each parameter, so there is no mixing. Optax: nothing of the kind; a changed `partition` refuses its state.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax.chains import adam, migrate
        >>> params = {"w": jnp.ones(2)}
        >>> tx = adam(1e-3)
        >>> _, state = tx.update(params, tx.init(params), params)
        >>> migrate(tx, state, adam(1e-3, amsgrad=True), params)
        kept     5
          first.scale_by_momentum.count
          first.scale_by_momentum.mu w
          first.bias_correction.count
          second.mean_square.nu w
          second.bias_correction.count
        created  1
          second.running_max.nu_max w
        dropped  0
        mixed    0

    Source:
        `torch.optim.Optimizer.add_param_group`.
    """
    flatten("migrate: new_tx", new_tx)
    fresh = new_tx.init(params)
    old = state_arrays("migrate: old_state", old_tx, old_state, params)
    new = state_arrays("migrate: new_tx", new_tx, fresh, params)
    _check_types(old_tx, old_state, params)
    ages = _ages(old)
    homes = _homes(old_tx, old, params)
    sources = _sources(new_tx, new, params, homes, ages)
    matches = _matches(old, new, sources)
    values = {array.place: jnp.asarray(match.value, array.value.dtype) for array, match in matches}
    for array in new:
        source, link = sources[array.site.groups], array.site.link
        if array.place in values or source is None or _begins_anew(array, new, values):
            continue
        if array.is_count:  # a new link counts with the others
            values[array.place] = jnp.asarray(ages[source], array.value.dtype)
        elif link is not None and (link.name, array.field) == ("scale_by_nesterov", "correction"):
            weight = weight_after(ages[source], link.hyperparams["decay"], link.hyperparams["momentum_decay"])
            values[array.place] = jnp.asarray(weight, array.value.dtype)

    def age(groups: Groups | None) -> int:
        return 0 if groups is None else ages[groups]

    members = {array.param: sources[array.site.groups] for array in new if array.param is not None}
    found, used = ({pair[which].place for pair in matches} for which in (0, 1))
    return Migration(
        state=with_arrays("migrate: new_tx", new_tx, fresh, values),
        kept=[str(array) for array, _ in matches],
        created=[str(array) for array in new if array.place not in found],
        dropped=[str(array) for array in old if array.place not in used],
        mixed=[
            f"{path_text(param) or 'the parameter'}: {age(homes.get(param))} steps in a group of {age(source)}"
            for param, source in members.items()
            if age(homes.get(param)) != age(source)
        ],
    )


def _check_types(old_tx: optax.GradientTransformation, old_state: Any, params: Any) -> None:
    """Raises if a link's state is not of the kind that the link makes."""
    kinds: dict[tuple[Groups, str], type] = {}

    def note(site: Site, state: Any) -> Any:
        kinds[site.groups, site.name] = type(state)
        return state

    def check(site: Site, state: Any) -> Any:
        kind = kinds.get((site.groups, site.name), type(state))
        if type(state) is not kind:
            raise ValueError(
                f"migrate: old_state must be a state of old_tx, with a {kind.__name__} for {site.name}, got a "
                f"{type(state).__name__}"
            )
        return state

    try:
        like = jax.eval_shape(old_tx.init, params)
    except ValueError:  # its labels do not know the new parameters
        return
    map_states(note, "migrate: old_tx", old_tx, like)
    map_states(check, "migrate: old_state", old_tx, old_state)


def _ages(old: Iterable[StateArray]) -> dict[Groups, int]:
    """How many steps each group has taken."""
    ages = {array.site.groups: 0 for array in old}
    for array in old:
        if array.is_count:
            ages[array.site.groups] = max(ages[array.site.groups], int(array.value))
    return ages


def _groups_of(tx: optax.GradientTransformation, params: Any) -> dict[KeyPath, Groups]:
    """The group of every parameter, as far as the labels say."""
    links = flatten("migrate", tx.chain if isinstance(tx, Live) else tx)
    holder = next(filter(is_partition, links), None)
    if holder is None:
        return {path: () for path, _ in leaves_with_path(params)}
    inner = {label: _groups_of(group, params) for label, group in inside(holder).items()}
    labels = labels_by_path(params, holder.hyperparams["labels"])
    return {path: (label, *inner[label][path]) for path, label in labels.items() if path in inner.get(label, ())}


def _homes(old_tx: optax.GradientTransformation, old: Iterable[StateArray], params: Any) -> dict[KeyPath, Groups]:
    """The old group that each parameter comes from: where its moments are, or its label in a group that has none."""
    shapes = {path: np.shape(leaf) for path, leaf in leaves_with_path(params)}
    with_moments = {array.site.groups for array in old if array.param is not None}
    labelled = {path: groups for path, groups in _groups_of(old_tx, params).items() if groups not in with_moments}
    ages = {array.site.groups for array in old}
    homes = {path: groups for path, groups in labelled.items() if groups in ages}
    return homes | {a.param: a.site.groups for a in old if a.param is not None and np.shape(a.value) == shapes[a.param]}


def _sources(
    new_tx: optax.GradientTransformation,
    new: Iterable[StateArray],
    params: Any,
    homes: Mapping[KeyPath, Groups],
    ages: Mapping[Groups, int],
) -> dict[Groups, Groups | None]:
    """The old group that every new group goes on from: where its parameters come from. `None`: it is new."""
    members = _groups_of(new_tx, params)
    sources: dict[Groups, Groups | None] = {}
    for groups in {array.site.groups for array in new}:
        origins = {homes[param] for param, its in members.items() if its == groups and param in homes}
        if groups not in members.values():  # it is around the groups, and as old as they are
            origins = set(ages)
        sources[groups] = groups if groups in origins else max(origins, key=lambda one: ages[one], default=None)
    return sources


def _begins_anew(array: StateArray, new: Iterable[StateArray], values: Mapping[Any, Any]) -> bool:
    """Whether it counts for moments that all begin anew: those of its own link, or those that it corrects."""
    link = array.site.link
    if link is None or array.param is not None:
        return False
    slot = array.site.name.rpartition(".")[0]
    moments = [
        other.place in values
        for other in new
        if other.param is not None
        and other.site.groups == array.site.groups
        and (
            other.site.name == array.site.name
            or (link.name == "bias_correction" and other.site.name.rpartition(".")[0] == slot)
        )
    ]
    return bool(moments) and not any(moments)


def _matches(
    old: Iterable[StateArray], new: Iterable[StateArray], sources: Mapping[Groups, Groups | None]
) -> list[tuple[StateArray, StateArray]]:
    """The new arrays that an old one stands for, with that one."""
    renamed = _renamed(old, new)
    candidates: dict[tuple[str, KeyPath], list[StateArray]] = {}
    for array in old:
        candidates.setdefault((array.site.name, array.keys), []).append(array)
    matches = [
        (array, match)
        for array in new
        for match in candidates.get((renamed.get(array.site.name, array.site.name), array.keys), ())
        if np.shape(match.value) == array.value.shape
        # A parameter is in one group only; a count is in all of them.
        and (array.param is not None or match.site.groups == sources[array.site.groups])
    ]
    values = {array.place: match for array, match in matches}
    return [(array, match) for array, match in matches if not _begins_anew(array, new, values)]


def _renamed(old: Iterable[StateArray], new: Iterable[StateArray]) -> dict[str, str]:
    """The old links that new ones of other names stand for: those in the same slot that have a field in common."""
    had, has = ({array.site.name: set[str]() for array in arrays} for arrays in (old, new))
    for found, arrays in ((had, old), (has, new)):
        for array in arrays:
            if array.param is not None:
                found[array.site.name].add(array.field)
    gone = {name: fields for name, fields in had.items() if name not in has}
    renamed: dict[str, str] = {}
    for name in [name for name in has if name not in had]:
        slot = name.rpartition(".")[0]
        match = next((one for one in gone if one.rpartition(".")[0] == slot and has[name] & gone[one]), None)
        if match is not None:
            renamed[name] = match
            del gone[match]
    return renamed
