"""ER and DER++ compared with float64 transcriptions; in chains; their edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference as ref

import jaxcl
from jaxcl.strategies.er import DRAW, KEEP, derpp, er
from jaxcl.strategies.ewc import ewc
from jaxcl.training.problem import per_seed
from jaxcl.training.programs import make_programs
from jaxcl.training.seeds import SeedMesh

CAPACITY, REPLAY = 9, 4


class Reservoir:
    """Algorithm R in NumPy, with the library's random draws.

    The examples that a step replays are drawn with the key of the previous step, right
    after that step has added its examples.
    """

    def __init__(self):
        self.slots, self.seen = {}, 0

    def draw(self, key):
        n = max(len(self.slots), 1)
        slot = np.asarray(jax.random.randint(key, (REPLAY,), 0, n))
        rows = [self.slots[s] for s in slot]
        return [np.array(column) for column in zip(*rows, strict=True)]

    def add(self, step_key, *columns):
        self.key, key = step_key, jax.random.fold_in(step_key, KEEP)
        number = self.seen + jnp.arange(ref.BATCH)
        draws = jax.random.randint(key, (ref.BATCH,), 0, number + 1)
        for j, row in enumerate(zip(*columns, strict=True)):
            slot = self.seen if self.seen < CAPACITY else int(draws[j])
            if slot < CAPACITY:
                self.slots[slot] = row
            self.seen += 1


def task_dz(setup, net, x, y, rows, t):
    z = ref.logits(net, x)[1]
    return ref.cross_entropy_dz(z, y, ref.mask_rows(setup, rows, t))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_er_equals_its_rule_over_three_tasks(scenario):
    with jax.enable_x64(True):
        setup = ref.make_setup(scenario)
        net, tasks, lr = ref.make_net(), ref.make_tasks(setup), 0.5
        method = er(setup, capacity=CAPACITY, batch_size=REPLAY)
        got = ref.run(method, setup, net, tasks, optax.sgd(lr))
        store = Reservoir()

        def gradient(net, t, i, x, y):
            key, rows = ref.step_key(t, i), np.full(len(y), t)
            all_x, all_y, all_t = x, y, rows
            if store.slots:
                past = store.draw(jax.random.fold_in(store.key, DRAW))
                all_x, all_y, all_t = (
                    np.concatenate(pair)
                    for pair in zip((x, y, rows), past, strict=True)
                )
            store.add(key, x, y, rows)
            return ref.backward(net, all_x, task_dz(setup, net, all_x, all_y, all_t, t))

        want = ref.run_reference(net, tasks, lr, gradient)
        for (net_got, _), net_want in zip(got, want, strict=True):
            ref.assert_close(net_got, net_want)
        state = got[-1][1].memory
        assert len(set(state.task.tolist())) == 3  # all tasks are in the reservoir
        labels = np.array([store.slots[s][1] for s in range(CAPACITY)])
        ref.assert_close(state.y, labels)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_derpp_equals_its_rule_over_three_tasks(scenario):
    alpha, beta = 0.7, 0.4
    with jax.enable_x64(True):
        setup = ref.make_setup(scenario)
        net, tasks, lr = ref.make_net(), ref.make_tasks(setup), 0.3
        method = derpp(
            setup, alpha=alpha, beta=beta, capacity=CAPACITY, batch_size=REPLAY
        )
        got = ref.run(method, setup, net, tasks, optax.sgd(lr))
        store = Reservoir()

        def gradient(net, t, i, x, y):
            key, rows = ref.step_key(t, i), np.full(len(y), t)
            g = ref.backward(net, x, task_dz(setup, net, x, y, rows, t))
            if store.slots:
                one, two = jax.random.split(jax.random.fold_in(store.key, DRAW))
                mx, _, _, old = store.draw(one)
                error = ref.logits(net, mx)[1] - old
                g = ref.add(g, ref.backward(net, mx, 2 * alpha * error / error.size))
                mx, my, mt, _ = store.draw(two)
                dz = task_dz(setup, net, mx, my, mt, t)
                g = ref.add(g, ref.backward(net, mx, beta * dz))
            z = ref.logits(net, x)[1]
            store.add(key, x, y, rows, z)
            return g

        want = ref.run_reference(net, tasks, lr, gradient)
        for (net_got, _), net_want in zip(got, want, strict=True):
            ref.assert_close(net_got, net_want)
        logits = np.array([store.slots[s][3] for s in range(CAPACITY)])
        ref.assert_close(got[-1][1].memory.extra, logits)


@pytest.mark.parametrize(
    "make",
    [
        er,
        derpp,
        lambda setup: derpp(setup, alpha=0.0, beta=0.0),
        lambda setup: jaxcl.chain(ewc(setup, strength=0.0), er(setup)),
    ],
)
def test_an_empty_memory_is_fine_tuning(make):
    ref.assert_neutral(make)


def test_derpp_without_weight_is_fine_tuning_with_a_full_memory_too():
    with jax.enable_x64(True):
        setup = ref.make_setup()
        net, tasks = ref.make_net(), ref.make_tasks(setup)
        method = derpp(setup, alpha=0.0, beta=0.0, capacity=CAPACITY)
        got = ref.run(method, setup, net, tasks, optax.sgd(0.3))
        plain = jaxcl.strategies.factory("finetune")(setup)
        want = ref.run(plain, setup, net, tasks, optax.sgd(0.3))
        ref.assert_close(got[-1][0], want[-1][0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("replay", [er, derpp])
@pytest.mark.parametrize("order", ["inner", "outer"])
def test_a_penalty_chained_with_replay_counts_once(replay, order):
    """At the memory's first use the gradients of replay and penalty are added."""
    with jax.enable_x64(True):
        setup = ref.make_setup()
        net, (x, y) = ref.make_net(), ref.make_tasks(setup)[1]
        x, y = jnp.asarray(x[: ref.BATCH]), y[: ref.BATCH]
        penalty, past = ewc(setup, strength=2.0), replay(setup, capacity=CAPACITY)
        members = (penalty, past) if order == "inner" else (past, penalty)
        method = jaxcl.chain(*members)
        params, state = ref.start(method, net)
        i = members.index(penalty)
        importance = jax.tree.map(jnp.ones_like, params.net)
        anchor = jax.tree.map(lambda a: a - 0.5, params.net)
        quadratic = state[i]._replace(importance=importance, anchor=anchor)
        ctx = jaxcl.context(x, y, task=1, key=jax.random.key(5))
        loss = jaxcl.transform_loss(method, setup)

        @jax.jit
        def gradient(first):
            current = tuple(first if j == i else s for j, s in enumerate(state))
            _, out = loss(params, current, ctx)
            assert out.logits.shape == (ref.BATCH, 6)
            _, current = method.grads(params, current, params, ctx=ctx, out=out)
            g, _ = jax.grad(loss, has_aux=True)(params, current, ctx)
            return g.net, current[1 - i].memory.size

        (with_it, size), (without, _) = gradient(quadratic), gradient(state[i])
        assert size == ref.BATCH
        got = jax.tree.map(jnp.subtract, with_it, without)
        want = jax.tree.map(lambda a, b: 2.0 * (a - b), params.net, anchor)
        ref.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_chain_of_ewc_and_er_trains_over_three_tasks():
    setup = ref.make_setup()
    tasks = [(x.astype(np.float32), y) for x, y in ref.make_tasks(setup)]
    net = jax.tree.map(np.float32, ref.make_net())
    method = jaxcl.chain(ewc(setup, strength=1.0, samples=20), er(setup, capacity=5))
    history = ref.run(method, setup, net, tasks, optax.sgd(0.2))
    net, (quadratic, past) = history[-1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(net))
    assert max(leaf.max() for leaf in jax.tree.leaves(quadratic.importance)) > 0
    store = past.memory
    assert store.size == 5 and store.seen == 3 * ref.BATCH * ref.STEPS


@pytest.mark.parametrize("capacity", [1, 2, 10_000])
def test_capacity_below_the_classes_and_above_the_data(capacity):
    setup = ref.make_setup("class")
    tasks = [(x.astype(np.float32), y) for x, y in ref.make_tasks(setup, n=12)]
    net = jax.tree.map(np.float32, ref.make_net())
    method = derpp(setup, capacity=capacity, batch_size=3)
    history = ref.run(method, setup, net, tasks, optax.sgd(0.1))
    assert history[-1][1].memory.size == min(capacity, 36)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(history[-1][0]))


def reservoir_after(problem, epochs):
    """Seed 0's memory after every task, trained as `protocol.run` does."""
    mesh = SeedMesh(len(problem.seeds), problem.seed_mode)
    programs = make_programs(problem, mesh)
    mine, base = mesh.spread(per_seed(problem)), mesh.share(problem.stream.base)
    seed = programs.init((), mine, ())
    for t in range(problem.stream.num_tasks):
        task = mesh.share(np.int32(t))
        seed = programs.begin(seed, (mine, mesh.real), ())
        cache = programs.before_task(seed, mine, (base, task))
        for e in range(epochs):
            shared = (base, task, mesh.share(np.int32(e)), mesh.share(np.int32(10)))
            seed, _ = programs.epoch(seed, (mine, cache), shared)
        seed = programs.end(seed, mine, (base, task))
    return jax.tree.map(lambda a: a[0], mesh.gather(seed.strategy_state.memory))


@pytest.mark.parametrize("method", ["er", "derpp"])
@pytest.mark.parametrize("mode", ["map", "vmap"])
def test_the_first_epochs_offer_keeps_no_example_twice(problem, method, mode):
    """Three tasks of 80, three epochs: 240 distinct examples, or copies of some."""
    kept = {}
    for offer in ("step", "first_epoch"):
        settings = {"capacity": 300, "batch_size": 4, "offer": offer}
        run = problem(method, settings, seeds=(0,), seed_mode=mode, plan={"epochs": 3})
        store = reservoir_after(run, 3)
        distinct = len(np.unique(store.x[: store.size], axis=0))
        kept[offer] = (int(store.seen), int(store.size), distinct)
        assert set(store.task[: store.size].tolist()) == {0, 1, 2}
    assert kept["first_epoch"] == (240, 240, 240)
    seen, size, distinct = kept["step"]
    assert (seen, size) == (720, 300) and distinct < 230


@pytest.mark.parametrize("method", ["er", "derpp"])
def test_over_one_epoch_both_offers_are_one(problem, finish, method):
    settings = {"capacity": 20, "batch_size": 4}
    runs = [
        finish(problem(method, settings | {"offer": offer}, plan={"epochs": 1}))
        for offer in ("step", "first_epoch")
    ]
    np.testing.assert_array_equal(runs[0].accuracy, runs[1].accuracy)


@pytest.mark.parametrize(
    "make, settings, message",
    [
        (er, {"capacity": 0}, "er: capacity must be at least 1, got 0"),
        (er, {"batch_size": 0}, "er: batch_size must be at least 1, got 0"),
        (er, {"offer": "epoch"}, "er: offer must be one of step, first_epoch, got"),
        (derpp, {"offer": "task"}, "derpp: offer must be .* got 'task'"),
        (derpp, {"alpha": -1.0}, "derpp: alpha must be at least 0, got -1.0"),
        (derpp, {"beta": float("nan")}, "derpp: beta must be finite.*, got nan"),
    ],
)
def test_refusals(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(ref.make_setup(), **settings)
