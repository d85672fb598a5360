"""The same network in Linen, NNX, Equinox and as a plain function learns the same."""

import os
import subprocess
import sys
from pathlib import Path

import four
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import alone

import jaxcl
from jaxcl.strategies import make

METHODS = {
    "finetune": {},
    "ewc": {"strength": 3.0, "samples": 40},
    "si": {"strength": 1.0},
    "mas": {"strength": 0.1, "samples": 40},
    "lwf": {},
    "gpm": {"threshold": 0.9, "samples": 40},
    "owm": {"alpha": 0.1},
    "hat": {"strength": 0.75},
    "agem": {"per_class": 10, "batch_size": 16},
    "derpp": {"capacity": 40, "batch_size": 8},
}
BATCH, STEPS, ROWS = 16, 50, 96
X64 = bool(jax.config.jax_enable_x64)
DTYPE = np.float64 if X64 else np.float32
APART = 1e-8 if X64 else 1e-3
CLOSE = 1e-10 if X64 else 1e-5


def tasks():
    """Two classes of noisy images per task, [(x, y)]."""
    rng = np.random.default_rng(3)
    centre = rng.normal(size=(four.OUTPUTS, four.SIDE, four.SIDE, 1))
    found = []
    for task in range(four.TASKS):
        y = np.arange(ROWS) % 2 + 2 * task
        x = centre[y] + rng.normal(size=(ROWS, four.SIDE, four.SIDE, 1))
        found.append((jnp.asarray(x, DTYPE), jnp.asarray(y)))
    return found


class Run:
    """A method in one framework, in a loop that is not the project's."""

    def __init__(self, framework, model, method, settings):
        net = four.initial(model, DTYPE)
        self.made = four.framework(framework, model, net, BATCH)
        self.method = make(method, self.made.setup, settings)
        optimizer = optax.sgd(0.05, momentum=0.5)
        loss, self.tx = alone(self.method, optimizer, self.made.setup)

        def learn(params, opt_state, x, y, task):
            """The steps of a task, and the first step's update."""
            opt_state = opt_state._replace(inner=self.tx.init(params).inner)

            def step(params, opt_state, i):
                rows = (jnp.arange(BATCH) + i * BATCH) % ROWS
                progress = (i % 10) / jnp.float32(9)
                ctx = jaxcl.context(
                    x[rows], y[rows], task=task, step=i, epoch_progress=progress
                )
                grad = jax.grad(loss, has_aux=True)
                grads, out = grad(params, opt_state.strategy, ctx)
                return self.tx.update(grads, opt_state, params, ctx=ctx, out=out)

            def body(i, carry):
                params, opt_state, first = carry
                updates, opt_state = step(params, opt_state, i)
                first = jax.tree.map(
                    lambda f, u: jnp.where(i == 0, u, f), first, updates
                )
                return optax.apply_updates(params, updates), opt_state, first

            first = jax.tree.map(jnp.zeros_like, params)
            return jax.lax.fori_loop(0, STEPS, body, (params, opt_state, first))

        def end(params, opt_state, x, y, task):
            data = jaxcl.array_data(x, y, task)
            key = jax.random.fold_in(jax.random.key(7), task)
            return jaxcl.after_task(
                self.method, params, opt_state, data, task=task, key=key
            )

        self._learn, self._end, self._net = jax.jit(learn), jax.jit(end), net
        self.reset()

    def reset(self):
        self.params = jaxcl.init_params(
            self.method, jax.random.key(5), self.made.give(self._net)
        )
        self.opt_state = self.tx.init(self.params)

    def learn(self, task, x, y):
        """Trains on a task; returns its first update, in Linen's layout."""
        of_task = self.made.inputs(x), y, jnp.int32(task)
        self.params, self.opt_state, first = self._learn(
            self.params, self.opt_state, *of_task
        )
        return self.made.take(first.net) | {"aux": first.aux}

    def finish(self, task, x, y):
        of_task = self.made.inputs(x), y, jnp.int32(task)
        self.params, self.opt_state = self._end(self.params, self.opt_state, *of_task)

    def net(self):
        return self.made.take(self.params.net)

    def put(self, net, aux, inverse=None):
        """Sets Linen's parameters, and OWM's P, which every step rounds again."""
        self.params = jaxcl.Params(self.made.give(net), aux)
        if inverse is not None:
            turned = {}
            for name, p in inverse.items():
                rows = self.made.rows(name)
                turned[name] = jnp.asarray(p)[rows][:, rows]
            state = self.opt_state.strategy._replace(inverse=turned)
            self.opt_state = self.opt_state._replace(strategy=state)

    def whole(self):
        inverse = getattr(self.opt_state.strategy, "inverse", None)
        return self.net(), self.params.aux, inverse


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(jax.tree.map(np.asarray, tree))


def apart(got, want):
    """‖got − want‖ / ‖want‖ over all parameters."""
    difference = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), got, want)
    whole = jax.tree.map(lambda b: np.sum(b**2), want)
    return np.sqrt(sum(jax.tree.leaves(difference)) / sum(jax.tree.leaves(whole)))


TOLD = os.environ.get("JAXCL_FOUR", "")
# The convolutional network has dense layers too. With JAXCL_FOUR=1 both networks are
# tested with all methods, and the distances are printed.
CASES = [(m, "cnn") for m in METHODS] + [(m, "mlp") for m in METHODS if TOLD]


@pytest.mark.parametrize("method, model", CASES)
def test_four_frameworks_learn_the_same(method, model):
    settings, data = METHODS[method], tasks()
    reference = Run("linen", model, method, settings)
    history = []  # what each task starts from, its first update, what it ends at
    for task, (x, y) in enumerate(data):
        begun = reference.whole()
        first = reference.learn(task, x, y)
        history.append((begun, first, reference.whole()))
        reference.finish(task, x, y)
    for name in four.FRAMEWORKS[1:]:
        led = Run(name, model, method, settings)
        worst = 0.0
        for task, (x, y) in enumerate(data):
            begun, want, ended = history[task]
            led.put(*begun)
            got = led.learn(task, x, y)
            for (path, a), (_, b) in zip(leaves(got), leaves(want), strict=True):
                most = np.abs(b).max()
                worst = max(worst, np.abs(a - b).max() / most if most else 0.0)
                where = f"{name}, task {task}, {jax.tree_util.keystr(path)}"
                assert np.abs(a - b).max() <= CLOSE * most, where
            led.put(*ended)
            led.finish(task, x, y)
        ranks = [led.opt_state.strategy.count] if method == "gpm" else []
        free = led
        free.reset()
        for task, (x, y) in enumerate(data):
            free.learn(task, x, y)
            free.finish(task, x, y)
        if method == "gpm":
            ranks += [r.opt_state.strategy.count for r in (free, reference)]
            assert ranks[0] == ranks[1] == ranks[2]
            assert all(0 < int(c) for c in ranks[0].values())
        distance = apart(free.net(), reference.net())
        if TOLD:
            print(f"{method} {model} {name}: first {worst:.1e}, end {distance:.1e}")
        if method != "hat":  # its embeddings amplify rounding
            assert distance <= APART, name


@pytest.mark.minutes
def test_in_float64():
    """In a separate process: JAX's width holds for a whole process."""
    names = [f"test_four_frameworks_learn_the_same[{m}-cnn]" for m in ("gpm", "owm")]
    if X64:
        pytest.skip("this is the process")
    here = Path(__file__)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "0",
            *(f"{here}::{n}" for n in names),
        ],
        cwd=here.parents[1],
        env=os.environ | {"JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("name", four.FRAMEWORKS)
def test_tasks_with_unequal_numbers_of_classes(name, scenario):
    """A task has its own outputs, or class-incrementally those of all so far."""
    net = four.initial("mlp", np.float32)
    made = four.framework(
        name, "mlp", net, 4, num_tasks=2, scenario=scenario, classes_per_task=(1, 5)
    )
    mask = [[True] + [False] * 5, [scenario == "class"] + [True] * 5]
    np.testing.assert_array_equal(made.setup.logit_mask, mask)
    assert made.setup.mask_by == ("example" if scenario == "task" else "task")
