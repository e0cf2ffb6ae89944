"""A PyTorch optimizer as a chain."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from linkax.transforms._check import Rate

from ..algebra._chain import Chain
from ..optimizers._adadelta import adadelta
from ..optimizers._adafactor import adafactor
from ..optimizers._adagrad import adagrad
from ..optimizers._adam import adam
from ..optimizers._adamax import adamax
from ..optimizers._adamw import adamw
from ..optimizers._asgd import asgd
from ..optimizers._muon import muon
from ..optimizers._nadam import nadam
from ..optimizers._radam import radam
from ..optimizers._rmsprop import rmsprop
from ..optimizers._rprop import rprop
from ..optimizers._sgd import sgd
from ..optimizers._sparse_adam import sparse_adam
from ..running._param_groups import param_groups
from ._axes import default_factored_axes, default_output_axis, factored_axes, output_axis
from ._matching import checked_layouts
from ._rules import Layouts
from ._scheduled import plans
from ._scheduled import report as scheduler_report


def _asgd_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """ASGD's arguments with our names: PyTorch's `lambd` is a weight decay and, times the rate, the decay of that."""
    lambd = given.pop("lambd", 1e-4)
    if isinstance(given.get("t0"), float) and given["t0"] % 1:
        raise ValueError(f"from_torch: t0 must be a whole number of steps, got {given['t0']}")
    if "t0" in given:  # PyTorch's first average is that of the parameters after step t0 + 2
        given["start"] = given.pop("t0") + 1
    renamed = {"alpha": "power"}
    return {renamed.get(key, key): value for key, value in given.items()} | {
        "lr_decay": lambd * given.get("lr", 1e-2),
        "weight_decay": given.get("weight_decay", 0) + lambd,
    }


def _asgd_rate(steps: int, lr: float = 1e-2, lambd: float = 1e-4, alpha: float = 0.75, **_: Any) -> float:
    return lr / (1 + lambd * lr * steps) ** alpha


def _asgd_share(steps: int, t0: float = 1e6, **_: Any) -> float:
    return 1 / max(1, steps - t0)


def _adafactor_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Adafactor's arguments with our names: PyTorch's `beta2_decay` is the exponent itself."""
    renamed = {"d": "threshold", "beta2_decay": "power"}
    if "beta2_decay" in given:
        given = {**given, "beta2_decay": -given["beta2_decay"]}
    return {renamed.get(key, key): value for key, value in given.items()}


def _muon_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Muon's arguments; PyTorch's default rule is `None` there."""
    return {**given, "adjust_lr_fn": given.get("adjust_lr_fn") or "original"}


def _muon_axes(layouts: Layouts) -> dict[str, Any]:
    return {"output_axis": functools.partial(output_axis, layouts) if layouts else default_output_axis}


def _adafactor_axes(layouts: Layouts) -> dict[str, Any]:
    return {"axes": functools.partial(factored_axes, layouts) if layouts else default_factored_axes}


Shape = tuple[int, ...]


class _Kind(NamedTuple):
    """A named optimizer, and what PyTorch's optimizer has."""

    factory: Callable[..., Chain]
    arguments: str
    marks: str  # the arguments that together identify the optimizer
    keeps: str  # what its state may contain for each parameter
    is_early: bool = False  # whether its state exists before the first step
    convert: Callable[[dict[str, Any]], dict[str, Any]] = lambda given: given  # from PyTorch's arguments
    follows: Mapping[str, Callable[..., float]] = MappingProxyType({})  # what its state has that depends on the steps
    axes: Callable[[Layouts], dict[str, Any]] = lambda layouts: {}  # arguments that depend on how arrays are laid out
    takes: tuple[int, ...] = (1,)  # numbers of axes that between them show all that its state may contain
    shapes: Mapping[str, Callable[[Shape], Shape | None]] = MappingProxyType({})  # of the state, if not the parameter's
    has_whole_step: bool = False  # whether its step is a Python integer and no tensor


_COMMON = "lr weight_decay maximize "
_SWITCHES = "maximize foreach differentiable capturable"
"""What the groups of PyTorch's newer optimizers have, and other libraries' with the same hyperparameters have not."""
_ADAMS = "betas eps amsgrad", "betas amsgrad", "step exp_avg exp_avg_sq max_exp_avg_sq"
_KINDS: dict[str, _Kind] = {
    "SGD": _Kind(sgd, _COMMON + "momentum dampening nesterov", "dampening nesterov", "momentum_buffer"),
    "Adagrad": _Kind(
        adagrad, _COMMON + "lr_decay initial_accumulator_value eps", "lr_decay", "step sum", is_early=True
    ),
    "RMSprop": _Kind(
        rmsprop,
        _COMMON + "alpha eps momentum centered",
        "alpha centered",
        "step square_avg grad_avg momentum_buffer",
    ),
    "Adadelta": _Kind(adadelta, _COMMON + "rho eps", "rho", "step square_avg acc_delta"),
    "Adam": _Kind(adam, _COMMON + _ADAMS[0], *_ADAMS[1:]),
    "AdamW": _Kind(adamw, _COMMON + _ADAMS[0], *_ADAMS[1:]),
    "NAdam": _Kind(
        nadam,
        _COMMON + "betas eps momentum_decay decoupled_weight_decay",
        "momentum_decay",
        "step mu_product exp_avg exp_avg_sq",
    ),
    "RAdam": _Kind(
        radam,
        _COMMON + "betas eps decoupled_weight_decay",
        "betas eps decoupled_weight_decay " + _SWITCHES,
        "step exp_avg exp_avg_sq",
    ),
    "Adamax": _Kind(adamax, _COMMON + "betas eps", "betas eps " + _SWITCHES, "step exp_avg exp_inf"),
    "ASGD": _Kind(
        asgd,
        _COMMON + "lambd alpha t0",
        "lambd",
        "step eta mu ax",
        convert=_asgd_arguments,
        follows={"eta": _asgd_rate, "mu": _asgd_share},
    ),
    "Rprop": _Kind(rprop, "lr maximize etas step_sizes", "etas", "step prev step_size"),
    "Adafactor": _Kind(
        adafactor,
        _COMMON + "beta2_decay eps d",
        "beta2_decay",
        "step row_var col_var variance",
        convert=_adafactor_arguments,
        axes=_adafactor_axes,
        takes=(1, 2),
        shapes={
            "row_var": lambda shape: (*shape[:-1], 1) if len(shape) > 1 else None,
            "col_var": lambda shape: (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else None,
            "variance": lambda shape: None if len(shape) > 1 else shape,
        },
    ),
    "Muon": _Kind(
        muon,
        "lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn",
        "ns_coefficients",
        "momentum_buffer",
        convert=_muon_arguments,
        axes=_muon_axes,
        takes=(2,),
    ),
    "SparseAdam": _Kind(
        sparse_adam, "lr betas eps maximize", "betas eps maximize", "step exp_avg exp_avg_sq", has_whole_step=True
    ),
}
_REFUSED = {
    "LBFGS": "evaluates the loss several times in each step, which no gradient transformation does, and searches along "
    "lines in another way than optax.lbfgs, so that its run cannot be continued; train on with optax.lbfgs, from its "
    "start, or with any other optimizer",
}
"""PyTorch's optimizers for which there is no chain, and why."""
_RENAMED = {"alpha": "decay"}
PAIRS = {
    "betas": ("b1", "b2"),
    "etas": ("shrink", "grow"),
    "step_sizes": ("smallest", "largest"),
    "eps": ("eps1", "eps2"),  # Adafactor's; the others have one number of this name
}
"""PyTorch's hyperparameters that are two numbers, and our factories' names for these."""
_IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
_BOOKKEEPING = {"params", "param_names", "name"}
_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}


def from_torch(
    optimizer: Any,
    labels: Any = None,
    *,
    learning_rate: Rate | Sequence[Rate] | None = None,
    layouts: Layouts | None = None,
    schedulers: Any = None,
    steps_per_epoch: int | Sequence[int] = 1,
    offset: int | None = None,
    total_steps: int | None = None,
    lambdas: Callable[[int], Any] | Sequence[Callable[[int], Any]] | None = None,
    milestones: Sequence[int] | None = None,
    report: Callable[[str], Any] | None = print,
) -> Chain:
    """Builds the chain that is equivalent to a PyTorch optimizer.

    Args:
        optimizer: A `torch.optim` optimizer, or a pair of its class's name and its hyperparameters: a dictionary, or
            the `param_groups` of a `state_dict`. SGD, Adagrad, RMSprop, Adadelta, Adam, AdamW, NAdam, RAdam, Adamax,
            Rprop, ASGD, Adafactor, Muon and SparseAdam are supported with all their arguments; missing ones have
            PyTorch's defaults. Implementation options (`foreach`, `fused`, `capturable`, `differentiable`) are ignored.
        labels: If there are several groups, which of them each parameter belongs to, as for `param_groups`; the groups
            are called `"0"`, `"1"`, and so on. `torch_labels` creates the labels from PyTorch's names.
        learning_rate: A learning rate to use instead of `lr`, a number or a schedule, or one for each group.
        layouts: As for `import_state`. Only Muon and Adafactor depend on them, whose steps treat axes differently.
        schedulers: The schedulers that act on the optimizer, which are not part of it: one, or a list of those that
            step one after another, live or as pairs, as `schedule_from_torch` takes them. Their learning rates, and the
            momenta and first betas that they cycle, become schedules in the chain, from the groups' present values on.
            `ReduceLROnPlateau`, alone or last in the list, becomes `scale_by_plateau` with the scheduler's present
            state; the metric is then given to every update: `tx.update(grads, state, params, value=loss)`.
        steps_per_epoch: As for `schedule_from_torch`; if there are several schedulers, `ReduceLROnPlateau` may have
            another one: `[1, 500]`.
        offset: As for `schedule_from_torch`.
        total_steps: As for `schedule_from_torch`.
        lambdas: As for `schedule_from_torch`.
        milestones: As for `schedule_from_torch`.
        report: What takes the text that says what was understood of the schedulers; `None` for nobody.

    Returns:
        A chain; for several groups, one made by `param_groups`.

    Raises:
        ValueError: If the optimizer or a hyperparameter is unknown or outside its range, if a scheduler has left its
            arguments in a group and neither `schedulers` nor `learning_rate` is given, if a scheduler is broken or
            cannot be in a chain, or if there are several groups and no `labels`.
        TypeError: If `optimizer` is neither an optimizer nor such a pair.

    Example:
        >>> from linkax import adamw
        >>> from linkax.chains.torch_interop import from_torch
        >>> from_torch(("AdamW", {"lr": 3e-4, "betas": (0.9, 0.95), "fused": True})) == adamw(3e-4, b2=0.95)
        True
        >>> halving = {"gamma": 0.5, "base_lrs": [0.1], "last_epoch": 0}
        >>> tx = from_torch(("SGD", {"lr": 0.1, "initial_lr": 0.1}), schedulers=("ExponentialLR", halving))
        from_torch: SGD, 1 group
        group 0
          lr        0.1 now, ExponentialLR(epoch=0, base=0.1, gamma=0.5)
          clock     0 steps taken, one for every step of the optimizer, which has taken 0

    Source:
        `torch.optim`, PyTorch 2.13.
    """
    name, groups = _spec(optimizer)
    if name not in _KINDS:
        why = f", which {_REFUSED[name]}" if name in _REFUSED else ""
        raise ValueError(f"from_torch: optimizer must be one of {', '.join(_KINDS)}, got {name}{why}")
    problems: list[str] = []
    layouts = checked_layouts(layouts, problems)
    if problems:
        raise ValueError(f"from_torch: {'; '.join(problems)}")
    if schedulers is not None:
        if learning_rate is not None:
            raise ValueError("from_torch: learning_rate must not be given with schedulers, which set it")
        clock = steps_per_epoch, offset, total_steps, lambdas, milestones
        every = plans(name, groups, hasattr(optimizer, "param_groups"), schedulers, *clock)
        if report is not None:
            report(scheduler_report(name, groups, every))
        chains = [
            plan.applied(_chain(name, plan.arguments(one), plan.rate, layouts)) for one, plan in zip(groups, every)
        ]
        return _grouped(chains, labels)
    rates = list(learning_rate) if isinstance(learning_rate, Sequence) else [learning_rate] * len(groups)
    if len(rates) != len(groups):
        raise ValueError(f"from_torch: learning_rate must be one or {len(groups)}, for the groups, got {len(rates)}")
    return _grouped([_chain(name, group, rate, layouts) for group, rate in zip(groups, rates)], labels)


def _grouped(chains: list[Chain], labels: Any) -> Chain:
    """The chain of all groups."""
    if labels is not None:
        return param_groups({str(index): tx for index, tx in enumerate(chains)}, labels)
    if len(chains) > 1:
        raise ValueError(
            f"from_torch: labels must say which of the {len(chains)} groups each parameter belongs to, got None; "
            "torch_labels creates them"
        )
    return chains[0]


def _spec(optimizer: Any) -> tuple[str, list[Mapping[str, Any]]]:
    if hasattr(optimizer, "param_groups"):
        return type(optimizer).__name__, optimizer.param_groups
    if isinstance(optimizer, tuple) and len(optimizer) == 2 and isinstance(optimizer[0], str):
        name, given = optimizer
        groups = [given] if isinstance(given, Mapping) else given
        if isinstance(groups, Sequence) and groups and all(isinstance(group, Mapping) for group in groups):
            return name, list(groups)
    raise TypeError(
        "from_torch: optimizer must be a torch.optim optimizer or a pair such as ('AdamW', {'lr': 1e-3}), "
        f"got {optimizer!r}"
    )


def _chain(name: str, group: Mapping[str, Any], learning_rate: Rate | None, layouts: Layouts) -> Chain:
    """The chain of one group."""
    if name in ("Adam", "AdamW"):  # PyTorch's AdamW is an Adam with this set
        name = "AdamW" if group.get("decoupled_weight_decay", name == "AdamW") else "Adam"
    kind = _KINDS[name]
    known = {*kind.arguments.split(), *_IMPLEMENTATION, *_BOOKKEEPING}
    if name in ("Adam", "AdamW"):
        known.add("decoupled_weight_decay")
    if learning_rate is not None:
        known |= _SCHEDULERS
    if left := sorted(_SCHEDULERS & group.keys() - known):
        raise ValueError(
            f"from_torch: {', '.join(left)} is what a learning-rate scheduler leaves behind; pass the scheduler as "
            f"schedulers, or a schedule, or the current lr ({group.get('lr')}), as learning_rate"
        )
    if unknown := sorted(group.keys() - known):
        raise ValueError(
            f"from_torch: hyperparameters of {name} must be of {', '.join(sorted(known))}, got {', '.join(unknown)}"
        )
    arguments = kind.convert({key: _plain(group[key]) for key in kind.arguments.split() if key in group})
    own = inspect.signature(kind.factory).parameters
    for key in PAIRS.keys() & arguments.keys():
        if PAIRS[key][0] not in own:  # a single number
            continue
        pair = arguments.pop(key)
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"from_torch: {key} must be two numbers, got {pair!r}")
        arguments |= zip(PAIRS[key], pair)
    rate = arguments.pop("lr", None)
    plain = {argument_name(key): _plain(value) for key, value in arguments.items()}
    if learning_rate is not None or rate is not None:
        plain["learning_rate"] = _plain(rate) if learning_rate is None else learning_rate
    if name == "Adafactor" and plain.get("eps1") is None and (spacing := _low_spacing(group)) is not None:
        plain["eps1"] = spacing
    return kind.factory(**plain, **kind.axes(layouts))


def _low_spacing(group: Mapping[str, Any]) -> float | None:
    """The ε1 of PyTorch's Adafactor by default, if its parameters, which must be at hand, are narrower than float32."""
    first = next(iter(group.get("params", ())), None)
    return {"torch.bfloat16": 2.0**-7, "torch.float16": 2.0**-10}.get(str(getattr(first, "dtype", "")))


def argument_name(key: str) -> str:
    """Our factories' name for a hyperparameter of PyTorch's."""
    return _RENAMED.get(key, key)


def _plain(value: Any) -> Any:
    """A number as a Python number; PyTorch takes tensors too."""
    return value.item() if hasattr(value, "item") else value


def class_of(group: Mapping[str, Any]) -> str | None:
    """The optimizer that a group's hyperparameters belong to, identified by their names: PyTorch stores all of them.

    Hyperparameters that no optimizer here has, such as a library's `lr_scale`, count as bookkeeping.
    """
    of_any = {key for kind in _KINDS.values() for key in kind.arguments.split()}
    for name, kind in _KINDS.items():
        of_others = of_any - set(kind.arguments.split()) - {"decoupled_weight_decay"}
        if set(kind.marks.split()) <= group.keys() and not of_others & group.keys():
            return "AdamW" if name == "Adam" and group.get("decoupled_weight_decay") is True else name
    return None


def known_hyperparams(name: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group that affect the optimizer of that name."""
    known = {*_KINDS[name].arguments.split(), "decoupled_weight_decay"}
    if name not in ("Adam", "AdamW", "NAdam", "RAdam"):
        known.remove("decoupled_weight_decay")
    return {key: _plain(value) for key, value in group.items() if key in known}


def is_known(name: str) -> bool:
    """Whether there is an optimizer of that name."""
    return name in _KINDS


def kept_keys(name: str) -> list[str]:
    """What PyTorch's optimizer of that name may store for each parameter."""
    return _KINDS[name].keeps.split()


def dummy_shapes(name: str) -> list[Shape]:
    """Shapes of parameters that between them have everything that PyTorch's optimizer may store."""
    return [(1,) * ndim for ndim in _KINDS[name].takes]


def kept_shape(name: str, key: str, shape: Shape) -> Shape | None:
    """The shape of what PyTorch's optimizer stores under a key for a parameter of a shape; `None` if it stores none."""
    of = _KINDS[name].shapes.get(key)
    return shape if of is None else of(shape)


def has_whole_step(name: str) -> bool:
    """Whether PyTorch's optimizer of that name stores its step as a Python integer."""
    return _KINDS[name].has_whole_step


def numbers_after(name: str, steps: int, hyperparams: Mapping[str, Any]) -> dict[str, float]:
    """What PyTorch's optimizer of that name stores for each parameter that follows from the steps it has taken."""
    return {key: follow(steps, **hyperparams) for key, follow in _KINDS[name].follows.items()}


def is_early(name: str) -> bool:
    """Whether PyTorch's optimizer of that name creates its state before the first step."""
    return _KINDS[name].is_early
