"""Every line of docs/conventions.md, run: what a framework does, and the chain that does the same."""

import ast
import importlib
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import linkax.chains
import linkax.transforms

from .stream import STEPS, assert_same_path, gradients, parameters, taken_by, walk

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "conventions.md"
# Its values are exact in float32, in which Optax and Keras compute schedules of an int32 count.
BOUNDARIES, RATES = [100, 300], [0.125, 0.5, 0.25]


def schedule(count):
    return jnp.asarray(RATES)[(count >= BOUNDARIES[0]) * 1 + (count >= BOUNDARIES[1]) * 1]


def lines() -> dict[str, tuple[str, str]]:
    """Theirs and ours, by section and framework."""
    found, section = {}, ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif match := re.fullmatch(r"\| (\S.*?) \| (.*) \| `(.*)` \|", line):
            name, theirs, ours = match.groups()
            assert f"{section}: {name}" not in found, name
            found[f"{section}: {name}"] = theirs.strip("`"), ours
    return found


# The papers' algorithms: from the gradient, the parameter, the step from 1 and a dictionary of accumulators to the new
# parameter. All of the accumulators start from 0.


def polyak(g, w, t, s):
    s["v"] = 0.9 * s.get("v", 0) - float(schedule(t - 1)) * g
    return w + s["v"]


def duchi(g, w, t, s):
    s["sum"] = s.get("sum", 0.1) + g**2
    return w - 0.01 * g / np.sqrt(s["sum"])


def hinton(g, w, t, s):
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g**2
    return w - 0.01 * g / np.sqrt(s["v"])


def zeiler(g, w, t, s):
    s["g"] = 0.95 * s.get("g", 0) + 0.05 * g**2
    step = np.sqrt(s.get("x", 0) + 1e-6) / np.sqrt(s["g"] + 1e-6) * g
    s["x"] = 0.95 * s.get("x", 0) + 0.05 * step**2
    return w - step


def _moments(g, s):
    s["m"] = 0.9 * s.get("m", 0) + (1 - 0.9) * g
    s["v"] = 0.999 * s.get("v", 0) + (1 - 0.999) * g**2
    return s["m"], s["v"]


def kingma(g, w, t, s, rate=0.001):
    m, v = _moments(g, s)
    return w - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def kingma_hat(g, w, t, s):
    m, v = _moments(g, s)
    return w - 0.001 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)


def reddi(g, w, t, s):
    m, v = _moments(g, s)
    s["largest"] = np.maximum(s.get("largest", 0), v)
    return w - 0.001 * m / (np.sqrt(s["largest"]) + 1e-8)


def loshchilov(g, w, t, s):
    eta = float(schedule(t - 1)) / 0.5  # the schedule multiplier, of the largest learning rate
    return kingma(g, w, t, s, rate=0.5 * eta) - eta * 0.01 * w


def loshchilov_constant(g, w, t, s):
    return kingma(g, w, t, s) - 0.01 * w


def dozat(g, w, t, s):
    m, v = _moments(g, s)
    m_hat = 0.9 * m / (1 - 0.9 ** (t + 1)) + (1 - 0.9) * g / (1 - 0.9**t)
    return w - 0.002 * m_hat / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def kingma_max(g, w, t, s):
    s["m"] = 0.9 * s.get("m", 0) + (1 - 0.9) * g
    s["u"] = np.maximum(0.999 * s.get("u", 0), np.abs(g))
    return w - 0.002 / (1 - 0.9**t) * s["m"] / s["u"]


def liu(g, w, t, s):
    m, v = _moments(g, s)
    m_hat, longest = m / (1 - 0.9**t), 2 / (1 - 0.999) - 1
    length = longest - 2 * t * 0.999**t / (1 - 0.999**t)
    if length <= 4:
        return w - 0.001 * m_hat
    r = np.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return w - 0.001 * r * m_hat / np.sqrt(v / (1 - 0.999**t))


def chen(g, w, t, s):
    m = s.get("m", 0)
    s["m"] = 0.99 * m + (1 - 0.99) * g
    return w - 1e-4 * (np.sign(0.9 * m + (1 - 0.9) * g) + 0.1 * w)


def zhuang(g, w, t, s):
    s["m"] = 0.9 * s.get("m", 0) + (1 - 0.9) * g
    s["s"] = 0.999 * s.get("s", 0) + (1 - 0.999) * (g - s["m"]) ** 2 + 1e-8
    return w - 0.001 * (s["m"] / (1 - 0.9**t)) / (np.sqrt(s["s"] / (1 - 0.999**t)) + 1e-8)


def you(g, w, t, s):
    m, v = _moments(g, s)
    u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + 0.1 * w
    return w - 0.001 * np.linalg.norm(w) / np.linalg.norm(u) * u


def riedmiller(g, w, t, s):
    same = g * s.get("g", 0)
    s["size"] = s.get("size", 0.1) * np.where(same > 0, 1.2, np.where(same < 0, 0.5, 1))
    s["size"] = np.clip(s["size"], 1e-6, 50)
    s["g"] = np.where(same < 0, 0, g)
    return w - s["size"] * np.sign(s["g"])


PAPERS = {
    "SGD: paper, momentum": polyak,
    "Adagrad: paper": duchi,
    "RMSprop: lecture": hinton,
    "Adadelta: paper": zeiler,
    "Adam: paper": kingma,
    "Adam: paper, ε-hat": kingma_hat,
    "Adam: paper, AMSGrad": reddi,
    "AdamW: paper": loshchilov,
    "AdamW: paper, no schedule": loshchilov_constant,
    "NAdam: paper": dozat,
    "Adamax: paper": kingma_max,
    "RAdam: paper": liu,
    "Lion: paper": chen,
    "AdaBelief: paper": zhuang,
    "Rprop: paper": riedmiller,
    "LAMB: paper": you,
}


def walk_paper(algorithm, params, grads):
    path = {}
    for name, w in params.items():
        state, points = {}, []
        with np.errstate(invalid="ignore"):  # without ε, a gradient that has always been zero is divided by zero
            for t in range(1, STEPS + 1):
                w = algorithm(grads[name][t - 1], w, t, state)
                points.append(w)
        path[name] = np.stack(points)
    return path


def walk_torch(code, params, grads):
    from .torch_reference import torch_walk

    *clips, code = code.split("; ")
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    clip = clips[0] if clips else None
    return torch_walk(code.removeprefix("torch.optim.").partition("(")[0], arguments, params, grads, clip=clip)


@pytest.fixture
def keras(monkeypatch, x64):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    module = pytest.importorskip("keras", reason="compares with the installed Keras")
    assert module.backend.backend() == "jax"
    before = module.config.floatx()
    module.config.set_floatx("float64")
    yield module
    module.config.set_floatx(before)


def walk_keras(keras, code, params, grads):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([b - 1 for b in BOUNDARIES], RATES)
    optimizer = eval(code, {"keras": keras, "KERAS_SCHEDULE": schedule})
    variables = [keras.Variable(jnp.asarray(w)) for w in params.values()]
    optimizer.build(variables)

    def step(carry, g):
        state, weights = carry
        weights, state = optimizer.stateless_apply(state, g, weights)
        return (state, weights), weights

    start = [v.value for v in optimizer.variables], [v.value for v in variables]
    path = jax.jit(lambda start, stream: jax.lax.scan(step, start, stream)[1])(start, list(grads.values()))
    return {name: np.asarray(points) for name, points in zip(params, path)}


@pytest.mark.parametrize("name", lines())
def test_line(x64, name, request):
    theirs, ours = lines()[name]
    framework = theirs.partition(".")[0]
    grads = {key: value for key, value in gradients(zeros="centered" not in name).items() if key != "idle"}
    grads = taken_by(name.partition(":")[0], grads)
    params = {key: parameters()[key] for key in grads}
    if name in PAPERS:
        expected = walk_paper(PAPERS[name], params, grads)
    elif framework == "torch":
        pytest.importorskip("torch", reason="compares with the installed PyTorch")
        expected = walk_torch(theirs, params, grads)
    elif framework == "keras":
        expected = walk_keras(request.getfixturevalue("keras"), theirs, params, grads)
    else:
        expected = walk(eval(theirs, {"optax": optax, "SCHEDULE": schedule}), params, grads)
    names = {**vars(linkax.transforms), **vars(linkax.chains), "SCHEDULE": schedule, "optax": optax}
    assert_same_path(walk(eval(ours, names), params, grads), expected)


def test_every_optimizer_and_framework_is_there():
    named = {tuple(name.split(": ")) for name in lines()}
    for optimizer in ("SGD", "Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW", "NAdam", "Adamax"):
        assert {(optimizer, framework) for framework in ("PyTorch", "Optax", "Keras")} <= named
    assert {("RAdam", "PyTorch"), ("RAdam", "Optax"), ("Rprop", "PyTorch"), ("ASGD", "PyTorch")} <= named
    assert ("AdaBelief", "Optax") in named
    assert {("Adafactor", framework) for framework in ("PyTorch", "Optax")} <= named
    assert {("Muon", "PyTorch, in float64"), ("Muon", "Optax")} <= named
    assert {(optimizer, framework) for optimizer in ("Lion", "LAMB") for framework in ("Optax", "Keras")} <= named
    assert {("Clipping", f"{framework}, norm") for framework in ("PyTorch", "Optax", "Keras")} <= named
    assert PAPERS.keys() <= lines().keys()
    assert importlib.util.find_spec("optax")
