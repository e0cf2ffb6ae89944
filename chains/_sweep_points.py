"""Running one function at many points: traced once, compiled once, and shared out over devices and hosts."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

Axes = Mapping[str, np.ndarray]
Function = Callable[[dict[str, jax.Array]], Mapping[str, Any]]


class Points:
    """A function from hyperparameters to metrics, and the points of a grid to run it at.

    Attributes:
        metrics: Shape and dtype of each metric at one point.
        fingerprint: A text that changes when the function's computation or the grid does.
    """

    def __init__(self, function: Function, axes: Axes):
        self._axes = axes
        self._function = function
        example = {name: jnp.asarray(values[0]) for name, values in axes.items()}
        jaxpr, self.metrics = jax.make_jaxpr(lambda point: _numeric(function(point)), return_shape=True)(example)
        text = re.sub(r"0x[0-9a-f]+", "", str(jaxpr.jaxpr))  # addresses of functions differ from run to run
        constants = b"".join(np.asarray(_data(constant)).tobytes() for constant in jaxpr.consts)
        self.fingerprint = hashlib.sha256(text.encode() + constants).hexdigest()

    def run(
        self, indices: np.ndarray, chunk_size: int | None, batch_size: int | None
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields the metrics of the points at flat `indices`, a chunk at a time: which indices, and their metrics."""
        if len(indices) == 0:
            return
        size, batch = _defaults(len(indices), chunk_size, batch_size)
        size = self._rounded(size, batch)
        compiled = self._compile(size, batch)
        if chunk_size is None and (fitting := self._rounded(_fitting(compiled, size), batch)) < size:
            size = fitting
            compiled = self._compile(size, batch)
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            # The last chunk is filled up with its own last point: another length would mean another compilation.
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk))])
            metrics = multihost_utils.process_allgather(compiled(self._values(padded)), tiled=True)
            yield chunk, {name: np.asarray(values)[: len(chunk)] for name, values in metrics.items()}

    def _rounded(self, size: int, batch: int) -> int:
        """The next size that all devices can share in whole batches."""
        share = jax.device_count() * batch
        return max(1, -(-size // share)) * share

    def _compile(self, size: int, batch: int) -> Any:
        def block(values):  # what one device does: batches one after the other, the points of a batch side by side
            batches = jax.tree.map(lambda column: column.reshape(-1, batch), values)
            metrics = jax.lax.map(jax.vmap(self._function) if batch > 1 else self._one, batches)
            return jax.tree.map(lambda metric: metric.reshape(-1, *metric.shape[2:]), metrics)

        mesh, spec = Mesh(jax.devices(), ("points",)), PartitionSpec("points")
        shared = jax.shard_map(block, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.jit(shared).lower(self._values(np.zeros(size, int))).compile()

    def _one(self, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """A batch of one point, without the batch dimension that `vmap` would carry through all matrix products."""
        metrics = self._function({name: column[0] for name, column in values.items()})
        return jax.tree.map(lambda metric: jnp.asarray(metric)[None], dict(metrics))

    def _values(self, indices: np.ndarray) -> dict[str, jax.Array]:
        """The hyperparameters at flat indices, spread over all devices of all hosts."""
        sharding = jax.sharding.NamedSharding(Mesh(jax.devices(), ("points",)), PartitionSpec("points"))
        unraveled = np.unravel_index(indices, [len(values) for values in self._axes.values()])
        columns = {name: values[at] for at, (name, values) in zip(unraveled, self._axes.items())}
        return {
            name: jax.make_array_from_callback(column.shape, sharding, column.__getitem__)
            for name, column in columns.items()
        }


def _defaults(points: int, chunk_size: int | None, batch_size: int | None) -> tuple[int, int]:
    """How many points to run in one call, and how many of them side by side.

    A CPU runs points as fast one after the other, and then sixteen chunks keep the progress bar moving at no cost; an
    accelerator is only busy with many side by side.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = min(points, chunk_size or (-(-points // 16) if on_cpu else points))
    return size, min(size, batch_size or (1 if on_cpu else size))


def _fitting(compiled: Any, size: int) -> int:
    """How many of `size` points fit into half of the free memory, from what the compiler says they need."""
    needs = compiled.memory_analysis()
    if needs is None:
        return size
    needed = needs.temp_size_in_bytes + needs.output_size_in_bytes + needs.argument_size_in_bytes
    return int(size * min(1.0, 0.5 * _free_memory() / max(needed, 1)))


def _numeric(metrics: Any) -> dict[str, jax.Array]:
    if not isinstance(metrics, Mapping) or not metrics or not all(isinstance(name, str) for name in metrics):
        raise TypeError(f"sweep: run must return a dictionary of metrics by name, got {metrics!r}")
    for name, value in metrics.items():
        if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float):
            raise TypeError(f"sweep: metric {name!r} must be a number or an array of numbers, got {value!r}")
    return {name: jnp.asarray(value) for name, value in metrics.items()}


def _data(constant: Any) -> Any:
    is_key = isinstance(constant, jax.Array) and jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(constant) if is_key else constant


def _free_memory() -> float:
    """Free bytes on a device: the allocator's own count on accelerators, shared by all devices on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    import psutil

    return psutil.virtual_memory().available / jax.local_device_count()
