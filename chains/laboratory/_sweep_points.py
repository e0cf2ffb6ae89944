"""Running one function at many points: traced once, compiled once per device, shared by hosts, devices and cores."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import SingleDeviceSharding

from ._design import Design
from ._failures import raise_together

Function = Callable[[dict[str, jax.Array]], Mapping[str, Any]]


class _Program(NamedTuple):
    """The compiled calls of this host's devices, and how a chunk is divided among them."""

    compiled: list[Any]
    size: int  # of a chunk
    batch: int
    lanes: int


class Points:
    """A function from hyperparameters to metrics, and the points of a design to run it at.

    Attributes:
        metrics: Shape and dtype of each metric at one point.
        fingerprint: A string that changes when the function's computation changes.
    """

    def __init__(self, function: Function, design: Design):
        self._design = design
        self._function = lambda point: _numeric(function(point))
        example = {name: jnp.asarray(values[0]) for name, values in design.axes.items()}
        jaxpr, metrics = jax.make_jaxpr(self._function, return_shape=True)(example)
        self.metrics = {name: jax.ShapeDtypeStruct(like.shape, like.dtype) for name, like in metrics.items()}
        text = re.sub(r"0x[0-9a-f]+", "", str(jaxpr))  # addresses of functions differ from run to run
        constants = b"".join(np.asarray(_data(constant)).tobytes() for constant in _constants(jaxpr))
        self.fingerprint = hashlib.sha256(text.encode() + constants).hexdigest()
        self._program: _Program | None = None

    def chunks(self, indices: np.ndarray, chunk_size: int | None, batch_size: int | None) -> list[np.ndarray]:
        """Compiles, and divides the points at flat `indices` into chunks for `compute`; does nothing without points.

        The sizes follow from the whole design, not only from the points left: a resumed sweep must compute as it
        would have.
        """
        if len(indices) == 0:
            return []
        self._program = self._prepare(chunk_size, batch_size)
        return [indices[at : at + self._program.size] for at in range(0, len(indices), self._program.size)]

    def _prepare(self, chunk_size: int | None, batch_size: int | None) -> "_Program":
        size, batch, lanes = _defaults(self._design.size, chunk_size, batch_size)
        compiled = self._compile(_room(size // lanes, batch), batch)
        if chunk_size is None and (fitting := _fitting(compiled[0], size, lanes)) < size:
            lanes = min(lanes, _whole_devices(fitting))
            batch = batch if batch_size else max(1, min(batch, fitting // lanes))
            size = max(1, fitting // (lanes * batch)) * lanes * batch
            compiled = self._compile(_room(size // lanes, batch), batch)
        return _Program(compiled, size, batch, lanes)

    def _compile(self, size: int, batch: int) -> list[Any]:
        """A program for up to `size` points, the same for every device of this host.

        One program for all devices would round differently for different numbers of devices. The number of batches is
        an argument, and there is room for at least two: if the compiler knew that there is only one, it would compile
        another program, which rounds differently.
        """

        def block(values, batches):  # one lane: batches one after the other, the points of a batch together
            def step(at, metrics):
                points = {
                    name: jax.lax.dynamic_slice_in_dim(column, at * batch, batch) for name, column in values.items()
                }
                found = jax.vmap(self._function)(points) if batch > 1 else self._one(points)
                return jax.tree.map(
                    lambda every, its: jax.lax.dynamic_update_slice_in_dim(every, its, at * batch, axis=0),
                    metrics,
                    found,
                )

            start = {name: jnp.zeros((size, *like.shape), like.dtype) for name, like in self.metrics.items()}
            return jax.lax.fori_loop(0, batches, step, start)

        jitted = jax.jit(block)
        lowered = [
            jitted.lower(
                {
                    name: jax.ShapeDtypeStruct((size,), values.dtype, sharding=SingleDeviceSharding(device))
                    for name, values in self._design.axes.items()
                },
                jax.ShapeDtypeStruct((), np.int32, sharding=SingleDeviceSharding(device)),
            )
            for device in jax.local_devices()
        ]
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda program: program.compile(), lowered))

    def compute(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics at the flat indices of a chunk, shared evenly among the lanes of all hosts."""
        assert self._program is not None, "chunks comes first"
        compiled, size, batch, lanes = self._program
        size = _room(size // lanes, batch)  # of one lane
        columns = self._design.columns(indices)
        shares = np.array_split(np.arange(len(indices)), lanes)
        own = lanes // jax.process_count()  # the lanes of a device are consecutive
        calls = []
        for lane, share in enumerate(shares[jax.process_index() * own :][:own]):
            at = lane * len(compiled) // own
            padded = np.zeros(size, int)
            padded[: len(share)] = share
            padded[len(share) :] = share[-1] if len(share) else 0  # fills up the last batch
            values = {name: column[padded] for name, column in columns.items()}
            arguments = values, np.int32(-(-len(share) // batch))
            calls.append((compiled[at], jax.device_put(arguments, jax.local_devices()[at])))
        results, failure = [], None
        # Threads see JAX's global settings, not those of a `with` around the sweep, so they only execute.
        with ThreadPoolExecutor(own) as pool:
            try:
                results = list(pool.map(lambda call: jax.block_until_ready(call[0](*call[1])), calls))
            except Exception as error:
                failure = error
        raise_together(failure)
        found = jax.device_get(results)
        every = multihost_utils.process_allgather(jax.tree.map(lambda *parts: np.stack(parts), *found), tiled=True)
        return jax.tree.map(
            lambda metric: np.concatenate([lane[: len(share)] for lane, share in zip(metric, shares)]), every
        )

    def _one(self, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """A batch of one point, without the batch dimension that `vmap` would carry through all matrix products."""
        metrics = self._function({name: column[0] for name, column in values.items()})
        return jax.tree.map(lambda metric: metric[None], metrics)


def _defaults(points: int, chunk_size: int | None, batch_size: int | None) -> tuple[int, int, int]:
    """How many points to run in one call, how many of them side by side, and in how many parallel lanes.

    A lane is a device, or on CPUs a core: a CPU device is all cores of its host, but a small network keeps only one of
    them busy. A CPU core runs points just as fast one after the other, so sixteen chunks keep the progress bar moving
    at no cost. An accelerator needs many points side by side to be busy.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = min(points, chunk_size or (-(-points // 16) if on_cpu else points))
    batch = min(points, batch_size or (1 if on_cpu else -(-size // jax.device_count())))
    lanes = jax.device_count()
    if on_cpu:
        cores = int(multihost_utils.process_allgather(np.asarray(_cores())).min())  # the same lanes on all hosts
        lanes *= max(1, cores // jax.local_device_count())
        lanes = min(lanes, _whole_devices(-(-size // batch)))
    return -(-size // (lanes * batch)) * lanes * batch, batch, lanes


def _room(size: int, batch: int) -> int:
    return max(size, 2 * batch)


def _whole_devices(lanes: int) -> int:
    """At most this many lanes, but the same number for every device, and at least one."""
    return max(1, lanes // jax.device_count()) * jax.device_count()


def _cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fitting(compiled: Any, size: int, lanes: int) -> int:
    """How many of `size` points fit into half of the free memory, by the compiler's estimate of a lane's share."""
    needs = compiled.memory_analysis()
    if needs is None:
        return size
    needed = needs.temp_size_in_bytes + needs.output_size_in_bytes + needs.argument_size_in_bytes
    needed *= lanes // jax.device_count()
    fitting = int(size * min(1.0, 0.5 * _free_memory() / max(needed, 1)))
    return int(multihost_utils.process_allgather(np.asarray(fitting)).min())  # the same chunks on all hosts


def _numeric(metrics: Any) -> dict[str, jax.Array]:
    if not isinstance(metrics, Mapping) or not metrics or not all(isinstance(name, str) for name in metrics):
        raise TypeError(f"sweep: run must return a dictionary of metrics by name, got {metrics!r}")
    for name, value in metrics.items():
        if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float):
            raise TypeError(f"sweep: metric {name!r} must be a number or an array of numbers, got {value!r}")
    return {name: _storable(name, jnp.asarray(value)) for name, value in metrics.items()}


def _storable(name: str, value: jax.Array) -> jax.Array:
    """The metric in a dtype that NumPy and NetCDF have too: float32 or int8 for anything narrower."""
    if not jnp.issubdtype(value.dtype, jnp.number) and value.dtype != bool:
        raise TypeError(f"sweep: metric {name!r} must be a number or an array of numbers, got {value!r}")
    if jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4:
        return value.astype(jnp.float32)
    if jnp.issubdtype(value.dtype, jnp.integer) and jnp.iinfo(value.dtype).bits < 8:
        return value.astype(jnp.int8)  # holds all of uint4
    return value


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The arrays that a computation closes over, also inside the jitted functions that it calls."""
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
