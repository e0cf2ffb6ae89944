"""Running a transformation in at least float32, whatever the dtype of the parameters."""

from typing import Any

import jax
import optax

from ._leaves import dtype_of, like, map_updates, widened
from ._link import Link, links_of


def at_least_float32(
    inner: optax.GradientTransformation, definition: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Gives `inner` updates in their accumulators' dtype, and returns its updates in the original one.

    `definition` holds the links that a link is an abbreviation for.

    So the updates are rounded only once, at the end, and not between the links inside: the square of a float16 gradient
    of 1e-4 would become 0 on its way from one link to the next.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, **extra_args):
        out, state = inner.update(widened(updates), state, params, **extra_args)
        return map_updates(lambda u, o: like(o, u), updates, out), state

    vars(update)["_linkax_definition"] = definition
    return optax.GradientTransformationExtraArgs(inner.init, update)


def wide_inside(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A transformation as used inside a chain or a link, where everything has been checked and is at least float32.

    For our links and chains this is the transformation without the rounding at its end.

    Optax's transformations initialise their state in the parameters' dtype and update it in the updates' dtype. Where
    the two differ, the state would change its dtype at the first step. So they get wide parameters, too.
    """
    if isinstance(inside := getattr(tx, "_inside", None), optax.GradientTransformationExtraArgs):
        return inside
    tx = optax.with_extra_args_support(tx)
    links = links_of("linkax", tx)
    if any(link.is_final for link in links):  # what is inside handles its own precision, and has to see the parameters
        return tx
    follows = any(map(_follows_dtypes, links))
    if not follows and not any(link.is_foreign and link.slots for link in links):
        return tx
    inner = at_least_float32(tx)

    def init(params):
        return tx.init(widened(params) if follows else params)

    def update(updates, state, params=None, **extra_args):
        is_wide = all(
            dtype_of(new) == dtype_of(old) for new, old in zip(*map(jax.tree.leaves, (widened(updates), updates)))
        )
        # (Wide updates need no rounding back; optax.lookahead's do not even have the structure of the gradients' tree.)
        return (tx if is_wide else inner).update(updates, state, widened(params), **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def _follows_dtypes(link: Link) -> bool:
    """Whether a link may keep its state in the dtype of its inputs: Optax's do, if they have state."""
    if not link.is_foreign:
        return False
    return any(map(_follows_dtypes, link.held)) if link.held else link.init is not optax.init_empty_state
