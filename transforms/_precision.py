"""Running a transformation in at least float32, whatever the dtype of the parameters."""

import jax
import optax

from ._leaves import like, map_updates, wide


def at_least_float32(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Gives `inner` parameters and updates in their accumulators' dtype, and returns its updates in the original one.

    What passes between the links inside is then rounded once, at the end: the square of a float16 gradient of 1e-4
    would be 0 on its way from one link to the next.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return inner.init(jax.tree.map(wide, params))

    def update(updates, state, params=None, **extra_args):
        out, state = inner.update(map_updates(wide, updates), state, jax.tree.map(wide, params), **extra_args)
        return map_updates(lambda u, o: like(o, u), updates, out), state

    return optax.GradientTransformationExtraArgs(init, update)
