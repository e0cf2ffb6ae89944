"""A sweep that several devices or hosts share, printed as JSON; started by test_sweep.py.

python -m tests.chains.laboratory.sweep_hosts FILE [PORT HOST HOSTS]
"""

import json
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linkax.chains import adam, sgd, sweep

GRID = {"learning_rate": [0.01, 0.1, 0.3], "seed": range(5)}
VARIANTS = {
    "sgd": lambda learning_rate: sgd(learning_rate, momentum=0.9),
    "adam": lambda learning_rate: adam(learning_rate),
}
INPUTS = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
TARGETS = np.sin(INPUTS.sum(axis=1, keepdims=True))


def train(tx, seed, steps=6):
    """A network of two layers."""
    first, second = jax.random.split(jax.random.key(seed))
    params = {"first": jax.random.normal(first, (4, 8)), "second": jax.random.normal(second, (8, 1)) / 3}

    def loss(params):
        return jnp.mean((jnp.tanh(INPUTS @ params["first"]) @ params["second"] - TARGETS) ** 2)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return {"loss": losses, "final": loss(params)}


def results(file=None, **options):
    """The metrics as hexadecimal bytes, which compare to the last bit."""
    table = sweep(train, GRID, VARIANTS, file=file, progress=False, **options)
    return {name: values.values.tobytes().hex() for name, values in table.data_vars.items()}


def refusal(file):
    """What all hosts are told when the first cannot write."""
    if jax.process_index() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        sweep(train, GRID, VARIANTS, file=file, progress=False)
    except OSError as error:
        return str(error)


if __name__ == "__main__":
    file, *host = sys.argv[1:]
    if host:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{host[0]}", process_id=int(host[1]), num_processes=int(host[2]))
    found = {"devices": jax.device_count(), "results": results(file), "again": results(file)}
    if host:
        try:
            sweep(lambda x, data: {"y": x * data}, {"x": [1.0]}, data=float(host[1]), progress=False)
        except ValueError as error:
            found["refused"] = str(error)
        found["refusal"] = refusal(file + ".zarr")
    print(json.dumps(found))
