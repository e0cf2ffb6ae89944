"""`migrate` for Flax NNX, whose optimizers keep their state in NNX variables."""

from typing import Any

import optax
from flax import nnx

from ._migrate import Migration, migrate


def migrate_nnx(
    optimizer: nnx.Optimizer,
    new_tx: optax.GradientTransformation,
    model: Any,
    *,
    steps: int | None = None,
    keep_live: bool = False,
    restart: bool = False,
) -> Migration:
    """Changes the transformation of an `nnx.Optimizer`, and keeps everything in its state that survives the change.

    It is `migrate` from `optimizer.tx` to `new_tx`; afterwards `optimizer.tx` and `optimizer.opt_state` are the new
    ones, in NNX variables. `optimizer.step` stays. A step compiled with `nnx.jit` is recompiled.

    Args:
        optimizer: The optimizer. Changed in place, unless an error is raised.
        new_tx: The transformation to continue with.
        model: The model that it trains, in its current state.
        steps: As for `migrate`.
        keep_live: As for `migrate`.
        restart: As for `migrate`.

    Returns:
        The report of `migrate`, whose `state` has plain arrays.

    Raises:
        ValueError: As `migrate`.
        TypeError: If `optimizer` is not an `nnx.Optimizer`, or `new_tx` not a transformation.

    Example:
        >>> from flax import nnx
        >>> from linkax import adam, migrate_nnx
        >>> model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, adam(1e-3), wrt=nnx.Param)
        >>> migrate_nnx(optimizer, adam(1e-3, amsgrad=True), model).created
        ['second.running_max.nu_max bias', 'second.running_max.nu_max kernel']

    Source:
        `flax.nnx.Optimizer`.
    """
    if not isinstance(optimizer, nnx.Optimizer):
        raise TypeError(f"migrate_nnx: optimizer must be an nnx.Optimizer, got {optimizer!r}")
    params = nnx.state(model, optimizer.wrt)
    migration = migrate(
        optimizer.tx, optimizer.opt_state, new_tx, params, steps=steps, keep_live=keep_live, restart=restart
    )
    new_tx = optax.with_extra_args_support(new_tx)

    def state(params: Any) -> Any:
        del params
        return migration.state

    start = optax.GradientTransformationExtraArgs(state, new_tx.update)
    wrapped = nnx.Optimizer(model, start, wrt=optimizer.wrt)
    optimizer.tx, optimizer.opt_state = new_tx, wrapped.opt_state
    return migration
