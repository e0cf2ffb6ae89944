"""A grid of training runs as one compiled call, and its results as a labelled table."""

import datetime
import hashlib
import importlib.metadata
import inspect
import json
import math
import numbers
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._sweep_file import Progress, check_shared, refuse_another
from ._sweep_points import Points

if TYPE_CHECKING:
    import xarray

Metrics = Mapping[str, Any]
Variant = optax.GradientTransformation | Callable[..., optax.GradientTransformation]
_OWN_NAMES = ("variant", "diverged")


def sweep(
    run: Callable[..., Metrics],
    grid: Mapping[str, Sequence[float] | np.ndarray | jax.Array],
    variants: Mapping[str, Variant] | None = None,
    *,
    metric_dims: Mapping[str, Sequence[str]] | None = None,
    chunk_size: int | None = None,
    batch_size: int | None = None,
    file: str | os.PathLike | None = None,
    progress: bool = True,
) -> "xarray.Dataset":
    """Trains at every point of a grid, all points in one compiled call, and labels the results.

    The result at (v, a, b, …) is that of `run` with the chain of variant v and the hyperparameters a, b, …. It is what
    a loop over all points would return, but compiled once for each variant and device, however many points there are.
    Points are independent: one that diverges has NaN or infinity in its own place, and `True` in the variable
    `diverged`.

    Several devices share the points, and so do the cores of a CPU, and several hosts that have called
    `jax.distributed.initialize` (all of them must call `sweep` with the same arguments; all of them get the result).

    Args:
        run: What to compute at a point: a function that JAX can trace, from hyperparameters by name to a dictionary of
            metrics, which are numbers, or arrays such as loss curves. With `variants`, its first argument is the chain.
        grid: The axes by name: at least one number each (integers for seeds), without duplicates.
        variants: Chains that differ in their links, by name: a chain, such as those of `ablations`, or a function from
            some of the axes to a chain, such as `lambda learning_rate: adam(learning_rate)`. Functions must all take
            the same axes. An axis may be an argument of the variants, of `run`, or of both.
        metric_dims: Names for the metrics' own dimensions, such as `{"loss": ["epoch"]}`; the default is `"loss_0"` and
            so on.
        chunk_size: How many points to run in one call, at least 1, rounded up to whole batches on all devices (on CPUs:
            on all cores). The progress bar counts chunks, and an interruption loses at most one. If `None`, a sixteenth
            of the points on a CPU and all of them on an accelerator, but never more than fit into half of the free
            memory. The results do not depend on it.
        batch_size: How many of them to run side by side, under `jax.vmap`, at least 1. If `None`, one on a CPU, where
            running them one after the other is as fast, and all on an accelerator. Compilers round differently for
            different batches, so results agree bit for bit only for the same batch size.
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
            that is not an axis, if variants differ in their signatures or metrics, if names collide, or if `file` holds
            another sweep. All of this is checked before anything is compiled.
        TypeError: If an axis or a metric is not numeric, or a variant is not a chain.
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
    xarray, tqdm = _extras()
    axes = _axes(grid)
    functions = _functions(run, axes, variants)
    for name, count in (("chunk_size", chunk_size), ("batch_size", batch_size)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1):
            raise ValueError(f"sweep: {name} must be an integer of at least 1 or None, got {count!r}")
    path = None if file is None else pathlib.Path(file)
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"sweep: file must be in a folder that exists, got {str(path)!r}")
    points = {name: Points(function, axes) for name, function in functions.items()}
    dims = _dims(points, axes, metric_dims or {})
    described = _described(points, functions, axes, dims)
    if path is not None:
        names = {*axes, *dims}.union(*dims.values())
        if slashed := sorted(name for name in names if "/" in name):
            raise ValueError(f"sweep: names must not contain '/', which has another use in NetCDF, got {slashed}")
        check_shared(path)
        if path.exists():
            try:
                table = xarray.load_dataset(path, engine="h5netcdf")
            except OSError as error:
                raise ValueError(f"sweep: file must be new or hold this sweep, got {str(path)!r}: {error}") from None
            refuse_another(str(table.attrs.get("fingerprint")), described["fingerprint"], path)
            return table

    size = math.prod(len(values) for values in axes.values())
    found = Progress(points, size, path, described["fingerprint"])
    with tqdm.tqdm(total=size * len(points), desc="sweep", unit="run", disable=not progress) as bar:
        bar.update(sum(int(done.sum()) for done in found.done.values()))
        for name, runs in points.items():
            bar.set_postfix_str(name)
            for indices, metrics in runs.run(np.flatnonzero(~found.done[name]), chunk_size, batch_size):
                found.add(name, indices, metrics)
                bar.update(len(indices))
    table = _table(xarray, found, axes, dims, described, has_variants=variants is not None)
    found.finish(lambda new: table.to_netcdf(new, engine="h5netcdf"))
    return table


class _Function:
    """`run` with the chain of one variant, as a function of a point; it remembers the last chain it built."""

    def __init__(self, run: Callable[..., Metrics], variant: Variant | None, run_takes: list[str], takes: list[str]):
        self._run, self._variant, self._run_takes, self._takes = run, variant, run_takes, takes
        self.chain = ""

    def __call__(self, point: dict[str, jax.Array]) -> Metrics:
        rest = {name: point[name] for name in self._run_takes}
        if self._variant is None:
            return self._run(**rest)
        tx = self._variant
        if not isinstance(tx, optax.GradientTransformation):
            tx = tx(**{name: point[name] for name in self._takes})
            if not isinstance(tx, optax.GradientTransformation):
                raise TypeError(f"sweep: a variant must be or return a chain, got {tx!r}")
        self.chain = repr(tx)
        return self._run(tx, **rest)


def _extras() -> tuple[Any, Any]:
    try:
        import h5netcdf  # noqa: F401  (for the files, and psutil for the free memory: better missed now than later)
        import h5py  # noqa: F401  (h5netcdf can do without it, xarray cannot)
        import psutil  # noqa: F401
        import tqdm
        import xarray
    except ImportError as error:
        raise ImportError(f'sweep: {error.name} is missing; run pip install "linkax[sweep]"') from error
    return xarray, tqdm


def _axes(grid: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"sweep: grid must be a dictionary with at least one axis, got {grid!r}")
    axes = {}
    for name, values in grid.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"sweep: the name of an axis must be a valid argument name, got {name!r}")
        if name in _OWN_NAMES:
            raise ValueError(f"sweep: an axis must not be called {' or '.join(_OWN_NAMES)}, got {name!r}")
        try:
            axis = np.asarray(values if hasattr(values, "__array__") else list(values))
        except (TypeError, ValueError):  # not a sequence, or sequences of different lengths
            raise TypeError(f"sweep: axis {name!r} must be a sequence of numbers, got {values!r}") from None
        if np.ma.is_masked(values):
            raise TypeError(f"sweep: axis {name!r} must be without masked values, got {values!r}")
        if jnp.issubdtype(axis.dtype, jnp.floating) and axis.dtype.itemsize < 4:
            axis = axis.astype(np.float32)  # including those unknown to NumPy, such as bfloat16
        if axis.ndim != 1 or axis.size == 0:
            raise ValueError(f"sweep: axis {name!r} must have one dimension and at least one value, got {values!r}")
        if axis.dtype.kind not in "biuf":
            raise TypeError(f"sweep: axis {name!r} must be numeric, got {values!r}")
        dtype = jax.dtypes.canonicalize_dtype(axis.dtype)
        with np.errstate(over="ignore"):
            axes[name] = axis.astype(dtype)
        if not np.allclose(axes[name], axis, rtol=1e-6, atol=0, equal_nan=True):
            raise ValueError(f"sweep: axis {name!r} must fit into {dtype}, got {values!r}; or enable jax_enable_x64")
        if len(np.unique(axes[name])) < len(axis):
            raise ValueError(f"sweep: axis {name!r} must have no duplicate values (as {dtype}), got {values!r}")
    return axes


def _functions(
    run: Callable[..., Metrics], axes: Mapping[str, np.ndarray], variants: Mapping[str, Variant] | None
) -> dict[str, _Function]:
    if variants is not None and not isinstance(variants, Mapping):
        raise TypeError(f"sweep: variants must be a dictionary from names to chains, got {variants!r}")
    if strangers := [name for name in variants or () if not isinstance(name, str)]:
        raise TypeError(f"sweep: the names of variants must be strings, got {strangers}")
    if variants is not None and not variants:
        raise ValueError(f"sweep: variants must be None or have at least one chain, got {variants!r}")
    run_takes = _parameters("run", run, axes, skip=0 if variants is None else 1)
    takes = {
        name: []
        if isinstance(variant, optax.GradientTransformation)
        else _parameters(f"variant {name!r}", variant, axes)
        for name, variant in (variants or {}).items()
    }
    if len({tuple(sorted(names)) for names in takes.values()}) > 1:
        lists = "; ".join(f"{name!r}: {', '.join(names) or 'none'}" for name, names in takes.items())
        raise ValueError(f"sweep: variants must all take the same axes, got {lists}")
    idle = axes.keys() - set(run_takes) - set(*list(takes.values())[:1])
    if idle:
        raise ValueError(
            f"sweep: every axis must be taken by run or the variants, got {sorted(idle)}, which neither takes"
        )
    if variants is None:
        return {"": _Function(run, None, run_takes, [])}
    return {name: _Function(run, variant, run_takes, takes[name]) for name, variant in variants.items()}


def _parameters(what: str, function: Any, axes: Mapping[str, Any], skip: int = 0) -> list[str]:
    """The axes that a function takes, from its signature; the first `skip` parameters are not axes."""
    if not callable(function):
        raise TypeError(f"sweep: {what} must be a chain or a function, got {function!r}")
    parameters = list(inspect.signature(function).parameters.values())
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(by_position) < skip:
        raise ValueError(f"sweep: {what} must take the chain as its first argument, got {function!r}")
    parameters = [p for p in parameters if p not in by_position[:skip]]
    if unnamed := [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]:
        raise ValueError(f"sweep: {what} must take the axes by name, got {', '.join(unnamed)} by position")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return list(axes)
    unknown = [p.name for p in parameters if p.name not in axes and p.default is p.empty]
    if unknown:
        raise ValueError(f"sweep: {what} must take only axes, got {', '.join(unknown)}; the axes are {', '.join(axes)}")
    return [parameter.name for parameter in parameters if parameter.name in axes]


def _dims(
    points: Mapping[str, Points], axes: Mapping[str, Any], metric_dims: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """The names of every metric's own dimensions."""
    first_name, first = next(iter(points.items()))
    for name, other in points.items():
        if other.metrics != first.metrics:
            raise ValueError(
                f"sweep: variants must return the same metrics, got {first.metrics} from {first_name!r} and "
                f"{other.metrics} from {name!r}"
            )
    if taken := first.metrics.keys() & {*axes, *_OWN_NAMES}:
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
        if len(set(dims[name])) < len(dims[name]) or {*dims[name]} & {*axes, *_OWN_NAMES, *first.metrics}:
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
    functions: Mapping[str, _Function],
    axes: Mapping[str, np.ndarray],
    dims: Mapping[str, list[str]],
) -> dict[str, str]:
    """The attributes that record where the results come from."""
    identity = [
        {name: [str(axis.dtype), axis.tolist()] for name, axis in axes.items()},
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


def _table(
    xarray: Any,
    found: Progress,
    axes: Mapping[str, np.ndarray],
    dims: Mapping[str, list[str]],
    attributes: Mapping[str, str],
    *,
    has_variants: bool,
) -> "xarray.Dataset":
    shape = [len(values) for values in axes.values()]
    variables, diverged = {}, np.zeros((len(found.values), *shape), bool)
    for metric, own_dims in dims.items():
        stacked = np.stack([values[metric] for values in found.values.values()])
        stacked = stacked.reshape(len(stacked), *shape, *stacked.shape[2:])
        variables[metric] = (["variant", *axes, *own_dims], stacked)
        diverged |= ~np.isfinite(stacked).all(axis=tuple(range(1 + len(shape), stacked.ndim)))
    variables["diverged"] = (["variant", *axes], diverged)
    table = xarray.Dataset(variables, {"variant": list(found.values), **axes}, attributes)
    return table if has_variants else table.isel(variant=0, drop=True)
