"""Where `scale_by_plateau` stands, for PyTorch's ReduceLROnPlateau."""

from typing import Any

import jax.numpy as jnp
import optax

from linkax.transforms import Link

from ..algebra._structure import flatten, map_states, parts

_NUMBERS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


def export_plateau(tx: optax.GradientTransformation, state: Any) -> dict[str, Any]:
    """Returns what PyTorch's `ReduceLROnPlateau` continues with where a chain with `scale_by_plateau` stopped.

    Args:
        tx: The chain, in any wrappers, such as `from_torch` makes from an optimizer and a `ReduceLROnPlateau`.
        state: Its state.

    Returns:
        The keys of a `state_dict` that change: `best`, `num_bad_epochs`, `cooldown_counter`, `last_epoch` and
        `_last_lr`, the learning rates of the groups in the chain's order. `scheduler.load_state_dict` takes them, and
        keeps everything else. PyTorch keeps the rates in the optimizer: set each group's `lr` from `_last_lr`.

    Raises:
        ValueError: If the chain has no `scale_by_plateau`, one whose learning rate is live, or groups whose
            plateaus differ, for which PyTorch has only one scheduler; or if its state is that of another chain.

    Example:
        >>> import jax.numpy as jnp
        >>> from linkax import sgd
        >>> from linkax.chains.torch_interop import export_plateau
        >>> from linkax.transforms import scale_by_plateau
        >>> tx = sgd(0.5).swap("scale_by_learning_rate", scale_by_plateau(0.5))
        >>> _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=1.0)
        >>> _, state = tx.update(jnp.ones(2), state, value=0.75)
        >>> export_plateau(tx, state)
        {'best': 0.75, 'num_bad_epochs': 0, 'cooldown_counter': 0, 'last_epoch': 1, '_last_lr': [0.5]}

    Source:
        `torch.optim.lr_scheduler.ReduceLROnPlateau.load_state_dict`.
    """
    found: list[tuple[Link, Any]] = []

    def note(site: Any, own: Any) -> Any:
        if site.link.name == "scale_by_plateau":
            if site.is_live is True or (site.is_live and (site.link, "learning_rate") in site.is_live):
                raise ValueError(
                    "export_plateau: tx must not have a learning rate that is live, because what it has been set to is "
                    f"unknown here, got {site.link!r}"
                )
            found.append((site.link, own))
        return own

    if any(part.link.name == "scale_by_plateau" for part in parts(flatten("export_plateau: tx", tx))):
        map_states(note, "export_plateau: state", tx, state)
    if not found:
        raise ValueError("export_plateau: tx must have a scale_by_plateau, got a chain without one")
    every = [_numbers(link, own) for link, own in found]
    shared = [{key: one[key] for key in _NUMBERS} for one in every]
    if any(one != shared[0] for one in shared):
        raise ValueError(
            "export_plateau: state must have the same plateau in all groups, because PyTorch has one scheduler, got "
            f"{shared}"
        )
    return {**shared[0], "_last_lr": [one["lr"] for one in every]}


def _numbers(link: Link, state: Any) -> dict[str, Any]:
    """The state of one link, by PyTorch's names, and its learning rate."""
    rate: Any = link.hyperparams["learning_rate"]
    inner = state.inner if link.is_scheduled else state
    # The rate of the next step, if nothing is reduced before it.
    now: Any = rate(jnp.asarray(state.count)) if callable(rate) else rate
    return {
        "best": float(inner.best),
        "num_bad_epochs": int(inner.bad_epochs),
        "cooldown_counter": int(inner.cooldown),
        "last_epoch": int(inner.epochs),
        "lr": float(now) * float(inner.scale),
    }
