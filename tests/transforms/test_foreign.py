"""What is read off Optax's functions; these tests notice when a version of Optax writes them otherwise."""

import jax
import jax.numpy as jnp
import optax
import pytest

from linkax.transforms import Count, Moment, Stream, link, scale_by_momentum
from linkax.transforms._foreign import _COMBINATORS, _LEAVES
from linkax.transforms._link import as_one_link, links_of

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
INNER = optax.trace(0.9)


def condition(step, **_):
    return step >= 0


COMBINATORS = {
    "chain": (optax.chain(optax.clip(1.0), INNER), {}),
    "named_chain": (optax.named_chain(("one", INNER), ("two", optax.clip(1.0))), {}),
    "partition": (optax.partition({"x": INNER}, "x"), {"param_labels": "x"}),
    "masked": (optax.masked(INNER, True), {"mask": True}),
    "apply_if_finite": (optax.apply_if_finite(INNER, 3), {"max_consecutive_errors": 3}),
    "conditionally_transform": (optax.conditionally_transform(INNER, condition), {"should_transform_fn": condition}),
    "conditionally_mask": (optax.conditionally_mask(INNER, condition), {"should_transform_fn": condition}),
    "inject_hyperparams": (optax.inject_hyperparams(optax.trace)(0.9), {"decay": 0.9}),
    "flatten": (optax.flatten(INNER), {}),
    "lookahead": (optax.lookahead(INNER, 5, 0.5), {"sync_period": 5, "slow_step_size": 0.5}),
}
LEAVES = {
    "identity": (optax.identity(), ""),
    "clip": (optax.clip(1.0), "max_delta=1.0"),
    "clip_by_global_norm": (optax.clip_by_global_norm(1.0), "max_norm=1.0"),
    "clip_by_block_rms": (optax.clip_by_block_rms(1.0), "threshold=1.0"),
    "adaptive_grad_clip": (optax.adaptive_grad_clip(0.1), "clipping=0.1"),
    "centralize": (optax.centralize(), ""),
    "zero_nans": (optax.zero_nans(), ""),
    "keep_params_nonnegative": (optax.keep_params_nonnegative(), ""),
    "add_decayed_weights": (optax.add_decayed_weights(0.1), "weight_decay=0.1"),
    "set_to_zero": (optax.set_to_zero(), ""),
    "add_noise": (optax.add_noise(0.1, 0.5, 0), "eta=0.1, gamma=0.5, key=0"),
    "scale": (optax.scale(-2.0), "step_size=-2.0"),
    "scale_by_schedule": (optax.scale_by_schedule(optax.constant_schedule(0.1)), None),
    "reduce_on_plateau": (optax.contrib.reduce_on_plateau(0.5, 7, cooldown=3), "factor=0.5, patience=7, cooldown=3"),
    "trace": (optax.trace(0.9), "decay=0.9"),
    "ema": (optax.ema(0.9, debias=False), "decay=0.9, debias=False"),
    "scale_by_adam": (optax.scale_by_adam(b1=0.5), "b1=0.5"),
    "scale_by_amsgrad": (optax.scale_by_amsgrad(), ""),
    "scale_by_rms": (optax.scale_by_rms(0.5, bias_correction=True), "decay=0.5, bias_correction=True"),
    "scale_by_stddev": (optax.scale_by_stddev(0.5), "decay=0.5"),
    "scale_by_rss": (optax.scale_by_rss(), ""),
    "scale_by_adadelta": (optax.scale_by_adadelta(), ""),
}


def test_every_entry_has_a_case():
    assert COMBINATORS.keys() == _COMBINATORS.keys()
    assert LEAVES.keys() == _LEAVES.keys()


@pytest.mark.parametrize("name", COMBINATORS)
def test_what_a_combinator_holds_and_was_given_is_seen(name):
    tx, arguments = COMBINATORS[name]
    seen = as_one_link(tx)
    assert seen.name == name
    assert not seen.is_opaque
    described = {key for key in seen.hyperparams if key in arguments}
    assert {key: seen.hyperparams[key] for key in described} == arguments
    held = [inner for slot in seen.slots.values() for inner in slot.links]
    assert "trace" in [inner.name for inner in held]


@pytest.mark.parametrize("name", [name for name in COMBINATORS if name != "inject_hyperparams"])
def test_a_combinator_is_built_anew_around_something_else(name):
    tx, _ = COMBINATORS[name]
    seen = as_one_link(tx)
    slot = next(iter(seen.slots))
    new = seen.with_slots({slot: scale_by_momentum(0.5)})
    assert new.name == name
    assert new.slots[slot].links == (scale_by_momentum(0.5),)
    assert seen.with_slots({slot: INNER}).with_slots({slot: scale_by_momentum(0.5)}) == new
    with pytest.raises(ValueError, match=f"Link.with_slots: changes must be for {', '.join(seen.slots)}, got other"):
        seen.with_slots({"other": INNER})


@pytest.mark.parametrize("steps", [optax.MultiSteps(INNER, 4), optax.MultiSteps(INNER, 4).gradient_transformation()])
def test_multi_steps_is_seen_as_object_and_as_transformation(steps):
    (seen,) = links_of("test", steps)
    assert repr(seen) == "MultiSteps(every_k_schedule=4)"
    assert seen.slots["inner"].links[0].name == "trace"
    assert repr(seen.with_slots({"inner": optax.trace(0.5)})) == "MultiSteps(every_k_schedule=4)"
    (other,) = links_of("test", optax.MultiSteps(INNER, condition, use_grad_mean=False))
    assert repr(other) == "MultiSteps(every_k_schedule=condition, use_grad_mean=False)"


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_prints_with_what_it_was_given_and_has_the_fields_it_is_said_to_have(name):
    tx, text = LEAVES[name]
    seen = as_one_link(tx)
    assert seen.name == name
    assert not seen.is_opaque
    if text is not None:
        assert repr(seen) == f"{name}({text})"
    state = tx.init(PARAMS)
    for (field,), meaning in seen.fields.items():
        if field == "count" and not hasattr(state, "_fields"):
            continue
        if isinstance(meaning, Count) and field not in state._fields:
            assert name in ("scale_by_rms", "scale_by_stddev")  # only with their bias correction
            continue
        value = getattr(state, field)
        if isinstance(meaning, Moment):
            assert jax.tree.map(jnp.shape, value) == jax.tree.map(jnp.shape, PARAMS)
        else:
            assert jnp.shape(value) == ()
    assert isinstance(seen.out(Stream()), Stream)


def test_what_cannot_be_looked_into_is_opaque():
    class Transformation:
        def update(self, updates, state, params=None):
            return updates, state

    assert as_one_link(optax.GradientTransformation(optax.init_empty_state, Transformation().update)).is_opaque
    assert as_one_link(optax.contrib.schedule_free(optax.sgd(0.1), 0.1)).is_opaque
    assert as_one_link(optax.contrib.split_real_and_imaginary(optax.sgd(0.1))).is_opaque
    assert not as_one_link(optax.stateless(lambda u, p: u)).is_opaque


def test_a_link_says_where_what_it_holds_is():
    @link("moment", holds={"inner": ("held",)})
    def around(inner: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.GradientTransformation(lambda params: {"held": inner.init(params)}, inner.update)

    (slot,) = around(scale_by_momentum(0.9)).slots.values()
    assert slot.path == ("held",)
    assert slot.kind == "around"


def test_a_link_without_a_place_fails_where_it_is_written():
    with pytest.raises(
        TypeError, match=r"link: place must be one of 'gradient', .* write @link\('moment'\), not @link, got <f"
    ):

        @link
        def nothing() -> optax.GradientTransformation:
            return optax.identity()


@pytest.mark.parametrize("tx", [scale_by_momentum(0.9), as_one_link(optax.clip(1.0))])
def test_links_never_change(tx):
    with pytest.raises(AttributeError, match=r"Link: 'decay' cannot be set, .* link.replace\(...\) makes a link"):
        tx.decay = 0.5
    again = tx._replace(init=tx.init)
    assert again == tx
    assert again._make(tx) == tx
    other = tx._replace(update=optax.identity().update)
    assert other != tx
    assert other.name == "identity"
