"""Methods beside others in a chain, and optimizers that gather gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import alone

import jaxcl
from jaxcl.linearity import keeps_subspace
from jaxcl.strategies import (
    agem,
    derpp,
    er,
    ewc,
    finetune,
    gpm,
    hat,
    ol,
    owm,
    pca,
    si,
)
from jaxcl.types import Batch

B, K = 8, 4
KEY = jax.random.key
X = jax.random.normal(KEY(1), (64, 6))
Y = jnp.arange(64) % 2


def network(width=32):
    keys = jax.random.split(KEY(0))
    return {
        "w": jax.random.normal(keys[0], (6, width)) * 0.3,
        "b": jnp.zeros(width),
        "head": {
            "k": jax.random.normal(keys[1], (width, K)) * 0.3,
            "b": jnp.zeros(K),
        },
    }


def model(net, x):
    h = jax.nn.relu(jaxcl.nn.dense(x, net["w"], net["b"], name="hidden"))
    return jaxcl.nn.dense(h, net["head"]["k"], net["head"]["b"], name="head")


def setup_of(f=model, net=None, example=(B, 6), heads=(("head",),), **options):
    return jaxcl.setup_for(
        f,
        jnp.zeros(example),
        net=network() if net is None else net,
        num_outputs=K,
        num_tasks=2,
        heads=heads,
        **({"scenario": "task"} | options),
    )


def one_step(method, setup, ctx, net, ended=(), optimizer=None):
    """The first update after the tasks that have ended."""
    params = jaxcl.init_params(method, KEY(2), net)
    loss, tx = alone(method, optimizer or optax.sgd(0.1), setup)
    state = tx.init(params)
    for task, data in enumerate(ended):
        params, state = jaxcl.after_task(method, params, state, data, task=task)
    grads, out = jax.grad(loss, has_aux=True)(params, state.strategy, ctx)
    updates, new = tx.update(grads, state, params, ctx=ctx, out=out)
    return updates.net, new, state


OTHERS = {
    "owm": lambda s: owm(s, alpha=0.01),
    "agem": lambda s: agem(s, per_class=20),
    "ewc": lambda s: ewc(s, strength=10.0),
    "er": er,
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_what_gpm_protects_stays_so_beside_others(other, first):
    setup = setup_of(scenario="domain")
    mine, theirs = gpm(setup, threshold=0.9), OTHERS[other](setup)
    # OWM shrinks what it is given, and A-GEM replaces it: the last one decides.
    method = jaxcl.chain(*((theirs, mine) if first else (mine, theirs)))
    ctx = jaxcl.context(2 * X[:B], 1 - Y[:B], task=1)
    ended = [jaxcl.array_data(X, Y, 0)]
    update, _, before = one_step(method, setup, ctx, network(), ended)
    basis = before.strategy[1 if first else 0].basis["hidden"]
    leak = jnp.linalg.norm(basis.T @ update["w"]) / jnp.linalg.norm(update["w"])
    if first or other in ("er", "ewc"):
        assert leak < 1e-5
    whole = gpm(setup, threshold=0.9, form="gradient")
    same = jaxcl.chain(*((theirs, whole) if first else (whole, theirs)))
    expected, _, _ = one_step(same, setup, ctx, network(), ended)
    np.testing.assert_array_equal(update["w"], expected["w"])


def test_a_form_for_chains_passes_through_a_chain_of_one():
    setup = setup_of()
    alone = jaxcl.chain(gpm(setup, threshold=0.9))
    assert alone.beside is not None and gpm(setup, threshold=0.9).beside is not None
    both = jaxcl.chain(alone, owm(setup))
    assert both.beside is None and finetune(setup).beside is None


def test_two_projections_of_one_layers_input_are_refused():
    """Whoever nests them by hand: the last one alone would take part."""
    setup = setup_of()
    members = gpm(setup, threshold=0.9), owm(setup)
    ctx = jaxcl.context(X[:B], Y[:B], task=0)

    def forward(apply_fn, state, aux, *, ctx):
        for member, own in zip(members, state, strict=True):
            apply_fn = member.forward(apply_fn, own, {}, ctx=ctx)
        return apply_fn

    nested = jaxcl.strategy(
        init=lambda params: tuple(m.init(params) for m in members), forward=forward
    )
    with pytest.raises(ValueError, match="'hidden' would be computed by 2 methods"):
        one_step(nested, setup, ctx, network())


@pytest.mark.parametrize("replay", [er, derpp])
def test_replayed_rows_are_not_the_batchs(replay):
    """OWM's mean input and OL's loss are over the batch, wherever replay stands."""
    setup = setup_of()
    ctx = jaxcl.context(X[:B], Y[:B], task=0, task_progress=0.0)
    alone = owm(setup, alpha=0.01)
    _, wanted, _ = one_step(alone, setup, ctx, network())
    for members in ((replay(setup), alone), (alone, replay(setup))):
        _, new, _ = one_step(jaxcl.chain(*members), setup, ctx, network())
        found = new.strategy[members.index(alone)].inverse["hidden"]
        np.testing.assert_allclose(found, wanted.strategy.inverse["hidden"], atol=1e-6)
    plain, _, _ = one_step(ol(setup), setup, ctx, network())
    beside, _, _ = one_step(
        jaxcl.chain(replay(setup), ol(setup)), setup, ctx, network()
    )
    np.testing.assert_allclose(beside["w"], plain["w"], atol=1e-7)
    assert jnp.abs(plain["w"]).sum() > 0


def batch_of(task):
    rows = slice(B * task, B * task + B)
    task_of = jnp.full(B, task)
    return Batch(X[rows], Y[rows] + 2 * task, task_of, jnp.ones(B), jnp.full(B, -1))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("gather", ["MultiSteps", "apply_every"])
def test_heads_of_all_gathered_steps_are_in_play(gather, order):
    """Joint batches: the update of two steps moves the heads of both, and once."""
    setup, method = setup_of(), finetune(setup_of())
    if gather == "MultiSteps":
        optimizer = optax.MultiSteps(optax.sgd(0.2), 2).gradient_transformation()
    else:
        optimizer = optax.chain(optax.sgd(0.1), optax.apply_every(2))
    params = jaxcl.init_params(method, KEY(0), network())
    tx = jaxcl.transform_optimizer(method, optimizer, setup)
    loss = jax.grad(jaxcl.transform_loss(method, setup), has_aux=True)
    state, total = tx.init(params), 0
    for task in order:
        ctx = jaxcl.context_of(batch_of(task), task=1, key=KEY(0))
        grads, out = loss(params, state.strategy, ctx)
        update, state = tx.update(grads, state, params, ctx=ctx, out=out)
        total = total + grads.net["head"]["k"]
    np.testing.assert_allclose(update.net["head"]["k"], -0.1 * total, rtol=1e-5)
    assert (jnp.abs(total).sum(0) > 0).all()
    assert not state.reached.any()
    # Other optimizers carry nothing for it.
    plain = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup).init(params)
    assert plain.reached == ()


def test_a_wide_layer_of_a_head_is_not_its_outputs():
    """A hidden layer of the classifier that is K wide, and old outputs under decay."""

    def f(net, x):
        h = jaxcl.nn.dense(x, net["head"]["a"], name="a")
        return jaxcl.nn.dense(jax.nn.relu(h), net["head"]["z"], name="z")

    net = {"head": {"a": jnp.ones((6, K)) * 0.1, "z": jnp.eye(K)}}
    setup = setup_of(f, net)
    ctx = jaxcl.context(jnp.abs(X[:B]), Y[:B] + 2, task=1)
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
    update, _, _ = one_step(finetune(setup), setup, ctx, net, optimizer=decayed)
    moved = jnp.abs(update["head"]["z"]).sum(0)
    assert (moved[:2] == 0).all() and (moved[2:] > 0).all()
    assert (jnp.abs(update["head"]["a"]).sum(0) > 0).all()


def test_nothing_is_drawn_from_an_empty_memory():
    """A network that divides by its input's norm is not defined at 0."""

    def f(net, x):
        return model(net, x / jnp.linalg.norm(x, axis=-1, keepdims=True))

    setup = setup_of(f)
    ctx = jaxcl.context(X[:B], Y[:B], task=0)
    update, _, _ = one_step(agem(setup), setup, ctx, network())
    plain, _, _ = one_step(finetune(setup), setup, ctx, network())
    np.testing.assert_allclose(update["w"], plain["w"], rtol=1e-6)


def test_owm_on_a_convolution_with_one_position():
    def f(net, x):
        h = jax.nn.relu(jaxcl.nn.conv(x, net["k"], name="c"))
        return jaxcl.nn.dense(h.reshape(len(x), -1), net["head"], name="head")

    net = {
        "k": jax.random.normal(KEY(0), (4, 4, 1, 32)),
        "head": jax.random.normal(KEY(1), (32, K)),
    }
    setup = setup_of(f, net, (B, 4, 4, 1))
    images = jax.random.normal(KEY(3), (B, 4, 4, 1))
    ctx = jaxcl.context(images, Y[:B], task=0)
    forms = [
        one_step(owm(setup, form=form), setup, ctx, net)[0]["k"]
        for form in ("auto", "gradient")
    ]
    np.testing.assert_allclose(*forms, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "optimizer, kept",
    [
        (optax.MultiSteps(optax.adam(1e-3), 8).gradient_transformation(), False),
        (optax.MultiSteps(optax.sgd(1e-3), 8).gradient_transformation(), True),
        (optax.chain(optax.adam(1e-3), optax.apply_every(8)), False),
        (optax.adam(lambda step: jnp.where(step < 10, 0.0, 1e-3)), False),
        (optax.sgd(lambda step: jnp.where(step < 10, 0.0, 1e-3)), True),
    ],
)
def test_steps_without_an_update_do_not_show_what_an_optimizer_does(optimizer, kept):
    assert keeps_subspace(optimizer) == kept


def test_an_optimizer_that_never_moves_could_not_be_tried():
    setup = setup_of()
    with pytest.raises(ValueError, match="of its first 256 updates only 0 are not 0"):
        keeps_subspace(optax.set_to_zero())
    with pytest.warns(UserWarning, match="could not be tried"):
        jaxcl.transform_optimizer(gpm(setup, threshold=0.9), optax.sgd(0.0), setup)


def test_what_is_wrong_is_refused():
    setup = setup_of()
    params = jaxcl.init_params(si(setup, strength=1.0), KEY(0), network())
    every = optax.chain(optax.sgd(0.1), optax.apply_every(4))
    with pytest.raises(ValueError, match="several gradients, as apply_every does"):
        jaxcl.transform_optimizer(si(setup, strength=1.0), every, setup).init(params)

    wide = setup_of(net=network(4))  # PCA cannot have more components than inputs
    with pytest.raises(ValueError, match="pca needs the cache"):
        ctx = jaxcl.context(X[:B], Y[:B], task=0)
        one_step(pca(wide), wide, ctx, network(4))

    data = jaxcl.array_data(X, Y, 0)
    method = gpm(setup, threshold=0.9)
    params = jaxcl.init_params(method, KEY(0), network())
    state = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup).init(params)
    cache = method.before_task(
        params, state.strategy, data=data, model_state={}, task=jnp.int32(0)
    )
    ctx = jaxcl.context(X[:B], Y[:B], task=0, cache=cache, index=jnp.arange(B) + 1000)
    with pytest.raises(ValueError, match=r"index must lie in \[0, 64\), got 1000"):
        alone(method, optax.sgd(0.1), setup)[0](params, state.strategy, ctx)

    method = hat(setup)
    params = jaxcl.init_params(method, KEY(0), network())
    state = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup).init(params)
    for task, why in (
        (7, "be that of the data, got 7 "),
        (-1, "be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=f"task must {why}"):
            jaxcl.after_task(method, params, state, data, task=task, key=KEY(0))
        with pytest.raises(ValueError, match=f"got task {task}"):
            method.validation(params, state.strategy, task=jnp.int32(task))
