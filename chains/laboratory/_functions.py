"""What a sweep runs: the user's function with the chain of a variant, as a function of a point."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

Metrics = Mapping[str, Any]
Variant = optax.GradientTransformation | Callable[..., optax.GradientTransformation]


class Function:
    """`run` with the chain of one variant, as a function of a point and the data; it remembers its last chain."""

    def __init__(
        self,
        run: Callable[..., Metrics],
        variant: Variant | None,
        run_takes: list[str],
        takes: list[str],
        has_data: bool = False,
    ):
        self._run, self._variant, self._run_takes, self._takes = run, variant, run_takes, takes
        self._has_data = has_data
        self.chain = ""

    def __call__(self, point: dict[str, jax.Array], data: Any = None) -> Metrics:
        rest = {name: point[name] for name in self._run_takes} | ({"data": data} if self._has_data else {})
        if self._variant is None:
            return self._run(**rest)
        tx = self._variant
        if not isinstance(tx, optax.GradientTransformation):
            tx = tx(**{name: point[name] for name in self._takes})
            if not isinstance(tx, optax.GradientTransformation):
                raise TypeError(f"sweep: a variant must be or return a chain, got {tx!r}")
        self.chain = repr(tx)
        return self._run(tx, **rest)


def functions_of(
    run: Callable[..., Metrics],
    axes: Mapping[str, Any],
    variants: Mapping[str, Variant] | None,
    has_data: bool = False,
) -> dict[str, Function]:
    """The function of a point for each variant, by its name; of the only one, "", without variants."""
    if has_data and "data" in axes:
        raise ValueError("sweep: an axis must not be called data where there are data, got 'data'")
    if variants is not None and not isinstance(variants, Mapping):
        raise TypeError(f"sweep: variants must be a dictionary from names to chains, got {variants!r}")
    if strangers := [name for name in variants or () if not isinstance(name, str)]:
        raise TypeError(f"sweep: the names of variants must be strings, got {strangers}")
    if variants is not None and not variants:
        raise ValueError(f"sweep: variants must be None or have at least one chain, got {variants!r}")
    skip = 0 if variants is None else 1
    run_takes = _parameters("run", run, {**axes, "data": None} if has_data else axes, skip)
    if has_data and "data" not in run_takes:
        raise ValueError(f"sweep: run must take the argument data, which the sweep is given, got {run!r}")
    run_takes = [name for name in run_takes if name in axes]
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
        return {"": Function(run, None, run_takes, [], has_data)}
    return {name: Function(run, variant, run_takes, takes[name], has_data) for name, variant in variants.items()}


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
