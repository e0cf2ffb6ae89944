"""Groups of parameters, each with its own optimizer."""

import inspect
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

import jax
import optax

from linkax.transforms import SLOT, Link, link
from linkax.transforms._check import checked
from linkax.transforms._describe import describe
from linkax.transforms._formats import Format
from linkax.transforms._precision import wide_inside
from linkax.transforms._trees import Said, is_function, said_of

from ..algebra._chain import Chain, chain
from ..algebra._paths import labels_by_path, path_text
from ._stored import stored_moments


@checked
def param_groups(
    groups: Mapping[str, optax.GradientTransformation],
    labels: Callable[[str, Any], str] | Any,
    *,
    state: Format | None = None,
) -> Chain:
    """Gives each group of parameters its own optimizer.

    A parameter of group k is updated by the chain of k alone, which does not see the others. Clipping by the global
    norm inside a group uses the group's norm; before the groups, `chain(clip, param_groups(...))`, the norm of all.

    `optax.set_to_zero()` freezes a group: its parameters keep their values and have no state. Layer-wise learning rates
    are `param_groups({f"layer_{i}": adamw(1e-3 * 0.9 ** (11 - i)) for i in range(12)}, labels)`. `migrate` carries the
    state over when a group is added or parameters move to another group.

    Args:
        groups: The chains (or links, or Optax transformations) by group name.
        labels: Which group each parameter belongs to: a function from a parameter's path, such as
            `"params/Dense_0/kernel"`, and the parameter itself to the group's name; or a tree of names like the
            parameters, or like the upper part of their tree, where a name applies to everything below it. Only its
            paths matter: a dictionary also works for a `FrozenDict`, an `nnx.State` or an Equinox module.
        state: The format in which the moments of all groups are stored between steps: `"bfloat16"`, `"float8"`,
            `"int8"` or `"int4"`, see `stored`; `None` for float32, or as set in the groups' own chains.

    Returns:
        A chain of one link, whose state is `optax.partition`'s. The groups' links are reached through the group names:
        `tx.swap("head.add_l2_to_grad", ...)`.

    Raises:
        TypeError: If `groups` is not a dictionary from names to transformations.
        ValueError: If there are no groups; from `init` and `update`, if a parameter has no group or a name in the tree
            of labels belongs to no parameter. All of these paths are listed.

    Differences:
        PyTorch: `Adam([{"params": ..., "lr": ...}, ...])`; groups have names instead of indices here, and each may have
        a different optimizer. `optax.partition` does the same, but does not print, and its labels are trees.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from linkax import adamw, param_groups
        >>> tx = param_groups(
        ...     {"frozen": optax.set_to_zero(), "head": adamw(1e-3)},
        ...     lambda path, w: "head" if path.startswith("head") else "frozen",
        ... )
        >>> tx
        chain
        └─ partition(labels=<lambda>)
           ├─ frozen
           │  └─ set_to_zero()
           └─ head
              ├─ moment_ratio(eps=1e-08)                            moment
              │  ├─ first
              │  │  ├─ scale_by_momentum(decay=0.9, dampening=0.9)  moment
              │  │  └─ bias_correction(decay=0.9)                   moment
              │  └─ second
              │     ├─ mean_square(decay=0.999)                     moment
              │     └─ bias_correction(decay=0.999)                 moment
              ├─ decoupled_weight_decay(weight_decay=0.01)          step
              └─ scale_by_learning_rate(learning_rate=0.001)        step
        >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> print(updates["body"], updates["head"])
        [0. 0.] [-0.00101 -0.00101]

    Source:
        `torch.optim.Optimizer.add_param_group`, `optax.partition`.
    """
    if not isinstance(groups, Mapping):
        raise TypeError(f"param_groups: groups must be a dictionary from names to chains, got {groups!r}")
    if not groups:
        raise ValueError(f"param_groups: groups must have at least one group, got {groups!r}")
    groups = {
        name: tx.gradient_transformation() if isinstance(tx, optax.MultiSteps) else tx for name, tx in groups.items()
    }
    for name, tx in groups.items():
        if not isinstance(name, str) or not isinstance(tx, optax.GradientTransformation):
            raise TypeError(f"param_groups: groups must be a dictionary from names to chains, got {name!r}: {tx!r}")
    groups = {name: stored_moments(tx, state) for name, tx in groups.items()}
    if is_function(labels):
        try:
            inspect.signature(labels).bind("path", None)
        except TypeError:
            raise TypeError(
                "param_groups: labels must be a function of two arguments, a parameter's path and the parameter, or a "
                f"tree, got {describe(labels)}; a function from all parameters to a tree, as optax.partition takes it, "
                "must be called: labels(params)"
            ) from None
        except ValueError:  # its signature is unknown
            pass
    else:
        labels = jax.tree.map(lambda label: label, labels)  # a copy, in case the caller changes the tree
    return chain(partition(dict(groups), labels))


@link(None, covers_rows=True, holds={"groups": ("inner_states", SLOT, "inner_state")}, labels="labels")
def partition(
    groups: Mapping[str, optax.GradientTransformation], labels: Callable[[str, Any], str] | Any
) -> optax.GradientTransformation:
    """The link in the chain that `param_groups` returns."""

    # A group's chain is a whole optimizer that handles its own precision; Optax's transformations need a wrapper.
    transforms: dict[Hashable, optax.GradientTransformation] = {
        name: tx if isinstance(tx, Link | Chain) else wide_inside(tx) for name, tx in groups.items()
    }

    def partitioned(params: Any) -> optax.GradientTransformationExtraArgs:
        tree = label_tree(params, labels, groups)
        return optax.partition(transforms, lambda _: tree)  # a function, because the tree itself may be callable

    def init(params: Any) -> Any:
        return partitioned(params).init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        # The parameters are complete, whereas updates may lack some (`None`).
        return partitioned(updates if params is None else params).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def label_tree(params: Any, labels: Callable[[str, Any], str] | Any, names: Collection[str]) -> Any:
    """The group of every parameter, as a tree like the parameters."""
    said = Said(labels_by_path(params, labels), [], []) if is_function(labels) else said_of(params, labels)
    wrong = [
        f"{path_text(path) or 'the parameter'} ({label!r})"
        for path, label in said.values.items()
        if not isinstance(label, str) or label not in names
    ]
    if wrong or said.strangers:
        nowhere = f"; no parameter is at or below {', '.join(said.strangers)}" if said.strangers else ""
        raise ValueError(
            f"param_groups: labels must give every parameter one of the groups {', '.join(names)}, got another one for "
            f"{', '.join(wrong) or 'no parameter'}{nowhere}"
        )
    return said.like(params)
