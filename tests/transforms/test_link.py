"""What a link knows about itself, and how links are made."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

from linkax.transforms import (
    Link,
    Rate,
    add_l2_to_grad,
    bias_correction,
    decoupled_weight_decay,
    link,
    mean_square,
    moment_ratio,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
)


@link("gradient")
def scale_gradient(factor: Rate, *, name: str = "plain") -> optax.GradientTransformation:
    return optax.stateless(lambda g, _: jax.tree.map(lambda x: factor * x, g))


def test_a_link_is_an_optax_transformation():
    tx = scale_by_momentum(0.9)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    init, update = tx
    assert (init, update) == (tx.init, tx.update)


def test_a_users_link_is_a_link():
    tx = scale_gradient(2.0)
    assert (tx.name, dict(tx.hyperparams), tx.place) == ("scale_gradient", {"factor": 2.0, "name": "plain"}, "gradient")
    assert repr(tx) == "scale_gradient(factor=2.0)"
    assert repr(scale_gradient(2.0, name="other")) == "scale_gradient(factor=2.0, name='other')"
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), None, value=3.0)  # extra arguments are ignored
    assert updates.tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="^scale_gradient: factor must be"):
        scale_gradient(-1.0)


@pytest.mark.parametrize(
    ("tx", "place"),
    [
        (add_l2_to_grad(0.1), "gradient"),
        (scale_by_momentum(0.9), "moment"),
        (bias_correction(0.9), "moment"),
        (moment_ratio(optax.identity(), mean_square(0.9), 1e-8), "moment"),
        (decoupled_weight_decay(0.1), "step"),
        (decoupled_weight_decay(0.1, multiplied_by="schedule", peak_learning_rate=0.1), "step"),
        (decoupled_weight_decay(0.1, multiplied_by="nothing"), "update"),
        (scale_by_learning_rate(0.1), "step"),
    ],
)
def test_place(tx, place):
    assert tx.place == place


def test_replace():
    assert scale_by_rms(0.99).replace(eps=1e-6) == scale_by_rms(0.99, eps=1e-6)
    with pytest.raises(TypeError, match="scale_by_rms: got an unexpected keyword argument 'beta'"):
        scale_by_rms(0.99).replace(beta=1)
    with pytest.raises(TypeError, match="'clip' was not built by a link factory"):
        Link(*optax.clip(1.0)).replace(max_delta=2.0)


def test_hyperparams_cannot_be_changed():
    with pytest.raises(TypeError):
        scale_by_momentum(0.9).hyperparams["decay"] = 0.5  # type: ignore[index]


def test_a_foreign_link_appears_under_its_functions_name():
    assert repr(Link(*optax.clip_by_global_norm(1.5))) == "clip_by_global_norm(max_norm=1.5)"
    adapted = optax.with_extra_args_support(optax.scale(2.0))
    assert repr(Link(*adapted)) == "scale(step_size=2.0)"
    assert Link(*optax.clip(1.0)).place is None


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (optax.exponential_decay(0.1, 10, 0.5), r"exponential_decay\(.*decay_rate=0.5.*init_value=0.1"),
        (optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100), "until step 10, then cosine_decay_schedule"),
        (lambda count: 0.1, "learning_rate=<lambda>"),
        (jnp.float32(0.25), "learning_rate=0.25"),
    ],
)
def test_a_hyperparameter_is_written_as_what_made_it(schedule, text):
    assert re.search(text, repr(scale_by_learning_rate(schedule)))


def test_a_tracer_is_written_as_one():
    texts = []
    jax.jit(lambda rate: texts.append(repr(scale_by_learning_rate(rate))))(0.1)
    assert texts == ["scale_by_learning_rate(learning_rate=<traced float32>)"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: moment_ratio(3, mean_square(0.9), 1e-8), "first must be a link, a chain or an Optax transformation"),
        (lambda: moment_ratio(optax.identity(), bias_correction(0.9), 1e-8), "second must contain mean_square"),
        (lambda: moment_ratio(mean_square(0.9), mean_square(0.9), 1e-8), "first must not contain a second moment"),
        (lambda: moment_ratio(decoupled_weight_decay(0.1), mean_square(0.9), 1e-8), "of the place 'step'"),
    ],
)
def test_a_ratio_that_means_nothing_is_refused(build, message):
    with pytest.raises((TypeError, ValueError), match=f"^moment_ratio: .*{message}"):
        build()


def test_moments_of_foreign_links():
    """Optax's own transformations may stand inside a ratio; its moments of float16 are then float32."""
    tx = moment_ratio(optax.ema(0.9, debias=False), mean_square(0.9), 1e-8)
    params = jnp.ones(2, jnp.float16)
    state = tx.init(params)
    updates, new_state = tx.update(params, state, params)
    assert updates.dtype == jnp.float16
    assert jax.tree.map(lambda x: x.dtype, new_state) == jax.tree.map(lambda x: x.dtype, state)
    assert state.first.ema.dtype == jnp.float32
