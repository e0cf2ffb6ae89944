"""Optimizer state in fewer bits: stored so between steps, and float32 within them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import optax

from linkax.transforms import Link, Moment, Own, Place, View, link
from linkax.transforms._check import whole_number
from linkax.transforms._formats import Blocks, Format, Rounding, axis_of, block_scales, decode, encode, fits
from linkax.transforms._leaves import dtype_of, increment
from linkax.transforms._link import links_of
from linkax.transforms._masks import check_mask, selected
from linkax.transforms._meaning import Field
from linkax.transforms._precision import wide_inside
from linkax.transforms._rounding import LARGEST_SEED, seed_of

from ..algebra._chain import Chain, chain
from ..algebra._paths import leaves_with_path, words
from ..algebra._structure import Site, get_at, map_states, parts, put_at


class StoredState(NamedTuple):
    """State of `stored`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32: steps taken, which vary the noise
    inner: Any  # the state of what is inside, with `Blocks`, `PositiveBlocks` or bfloat16 in place of some moments


class PositiveBlocks(NamedTuple):
    """Blocks of an array that is never negative, and whose root is a divisor."""

    codes: jax.Array
    scales: jax.Array


_OF_FORMAT = {"float8": ("float8_e4m3fn", "uint8"), "int8": ("int8", "uint8"), "int4": ("int4", "int4")}
"""The dtypes of each format's codes, signed and unsigned."""

_CODES = {jnp.dtype(name) for names in _OF_FORMAT.values() for name in names}


def _place_of(inner: optax.GradientTransformation, **_: Any) -> Place | None:
    places: set[Place | None] = {one.place for one in links_of("stored: inner", inner)}
    if places == {"moment", None}:
        return "moment"
    return places.pop() if len(places) == 1 else None


def _view(inner: optax.GradientTransformation, as_: Format, **_: Any) -> View:
    def close(state: Any, opened: Any, kept: Any) -> Any:
        return _closed(as_, state, opened, _with_blocks(inner, kept))

    return View(lambda kept: _opened(as_, _with_blocks(inner, kept)), close)


@link(
    None,
    place_from=_place_of,
    holds={"inner": ("inner",)},
    state={"count": Own()},
    view=_view,
)
def stored(
    inner: optax.GradientTransformation,
    as_: Format,
    *,
    rounding: Rounding = "stochastic",
    min_size: int = 4096,
    mask: Any = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    """Stores the moments of what is inside in fewer bits, and still computes in float32.

    state_t = round(u(decode(state_{t−1}), g_t)), where u is `inner`'s update of its state. Only what its links declare
    as a `Moment` is stored this way, and only for large parameters; counts and small parameters are not worth it.
    Moments that are subtracted from each other, as in `variance`, stay float32, because rounding would leave nothing of
    the difference.

    | `as_`        | bytes/element  | format                                                                           |
    | ------------ | -------------- | -------------------------------------------------------------------------------- |
    | `"bfloat16"` | 2              | float32 without its lower half: 3 digits, any size                               |
    | `"float8"`   | 1              | float8 (e4m3) relative to the largest value of a block                           |
    | `"int8"`     | 1              | one-byte codes relative to it, which lie closer together towards 0               |
    | `"int4"`     | 0.5            | four-bit codes relative to it: powers of two                                     |

    Second moments have unsigned codes in which no positive value becomes 0, because their root is a divisor. A block is
    a whole row or column, along an axis that is not sharded if there is one, so that sharded parameters have sharded
    moments. If all axes are sharded, a step finds the blocks' maxima with one all-reduce. `init` knows how parameters
    are sharded, and also takes shapes with shardings, e.g. to restore a checkpoint. Inside `jax.jit` or
    `jax.eval_shape` it knows the sharding only on a mesh with explicit axes, and may choose another axis otherwise.

    A bfloat16 or one-byte number is too coarse for the small change of a slow average per step. Rounded to the nearest,
    the average would stand still; so it is rounded up or down with the probability that makes the mean exact. The noise
    depends on the seed, the step and the value, but not on how arrays are sharded.

    A block with a number above 2¹²⁶ (in a second moment, after a gradient of 1e19) becomes NaN as a whole.

    To `jax.grad`, what is kept is a constant: a derivative by a hyperparameter sees what that does in each step, and
    not what it has done to the moments before.

    Args:
        inner: The link whose moments are stored this way, or a chain, a group of links, or a whole optimizer.
        as_: `"bfloat16"`, `"float8"`, `"int8"` or `"int4"`.
        rounding: `"stochastic"` or `"nearest"`.
        min_size: Parameters with fewer elements keep float32 moments; at least 0.
        mask: Which parameters' moments are stored this way: a tree of booleans like the parameters, a prefix of one, or
            a function from the parameters to one, as for `add_l2_to_grad`; by default all.
        seed: The seed of the rounding noise, an integer from 0 to 2³² − 1.

    Returns:
        A link at `inner`'s place, or without a place if `inner` is a whole optimizer. Its state is
        `StoredState(count, inner)`; `Blocks` and `PositiveBlocks` in it have codes of the parameter's shape and a
        float32 scale for each block. (Arrays with fewer than two axes, or with no axis of at least 80 elements, can
        only be stored in bfloat16; with the other formats they stay float32.)

    Raises:
        ValueError: If `as_` or `rounding` is none of these, if `min_size` or `seed` is negative, or if `inner` is
            Adadelta or Rprop and `as_` is `"int4"`, whose noise their steps would add up; from `init`, if nothing
            inside is a moment: `@link(..., state=...)` declares what a link's state means.
        TypeError: If `inner` is not a transformation; for row-sparse gradients, because all rows would be rounded at
            every step.

    Differences:
        bitsandbytes' 8-bit and torchao's 4-bit optimizers flatten a parameter, look codes up in a table, and round to
        the nearest. Optax has `mu_dtype`, for the first moment. Complex and float64 moments stay unchanged.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from linkax import adamw, chain, stored
        >>> from linkax.transforms import scale_by_learning_rate, scale_by_momentum
        >>> tx = chain(stored(scale_by_momentum(0.9), "int8"), scale_by_learning_rate(0.1))
        >>> tx
        chain
        ├─ stored(as_='int8', min_size=4096, seed=0)       moment
        │  └─ scale_by_momentum(decay=0.9, dampening=0.0)  moment
        └─ scale_by_learning_rate(learning_rate=0.1)       step
        >>> state = tx.init({"w": jnp.ones((256, 128))})
        >>> state[0].inner.mu["w"].codes.dtype
        dtype('int8')
        >>> tx = adamw(1e-3, state="int8")  # the same for all moments of a named optimizer

    Source:
        Dettmers et al., "8-bit optimizers via block-wise quantization", 2022; Li, Chen and Zhu, "Memory efficient
        optimizers with 4-bit states", 2023.
    """
    min_size = whole_number("stored: min_size", min_size)
    seed = whole_number("stored: seed", seed, most=LARGEST_SEED)
    check_mask("stored", mask)
    links = links_of("stored: inner", inner)
    within = list(parts(links))
    if coded := [part.name for part in within if any(slot.view for slot in part.link.slots.values())]:
        raise ValueError(
            f"stored: inner must not hold another link that stores its state in another form, got {coded[0]}"
        )
    if as_ == "int4" and any(moment.is_fed_back for moment in _moments(*links)):
        raise ValueError(
            "stored: as_ must be 'bfloat16', 'float8' or 'int8' around Adadelta (scale_by_past_rms) and Rprop "
            "(scale_by_sign_agreement), whose steps would add up the noise of four bits, got 'int4'"
        )
    held = wide_inside(inner)

    def init(params: Any) -> StoredState:
        if not _moments(*links):
            raise ValueError(
                "stored: inner must hold a link that declares moments that may be rounded, as "
                f"@link(..., state={{...: Moment(...)}}) does, got {', '.join(part.name for part in within)}"
            )
        flags = [] if mask is None else leaves_with_path(selected("stored", mask, params, "be stored in fewer bits"))
        wanted = {words(path): flag for path, flag in flags}
        state = _first_kept(as_, inner, held.init(params), min_size, wanted)
        return StoredState(jnp.zeros((), jnp.int32), state)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, StoredState]:
        kept = _with_blocks(inner, state.inner)
        updates, new = held.update(updates, _opened(as_, kept), params, **extra_args)
        noise = seed_of(seed, state.count) if rounding == "stochastic" else None
        scales = _scales(inner, new, kept)
        return updates, StoredState(increment(state.count), _kept(as_, new, kept, noise, scales))

    return optax.GradientTransformationExtraArgs(init, update)


_T = TypeVar("_T", bound=optax.GradientTransformation)


def stored_moments(tx: _T, as_: Format | None) -> _T | Chain:
    """An optimizer with each link that has moments wrapped in `stored`; with `None`, the optimizer itself."""
    if as_ is None:
        return tx
    return chain(*(stored(one, as_) if _moments(one) else one for one in links_of("stored", tx)))


def _moments(*links: Link) -> list[Moment]:
    """The moments that may be rounded, of the links, those inside them, and those they are abbreviations for."""
    found = []
    for part in parts(links):
        found += filter(_is_rounded, part.link.fields.values())
        found += [] if part.link.definition is None else _moments(*part.link.definition.links)
    return found


def _is_rounded(field: Field) -> TypeGuard[Moment]:
    return isinstance(field, Moment) and not field.is_subtracted


def _first_kept(
    as_: Format, inner: optax.GradientTransformation, state: Any, min_size: int, wanted: dict[Any, bool]
) -> Any:
    """The initial state as it is stored; `wanted` says for which parameters, by the words of their paths."""

    def keep_leaf(blocks: Any, path: Any, leaf: Any) -> Any:
        if (
            not wanted.get(words(path), True)
            or leaf.size < min_size
            or leaf.dtype != jnp.float32
            or not fits(as_, leaf.shape)
        ):
            return leaf
        return _encoded(as_, leaf, blocks, None)

    return _map_rounded(keep_leaf, inner, state)


def _map_rounded(
    fn: Callable[[Any, Any, Any], Any],
    inner: optax.GradientTransformation,
    state: Any,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """The state with `fn(blocks, path, leaf)` for each leaf of a moment that may be rounded; `blocks` suit its sign."""

    def visit(site: Site, own: Any) -> Any:
        for path, field in site.link.fields.items():
            if _is_rounded(field):
                one = functools.partial(fn, Blocks if field.has_sign else PositiveBlocks)
                tree = jax.tree_util.tree_map_with_path(one, get_at(own, path), is_leaf=is_leaf)
                own = put_at(own, path, tree)
        return own

    return map_states(visit, "stored: inner", inner, state)


def _with_blocks(inner: optax.GradientTransformation, kept: Any) -> Any:
    """The state with `Blocks` again where Flax's `nnx.Optimizer` has made mappings of them.

    It does so after its first step with every named tuple inside of a variable, and only its fields' names remain.
    """
    if not any(map(_is_mapping, jax.tree.leaves(kept, is_leaf=_is_mapping))):
        return kept

    def name(blocks: Any, _path: Any, leaf: Any) -> Any:
        return blocks(leaf["codes"], leaf["scales"]) if _is_mapping(leaf) else leaf

    return _map_rounded(name, inner, kept, is_leaf=_is_mapping)


def _is_mapping(leaf: Any) -> bool:
    """Whether it is what is left of blocks, and not a tree of parameters of these names, whose moments are floats."""
    if not isinstance(leaf, Mapping) or set(leaf) != set(Blocks._fields):
        return False
    return getattr(leaf["codes"], "dtype", None) in _CODES


def _is_blocks(leaf: Any) -> bool:
    return isinstance(leaf, Blocks | PositiveBlocks)


def _opened(as_: Format, kept: Any) -> Any:
    """The state in float32."""

    def open_leaf(leaf: Any) -> Any:
        if _is_blocks(leaf):
            is_positive = isinstance(leaf, PositiveBlocks)
            if leaf.codes.dtype.name != _OF_FORMAT.get(as_, ("", ""))[is_positive]:
                raise ValueError(
                    f"stored: state must be kept as {as_!r}, which has no codes of {leaf.codes.dtype.name} in a "
                    f"{type(leaf).__name__}; linkax.migrate makes the state of one chain into that of another"
                )
            return decode(as_, Blocks(*leaf), positive=is_positive)
        return leaf.astype(jnp.float32) if _is_half(as_, leaf) else leaf

    def open_all(kept: Any) -> Any:
        return jax.tree.map(open_leaf, kept, is_leaf=_is_blocks)

    is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(kept))
    return jax.eval_shape(open_all, kept) if is_abstract else open_all(kept)


def _closed(as_: Format, state: Any, opened: Any, kept: Any) -> Any:
    """A changed state in the stored form; arrays that are the same objects as in `opened` keep their stored form."""

    def close_leaf(leaf: Any, was: Any, before: Any) -> Any:
        return before if leaf is was else _kept_leaf(as_, leaf, before, None)

    return jax.tree.map(close_leaf, state, opened, kept)


def _scales(inner: optax.GradientTransformation, state: Any, before: Any) -> dict[int, jax.Array]:
    """The blocks' scales of a new state, by the `id` of its array; those of one parameter are found together."""
    old, new = [], []
    _map_rounded(lambda _blocks, path, leaf: old.append((words(path), leaf)) or leaf, inner, before, _is_blocks)
    _map_rounded(lambda _blocks, _path, leaf: new.append(leaf) or leaf, inner, state)
    together: dict[Any, list[Any]] = {}
    for (path, was), leaf in zip(old, new):
        if _is_blocks(was):
            together.setdefault((path, axis_of(was)), []).append(leaf)
    return {
        id(leaf): scales
        for (_, axis), leaves in together.items()
        for leaf, scales in zip(leaves, block_scales(leaves, axis))
    }


def _kept(as_: Format, state: Any, before: Any, noise: jax.Array | None, scales: dict[int, jax.Array]) -> Any:
    """The state in the stored form of the one before; rounded to the nearest if there is no noise."""
    leaves, structure = jax.tree.flatten(state)
    seeds = [None if noise is None else seed_of(noise, index) for index in range(len(leaves))]
    kept = structure.flatten_up_to(before)
    return structure.unflatten(
        _kept_leaf(as_, leaf, was, seed, scales.get(id(leaf))) for leaf, was, seed in zip(leaves, kept, seeds)
    )


def _kept_leaf(as_: Format, leaf: Any, before: Any, seed: jax.Array | None, scales: jax.Array | None = None) -> Any:
    if _is_blocks(before):
        return _encoded(as_, leaf, type(before), seed, before, scales)
    return _encoded(as_, leaf, None, seed) if _is_half(as_, before) else leaf


def _encoded(
    as_: Format, leaf: Any, blocks: Any, seed: jax.Array | None, before: Any = None, scales: jax.Array | None = None
) -> Any:
    encoded = encode(
        as_,
        leaf,
        positive=blocks is PositiveBlocks,
        seed=seed,
        rounding="nearest" if seed is None else "stochastic",
        before=before,
        scales=scales,
    )
    return encoded if not isinstance(encoded, Blocks) else blocks(*encoded)


def _is_half(as_: Format, kept: Any) -> bool:
    return as_ == "bfloat16" and dtype_of(kept) == jnp.bfloat16
