"""Groups of parameters, each with an optimizer of its own."""

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
    """Gives each group of parameters an optimizer of its own.

    A parameter of group k is updated by the chain of k alone, which sees nothing of the others: a clipping by the
    global norm inside a group sees the group's norm, one in front, `chain(clip, param_groups(...))`, that of all.

    A group is frozen by `optax.set_to_zero()`: its parameters keep their values, and have no state. Layer-wise
    learning rates are `param_groups({f"layer_{i}": adamw(1e-3 * 0.9 ** (11 - i)) for i in range(12)}, labels)`.
    `migrate` carries the state over when a group is added or parameters change theirs.

    Args:
        groups: The chains (or links, or Optax transformations) by the groups' names.
        labels: Which group each parameter belongs to: a function from a parameter's path, such as
            `"params/Dense_0/kernel"`, and the parameter itself to the group's name; or a tree of names like the
            parameters, or like the upper part of their tree, where a name is for all that is below. Only its paths
            matter: a dictionary will do for a `FrozenDict`, an `nnx.State` or an Equinox module.
        state: How the moments of all groups are kept between the steps, as `stored` keeps them: `"bfloat16"`,
            `"float8"`, `"int8"` or `"int4"`; `None` for float32, or as the groups' own chains say.

    Returns:
        A chain of one link, whose state is `optax.partition`'s. The groups' links are reached through their names:
        `tx.swap("head.add_l2_to_grad", ...)`.

    Raises:
        TypeError: If `groups` is not a dictionary from names to transformations.
        ValueError: If there are no groups, or, when parameters are seen (`init` and `update`), if one of them has no
            group or a name stands for no parameter; all of these paths are listed.

    Differences:
        PyTorch: `Adam([{"params": ..., "lr": ...}, ...])`; groups have names instead of numbers here, and each may have
        another optimizer. `optax.partition` is the same; it does not print, and its labels are trees.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from linkax.chains import adamw, param_groups
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
                "can be called: labels(params)"
            ) from None
        except ValueError:  # nobody knows what it takes
            pass
    else:
        labels = jax.tree.map(lambda label: label, labels)  # a copy: what the caller does to his tree is not ours
    return chain(partition(dict(groups), labels))


@link(None, covers_rows=True, holds={"groups": ("inner_states", SLOT, "inner_state")}, labels="labels")
def partition(
    groups: Mapping[str, optax.GradientTransformation], labels: Callable[[str, Any], str] | Any
) -> optax.GradientTransformation:
    """The link that `param_groups` makes a chain of."""

    # A group's chain is a whole optimizer, which looks after its own precision; Optax's have to be told.
    transforms: dict[Hashable, optax.GradientTransformation] = {
        name: tx if isinstance(tx, Link | Chain) else wide_inside(tx) for name, tx in groups.items()
    }

    def partitioned(params: Any) -> optax.GradientTransformationExtraArgs:
        tree = label_tree(params, labels, groups)
        return optax.partition(transforms, lambda _: tree)  # a function: the tree may be one that can be called

    def init(params: Any) -> Any:
        return partitioned(params).init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        # The parameters are all there, where updates may lack some (`None`).
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
