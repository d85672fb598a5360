"""A small network in JAX and by hand in float64 NumPy, and a loop over tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from alone import alone

import jaxcl

INPUTS, HIDDEN, BATCH, STEPS = 4, 5, 6, 12


def forward(net, x):
    h = jnp.tanh(x @ net["hidden"]["kernel"] + net["hidden"]["bias"])
    return h @ net["head"]["kernel"] + net["head"]["bias"]


def logits(net, x):
    h = np.tanh(x @ net["hidden"]["kernel"] + net["hidden"]["bias"])
    return h, h @ net["head"]["kernel"] + net["head"]["bias"]


def backward(net, x, dz):
    """The gradient of Σ dz · z with respect to the parameters."""
    h, _ = logits(net, x)
    dh = (dz @ net["head"]["kernel"].T) * (1 - h**2)
    return {
        "hidden": {"kernel": x.T @ dh, "bias": dh.sum(0)},
        "head": {"kernel": h.T @ dz, "bias": dz.sum(0)},
    }


def softmax(z, mask):
    e = np.where(mask, np.exp(z - z.max(-1, keepdims=True)), 0)
    return e / e.sum(-1, keepdims=True)


def cross_entropy_dz(z, y, mask):
    """d/dz of the mean cross-entropy over the outputs in play."""
    return (softmax(z, mask) - np.eye(z.shape[1])[y]) / len(y)


def make_setup(scenario="task", num_tasks=3, outputs=6, dtype=None):
    example = jax.ShapeDtypeStruct((BATCH, INPUTS), dtype or jnp.result_type(float))
    return jaxcl.setup_for(
        forward,
        example,
        num_outputs=outputs,
        num_tasks=num_tasks,
        heads=(("head",),),
        scenario=scenario,
    )


def make_net(seed=0, outputs=6):
    rng = np.random.default_rng(seed)
    return {
        "hidden": {
            "kernel": rng.normal(size=(INPUTS, HIDDEN)) * 0.7,
            "bias": rng.normal(size=HIDDEN) * 0.1,
        },
        "head": {
            "kernel": rng.normal(size=(HIDDEN, outputs)) * 0.7,
            "bias": rng.normal(size=outputs) * 0.1,
        },
    }


def make_tasks(setup, n=BATCH * STEPS, seed=1):
    """[(x, y)] for each task; the tasks conflict, so that methods have an effect."""
    rng = np.random.default_rng(seed)
    mask = np.asarray(setup.logit_mask)
    tasks = []
    for t in range(setup.num_tasks):
        new = mask[t]
        if setup.mask_by == "task" and t:
            new = mask[t] & ~mask[t - 1]
        x = rng.normal(size=(n, INPUTS))
        classes = np.flatnonzero(new)
        score = x @ rng.normal(size=(INPUTS, len(classes)))
        tasks.append((x, classes[score.argmax(1)]))
    return tasks


def mask_rows(setup, example_task, current):
    mask = np.asarray(setup.logit_mask)
    return mask[example_task] if setup.mask_by == "example" else mask[[current]]


def step_key(task, step):
    return jax.random.fold_in(jax.random.key(100 + task), step)


def run(method, setup, net, tasks, optimizer):
    """Trains on one task after another, with batches in order and one trace for all.

    Returns the network and the strategy's state after each task.
    """
    params = start(method, net)[0]
    task_loss, tx = alone(method, optimizer, setup)
    opt_state = jax.jit(tx.init)(params)
    traces = []

    @jax.jit
    def step(params, opt_state, ctx):
        traces.append(1)
        grads, out = jax.grad(task_loss, has_aux=True)(params, opt_state.strategy, ctx)
        u, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
        return optax.apply_updates(params, u), opt_state

    @jax.jit
    def end(params, opt_state, x, y, t):
        data, key = jaxcl.array_data(x, y, t), jax.random.key(200 + t)
        return jaxcl.after_task(method, params, opt_state, data, task=t, key=key)

    history = []
    for t, (x, y) in enumerate(tasks):
        opt_state = opt_state._replace(inner=tx.init(params).inner)
        for i in range(len(x) // BATCH):
            rows = slice(i * BATCH, (i + 1) * BATCH)
            ctx = jaxcl.context(
                jnp.asarray(x[rows]), y[rows], task=t, step=i, key=step_key(t, i)
            )
            params, opt_state = step(params, opt_state, ctx)
        params, opt_state = end(params, opt_state, jnp.asarray(x), y, t)
        history.append(jax.tree.map(np.asarray, (params.net, opt_state.strategy)))
    assert len(traces) == 1
    return history


def start(method, net):
    net = jax.tree.map(jnp.asarray, net)
    params = jaxcl.init_params(method, jax.random.key(0), net)
    return params, jax.jit(method.init)(params)


def run_reference(net, tasks, lr, gradient, after_task=None):
    """Plain SGD in NumPy: ``gradient(net, t, i, x, y)``, ``after_task(net, t, x, y)``.

    Both may return values to keep. Returns the network after each task.
    """
    history = []
    for t, (x, y) in enumerate(tasks):
        for i in range(len(x) // BATCH):
            rows = slice(i * BATCH, (i + 1) * BATCH)
            g = gradient(net, t, i, x[rows], y[rows])
            net = jax.tree.map(lambda p, d: p - lr * d, net, g)
        if after_task:
            after_task(net, t, x, y)
        history.append(net)
    return history


def assert_close(got, want, rtol=1e-4, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want
    )


def add(*trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def scale(factor, tree):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def one_step(method, setup, net, x, y, *, task):
    """The network after one step of SGD."""

    loss, tx = alone(method, optax.sgd(0.3), setup)

    @jax.jit
    def step(net, x, y):
        params = start(method, net)[0]
        ctx = jaxcl.context(x, y, task=task)
        opt_state = tx.init(params)
        grads, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        u, _ = tx.update(grads, opt_state, params, ctx=ctx, out=out)
        return optax.apply_updates(params, u).net

    return step(net, x, y)


def _example_step(make, wide, task):
    with jax.enable_x64(wide):
        setup = make_setup()
        x, y = make_tasks(setup, n=BATCH)[task]
        dtype = np.float64 if wide else np.float32
        net = jax.tree.map(lambda leaf: leaf.astype(dtype), make_net())
        return one_step(make(setup), setup, net, x.astype(dtype), y, task=task)


@functools.cache
def _fine_tuned(wide, task):
    return _example_step(jaxcl.strategies.factory("finetune"), wide, task)


def assert_neutral(make, task=0):
    """A step equals a fine-tuning step, within 1e-12 in float64 and 1e-6 in float32."""
    for wide, tolerance in ((True, 1e-12), (False, 1e-6)):
        got, want = _example_step(make, wide, task), _fine_tuned(wide, task)
        assert_close(got, want, rtol=tolerance, atol=tolerance)
