"""Running one function at many points: traced once, compiled once, shared by hosts, devices and cores."""

import collections
import hashlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import AxisType, PartitionSpec

from ._design import Design
from ._failures import is_for_memory, raise_together
from ._placement import Placement, hash_arrays, outside_meshes

Function = Callable[[dict[str, jax.Array], Any], Mapping[str, Any]]

# An accelerator whose points side by side keep this many bytes alive gains nothing from more of them: each operation
# then moves enough to take longer than it takes to start.
_BUSY = 2**28


class _Sizes(NamedTuple):
    """How points are divided among the lanes of all hosts."""

    each: int  # points of a lane in one call: whole batches
    batch: int  # points side by side
    lanes: int

    @property
    def call(self) -> int:
        """The points in one call of all lanes."""
        return self.each * self.lanes

    @property
    def room(self) -> int:
        """The points that a lane's program has room for."""
        return max(self.each, 2 * self.batch)


class Points:
    """A function from hyperparameters and data to metrics, and the points of a design to run it at.

    Attributes:
        metrics: Shape and dtype of each metric at one point.
        fingerprint: A string that changes when the function's computation changes, or the data do.
    """

    @outside_meshes()
    def __init__(self, function: Function, design: Design, placement: Placement | None = None):
        self._design = design
        self._placement = placement or Placement()
        self._function = lambda point, data: _numeric(function(point, data), self._placement.mesh)
        example = {name: jnp.asarray(values[0]) for name, values in design.axes.items()}
        with self._placement.traced():
            traced = jax.make_jaxpr(self._function, return_shape=True)
            jaxpr, metrics = traced(example, self._placement.shapes)
        self.metrics = {name: jax.ShapeDtypeStruct(like.shape, like.dtype) for name, like in metrics.items()}
        text = re.sub(r"0x[0-9a-f]+", "", str(jaxpr))  # addresses of functions differ from run to run
        _refuse_divided(_constants(jaxpr))
        # The one setting that changes results and does not show in what is traced: how random numbers are drawn.
        setting = "jax_threefry_partitionable"
        drawn = f"{setting}={getattr(jax.config, setting)}"
        content = f"{text} {hash_arrays(_constants(jaxpr))} {self._placement.fingerprint} {drawn}"
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
        self._bytes = _live_bytes(jaxpr.jaxpr)
        self._fixed_batch = False
        self._sizes: _Sizes | None = None
        self._programs: list[Any] = []

    @outside_meshes()
    def chunks(self, indices: np.ndarray, chunk_size: int | None, batch_size: int | None) -> list[np.ndarray]:
        """Compiles, and divides the points at flat `indices` into chunks for `compute`; does nothing without points.

        The sizes follow from the whole design, not only from the points left: a resumed sweep must compute as it
        would have.
        """
        if len(indices) == 0:
            return []
        self._placement.data()  # before the free memory is measured
        chunk = self.prepare(chunk_size, batch_size)
        return [indices[at : at + chunk] for at in range(0, len(indices), chunk)]

    @outside_meshes()
    def prepare(self, chunk_size: int | None, batch_size: int | None) -> int:
        """Compiles; returns how many points are a chunk."""
        self._fixed_batch = batch_size is not None
        chunk = min(self._design.size, chunk_size or -(-self._design.size // 16))
        self._sizes, self._programs = self._fitted(self._wanted(chunk, batch_size))
        whole = self._sizes.lanes * self._sizes.batch
        return -(-chunk // whole) * whole

    def _wanted(self, chunk: int, batch_size: int | None) -> _Sizes:
        """The sizes that keep the devices busy.

        A lane is a device, or the devices that a point spans, or on CPUs a core: a CPU device is all cores of its
        host, but a small network keeps only one of them busy. A CPU core runs points just as fast one after the other.
        An accelerator needs points side by side to be busy: as many as keep `_BUSY` bytes alive, and more only if a
        sixteenth of the points is more, but never more than fit into half of the free memory, as far as the shapes
        tell.
        """
        on_cpu = jax.default_backend() == "cpu"
        lanes = self._placement.lanes * jax.process_count()
        if batch_size is not None:
            batch = min(batch_size, self._design.size)
        elif on_cpu or self._placement.mesh is not None:
            batch = 1
        else:
            share = -(-self._design.size // lanes)
            batch = max(-(-share // 16), min(share, _BUSY // self._bytes))
            if (fitting := int(_least(_usable_memory()) // self._bytes)) < batch:
                batch = _power_of_two(fitting)
        if on_cpu and self._placement.mesh is None:
            cores = int(_least(_cores()))  # the same lanes on all hosts
            lanes *= max(1, cores // self._placement.lanes)
            lanes = min(lanes, self._whole_devices(-(-chunk // batch)))
        return _Sizes(-(-chunk // (lanes * batch)) * batch, batch, lanes)

    def _fitted(self, sizes: _Sizes) -> tuple[_Sizes, list[Any]]:
        """Compiles for these sizes, or for smaller ones if half of the free memory, or the compiler's, is too small."""
        while True:
            programs, failure = [], None
            try:
                programs = self._compile(sizes.room, sizes.batch)
            except jax.errors.JaxRuntimeError as error:
                if not is_for_memory(error):
                    raise
                failure = error
            fails = _least(failure is None) == 0  # on any host
            smaller = self._halved(sizes) if fails else self._fitting(programs[0], sizes)
            if smaller == sizes:
                if fails:
                    raise self._too_large(sizes, failure) from failure
                return sizes, programs
            sizes = smaller

    def _compile(self, size: int, batch: int) -> list[Any]:
        """A program for up to `size` points a lane, for each group of this host's devices.

        Devices that run points of their own have one program together: compiling it for each of them would take as
        many times as long. It is that of a single device, `jax.shard_map`ped, and gives the same bits. The number of
        batches is an argument, and there is room for at least two: if the compiler knew that there is only one, it
        would compile another program, which rounds differently.
        """

        def lane(values, batches, data):  # batches one after the other, the points of a batch together
            def step(at, metrics):
                points = {
                    name: jax.lax.dynamic_slice_in_dim(column, at * batch, batch) for name, column in values.items()
                }
                found = (
                    jax.vmap(self._function, in_axes=(0, None))(points, data) if batch > 1 else self._one(points, data)
                )
                return jax.tree.map(
                    lambda every, its: jax.lax.dynamic_update_slice_in_dim(every, its, at * batch, axis=0),
                    metrics,
                    found,
                )

            start = {name: jnp.zeros((size, *like.shape), like.dtype) for name, like in self.metrics.items()}
            return jax.lax.fori_loop(0, batches[0], step, start)

        place = self._placement
        lowered = []
        for group in place.groups:
            own, shared = place.of_lanes(group), PartitionSpec()
            call = lane
            if place.width > 1:
                call = jax.shard_map(
                    lane, mesh=group, in_specs=(own.spec, own.spec, shared), out_specs=own.spec, check_vma=False
                )
            values = {
                name: jax.ShapeDtypeStruct((place.width * size,), values.dtype, sharding=own)
                for name, values in self._design.axes.items()
            }
            batches = jax.ShapeDtypeStruct((place.width,), np.int32, sharding=own)
            data = jax.tree.map(
                lambda like, sharding: jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding),
                place.shapes,
                place.shardings(group),
            )
            with place.running(group):
                lowered.append(jax.jit(call, out_shardings=own).lower(values, batches, data))
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda program: program.compile(), lowered))

    def _fitting(self, compiled: Any, sizes: _Sizes) -> _Sizes:
        """The sizes, or smaller ones that fit into half of the free memory, by the compiler's estimate."""
        needs = compiled.memory_analysis()
        usable = _least(_usable_memory())
        if needs is None:
            return sizes
        devices = self._placement.lanes * jax.process_count()
        working = needs.temp_size_in_bytes
        stored = needs.output_size_in_bytes + needs.argument_size_in_bytes - self._placement.bytes_of_data
        stored = max(1.0, stored / sizes.room)  # for each point
        if sizes.lanes // devices * (working + stored * sizes.room) <= usable:
            return sizes
        least = working + stored * 2 * sizes.batch
        lanes = min(sizes.lanes, self._whole_devices(int(usable // least) * devices))
        batch = sizes.batch
        if least > usable and not self._fixed_batch:
            batch = min(batch, _power_of_two(int(batch * usable / least)))
        room = int((usable * devices / lanes - working * batch / sizes.batch) / stored)
        return _Sizes(max(1, min(sizes.call // lanes, room) // batch) * batch, batch, lanes)

    def _halved(self, sizes: _Sizes) -> _Sizes:
        """Half as many points side by side: batches, after the lanes of a device."""
        devices = self._placement.lanes * jax.process_count()
        if sizes.lanes > devices:
            lanes = self._whole_devices(sizes.lanes // 2)
            return _Sizes(sizes.batch, sizes.batch, lanes)
        batch = sizes.batch if self._fixed_batch else _power_of_two(sizes.batch // 2)
        return _Sizes(batch, batch, devices)

    @outside_meshes()
    def compute(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics at the flat indices of a chunk, in as many calls as the memory needs."""
        parts = []
        while len(indices):
            sizes = self._sizes
            assert sizes is not None, "chunks comes first"
            part, failure = self._call(indices[: sizes.call])
            if part is not None:
                parts.append(part)
                indices = indices[sizes.call :]
                continue
            smaller = self._halved(sizes)
            if smaller == sizes:
                raise self._too_large(sizes, failure) from failure
            if smaller.batch < sizes.batch:
                warnings.warn(
                    f"sweep: {sizes.batch} points side by side were too many for the memory; goes on with "
                    f"{smaller.batch}, which round differently. batch_size={smaller.batch} gives all points the same",
                    RuntimeWarning,
                    stacklevel=3,
                )
            self._sizes, self._programs = self._fitted(smaller)
        return jax.tree.map(lambda *metric: np.concatenate(metric), *parts)

    def _call(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray] | None, Exception | None]:
        """The metrics of points that are shared evenly among the lanes of all hosts; None if memory runs out on any."""
        assert self._sizes is not None
        place, lanes, room = self._placement, self._sizes.lanes, self._sizes.room
        columns = self._design.columns(indices)
        shares = np.array_split(np.arange(len(indices)), lanes)
        own = lanes // jax.process_count()
        padded = np.zeros((own, room), int)
        batches = np.zeros(own, np.int32)
        for lane, share in enumerate(shares[jax.process_index() * own :][:own]):
            padded[lane, : len(share)] = share
            padded[lane, len(share) :] = share[-1] if len(share) else 0  # fills up the last batch
            batches[lane] = -(-len(share) // self._sizes.batch)
        calls = []
        for at in range(0, own, place.width):
            group = at // place.width % len(place.groups)
            values = {name: column[padded[at : at + place.width].ravel()] for name, column in columns.items()}
            arguments = jax.device_put((values, batches[at : at + place.width]), place.of_lanes(place.groups[group]))
            calls.append((self._programs[group], *arguments, place.data()[group]))
        results, failure = [], None
        # Threads see JAX's global settings, not those of a `with` around the sweep, so they only execute.
        pool = ThreadPoolExecutor(len(calls))
        try:
            results = list(pool.map(lambda call: jax.block_until_ready(call[0](*call[1:])), calls))
            results = jax.device_get(results)
        except Exception as error:
            failure = error
        except BaseException:  # Ctrl-C, which does not wait for what is running
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        fits = failure is None or not is_for_memory(failure)
        raise_together(failure if fits else None)
        if _least(fits) == 0:
            return None, failure
        stacked = jax.tree.map(lambda *parts: np.stack(parts).reshape(own, room, *parts[0].shape[1:]), *results)
        every = multihost_utils.process_allgather(stacked, tiled=True)
        return jax.tree.map(
            lambda metric: np.concatenate([lane[: len(share)] for lane, share in zip(metric, shares)]), every
        ), None

    def _one(self, values: dict[str, jax.Array], data: Any) -> dict[str, jax.Array]:
        """A batch of one point, without the batch dimension that `vmap` would carry through all matrix products."""
        metrics = self._function({name: column[0] for name, column in values.items()}, data)
        return jax.tree.map(lambda metric: metric[None], metrics)

    def _whole_devices(self, lanes: int) -> int:
        """At most this many lanes, but the same number for every device, and at least one."""
        devices = self._placement.lanes * jax.process_count()
        return max(1, lanes // devices) * devices

    def _too_large(self, sizes: _Sizes, failure: Exception | None) -> MemoryError:
        reason = "another host ran out of memory" if failure is None else str(failure).splitlines()[0]
        if self._fixed_batch and sizes.batch > 1:
            return MemoryError(
                f"sweep: batch_size must be small enough for the memory of a device, got {sizes.batch}: {reason}"
            )
        return MemoryError(f"sweep: a point must fit into the memory of a device, got one that does not: {reason}")


def _least(value: float) -> float:
    """The least of all hosts' values: they must divide the points in the same way."""
    return float(multihost_utils.process_allgather(np.asarray(value, np.float32)).min())


def _power_of_two(count: int) -> int:
    """The largest power of two that is not above the count, and at least 1."""
    return 1 << max(0, count.bit_length() - 1)


def _cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _usable_memory() -> float:
    """The bytes of a device that a sweep may take: half of those that are free."""
    return 0.5 * _free_memory()


def _numeric(metrics: Any, mesh: Any) -> dict[str, jax.Array]:
    if not isinstance(metrics, Mapping) or not metrics or not all(isinstance(name, str) for name in metrics):
        raise TypeError(f"sweep: run must return a dictionary of metrics by name, got {metrics!r}")
    for name, value in metrics.items():
        if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float):
            raise TypeError(f"sweep: metric {name!r} must be a number or an array of numbers, got {value!r}")
    stored = {name: _storable(name, jnp.asarray(value)) for name, value in metrics.items()}
    if mesh is not None and AxisType.Explicit in mesh.axis_types:
        return jax.tree.map(lambda value: jax.sharding.reshard(value, PartitionSpec()), stored)
    return stored


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
        yield from (const if isinstance(const, jax.Array) else np.asarray(const) for const in jaxpr.consts)
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        for inner in _inner(equation):
            yield from _constants(inner)


def _refuse_divided(constants: Iterator[Any]) -> None:
    """Raises if an array that a run closes over has a part of a user's mesh in its type."""
    for constant in constants:
        mesh = getattr(getattr(constant, "sharding", None), "mesh", None)
        if mesh is not None and mesh.size > 1 and AxisType.Explicit in mesh.axis_types:
            raise ValueError(
                "sweep: run must not close over arrays with explicit axes, got "
                f"{jax.typeof(constant)}; give them as data"
            )


def _live_bytes(jaxpr: Jaxpr) -> int:
    """The most bytes that a computation keeps alive at once, in addition to its arguments, if it fuses nothing."""
    last = {var: at for at, equation in enumerate(jaxpr.eqns) for var in equation.invars if not _is_literal(var)}
    last |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if not _is_literal(var)}
    ends: dict[int, int] = collections.defaultdict(int)
    alive, most = 0, 1
    for at, equation in enumerate(jaxpr.eqns):
        inside = max((_live_bytes(getattr(inner, "jaxpr", inner)) for inner in _inner(equation)), default=0)
        for var in equation.outvars:
            ends[last.get(var, at)] += _bytes_of(var.aval)
        new = sum(_bytes_of(var.aval) for var in equation.outvars)
        most = max(most, alive + max(new, inside))
        alive += new - ends[at]
    return most


def _bytes_of(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "shape") and hasattr(aval, "dtype") else 0


def _is_literal(var: Any) -> bool:
    return isinstance(var, Literal)


def _inner(equation: Any) -> Iterator[Any]:
    """The computations inside an equation, such as the body of a loop."""
    return filter(_is_jaxpr, jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr))


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _free_memory() -> float:
    """Free bytes on a device: the allocator's own count on accelerators, shared by all devices on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    import psutil

    return psutil.virtual_memory().available / jax.local_device_count()
