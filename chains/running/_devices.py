"""Arrays on the devices of others: put there shard by shard, and read from there."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, Sharding

from linkax.transforms._check import is_traced
from linkax.transforms._leaves import dtype_of

Index = tuple[slice, ...]
"""Which part of an array a shard is."""


def sharding_of(like: Any) -> Sharding | None:
    """Where an array has been put, or a shape says that one belongs; `None` where JAX is free to choose.

    Raises:
        ValueError: If a shape says only the mesh's axes and not its devices, outside of `jax.set_mesh`.
    """
    if isinstance(like, jax.Array):
        return like.sharding if not is_traced(like) and like.committed else None
    sharding = getattr(like, "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        # `jax.eval_shape` does not know the devices.
        mesh = jax.sharding.get_mesh()
        if mesh.empty or mesh.abstract_mesh.shape_tuple != sharding.mesh.shape_tuple:
            raise ValueError(
                "linkax: a shape's sharding must have a mesh of devices, as in jax.set_mesh(mesh), got one on the axes "
                f"{', '.join(sharding.mesh.axis_names)} alone"
            )
        return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    return sharding if isinstance(sharding, Sharding) else None


def filled(like: Any, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """A finished array like `like`, from the parts that `read` returns: one for each shard of this process.

    So no device and no process needs memory for the whole array. JAX may use the parts' memory as its own.
    """
    sharding = sharding_of(like)
    if sharding is None:
        everything = (slice(None),) * len(like.shape)
        return jnp.asarray(read(everything)).block_until_ready()

    @functools.cache  # devices that hold the same part share the memory that it is copied from
    def part(*bounds: tuple[int | None, int | None]) -> np.ndarray:
        return read(tuple(slice(*ends) for ends in bounds))

    def shard(index: Any) -> np.ndarray:
        return part(*((one.start, one.stop) for one in index))

    return jax.make_array_from_callback(tuple(like.shape), sharding, shard, dtype_of(like)).block_until_ready()


def put_like(value: Any, like: Any) -> jax.Array:
    """A number, or an array of `like`'s shape, in the dtype of `like` and where that has been put."""
    sharding = sharding_of(like)
    if sharding is None or is_traced(value) or np.shape(value) != tuple(like.shape):
        return jnp.asarray(value, like.dtype)
    if isinstance(value, jax.Array) and (sharding.is_fully_addressable or not value.is_fully_addressable):
        value = jnp.asarray(value, like.dtype)
        is_there = value.committed and value.sharding.is_equivalent_to(sharding, value.ndim)
        return value if is_there else jax.device_put(value, sharding)
    # `jax.device_put` would have the processes compare what each of them has.
    own = np.asarray(value, like.dtype)
    return filled(like, lambda index: np.array(own[index]))


def put_beside(params: Any, tree: Any) -> Any:
    """The tree with what has been put nowhere yet, such as new counts, replicated on the devices of the parameters.

    A compiled step then gets its state where it leaves it, and is not compiled a second time.
    """
    found = (sharding_of(leaf) for leaf in jax.tree.leaves(params))
    meshes = [one.mesh for one in found if isinstance(one, NamedSharding) and one.mesh.size > 1]
    if not meshes:
        return tree
    everywhere = NamedSharding(meshes[0], PartitionSpec())

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or is_traced(leaf) or leaf.committed:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # the keys of random numbers
            return jax.device_put(leaf, everywhere)
        return put_like(leaf, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere))

    return jax.tree.map(put, tree)


def whole(array: Any) -> np.ndarray:
    """All of an array on the host, in every process; if it spans several of them, all must call this together."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
