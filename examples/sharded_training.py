"""Does a run that is killed on eight devices continue on four as if nothing had happened?

Run it with `python examples/sharded_training.py` after `pip install "linkax[examples]"`: minutes on two
CPU cores. A small Transformer learns to predict the next character of the reference that ships with Python, first
fully sharded (FSDP: parameters and state are split over the devices), then with ZeRO-1 (only the state is split). Each
is trained three times, in processes of their own: on eight pretended CPU devices without interruption; on eight, saved
with Orbax now and then, and killed halfway; and on four, from the last checkpoint of that one. It draws a picture of
the losses.

The same file trains on the devices that there are, also on a pod:

    python examples/sharded_training.py --train fsdp --checkpoints gs://bucket/run --steps 10000

Start it on every host: JAX finds the others on Cloud TPU, with SLURM and with Open MPI; elsewhere the variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are. A killed run goes on from its last
checkpoint when it is started again, on however many devices.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _looks import save
from _options import Options
from etils import epath
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformer_ablation import BATCH, LENGTH, Transformer, tokens

from linkax import adamw, chain, param_shardings, state_shardings
from linkax.transforms import clip_grad_norm, matrices_only

MODES = {"fsdp": "FSDP", "zero": "ZeRO-1"}


def connect() -> None:
    """Connects the processes of a pod, if the environment says that there are several."""
    env = os.environ
    tasks = max(int(env.get(name, "1")) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    if "JAX_NUM_PROCESSES" in env:  # next to JAX_COORDINATOR_ADDRESS, which JAX reads itself
        jax.distributed.initialize(num_processes=int(env["JAX_NUM_PROCESSES"]), process_id=int(env["JAX_PROCESS_ID"]))
    elif tasks > 1 or "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env:
        jax.distributed.initialize()


def train(mode: str, steps: int, every: int, folder: epath.Path, note: Callable[[int, float], None]) -> None:
    """Trains from the last checkpoint in `folder`, if there is one, and saves one after every so many steps."""
    import orbax.checkpoint as ocp

    data = tokens(windows=1)
    text, net = np.asarray(data["text"]), Transformer()
    tx = chain(clip_grad_norm(1.0), adamw(3e-3, weight_decay=0.1, weight_decay_mask=matrices_only))

    # Where everything is. The parameters are shapes so far.
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    shapes = jax.eval_shape(net.init, jax.random.key(0), data["validation"][:, :-1])
    shapes = jax.tree.map(lambda leaf: leaf.update(sharding=everywhere), shapes)
    of_params = param_shardings(shapes, over="data" if mode == "fsdp" else None)
    of_state = state_shardings(tx, shapes, over="data")
    of_all = {"params": of_params, "state": of_state}

    def create(key: jax.Array) -> dict[str, Any]:
        params = net.init(key, data["validation"][:, :-1])
        return {"params": params, "state": tx.init(params)}

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        logits = jnp.asarray(net.apply(params, windows[:, :-1]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean() / np.log(2)

    def step(run: dict[str, Any], windows: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        value, grads = jax.value_and_grad(loss)(run["params"], windows)
        updates, state = tx.update(grads, run["state"], run["params"])
        return {"params": optax.apply_updates(run["params"], updates), "state": state}, value

    create = jax.jit(create, out_shardings=of_all)
    step = jax.jit(step, donate_argnums=0, out_shardings=(of_all, everywhere))

    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as checkpoints:
        done = checkpoints.latest_step() or 0
        if done:
            target = jax.eval_shape(create, jax.random.key(0))  # shapes, with the shardings on these devices
            run = checkpoints.restore(done, args=ocp.args.StandardRestore(target))
        else:
            run = create(jax.random.key(0))
        kept, state = (
            sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(run[part]))
            for part in ("params", "state")
        )
        if jax.process_index() == 0:
            print(
                f"{MODES[mode]}: from step {done} on {jax.device_count()} devices, each with {kept:,} bytes of "
                f"parameters and {state:,} of state",
                flush=True,
            )
        for index in range(done, steps):
            # The batch of a step follows from its number, so it is the same however the run is interrupted.
            starts = np.random.default_rng(index).integers(len(text) - LENGTH, size=(BATCH, 1))
            windows = text[starts + np.arange(LENGTH + 1)]
            batch = jax.make_array_from_callback(windows.shape, rows, windows.__getitem__)
            run, value = step(run, batch)
            note(index + 1, float(value))
            if (index + 1) % every == 0:
                checkpoints.save(index + 1, args=ocp.args.StandardSave(run))


def start(mode: str, devices: int, args: argparse.Namespace, folder: Path, losses: Path) -> subprocess.Popen:
    """A process that trains on pretended devices."""
    command = [sys.executable, __file__, "--train", mode, "--steps", str(args.steps), "--every", str(args.every)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [*command, "--checkpoints", str(folder), "--losses", str(losses)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    )


def read(losses: Path) -> dict[int, float]:
    """The losses by step that a process has written so far."""
    lines = losses.read_text().splitlines(keepends=True) if losses.exists() else []
    return dict(json.loads(line) for line in lines if line.endswith("\n"))


def finished(process: subprocess.Popen) -> None:
    if process.wait():
        sys.exit(f"The training ended with the exit code {process.returncode}")


def killed(process: subprocess.Popen, losses: Path, after: int) -> None:
    """Kills a process when it has taken so many steps, as a power cut would: nothing in it can react."""
    while max(read(losses), default=0) < after:
        if process.poll() is not None:
            sys.exit(f"The training ended with the exit code {process.returncode} before it could be killed")
        time.sleep(0.05)
    process.kill()
    process.wait()
    print(f"killed after step {max(read(losses))}", flush=True)


def compare(mode: str, args: argparse.Namespace, folder: Path) -> tuple[dict[int, float], dict[int, float], int]:
    """The losses without interruption, those after it, and the step after which it came."""
    whole, first, second = (folder / f"{mode}-{name}.jsonl" for name in ("whole", "killed", "resumed"))
    finished(start(mode, 8, args, folder / f"{mode}-whole", whole))
    killed(start(mode, 8, args, folder / mode, first), first, args.steps // 2 + args.every // 2)
    finished(start(mode, 4, args, folder / mode, second))
    return read(whole), read(second), max(read(first))


def draw(found: dict[str, Any], args: argparse.Namespace) -> None:
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots(2, len(found), sharex=True, squeeze=False, height_ratios=(2, 1))
    for (mode, (whole, resumed, kill)), (upper, lower) in zip(found.items(), axes.T):
        upper.plot(list(whole), list(whole.values()), color="#0072B2", linewidth=3, label="8 devices, uninterrupted")
        upper.plot(list(resumed), list(resumed.values()), color="#E69F00", linewidth=1, label="resumed on 4 devices")
        differences = [abs(value - whole[step]) / whole[step] for step, value in resumed.items()]
        lower.plot(list(resumed), differences, color="#E69F00")
        for one in (upper, lower):
            one.axvline(kill, color="black", linestyle=":", label="killed")
            one.xaxis.set_major_locator(MaxNLocator(integer=True))
        upper.set_title(MODES[mode])
        lower.set_xlabel("step")
    axes[0][0].set_ylabel("loss, bits per character")
    axes[1][0].set_ylabel("relative difference")
    axes[0][0].legend()
    figure.suptitle("A run that is killed on eight devices, and continues on four")
    save(figure, args)


def main() -> None:
    options = Options("Trains on eight devices, is killed, and resumes on four.", "sharded_training.png")
    options.add_count("steps", "training steps", 100, quick=8, least=2)
    options.add_count("every", "steps between checkpoints", 20, quick=2)
    options.add_argument("--train", choices=MODES, help="only train, on the devices that there are")
    options.add_argument("--checkpoints", type=epath.Path, help="with --train: the folder of the checkpoints")
    options.add_argument("--losses", type=Path, help="with --train: a file for the losses")
    args = options.parse()
    if args.train:
        if args.checkpoints is None:
            options.error("--checkpoints must be given with --train")
        connect()
        with open(args.losses or os.devnull, "a") as file:

            def note(step: int, loss: float) -> None:
                print(json.dumps([step, loss]), file=file, flush=True)
                if step % args.every == 0 and args.losses is None and jax.process_index() == 0:
                    print(f"step {step}: {loss:.3f} bits per character", flush=True)

            train(args.train, args.steps, args.every, args.checkpoints, note)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {mode: compare(mode, args, Path(folder)) for mode in (["zero"] if args.quick else MODES)}
    for mode, (whole, resumed, _) in found.items():
        most = max(abs(value - whole[step]) / whole[step] for step, value in resumed.items())
        print(f"{MODES[mode]}: steps {min(resumed)} to {max(resumed)} again, the losses differ by {most:.1e} at most")
    draw(found, args)


if __name__ == "__main__":
    main()
