"""State moves from the installed PyTorch to a chain and back, and training goes on as if it had not."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linkax.chains import adam, adamw, apply_updates, chain, migrate, param_groups, sgd
from linkax.chains.torch_interop import (
    Layout,
    export_params,
    export_state,
    from_torch,
    import_params,
    import_state,
    torch_labels,
)
from linkax.transforms import matrices_only, row_gradient

from .cases import CHAINS, RECORDED, chain_like

torch = pytest.importorskip("torch", reason="compares with the installed PyTorch")

STEPS = 12
# Both frameworks round once or twice an operation in float64 (1e-16), over two dozen steps.
TOLERANCE = 1e-12
NAMES = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "fc.weight", "fc.bias")
SHAPES = ((4, 2, 3, 3), (4,), (4,), (4,), (5, 4), (5,))
PATHS = ("conv/kernel", "conv/bias", "norm/scale", "norm/bias", "fc/kernel", "fc/bias")


pytestmark = pytest.mark.usefixtures("float64")


class Walk:
    """A PyTorch optimizer and a chain on the same gradients."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.weights = {
            name: torch.nn.Parameter(torch.from_numpy(self.rng.normal(size=shape)))
            for name, shape in zip(NAMES, SHAPES)
        }

    def params(self):
        like = {"params": {"conv": {}, "norm": {}, "fc": {}}}
        for path, shape in zip(PATHS, ((3, 3, 2, 4), (4,), (4,), (4,), (4, 5), (5,))):
            module, leaf = path.split("/")
            like["params"][module][leaf] = jnp.zeros(shape)
        return import_params(like, self.weights)

    def named(self, *names):
        return [(name, self.weights[name]) for name in names or NAMES]

    def step_torch(self, *optimizers):
        """One step there; returns the gradients for here."""
        grads = {name: self.rng.normal(size=shape) for name, shape in zip(NAMES, SHAPES)}
        for name, weight in self.weights.items():
            weight.grad = torch.from_numpy(grads[name].copy())
        for optimizer in optimizers:
            optimizer.step()
        return import_params(self.params(), grads)

    def assert_same(self, params):
        for name, ours in export_params(params).items():
            theirs = self.weights[name].detach().numpy()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


def train_on(walk, tx, params, state, *optimizers):
    update = jax.jit(tx.update)
    for _ in range(STEPS):
        grads = walk.step_torch(*optimizers)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        walk.assert_same(params)
    return params, state


def saved(state_dict):
    """Through a file, as a user has it."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("after", [0, 7])
@pytest.mark.parametrize(("name", "arguments"), [case for case in RECORDED if case[0] != "Muon"])  # which has matrices
def test_there_and_back(name, arguments, after):
    walk = Walk()
    optimizer = getattr(torch.optim, name)(walk.named(), **arguments)
    for _ in range(after):
        walk.step_torch(optimizer)
    tx, params = from_torch(optimizer), walk.params()
    assert tx == chain_like(name, arguments)
    state = import_state(tx, params, saved(optimizer.state_dict()))
    params, state = train_on(walk, tx, params, state, optimizer)

    back = getattr(torch.optim, name)(walk.named(), **arguments)
    exported = saved(export_state(tx, params, state, back))
    back.load_state_dict(exported)
    train_on(walk, tx, params, state, back)


@pytest.mark.parametrize("arguments", [{}, {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-3, "maximize": True}])
def test_a_sparse_adam_there_and_back(arguments):
    rng = np.random.default_rng(0)
    weight = torch.nn.Parameter(torch.from_numpy(rng.normal(size=(9, 3))))

    def step(optimizer):
        ids, values = rng.integers(0, 7, 4), rng.normal(size=(4, 3))
        weight.grad = torch.sparse_coo_tensor(
            torch.from_numpy(ids[None]), torch.from_numpy(values), weight.shape, check_invariants=True
        )
        optimizer.step()
        return ids, values

    def train_on(optimizer, params, state):
        for _ in range(STEPS):
            gradient = row_gradient(params["emb"]["embedding"], *step(optimizer))
            updates, state = tx.update({"emb": {"embedding": gradient}}, state, params)
            params = apply_updates(params, updates)
            ours, theirs = params["emb"]["embedding"], weight.detach().numpy()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())
        return params, state

    optimizer = torch.optim.SparseAdam([("emb.weight", weight)], **arguments)
    for _ in range(5):
        step(optimizer)
    tx = from_torch(optimizer)
    assert tx == chain_like("SparseAdam", arguments)
    params = import_params({"emb": {"embedding": jnp.zeros((9, 3))}}, {"emb.weight": weight})
    params, state = train_on(optimizer, params, import_state(tx, params, saved(optimizer.state_dict())))
    back = torch.optim.SparseAdam([("emb.weight", weight)], **arguments)
    exported = export_state(tx, params, state, back)
    assert exported["state"][0]["step"] == 5 + STEPS
    assert type(exported["state"][0]["step"]) is int  # a tensor would make PyTorch's correction one of float32
    back.load_state_dict(saved(exported))
    train_on(back, params, state)


def test_bfloat16_parameters_have_adafactors_epsilon():
    weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    assert from_torch(torch.optim.Adafactor([weight])) == chain_like("Adafactor", {"eps": (2.0**-7, 1e-3)})
    assert from_torch(torch.optim.Adafactor([weight], eps=(0.5, 1e-3))) == chain_like("Adafactor", {"eps": (0.5, 1e-3)})


def test_several_groups_with_hyperparameters_of_their_own():
    walk = Walk()
    groups = [
        {"params": walk.named(*NAMES[:4]), "lr": 1e-3},
        {"params": walk.named(*NAMES[4:]), "lr": 1e-2, "betas": (0.8, 0.99), "weight_decay": 0.3, "amsgrad": True},
    ]
    optimizer = torch.optim.AdamW(groups)
    for _ in range(5):
        walk.step_torch(optimizer)
    state_dict = saved(optimizer.state_dict())
    params = walk.params()
    with pytest.raises(ValueError, match="from_torch: labels must say which of the 2 groups"):
        from_torch(optimizer)
    tx = from_torch(("AdamW", state_dict["param_groups"]), torch_labels(state_dict["param_groups"]))
    params, state = train_on(walk, tx, params, import_state(tx, params, state_dict), optimizer)
    back = torch.optim.AdamW(groups)
    back.load_state_dict(saved(export_state(tx, params, state, back)))
    train_on(walk, tx, params, state, back)


def test_unnamed_parameters_go_by_an_explicit_order():
    walk = Walk()
    optimizer = torch.optim.Adam(walk.weights.values())
    walk.step_torch(optimizer)
    tx, params = from_torch(optimizer), walk.params()
    with pytest.raises(ValueError, match="import_state: order must list the parameters' names"):
        import_state(tx, params, optimizer.state_dict())
    with pytest.raises(ValueError, match="import_state: order must have 6 different names"):
        import_state(tx, params, optimizer.state_dict(), order=NAMES[:5])
    state = import_state(tx, params, optimizer.state_dict(), order=NAMES)
    params, state = train_on(walk, tx, params, state, optimizer)
    back = torch.optim.Adam(walk.weights.values())
    back.load_state_dict(export_state(tx, params, state, back, order=NAMES))
    train_on(walk, tx, params, state, back)


def test_a_schedule_goes_on_where_it_was():
    walk = Walk()
    optimizer = torch.optim.SGD(walk.named(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    for _ in range(4):
        walk.step_torch(optimizer)
        scheduler.step()
    with pytest.raises(ValueError, match="from_torch: initial_lr is what a learning-rate scheduler leaves behind"):
        from_torch(optimizer)
    tx = from_torch(optimizer, learning_rate=optax.exponential_decay(0.1, 1, 0.9))
    params = walk.params()
    with pytest.raises(ValueError, match="steps must be given"):
        import_state(tx, params, optimizer.state_dict())
    state = import_state(tx, params, optimizer.state_dict(), steps=4)
    for _ in range(STEPS):
        updates, state = tx.update(walk.step_torch(optimizer), state, params)
        params = optax.apply_updates(params, updates)
        scheduler.step()
        walk.assert_same(params)


def test_a_fresh_state_needs_no_step_count():
    walk = Walk()
    tx = adam(optax.exponential_decay(0.1, 1, 0.9))
    state = import_state(tx, walk.params(), torch.optim.Adam(walk.named()).state_dict())
    jax.tree.map(np.testing.assert_array_equal, state, tx.init(walk.params()))


def test_clipping_in_front_of_an_imported_chain_keeps_its_state():
    walk = Walk()
    optimizer = torch.optim.Adam(walk.named())
    walk.step_torch(optimizer)
    tx, params = chain(optax.clip_by_global_norm(1e9), from_torch(optimizer)), walk.params()
    train_on(walk, tx, params, import_state(tx, params, optimizer.state_dict()), optimizer)


def test_a_group_added_in_mid_run_is_pytorchs_add_param_group():
    walk = Walk()
    optimizer = torch.optim.AdamW(walk.named(*NAMES[4:]), lr=1e-2)
    labels = {"params": {"conv": "body", "norm": "body", "fc": "head"}}
    frozen = param_groups({"body": optax.set_to_zero(), "head": adamw(1e-2)}, labels)
    params = walk.params()
    params, state = train_on(walk, frozen, params, frozen.init(params), optimizer)

    optimizer.add_param_group({"params": walk.named(*NAMES[:4]), "lr": 1e-3, "weight_decay": 0.1})
    thawed = param_groups({"body": adamw(1e-3, weight_decay=0.1), "head": adamw(1e-2)}, labels)
    migration = migrate(frozen, state, thawed, params)
    assert not migration.dropped
    assert not migration.mixed
    assert all(one.startswith("body.") for one in migration.created)
    train_on(walk, thawed, params, migration.state, optimizer)


def test_layouts_and_names_of_ones_own():
    weight = torch.nn.Parameter(torch.from_numpy(np.random.default_rng(0).normal(size=(6, 4))))
    optimizer = torch.optim.Adam([("attention.in_proj", weight)])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    like = {"params": {"query": {"kernel": jnp.zeros((4, 2, 3))}}}  # (in, heads, out of a head)
    heads = Layout(lambda w: w.T.reshape(4, 2, 3), lambda w: w.reshape(4, 6).T)
    hooks = {"layouts": {"params/query/kernel": heads}, "names": {"params/query/kernel": "attention.in_proj"}}
    params = import_params(like, {"attention.in_proj": weight}, **hooks)
    tx = from_torch(optimizer)
    state = import_state(tx, params, optimizer.state_dict(), **hooks)
    grads = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2, 3)))
    weight.grad = torch.from_numpy(np.array(heads.to_torch(np.asarray(grads))))
    optimizer.step()
    updates, state = tx.update({"params": {"query": {"kernel": grads}}}, state, params)
    back = export_params(optax.apply_updates(params, updates), **hooks)["attention.in_proj"]
    np.testing.assert_allclose(back, weight.detach().numpy(), rtol=TOLERANCE)
    exported = export_state(tx, params, state, optimizer, **hooks)
    torch.testing.assert_close(exported["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])

    with pytest.raises(ValueError, match="exp_avg of attention.in_proj has the shape") as error:
        import_state(tx, params, optimizer.state_dict(), names=hooks["names"])
    assert "instead of (4, 2, 3)" in str(error.value)
    with pytest.raises(ValueError, match="names has no name for params/query/kernel"):
        import_state(tx, params, optimizer.state_dict(), names={})
    with pytest.raises(ValueError, match="layouts has one for params/key/kernel, which is not a parameter"):
        import_state(tx, params, optimizer.state_dict(), names=hooks["names"], layouts={"params/key/kernel": heads})


def test_what_was_moved_shares_no_memory():
    walk = Walk()
    optimizer = torch.optim.Adam(walk.named())
    walk.step_torch(optimizer)
    params = walk.params()
    state = import_state(adam(), params, optimizer.state_dict())
    before = jax.tree.map(np.array, (params, state))
    for _ in range(3):
        walk.step_torch(optimizer)  # changes its tensors in place
    for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves(before)):
        np.testing.assert_array_equal(a, b)


def test_everything_that_does_not_fit_is_listed_at_once():
    walk = Walk()
    optimizer = torch.optim.Adam(walk.named())
    walk.step_torch(optimizer)
    state_dict = optimizer.state_dict()
    params = walk.params()
    params["params"]["fc"]["kernel"] = jnp.zeros((3, 5))
    params["params"]["new"] = {"bias": jnp.zeros(2)}
    del params["params"]["conv"]["bias"]
    state_dict["state"][2]["step"] = torch.tensor(5.0)
    with pytest.raises(ValueError, match="import_state: the state must fit") as error:
        import_state(adam(amsgrad=True), params, state_dict)
    text = str(error.value)
    assert "PyTorch has conv.bias, but no parameter has that name" in text
    assert "exp_avg of fc.weight has the shape (5, 4), in JAX (4, 5), instead of (3, 5)" in text
    assert "the state of conv.weight has no max_exp_avg_sq" in text
    assert "PyTorch's optimizer has no parameter for first.scale_by_momentum.mu params/new/bias" in text or (
        "PyTorch's optimizer has no parameter for second.running_max.nu_max params/new/bias" in text
    )
    assert "the parameters of a group must have the same step" in text


def test_another_optimizers_state_is_refused():
    walk = Walk()
    optimizer = torch.optim.Adam(walk.named())
    walk.step_torch(optimizer)
    for tx in (sgd(0.1), sgd(0.1, momentum=0.9), adam(amsgrad=True), adam().drop("first.scale_by_momentum")):
        with pytest.raises(ValueError, match="import_state: the state must fit"):
            import_state(tx, walk.params(), optimizer.state_dict())
    with pytest.raises(ValueError, match="PyTorch has no equivalent of scale_by_amsgrad.nu_max"):
        import_state(optax.amsgrad(1e-3), walk.params(), optimizer.state_dict())


def test_groups_need_not_match_one_to_one():
    walk = Walk()
    groups = [{"params": walk.named(*NAMES[:4])}, {"params": walk.named(*NAMES[4:])}]
    optimizer = torch.optim.Adam(groups)
    walk.step_torch(optimizer)
    state_dict = optimizer.state_dict()
    apart = param_groups(dict.fromkeys("abc", adam()), {"params": {"conv": "a", "norm": "b", "fc": "c"}})
    for tx in (adam(), apart):
        state = import_state(tx, walk.params(), state_dict)
        back = export_state(tx, walk.params(), state, torch.optim.Adam(groups))
        for key, entry in back["state"].items():
            for what, value in entry.items():
                torch.testing.assert_close(value, state_dict["state"][key][what], check_dtype=False)
    different = [{**groups[0], "lr": 0.1}, {**groups[1], "eps": 1e-3}]
    with pytest.raises(ValueError, match=r"several groups of PyTorch's, \[0, 1\], with different eps, lr"):
        import_state(adam(), walk.params(), torch.optim.Adam(different).state_dict())
    mixed = param_groups({"a": adam(), "b": adam(0.1), "c": adam()}, {"params": {"conv": "a", "norm": "b", "fc": "c"}})
    state = mixed.init(walk.params())
    with pytest.raises(ValueError, match="group 0 are in both a and b, whose chains differ"):
        export_state(mixed, walk.params(), state, torch.optim.Adam(groups))


def test_two_groups_with_and_without_decay_continue_as_one_chain_with_a_mask():
    walk = Walk()
    matrices, vectors = (walk.named(*names) for names in (("conv.weight", "fc.weight"), (*NAMES[1:4], NAMES[5])))
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for _ in range(5):
        walk.step_torch(optimizer)
    tx, params = adamw(1e-2, weight_decay=0.3, weight_decay_mask=matrices_only), walk.params()
    params, state = train_on(walk, tx, params, import_state(tx, params, saved(optimizer.state_dict())), optimizer)
    again = torch.optim.AdamW(groups, lr=1e-2)
    again.load_state_dict(export_state(tx, params, state, again))
    train_on(walk, tx, params, state, again)


def test_export_checks_what_pytorch_does_not():
    walk = Walk()
    params = walk.params()
    optimizer = torch.optim.SGD(walk.named(), momentum=0.9)
    _, state = adam().update(params, adam().init(params), params)
    with pytest.raises(ValueError, match="export_state: .*\n.*exp_avg"):
        export_state(adam(), params, state, optimizer)
    smaller = jax.tree.map(lambda w: w[..., :2], params)
    _, state = adam().update(smaller, adam().init(smaller), smaller)
    with pytest.raises(ValueError, match="exp_avg of fc.bias is"):
        export_state(adam(), smaller, state, torch.optim.Adam(walk.named()))


@pytest.mark.parametrize("name", CHAINS)
def test_every_argument_of_pytorchs_optimizers_is_understood(name):
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = getattr(torch.optim, name)([weight], lr=0.01)
    expected = chain_like(name, {"lr": 0.01}, **({"precision": "bfloat16"} if name == "Muon" else {}))
    assert from_torch(optimizer) == expected
    for switch in ("foreach", "fused", "capturable", "differentiable"):
        optimizer.param_groups[0][switch] = True  # how it computes
    assert from_torch((name, optimizer.state_dict()["param_groups"])) == expected
    optimizer.param_groups[0]["lookahead"] = 5
    with pytest.raises(ValueError, match=f"from_torch: hyperparameters of {name} must be of .*, got lookahead"):
        from_torch(optimizer)


def test_tensors_as_hyperparameters_and_another_way_to_say_adamw():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([weight], lr=torch.tensor(0.25), decoupled_weight_decay=True, weight_decay=0.5)
    assert from_torch(optimizer) == adamw(0.25, weight_decay=0.5)


def test_what_is_no_optimizer_of_ours_is_refused():
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(
        ValueError, match="from_torch: optimizer must be one of SGD, .*, got LBFGS, which .* optax.lbfgs"
    ):
        from_torch(torch.optim.LBFGS([weight]))
    with pytest.raises(ValueError, match="from_torch: optimizer must be one of SGD, .*, got Lars$"):
        from_torch(("Lars", {}))
    for wrong in ("Adam", ("Adam",), ("Adam", 3), ("Adam", []), None, 1):
        with pytest.raises(TypeError, match="from_torch: optimizer must be a torch.optim optimizer or a pair"):
            from_torch(wrong)


def test_schedulers_that_leave_more_than_a_learning_rate():
    walk = Walk()
    optimizer = torch.optim.SGD(walk.named(), lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    with pytest.raises(
        ValueError, match="base_momentum, initial_lr, max_lr, max_momentum, min_lr is what a learning-rate"
    ):
        from_torch(optimizer)
    tx = from_torch(optimizer, learning_rate=0.1)
    export_state(tx, walk.params(), tx.init(walk.params()), optimizer)


def test_wrong_dictionaries_are_refused():
    walk = Walk()
    optimizer = torch.optim.Adam(walk.named())
    walk.step_torch(optimizer)
    params, state_dict = walk.params(), optimizer.state_dict()
    for wrong in ({}, {"state": {}}, optimizer, {"fc.weight": 1}, {"state": {0: 1}, "param_groups": []}):
        with pytest.raises(ValueError, match="import_state: state_dict must be an optimizer's state_dict"):
            import_state(adam(), params, wrong)
    with pytest.raises(ValueError, match="export_state: template must be an optimizer's state_dict"):
        export_state(adam(), params, adam().init(params), {})
    as_json = {**state_dict, "state": {str(key): value for key, value in state_dict["state"].items()}}
    with pytest.raises(ValueError, match="the state has an entry '0' that belongs to no group"):
        import_state(adam(), params, as_json)
    groups = [{**state_dict["param_groups"][0], "param_names": ["fc.weight"]}]
    with pytest.raises(ValueError, match="import_state: param_names must name each of the 6 parameters"):
        import_state(adam(), params, {**state_dict, "param_groups": groups})
    with pytest.raises(ValueError, match="from_torch: betas must be two numbers, got 0.9"):
        from_torch(("Adam", {"betas": 0.9}))


def test_batch_normalisation_and_half_precision():
    model = torch.nn.Sequential()
    model.add_module("bn", torch.nn.BatchNorm1d(3))
    model.bn.running_mean += 0.5
    tree = {"params": {"bn": {"scale": jnp.zeros(3, jnp.bfloat16), "bias": jnp.zeros(3, jnp.bfloat16)}}}
    assert import_params(tree, model.state_dict())["params"]["bn"]["scale"].dtype == jnp.bfloat16
    with_statistics = {**tree, "batch_stats": {"bn": {"mean": jnp.zeros(3), "var": jnp.zeros(3)}}}
    params = import_params(with_statistics, model.state_dict())
    np.testing.assert_array_equal(params["batch_stats"]["bn"]["mean"], 0.5 * np.ones(3))
    exported = {name: torch.from_numpy(value) for name, value in export_params(params).items()}
    model.load_state_dict(exported, strict=False)
    with pytest.raises(ValueError, match="bn.weight is complex, but its parameter is real"):
        import_params(tree, {"bn.weight": torch.ones(3, dtype=torch.complex128), "bn.bias": torch.ones(3)})


def test_the_average_of_the_weights_is_pytorchs_there_and_back():
    walk = Walk()
    optimizer = torch.optim.ASGD(walk.named(), lr=0.1, lambd=0.1, t0=10)
    for _ in range(7):
        walk.step_torch(optimizer)
    tx, params = from_torch(optimizer), walk.params()
    params, state = train_on(walk, tx, params, import_state(tx, params, saved(optimizer.state_dict())), optimizer)
    theirs = {name: optimizer.state[weight]["ax"] for name, weight in walk.weights.items()}
    for name, ours in export_params(optax.tree.get(state, "average")).items():
        np.testing.assert_allclose(ours, theirs[name].numpy(), rtol=0, atol=TOLERANCE)
    back = torch.optim.ASGD(walk.named(), lr=0.1, lambd=0.1, t0=10)
    back.load_state_dict(saved(export_state(tx, params, state, back)))
    for weight in walk.weights.values():
        for key in ("step", "eta", "mu", "ax"):
            torch.testing.assert_close(back.state[weight][key], optimizer.state[weight][key], check_dtype=False)
