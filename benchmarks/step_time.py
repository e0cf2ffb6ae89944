"""How long one optimizer step takes: linkax's chains, the formula written by hand, Optax and PyTorch.

The timed function is the jitted step (parameters, state, gradients) -> (parameters, state), with the first two donated,
until all its results are ready, on two trees of float32 parameters: one shaped like GPT-2 small (124 million parameters
in 148 leaves) and one of 1,000 leaves of 32 × 32. Three things keep the comparison fair:

- The contenders of one optimizer alternate, one step each per round, so that other work on the machine affects all of
  them equally.
- With many leaves, a step that is compiled first in a process can be 15 % faster than the same step compiled third. So
  everything is compiled and measured twice, in one order and in reverse.
- Before that, each contender takes three steps from the same start; nothing is timed unless all reach the same
  parameters.

    python benchmarks/step_time.py                                  # everything: minutes, 12 GB of memory
    python benchmarks/step_time.py --optimizers adam adamw --tree gpt2
    python benchmarks/step_time.py --quick                          # small sizes, seconds: does it still run?
    python benchmarks/step_time.py --optimizers adam adamw --check  # fails if a chain costs more than the formula
    python benchmarks/step_time.py --one-loop --optimizers adamw    # with and without an option of XLA, see below

How to read the table:

    ms           time per step: the mean of the medians in the two orders of compilation
    / by hand    that, divided by the time of the formula written by hand
    per round    the median and quartiles of that ratio within the rounds: how far to trust the previous column
    fusions      loops over memory in the compiled step, as XLA counts them; PyTorch's steps are not compiled
    temp KiB     memory that the compiled step needs in addition to its arguments and results
    B/param      bytes that the step reads and writes per parameter, by XLA's estimate; a float32 has 4. Adam's 40 on
                 the CPU are one loop for each result: m and g to m, v and g to v, and w, m and v to w; a single loop
                 over everything would need 28

With `--one-loop`, each optimizer is measured in separate processes, alternately without and with an option that lets
XLA merge several loops into one: XLA_FLAGS=--xla_backend_extra_options=xla_cpu_use_multi_output_fusion.

No parameter depends on another, so a well-compiled step needs no temporaries of the size of a leaf.
"""

import argparse
import datetime
import functools
import importlib
import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _tables import add_save, check_count, finish, save
from tqdm import tqdm

import linkax

MU, RHO, B1, B2, EPS, DECAY = 0.9, 0.9, 0.9, 0.999, 1e-8, 1e-2
CHECKED = ("adam", "adamw")
SLOWEST = 1.03  # what `--check` allows a chain, relative to the step by hand
ONE_LOOP = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"
TOLERANCE = 1e-3  # relative to the largest change of a parameter of the leaf; rounding alone accounts for 1e-4


# The formulas by hand: from the step count t = 1, 2, … to the rule for one leaf; what depends on t alone is computed
# once. All accumulators start from 0.

Rule = Callable[..., tuple[jax.Array, ...]]  # (w, g, *accumulators) -> (w, *accumulators)


def sgd(lr: float, t: jax.Array) -> Rule:
    return lambda w, g: (w - lr * g,)


def sgd_momentum(lr: float, t: jax.Array) -> Rule:
    def rule(w, g, b):
        b = MU * b + g
        return w - lr * b, b

    return rule


def adagrad(lr: float, t: jax.Array) -> Rule:
    def rule(w, g, s):
        s = s + g * g
        return w - lr * g / (jnp.sqrt(s) + EPS), s

    return rule


def rmsprop(lr: float, t: jax.Array) -> Rule:
    def rule(w, g, v):
        v = RHO * v + (1 - RHO) * (g * g)
        return w - lr * g / (jnp.sqrt(v) + EPS), v

    return rule


def adadelta(lr: float, t: jax.Array) -> Rule:
    def rule(w, g, v, a):
        v = RHO * v + (1 - RHO) * (g * g)
        step = jnp.sqrt((a + EPS) / (v + EPS)) * g
        return w - lr * step, v, RHO * a + (1 - RHO) * (step * step)

    return rule


def adam(lr: float, t: jax.Array, decay: float = 0.0) -> Rule:
    lr_t, correction = lr / (1 - B1**t), 1 / (1 - B2**t)

    def rule(w, g, m, v):
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * (g * g)
        kept = w if decay == 0 else (1 - lr * decay) * w
        return kept - lr_t * m / (jnp.sqrt(v * correction) + EPS), m, v

    return rule


def amsgrad(lr: float, t: jax.Array) -> Rule:
    lr_t, correction = lr / (1 - B1**t), 1 / (1 - B2**t)

    def rule(w, g, m, v, largest):
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * (g * g)
        largest = jnp.maximum(largest, v)
        return w - lr_t * m / (jnp.sqrt(largest * correction) + EPS), m, v, largest

    return rule


def adamw(lr: float, t: jax.Array) -> Rule:
    return adam(lr, t, DECAY)


def nadam(lr: float, t: jax.Array) -> Rule:
    on_g, on_m = lr * (1 - B1) / (1 - B1**t), lr * B1 / (1 - B1 ** (t + 1))
    correction = 1 / (1 - B2**t)

    def rule(w, g, m, v):
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * (g * g)
        return w - (on_g * g + on_m * m) / (jnp.sqrt(v * correction) + EPS), m, v

    return rule


class Optimizer(NamedTuple):
    """One optimizer in its four versions."""

    chain: optax.GradientTransformation
    by_hand: Callable[[float, jax.Array], Rule]
    accumulators: int  # the number that the rule by hand has
    optax: optax.GradientTransformation
    torch: tuple[str, dict[str, Any]]  # the class in torch.optim, its arguments besides lr
    lr: float = 1e-3


# Arguments that make all four the same method if no gradient is near 0, and each is larger than the one before:
#   Adagrad   Optax has ε only under the root; (1e-8)² there is closest to 1e-8 outside it.
#   AMSGrad   Optax takes the maximum after the bias correction; while the gradients grow, that is the last value too.
#   NAdam     Optax has only μ_t = β1. PyTorch's μ_t = β1 (1 − ½ · 0.96^{t ψ}) is β1 to the last digit for ψ = 1e6.
OPTIMIZERS = {
    "sgd": Optimizer(linkax.sgd(1e-3), sgd, 0, optax.sgd(1e-3), ("SGD", {})),
    "sgd_momentum": Optimizer(
        linkax.sgd(1e-3, momentum=MU), sgd_momentum, 1, optax.sgd(1e-3, MU), ("SGD", {"momentum": MU})
    ),
    "adagrad": Optimizer(
        linkax.adagrad(1e-3, eps=EPS), adagrad, 1, optax.adagrad(1e-3, 0.0, EPS**2), ("Adagrad", {"eps": EPS})
    ),
    "rmsprop": Optimizer(
        linkax.rmsprop(1e-3, decay=RHO, eps=EPS),
        rmsprop,
        1,
        optax.rmsprop(1e-3, RHO, EPS, eps_in_sqrt=False),
        ("RMSprop", {"alpha": RHO, "eps": EPS}),
    ),
    "adadelta": Optimizer(
        linkax.adadelta(1.0, rho=RHO, eps=EPS),
        adadelta,
        2,
        optax.adadelta(1.0, RHO, EPS),
        ("Adadelta", {"rho": RHO, "eps": EPS}),
        lr=1.0,
    ),
    "adam": Optimizer(linkax.adam(1e-3), adam, 2, optax.adam(1e-3), ("Adam", {})),
    "amsgrad": Optimizer(linkax.adam(1e-3, amsgrad=True), amsgrad, 3, optax.amsgrad(1e-3), ("Adam", {"amsgrad": True})),
    "adamw": Optimizer(
        linkax.adamw(1e-3, weight_decay=DECAY),
        adamw,
        2,
        optax.adamw(1e-3, weight_decay=DECAY),
        ("AdamW", {"weight_decay": DECAY}),
    ),
    "nadam": Optimizer(
        linkax.nadam(1e-3, momentum_decay=None), nadam, 2, optax.nadam(1e-3), ("NAdam", {"momentum_decay": 1e6})
    ),
}


class JaxStep:
    """A jitted step with the parameters and the state that it works on."""

    def __init__(self, init: Callable, step: Callable, params: dict, grads: dict):
        self.params, self.grads = jax.tree.map(jnp.copy, params), grads
        self.state = init(self.params)
        compiled: Any = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.state, grads).compile()
        self.step = compiled
        self.fusions: int = compiled.as_text().count(" fusion(")
        self.temp_bytes: int = compiled.memory_analysis().temp_size_in_bytes
        self.bytes_accessed: float = compiled.cost_analysis()["bytes accessed"]

    def use(self, grads: dict) -> None:
        self.grads = grads

    def __call__(self) -> None:
        self.params, self.state = jax.block_until_ready(self.step(self.params, self.state, self.grads))


def transformation_step(tx: optax.GradientTransformation, params: dict, grads: dict) -> JaxStep:
    """The step of a chain, or of an Optax optimizer."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return JaxStep(tx.init, step, params, grads)


def step_by_hand(optimizer: Optimizer, params: dict, grads: dict) -> JaxStep:
    """The step of a formula by hand; its state is the step count and one tree per accumulator."""

    def init(params):
        return jnp.zeros((), jnp.int32), [jax.tree.map(jnp.zeros_like, params) for _ in range(optimizer.accumulators)]

    def step(params, state, grads):
        count, accumulators = state
        count = count + 1
        rule = optimizer.by_hand(optimizer.lr, count.astype(jnp.float32))
        results = {name: rule(w, grads[name], *(tree[name] for tree in accumulators)) for name, w in params.items()}
        params, *accumulators = ({name: r[i] for name, r in results.items()} for i in range(1 + len(accumulators)))
        return params, (count, accumulators)

    return JaxStep(init, step, params, grads)


class TorchStep:
    """A step of PyTorch's optimizer, with the parameters that it works on."""

    def __init__(self, torch: Any, optimizer: Optimizer, kind: str, params: dict, grads: dict):
        self.params = {name: torch.from_dlpack(w).clone().requires_grad_() for name, w in params.items()}
        self.torch = torch
        self.use(grads)
        name, arguments = optimizer.torch
        new = getattr(torch.optim, name)
        self.optimizer = new(list(self.params.values()), lr=optimizer.lr, **arguments, **{kind: True})

    def use(self, grads: dict) -> None:
        for name, w in self.params.items():
            w.grad = self.torch.from_dlpack(grads[name])  # the same memory: no step writes to the gradients

    def __call__(self) -> None:
        self.optimizer.step()


Step = JaxStep | TorchStep


def contenders(optimizer: Optimizer, torch: Any, params: dict, grads: dict, backwards: bool) -> dict[str, Step]:
    """All versions of one optimizer, each with its own copy of the parameters, built in one order or the other."""
    makers: dict[str, Callable[[], Step]] = {
        "by hand": lambda: step_by_hand(optimizer, params, grads),
        "linkax": lambda: transformation_step(optimizer.chain, params, grads),
        "optax": lambda: transformation_step(optimizer.optax, params, grads),
    }
    for kind in ("fused", "foreach") if torch else ():
        if kind in inspect.signature(getattr(torch.optim, optimizer.torch[0])).parameters:
            makers[f"torch {kind}"] = functools.partial(TorchStep, torch, optimizer, kind, params, grads)
    steps = {name: makers[name]() for name in (reversed(makers) if backwards else makers)}
    return {name: steps[name] for name in makers}


@jax.jit
def _deviation(w: jax.Array, expected: jax.Array, start: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(w - expected)) / jnp.max(jnp.abs(expected - start))


def verify(where: str, steps: dict[str, Step], start: dict, grads: dict) -> None:
    """Lets every contender take three steps, and makes sure that all have changed the parameters in the same way."""
    for factor in (1.0, 2.0, 3.0):  # with constant gradients, Adam would be the same for every β
        scaled = {name: factor * g for name, g in grads.items()}
        for step in steps.values():
            step.use(scaled)
            step()
            step.use(grads)
    expected = steps["by hand"].params
    for name, step in steps.items():
        arrays = step.params if isinstance(step, JaxStep) else {k: w.detach().numpy() for k, w in step.params.items()}
        worst = np.max([_deviation(arrays[leaf], expected[leaf], start[leaf]) for leaf in start])  # NaN if one is
        if not worst <= TOLERANCE:
            sys.exit(f"{where}: {name} differs from the formula by hand, by {worst:.1e} of the largest change")


def gpt2_shapes(vocabulary: int, positions: int, width: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """The shapes of GPT-2's parameters."""
    shapes: dict[str, tuple[int, ...]] = {"wte": (vocabulary, width), "wpe": (positions, width)}
    for block in range(blocks):
        for layer, outputs, inputs in (
            ("attn.c_attn", 3 * width, width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", 4 * width, width),
            ("mlp.c_proj", width, 4 * width),
        ):
            shapes[f"h{block}.{layer}.w"], shapes[f"h{block}.{layer}.b"] = (inputs, outputs), (outputs,)
        for norm in ("ln_1", "ln_2"):
            shapes[f"h{block}.{norm}.w"], shapes[f"h{block}.{norm}.b"] = (width,), (width,)
    return {**shapes, "ln_f.w": (width,), "ln_f.b": (width,)}


def small_shapes(leaves: int) -> dict[str, tuple[int, ...]]:
    """Many small leaves."""
    return {f"leaf{index}": (32, 32) for index in range(leaves)}


def random_tree(seed: int, shapes: dict[str, tuple[int, ...]], low: float, high: float) -> dict[str, jax.Array]:
    """Float32 arrays of numbers between two bounds."""
    rng = np.random.default_rng(seed)
    return {name: jnp.array(low + (high - low) * rng.random(shape, np.float32)) for name, shape in shapes.items()}


def measure(steps: dict[str, Step], rounds: int, progress: tqdm) -> dict[str, np.ndarray]:
    """The milliseconds of every contender's step in every round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(list(steps)):  # so that none always follows the same one
            begin = time.perf_counter()
            steps[name]()
            times[name].append(1e3 * (time.perf_counter() - begin))
        progress.update()
    return {name: np.array(ms) for name, ms in times.items()}


HEADER = (
    f"{'optimizer':<14}{'step':<14}{'ms':>10}{'/ by hand':>11}{'per round (quartiles)':>28}"
    f"{'fusions':>10}{'temp KiB':>10}{'B/param':>9}"
)


def typical(ms: np.ndarray) -> float:
    """One number for a contender's times, of shape (orders, rounds)."""
    return float(np.mean(np.median(ms, axis=1)))


def row(name: str, step: Step, ms: np.ndarray, by_hand: np.ndarray, size: int) -> str:
    """One contender's line of the table."""
    low, middle, high = np.quantile(ms / by_hand, (0.25, 0.5, 0.75))
    line = f"{name:<14}{typical(ms):>10.3f}{typical(ms) / typical(by_hand):>11.3f}"
    line += f"{f'{middle:.3f} ({low:.3f}–{high:.3f})':>28}"
    if isinstance(step, TorchStep):
        return f"{line}{'–':>10}{'–':>10}{'–':>9}"
    return f"{line}{step.fusions:>10}{step.temp_bytes / 1024:>10.1f}{step.bytes_accessed / size:>9.1f}"


def failures(where: str, chain: Any, times: dict[str, np.ndarray], start: dict, timed: bool) -> list[str]:
    """What `--check` rejects in a chain: temporaries of about a leaf's size, and a step that takes too long."""
    found = []
    matrix = min(w.nbytes for w in start.values() if w.ndim == 2)
    if chain.temp_bytes >= matrix / 2:
        found.append(
            f"{where}: the chain has {chain.temp_bytes:,} bytes of temporaries; its smallest matrix has {matrix:,}"
        )
    ratio = typical(times["linkax"]) / typical(times["by hand"])
    if timed and ratio > SLOWEST:
        found.append(f"{where}: the chain takes {ratio:.3f} times as long as the formula by hand; allowed is {SLOWEST}")
    return found


def in_other_processes(optimizer: str, tree: str, options: argparse.Namespace) -> list[str]:
    """What `--one-loop` prints for an optimizer: the milliseconds of every contender without and with the option."""
    found: dict[str, list[dict[str, Any]]] = {"": [], ONE_LOOP: []}
    command = [sys.executable, __file__, "--optimizers", optimizer, "--tree", tree, "--no-torch"]
    command += ["--quick"] * options.quick + (["--rounds", str(options.rounds)] if options.rounds else [])
    for flags in ("", ONE_LOOP) if options.quick else ("", ONE_LOOP, ONE_LOOP, ""):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "steps.json")
            env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
            subprocess.run(
                [*command, "--raw", str(file)], env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            found[flags].append(json.loads(file.read_text(encoding="utf-8")))
    lines = []
    for contender in found[""][0]:
        plain, one_loop = ([run[contender] for run in runs] for runs in found.values())
        before, after = (float(np.mean([run["ms"] for run in runs])) for runs in (plain, one_loop))
        loops, traffic = (f"{plain[0][key]:.4g} → {one_loop[0][key]:.4g}" for key in ("fusions", "bytes"))
        line = f"{optimizer if not lines else '':<14}{contender:<14}{before:>10.3f}{after:>10.3f}{after / before:>9.3f}"
        lines.append(f"{line}{loops:>16}{traffic:>16}")
    return lines


def one_loop(options: argparse.Namespace) -> None:
    """Measures and prints the effect of the XLA option."""
    lines = [versions(None)]
    print(lines[0])
    for tree in ("gpt2", "small") if options.tree == "both" else (options.tree,):
        header = f"{'optimizer':<14}{'step':<14}{'ms':>10}{'one loop':>10}{'ratio':>9}{'fusions':>16}{'B/param':>16}"
        lines.append(f"\n{tree}\n{header}")
        print(lines[-1], flush=True)
        for name in options.optimizers:
            lines += (found := in_other_processes(name, tree, options))
            print("\n".join(found), flush=True)
    save(options, lines)


def versions(torch: Any) -> str:
    """The versions and the hardware that the numbers depend on."""
    device = jax.devices()[0]
    pytorch = f"torch {torch.__version__} with {torch.get_num_threads()} threads" if torch else "no torch"
    return (
        f"{datetime.date.today()}: {device.device_kind}, {platform.machine()} with {os.cpu_count()} cores\n"
        f"python {platform.python_version()}, jax {jax.__version__}, optax {optax.__version__}, {pytorch}"
    )


def import_torch(wanted: bool) -> Any:
    """PyTorch, or `None` if it does not take part."""
    if not wanted:
        return None
    if jax.default_backend() != "cpu":
        print("PyTorch is left out: it is compared on the CPU only.")
        return None
    # Threads that spin while they wait would take the cores from the next contender.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print("PyTorch is not installed, so it is left out; `pip install torch` adds it.")
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    return torch


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times optimizer steps: linkax, by hand, Optax, PyTorch.")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), metavar="NAME")
    parser.add_argument("--tree", choices=("gpt2", "small", "both"), default="both")
    parser.add_argument("--rounds", type=int, help="steps per contender and order (default: 15 on gpt2, 100 on small)")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds; --check then ignores times")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--check", action="store_true", help=f"fail if the chain of {' or '.join(CHECKED)} costs more")
    parser.add_argument("--one-loop", action="store_true", help="what multi-output fusion changes on a CPU")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="write the last optimizer's numbers there as JSON")
    add_save(parser)
    options = parser.parse_args(arguments)
    check_count(parser, options, "rounds")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and with `--check` checks the limits."""
    options = parse(arguments)
    if options.one_loop:
        one_loop(options)
        return
    torch = import_torch(not options.no_torch)
    trees = {
        "gpt2": gpt2_shapes(1000, 64, 64, 1) if options.quick else gpt2_shapes(50257, 1024, 768, 12),
        "small": small_shapes(20 if options.quick else 1000),
    }
    trees = {name: shapes for name, shapes in trees.items() if options.tree in (name, "both")}
    rounds = {
        name: options.rounds or (5 if options.quick else default) for name, default in (("gpt2", 15), ("small", 100))
    }
    lines, wrong = [versions(torch)], []
    print(lines[0])
    orders = (False,) if options.quick else (False, True)
    total = len(options.optimizers) * len(orders) * sum(rounds[tree] for tree in trees)
    with tqdm(total=total, unit="round") as progress:
        for tree, shapes in trees.items():
            start, grads = random_tree(0, shapes, -1.0, 1.0), random_tree(1, shapes, 0.1, 1.0)
            size = sum(w.size for w in start.values())
            head = f"{tree}: {size:,} parameters in {len(shapes)} leaves, {len(orders)} × {rounds[tree]} rounds"
            lines.append(f"\n{head}\n{HEADER}")
            progress.write(lines[-1])
            for name in options.optimizers:
                where = f"{tree}, {name}"
                progress.set_description(where)
                steps, halves = {}, []
                for backwards in orders:
                    steps.clear()  # frees gigabytes that the next ones need
                    steps.update(contenders(OPTIMIZERS[name], torch, start, grads, backwards))
                    verify(where, steps, start, grads)
                    halves.append(measure(steps, rounds[tree], progress))
                times = {key: np.stack([half[key] for half in halves]) for key in steps}
                rows = [row(key, step, times[key], times["by hand"], size) for key, step in steps.items()]
                lines.append("\n".join(f"{'' if index else name:<14}{line}" for index, line in enumerate(rows)))
                progress.write(lines[-1])
                if options.raw:
                    numbers = {
                        key: {"ms": typical(times[key]), "fusions": step.fusions, "bytes": step.bytes_accessed / size}
                        for key, step in steps.items()
                        if isinstance(step, JaxStep)
                    }
                    options.raw.write_text(json.dumps(numbers), encoding="utf-8")
                if name in CHECKED:
                    wrong += failures(where, steps["linkax"], times, start, timed=not options.quick)
                steps.clear()
    finish(options, lines, wrong if options.check else [])


if __name__ == "__main__":
    main()
