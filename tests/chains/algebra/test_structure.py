"""What Optax's combinators hold is seen: printed, found by name, swapped, taken apart; what cannot be seen says so."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import optax
import pytest

from linkax.chains import (
    ablations,
    adadelta,
    adagrad,
    adam,
    adamw,
    chain,
    diff,
    live,
    migrate,
    nadam,
    param_groups,
    rmsprop,
    sgd,
)
from linkax.chains.algebra._structure import groups_of, parts, state_arrays
from linkax.chains.torch_interop import export_state, import_state
from linkax.transforms import (
    Moment,
    add_l2_to_grad,
    decoupled_weight_decay,
    lazy,
    running_max,
    scale_by_learning_rate,
    scale_by_momentum,
    scale_by_rms,
)

from ..optimizers import assert_close
from ..wrappers import WRAPPERS, always

PARAMS = {"body": {"w": jnp.arange(6.0).reshape(2, 3)}, "head": jnp.ones(2)}
GRADS = jax.tree.map(lambda w: 0.5 - w, PARAMS)
INNER = "\n".join(f"{line}" for line in repr(sgd(0.1, momentum=0.9)).splitlines()[1:])


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (
            optax.MultiSteps(sgd(0.1, momentum=0.9), 4),
            """\
chain
└─ MultiSteps(every_k_schedule=4)
   ├─ scale_by_momentum(decay=0.9, dampening=0.0, first_step='gradient')  moment
   └─ scale_by_learning_rate(learning_rate=0.1)                           step""",
        ),
        (
            optax.named_chain(("clip", optax.clip_by_global_norm(1.0)), ("inner", optax.sgd(0.1, momentum=0.9))),
            """\
chain
└─ named_chain()
   ├─ clip
   │  └─ clip_by_global_norm(max_norm=1.0)
   └─ inner
      └─ chain()
         ├─ trace(decay=0.9)
         └─ scale(step_size=-0.1)""",
        ),
        (
            optax.partition({"a": sgd(0.1), "b": optax.set_to_zero()}, {"body": "a", "head": "b"}),
            """\
chain
└─ partition(param_labels={'body': 'a', 'head': 'b'})
   ├─ a
   │  └─ scale_by_learning_rate(learning_rate=0.1)     step
   └─ b
      └─ set_to_zero()""",
        ),
        (
            optax.apply_if_finite(optax.masked(optax.flatten(sgd(0.1)), True), 3),
            """\
chain
└─ apply_if_finite(max_consecutive_errors=3)
   └─ masked(mask=True)
      └─ flatten()
         └─ scale_by_learning_rate(learning_rate=0.1)  step""",
        ),
        (
            optax.conditionally_mask(optax.conditionally_transform(sgd(0.1), always), always),
            """\
chain
└─ conditionally_mask(should_transform_fn=always)
   └─ conditionally_transform(should_transform_fn=always)
      └─ scale_by_learning_rate(learning_rate=0.1)         step""",
        ),
        (
            optax.lookahead(sgd(0.1), 5, 0.5),
            """\
chain
└─ lookahead(sync_period=5, slow_step_size=0.5)
   └─ scale_by_learning_rate(learning_rate=0.1)  step""",
        ),
        (
            optax.inject_hyperparams(sgd)(0.5, momentum=0.75),
            """\
chain
└─ inject_hyperparams(learning_rate=0.5, momentum=0.75)
   ├─ scale_by_momentum(decay=0.75, dampening=0.0, first_step='gradient')  moment
   └─ scale_by_learning_rate(learning_rate=0.5)                            step""",
        ),
        (
            live(sgd(0.1)),
            """\
chain
└─ live(names=['learning_rate'])
   └─ scale_by_learning_rate(learning_rate=0.1)  step""",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_prints_as_what_it_is(tx, expected):
    assert repr(chain(tx)) == expected
    assert chain(tx)._repr_html_().count("<tr>") == len(expected.splitlines()) - 1


def test_transformations_without_anything_inside_print_with_what_they_were_given():
    reduce = optax.contrib.reduce_on_plateau(factor=0.5, patience=7, cooldown=3)
    tx = chain(adam(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000)), reduce)
    assert repr(tx.links[-1]) == "reduce_on_plateau(factor=0.5, patience=7, cooldown=3)"
    rate = repr(tx.links[-2])
    assert "until step 100, then cosine_decay_schedule" in rate
    assert len(rate) <= 120
    assert repr(chain(optax.scale_by_adam(b2=0.9))) == "chain\n└─ scale_by_adam(b2=0.9)"


def test_what_cannot_be_looked_into_says_so():
    tx = chain(optax.clip(1.0), optax.contrib.schedule_free(optax.sgd(0.1), 0.1))
    assert repr(tx).splitlines()[-1].endswith("opaque")
    assert ">opaque<" in tx._repr_html_()
    assert "opaque" not in repr(chain(optax.contrib.muon(0.1)))  # a partition of chains


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_names_reach_through(wrap, x64):
    params = jax.tree.map(lambda w: w.astype(jnp.float64), PARAMS)
    tx = chain(wrap(adam(1e-2, weight_decay=0.1)))
    swapped = tx.swap("add_l2_to_grad", decoupled_weight_decay(0.1))
    expected = adamw(1e-2, weight_decay=0.1)
    actual, _ = swapped.update(GRADS, swapped.init(params), params)
    assert_close(actual, expected.update(GRADS, expected.init(params), params)[0])
    names = [part.link.name for part in parts(swapped.links)]
    assert names.index("decoupled_weight_decay") > names.index("moment_ratio")  # it has gone to its own place
    assert swapped.swap("decoupled_weight_decay", add_l2_to_grad(0.1)) == tx
    assert tx.swap("second.mean_square", tx_part(tx, "second.mean_square")) == tx
    assert tx.add(running_max(), after="mean_square").drop("running_max") == tx
    assert "running_max" in repr(tx.add(running_max(), after="mean_square"))
    assert diff(tx, swapped)
    assert hash(tx) == hash(chain(wrap(adam(1e-2, weight_decay=0.1))))


def tx_part(tx, name):
    return next(part.link for part in parts(tx.links) if part.name.endswith(name))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_ablations_reach_through(wrap):
    inside = ablations(adamw())
    group = "all: " if wrap is WRAPPERS["param_groups"] or wrap is WRAPPERS["partition"] else ""
    found = ablations(chain(wrap(adamw())))
    for name, tx in inside.items():
        matches = [one for one in found if one.removeprefix(group).endswith(name)]
        assert any(found[one] == chain(wrap(tx)) for one in matches), name


def test_what_is_injected_cannot_be_changed():
    tx = chain(optax.inject_hyperparams(adam)(1e-3))
    with pytest.raises(ValueError, match=r"inject_hyperparams .* cannot be changed; .* linkax.live"):
        tx.drop("bias_correction")
    assert ablations(tx) == {}


def test_optaxs_sequences_keep_their_own_order():
    tx = chain(optax.chain(add_l2_to_grad(0.1), scale_by_rms(0.9), scale_by_learning_rate(0.1)))
    swapped = tx.swap("add_l2_to_grad", decoupled_weight_decay(0.1))
    names = [part.link.name for part in parts(swapped.links)]
    assert names == ["chain", "scale_by_rms", "decoupled_weight_decay", "scale_by_learning_rate"]
    assert isinstance(swapped.init(PARAMS)[0], tuple)


def test_nested_chains_stay_nested_inside_optaxs():
    inner = adam(1e-2)
    tx = chain(optax.chain(optax.clip(1.0), inner))
    assert len(tx.links) == 1
    assert jax.tree.structure(tx.init(PARAMS)) == jax.tree.structure(
        (optax.chain(optax.clip(1.0), inner).init(PARAMS),)
    )


def test_lazy_is_around_what_it_holds():
    tx = chain(lazy(scale_by_momentum(0.9)), scale_by_learning_rate(0.1))
    assert tx.drop("lazy") == chain(scale_by_momentum(0.9), scale_by_learning_rate(0.1))
    assert ablations(tx)["without lazy"] == chain(scale_by_momentum(0.9), scale_by_learning_rate(0.1))


def random_optimizers():
    """Chains of all kinds in combinators of all kinds, up to four deep."""
    schedule = optax.linear_schedule(1e-2, 1e-3, 20)
    bases = st.sampled_from(
        [
            adamw(schedule, amsgrad=True),
            adam(1e-2, b1=schedule, weight_decay=0.1),
            sgd(0.1, momentum=0.9, nesterov=True),
            rmsprop(schedule, momentum=0.9, centered=True),
            nadam(),
            adagrad(lr_decay=0.1),
            adadelta(),
            chain(scale_by_learning_rate(0.1), scale_by_momentum(0.9)),
            optax.adamw(schedule),
            optax.sgd(0.1, momentum=0.9),
        ]
    )
    wrappers = [wrap for name, wrap in WRAPPERS.items() if name not in ("plain", "nested")]

    def around(inner):
        groups = st.tuples(inner, inner).map(
            lambda pair: param_groups({"body": pair[0], "head": pair[1]}, {"body": "body", "head": "head"})
        )
        return st.tuples(st.sampled_from(wrappers), inner).map(lambda pair: as_one(pair[0](as_one(pair[1])))) | groups

    return st.recursive(bases, around, max_leaves=3)


def as_one(tx):
    """Optax's combinators take no `MultiSteps` object inside each other."""
    return tx.gradient_transformation() if isinstance(tx, optax.MultiSteps) else tx


@hypothesis.given(random_optimizers())
@hypothesis.settings(max_examples=40)
def test_any_nesting_prints_migrates_to_itself_and_can_be_swapped_and_swapped_back(inner):
    tx = chain(inner)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    _, state = tx.update(GRADS, state, PARAMS)
    assert len(repr(tx).splitlines()) > len(list(parts(tx.links)))
    assert "opaque" not in repr(tx)
    migration = migrate(tx, state, tx, PARAMS)
    chex.assert_trees_all_equal(migration.state, state)
    assert not any(migration[2:])
    for part in parts(tx.links):
        if part.link.slots or [other.name for other in parts(tx.links)].count(part.name) > 1:
            continue
        if sum(f".{other.name}".endswith(f".{part.name}") for other in parts(tx.links)) > 1:
            continue
        changed = tx.swap(part.name, optax.centralize())
        assert changed != tx
        assert changed.swap(part.name.rpartition(".")[0] + "." * ("." in part.name) + "centralize", part.link) == tx


@hypothesis.given(random_optimizers())
@hypothesis.settings(max_examples=25)
def test_any_nesting_goes_to_pytorch_and_back(inner):
    tx = chain(inner)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    arrays = state_arrays("test", tx, state, PARAMS)
    counts = {int(array.value) for array in arrays if array.is_count}
    if counts - {1}:  # a condition that PyTorch does not have lets something rest
        return
    members = set(groups_of(tx.links, PARAMS).values())
    together = len(members) == 1
    names = [["body.w", "head"]] if together else [["body.w"], ["head"]]
    numbers = iter(range(2))
    groups = [{"params": [next(numbers) for _ in own], "param_names": own} for own in names]
    exported = export_state(tx, PARAMS, state, {"state": {}, "param_groups": groups}, steps=1)
    again = import_state(tx, PARAMS, exported, steps=1)
    for array, new in zip(arrays, state_arrays("test", tx, again, PARAMS)):
        if isinstance(array.field, Moment) and not array.field.if_unchanged:
            # One multiplication by the learning rate and one division, in float32.
            chex.assert_trees_all_close(new.value, array.value, rtol=1e-6)
        elif array.is_count and array.site.groups in members:  # of a group without parameters the file knows nothing
            assert int(new.value) == 1


def test_a_multi_steps_object_may_stand_anywhere():
    steps = optax.MultiSteps(sgd(0.1), 4)
    injected = optax.inject_hyperparams(lambda rate: optax.MultiSteps(sgd(rate), 4))(rate=0.5)
    assert "MultiSteps(every_k_schedule=4)" in repr(chain(injected))
    groups = param_groups({"all": steps}, lambda path, w: "all")
    assert "MultiSteps(every_k_schedule=4)" in repr(groups)
    assert groups.init(PARAMS)


def test_diff_marks_only_what_differs():
    before, after = (chain(optax.masked(sgd(rate), True)) for rate in (0.1, 0.2))
    marked = [line for line in diff(before, after).splitlines() if "  |  " in line]
    assert len(marked) == 1
    assert "*learning_rate=0.1*" in marked[0]
