"""Taking chains apart: swap, drop, add; what may stand where; and that nothing is changed in place."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import Chain, adadelta, adagrad, adam, adamw, chain, nadam, rmsprop, sgd
from linkax.transforms import (
    add_l2_to_grad,
    bias_correction,
    decoupled_weight_decay,
    mean_square,
    moment_ratio,
    negate_grad,
    running_max,
    scale_by_inverse_time_decay,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_nesterov,
    scale_by_rms,
)


def names(tx):
    return [link.name for link in tx.links]


def test_a_chain_is_optaxs_chain():
    links = (scale_by_momentum(0.9), scale_by_learning_rate(0.1))
    ours, theirs = chain(*links), optax.chain(*links)
    params = {"w": jnp.arange(3.0)}
    states = ours.init(params), theirs.init(params)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for tx, state in zip((ours, theirs), states):
        updates, _ = tx.update(params, state, params)
        np.testing.assert_array_equal(updates["w"], -0.1 * np.arange(3, dtype=np.float32))
    assert ours.links == links


def test_chains_are_flat():
    a, b, c = add_l2_to_grad(0.1), scale_by_momentum(0.9), scale_by_learning_rate(0.1)
    assert chain(chain(a, b), c) == chain(a, chain(b, c)) == chain(a, b, c, chain())
    assert chain(optax.clip(1.0), adam()).links[1:] == adam().links


def test_an_empty_chain_leaves_updates_alone():
    tx = chain()
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), None, value=1.0)
    assert updates.tolist() == [1.0, 1.0]
    assert tx.links == ()
    assert repr(tx) == "chain"


def test_extra_arguments_reach_the_links_that_take_them():
    by_value = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), lambda g, state, params=None, *, value, **_: (value * g, state)
    )
    ratio = moment_ratio(by_value, mean_square(0.0), eps=0.0)
    for tx in (chain(by_value, scale_by_learning_rate(1.0)), chain(ratio, scale_by_learning_rate(1.0))):
        updates, _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())), None, value=3.0)
        assert updates == -3.0


@pytest.mark.parametrize("decay", [1e-2, 0.3])
def test_swapping_the_decay_makes_adamw_of_adam_and_back(decay):
    l2, decoupled = adam(1e-3, weight_decay=decay), adamw(1e-3, weight_decay=decay)
    assert l2.swap("add_l2_to_grad", decoupled_weight_decay(decay)) == decoupled
    assert decoupled.swap("decoupled_weight_decay", add_l2_to_grad(decay)) == l2
    assert hash(l2.swap("add_l2_to_grad", decoupled_weight_decay(decay))) == hash(decoupled)


def test_swap_keeps_the_place_if_it_can():
    tx = chain(optax.clip(1.0), add_l2_to_grad(0.1), optax.zero_nans(), *adam().links)
    assert names(tx.swap("add_l2_to_grad", add_l2_to_grad(0.2))) == names(tx)
    assert names(tx.swap("clip", optax.clip_by_global_norm(1.0)))[0] == "clip_by_global_norm"
    assert names(tx.swap("add_l2_to_grad", decoupled_weight_decay(0.1))) == [
        "clip",
        "zero_nans",
        "moment_ratio",
        "decoupled_weight_decay",
        "scale_by_learning_rate",
    ]


def test_the_independent_decay_goes_behind_the_learning_rate():
    tx = adamw().swap("decoupled_weight_decay", decoupled_weight_decay(1e-5, multiplied_by="nothing"))
    assert names(tx)[-2:] == ["scale_by_learning_rate", "decoupled_weight_decay"]


def test_swap_inside_a_ratio():
    tx = adam().swap("scale_by_momentum", scale_by_nesterov(0.9, form="averaged"))
    assert tx.links[0].hyperparams["first"].links[0] == scale_by_nesterov(0.9, form="averaged")
    first = adam().drop("first.bias_correction").swap("scale_by_momentum", scale_by_nesterov(0.9, form="corrected"))
    assert first.swap("scale_by_learning_rate", scale_by_learning_rate(2e-3)) == nadam(momentum_decay=None)


def test_swap_for_a_chain():
    momentum = chain(scale_by_rms(0.9), scale_by_momentum(0.9))
    assert names(rmsprop().swap("scale_by_rms", momentum)) == [*names(momentum), "scale_by_learning_rate"]
    assert rmsprop().swap("scale_by_rms", chain()) == rmsprop().drop("scale_by_rms")


def test_drop():
    plain = adam().drop("bias_correction")
    assert plain == chain(
        moment_ratio(scale_by_momentum(0.9, dampening=0.9), mean_square(0.999), 1e-8), scale_by_learning_rate(1e-3)
    )
    assert adam().drop("first.bias_correction").drop("second.bias_correction") == plain
    assert adam(weight_decay=0.1).drop("add_l2_to_grad") == adam()
    assert sgd(0.1, momentum=0.9).drop("scale_by_momentum") == sgd(0.1)


def test_dropping_all_of_the_first_moment_leaves_the_gradient():
    tx = adam().drop("scale_by_momentum").drop("first.bias_correction").drop("bias_correction")
    rms = chain(scale_by_rms(0.999), scale_by_learning_rate(1e-3))
    g = jnp.array([0.3, -2.0])
    np.testing.assert_array_equal(tx.update(g, tx.init(g), g)[0], rms.update(g, rms.init(g), g)[0])


def test_dropping_the_second_moment_says_what_to_do():
    with pytest.raises(ValueError, match=r"second must contain mean_square.*without a second moment, use first alone"):
        adam().drop("mean_square")


def test_add_goes_to_its_own_place():
    assert names(adam().add(add_l2_to_grad(0.1)))[0] == "add_l2_to_grad"
    clipped = chain(optax.clip(1.0), *adam().links).add(add_l2_to_grad(0.1))
    assert names(clipped)[:2] == ["clip", "add_l2_to_grad"]
    assert names(adam().add(scale_by_momentum(0.9))) == ["moment_ratio", "scale_by_momentum", "scale_by_learning_rate"]
    assert names(adam().add(decoupled_weight_decay(0.1)))[-2:] == ["decoupled_weight_decay", "scale_by_learning_rate"]
    assert adam().add(decoupled_weight_decay(1e-2)) == adamw()
    assert chain(scale_by_momentum(0.9)).add(scale_by_learning_rate(0.1)) == chain(
        scale_by_momentum(0.9), scale_by_learning_rate(0.1)
    )
    velocity = chain(scale_by_learning_rate(0.1), scale_by_momentum(0.9))
    assert names(velocity.add(bias_correction(0.9)))[-1] == "bias_correction"


def test_add_a_chain_puts_every_link_in_its_own_place():
    tx = adam().add(chain(add_l2_to_grad(0.1), decoupled_weight_decay(0.1)))
    assert names(tx) == ["add_l2_to_grad", "moment_ratio", "decoupled_weight_decay", "scale_by_learning_rate"]


def test_add_before_and_after():
    assert adam().add(running_max(), after="mean_square") == adam(amsgrad=True)
    assert adam().add(running_max(), before="second.bias_correction") == adam(amsgrad=True)
    assert names(adam().add(optax.clip(1.0), before="moment_ratio"))[0] == "clip"
    assert names(adam().add(optax.clip(1.0), after="scale_by_learning_rate"))[-1] == "clip"


def test_chains_never_change():
    tx = adam(weight_decay=0.1)
    before = repr(tx)
    tx.drop("bias_correction")
    tx.add(running_max(), after="mean_square")
    tx.swap("add_l2_to_grad", decoupled_weight_decay(0.1))
    assert repr(tx) == before
    assert tx == adam(weight_decay=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tx: tx.drop("foo"),
            "no link is called 'foo'; the links are moment_ratio, first.scale_by_momentum, first.bias",
        ),
        (lambda tx: tx.drop(""), "Chain.drop: no link is called ''"),
        (lambda tx: tx.drop("correction"), "Chain.drop: no link is called 'correction'"),
        (lambda tx: tx.swap("bias_correction", running_max()), "2 links are called 'bias_correction': first.bias"),
        (lambda tx: tx.add(running_max(), after="bias_correction"), "name one of them"),
        (lambda tx: tx.add(optax.clip(1.0)), "before or after must be given for clip"),
        (lambda tx: tx.add(running_max(), after="first", before="second"), "got both 'second' and 'first'"),
        (lambda tx: chain(*tx.links, optax.clip(1.0)).add(scale_by_inverse_time_decay(0.1)), None),
        (lambda tx: chain(optax.adam(0.1)).add(decoupled_weight_decay(0.1)), "place of a link after it is unknown"),
        (lambda tx: tx.add(scale_by_learning_rate(0.1)), "one learning rate is allowed"),
    ],
)
def test_a_change_that_cannot_be_made_is_explained(change, message):
    if message is None:
        change(adam())
        return
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        change(adam())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: chain(decoupled_weight_decay(0.1), adam()), "to decay the weights before the moments, use add_l2_to"),
        (lambda: chain(adam(), add_l2_to_grad(0.1)), "to decay the weights after the moments, use decoupled_weight_d"),
        (lambda: chain(adam(), decoupled_weight_decay(0.1)), "decoupled_weight_decay(multiplied_by='nothing')"),
        (
            lambda: chain(decoupled_weight_decay(0.1, multiplied_by="nothing"), scale_by_learning_rate(0.1)),
            "got scale_by_learning_rate (learning rate) after decoupled_weight_decay (update)",
        ),
        (lambda: chain(mean_square(0.9), scale_by_learning_rate(0.1)), "use scale_by_rms, scale_by_rss or"),
        (lambda: chain(adam(), sgd()), "one learning rate is allowed"),
        (lambda: adam().swap("moment_ratio", mean_square(0.9)), "use scale_by_rms, scale_by_rss or"),
    ],
)
def test_an_impossible_place_is_an_error_that_says_what_to_use(build, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        build()


def test_the_learning_rate_may_stand_before_momentum():
    assert names(chain(scale_by_learning_rate(0.1), scale_by_momentum(0.9)))[0] == "scale_by_learning_rate"


def test_foreign_transformations_may_stand_anywhere():
    for at in range(3):
        links = list(adamw().links)
        links.insert(at, optax.clip(1.0))
        assert names(chain(*links))[at] == "clip"


@pytest.mark.parametrize("thing", [3, "adam", None, adam, scale_by_momentum])
def test_what_is_no_transformation_is_refused(thing):
    with pytest.raises(TypeError, match="^chain: an argument must be a link, a chain or an Optax transformation, got"):
        chain(thing)
    with pytest.raises(TypeError, match="^Chain.add: link must be"):
        adam().add(thing, before="moment_ratio")


def test_a_plain_zero_leaves_its_link_out_and_an_array_does_not():
    assert adamw(weight_decay=0) == adam()
    assert sgd(0.1, momentum=0) == sgd(0.1)
    assert adagrad(lr_decay=0.0) == adagrad()
    assert names(adamw(weight_decay=jnp.float32(0)))[1] == "decoupled_weight_decay"


@pytest.mark.parametrize("factory", [sgd, adagrad, rmsprop, adadelta, adam, adamw, nadam])
def test_maximize_negates_before_anything_else(factory):
    tx = factory(maximize=True, weight_decay=0.1)
    assert tx.links[0] == negate_grad()
    assert isinstance(tx, Chain)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(
    ("state_of", "tx", "message"),
    [
        (
            adam(1e-3, weight_decay=0.1),
            adamw(1e-3, weight_decay=0.1),
            r"state\[0\] is EmptyState where moment_ratio keeps MomentRatioState",
        ),
        (sgd(0.1), sgd(0.1, momentum=0.9), "state is a tuple of EmptyState where this chain keeps a tuple of Scale"),
        (
            adam(1e-3),
            adam(1e-3, amsgrad=True),
            r"state\[0\].second is a tuple of MeanSquareState, BiasCorrectionState where moment_ratio keeps a tuple of",
        ),
        (
            sgd(0.1, momentum=0.9),
            sgd(0.1, momentum=0.9, nesterov=True),
            r"state\[0\] is ScaleByMomentumState where scale_by_nesterov keeps ScaleByNesterovState",
        ),
        (
            sgd(0.1),
            sgd(optax.constant_schedule(0.1)),
            r"state\[0\] is EmptyState where scale_by_learning_rate keeps ScheduledState",
        ),
    ],
)
def test_a_state_of_another_chain_is_told(state_of, tx, message, jitted):
    w = jnp.ones(2)
    update = jax.jit(tx.update) if jitted else tx.update
    with pytest.raises(ValueError, match=f"Chain.update: state must be one that .*: {message}.*; linkax.migrate"):
        update(w, state_of.init(w), w)
    wrapped = optax.MultiSteps(tx, 2)
    with pytest.raises(ValueError, match="Chain.update: state must be one that this chain's init has made"):
        wrapped.update(w, optax.MultiSteps(state_of, 2).init(w), w)


def test_other_errors_stay_what_they_are():
    def fails(updates, state, params=None):
        raise ValueError("of its own")

    tx = chain(optax.GradientTransformation(optax.init_empty_state, fails))
    with pytest.raises(ValueError, match="^of its own$"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_attributes_of_a_chain_cannot_be_set():
    tx = adam(1e-3)
    with pytest.raises(AttributeError, match=r"Chain: 'learning_rate' cannot be set, .* tx.swap.* linkax.live"):
        tx.learning_rate = 1.0
    assert tx._replace(init=tx.init) == tx == tx._make(tx)
    other = tx._replace(update=optax.identity().update)
    assert [link.name for link in other.links] == ["identity"]
    assert repr(other) == "chain\n└─ identity()"


def test_a_state_for_other_shapes_is_told():
    old, new = {"w": jnp.ones(1)}, {"w": jnp.ones(3)}
    with pytest.raises(
        ValueError, match=r"Chain.update: state must be one for these parameters: state.*mu.* \(1,\) instead"
    ):
        adam().update(new, adam().init(old), new)
