"""The cost of optimizer state in fewer bits, in bytes and in loss: formats × optimizers × two networks.

    python benchmarks/state_formats.py                       # everything: about half an hour on two CPU cores
    python benchmarks/state_formats.py --networks digits     # the small one
    python benchmarks/state_formats.py --quick               # a minute: does it still run?

The networks are those of the examples: two dense layers that learn scikit-learn's digits, and a Transformer of two
layers that learns the reference that ships with Python, character by character. Each optimizer trains from the same
seeds, on the same batches, with its state in float32 and in every format of `linkax.stored`. The loss is that on
held-out data.

How to read the table:

    B/param       bytes of state per parameter in memory, for this network, whose small leaves stay in float32
    large         the same for parameters in a large leaf (1024 × 1024)
    loss          the mean over the seeds; for the Transformer in bits per character
    change        relative to float32 state, seed by seed, in per cent, with the 95 % confidence interval
"""

import argparse
import datetime
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import _training
import transformer_ablation as transformer
from _effects import Gain
from _tables import size_in_bytes

from linkax import Chain, adadelta, adagrad, adam, adamw, nadam, rmsprop, sgd, sweep
from linkax.transforms import matrices_only
from linkax.transforms._formats import Format

FORMATS = get_args(Format)
Make = Callable[..., Chain]


def digits(quick: bool) -> tuple[Any, Mapping[str, Make], Any]:
    """The run, the optimizers with learning rates that suit them, and the network's parameters."""
    data = _training.digits()
    optimizers: dict[str, Make] = {
        "SGD with momentum": lambda **given: sgd(0.05, momentum=0.9, **given),
        "Adagrad": lambda **given: adagrad(0.05, **given),
        "RMSprop": lambda **given: rmsprop(1e-3, momentum=0.9, **given),
        "Adadelta": lambda **given: adadelta(1.0, **given),
        "Adam": lambda **given: adam(3e-3, **given),
        "AdamW": lambda **given: adamw(3e-3, **given),
        "NAdam": lambda **given: nadam(3e-3, **given),
    }

    def run(tx: Chain, seed: jax.Array) -> dict[str, jax.Array]:
        init_key, order_key = jax.random.split(jax.random.key(seed))
        params = _training.NET.init(init_key, data.x)
        carry = params, tx.init(params)

        def epoch(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            return _training.epoch(tx, data, params, state, key)[:2], None

        (params, _), _ = jax.lax.scan(epoch, carry, jax.random.split(order_key, 2 if quick else 30))
        logits = jnp.asarray(_training.NET.apply(params, data.x_test))
        return {"loss": optax.softmax_cross_entropy_with_integer_labels(logits, data.y_test).mean()}

    return run, optimizers, jax.eval_shape(_training.NET.init, jax.random.key(0), data.x)


def language(quick: bool) -> tuple[Any, Mapping[str, Make], Any]:
    """The same for the Transformer."""
    steps = 5 if quick else 600
    data = transformer.tokens(windows=128)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, max(1, steps // 10), steps)
    optimizers: dict[str, Make] = {
        "AdamW": lambda **given: adamw(schedule, weight_decay=0.1, weight_decay_mask=matrices_only, **given),
        "SGD with momentum": lambda **given: sgd(0.1, momentum=0.9, **given),
    }

    def run(tx: Chain, seed: jax.Array) -> dict[str, jax.Array]:
        return {"loss": transformer.train(tx, seed, steps, **data)["validation"]}

    params = jax.eval_shape(transformer.Transformer().init, jax.random.key(0), data["validation"][:1, :-1])
    return run, optimizers, params


NETWORKS = {"digits": digits, "transformer": language}


def bytes_a_parameter(tx: Chain, params: Any) -> float:
    state = jax.eval_shape(tx.init, params)
    return size_in_bytes(state) / sum(leaf.size for leaf in jax.tree.leaves(params))


def table(network: str, seeds: int, quick: bool) -> list[str]:
    run, optimizers, params = NETWORKS[network](quick)
    optimizers = {name: make for name, make in optimizers.items() if name == "AdamW" or not quick}
    large = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    formats = [None, *FORMATS]
    chains = {
        (name, as_): make(state=as_)
        for name, make in optimizers.items()
        for as_ in formats
        if (name, as_) != ("Adadelta", "int4")  # refused: it would diverge
    }
    found = sweep(run, {"seed": range(seeds)}, {f"{name} {as_}": tx for (name, as_), tx in chains.items()})["loss"]
    width = max(map(len, optimizers))
    rows = [
        f"{network}, {seeds} seeds",
        f"{'optimizer':<{width}}  {'state':<8}  B/param  large     loss  change in %, 95 % confidence",
    ]
    for (name, as_), tx in chains.items():
        losses = found.sel(variant=f"{name} {as_}").values
        exact = found.sel(variant=f"{name} None").values
        cells = f"{bytes_a_parameter(tx, params):7.2f}  {bytes_a_parameter(tx, large):5.2f}  {losses.mean():7.4f}"
        if as_ is not None:
            change = 100 * (losses - exact) / exact.mean()
            mean, half = Gain.of(change)
            cells += f"  {mean:+6.2f}  {mean - half:+6.2f} to {mean + half:+6.2f}"
        rows.append(f"{name:<{width}}  {as_ or 'float32':<8}  {cells}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of optimizer state in fewer bits, in bytes and in loss.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, help="runs of each (default: 20 of the digits, 6 of the Transformer)")
    parser.add_argument("--quick", action="store_true", help="a short run that only checks that everything works")
    args = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("linkax", "jax", "optax", "flax"))
    print(f"{datetime.date.today()}, {platform.machine()}, {packages}")
    for network in args.networks:
        seeds = args.seeds or (2 if args.quick else {"digits": 20, "transformer": 6}[network])
        print("\n" + "\n".join(table(network, seeds, args.quick)), flush=True)
    if args.quick:
        print("\nquick run: not a result")


if __name__ == "__main__":
    main()
