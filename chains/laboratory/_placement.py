"""Where the points of a sweep run: the devices of this host, in groups, and the data that lie on each of them."""

import contextlib
import hashlib
import math
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

LANES = "sweep_lanes"  # a mesh axis that no user's is called
_SLAB = 2**26  # bytes of data that are copied at once to hash them
_NO_MESH = Mesh(np.empty((), dtype=object), ())

MeshPerPoint = Mapping[str, int] | AbstractMesh | None


@contextlib.contextmanager
def outside_meshes() -> Iterator[None]:
    """Points run on the devices of their own group, whatever mesh the caller has set."""
    with jax.set_mesh(_NO_MESH):
        yield


class Placement:
    """The devices that share the points, and the data that every point may read.

    Attributes:
        devices: The devices of this host.
        mesh: The mesh of one point, without devices; None where a point runs on one device.
        groups: Meshes of this host's devices: one mesh of all of them, whose devices run points of their own, or as
            many as there is room for of those that a point spans.
        width: How many points the devices of a group run at the same time.
        fingerprint: A string that changes when the data do.
    """

    @outside_meshes()
    def __init__(self, data: Any = None, mesh_per_point: MeshPerPoint = None, devices: Sequence[Any] | None = None):
        self.devices = list(jax.local_devices() if devices is None else devices)
        self.mesh = None if mesh_per_point is None else _abstract(mesh_per_point)
        if self.mesh is None:
            self.width = len(self.devices)
            self.groups = [Mesh(np.array(self.devices), (LANES,), axis_types=(AxisType.Auto,))]
        else:
            self.width = 1
            self.groups = _groups(self.mesh, self.devices)
        self._data = jax.tree.map_with_path(_array, data)
        self._specs = jax.tree.map_with_path(self._spec, self._data)
        self.fingerprint = _hash_of(self._data)
        _refuse_different(self.fingerprint)
        self._placed: list[Any] | None = None

    def __reduce__(self) -> Any:  # for executors: it is laid out again, on the devices of the worker
        return _laid_out_again, (jax.tree.map(_portable, self._data), self._specs, self.mesh)

    @property
    def shapes(self) -> Any:
        """The shapes of the data, with their shardings on a point's mesh."""
        return jax.tree.map(
            lambda leaf, spec: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=None if self.mesh is None else NamedSharding(self.mesh, spec)
            ),
            self._data,
            self._specs,
        )

    @property
    def lanes(self) -> int:
        """How many points the devices of this host run at the same time."""
        return len(self.groups) * self.width

    @property
    def bytes_of_data(self) -> int:
        """How many bytes of a device's memory the data take."""
        return sum(
            math.prod(NamedSharding(self.groups[0], spec).shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf, spec in zip(jax.tree.leaves(self._data), jax.tree.leaves(self._specs))
        )

    def shardings(self, group: Mesh) -> Any:
        """How the data are divided among the devices of a group."""
        return jax.tree.map(lambda spec: NamedSharding(group, spec), self._specs)

    def of_lanes(self, group: Mesh) -> NamedSharding:
        """How what belongs to lanes is divided among the devices of a group: a lane each, or the same one for all."""
        return NamedSharding(group, PartitionSpec(LANES) if self.mesh is None else PartitionSpec())

    def traced(self) -> Any:
        """The context in which a function of a point is looked at."""
        return contextlib.nullcontext() if self.mesh is None else jax.sharding.use_abstract_mesh(self.mesh)

    def running(self, group: Mesh) -> Any:
        """The context in which a function of a point is compiled."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(group)

    def data(self) -> list[Any]:
        """The data on the devices of each group; they are placed there the first time, and stay."""
        if self._placed is None:
            self._placed = [jax.device_put(self._data, self.shardings(group)) for group in self.groups]
        return self._placed

    def _spec(self, path: Any, leaf: Any) -> PartitionSpec:
        """A leaf's own partition, where its axes are those of a point's mesh; else none: every device has all of it."""
        sharding = getattr(leaf, "sharding", None)
        if self.mesh is None or not isinstance(sharding, NamedSharding):
            return PartitionSpec()
        names = set(jax.tree.leaves(tuple(sharding.spec)))
        if unknown := names - set(self.mesh.axis_names):
            raise ValueError(
                f"sweep: data{jax.tree_util.keystr(path)} must be sharded over axes of mesh_per_point, which are "
                f"{', '.join(self.mesh.axis_names)}, got {', '.join(sorted(unknown))}"
            )
        try:
            NamedSharding(self.mesh, sharding.spec).shard_shape(leaf.shape)
        except ValueError:
            raise ValueError(
                f"sweep: data{jax.tree_util.keystr(path)} must be divisible among the devices of mesh_per_point, which "
                f"is {dict(self.mesh.shape)}, got the shape {leaf.shape} with {sharding.spec}"
            ) from None
        return sharding.spec


def hash_arrays(arrays: Iterable[Any]) -> str:
    """A hash of the arrays' shapes, dtypes and elements."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype};".encode())
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        for slab in _slabs(array):
            found.update(np.ascontiguousarray(slab).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _slabs(array: Any) -> Iterator[np.ndarray]:
    """The array in parts, so that only one of them is copied at a time; whole, if it lies on several devices."""
    if array.nbytes <= _SLAB or (isinstance(array, jax.Array) and len(array.sharding.device_set) > 1):
        yield np.asarray(array)
        return
    rows = max(1, _SLAB * len(array) // array.nbytes)
    for at in range(0, len(array), rows):
        yield np.asarray(array[at : at + rows])


def _hash_of(data: Any) -> str:
    leaves, structure = jax.tree.flatten(data)
    structure = re.sub(r"0x[0-9a-f]+", "", str(structure))
    return hashlib.sha256(f"{structure} {hash_arrays(leaves)}".encode()).hexdigest()


def _refuse_different(fingerprint: str) -> None:
    """Raises on all hosts if they have different data."""
    hashes = multihost_utils.process_allgather(np.frombuffer(bytes.fromhex(fingerprint), np.uint8))
    if (hashes.reshape(-1, 32) != hashes.reshape(-1, 32)[0]).any():
        raise ValueError("sweep: data must be the same on all hosts, got others")


class _Key(NamedTuple):
    """Random keys as an array that can be pickled."""

    data: np.ndarray
    impl: str


def _portable(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return _Key(np.asarray(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf)))
    return np.asarray(leaf)


def _laid_out_again(data: Any, specs: Any, mesh: AbstractMesh | None) -> Placement:
    is_key = lambda leaf: isinstance(leaf, _Key)  # noqa: E731
    unpacked = jax.tree.map(
        lambda leaf: jax.random.wrap_key_data(leaf.data, impl=leaf.impl) if is_key(leaf) else leaf, data, is_leaf=is_key
    )
    placement = Placement(unpacked, mesh)
    placement._specs = specs
    return placement


def _array(path: Any, leaf: Any) -> Any:
    """A leaf as an array, in a dtype that JAX has."""
    name = f"data{jax.tree_util.keystr(path)}"
    if isinstance(leaf, Tracer):
        raise TypeError(f"sweep: {name} must be an array, got {leaf!r}; call sweep outside of transformed functions")
    if isinstance(leaf, jax.Array):
        if not leaf.is_fully_addressable:
            raise ValueError(f"sweep: {name} must lie on devices of this host, got {leaf.sharding}")
        return leaf
    array = np.asarray(leaf)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise TypeError(f"sweep: {name} must be an array of numbers, got {leaf!r}")
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    with np.errstate(over="ignore"):
        stored = array.astype(dtype, copy=False)
    is_same = np.array_equal if array.dtype.kind in "iu" else lambda a, b: np.array_equal(np.isinf(a), np.isinf(b))
    if stored is not array and not is_same(stored, array):
        raise ValueError(f"sweep: {name} must fit into {dtype}, got {leaf!r}; or enable jax_enable_x64")
    return stored


def _abstract(mesh: Any) -> AbstractMesh:
    if isinstance(mesh, AbstractMesh) and mesh.axis_names:
        if AxisType.Manual in mesh.axis_types:
            raise ValueError(f"sweep: mesh_per_point must have automatic or explicit axes, got {mesh}")
        return AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=mesh.axis_types)  # of any kind of device
    if not isinstance(mesh, Mapping) or not mesh or not all(isinstance(name, str) for name in mesh):
        raise TypeError(
            "sweep: mesh_per_point must be a dictionary from the names of axes to their sizes, or a "
            f"jax.sharding.AbstractMesh, got {mesh!r}"
        )
    for name, size in mesh.items():
        if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1:
            raise ValueError(f"sweep: mesh_per_point[{name!r}] must be an integer of at least 1, got {size!r}")
    return AbstractMesh(tuple(map(int, mesh.values())), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))


def _groups(mesh: AbstractMesh, devices: list[Any]) -> list[Mesh]:
    """The devices of this host, in meshes of one point."""
    if mesh.size > len(devices) or len(devices) % mesh.size:
        raise ValueError(
            "sweep: mesh_per_point must have a number of devices that divides those of a host, got "
            f"{dict(mesh.shape)}, which has {mesh.size}; this host has {len(devices)}"
        )
    first = jax.make_mesh(mesh.axis_sizes, mesh.axis_names, axis_types=mesh.axis_types, devices=devices[: mesh.size])
    order = [devices.index(device) for device in first.devices.flat]
    return [  # all in the order of the first: another one would round other sums
        Mesh(np.array([devices[start + at] for at in order]).reshape(mesh.axis_sizes), mesh.axis_names, mesh.axis_types)
        for start in range(0, len(devices), mesh.size)
    ]
