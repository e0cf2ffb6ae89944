"""`scale_by_adadelta` is its two links, whatever it does for the compiler's sake."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.transforms import scale_by_adadelta, scale_by_past_rms, scale_by_rms

RHO, EPS = 0.9, 1e-6


def two_links() -> optax.GradientTransformation:
    return optax.chain(scale_by_rms(RHO, EPS, eps_in_sqrt=True), scale_by_past_rms(RHO, EPS))


def gradients(dtype) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    g = rng.normal(size=(7, 5)) * 10 ** rng.uniform(-6, 6, (7, 5))
    g[0] = 0
    if np.issubdtype(dtype, np.complexfloating):
        g = g + 1j * rng.normal(size=(7, 5))
    return {"w": g.astype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_it_equals_its_two_links_to_the_bit(dtype):
    with jax.enable_x64(dtype == np.float64):
        g, one, other = gradients(dtype), scale_by_adadelta(RHO, EPS), two_links()
        states = one.init(g), other.init(g)
        for _ in range(5):
            ours, ours_state = one.update(g, states[0])
            theirs, theirs_state = other.update(g, states[1])
            for a, b in zip(jax.tree.leaves((ours, ours_state)), jax.tree.leaves((theirs, theirs_state)), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
            states = ours_state, theirs_state


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_the_mean(bad):
    link, g = scale_by_adadelta(RHO, EPS), jnp.array([1.0, bad])
    _, state = link.update(g, link.init(g))
    np.testing.assert_allclose(optax.tree.get(state, "nu"), (1 - RHO) * g * g, rtol=1e-6)  # two roundings in float32


def test_derivatives_through_the_mean_are_those_of_the_two_links():
    def last(scale, tx):
        g = {"w": scale * jnp.array([0.0, 1.0, -2.0])}
        state = tx.init(g)
        for _ in range(3):
            _, state = tx.update(g, state)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(state))

    for derivative in (jax.grad(last), jax.hessian(last)):
        ours, theirs = derivative(1.5, scale_by_adadelta(RHO, EPS)), derivative(1.5, two_links())
        np.testing.assert_array_equal(ours, theirs)
        assert np.isfinite(ours)
        assert ours != 0
