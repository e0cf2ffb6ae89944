"""A grid of training runs as one compiled call, and its results as a labelled table."""

import datetime
import hashlib
import importlib.metadata
import json
import numbers
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ._design import OWN_NAMES, Design, grid_design
from ._functions import Function, Metrics, Variant, functions_of
from ._placement import MeshPerPoint, Placement
from ._results import Layout, Results, finished
from ._sweep_points import Points

if TYPE_CHECKING:
    import xarray


def sweep(
    run: Callable[..., Metrics],
    grid: Mapping[str, Sequence[float] | np.ndarray | jax.Array],
    variants: Mapping[str, Variant] | None = None,
    *,
    data: Any = None,
    mesh_per_point: MeshPerPoint = None,
    metric_dims: Mapping[str, Sequence[str]] | None = None,
    chunk_size: int | None = None,
    batch_size: int | None = None,
    file: str | os.PathLike | None = None,
    progress: bool = True,
) -> "xarray.Dataset":
    """Trains at every point of a grid, all points in one compiled call, and labels the results.

    The result at (v, a, b, …) is that of `run` with the chain of variant v and the hyperparameters a, b, …. It is what
    a loop over all points would return, but compiled once for each variant, however many points and devices there are.
    Points are independent: one that diverges has NaN or infinity in its own place, and `True` in the variable
    `diverged`.

    Several devices share the points, and so do the cores of a CPU, and several hosts that have called
    `jax.distributed.initialize` (all of them must call `sweep` with the same arguments; all of them get the result).
    A mesh that `jax.set_mesh` has set around the sweep has no effect on it.

    Args:
        run: What to compute at a point: a function that JAX can trace, from hyperparameters by name to a dictionary of
            metrics, which are numbers, or arrays such as loss curves. With `variants`, its first argument is the chain.
        grid: The axes by name: at least one number each (integers for seeds), without duplicates.
        variants: Chains that differ in their links, by name: a chain, such as those of `ablations`, or a function from
            some of the axes to a chain, such as `lambda learning_rate: adam(learning_rate)`. Functions must all take
            the same axes. An axis may be an argument of the variants, of `run`, or of both.
        data: Arrays that every point reads, in a tree; `run` takes them as its argument `data`. They are placed on each
            device once. Arrays that `run` closes over instead are compiled into the program, which takes two or three
            copies of them, and a second for every 100 MB. Several hosts must give the same data.
        mesh_per_point: The mesh that each point runs on, where one device is too small or too slow: the sizes of its
            axes by name, such as `{"data": 2, "model": 2}`, or a `jax.sharding.AbstractMesh`, if its axes are to be
            explicit. `run` may then use `jax.shard_map`, `jax.lax.with_sharding_constraint` and `jax.sharding.reshard`
            with these axes, as under `jax.set_mesh`. Each host runs as many points at a time as it has such meshes, and
            compiles for each of them; the devices of a mesh must divide those of a host. Arrays of `data` that have a
            `jax.sharding.NamedSharding` are divided in the same way on the mesh of each point; others are replicated.
            The metrics are those of a single device up to rounding. If `None`, a point runs on one device.
        metric_dims: Names for the metrics' own dimensions, such as `{"loss": ["epoch"]}`; the default is `"loss_0"` and
            so on.
        chunk_size: How many points to run before their results are added and saved, at least 1, rounded up to whole
            batches on all devices (on CPUs: on all cores). The progress bar counts chunks, and an interruption loses at
            most one. If `None`, a sixteenth of the points. The results do not depend on it.
        batch_size: How many of them to run side by side on a device, under `jax.vmap`, at least 1. If `None`, one on a
            CPU, where running them one after the other is as fast, and one with `mesh_per_point`. On an accelerator, as
            many as keep 256 MiB alive, or a sixteenth of its points if that is more, but never more than fit into half
            of the free memory, nor than the compiler has room for. Compilers round differently for different batches,
            so results agree bit for bit only for the same batch size.
        file: Where to save the results, as NetCDF. An interrupted sweep that is called again with the same file resumes
            after the last finished chunk, and a finished one is read. Several hosts need a file that all of them see.
            Sweeps are identified by their computation; callbacks into Python (`jax.pure_callback`) count as the same
            whatever they do.
        progress: Whether to show a progress bar.

    Returns:
        An `xarray.Dataset` with the dimension `variant` (if there are variants) and those of the grid, a variable for
        each metric, and `diverged`; its attributes hold the printed chains, the versions and the date.

    Raises:
        ValueError: If an axis is empty, has a duplicate value or is not used, if `run` or a variant takes an argument
            that is not an axis, if variants differ in their signatures or metrics, if names collide, if
            `mesh_per_point` does not fit the devices, or if `file` holds another sweep. All of this is checked before
            anything is compiled.
        TypeError: If an axis, a metric or `data` is not numeric, or a variant is not a chain.
        MemoryError: If a point, or `batch_size` points side by side, do not fit into a device's memory.
        ImportError: If xarray, h5netcdf, h5py, psutil or tqdm is missing: `pip install "linkax[sweep]"`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from linkax import adam, sgd, sweep
        >>> def run(tx, seed):
        ...     w = jax.random.normal(jax.random.key(seed), (3,))
        ...     def step(carry, _):
        ...         w, state = carry
        ...         updates, state = tx.update(2 * w, state, w)
        ...         return (optax.apply_updates(w, updates), state), jnp.sum(w**2)
        ...     (w, _), losses = jax.lax.scan(step, (w, tx.init(w)), length=5)
        ...     return {"loss": losses, "final": jnp.sum(w**2)}
        >>> table = sweep(
        ...     run,
        ...     {"learning_rate": [0.01, 0.1], "seed": range(3)},
        ...     {"sgd": lambda learning_rate: sgd(learning_rate), "adam": lambda learning_rate: adam(learning_rate)},
        ...     metric_dims={"loss": ["step"]},
        ...     progress=False,
        ... )
        >>> dict(table.sizes)
        {'variant': 2, 'learning_rate': 2, 'seed': 3, 'step': 5}
        >>> bool((table["final"].sel(variant="sgd", learning_rate=0.1) < table["final"].sel(variant="adam")).all())
        True

    Source:
        The Cartesian product usually written as nested loops, under `jax.vmap`.
    """
    tqdm = _extras()
    design = grid_design(grid)
    functions = functions_of(run, design.axes, variants, has_data=data is not None)
    for name, count in (("chunk_size", chunk_size), ("batch_size", batch_size)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1):
            raise ValueError(f"sweep: {name} must be an integer of at least 1 or None, got {count!r}")
    path = None if file is None else pathlib.Path(file)
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"sweep: file must be in a folder that exists, got {str(path)!r}")
    placement = Placement(data, mesh_per_point)
    points = {name: Points(function, design, placement) for name, function in functions.items()}
    dims = _dims(points, design, metric_dims or {})
    metrics = next(iter(points.values())).metrics
    described = _described(points, functions, design, dims)
    layout = Layout(list(points), variants is not None, design, metrics, dims, described)
    if path is not None:
        names = {*design.axes, *dims}.union(*dims.values())
        if slashed := sorted(name for name in names if "/" in name):
            raise ValueError(f"sweep: names must not contain '/', which has another use in NetCDF, got {slashed}")
        if (table := finished(path, layout)) is not None:
            return table

    results = Results(layout, path)
    left = {name: results.left(name) for name in points}
    total = design.size * len(points)
    with tqdm.tqdm(total=total, desc="sweep", unit="run", disable=not progress) as bar:
        bar.update(total - sum(map(len, left.values())))
        for name, runs in points.items():
            bar.set_postfix_str(name)
            for indices in runs.chunks(left[name], chunk_size, batch_size):
                results.add(name, indices, runs.compute(indices))
                bar.update(len(indices))
    return results.finish()


def _extras() -> Any:
    try:
        import h5netcdf  # noqa: F401  (for the files, and psutil for the free memory: better missed now than later)
        import h5py  # noqa: F401  (h5netcdf can do without it, xarray cannot)
        import psutil  # noqa: F401
        import tqdm
        import xarray  # noqa: F401
    except ImportError as error:
        raise ImportError(f'sweep: {error.name} is missing; run pip install "linkax[sweep]"') from error
    return tqdm


def _dims(
    points: Mapping[str, Points], design: Design, metric_dims: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """The names of every metric's own dimensions."""
    first_name, first = next(iter(points.items()))
    for name, other in points.items():
        if other.metrics != first.metrics:
            raise ValueError(
                f"sweep: variants must return the same metrics, got {first.metrics} from {first_name!r} and "
                f"{other.metrics} from {name!r}"
            )
    if taken := first.metrics.keys() & {*design.axes, *OWN_NAMES}:
        raise ValueError(f"sweep: a metric must not be named like an axis, variant or diverged, got {sorted(taken)}")
    if not all(first.metrics):
        raise ValueError(f"sweep: a metric must have a name, got {list(first.metrics)}")
    if unknown := metric_dims.keys() - first.metrics.keys():
        raise ValueError(
            f"sweep: metric_dims must name metrics, got {sorted(unknown)}; run returns {list(first.metrics)}"
        )
    dims: dict[str, list[str]] = {}
    lengths: dict[str, int] = {}
    for name, like in first.metrics.items():
        dims[name] = list(metric_dims.get(name, [f"{name}_{i}" for i in range(len(like.shape))]))
        if len(dims[name]) != len(like.shape):
            raise ValueError(f"sweep: metric_dims of {name!r} must name {len(like.shape)} dimensions, got {dims[name]}")
        if len(set(dims[name])) < len(dims[name]) or {*dims[name]} & {*design.axes, *OWN_NAMES, *first.metrics}:
            raise ValueError(
                f"sweep: metric_dims of {name!r} must be unique names, used for nothing else, got {dims[name]}"
            )
        for dim, length in zip(dims[name], like.shape):
            if lengths.setdefault(dim, length) != length:
                raise ValueError(
                    f"sweep: metric_dims must use one name for one length, got {dim!r} for {lengths[dim]} and {length}"
                )
    return dims


def _described(
    points: Mapping[str, Points],
    functions: Mapping[str, Function],
    design: Design,
    dims: Mapping[str, list[str]],
) -> dict[str, str]:
    """The attributes that record where the results come from."""
    identity = [
        design.identity,
        {name: runs.fingerprint for name, runs in points.items()},
        dims,
    ]
    versions = {f"{name}_version": importlib.metadata.version(name) for name in ("linkax", "jax", "jaxlib", "optax")}
    chains = {f"chain {name!r}": function.chain for name, function in functions.items() if function.chain}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "fingerprint": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        **versions,
        **chains,
    }
