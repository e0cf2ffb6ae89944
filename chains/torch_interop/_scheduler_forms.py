"""PyTorch's schedulers as formulas: what n more of their steps make of a group's present learning rate.

Most schedulers of PyTorch are recursions: each step changes the rate that it finds, whoever has set it. So every form
here starts from the present rate and the scheduler's present counters. `after` is written for NumPy and for JAX alike:
NumPy computes in float64, JAX with step counts that are traced.
"""

import dataclasses
import functools
import math
from bisect import bisect_right
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np

from linkax.transforms._describe import describe
from linkax.transforms._identity import identity_of

_RESTARTS = 64  # of a cosine, whose rounding in PyTorch is reproduced
_LAST_STEP = 2**31


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Form:
    """One of PyTorch's schedulers, for one group and one of its numbers, at a moment of its run.

    Attributes:
        kind: What its steps do with the present value: they scale it, or set it whatever it is, or mix it with others.
    """

    kind: ClassVar[Literal["scales", "sets", "mixes"]] = "sets"

    def after(self, n: Any, now: float, xp: ModuleType) -> Any:
        """The value after n ≥ 0 more steps, from the present value; n is an integer or an array of integers."""
        return xp.where(n == 0, now, self.value(n, xp))

    def value(self, n: Any, xp: ModuleType) -> Any:
        """Of a form that sets the value: what it sets after n more steps; n may be 0."""
        raise NotImplementedError

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """Of a form that scales the value: the factor from the m-th of its next steps to the n-th."""
        raise NotImplementedError

    def step(self, now: float) -> tuple["Form", float]:
        """The form and the value after one step, in float64."""
        return dataclasses.replace(self, epoch=self.epoch + 1), float(self.after(1, now, np))  # type: ignore[attr-defined]

    def restarted(self, now: float) -> tuple["Form", float]:
        """The form and the value where `SequentialLR` sets the scheduler back to epoch 0."""
        form = dataclasses.replace(self, epoch=0)  # type: ignore[call-arg]
        return form, float(form.value(0, np))

    @property
    def is_closed(self) -> bool:
        """Whether `after` takes traced numbers of steps."""
        return True

    def __repr__(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return f"{type(self).__name__}({', '.join(f'{name}={_text(value)}' for name, value in fields.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Form) and identity_of(self) == identity_of(other)

    def __hash__(self) -> int:
        return hash(identity_of(self))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value) if isinstance(value, Form | str) else describe(value)


def _power(base: float, count: Any, xp: ModuleType) -> Any:
    """base^count; the logarithm is in float64, because in float32 0.999999^1000000 would be wrong by 3 %."""
    count = xp.asarray(count, float)
    log = math.log(base) if base > 0 else -math.inf
    return xp.where(count == 0, 1.0, xp.exp(xp.where(count == 0, 1.0, count) * log))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scaling(Form):
    """A scheduler whose steps multiply the value by factors that do not depend on it."""

    kind = "scales"

    def after(self, n: Any, now: float, xp: ModuleType) -> Any:
        """The value times the factors of n steps."""
        return now * self.ratio(0, n, xp)

    def restarted(self, now: float) -> tuple[Form, float]:
        """At epoch 0 the closed form counts, whatever the present value is."""
        return dataclasses.replace(self, epoch=0), self.at_zero()  # type: ignore[call-arg]

    def at_zero(self) -> float:
        """The closed form at epoch 0."""
        return self.base  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Unchanged(Scaling):
    """A scheduler that leaves this number alone, such as a momentum that it does not cycle."""

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """1."""
        return xp.ones_like(xp.asarray(n, float))

    def step(self, now: float) -> tuple[Form, float]:
        """Nothing happens."""
        return self, now

    def restarted(self, now: float) -> tuple[Form, float]:
        """Nothing happens."""
        return self, now


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StepLR(Scaling):
    """γ at every multiple of `step_size`."""

    epoch: int
    base: float
    step_size: float
    gamma: float

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """γ to the number of multiples."""
        return _power(self.gamma, (self.epoch + n) // self.step_size - (self.epoch + m) // self.step_size, xp)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MultiStepLR(Scaling):
    """γ at every milestone; one that is listed twice counts twice."""

    epoch: int
    base: float
    milestones: tuple[int, ...]
    gamma: float

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """γ to the number of milestones."""
        return _power(self.gamma, self._passed(self.epoch + n, xp) - self._passed(self.epoch + m, xp), xp)

    def _passed(self, epoch: Any, xp: ModuleType) -> Any:
        return xp.searchsorted(xp.asarray(self.milestones, int), xp.asarray(epoch, int), side="right")

    def at_zero(self) -> float:
        """Milestones at 0 count."""
        return self.base * self.gamma ** bisect_right(self.milestones, 0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ConstantLR(Scaling):
    """`factor` until `total_iters`, where a division by it undoes it."""

    epoch: int
    base: float
    factor: float
    total_iters: float

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """1 / factor from one side of `total_iters` to the other."""
        end = self.total_iters if self.total_iters == int(self.total_iters) else _LAST_STEP
        undone = 1 / self.factor if self.factor else math.nan  # PyTorch's ZeroDivisionError
        return xp.where((self.epoch + m < end) & (self.epoch + n >= end), undone, 1.0)

    def at_zero(self) -> float:
        """The base times the factor, unless it has ended."""
        return self.base * (self.factor if self.total_iters > 0 else 1.0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LinearLR(Scaling):
    """From `start_factor` to `end_factor` in `total_iters` steps, in which PyTorch's factors telescope."""

    epoch: int
    base: float
    start_factor: float
    end_factor: float
    total_iters: float

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """The quotient of two points on the line, up to its end."""
        old, new = self._line(self.epoch + m, xp), self._line(self.epoch + n, xp)
        has_ended = self.epoch + m >= math.floor(self.total_iters)
        return xp.where(has_ended, 1.0, new / xp.where(has_ended, 1.0, old))

    def _line(self, epoch: Any, xp: ModuleType) -> Any:
        slope = self.end_factor - self.start_factor
        until = xp.minimum(xp.asarray(epoch, float), math.floor(self.total_iters))
        return self.total_iters * self.start_factor + until * slope

    def at_zero(self) -> float:
        """The start of the line."""
        return self.base * self.start_factor


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ExponentialLR(Scaling):
    """γ at every step."""

    epoch: int
    base: float
    gamma: float

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """γ to the number of steps."""
        return _power(self.gamma, n - m, xp)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PolynomialLR(Scaling):
    """(1 − epoch / total_iters)^power, in which PyTorch's factors telescope."""

    epoch: int
    base: float
    total_iters: float
    power: float

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """The quotient of two points on the curve, up to its end."""
        end = math.floor(self.total_iters)
        has_ended = self.epoch + m >= end
        old, new = (self.total_iters - xp.minimum(xp.asarray(self.epoch + one, float), end) for one in (m, n))
        return xp.where(has_ended, 1.0, (new / xp.where(has_ended, 1.0, old)) ** self.power)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MultiplicativeLR(Scaling):
    """A factor for each step that a Python function gives; only in a table."""

    epoch: int
    base: float
    function: Callable[[int], Any]

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """The product of the factors, in NumPy."""
        first, last = int(m), int(np.max(n))
        factors = [1.0, *(float(self.function(self.epoch + one)) for one in range(first + 1, last + 1))]
        return np.cumprod(factors)[np.asarray(n) - first]

    def restarted(self, now: float) -> tuple[Form, float]:
        """PyTorch has no closed form, so the function at 0 scales the present value."""
        return dataclasses.replace(self, epoch=0), now * float(self.function(0))

    @property
    def is_closed(self) -> bool:
        """Products have no closed form."""
        return False


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LambdaLR(Form):
    """A function of the epoch, times the base."""

    epoch: int
    base: float
    function: Callable[[Any], Any]
    is_traceable: bool  # whether the function takes tracers

    def value(self, n: Any, xp: ModuleType) -> Any:
        """The base times the function."""
        if xp is not np:
            return self.base * xp.asarray(self.function(self.epoch + n), float)
        return self.base * _each(self.function, self.epoch + n)

    @property
    def is_closed(self) -> bool:
        """If the function takes tracers."""
        return self.is_traceable


def _each(function: Callable[[Any], Any], epochs: Any) -> np.ndarray:
    """A Python function of integers, in float64."""
    whole = np.asarray(epochs)
    return np.reshape([float(function(int(epoch))) for epoch in whole.ravel()], whole.shape)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CosineAnnealingLR(Form):
    """A cosine from the base to `eta_min` and back; PyTorch's recursion restarts from `eta_min` in every period."""

    kind = "mixes"
    epoch: int
    base: float
    T_max: float
    eta_min: float

    def after(self, n: Any, now: float, xp: ModuleType) -> Any:
        """The present distance from `eta_min`, scaled by the cosine up to the restart; then that of the restart."""
        old, epoch = self._cosine(self.epoch, np), self.epoch + n
        height = (now - self.eta_min) / float(old) if old else 0.0
        if self.first_restart is not None:
            # What a step finds that restarts at once may have been set by hand.
            before = now - self.eta_min if self.first_restart == self.epoch + 1 else 0.0
            heights = self._heights + np.asarray([before / self._size_at(self.first_restart), *[0.0] * (_RESTARTS - 1)])
            which = xp.clip((epoch - self.first_restart) // (2 * int(self.T_max)), 0, _RESTARTS - 1)
            height = xp.where(epoch >= self.first_restart, xp.asarray(heights)[which], height)
        return xp.where(n == 0, now, self.eta_min + height * self._cosine(epoch, xp))

    def _cosine(self, epoch: Any, xp: ModuleType) -> Any:
        """1 + cos(π epoch / T), as 2 cos² of the half, which keeps its digits where it is small."""
        turn = epoch % (2 * int(self.T_max)) if self.T_max == int(self.T_max) else epoch
        is_low = turn == self.T_max  # where PyTorch's is exactly 0
        return xp.where(is_low, 0.0, 2 * xp.cos(xp.asarray(turn, float) * (math.pi / (2 * self.T_max))) ** 2)

    def _size_at(self, epoch: float) -> float:
        """1 + cos(π epoch / T), rounded as PyTorch does: near the restarts the rounding is all that PyTorch sees."""
        return 1 + math.cos(math.pi * epoch / self.T_max) or math.nan  # PyTorch's ZeroDivisionError

    @functools.cached_property
    def first_restart(self) -> int | None:
        """The next epoch at which PyTorch restarts from the minimum; `None` if it never does."""
        if self.T_max != int(self.T_max):
            return None
        period = 2 * int(self.T_max)
        return self.epoch + 1 + (int(self.T_max) - self.epoch) % period

    @functools.cached_property
    def _heights(self) -> np.ndarray:
        """What multiplies the cosine from each of the next restarts on.

        It is (base − eta_min) / 2 but for PyTorch's rounding, a relative T² · 1e-16. That of the 64th is kept for all
        later ones.
        """
        assert self.first_restart is not None
        rise = (self.base - self.eta_min) * (1 - math.cos(math.pi / self.T_max)) / 2
        starts = (self.first_restart + 2 * int(self.T_max) * index for index in range(_RESTARTS))
        return np.asarray([rise / self._size_at(start) for start in starts])

    def restarted(self, now: float) -> tuple[Form, float]:
        """At epoch 0 the closed form counts."""
        return dataclasses.replace(self, epoch=0), self.eta_min + (self.base - self.eta_min)

    def scaled_by(self, others: "Others", n: Any, now: float, xp: ModuleType) -> Any:
        """Its value if `eta_min` is 0 and other forms scale what it leaves; see `Chained`."""
        assert self.first_restart is not None
        first, period = self.first_restart - self.epoch, 2 * int(self.T_max)
        which = xp.maximum((n - first) // period, 0)
        start = first + which * period
        heights = xp.asarray(self._heights)[xp.clip(which, 0, _RESTARTS - 1)]
        old = float(self._cosine(self.epoch, np))
        here = self._cosine(self.epoch + n, xp)
        before = now / old * here * others.ratio(0, n, xp)
        restarted = heights * here * others.ratio_behind(start - 1, start, xp) * others.ratio(start, n, xp)
        return xp.where(n < first, before, restarted)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CosineAnnealingWarmRestarts(Form):
    """A cosine from the base to `eta_min`, then from the base again, each time `T_mult` times as long."""

    epoch: int
    base: float
    T_i: float
    T_cur: float
    T_mult: int
    eta_min: float

    def value(self, n: Any, xp: ModuleType) -> Any:
        """The cosine of the share of the present period."""
        if self.T_mult == 1:
            passed = self.T_cur + n
            share = xp.asarray(xp.where(passed >= self.T_i, passed % self.T_i, passed), float) / self.T_i
        else:
            starts, lengths, first = self._periods
            which = xp.searchsorted(xp.asarray(starts[1:], int), xp.asarray(n, int), side="right")
            passed = xp.asarray(n, int) - xp.asarray(starts, int)[which]
            share = (xp.asarray(passed, float) + xp.asarray(first)[which]) / xp.asarray(lengths)[which]
        return self.eta_min + (self.base - self.eta_min) * (1 + xp.cos(math.pi * share)) / 2

    @functools.cached_property
    def _periods(self) -> tuple[list[int], list[float], list[float]]:
        """Of each period its start, counted in steps from now, its length, and `T_cur` at its start."""
        starts, lengths, first = [0], [float(self.T_i)], [float(self.T_cur)]
        while True:
            start = starts[-1] + math.ceil(lengths[-1] - first[-1])
            if start >= _LAST_STEP:
                return starts, lengths, first
            first.append((first[-1] + start - starts[-1]) % lengths[-1])
            starts.append(start)
            lengths.append(lengths[-1] * self.T_mult)

    def step(self, now: float) -> tuple[Form, float]:
        """One step of PyTorch's counters."""
        passed, length = self.T_cur + 1, self.T_i
        if passed >= length:
            passed, length = passed % length, length * self.T_mult
        form = dataclasses.replace(self, epoch=self.epoch + 1, T_cur=passed, T_i=length)
        return form, float(form.value(0, np))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CyclicLR(Form):
    """A triangle between two values, whose height changes with the cycle or the step."""

    epoch: int
    base: float
    peak: float
    step_size_up: float
    total_size: float
    scale: str | Callable[[Any], Any]  # PyTorch's mode, or a function of the cycle or the epoch
    gamma: float
    scale_mode: Literal["cycle", "iterations"]

    def value(self, n: Any, xp: ModuleType) -> Any:
        """The base, and the height at this point of the triangle."""
        epoch, up = self.epoch + n, self.step_size_up / self.total_size
        total = int(self.total_size) if self.total_size == int(self.total_size) else self.total_size
        cycle, share = epoch // total, xp.asarray(epoch % total, float) / self.total_size
        rising, falling = share / (up or 1.0), (share - 1) / ((up - 1) or 1.0)
        height = (self.peak - self.base) * xp.where(share <= up, rising, falling)
        if self.scale == "triangular2":
            height = height * _power(0.5, cycle, xp)
        elif self.scale == "exp_range":
            height = height * _power(self.gamma, epoch, xp)
        elif not isinstance(self.scale, str):
            height = height * _each(self.scale, cycle + 1 if self.scale_mode == "cycle" else epoch)
        return self.base + height

    @property
    def is_closed(self) -> bool:
        """Unless the height is a Python function."""
        return isinstance(self.scale, str)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OneCycleLR(Form):
    """Two or three phases, each from one value to another; beyond the last step NaN, where PyTorch raises."""

    epoch: int
    ends: tuple[float, ...]
    starts: tuple[float, ...]
    stops: tuple[float, ...]
    anneal: Literal["cos", "linear"]
    total_steps: int

    def value(self, n: Any, xp: ModuleType) -> Any:
        """The way from the start of a phase to its end."""
        epoch = self.epoch + n
        here = xp.asarray(epoch, float)
        found: Any = math.nan
        for index in reversed(range(len(self.ends))):
            first, last = self.ends[index - 1] if index else 0.0, self.ends[index]
            share = (here - first) / ((last - first) or 1.0)
            start, stop = self.starts[index], self.stops[index]
            if self.anneal == "cos":
                # PyTorch's weights, in a form that keeps its digits at both ends.
                between = stop + (start - stop) * xp.cos(share * (math.pi / 2)) ** 2
            else:
                between = start + (stop - start) * share
            found = between if index == len(self.ends) - 1 else xp.where(here <= last, between, found)
        return xp.where(epoch > self.total_steps, math.nan, found)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SWALR(Form):
    """From whatever the value is to `swa_lr`, in `anneal_epochs` steps."""

    kind = "mixes"
    epoch: int
    steps: int  # PyTorch's `_step_count`, by which it anneals
    swa_lr: float
    anneal_epochs: int
    anneal: Literal["cos", "linear"]

    def after(self, n: Any, now: float, xp: ModuleType) -> Any:
        """What is left of the present distance from `swa_lr`."""
        old = float(self._left(self.steps - 1, np))
        height = (now - self.swa_lr) / old if old else 0.0
        return xp.where(n == 0, now, self.swa_lr + height * self._left(self.steps - 1 + n, xp))

    def _left(self, steps: Any, xp: ModuleType) -> Any:
        steps = xp.asarray(steps, float)
        if self.anneal_epochs == 0:  # the first step goes all the way
            return xp.where(steps < 1, 1.0, 0.0)
        share = xp.clip(steps / self.anneal_epochs, 0.0, 1.0)
        left = xp.cos(share * (math.pi / 2)) ** 2 if self.anneal == "cos" else 1 - share
        return xp.where(share == 1, 0.0, left)

    def step(self, now: float) -> tuple[Form, float]:
        """One step of both counters."""
        form = dataclasses.replace(self, epoch=self.epoch + 1, steps=self.steps + 1)
        return form, float(self.after(1, now, np))

    def restarted(self, now: float) -> tuple[Form, float]:
        """PyTorch sets back the epoch, which SWALR does not use, and repeats its last step."""
        form = dataclasses.replace(self, epoch=0)
        if self.anneal_epochs == 0:
            return form, self.swa_lr
        old, new = float(self._left(self.steps - 2, np)), float(self._left(self.steps - 1, np))
        return form, self.swa_lr + ((now - self.swa_lr) * new / old if old else 0.0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Table(Form):
    """The values at the next steps, in float64, as bytes; beyond them NaN, because nothing is known there."""

    values: bytes

    def after(self, n: Any, now: float, xp: ModuleType) -> Any:
        """The value that stands there; the first is the present one."""
        values = np.frombuffer(self.values)
        found = xp.asarray(values)[xp.clip(xp.asarray(n, int), 0, len(values) - 1)]
        return xp.where(xp.asarray(n) < len(values), found, math.nan)

    def __repr__(self) -> str:
        values = np.frombuffer(self.values)
        return f"Table({len(values)} values, from {values[0]:.6g} to {values[-1]:.6g})"


@dataclasses.dataclass(frozen=True)
class Others:
    """The forms around one in a chain, which only scale."""

    before: tuple[Form, ...]
    behind: tuple[Form, ...]

    def ratio(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """The factor of all of them."""
        return _product((*self.before, *self.behind), m, n, xp)

    def ratio_behind(self, m: Any, n: Any, xp: ModuleType) -> Any:
        """The factor of those behind it."""
        return _product(self.behind, m, n, xp)


def _product(forms: tuple[Form, ...], m: Any, n: Any, xp: ModuleType) -> Any:
    return functools.reduce(lambda product, form: product * form.ratio(m, n, xp), forms, 1.0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Chained(Form):
    """Schedulers that step one after another, each on what the one before it leaves."""

    kind = "mixes"
    schedulers: tuple[Form, ...]

    def after(self, n: Any, now: float, xp: ModuleType) -> Any:
        """All factors; or the last value that is set, and the factors of one step behind it."""
        if len(self.schedulers) == 1:
            return self.schedulers[0].after(n, now, xp)
        if xp is np and not self.is_closed:
            return values_after(self, int(np.max(n)), now)[n]
        if self._last_set is not None:
            behind = self.schedulers[self._last_set + 1 :]
            last = xp.maximum(n - 1, 0)
            value = self.schedulers[self._last_set].value(n, xp) * _product(behind, last, n, xp)
            return xp.where(n == 0, now, value)
        if self._cosine is not None:
            index = self._cosine
            form = self.schedulers[index]
            assert isinstance(form, CosineAnnealingLR)
            return form.scaled_by(Others(self.schedulers[:index], self.schedulers[index + 1 :]), n, now, xp)
        return now * _product(self.schedulers, 0, n, xp)

    @property
    def _last_set(self) -> int | None:
        """The last scheduler that sets the value, whatever it was."""
        return max((index for index, form in enumerate(self.schedulers) if form.kind == "sets"), default=None)

    @property
    def _cosine(self) -> int | None:
        """The only scheduler that mixes, if it is a cosine down to 0, which restarts from what it sets itself."""
        found = [index for index, form in enumerate(self.schedulers) if form.kind == "mixes"]
        form = self.schedulers[found[0]] if len(found) == 1 else None
        if not isinstance(form, CosineAnnealingLR) or form.eta_min or form.first_restart in (None, form.epoch + 1):
            return None
        return found[0]

    @property
    def is_closed(self) -> bool:
        """If it is one of the cases above."""
        if len(self.schedulers) == 1:
            return self.schedulers[0].is_closed
        if self._last_set is not None:
            needed = self.schedulers[self._last_set :]
            return all(form.is_closed for form in needed) and all(form.kind == "scales" for form in needed[1:])
        is_known = self._cosine is not None or all(form.kind == "scales" for form in self.schedulers)
        return is_known and all(form.is_closed for form in self.schedulers)

    def step(self, now: float) -> tuple[Form, float]:
        """Every scheduler steps."""
        forms: list[Form] = []
        for form in self.schedulers:
            new, now = form.step(now)
            forms.append(new)
        return Chained(tuple(forms)), now


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SequentialLR(Form):
    """Schedulers one after another; each starts at its milestone, and PyTorch sets it back to epoch 0 there."""

    kind = "mixes"
    epoch: int
    schedulers: tuple[Form, ...]
    milestones: tuple[int, ...]
    restarts: bool  # whether each starts from its epoch 0, as in PyTorch's class; otherwise it takes its next step

    def after(self, n: Any, now: float, xp: ModuleType) -> Any:
        """The value of the scheduler that is running then, from what it starts with."""
        (_, form, value), *rest = self._phases(now)
        found = form.after(n, value, xp)
        for start, form, value in rest:
            found = xp.where(n < start, found, form.after(xp.maximum(n - start, 0), value, xp))
        return found

    def _phases(self, now: float) -> list[tuple[int, Form, float]]:
        """For each scheduler still to run its first step, counted from now, and what it is and starts with there."""
        phases = [(0, self.schedulers[bisect_right(self.milestones, self.epoch)], now)]
        for milestone in sorted({one for one in self.milestones if one > self.epoch}):
            start, form, value = phases[-1]
            first = milestone - self.epoch
            now = float(form.after(first - 1 - start, value, np))
            phases.append((first, *self._started(milestone, now)))
        return phases

    def _started(self, milestone: int, now: float) -> tuple[Form, float]:
        form = self.schedulers[bisect_right(self.milestones, milestone)]
        return form.restarted(now) if self.restarts else form.step(now)

    @property
    def is_closed(self) -> bool:
        """If all schedulers still to run are."""
        return all(form.is_closed for form in self.schedulers[bisect_right(self.milestones, self.epoch) :])

    def step(self, now: float) -> tuple[Form, float]:
        """The scheduler whose turn it is steps, or restarts."""
        epoch = self.epoch + 1
        index = bisect_right(self.milestones, epoch)
        is_new = index > 0 and self.milestones[index - 1] == epoch
        form, now = self._started(epoch, now) if is_new else self.schedulers[index].step(now)
        forms = (*self.schedulers[:index], form, *self.schedulers[index + 1 :])
        return dataclasses.replace(self, epoch=epoch, schedulers=forms), now


def values_after(form: Form, steps: int, now: float) -> np.ndarray:
    """The value at present and after each of the next steps."""
    if not isinstance(form, Chained) or form.is_closed or len(form.schedulers) == 1:
        return np.asarray(form.after(np.arange(steps + 1), now, np), float)
    values = [now]
    for _ in range(steps):
        form, now = form.step(now)
        values.append(now)
    return np.asarray(values)
