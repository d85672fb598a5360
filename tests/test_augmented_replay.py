"""Replay under augmentation: originals are stored, and drawn ones augmented anew."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.nn import capture
from jaxcl.ops import memory
from jaxcl.strategies import agem, derpp, er
from jaxcl.strategies.agem import drawn
from jaxcl.testing.problem import small_problem, small_source
from jaxcl.training import protocol
from jaxcl.training.problem import setup_of

CHANGES = {"crop_padding": 1, "flip": True}
METHODS = {
    "er": partial(er, capacity=40, batch_size=6),
    "derpp": partial(derpp, capacity=40, batch_size=6),
    "agem": partial(agem, per_class=5, batch_size=6),
}


def variants(image, black):
    """All that a flip and a crop with one black pixel around make of an image."""
    found = set()
    for flipped in (image, image[:, ::-1]):
        wide = np.full((6, 6, 1), black, image.dtype)
        wide[1:5, 1:5] = flipped
        found |= {wide[i : i + 4, j : j + 4].tobytes() for i, j in np.ndindex(3, 3)}
    return found


def filled(name):
    """A method and its state on augmented images, after a task of a user's own loop."""
    problem = small_problem(**CHANGES)
    setup = setup_of(problem)
    images = small_source().train_x[:24]
    x = setup.codec.decode(jnp.asarray(images))
    y = jnp.arange(24) % 2
    method = METHODS[name](setup)
    net, _ = capture.init_fn(problem.model, setup.example)(jax.random.key(0))
    params = jaxcl.init_params(method, jax.random.key(0), net)
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup)
    state, loss = tx.init(params), jaxcl.transform_loss(method, setup)
    for i in range(3):
        rows = slice(8 * i, 8 * (i + 1))
        seen = setup.augmentation(x[rows], jax.random.key(i))
        ctx = jaxcl.context(
            seen, y[rows], task=0, step=i, epoch=0, original=x[rows], model_state={}
        )
        grads, out = jax.grad(loss, has_aux=True)(params, state.strategy, ctx)
        _, state = tx.update(grads, state, params, ctx=ctx, out=out)
    data = jaxcl.array_data(x, y)
    params, state = jaxcl.after_task(method, params, state, data, task=0)
    return setup, state.strategy, ctx, images


@pytest.mark.parametrize("name", METHODS)
def test_originals_are_stored_and_draws_are_augmented(name):
    setup, state, ctx, images = filled(name)
    store = state if name == "agem" else state.memory
    held = np.asarray(store.x[: int(store.size)]).reshape(-1, 4, 4, 1)
    known = {image.tobytes() for image in images}
    assert len(held) >= 10 and {image.tobytes() for image in held} <= known
    decoded = np.asarray(setup.codec.decode(jnp.asarray(held)))
    black = float(setup.codec.decode(jnp.zeros((1, 1, 1), jnp.uint8))[0, 0, 0])
    of = [variants(image, black) for image in decoded]
    plain = {image.tobytes() for image in decoded}

    def check(x):
        rows = {np.asarray(row).tobytes() for row in x}
        assert all(any(row in made for made in of) for row in rows)
        return rows

    if name == "agem":
        groups = [check(drawn(setup, 60, state, ctx).x)]
    else:
        groups = [check(part.batch.x) for part in state.drawn]
        keys = jax.random.split(jax.random.key(5))
        groups += [check(memory.sample(store, k, 60, setup).batch.x) for k in keys]
    for rows in groups:
        assert not rows <= plain, "not augmented"
    assert len(set.union(*groups)) > len(plain), "one variant of each image"


@pytest.mark.parametrize("name", ["er", "derpp"])
@pytest.mark.parametrize("seed_mode", ["map", "vmap"])
def test_in_a_run(name, seed_mode):
    """All that the reservoir holds at a task's end are images of the data set."""
    images = jnp.asarray(small_source().train_x.reshape(300, -1))

    def method(setup):
        made = METHODS[name](setup)

        def report(state):
            same = (state.memory.x[:, None] == images).all(-1).any(1)
            filled = jnp.arange(len(same)) < state.memory.size
            return {"known": {"share": (same & filled).sum() / filled.sum()}}

        return made._replace(report=report)

    *_, last = protocol.run(small_problem(method, seed_mode=seed_mode, **CHANGES))
    np.testing.assert_array_equal(last.report["known"]["share"], 1)


def test_nothing_is_augmented_if_the_stream_does_not():
    setup = setup_of(small_problem())
    assert setup.augmentation is None
    store = memory.empty(setup, 4)
    batch = jaxcl.context(jnp.ones((4, 4, 4, 1)), jnp.zeros(4, int), task=0).batch
    store = memory.append(store, batch, setup.codec)
    x = memory.sample(store, jax.random.key(0), 5, setup).batch.x
    np.testing.assert_allclose(
        x, setup.codec.decode(setup.codec.encode(batch.x))[0, 0, 0, 0]
    )


def test_an_original_of_another_shape_is_refused():
    x, y = jnp.ones((4, 4, 4, 1)), jnp.zeros(4, int)
    with pytest.raises(ValueError, match=r"original must be like x, \[4, 4, 4, 1\]"):
        jaxcl.context(x, y, task=0, original=x[:2])
