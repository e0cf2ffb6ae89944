"""The arithmetic that all links share: dtypes of accumulators, leaves without a gradient, complex numbers.

A leaf of the updates may be `None` (no gradient: nothing to do, its state stays unchanged), an `optax.MaskedNode` (JAX
sees no leaf there at all), a scalar, an empty array, or complex.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental.shard_alike import shard_alike
from jax.experimental.sparse import BCOO
from jax.sharding import NamedSharding, PartitionSpec

from ._check import Number, is_traced
from ._per_leaf import Deferred, apply
from ._trees import is_missing, listed, path_text

_GRADIENT = "linkax: a gradient"


def check_leaves(where: str, tree: Any, params: Any = None, *, rows: bool = True, whole: bool = False) -> None:
    """Raises if a leaf is not floating-point or complex, or does not fit its parameter; the error gives its path.

    With `rows`, row-sparse leaves are allowed, and with `whole`, integers.
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_one_leaf)
    _check_each(where, tree, leaves, _leaves_like(where, tree, leaves, structure, params), rows, whole)


def entering(where: str, updates: Any, params: Any = None) -> Any:
    """The updates as a link takes them: checked, and no leaf narrower than its parameter.

    So the link's output has the wider dtype of the two. It is the chain that rounds it to the parameter's dtype, at its
    end.
    """
    leaves, structure = jax.tree.flatten(updates, is_leaf=is_one_leaf)
    others = _leaves_like(where, updates, leaves, structure, params)
    _check_each(where, updates, leaves, others, rows=False, whole=False)
    if params is None:
        return updates
    return structure.unflatten(map(as_wide_as, leaves, others))


def _check_each(where: str, tree: Any, leaves: list[Any], params: list[Any], rows: bool, whole: bool) -> None:
    for index, (leaf, param) in enumerate(zip(leaves, params)):
        if is_missing(leaf):
            continue
        problem = _problem(leaf, None if is_missing(param) else param, rows, whole)
        if problem is not None:
            kind, must, got = problem
            raise kind(f"{where} must {must}, got {_path_of(tree, index)} {got}")


def _problem(leaf: Any, param: Any, rows: bool, whole: bool) -> tuple[type[Exception], str, str] | None:
    """What is wrong with a leaf, if anything: the error, what the leaf must be, and what it is."""
    dtype = dtype_of(leaf)
    if not whole and not _is_inexact(dtype):
        name = "float0 (the gradient of integers)" if dtype == jax.dtypes.float0 else dtype
        hint = "leave it out with optax.masked or linkax.param_groups"
        return TypeError, "be floating-point or complex", f"of dtype {name}; {hint}"
    if isinstance(leaf, BCOO) and not rows:
        return (
            TypeError,
            "cover all rows",
            "with only a few; wrap the link in linkax.chain for such gradients",
        )
    if param is None:
        return None
    if shape_of(leaf) != shape_of(param):
        return ValueError, f"have the shape of its parameter, {shape_of(param)}", f"of shape {shape_of(leaf)}"
    if is_complex(dtype) and not is_complex(dtype_of(param)):
        return TypeError, "be real where its parameter is", f"of dtype {dtype}"
    return None


def _leaves_like(where: str, tree: Any, leaves: list[Any], structure: Any, params: Any) -> list[Any]:
    """The parameters in the order of the leaves of `tree`; raises if the trees differ."""
    if params is None:
        return [None] * len(leaves)
    try:
        found = structure.flatten_up_to(params)
    except (ValueError, TypeError):
        found = None
    if found is None or not all(is_missing(leaf) or _may_be_leaf(param) for leaf, param in zip(leaves, found)):
        raise ValueError(f"{where} must be in a tree like that of the parameters, got {_difference(tree, params)}")
    return found


def _may_be_leaf(param: Any) -> bool:
    return hasattr(param, "dtype") or is_missing(param) or jax.tree_util.all_leaves([param])


def as_wide_as(update: Any, param: Any) -> Any:
    """An update in the wider dtype of its own and its parameter's; unchanged if one of the two is an integer dtype."""
    if is_missing(update) or is_missing(param):
        return update
    ours, theirs = dtype_of(update), dtype_of(param)
    if ours == theirs or not (_is_inexact(ours) and _is_inexact(theirs)):
        return update
    wider = jnp.promote_types(_float32_at_least(ours), _float32_at_least(theirs))
    return update if ours == wider else jnp.asarray(update, wider)


def _difference(tree: Any, params: Any) -> str:
    """How two trees differ: in their leaves, or in the containers of these."""
    ours, theirs = ([path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(one)] for one in (tree, params))
    more, less = (listed(path for path in one if path not in other) for one, other in ((ours, theirs), (theirs, ours)))
    texts = [f"{more}, where there is no parameter" if more else "", f"nothing for {less}" if less else ""]
    return ", and ".join(filter(None, texts)) or _other_node(tree, params)


def _other_node(tree: Any, params: Any, path: str = "") -> str:
    """The first node that has different types in two trees with the same leaves."""
    if type(tree) is type(params):
        ours, theirs = (
            jax.tree_util.tree_leaves_with_path(one, is_leaf=lambda x, one=one: x is not one) for one in (tree, params)
        )
        for (keys, one), (_, other) in zip(ours, theirs):
            if jax.tree.structure(one) != jax.tree.structure(other):
                return _other_node(one, other, "/".join(filter(None, (path, path_text(keys)))))
    kinds = (f"{type(one).__module__}.{type(one).__qualname__}".removeprefix("builtins.") for one in (tree, params))
    return "a {} where the parameters have a {}".format(*kinds) + (f", at {path}" if path else "")


def is_one_leaf(leaf: Any) -> bool:
    """Whether it stands for one parameter where JAX sees no leaf or several: a missing or a row-sparse one."""
    return is_missing(leaf) or isinstance(leaf, BCOO)


def _path_of(tree: Any, index: int) -> str:
    path, _ = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_one_leaf)[index]
    return path_text(path) or "one"


def shape_of(leaf: Any) -> tuple[int, ...]:
    """The shape of an array, a number, or anything with a `shape`."""
    return tuple(leaf.shape) if hasattr(leaf, "shape") else jnp.shape(leaf)


def dtype_of(leaf: Any) -> jnp.dtype:
    """The JAX dtype of an array, a number, or anything with a `dtype` (`jax.ShapeDtypeStruct`)."""
    if isinstance(leaf, jax.Array):
        return leaf.dtype
    if not hasattr(leaf, "dtype"):
        return jnp.result_type(leaf)
    # NumPy's float64 is float32 in JAX, unless x64 is enabled.
    return leaf.dtype if leaf.dtype == jax.dtypes.float0 else jax.dtypes.canonicalize_dtype(leaf.dtype)


@functools.cache
def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


@functools.cache
def is_complex(dtype: Any) -> bool:
    """Whether a dtype is complex."""
    return jnp.issubdtype(dtype, jnp.complexfloating)


def accumulator_dtype(leaf: Any) -> jnp.dtype:
    """The dtype in which sums over many steps are kept for `leaf`: its own, but at least float32."""
    dtype = dtype_of(leaf)
    if not _is_inexact(dtype):
        raise TypeError(
            f"linkax: parameters and gradients must be floating-point or complex, got a leaf of dtype {dtype}; "
            "leave it out with optax.masked or optax.partition"
        )
    return _float32_at_least(dtype)


@functools.cache
def _float32_at_least(dtype: Any) -> jnp.dtype:
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def accumulators(params: Any, fill: Number = 0.0) -> Any:
    """A tree like `params` of accumulators filled with `fill` (in both parts, if complex)."""

    def accumulator(leaf):
        dtype = accumulator_dtype(leaf)
        if type(fill) is float and fill == 0:
            return sharded_like(leaf, jnp.zeros_like(leaf, dtype))
        value = on_reals(lambda zero: zero + scalar(fill, zero))(jnp.zeros((), dtype))
        return sharded_like(leaf, jnp.full_like(leaf, value, dtype))

    return jax.tree.map(accumulator, params)


def sharded_like(leaf: Any, constant: jax.Array) -> jax.Array:
    """A constant of the leaf's shape, which in a compiled function is sharded as the leaf is.

    Otherwise a compiler with automatic axes, to which it has nothing to do with the leaf, would not shard it at all.
    A cast of a plain constant would be one more constant to it; the barrier prevents that.
    """
    if not is_traced(leaf):
        return constant
    return shard_alike(lax.optimization_barrier(constant), lax.stop_gradient(leaf))[0]


def split_alike(*leaves: Any) -> tuple[jax.Array, ...]:
    """Arrays of one shape, each split over explicit axes of a mesh as any of them is.

    JAX adds a split array to a whole one by itself, but does not select from both. With ZeRO, the state is split and
    the parameters are whole.
    """
    arrays = tuple(leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in leaves)
    shardings = [jax.typeof(array).sharding for array in arrays]
    specs = [sharding.spec for sharding in shardings]
    if all(spec == specs[0] for spec in specs):
        return arrays
    spec = PartitionSpec(*(next((name for name in names if name is not None), None) for names in zip(*specs)))
    return tuple(
        array if sharding.spec == spec else jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))
        for array, sharding in zip(arrays, shardings)
    )


def mean_accumulator(leaf: Any, axis: int) -> jax.Array:
    """An accumulator of zeros for means along one axis, which has one element there; sharded along the others."""
    shape = tuple(1 if index == axis else size for index, size in enumerate(shape_of(leaf)))
    sharding = None if is_traced(leaf) else getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding):
        spec = [None if index == axis else one for index, one in enumerate(sharding.spec)]
        return jnp.zeros(shape, accumulator_dtype(leaf), device=NamedSharding(sharding.mesh, PartitionSpec(*spec)))
    if is_traced(leaf):  # the compiler, or the mesh, knows the sharding of a sum
        return jnp.sum(sharded_like(leaf, jnp.zeros_like(leaf, accumulator_dtype(leaf))), axis, keepdims=True)
    return jnp.zeros(shape, accumulator_dtype(leaf))


def scalar_dtype(params: Any) -> jnp.dtype:
    """The dtype of scalars shared by all of `params`: the widest real accumulator dtype among them."""
    dtypes = [jnp.finfo(accumulator_dtype(leaf)).dtype for leaf in jax.tree.leaves(params)]
    return jnp.result_type(jnp.float32, *dtypes)


def wide(leaf: Any) -> jax.Array:
    """`leaf` in the dtype of its accumulators."""
    dtype = accumulator_dtype(leaf)
    return leaf if _is_array_of(leaf, dtype) else jnp.asarray(leaf, dtype)


def _is_array_of(leaf: Any, dtype: Any) -> bool:
    """Whether there is nothing to convert. (The check takes a tenth of the time of a conversion that does nothing.)"""
    return isinstance(leaf, jax.Array) and leaf.dtype == dtype and not leaf.weak_type


def widened(tree: Any, params: Any = None) -> Any:
    """The tree with every leaf in the dtype of its accumulators, or of its parameter if that is wider.

    Anything that is not a floating-point array stays unchanged.
    """

    def widen(leaf):
        dtype = dtype_of(leaf)
        if not _is_inexact(dtype) or dtype == _float32_at_least(dtype):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(dtype=_float32_at_least(dtype))
        return jnp.asarray(leaf, _float32_at_least(dtype))

    return map_updates(widen, tree if params is None else map_updates(as_wide_as, tree, params))


def like(value: jax.Array, leaf: Any) -> jax.Array:
    """`value` in the dtype of `leaf`, except that a complex value stays complex, in the dtype of that width."""
    dtype = dtype_of(leaf)
    if is_complex(value.dtype) and not is_complex(dtype):
        dtype = jnp.promote_types(dtype, jnp.complex64)
    return value if _is_array_of(value, dtype) else value.astype(dtype)


def in_dtype_of(update: Any, leaf: Any) -> Any:
    """An update in the dtype of its parameter, or of its gradient.

    Integers have no gradient. Where their updates bypass the links, because something else handles them, they become
    zeros.
    """
    if is_missing(leaf):
        return update
    if dtype_of(update) == jax.dtypes.float0 != dtype_of(leaf):
        return jnp.zeros(shape_of(leaf), dtype_of(leaf))
    return update if dtype_of(update) == dtype_of(leaf) else like(jnp.asarray(update), leaf)


def in_dtype_unless_low(update: Any, leaf: Any) -> Any:
    """The same, but where the parameter's dtype is narrower than float32 the update is unchanged."""
    dtype = jnp.dtype(jnp.float32) if is_missing(leaf) else dtype_of(leaf)
    is_low = _is_inexact(dtype) and _float32_at_least(dtype) != dtype
    return update if is_low else in_dtype_of(update, leaf)


def scalar(value: Any, leaf: jax.Array) -> Any:
    """A hyperparameter as a real number of `leaf`'s precision: what `jax.lax` needs, and no wider than the leaf."""
    dtype = _real_dtype(leaf.dtype)
    if type(value) in (int, float):
        return _constant(value, dtype)
    return value if _is_array_of(value, dtype) else jnp.asarray(value, dtype)


def or_spacing(value: Any, leaf: jax.Array) -> Any:
    """A hyperparameter as `scalar` has it; instead of `None`, the distance from 1 to the next number of the dtype."""
    return scalar(float(jnp.finfo(leaf.dtype).eps) if value is None else value, leaf)


@functools.cache
def _real_dtype(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype


@functools.lru_cache(1024)
def _constant(value: float, dtype: Any) -> np.generic:
    with np.errstate(over="ignore", under="ignore"):  # what is too large becomes infinity, as in JAX
        return dtype.type(value)


def complement(value: Any) -> Number:
    """1 − value, in float64 if value is a Python number, so that 1 − 0.999 keeps all its digits in float32."""
    if isinstance(value, jax.Array):
        return 1 - value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return 1 - value


def weighted(old: jax.Array, new: jax.Array, decay: Any, weight: Any = 1.0) -> jax.Array:
    """decay · old + weight · new, of real arrays, as if `decay` were not rounded to their dtype.

    In float32, rounding 0.999 shifts an average over many steps by 1e-5. So 0.999 is split into 1 − 2⁻⁹, which is
    exact, and a small remainder, whose rounding matters a thousand times less. Neither is negative, so an overflow
    stays infinite (∞ − ∞ would be NaN). Below 1/2 the split gains nothing.
    """
    total = times(weight, new)
    if type(decay) in (int, float):
        decay, rest = _in_two(decay, _real_dtype(old.dtype))
        total = lax.add(total, times(rest, old)) if rest else total
    return lax.add(times(decay, old), total)


def faded(old: jax.Array, decay: Any) -> jax.Array:
    """decay · old, of a real array, as if `decay` were not rounded to its dtype; see `weighted`."""
    if type(decay) in (int, float):
        decay, rest = _in_two(decay, _real_dtype(old.dtype))
        if rest:
            return lax.add(times(decay, old), times(rest, old))
    return times(decay, old)


@functools.lru_cache(1024)
def _in_two(value: float, dtype: Any) -> tuple[float, float]:
    """Splits a number in [0, 1] into one that `dtype` holds exactly, and a remainder (0 if it holds the number)."""
    if value < 0.5 or float(dtype.type(value)) == value:
        return value, 0.0
    power = min(math.floor(-math.log2(1 - value)), np.finfo(dtype).nmant)
    exact = 1 - 2.0**-power
    return exact, value - exact


def average(old: jax.Array, new: jax.Array, decay: Any) -> jax.Array:
    """decay · old + (1 − decay) · new: one step of an exponential average of real arrays."""
    return weighted(old, new, decay, complement(decay))


def shared(old: jax.Array, new: jax.Array, share: jax.Array) -> jax.Array:
    """(1 − share) · old + share · new, of real arrays, as if 1 − share were not rounded to its dtype.

    As in `weighted`, 1 − share is split into a number and a small remainder, neither of them negative.
    """
    kept = lax.max(1 - (share + np.float32(2**-22)), lax.full_like(share, 0))
    return times(kept, old) + times((1 - kept) - share, old) + times(share, new)


def times(number: Any, leaf: jax.Array) -> jax.Array:
    """number · leaf, in the leaf's precision."""
    if type(number) in (int, float) and number == 1:
        return leaf
    number = scalar(number, leaf)
    return leaf * number if is_complex(leaf.dtype) else lax.mul(number, leaf)


def over(leaf: jax.Array, number: Any) -> jax.Array:
    """leaf / number, in the leaf's precision."""
    number = scalar(number, leaf)
    return leaf / number if is_complex(leaf.dtype) else lax.div(leaf, number)


def increment(count: jax.Array) -> jax.Array:
    """The next step's count, which stops at the largest int32 instead of overflowing."""
    largest = np.iinfo(count.dtype).max
    return lax.add(lax.min(count, count.dtype.type(largest - 1)), count.dtype.type(1))


def at_step(value: Any, count: Any) -> Any:
    """A hyperparameter at a step; schedules get the widest integer, because Optax's compute in float32 otherwise."""
    return value(count.astype(jax.dtypes.canonicalize_dtype(jnp.int64))) if callable(value) else value


def map_updates(fn: Callable[..., Any], updates: optax.Updates, *trees: Any) -> Any:
    """Maps `fn` over the leaves of `updates`; where there is no gradient (`None`) the result is `None`."""
    return jax.tree.map(lambda u, *rest: None if u is None else apply(fn, u, *rest), updates, *trees, is_leaf=_is_none)


def map_state(fn: Callable[..., Any], updates: optax.Updates, state: Any, *trees: Any) -> Any:
    """Maps `fn` over the leaves of `updates` and `state`; where there is no gradient the state stays unchanged.

    The state keeps its dtype, even if a gradient is wider than its parameter. If no parameters are given, gradients are
    checked against the state's shapes, because a wrong shape might broadcast unnoticed.
    """

    leaves, structure = jax.tree.flatten(updates, is_leaf=_is_none)
    try:
        others = [structure.flatten_up_to(tree) for tree in (state, *trees)]
    except (ValueError, TypeError):
        check_leaves(_GRADIENT, updates, state)  # raises, and says where they differ
        raise

    def step(u, s, *rest):
        if u is None:
            return s
        dtype = u.gradient_dtype if isinstance(u, Deferred) else dtype_of(u)
        if shape_of(u) != getattr(s, "shape", None) or (is_complex(dtype) and not is_complex(s.dtype)):
            check_leaves(_GRADIENT, updates, state)  # raises, and names the leaf
        return apply(of_same_dtype, u, s, *rest)

    def of_same_dtype(u, s, *rest):
        return like(fn(u, s, *rest), s)

    return structure.unflatten(map(step, leaves, *others))


def _is_none(leaf: Any) -> bool:
    return leaf is None


def on_reals(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Extends `fn` from real arrays of one dtype to complex ones, part by part (real, imaginary), as PyTorch does."""

    def apply(*leaves):
        leaves = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in leaves]
        dtype = leaves[0].dtype
        if any(leaf.dtype != dtype for leaf in leaves):
            dtype = jnp.result_type(*leaves)
            leaves = [leaf.astype(dtype) for leaf in leaves]
        if not is_complex(dtype):
            return fn(*leaves)
        return lax.complex(fn(*map(lax.real, leaves)), fn(*map(lax.imag, leaves)))

    return apply


def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivatives of 0 instead of infinity at 0.

    The chain rule would multiply that infinity by a zero (a second moment is 0 only if all its gradients were), and the
    product, NaN, would reach the hyperparameters. Both cases are selected on arrays and not by a custom derivative
    rule, because JAX would not know the second derivative of such a rule inside a loop.
    """
    zero = lax.full_like(x, 0)
    is_zero = lax.eq(x, zero)
    root = lax.sqrt(lax.select(is_zero, lax.full_like(x, 1), x))
    return lax.select(is_zero, zero, root)


def gathered(weight: jax.Array, lost: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """weight + (1 − weight) · rest, and its rounding error: the weight of an average after one more step.

    Only positive terms are added, so nothing cancels. The rounding error is carried over to the next step. Without
    that, the weight of an average that forgets a thousandth per step would end up wrong by 3e-5 in float32.
    """
    return compensated(weight, lost, (1 - weight - lost) * rest)


def compensated(total: jax.Array, lost: jax.Array, gain: jax.Array) -> tuple[jax.Array, jax.Array]:
    """total + gain, and its rounding error, which is added in the next step."""
    gain = gain + lost
    new = total + gain
    return new, gain - (new - total)
