"""The state for a changed optimizer, or for changed parameters, in mid-training."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from linkax.transforms._nesterov import weight_after

from ._paths import KeyPath, leaves_with_path, path_text
from ._states import Groups, StateArray, state_arrays, with_arrays


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
    fresh = new_tx.init(params)
    old, new = (
        state_arrays("migrate: old_tx", old_tx, old_state, params),
        state_arrays("migrate: new_tx", new_tx, fresh, params),
    )
    ages = _ages(old)
    shapes = {path: np.shape(leaf) for path, leaf in leaves_with_path(params)}
    homes = {a.param: a.site.groups for a in old if a.param is not None and a.value.shape == shapes[a.param]}
    sources = _sources(new, homes, ages)
    matches = _matches(old, new, sources)
    values = {array.place: jnp.asarray(match.value, array.value.dtype) for array, match in matches}
    for array in new:
        source, link = sources[array.site.groups], array.site.link
        if array.place in values or source is None:
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


def _ages(old: Iterable[StateArray]) -> dict[Groups, int]:
    """How many steps each group has taken."""
    ages = {array.site.groups: 0 for array in old}
    for array in old:
        if array.is_count:
            ages[array.site.groups] = max(ages[array.site.groups], int(array.value))
    return ages


def _sources(
    new: Iterable[StateArray], homes: Mapping[KeyPath, Groups], ages: Mapping[Groups, int]
) -> dict[Groups, Groups | None]:
    """The old group that every new group goes on from: where its parameters come from. `None`: it is new."""
    sources: dict[Groups, Groups | None] = {}
    for groups in {array.site.groups for array in new}:
        members = [array.param for array in new if array.site.groups == groups and array.param is not None]
        origins = {homes[param] for param in members if param in homes}
        if not members:  # without moments nothing says where its parameters come from, but perhaps its name
            origins = {groups, ()} & ages.keys()
        sources[groups] = groups if groups in origins else max(origins, key=lambda one: ages[one], default=None)
    return sources


def _matches(
    old: Iterable[StateArray], new: Iterable[StateArray], sources: Mapping[Groups, Groups | None]
) -> list[tuple[StateArray, StateArray]]:
    """The new arrays that an old one stands for, with that one."""
    renamed = _renamed(old, new)
    candidates: dict[tuple[str, KeyPath], list[StateArray]] = {}
    for array in old:
        candidates.setdefault((array.site.name, array.keys), []).append(array)
    return [
        (array, match)
        for array in new
        for match in candidates.get((renamed.get(array.site.name, array.site.name), array.keys), ())
        if match.value.shape == array.value.shape
        # A parameter is in one group only; a count is in all of them.
        and (array.param is not None or match.site.groups == sources[array.site.groups])
    ]


def _renamed(old: Iterable[StateArray], new: Iterable[StateArray]) -> dict[str, str]:
    """The old links that new ones of other names stand for: those in the same slot that have a field in common."""
    had, has = ({array.site.name: set[str]() for array in arrays} for arrays in (old, new))
    for found, arrays in ((had, old), (has, new)):
        for array in arrays:
            if array.param is not None:
                found[array.site.name].add(array.field)
    gone = {name: fields for name, fields in had.items() if name not in has}
    renamed: dict[str, str] = {}
    for name in has.keys() - had.keys():
        slot = name.rpartition(".")[0]
        match = next((one for one in gone if one.rpartition(".")[0] == slot and has[name] & gone[one]), None)
        if match is not None:
            renamed[name] = match
            del gone[match]
    return renamed
