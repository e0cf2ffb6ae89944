"""A grid or a list of training runs in compiled calls, and their results as a labelled table."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import numbers
import os
import pathlib
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from ._design import OWN_NAMES, Design, design_of
from ._executor import Executor, check_executor, computed_by
from ._failures import Computed, divide
from ._functions import Function, Metrics, Variant, functions_of
from ._interrupt import late_interrupts
from ._layout import Layout, check_share
from ._placement import MeshPerPoint, Placement
from ._results import Results, finished
from ._sweep_points import Points

if TYPE_CHECKING:
    import xarray


def sweep(
    run: Callable[..., Metrics],
    grid: Mapping[str, Sequence[float] | np.ndarray | jax.Array] | None = None,
    variants: Mapping[str, Variant] | None = None,
    *,
    points: Mapping[str, Sequence[float] | np.ndarray | jax.Array] | None = None,
    data: Any = None,
    mesh_per_point: MeshPerPoint = None,
    metric_dims: Mapping[str, Sequence[str]] | None = None,
    chunk_size: int | None = None,
    batch_size: int | None = None,
    file: str | os.PathLike | None = None,
    on_error: Literal["record", "raise"] = "record",
    executor: Executor | None = None,
    share: tuple[int, int] | None = None,
    progress: bool = True,
) -> "xarray.Dataset":
    """Trains at every point of a grid or a list, many points in one compiled call, and labels the results.

    The result at (v, a, b, …) is that of `run` with the chain of variant v and the hyperparameters a, b, …. It is what
    a loop over all points would return, but compiled once for each variant, however many points and devices there are.
    Points are independent: one that diverges has NaN or infinity in its own place, and `True` in the variable
    `diverged`; one that raises an error in mid-run has `True` in `failed`.

    Several devices share the points, and so do the cores of a CPU, and several hosts that have called
    `jax.distributed.initialize` (all of them must call `sweep` with the same arguments; all of them get the result).
    An `executor` hands them to other processes, and `share` takes a part of them.
    A mesh that `jax.set_mesh` has set around the sweep has no effect on it.

    Args:
        run: What to compute at a point: a function that JAX can trace, from hyperparameters by name to a dictionary of
            metrics, which are numbers, or arrays such as loss curves. With `variants`, its first argument is the chain.
        grid: The axes by name: at least one number each (integers for seeds), without duplicates.
        variants: Chains that differ in their links, by name: a chain, such as those of `ablations`, or a function from
            some of the axes to a chain, such as `lambda learning_rate: adam(learning_rate)`. Functions must all take
            the same axes. An axis may be an argument of the variants, of `run`, or of both.
        points: Hyperparameters that vary together, as in a random search: columns of equal length by name, in a
            dictionary or a data frame. Each row is a point, and duplicates are fine. With `grid` too, every row is run
            at every cell of the grid, such as every seed.
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
            most one. If `None`, a sixteenth of the points; with an executor, the 256th part. The results do not depend
            on it.
        batch_size: How many of them to run side by side on a device, under `jax.vmap`, at least 1. If `None`, one on a
            CPU, where running them one after the other is as fast, and one with `mesh_per_point`. On an accelerator, as
            many as keep 256 MiB alive, or a sixteenth of its points if that is more, but never more than fit into half
            of the free memory, nor than the compiler has room for. Compilers round differently for different batches,
            so results agree bit for bit only for the same batch size.
        file: Where to save the results: as Zarr if the name ends with `.zarr`, else as NetCDF. An interrupted sweep
            that is called again with the same file resumes after the last finished chunk, and a finished one is read;
            if points of it failed, only they are run again. Only one sweep at a time may use a file. The values are on
            disk, not in memory: a table from Zarr reads them when they are used, and only one from NetCDF is loaded at
            the end. Several hosts need a file that all of them see. Sweeps are identified by their computation;
            callbacks into Python (`jax.pure_callback`) count as the same whatever they do.
        on_error: What a point does that raises an error while it runs, as a callback into Python may: `"record"`, the
            default, finds it by dividing the call, goes on with the others, keeps the error's message and its place in
            the attribute `errors`, and warns at the end; `"raise"` stops the sweep. Errors before anything runs, and
            want of memory, are always raised.
        executor: Who computes the chunks: an object with the method `submit` of `concurrent.futures.Executor`, such as
            that of a Dask client, `client.get_executor()`, of mpi4py, of submitit for Slurm, or a pool of spawned
            processes. `run` and the variants travel by cloudpickle, and each worker compiles them once. A chunk whose
            worker is lost is divided and tried again; a point whose worker is lost twice has failed. An executor that
            is broken, or from which nothing has come back yet, raises.
        share: The part of the sweep to compute, as (number, shares) with 0 <= number < shares, for processes that know
            nothing of each other, such as those of a job array. Each needs a file of its own; `merge_shares` puts them
            together. Shares are consecutive parts of all points of all variants; points of others are NaN, 0 or False.
        progress: Whether to show a progress bar.

    Returns:
        An `xarray.Dataset` with the dimension `variant` (if there are variants), `point` (if there are points) and
        those of the grid, a variable for each metric, `diverged` and `failed`; its attributes hold the printed chains,
        the versions, the date and the errors as JSON.

    Raises:
        ValueError: If an axis is empty, has a duplicate value or is not used, if columns differ in length, if `run` or
            a variant takes an argument that is not an axis, if variants differ in their signatures or metrics, if names
            collide, if `mesh_per_point` does not fit the devices, if there is no such share, if an executor would fork,
            or if `file` holds another sweep, is damaged or is in use. All of this is checked before anything is
            compiled.
        TypeError: If an axis, a metric or `data` is not numeric, or a variant is not a chain.
        MemoryError: If a point, or `batch_size` points side by side, do not fit into a device's memory.
        RuntimeError: If an executor is broken, or if a worker fails as a whole, or at a point with `on_error="raise"`.
        OSError: If `file` cannot be written or there is no room for it, which is also checked before; or if this
            happens later: what is done is kept.
        KeyboardInterrupt: On Ctrl-C. With a file the running chunk is finished and saved first; Ctrl-C again stops at
            once.
        ImportError: If xarray, h5netcdf, h5py, zarr, psutil, tqdm or cloudpickle is missing:
            `pip install "linkax[sweep]"`.

    Warns:
        RuntimeWarning: If points failed.

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
        The Cartesian product usually written as nested loops, under `jax.vmap`; for lists: Bergstra & Bengio (2012),
        "Random Search for Hyper-Parameter Optimization".
    """
    tqdm = _extras()
    design = design_of(grid, points)
    functions = functions_of(run, design.axes, variants, has_data=data is not None)
    for name, count in (("chunk_size", chunk_size), ("batch_size", batch_size)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1):
            raise ValueError(f"sweep: {name} must be an integer of at least 1 or None, got {count!r}")
    if on_error not in ("record", "raise"):
        raise ValueError(f"sweep: on_error must be 'record' or 'raise', got {on_error!r}")
    if executor is not None:
        check_executor(executor)
    if share is not None:
        share = check_share(share)
    if file is not None and not isinstance(file, str | os.PathLike):
        raise TypeError(f"sweep: file must be a path or None, got {file!r}")
    path = None if file is None else pathlib.Path(file).absolute()
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"sweep: file must be in a folder that exists, got {str(path)!r}")
    placement = Placement(data, mesh_per_point)
    arguments = {name: (function, design, placement) for name, function in functions.items()}
    runs = {name: Points(*its) for name, its in arguments.items()}
    dims = _dims(runs, design, metric_dims or {})
    metrics = next(iter(runs.values())).metrics
    described = _described(runs, functions, design, dims)
    layout = Layout(list(runs), variants is not None, design, metrics, dims, described, share)
    if path is not None:
        names = {*design.axes, *dims}.union(*dims.values())
        if slashed := sorted(name for name in names if "/" in name):
            raise ValueError(f"sweep: names must not contain '/', which has another use in NetCDF, got {slashed}")
        if (table := finished(path, layout)) is not None:
            return table

    with Results(layout, path) as results, late_interrupts(path is not None) as stop_if_interrupted:
        left = {name: results.left(name) for name in runs}
        total, to_do, failed = layout.count, sum(map(len, left.values())), 0
        results.reserve(to_do)
        if executor is None:
            computed = _computed(runs, left, chunk_size, batch_size, on_error)
        else:
            computed = computed_by(executor, arguments, runs, left, design.size, chunk_size, batch_size, on_error)
        bar = tqdm.tqdm(total=total, initial=total - to_do, desc="sweep", unit="run", disable=not progress)
        with bar, contextlib.closing(computed):  # closed, it cancels what is under way
            for name, indices, (values, errors) in computed:
                results.add(name, indices, values, errors)
                failed += len(errors)
                bar.set_postfix_str(f"{name}, {failed} failed" if failed else name)
                bar.update(len(indices))
                stop_if_interrupted()
        table = results.finish()
    if failed:
        warnings.warn(
            f"sweep: {failed} of {total} points failed, the first with: {json.loads(table.attrs['errors'])[0]}; the "
            "attribute 'errors' of the table lists all of them",
            RuntimeWarning,
            stacklevel=2,
        )
    return table


def _computed(
    runs: Mapping[str, Points],
    left: Mapping[str, np.ndarray],
    chunk_size: int | None,
    batch_size: int | None,
    on_error: str,
) -> Generator[tuple[str, np.ndarray, Computed]]:
    """The chunks of every variant as they are computed here, one after the other."""
    for name, points in runs.items():
        for indices in points.chunks(left[name], chunk_size, batch_size):
            if on_error == "raise":
                yield name, indices, Computed(points.compute(indices), {})
            else:
                yield name, indices, divide(points.compute, indices, points.metrics)


def _extras() -> Any:
    try:
        import cloudpickle  # noqa: F401  (for the workers of an executor)
        import h5netcdf  # noqa: F401  (for the files, and psutil for the free memory: better missed now than later)
        import h5py  # noqa: F401  (h5netcdf can do without it, xarray cannot)
        import psutil  # noqa: F401
        import tqdm
        import xarray  # noqa: F401
        import zarr  # noqa: F401
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
        raise ValueError(
            f"sweep: a metric must not be named like an axis or {', '.join(OWN_NAMES)}, got {sorted(taken)}"
        )
    if not all(first.metrics):
        raise ValueError(f"sweep: a metric must have a name, got {list(first.metrics)}")
    if not isinstance(metric_dims, Mapping):
        raise TypeError(f"sweep: metric_dims must be a dictionary from metrics to names, got {metric_dims!r}")
    if unknown := metric_dims.keys() - first.metrics.keys():
        raise ValueError(
            f"sweep: metric_dims must name metrics, got {sorted(unknown)}; run returns {list(first.metrics)}"
        )
    dims: dict[str, list[str]] = {}
    lengths: dict[str, int] = {}
    for name, like in first.metrics.items():
        named = metric_dims.get(name, [f"{name}_{i}" for i in range(len(like.shape))])
        is_list = isinstance(named, Sequence) and not isinstance(named, str)
        if not is_list or not all(isinstance(dim, str) and dim for dim in named) or len(named) != len(like.shape):
            raise ValueError(
                f"sweep: metric_dims of {name!r} must name {len(like.shape)} dimensions in a list, got {named!r}"
            )
        dims[name] = list(named)
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
