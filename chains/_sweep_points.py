"""Running one function at many points: traced once, compiled once a device, and shared out over devices and hosts."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import SingleDeviceSharding

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
        self._function = lambda point: _numeric(function(point))
        example = {name: jnp.asarray(values[0]) for name, values in axes.items()}
        jaxpr, metrics = jax.make_jaxpr(self._function, return_shape=True)(example)
        self.metrics = {name: jax.ShapeDtypeStruct(like.shape, like.dtype) for name, like in metrics.items()}
        text = re.sub(r"0x[0-9a-f]+", "", str(jaxpr))  # addresses of functions differ from run to run
        constants = b"".join(np.asarray(_data(constant)).tobytes() for constant in _constants(jaxpr))
        self.fingerprint = hashlib.sha256(text.encode() + constants).hexdigest()

    def run(
        self, indices: np.ndarray, chunk_size: int | None, batch_size: int | None
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields the metrics of the points at flat `indices`, a chunk at a time: which indices, and their metrics."""
        if len(indices) == 0:
            return
        # Of the whole grid, not of what is left of it: a sweep that goes on must compute as it would have.
        points = math.prod(len(values) for values in self._axes.values())
        size, batch = _defaults(points, chunk_size, batch_size)
        size = -(-min(size, len(indices)) // _share(batch)) * _share(batch)
        compiled = self._compile(size, batch)
        if chunk_size is None and (fitting := _fitting(compiled[0], size)) < size:
            batch = batch if batch_size else max(1, min(batch, fitting // _share(1)))
            size = max(1, fitting // _share(batch)) * _share(batch)
            compiled = self._compile(size, batch)
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            # The last chunk is filled up with its own last point: another length would mean another compilation.
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk))])
            yield chunk, {name: values[: len(chunk)] for name, values in self._call(compiled, padded).items()}

    def _compile(self, size: int, batch: int) -> list[Any]:
        """The same program for every device of this host: one for all would round differently for their number."""

        def block(values):  # what one device does: batches one after the other, the points of a batch side by side
            batches = jax.tree.map(lambda column: column.reshape(-1, batch), values)
            metrics = jax.lax.map(jax.vmap(self._function) if batch > 1 else self._one, batches)
            return jax.tree.map(lambda metric: metric.reshape(len(metric) * batch, *metric.shape[2:]), metrics)

        share, jitted = (size // jax.device_count(),), jax.jit(block)
        lowered = [
            jitted.lower(
                {
                    name: jax.ShapeDtypeStruct(share, values.dtype, sharding=SingleDeviceSharding(device))
                    for name, values in self._axes.items()
                }
            )
            for device in jax.local_devices()
        ]
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda program: program.compile(), lowered))

    def _call(self, compiled: list[Any], indices: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics at flat indices, of which every device of every host does an equal share."""
        unraveled = np.unravel_index(indices, [len(values) for values in self._axes.values()])
        columns = {name: values[at] for at, (name, values) in zip(unraveled, self._axes.items())}
        shares = np.split(np.arange(len(indices)), jax.device_count())[jax.process_index() * len(compiled) :]
        found = [
            program(jax.device_put({name: column[share] for name, column in columns.items()}, device))
            for program, share, device in zip(compiled, shares, jax.local_devices())
        ]  # all devices are at work before the first one is waited for
        own = jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *found)
        return multihost_utils.process_allgather(own, tiled=True)

    def _one(self, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """A batch of one point, without the batch dimension that `vmap` would carry through all matrix products."""
        metrics = self._function({name: column[0] for name, column in values.items()})
        return jax.tree.map(lambda metric: metric[None], metrics)


def _defaults(points: int, chunk_size: int | None, batch_size: int | None) -> tuple[int, int]:
    """How many points to run in one call, and how many of them side by side.

    A CPU runs points as fast one after the other, and then sixteen chunks keep the progress bar moving at no cost; an
    accelerator is only busy with many side by side.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = min(points, chunk_size or (-(-points // 16) if on_cpu else points))
    return size, min(points, batch_size or (1 if on_cpu else -(-size // _share(1))))


def _share(batch: int) -> int:
    """The fewest points that all devices can share in whole batches."""
    return jax.device_count() * batch


def _fitting(compiled: Any, size: int) -> int:
    """How many of `size` points fit into half of the free memory, from what the compiler says they need."""
    needs = compiled.memory_analysis()
    if needs is None:
        return size
    needed = needs.temp_size_in_bytes + needs.output_size_in_bytes + needs.argument_size_in_bytes
    fitting = int(size * min(1.0, 0.5 * _free_memory() / max(needed, 1)))
    return int(multihost_utils.process_allgather(np.asarray(fitting)).min())  # hosts must cut the chunks alike


def _numeric(metrics: Any) -> dict[str, jax.Array]:
    if not isinstance(metrics, Mapping) or not metrics or not all(isinstance(name, str) for name in metrics):
        raise TypeError(f"sweep: run must return a dictionary of metrics by name, got {metrics!r}")
    for name, value in metrics.items():
        if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float):
            raise TypeError(f"sweep: metric {name!r} must be a number or an array of numbers, got {value!r}")
    return {name: _storable(name, jnp.asarray(value)) for name, value in metrics.items()}


def _storable(name: str, value: jax.Array) -> jax.Array:
    """The metric in a dtype that NumPy and NetCDF have too: float32 for anything shorter."""
    if not jnp.issubdtype(value.dtype, jnp.number) and value.dtype != bool:
        raise TypeError(f"sweep: metric {name!r} must be a number or an array of numbers, got {value!r}")
    is_short = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4
    return value.astype(jnp.float32) if is_short else value


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The arrays that a computation has closed over, also inside the jitted functions that it calls."""
    if isinstance(jaxpr, ClosedJaxpr):
        yield from jaxpr.consts
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _constants(inner)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


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
