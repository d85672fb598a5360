"""What a method needs and is not given is refused, not silently left out."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.contract import strategy
from jaxcl.nn import models
from jaxcl.strategies import er, frozen, gpm, hat, lwf, make, ol, owm
from jaxcl.training import protocol
from jaxcl.training.instruments import make_instruments
from jaxcl.training.problem import validate
from jaxcl.training.seeds import SeedMesh

X, Y = jnp.ones((6, 5)), jnp.arange(6) % 2
PLACES, SIZE = 4, 5


class Reshaping(nn.Module):
    """Reads four places of each example, as rows of their own or along an axis."""

    flat: bool

    @nn.compact
    def __call__(self, x):
        h = x.reshape(-1, SIZE) if self.flat else x
        h = nn.relu(nn.Dense(3, name="embed")(h))
        return nn.Dense(4, name="head")(h.reshape(x.shape[0], -1))


PROJECTED = functools.partial(gpm, threshold=0.9)


@pytest.mark.parametrize("method", [PROJECTED, owm, hat, ol])
def test_a_layer_whose_rows_are_not_examples_is_refused(method):
    """Only its first rows were read: one example in four was protected."""
    x = jnp.ones((6, PLACES, SIZE))
    options = dict(num_outputs=4, num_tasks=2, heads=(("head",),), scenario="task")
    method(jaxcl.setup_for_linen(Reshaping(False), x, **options))
    setup = jaxcl.setup_for_linen(Reshaping(True), x, **options)
    with pytest.raises(ValueError, match="'embed' .its first axis is not that of the"):
        method(setup)


class Deep(nn.Module):
    """A classifier of two layers, or a module that holds its one layer."""

    layers: int

    @nn.compact
    def __call__(self, x):
        if self.layers == 2:
            x = nn.relu(nn.Dense(8, name="inner")(x))
        return nn.Dense(4, name="outer")(x)


class Net(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, x):
        return Deep(self.layers, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))


def test_hat_refuses_a_classifier_whose_inner_layer_it_would_not_gate():
    options = dict(num_outputs=4, num_tasks=2, heads=(("head",),), scenario="task")
    hat(jaxcl.setup_for_linen(Net(1), X, **options))
    with pytest.raises(ValueError, match="'head/inner' is part of the classifier"):
        hat(jaxcl.setup_for_linen(Net(2), X, **options))


def test_lwf_refuses_a_normalisation_per_task():
    """Its teacher would normalise by the new task's statistics."""
    options = dict(num_outputs=4, num_tasks=2, heads=(("head",),), scenario="task")
    for norm in ("batch", "batch_per_task"):
        model = models.MLP((4,), 4, norm=norm, num_tasks=2)
        setup = jaxcl.setup_for_linen(model, X, **options)
        if norm == "batch":
            lwf(setup)
            continue
        with pytest.raises(ValueError, match="lwf cannot keep .* under 'Norm_0.*', "):
            lwf(setup)


@pytest.mark.parametrize(
    "method, field",
    [
        (hat, "epoch_progress"),
        (lambda s: hat(s, epoch_progress="examples"), "epoch_fraction"),
        (ol, "task_progress"),
        (lambda s: owm(s, alpha_decay=0.1), "task_progress"),
        (lambda s: owm(s, alpha_decay=0.1, progress="epoch"), "epoch_progress"),
        (lambda s: frozen(s, epochs=2), "epoch"),
        (lambda s: er(s, offer="first_epoch"), "epoch"),
        (owm, None),
        (er, None),
        (lambda s: frozen(s, epochs=0), None),
    ],
)
def test_a_step_is_refused_that_does_not_say_what_the_method_reads(method, field):
    """A slope that never rises, and heads that never train, were left silent."""
    model = models.MLP((4,), 4)
    setup = jaxcl.setup_for_linen(
        *(model, X), num_outputs=4, num_tasks=2, heads=(("head",),), scenario="task"
    )
    one = method(setup)
    key, task = jax.random.key(0), jnp.zeros(6, jnp.int32)
    net = model.init(key, X, task, True)["params"]
    params = jaxcl.init_params(one, key, net)
    tx = jaxcl.transform_optimizer(one, optax.sgd(0.1), setup)
    loss = jaxcl.transform_loss(one, setup)

    @jax.jit
    def step(params, state, **said):
        ctx = jaxcl.context(X, Y, task=0, **said)
        grads, out = jax.grad(loss, has_aux=True)(params, state.strategy, ctx)
        return tx.update(grads, state, params, ctx=ctx, out=out)[0]

    state = tx.init(params)
    if field is None:
        step(params, state)
        return
    with pytest.raises(
        ValueError, match=rf"ctx\.{field}, .* jaxcl.context\(.*{field}="
    ):
        step(params, state)
    step(params, state, **{field: 0})


@pytest.mark.parametrize(
    "name, settings, refused",
    [
        ("ncm", {}, True),
        ("slda", {}, True),
        ("frozen", {}, True),
        ("frozen", {"epochs": 0}, False),
        ("gpm", {"threshold": 0.9}, True),
        ("ol", {"later": "freeze"}, True),
        ("ol", {}, False),
        ("finetune", {}, False),
    ],
)
def test_one_training_on_all_tasks_has_no_first_task(problem, name, settings, refused):
    """Class means of the last task alone, and an extractor that never trained."""
    once = problem(name, settings, joint=True)
    validate(once)
    once = once._replace(joint_once=True)
    if not refused:
        validate(once)
        return
    with pytest.raises(ValueError, match="joint_once=True trains once, on all tasks"):
        validate(once)

    def beside(setup):
        return jaxcl.chain(strategy(), make(name, setup, settings))

    with pytest.raises(ValueError, match="joint_once=True trains once, on all tasks"):
        validate(once._replace(make_strategy=beside))


@pytest.mark.parametrize("joint", [False, True])
def test_conflict_takes_a_step_as_training_does(problem, joint):
    """With the step's own moment, and nothing computed for other examples."""

    def read(grads, state, params, *, ctx, out):
        told = (ctx.epoch == 1) & (ctx.task_progress == 0.5)
        own = (ctx.batch.index < 0).all() if joint else (ctx.batch.index >= 0).all()
        bad = jnp.where(told & own & (ctx.epoch_progress == 0), 0.0, jnp.nan)
        return jax.tree.map(lambda g: g + bad, grads), state

    def make_strategy(setup):
        return strategy(grads=read)

    # The optimizer's state is of plain training: the strategy itself is never stepped.
    one = problem(make_strategy=make_strategy, joint=joint, seeds=(0,))
    mesh = SeedMesh(1, "map", jax.devices()[:1])
    use = make_instruments(one, mesh, names=("conflict",), examples=20)
    seen = []

    def watch(moment):
        if moment.what == "epoch" and (moment.task, moment.epoch) == (1, 0):
            shared = (moment.base, mesh.share(np.int32(1)), mesh.share(np.int32(1)))
            given = (moment.mine, moment.cache)
            seen.append(mesh.gather(use.conflict(moment.trained, given, shared)))
            raise StopIteration

    plain = problem(joint=joint, seeds=(0,))
    with pytest.raises((StopIteration, RuntimeError)):
        list(protocol.run(plain, mesh=mesh, watch=[watch]))
    (found,) = seen
    assert np.isfinite(found["conflict_step"][0, 0])


def test_a_key_in_an_optimizers_state_is_saved_and_restored(problem, tmp_path):
    def noisy():
        return problem(optimizer=optax.noisy_sgd(0.1, key=jax.random.key(3)))

    *_, whole = protocol.run(noisy())
    stopped = iter([False] * 3 + [True] * 9)
    with pytest.raises(protocol.Interrupted):
        list(protocol.run(noisy(), checkpoints=tmp_path, stop=lambda: next(stopped)))
    *_, again = protocol.run(noisy(), checkpoints=tmp_path)
    np.testing.assert_array_equal(again.accuracy, whole.accuracy)
