"""Muon and Adafactor, whose arithmetic depends on the axes of an array: in wrappers, at odd shapes, refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adafactor, adam, adamw, live, migrate, muon, param_groups
from linkax.transforms import factored_mean_square, orthogonalize, scale_by_matrix_shape

PARAMS = {
    "embedding": jnp.ones((6, 3)) * jnp.arange(1.0, 7.0)[:, None],
    "dense": {"kernel": jnp.eye(3, 4) + 0.5, "bias": jnp.ones(4)},
}
GRADS = jax.tree.map(lambda p: jnp.sin(3 * p) + 0.1, PARAMS)


def recipe(**given):
    return param_groups(
        {"muon": muon(0.02, **given), "adamw": adamw(3e-4)},
        lambda path, w: "muon" if w.ndim == 2 and "embed" not in path else "adamw",
    )


def stepped(tx, steps=3, params=PARAMS, grads=GRADS):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


OPTIMIZERS = {"muon": recipe(), "adafactor": adafactor(weight_decay=0.1)}
each = pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)


@each
def test_in_optaxs_wrappers_it_steps_as_alone(tx):
    expected = stepped(tx)
    wrapped = [
        optax.apply_if_finite(tx, 3),
        optax.masked(tx, jax.tree.map(lambda _: True, PARAMS)),
        optax.chain(optax.clip_by_global_norm(1e9), tx),
        live(tx, "learning_rate" if tx is OPTIMIZERS["adafactor"] else "muon.learning_rate"),
    ]
    for one in wrapped:
        # Compiled otherwise: a few roundings of float32; in bfloat16 one the other way is 2⁻⁸ of a step of 0.02.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), stepped(one), expected)
    every = optax.MultiSteps(tx, 2).gradient_transformation()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), stepped(every, 6), expected)


@each
def test_a_state_from_shapes_and_bfloat16_parameters(tx):
    shapes = jax.eval_shape(tx.init, PARAMS)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, tx.init(PARAMS))
    low = optax.tree.cast(PARAMS, jnp.bfloat16)
    state = tx.init(low)
    updates, after = jax.jit(tx.update)(optax.tree.cast(GRADS, jnp.bfloat16), state, low)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(after) if leaf.ndim} == {jnp.dtype(jnp.float32)}


def test_muons_momentum_in_fewer_bits():
    params = {"w": jnp.ones((128, 64))}
    tx = muon(state="int8")
    state = tx.init(params)
    assert state[0].inner.mu["w"].codes.dtype == jnp.int8
    updates, _ = jax.jit(tx.update)(params, state, params)
    assert jnp.isfinite(updates["w"]).all()


def test_adafactors_state_is_small_and_may_be_smaller():
    params = {"w": jnp.ones((5000, 4200)), "b": jnp.ones(4200)}

    def size(tx):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params)))

    assert size(adafactor()) == 4 * (5000 + 4200 + 4200) + 8  # two counts
    assert size(adafactor(state="int8")) == 5000 + 4 + 4200 + 4 + 4 * 4200 + 12
    assert size(adafactor(state="bfloat16")) == 2 * (5000 + 4200 + 4200) + 12
    assert size(adafactor(axes=None)) > 4 * 5000 * 4200


@pytest.mark.parametrize("as_", ["bfloat16", "float8", "int8", "int4"])
def test_means_of_rows_in_fewer_bits_step_as_in_float32(as_):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4096, 2)), jnp.float32)}
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    ours, expected = (stepped(tx, 2, params, grads)["w"] for tx in (adafactor(state=as_), adafactor()))
    # Divisors are roots: half of the relative error of a code, which is a factor of 2 in int4.
    change, off = np.abs(expected - params["w"]).mean(), np.abs(ours - expected).mean()
    assert 0 < off < {"bfloat16": 0.01, "float8": 0.05, "int8": 0.05, "int4": 0.5}[as_] * change


def test_migrate_keeps_means_of_rows_and_columns():
    tx = adafactor()
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    same = migrate(tx, state, adafactor(optax.constant_schedule(1e-3), threshold=2.0), {"params": PARAMS})
    assert not same.dropped
    assert not same.mixed
    assert not [one for one in same.created if "nu" in one]
    other = migrate(tx, state, adafactor(axes=None), PARAMS)
    assert any("its shape is" in note for note in other.notes)
    assert any("nu_row restarts" in note for note in migrate(adam(), adam().init(PARAMS), tx, PARAMS).notes)


def test_axes_may_depend_on_the_path_and_the_shape():
    seen = {}

    def axes(path, leaf):
        seen[path] = leaf.shape
        return None if path == "embedding" else (0, 1) if len(leaf.shape) == 2 else None

    state = factored_mean_square(0.9, axes=axes).init(PARAMS)
    assert seen == {"embedding": (6, 3), "dense/kernel": (3, 4), "dense/bias": (4,)}
    assert state.nu["embedding"].shape == (6, 3)
    assert state.nu_row["dense"]["kernel"].shape == (3, 1)
    turned = scale_by_matrix_shape(output_axis=lambda path, leaf: 0)
    u = jnp.ones((4, 1))
    np.testing.assert_array_equal(turned.update(u, turned.init(u))[0], 2 * u)


def test_what_cannot_be_is_refused():
    with pytest.raises(
        ValueError, match=r"orthogonalize: params must be a real matrix, got dense/bias of shape \(4,\); "
    ):
        muon().init(PARAMS)
    with pytest.raises(ValueError, match="an update must be a real matrix, got one of shape .* and complex"):
        orthogonalize().update(jnp.ones((2, 2), jnp.complex64), optax.EmptyState())
    with pytest.raises(ValueError, match="orthogonalize: coefficients must be three finite numbers"):
        muon(ns_coefficients=(1.0, 2.0))
    with pytest.raises(ValueError, match="orthogonalize: steps must be an integer from 0 to 99, got 100"):
        muon(ns_steps=100)
    with pytest.raises(ValueError, match="orthogonalize: output_axis must be an integer from -2 to 1, got 2"):
        muon(output_axis=2)
    with pytest.raises(ValueError, match="muon: adjust_lr_fn must be 'original' or 'match_rms_adamw'"):
        muon(adjust_lr_fn="none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="factored_mean_square: axes must be two different axes"):
        adafactor(axes=(-1, 1))
    with pytest.raises(ValueError, match="factored_mean_square: axes must be the axes of rows and columns, or None"):
        adafactor(axes=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="axes of dense/bias must be an integer from -1 to 0, got -2"):
        adafactor(axes=lambda path, leaf: (-2, -1)).init(PARAMS)
    with pytest.raises(ValueError, match=r"adafactor: threshold must be a number in \[1, inf\)"):
        adafactor(threshold=0.5)
    tx = adafactor()
    with pytest.raises(ValueError, match="state must be"):
        tx.update(GRADS, tx.init(jax.tree.map(lambda p: p[..., :2], PARAMS)), PARAMS)
