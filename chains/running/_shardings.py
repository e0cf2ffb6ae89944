"""Where the arrays of an optimizer's state are on a mesh: where their parameters are, or split over more devices.

A state of n bytes per device takes n / k if it is split over k devices that would otherwise hold the same. That is
stage 1 of ZeRO. Every function here reads shapes and shardings only, so parameters may also be shapes.
"""

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, Sharding

from linkax.transforms._check import is_traced
from linkax.transforms._leaves import shape_of
from linkax.transforms._link import links_of
from linkax.transforms._trees import KeyPath, bare, leaves_with_path, listed, path_text, words

from ..algebra._structure import Site, StateArray, map_states, state_arrays

SMALL = 4096
"""Parameters with fewer elements are not split: what that saves is not worth sending them separately."""

Over = str | Sequence[str] | None


class _Owner(NamedTuple):
    """A parameter's shape, and where an array of that shape in the state is."""

    shape: tuple[int, ...]
    sharding: Sharding


_Owners = dict[tuple[str, ...], _Owner]
"""All parameters, by the words of their paths."""


def param_shardings(params: Any, *, over: Over = None) -> Any:
    """Returns where every parameter is, or where it is if it is split over more axes of the mesh.

    With `over`, each parameter of at least 4096 elements is split over these axes of the mesh as well, as far as it
    is not split over them already: along its longest axis whose part on a device can be divided among so many devices,
    preferably one that is not split yet, and the last of several of that length. (Over explicit axes of the mesh, only
    one that is not split yet: JAX refuses to add up arrays that are split along one axis in different ways.) This is
    where the state of ZeRO is, and a step that constrains the gradients to be there too need not gather them (ZeRO-2).
    Parameters that are put there themselves are fully sharded (FSDP, ZeRO-3).

    Args:
        params: The parameters on the mesh, or `jax.ShapeDtypeStruct`s with a sharding each; also an `nnx.State`, or a
            tree with Flax's `nn.Partitioned`.
        over: The axis of the mesh, or several of them; `None` for where the parameters are.

    Returns:
        A tree like `params`, of `NamedSharding`s.

    Raises:
        ValueError: If a parameter has no sharding, or one that its shape cannot be split by, or is traced; if they are
            on different devices; if `over` is no axis of their mesh.

    Warns:
        UserWarning: If a parameter of at least 4096 elements cannot be split evenly.

    Differences:
        PyTorch: `fully_shard` splits the first axis, and pads it if it cannot be divided evenly.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
        >>> from linkax import param_shardings
        >>> everywhere = NamedSharding(AbstractMesh((8,), ("data",)), PartitionSpec())
        >>> params = {"w": jax.ShapeDtypeStruct((128, 512), jnp.float32, sharding=everywhere)}
        >>> tuple(param_shardings(params, over="data")["w"].spec)
        (None, 'data')

    Source:
        Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", 2020.
    """
    owners = _owners_of("param_shardings", params, over)
    return jax.tree_util.tree_map_with_path(lambda path, _: owners[words(path)].sharding, params)


def state_shardings(tx: optax.GradientTransformation, params: Any, *, over: Over = None) -> Any:
    """Returns where every array of an optimizer's state should be: where its parameter is, or split over more devices.

    Inside `jax.jit`, JAX does not know that a moment of zeros belongs to a parameter: on a mesh with automatic axes it
    puts the whole state on one device. `jax.jit(tx.init, out_shardings=state_shardings(tx, params))` puts it where the
    parameters are; `init_sharded` does just that. What has an axis less than its parameter, such as factored means of
    squares or the scales of blocks, is split along the axes that it has. Counts, and other numbers, are replicated.

    With `over`, the state is split over axes of the mesh over which the parameters are replicated, as
    `param_shardings` says: ZeRO-1. Each device then updates its part of the parameters, and the parts are gathered. For
    that the step must say where its results are, because a compiler would leave the parameters where they are updated:
    `jax.jit(step, out_shardings=(param_shardings(params), state_shardings(tx, params, over="data")))`.

    It looks into all links and Optax's combinators. An undeclared array in the state of any other transformation
    belongs to the parameter whose path its own path ends with; what belongs to none is replicated.

    Args:
        tx: The optimizer.
        params: The parameters on the mesh, or `jax.ShapeDtypeStruct`s with a sharding each; also an `nnx.State`, or a
            tree with Flax's `nn.Partitioned`.
        over: The axis of the mesh to split the state over, or several of them, for ZeRO; `None` to leave it where the
            parameters are.

    Returns:
        A tree like `jax.eval_shape(tx.init, params)`, of `NamedSharding`s. It goes into `jax.jit(..., out_shardings=)`,
        `jax.device_put` and `jax.lax.with_sharding_constraint`. What Orbax restores into is `jax.eval_shape(init,
        params)` with `init = jax.jit(tx.init, out_shardings=state_shardings(tx, params))`.

    Raises:
        ValueError: If a parameter has no sharding, or one that its shape cannot be split by, or is traced; if they are
            on different devices; if `over` is no axis of their mesh.
        TypeError: If `tx` is not a transformation.

    Warns:
        UserWarning: If an array of at least 4096 elements is replicated although it could be split, because it is
            unknown which parameter it belongs to; if a parameter of that size cannot be split evenly over `over`.

    Differences:
        `optax.tree_map_params(tx, lambda _, sharding: sharding, state, shardings)` does it for arrays of the
        parameters' shapes only. `nnx.Optimizer` takes the sharding of a moment from the metadata of its parameter.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
        >>> from linkax import adamw, state_shardings
        >>> mesh = AbstractMesh((4, 2), ("data", "model"))
        >>> columns = NamedSharding(mesh, PartitionSpec(None, "model"))
        >>> params = {"w": jax.ShapeDtypeStruct((128, 512), jnp.float32, sharding=columns)}
        >>> tx = adamw(1e-3)
        >>> for over in (None, "data"):
        ...     print(tuple(state_shardings(tx, params, over=over)[0].second[0].nu["w"].spec))
        (None, 'model')
        ('data', 'model')

    Source:
        Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", 2020; Xu et al.,
        "Automatic cross-replica sharding of weight update in data-parallel training", 2020.
    """
    where = "state_shardings"
    links_of(f"{where}: tx", tx)
    owners = _owners_of(where, _stepped(params), over)
    return _state_shardings(where, tx, jax.eval_shape(tx.init, params), params, owners, over)


def init_sharded(tx: optax.GradientTransformation, params: Any, *, over: Over = None) -> Any:
    """Initialises the state of an optimizer where `state_shardings` says, without a whole copy on any device.

    It is `jax.jit(tx.init, out_shardings=state_shardings(tx, params, over=over))(params)`.

    Args:
        tx: The optimizer.
        params: As for `state_shardings`. From shapes alone the state is what `tx.init` makes of these: the state of the
            parameters, unless the optimizer keeps a copy of their values.
        over: As for `state_shardings`.

    Returns:
        The state.

    Raises:
        ValueError: As `state_shardings`; if the parameters are on an `AbstractMesh`, which has no devices.
        TypeError: If `tx` is not a transformation.

    Warns:
        UserWarning: As `state_shardings`.

    Differences:
        PyTorch: `ZeroRedundancyOptimizer`, which takes the class of an optimizer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> from linkax import adamw, init_sharded
        >>> everywhere = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec())
        >>> params = jax.device_put({"w": jnp.ones((128, 512))}, everywhere)
        >>> state = init_sharded(adamw(1e-3), params, over="data")
        >>> state[0].second[0].nu["w"].sharding == everywhere  # there is one device only
        True

    Source:
        As `state_shardings`.
    """
    where = "init_sharded"
    links_of(f"{where}: tx", tx)
    owners = _owners_of(where, _stepped(params), over)
    if any(isinstance(_devices(one.sharding), AbstractMesh) for one in owners.values()):
        raise ValueError(
            f"{where}: params must be on a mesh of devices, got an AbstractMesh; state_shardings takes one"
        )
    is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    # Shapes are no arguments of a compiled function. Inside of it `init` sees shapes, as it would outside.
    init, given = (functools.partial(tx.init, params), ()) if is_abstract else (tx.init, (params,))
    shardings = _state_shardings(where, tx, jax.eval_shape(init, *given), params, owners, over)
    return jax.jit(init, out_shardings=shardings)(*given)


def _stepped(params: Any) -> Any:
    """The parameters that the optimizer steps, whose names its state has: with `optax.lookahead` one of two copies."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _owners_of(where: str, params: Any, over: Over) -> _Owners:
    """All parameters; raises if one of them has no sharding that arrays can have."""
    leaves = [(path_text(path) or "the parameter", leaf) for path, leaf in leaves_with_path(params)]
    lacking = [path for path, leaf in leaves if is_traced(leaf) or getattr(leaf, "sharding", None) is None]
    if lacking:
        raise ValueError(
            f"{where}: params must be arrays on a mesh, or jax.ShapeDtypeStructs with a sharding each, outside of "
            f"jax.jit; got no sharding for {listed(lacking)}"
        )
    impossible = [f"{path} {shape_of(leaf)} with {leaf.sharding}" for path, leaf in leaves if not _is_possible(leaf)]
    if impossible:
        raise ValueError(
            f"{where}: params must be split evenly, each axis over axes of the mesh or not at all, got "
            f"{listed(impossible)}"
        )
    if len({_devices(leaf.sharding) for _, leaf in leaves}) > 1:
        raise ValueError(
            f"{where}: params must all be on the same devices, also those that are replicated, got "
            f"{listed(f'{path} on {leaf.sharding}' for path, leaf in leaves)}"
        )
    names = _names(over)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{where}: over must be the name of an axis, several names, or None, got {over!r}")
    for path, leaf in leaves:
        axes = leaf.sharding.mesh.axis_names if isinstance(leaf.sharding, NamedSharding) else ()
        if len(set(names) & set(axes)) < len(names):
            raise ValueError(
                f"{where}: over must be an axis of the parameters' mesh, or several different ones: that of {path} has "
                f"{', '.join(map(repr, axes)) or 'no axes'}; got {over!r}"
            )
    owners, uneven = {}, []
    for path, leaf in leaves_with_path(params):
        shape, sharding = shape_of(leaf), leaf.sharding
        if math.prod(shape) >= SMALL and _free(sharding, names):
            split = _split(shape, sharding, names)
            uneven += [f"{path_text(path) or 'the parameter'} {shape}"] if split is None else []
            sharding = split or sharding
        owners[words(path)] = _Owner(shape, sharding)
    if uneven:
        warnings.warn(
            f"{where}: over: no axis can be divided among the devices of {', '.join(names)} in {listed(uneven)}, which "
            "stay as they are",
            stacklevel=3,
        )
    return owners


def _state_shardings(
    where: str, tx: optax.GradientTransformation, state: Any, params: Any, owners: _Owners, over: Over
) -> Any:
    """A tree like the abstract `state`."""
    everywhere = _everywhere(owners)
    unknown: list[str] = []

    def of_array(array: StateArray) -> Sharding:
        owner = None if array.param is None else owners.get(array.param)
        found = None if owner is None else _like(owner, shape_of(array.value))
        return found or of_unknown(str(array), shape_of(array.value))

    def of_unknown(name: str, shape: tuple[int, ...]) -> Sharding:
        unknown.extend([f"{name} {shape}"] if math.prod(shape) >= SMALL else [])
        return everywhere

    arrays = state_arrays(where, tx, state, _stepped(params), is_as_stored=True)
    found = {array.place: of_array(array) for array in arrays if not _is_piece(array)}

    def fill(site: Site, own: Any) -> Any:
        def sharding_of(keys: KeyPath, leaf: Any) -> Sharding:
            place = (site.groups, site.name, bare(keys))
            if place in found:
                return found[place]
            # A vector of all parameters has no axes of theirs.
            split = _split(leaf.shape, everywhere, _names(over))
            return split or of_unknown(f"{site.name} of all parameters", leaf.shape)

        return jax.tree_util.tree_map_with_path(sharding_of, own)

    shardings = map_states(fill, where, tx, state, is_as_stored=True)
    if unknown and not all(one.sharding.is_fully_replicated for one in owners.values()):
        warnings.warn(
            f"{where}: arrays that are not like a parameter are replicated on all devices: {listed(unknown)}; "
            "@link(..., state={...: Moment(...)}) declares what the state of a link has of each parameter",
            stacklevel=3,
        )
    return shardings


def _is_possible(leaf: Any) -> bool:
    """Whether arrays can have the sharding of a parameter, which a shape may just claim to have."""
    try:
        leaf.sharding.shard_shape(shape_of(leaf))
    except ValueError:
        return False
    return not isinstance(leaf.sharding, NamedSharding) or PartitionSpec.UNCONSTRAINED not in leaf.sharding.spec


def _devices(sharding: Sharding) -> Any:
    """What arrays must have in common to be arguments of one compiled function."""
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, AbstractMesh) else frozenset(sharding.device_set)


def _names(over: Over) -> tuple[str, ...]:
    if over is None:
        return ()
    return tuple(over) if isinstance(over, list | tuple) else (over,)  # pyright: ignore[reportReturnType]


def _everywhere(owners: _Owners) -> Any:
    """Where an array is that belongs to no parameter: on all of their devices."""
    sharding = next((one.sharding for one in owners.values()), None)
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding


def _axes_by_dimension(sharding: NamedSharding, ndim: int) -> list[tuple[str, ...]]:
    """The axes of the mesh over which each dimension of an array is split."""
    spec = [*sharding.spec, *(None,) * (ndim - len(sharding.spec))]
    return [() if one is None else (one,) if isinstance(one, str) else tuple(one) for one in spec]


def _free(sharding: Sharding, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the axes over which an array is replicated, where they have more than one device."""
    if not isinstance(sharding, NamedSharding):
        return ()
    used = {name for axes in _axes_by_dimension(sharding, len(sharding.spec)) for name in axes}
    return tuple(name for name in names if name not in used and sharding.mesh.shape[name] > 1)


def _explicit(sharding: NamedSharding, names: Sequence[str]) -> bool:
    """Whether some of the axes of the mesh are explicit."""
    kinds = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types))
    return any(kinds[name] is AxisType.Explicit for name in names)


def _split(shape: tuple[int, ...], sharding: Sharding, names: Sequence[str]) -> NamedSharding | None:
    """The sharding, split over more axes of the mesh; `None` if no dimension can be divided evenly."""
    free = _free(sharding, names)
    if not isinstance(sharding, NamedSharding) or not free:
        return None
    axes, local = _axes_by_dimension(sharding, len(shape)), sharding.shard_shape(shape)
    count = math.prod(sharding.mesh.shape[name] for name in free)
    # JAX refuses to add up arrays that are split along the same axis over different explicit axes of the mesh.
    refused = {at for at, names in enumerate(axes) if _explicit(sharding, names) and _explicit(sharding, free)}
    even = [at for at, size in enumerate(local) if size and size % count == 0 and at not in refused]
    if not even:
        return None
    best = max(even, key=lambda dimension: (not axes[dimension], local[dimension], dimension))
    axes[best] += free
    return _with_axes(sharding, axes)


def _with_axes(sharding: NamedSharding, axes: Sequence[tuple[str, ...]]) -> NamedSharding:
    spec = [None if not names else names[0] if len(names) == 1 else names for names in axes]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)


def _like(owner: _Owner, shape: tuple[int, ...]) -> Sharding | None:
    """Where an array of a parameter is that may lack some of its dimensions; `None` if it is unclear which."""
    if shape == owner.shape or not isinstance(owner.sharding, NamedSharding):
        return owner.sharding
    axes = _axes_by_dimension(owner.sharding, len(owner.shape))
    found = {tuple(() if at is None else axes[at] for at in one) for one in _dimensions(shape, owner.shape)}
    return _with_axes(owner.sharding, found.pop()) if len(found) == 1 else None


def _dimensions(shape: tuple[int, ...], whole: tuple[int, ...]) -> Iterator[tuple[int | None, ...]]:
    """For each dimension of an array, which one of its parameter it may be: all possibilities.

    It may have 1 in place of some (`keepdims`), one less (a mean along it), or more in front (a history).
    """
    if len(shape) == len(whole) and all(size in (1, its) for size, its in zip(shape, whole)):
        yield tuple(at if size == its else None for at, (size, its) in enumerate(zip(shape, whole)))
    if len(shape) > len(whole) and shape[len(shape) - len(whole) :] == whole:
        yield (*(None,) * (len(shape) - len(whole)), *range(len(whole)))
    if len(shape) == len(whole) - 1:
        for lacking in range(len(whole)):
            rest = tuple(at for at in range(len(whole)) if at != lacking)
            if shape == tuple(whole[at] for at in rest):
                yield rest


def _is_piece(array: StateArray) -> bool:
    """Whether it is a part of a vector of all parameters."""
    return array.site.is_flat and array.param is not None
