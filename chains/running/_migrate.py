"""The state for a changed optimizer, or for changed parameters, in the middle of a run."""

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linkax.transforms import Count, Gathered, Link, Moment, Own, Weights
from linkax.transforms._check import is_traced
from linkax.transforms._identity import identity_of

from ..algebra._paths import leaves_with_path, words
from ..algebra._structure import (
    Groups,
    Site,
    StateArray,
    flatten,
    groups_of,
    map_states,
    opaque_parts,
    param_text,
    state_arrays,
    with_arrays,
)
from ._devices import put_beside, put_like, sharding_of

Param = tuple[str, ...]


class Migration(NamedTuple):
    """What `migrate` returns: the new state, and a report of what happened to the old one.

    It prints as a short report; `details()` lists every array.

    Attributes:
        state: The state for the new optimizer.
        kept: The arrays carried over unchanged, such as `"second.mean_square.nu params/Dense_0/kernel"`, prefixed with
            the group's name if there are groups.
        converted: The arrays carried over in other units: a sum that has become an average, a buffer that has moved to
            the other side of the learning rate.
        created: The arrays that the old state does not have. They start from their initial values, except counts and
            numbers that follow from them: a new link takes the step count of its group.
        dropped: The arrays of the old state that the new optimizer does not need.
        mixed: Parameters whose moments have seen a different number of steps from their group's count: new parameters
            in an old group, or parameters of different ages in one group. Their bias correction is not exact.
        notes: Reasons why arrays that look alike in both were not carried over.
    """

    state: Any
    kept: list[str]
    converted: list[str]
    created: list[str]
    dropped: list[str]
    mixed: list[str]
    notes: list[str]

    def details(self) -> str:
        """Returns the report with every array and parameter.

        Example:
            >>> import jax.numpy as jnp
            >>> from linkax import migrate, sgd
            >>> tx, w = sgd(0.1, momentum=0.9), jnp.ones(2)
            >>> print(migrate(tx, tx.init(w), tx, w).details().splitlines()[1])
              scale_by_momentum.count
        """
        return "\n".join(_lines((name, len(found), found) for name, found in self._lists()))

    def _lists(self) -> Iterator[tuple[str, list[str]]]:
        for name in self._fields[1:]:
            yield name, getattr(self, name)

    def __repr__(self) -> str:
        return "\n".join(_lines((name, len(found), _summed(found)) for name, found in self._lists()))


def _lines(lists: Iterable[tuple[str, int, list[str]]]) -> Iterator[str]:
    for name, count, found in lists:
        yield f"{name:<10} {count}"
        yield from (f"  {one}" for one in found)


def _summed(found: list[str]) -> list[str]:
    """One line for all arrays with the same name."""
    arrays = Counter(one.partition(" ")[0] for one in found)
    if any(len(one.split(" ")) > _LONGEST_NAME for one in found):  # sentences
        return found if len(found) <= _MOST_SENTENCES else [*found[:_MOST_SENTENCES], f"… and {len(found) - 5} more"]
    width = max(map(len, arrays), default=0)
    per_param = {one.partition(" ")[0] for one in found if " " in one}
    return [
        f"{name:<{width}}  {count} parameter{'s' * (count > 1)}" if name in per_param else name
        for name, count in arrays.items()
    ]


_MOST_SENTENCES = 5
_LONGEST_NAME = 2  # words: the array's name and the parameter's


def migrate(
    old_tx: optax.GradientTransformation,
    old_state: Any,
    new_tx: optax.GradientTransformation,
    params: Any,
    *,
    steps: int | None = None,
    keep_live: bool = False,
    restart: bool = False,
) -> Migration:
    """Creates the state for a changed optimizer, and keeps everything that survives the change.

    Four things may change at once: links (Adam to AdamW, plain to AMSGrad, momentum to Nesterov's), wrappers and
    equivalents (`optax.MultiSteps`, `live`, `optax.inject_hyperparams`, Optax's own `adam`), groups of parameters
    (added, removed, or with parameters moved between them), and the parameters themselves. A moment is kept if it means
    the same in the new optimizer: the same quantity of the same parameter, with the same shape. One that differs only
    by a known factor, such as a momentum after the learning rate, is converted. A group takes the step count of the
    group that its parameters come from; a group of new parameters starts from step 0, as with PyTorch's
    `add_param_group`.

    A group has one step count. So new parameters in an old group start in the middle of its schedule, and so do
    parameters of different ages that are put together; these are listed as `mixed`. Putting them in a separate group
    avoids that.

    An array that is kept stays in its shards. A new moment is sharded as its parameter is, and a new count is
    replicated on the devices of the parameters, so that the next step finds its state where it will leave it. An old
    state that is not on the devices of the parameters, or on the host, goes to them shard by shard.

    Args:
        old_tx: The optimizer that made `old_state`.
        old_state: Its state, which may be wrapped as Flax NNX's `optimizer.opt_state`. Not changed.
        new_tx: The optimizer to continue with; it may be the same, for other parameters.
        params: The parameters to continue with, or their shapes; for Flax NNX, `nnx.state(model, nnx.Param)`. They may
            be nested differently, such as `{"params": params}`, if their paths are the same except for a common prefix.
        steps: The number of steps taken, if the old state does not count them and the new one must.
        keep_live: Whether to keep the values that `live` and `optax.inject_hyperparams` hold in their states; otherwise
            the new optimizer's numbers apply.
        restart: Whether to allow that none of the moments can be kept.

    Returns:
        A `Migration(state, kept, converted, created, dropped, mixed, notes)`; prints as a report. Flax's `TrainState`
        takes the state as `opt_state`; for an `nnx.Optimizer` use `migrate_nnx`.

    Raises:
        ValueError: If `old_state` is not a state of `old_tx`; if no moment can be kept although the parameters have
            moments on both sides; if a required step count is unknown; if something that cannot be looked into has
            changed; if a label of `new_tx` is wrong (`param_groups`).
        TypeError: If `old_tx` or `new_tx` is not a transformation.

    Differences:
        PyTorch: `optimizer.add_param_group` for groups; a changed optimizer restarts. PyTorch counts the steps of each
        parameter, so there is no mixing. Optax has no equivalent; a changed `partition` rejects its old state.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from linkax import adam, migrate
        >>> params = {"w": jnp.ones(2)}
        >>> tx = adam(1e-3)
        >>> _, state = tx.update(params, tx.init(params), params)
        >>> migrate(tx, state, adam(1e-3, amsgrad=True), params)
        kept       7
          first.scale_by_momentum.count
          first.scale_by_momentum.mu     1 parameter
          first.bias_correction.weight
          first.bias_correction.lost
          second.mean_square.nu          1 parameter
          second.bias_correction.weight
          second.bias_correction.lost
        converted  0
        created    1
          second.running_max.nu_max  1 parameter
        dropped    0
        mixed      0
        notes      0

    Source:
        `torch.optim.Optimizer.add_param_group`.
    """
    flatten("migrate: new_tx", new_tx)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0):
        raise ValueError(f"migrate: steps must be an integer of at least 0, got {steps!r}")
    flatten("migrate: old_state", old_tx)
    fresh = put_beside(params, new_tx.init(params))
    _check_types(old_tx, old_state, params)
    _check_opaque(old_tx, new_tx)
    params = params.fast if isinstance(params, optax.LookaheadParams) else params  # the ones that have state
    old = state_arrays("migrate: old_state", old_tx, old_state, params)
    new = state_arrays("migrate: new_tx", new_tx, fresh, params)
    old = _renested(old, params)
    ages = _ages(old_tx, old, params, steps)
    clocks, new_clocks = _clocks(old), _clocks(new)
    outside = {(a.site.groups, a.clock): int(a.value) for a in old if a.is_count and a.clock != clocks[a.site.groups]}
    homes = _homes(old_tx, old, params)
    sources = _sources(new_tx, new, params, homes, ages)
    matches, notes = _matches(old, new, sources, keep_live)
    if not restart:
        _check_moments(old, new, matches, notes)
    values: dict[Any, Any] = {}
    matched = {array.place: (other, factor) for array, other, factor in matches}
    missing: list[str] = []
    by_path: dict[Any, Any] = {words(path): leaf for path, leaf in leaves_with_path(params)}
    for array in new:
        if array.place in matched:
            other, factor = matched[array.place]
            if isinstance(array.field, Weights) and isinstance(other.field, Weights) and array.field != other.field:
                param = by_path[array.param]
                values[array.place] = array.field.kept(param, other.field.full(param, other.value))
            else:
                values[array.place] = _converted(other.value, factor, array.value)
        elif not _begins_anew(array, new, matched):
            source = sources[array.site.groups]
            taken = None if source is None else ages[source]
            # A link outside a wrapper that skips steps takes the count of the links outside it.
            if array.is_count and array.clock != new_clocks[array.site.groups]:
                taken = outside.get((source or (), array.clock), outside.get(((), array.clock), taken))
            value = None if source is None else _counted(array, taken, missing, notes)
            values |= {} if value is None else {array.place: put_like(value, array.value)}
    if missing:
        raise ValueError(
            f"migrate: steps must say how many steps have been taken, because the old state does not count them and "
            f"{', '.join(dict.fromkeys(missing))} must continue from them, got None"
        )

    def age(groups: Groups | None) -> int:
        return 0 if groups is None else ages[groups] or 0

    members = {array.param: sources[array.site.groups] for array in new if array.is_moment}
    used = {other.place for _, other, _ in matches}
    return Migration(
        state=with_arrays("migrate: new_tx", new_tx, fresh, values, params),
        kept=[str(array) for array, _, factor in matches if factor == 1],
        converted=[f"{array} (from {other.name}, times {factor:g})" for array, other, factor in matches if factor != 1],
        created=[str(array) for array in new if array.place not in matched],
        dropped=[str(array) for array in old if array.place not in used],
        mixed=[
            f"{param_text(param)}: {age(homes.get(param))} steps in a group of {age(source)}"
            for param, source in members.items()
            if param is not None and age(homes.get(param)) != age(source)
        ],
        notes=list(dict.fromkeys(notes)),
    )


def _converted(value: Any, factor: float, like: Any) -> jax.Array:
    """An array in the units of the new one, in its own shards; if nothing changes it is the same array.

    One that has been put nowhere yet, or on other devices than the parameters, goes where the new one is.
    """
    if factor != 1:
        value = jnp.asarray(value) * jnp.asarray(factor, jnp.finfo(value.dtype).dtype)
    own, new = sharding_of(value), sharding_of(like)
    stays = own is not None and (new is None or own.device_set == new.device_set)
    return jnp.asarray(value, like.dtype) if stays else put_like(value, like)


def _check_types(old_tx: optax.GradientTransformation, old_state: Any, params: Any) -> None:
    """Raises if a link's state does not have the type that the link creates."""
    kinds: dict[tuple[Groups, str], type] = {}
    plain = jax.Array | np.ndarray | jax.ShapeDtypeStruct

    def note(site: Site, state: Any) -> Any:
        kinds[site.groups, site.name] = type(state)
        return state

    def check(site: Site, state: Any) -> Any:
        kind = kinds.get((site.groups, site.name), type(state))
        if type(state) is not kind and not (isinstance(state, plain) and issubclass(kind, plain)):
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


def _check_opaque(old_tx: optax.GradientTransformation, new_tx: optax.GradientTransformation) -> None:
    """Raises if something that cannot be looked into is not the same on both sides."""
    both = [opaque_parts(flatten("migrate", tx)) for tx in (old_tx, new_tx)]
    for which, own, others in (("old_tx", *both), ("new_tx", *both[::-1])):
        for part in own:
            if not any(part.link == other.link for other in others):
                raise ValueError(
                    f"migrate: {which} holds {part.link.name}, which cannot be looked into, so its state can only "
                    "be kept by the same transformation; wrap both optimizers in it, or neither"
                )


def _renested(old: list[StateArray], params: Any) -> list[StateArray]:
    """The old arrays under their parameters' new names, if only a common prefix of these has changed."""
    shapes = {words(path): np.shape(leaf) for path, leaf in leaves_with_path(params)}
    before = _param_shapes(array for array in old if isinstance(array.field, Moment))
    if not before or not shapes or before.keys() & shapes.keys():
        return old

    def common(paths: Iterable[Any]) -> int:
        """The number of words that all paths start with, not counting the last one of each."""
        columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*(path[:-1] for path in paths)))
        return len(list(columns))

    found: dict[Any, Param] = {}
    if len(before) == len(shapes) == 1 and () in {
        *before,
        *shapes,
    }:  # an array became a tree of one, or vice versa
        (path, shape), (to, new_shape) = *before.items(), *shapes.items()
        found = {path: to} if shape == new_shape else {}
    for cut, skip in itertools.product(range(common(before) + 1), range(common(shapes) + 1)):
        front = next(iter(shapes))[:skip]
        renamed = {path: (*front, *path[cut:]) for path in before}
        same = {path: to for path, to in renamed.items() if shapes.get(to) == before[path]}
        if len(same) == min(len(before), len(shapes)) and len(set(same.values())) == len(same) and not found:
            found = same
    return [array._replace(param=found.get(array.param, array.param)) for array in old]


def _ages(
    old_tx: optax.GradientTransformation, old: Iterable[StateArray], params: Any, steps: int | None
) -> dict[Groups, int | None]:
    """The number of steps that each group that is not frozen has taken, if known from its state or the caller."""
    ages: dict[Groups, int | None] = dict.fromkeys(groups_of(flatten("migrate", old_tx), params).values())
    ages |= dict.fromkeys(array.site.groups for array in old)
    clocks = dict.fromkeys(ages, ()) | _clocks(old)
    for array in old:
        if array.is_count and array.clock == clocks[array.site.groups]:
            ages[array.site.groups] = max(ages[array.site.groups] or 0, int(array.value))
    for groups, age in ages.items():
        if age is not None and steps is not None and age != steps:
            whose = f"the group {'.'.join(groups)}" if groups else "the old state"
            raise ValueError(f"migrate: steps must equal the old state's count, {age} in {whose}, got {steps}")
    around = {clocks[()]: ages[()]} if () in ages else {}  # links around groups count with them
    told = {groups: around.get(clocks[groups]) for groups in ages}
    told = {groups: steps if age is None else age for groups, age in told.items()}
    return {groups: told[groups] if age is None else age for groups, age in ages.items()}


def _clocks(arrays: Iterable[StateArray]) -> dict[Groups, tuple[str, ...]]:
    """The clock of each group: the wrappers that let its moments (or its counts, if it has none) skip some steps."""
    members: dict[Groups, list[StateArray]] = {}
    for array in arrays:
        members.setdefault(array.site.groups, []).append(array)

    def clock(own: list[StateArray]) -> tuple[str, ...]:
        moments = [array for array in own if isinstance(array.field, Moment) and not array.field.if_unchanged]
        counting = moments or [array for array in own if array.is_count]
        return max((array.clock for array in counting), key=len, default=())

    return {groups: clock(own) for groups, own in members.items()}


def _homes(old_tx: optax.GradientTransformation, old: Iterable[StateArray], params: Any) -> dict[Param | None, Groups]:
    """The old group that each parameter comes from: that of its moments, or by label if the group has none."""
    shapes: dict[Param | None, Any] = {words(path): np.shape(leaf) for path, leaf in leaves_with_path(params)}
    with_moments = {array.site.groups for array in old if array.is_moment}
    before = _param_shapes(array for array in old if array.is_moment)
    homes: dict[Param | None, Groups] = {
        path: groups
        for path, groups in groups_of(flatten("migrate", old_tx), params).items()
        if groups not in with_moments
    }
    return homes | {
        array.param: array.site.groups
        for array in old
        if array.is_moment and before[array.param] == shapes.get(array.param)
    }


def _param_shapes(arrays: Iterable[StateArray]) -> dict[Any, tuple[int, ...]]:
    """The shapes of parameters, from those of their arrays; what has means along an axis has one element there."""
    found: dict[Any, tuple[int, ...]] = {}
    for array in arrays:
        shape, other = np.shape(array.value), found.get(array.param, ())
        found[array.param] = tuple(map(max, shape, other)) if len(shape) == len(other) else shape
    return found


def _sources(
    new_tx: optax.GradientTransformation,
    new: Iterable[StateArray],
    params: Any,
    homes: Mapping[Param | None, Groups],
    ages: Mapping[Groups, int | None],
) -> dict[Groups, Groups | None]:
    """The old group that each new group continues: the one its parameters come from. `None`: it is new."""
    members = groups_of(flatten("migrate", new_tx), params)
    sources: dict[Groups, Groups | None] = {}
    for groups in {array.site.groups for array in new}:
        origins = {homes[param] for param, its in members.items() if its == groups and param in homes}
        if groups not in members.values():  # it wraps the groups, and is as old as they are
            origins = set(ages)
        sources[groups] = groups if groups in origins else max(origins, key=lambda one: ages[one] or 0, default=None)
    return sources


Match = tuple[StateArray, StateArray, float]
"""A new array, the old one that it continues, and the factor to multiply that by."""


def _matches(
    old: list[StateArray], new: list[StateArray], sources: Mapping[Groups, Groups | None], keep_live: bool
) -> tuple[list[Match], list[str]]:
    """The new arrays matched with old ones, and the reasons why others that look alike are not matched."""
    reasons: dict[Any, str] = {}
    free = {array.place for array in old}
    matches: list[Match] = []
    by_param: dict[Any, list[StateArray]] = {}
    for array in old:
        by_param.setdefault(array.param, []).append(array)
    links: dict[tuple[Groups, str], set[tuple[Groups, str]]] = {}  # the old links that each new one continues
    for same_name in (True, False):  # links with the same name take precedence
        taken = {array.place for array, _, _ in matches}
        for array in new:
            if not array.is_moment or array.place in taken:
                continue
            for other in by_param.get(array.param, ()):
                if other.place not in free or (array.site.name == other.site.name) != same_name:
                    continue
                factor, why = factor_between(array, other)
                if factor is not None:
                    free.remove(other.place)
                    matches.append((array, other, factor))
                    links.setdefault(_link(array), set()).add(_link(other))
                    break
                if why and (same_name or array.place not in reasons):
                    reasons[array.place] = f"{array.name} restarts: {why}"
    kept = {array.place for array, _, _ in matches}
    notes = [why for place, why in reasons.items() if place not in kept]
    for array in new:  # a count may be continued in several groups
        source = sources[array.site.groups]
        if array.is_moment or source is None or _begins_anew(array, new, kept):
            continue
        origins = links.get(_link(array), {(source, array.site.name)})
        for other in by_param.get(None, ()):
            if other.site.groups == source and _goes_on(array, other, _link(other) in origins, keep_live):
                matches.append((array, other, 1.0))
                break
    order = {array.place: index for index, array in enumerate(new)}
    return sorted(matches, key=lambda match: order[match[0].place]), notes


def _link(array: StateArray) -> tuple[Groups, str]:
    return array.site.groups, array.site.name


def factor_between(array: StateArray, other: StateArray) -> tuple[float | None, str]:
    """The factor that converts the old moment to the new one; `None`, and the reason, if there is none."""
    if np.shape(array.value) != np.shape(other.value):
        return None, f"its shape is {np.shape(array.value)} now"
    if np.iscomplexobj(array.value) != np.iscomplexobj(other.value):
        return None, "it is complex on one side only"
    new, old = array.field, other.field
    if isinstance(new, Weights) or isinstance(old, Weights):
        return (1.0, "") if type(new) is type(old) else (None, "")
    streams = array.site.stream, other.site.stream
    if isinstance(new, Own) or isinstance(old, Own):
        same_field = array.site.name == other.site.name and array.field_words == other.field_words
        alike = type(new) is type(old) and same_field and streams[0] == streams[1]
        return (1.0, "") if alike else (None, "its meaning is unknown, and its input has changed")
    assert isinstance(new, Moment)
    assert isinstance(old, Moment)
    if not array.has_slot_of(other):
        is_same = array.quantity == other.quantity
        return None, f"the {other.quantity} was {_role(other)}, and is {_role(array)} now" if is_same else ""
    if array.quantity != other.quantity:
        return None, f"it was the {other.quantity}, and is the {array.quantity} now"
    if new.if_unchanged and _arguments(array.site.link) != _arguments(other.site.link):
        return None, f"{array.site.link.name} has different arguments now"
    if streams[0].unknown != streams[1].unknown and new.power:
        return None, "a factor that changes from step to step, or is unknown, comes before it on one side"
    factor = (streams[0].factor / streams[1].factor) ** new.power if streams[1].factor else 0.0
    factor = abs(factor) if new.is_absolute else factor
    share = _share(array, other)
    if share is None:
        return None, "the weight of a new value has changed by an unknown factor"
    return factor * share, ""


def _role(array: StateArray) -> str:
    """The role of a moment, in words."""
    return f"the {array.slot} moment of a ratio" if array.slot else "a separate moment"


def _share(array: StateArray, other: StateArray) -> float | None:
    """The weight of a new value in the new moment, over that in the old one; `None` if unknown."""

    def is_average(one: StateArray) -> bool:
        assert isinstance(one.field, Moment)
        if one.field.is_average is None:
            return one.field.weight is None
        return one.field.is_average(**one.site.link.hyperparams)

    def weight(one: StateArray) -> float | None:
        assert isinstance(one.field, Moment)
        if one.field.weight is None:
            return 1.0
        try:
            value = one.field.weight(**one.site.link.settled(one.site.is_live))
        except TypeError:  # a schedule
            return None
        return None if value is None or is_traced(value) or math.isnan(value) else float(value)

    if is_average(array) and is_average(other):  # the same scale, whatever their decays
        return 1.0
    after, before = weight(array), weight(other)
    if after and before:
        return after / before
    return 1.0 if _of_weight(array) == _of_weight(other) else None


def _of_weight(array: StateArray) -> Any:
    """The link's name and those of its arguments that the weight of a new value depends on."""
    assert isinstance(array.field, Moment)
    link, weight = array.site.link, array.field.weight
    if weight is None:
        return _arguments(link)
    given = [one.name for one in inspect.signature(weight).parameters.values() if one.kind != one.VAR_KEYWORD]
    return link.name, identity_of({name: link.hyperparams.get(name) for name in given})


def _arguments(link: Link) -> Any:
    """A link's arguments, except the transformations it holds."""
    held = link.holders()
    return link.name, identity_of({name: value for name, value in link.hyperparams.items() if name not in held})


def _goes_on(array: StateArray, other: StateArray, is_same_link: bool, keep_live: bool) -> bool:
    """Whether an array that is not a moment is carried over."""
    new, old = array.field, other.field
    if type(new) is not type(old) or np.shape(array.value) != np.shape(other.value):
        return False
    if isinstance(new, Own) and isinstance(old, Own):
        if new.is_value or old.is_value:
            if not (new.is_value and old.is_value) or array.field_words[-1] != other.field_words[-1]:
                return False
            if new.is_scheduled:  # the last step's value, which is only a record
                return old.is_scheduled
            return keep_live or bool(np.array_equal(array.value, other.value))
        if new.if_unchanged and _arguments(array.site.link) != _arguments(other.site.link):
            return False
    return is_same_link and array.field_words == other.field_words


def _begins_anew(array: StateArray, new: Iterable[StateArray], kept: Container[Any]) -> bool:
    """Whether it counts for moments that all restart: those of its own link, or those that it corrects."""
    if not isinstance(array.field, Gathered | Count):
        return False
    group = [other for other in new if isinstance(other.field, Moment) and other.site.groups == array.site.groups]
    moments = [other for other in group if other.site == array.site and not array.site.link.slots]
    if isinstance(array.field, Gathered) and not moments:
        moments = [other for other in group if other.has_slot_of(array)]
    return bool(moments) and not any(other.place in kept for other in moments)


def _counted(array: StateArray, age: int | None, missing: list[str], notes: list[str]) -> float | None:
    """The value of a count, or of a number that follows from it, after the steps that its group has taken."""
    if isinstance(array.field, Moment | Own | Weights):
        return None
    if age is None:
        if isinstance(array.field, Count) and not array.field.is_needed:
            notes.append(f"{array.name} counts from 0, because the old state does not count the steps; pass steps=…")
        else:
            missing.append(array.name)
        return None
    return age if isinstance(array.field, Count) else array.field.after(age, **array.site.link.hyperparams)


def _check_moments(old: list[StateArray], new: list[StateArray], matches: list[Match], notes: list[str]) -> None:
    """Raises if there are moments of the same parameters on both sides, and none of them could be kept."""
    had, has = (
        [array for array in arrays if isinstance(array.field, Moment) and not array.field.if_unchanged]
        for arrays in (old, new)
    )
    kept = [array for array, _, _ in matches if not isinstance(array.field, Weights)]
    if {array.param for array in had} & {array.param for array in has} and not kept:
        why = "".join(f"\n  {note}" for note in dict.fromkeys(notes))
        before, now = ({f"the {array.quantity}" for array in arrays} for arrays in (had, has))
        raise ValueError(
            "migrate: old_tx and new_tx must have a moment in common, or pass restart=True to restart them all; "
            f"old_state holds {', '.join(sorted(before))}, and new_tx needs {', '.join(sorted(now))}{why}"
        )
