"""The penalty: in the loss that is minimised, told apart from that of the examples."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.hooks import hook_in
from jaxcl.losses import quadratic, quadratic_penalty
from jaxcl.ops import trees
from jaxcl.strategies import er, ewc, mas, si
from jaxcl.testing.problem import small_problem
from jaxcl.training import protocol
from jaxcl.training.epoch import make_update
from jaxcl.training.protocol import EpochDone
from jaxcl.training.trainer import scale_by_lr
from tests.test_launch import finished

STRENGTH = 0.5


def linear(inputs):
    return jaxcl.setup_for(
        lambda w, x: x @ w["head"],
        jnp.zeros((4, inputs)),
        num_outputs=4,
        num_tasks=2,
        heads=(("head",),),
    )


def pulled(setup, where="penalty", strength=STRENGTH):
    """λ/2 ‖θ − θ₀‖², θ₀ the first weights, by either hook; reports the distance."""

    def init(params):
        return jax.tree.map(jnp.copy, params.net), jnp.zeros(())

    def of(state):
        ones = jax.tree.map(jnp.ones_like, state[0])
        return {"anchor": state[0], "importance": ones, "strength": strength}

    def penalty(params, state, *, task):
        return quadratic(params.net, **of(state))

    def loss(loss_fn, state):
        given = of(state) | {"of": lambda params: params.net, "has_aux": True}
        return quadratic_penalty(loss_fn, **given)

    def after_task(params, state, *, data, model_state, task, key):
        difference = jax.tree.map(jnp.subtract, params.net, state[0])
        return params, (state[0], optax.tree.norm(difference))

    hook = {"penalty": penalty} if where == "penalty" else {"loss": loss}
    return jaxcl.strategy(
        init=init,
        after_task=after_task,
        report=lambda state: {"distance": {"all": state[1]}},
        **hook,
    )


def epochs_of(events):
    return [e.metrics for e in events if isinstance(e, EpochDone)]


@pytest.mark.parametrize("seed_mode", ["map", "vmap"])
def test_a_run_tells_it_beside_the_loss(seed_mode):
    """The loss hook's value is that of the two; the weights are the same."""

    def run(where):
        made = small_problem(lambda s: pulled(s, where), seed_mode=seed_mode)
        return list(protocol.run(made))

    ours, whole = run("penalty"), run("loss")
    for apart, together in zip(epochs_of(ours), epochs_of(whole), strict=True):
        np.testing.assert_allclose(apart.valid_loss, together.valid_loss, atol=1e-5)
        assert (apart.loss < together.loss - 1e-3).all()
        assert together.penalty is None
    # Of the weights after the last step of the task's last epoch.
    distance = ours[-1].report["distance"]["all"][:, -1]
    told = epochs_of(ours)[-1].penalty
    np.testing.assert_allclose(told, STRENGTH / 2 * distance**2, rtol=1e-5)


@pytest.mark.parametrize(
    "make,scale", [(ewc, 0.5), (mas, 1.0), (si, 1.0)], ids=["ewc", "mas", "si"]
)
def test_the_objective_holds_it(make, scale):
    """The plain loss of a user's loop is the examples' plus c Σ Ω (θ − θ*)²."""
    rng = np.random.default_rng(0)
    setup = linear(3)
    method, bare = make(setup, strength=3.0), jaxcl.strategy()
    net = {"head": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    params = jaxcl.init_params(method, jax.random.key(0), net)
    weight, anchor = (rng.random((3, 4)).astype(np.float32) for _ in range(2))
    state = method.init(params)._replace(
        importance={"head": jnp.asarray(weight)}, anchor={"head": jnp.asarray(anchor)}
    )
    ctx = jaxcl.context(rng.normal(size=(4, 3)), jnp.array([2, 3, 2, 3]), task=1)
    found, _ = jaxcl.transform_loss(method, setup)(params, state, ctx)
    alone, _ = jaxcl.transform_loss(bare, setup)(params, (), ctx)
    moved = np.float64(net["head"]) - anchor
    extra = 3.0 * scale * (np.float64(weight) * moved**2).sum()
    np.testing.assert_allclose(found - alone, extra, rtol=1e-5)
    gradient = jax.grad(jaxcl.transform_loss(method, setup), has_aux=True)
    plain = jax.grad(jaxcl.transform_loss(bare, setup), has_aux=True)
    more = jax.tree.map(
        jnp.subtract, gradient(params, state, ctx)[0], plain(params, (), ctx)[0]
    )
    np.testing.assert_allclose(
        more.net["head"], 6.0 * scale * weight * moved, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("first", [True, False])
def test_replay_meets_it_once(first):
    """Beside replay, in either order, it is added once, whatever rows are drawn."""
    setup = linear(3)
    net = {"head": jax.random.normal(jax.random.key(0), (3, 4))}
    x, y = jax.random.normal(jax.random.key(1), (4, 3)), jnp.arange(4) % 2

    def value(*members):
        method = jaxcl.chain(*members)
        params = jaxcl.init_params(method, jax.random.key(0), net)
        tx = jaxcl.transform_optimizer(method, optax.sgd(0.0), setup)
        loss, state = jaxcl.transform_loss(method, setup), tx.init(params)
        ctx = jaxcl.context(x, y, task=0, epoch=0)
        _, out = loss(params, state.strategy, ctx)
        _, state = tx.update(params, state, params, ctx=ctx, out=out)  # fills a memory
        moved = params._replace(net={"head": net["head"] + 2})
        return loss(moved, state.strategy, ctx)[0]

    def beside(member):  # ER draws with a key of its place in the chain
        replay = er(setup, capacity=20, batch_size=6)
        return value(*((member, replay) if first else (replay, member)))

    chained, alone = beside(pulled(setup)), beside(jaxcl.strategy())
    np.testing.assert_allclose(chained - alone, STRENGTH / 2 * 12 * 4, rtol=1e-5)


def test_a_chain_without_a_penalty_has_none():
    def plain(setup):
        return jaxcl.chain(jaxcl.strategy(), er(setup, capacity=20, batch_size=6))

    for metrics in epochs_of(protocol.run(small_problem(plain, seeds=(0,)))):
        assert metrics.penalty is None


def test_a_step_does_not_compute_its_value():
    """A sum over all parameters takes as long as half a step; the gradient needs none.

    On a CPU such a sum is a loop of its own in the compiled step.
    """
    setup = linear(784 * 8)
    net = {"head": jnp.zeros((784 * 8, 4))}
    method = ewc(setup, strength=1.0)
    params = jaxcl.init_params(method, jax.random.key(0), net)
    tx = hook_in(method, optax.chain(optax.sgd(0.1), scale_by_lr()), setup)
    opt_state = tx.init(params)
    ctx = jaxcl.context(jnp.ones((4, 784 * 8)), jnp.array([2, 3, 2, 3]), task=1)
    step = jax.jit(make_update(setup, method, tx))
    text = step.lower(params, opt_state, ctx, jnp.ones(())).compile().as_text()
    whole = jax.jit(
        jax.value_and_grad(jaxcl.transform_loss(method, setup), has_aux=True)
    )
    asked = whole.lower(params, opt_state.strategy, ctx).compile().as_text()
    rows = f'"known_trip_count":{{"n":"{784 * 8 * 4 // trees.ROW}"}}'
    assert rows in asked and rows not in text


def test_the_log_has_it(tmp_path):
    code, _, err = finished(
        *("experiments.compare", "--config=configs/digits.py", "--strategies=bp,ewc"),
        *("--config.seeds=(3,4)", f"--workdir={tmp_path}", "--config.train.epochs=1"),
        "--config.data.train_per_task=60",
    )
    assert code == 0, err
    for row in ("bp", "ewc"):
        lines = (tmp_path / row / "metrics.jsonl").read_text().splitlines()
        lines = [line for line in map(json.loads, lines) if "loss" in line]
        told = [line.get("penalty") for line in lines]
        if row == "bp":
            assert told == [None] * len(lines)
        else:
            assert told[0] == [0, 0] and min(told[-1]) > 0
