r"""Compares gradients in the compiled epoch with eager float64, leaf by leaf.

python -m tests.gradients [--width=small] [--models=...] [--norms=...] [--seed_mode=...]

For every model, norm, dropout and seed mode it prints the worst ‖Δ‖/‖g‖ over the
parameters. Δ is the difference between the float32 gradient of the trainer's own loop
and the float64 gradient of the same weights, batch and dropout masks, computed one
operation at a time. XLA's flags are those of the environment. At full width it takes
about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.contract import strategy
from jaxcl.data.scenarios import make_stream
from jaxcl.data.source import Source
from jaxcl.data.stream import Base
from jaxcl.inputs import context_of
from jaxcl.nn import capture, models
from jaxcl.nn.layers import NORMS
from jaxcl.objective import transform_loss
from jaxcl.training.plan import Plan
from jaxcl.training.problem import Problem, make_setup, per_seed
from jaxcl.training.programs import make_programs
from jaxcl.training.seeds import SeedMesh
from jaxcl.types import Batch, Params, PyTree

SEEDS = (0, 1)
MODELS = ("mlp", "alexnet", "resnet18")  # networks with a norm and with kinks
CLASSES, TASKS = 4, 2
TASK = np.int32(1)  # the task in training


class Case(NamedTuple):
    """A network whose gradient is checked, and how its seeds run."""

    model: str  # one of `MODELS`
    norm: str
    dropout: bool
    seed_mode: str  # "map" or "vmap"
    full: bool = False  # the papers' widths, else small ones


class Recorded(NamedTuple):
    """What the step read and computed."""

    grads: PyTree
    batch: Batch
    key: jax.Array  # uint32 data of the step's key


class Error(NamedTuple):
    """The leaf of one case that is furthest from float64."""

    relative: float  # ‖Δ‖/‖g‖
    leaf: str
    draws: int  # how often inputs were drawn until they kept away from kinks


def cases(
    names=MODELS, norms=NORMS, seed_mode=("map", "vmap"), full=False
) -> list[Case]:
    """All combinations; the ResNet has no dropout."""
    product = itertools.product(names, norms, (False, True), seed_mode)
    return [Case(*c, full) for c in product if c[0] != "resnet18" or not c[2]]


def batch_and_kink(case: Case) -> tuple[int, float]:
    """Batch size, and the smallest allowed distance of a batch to a kink."""
    # Of the 150,000 rectified units per image some are always close to 0.
    deep = case.full and case.model == "resnet18" and case.norm == "none"
    return (2, 1e-6) if deep else (8, 5e-6)


def build(case: Case, outputs: int) -> nn.Module:
    options: dict[str, Any] = {"norm": case.norm, "num_tasks": TASKS}
    if case.model == "mlp":
        rates = (0.25, 0.1) if case.dropout else (0.0, 0.0)
        widths = (400, 400) if case.full else (96, 64)
        return models.MLP(widths, outputs, True, *rates, **options)
    if case.model == "alexnet":
        rates = (0.2, 0.5) if case.dropout else (0.0, 0.0)
        options |= {"dropout": rates[0], "dropout_late": rates[1]}
        return models.AlexNet(outputs, 1.0 if case.full else 1 / 16, **options)
    return models.ResNet18(outputs, 20 if case.full else 8, **options)


def source(case: Case, draw: int) -> Source:
    """Random images, one batch per task."""
    rng = np.random.default_rng([draw, 7])
    side = 32 if case.full or case.model == "alexnet" else 8
    if case.model == "resnet18" and case.norm != "none" and not case.full:
        # Of 8 pixels its last stage sees one, and a norm there divides by the deviation
        # of 8 numbers. That multiplies the forward pass's rounding so much that any
        # float32 program is some 1e-5 off. Without a norm, more pixels make random
        # images alike, and then the head's gradient cancels.
        side = 16
    n = batch_and_kink(case)[0] * TASKS
    x = rng.integers(0, 256, (n, side, side, 3), np.uint8)
    y = (np.arange(n) % CLASSES).astype(np.int32)
    names = tuple(map(str, range(CLASSES)))
    scale = ((0.5,) * 3, (0.25,) * 3)
    return Source("random", x, y, x[:CLASSES], y[:CLASSES], names, 255, *scale)


def problem(case: Case) -> Problem:
    """Training that changes no weight and records each step's gradient, batch, key."""
    batch = batch_and_kink(case)[0]
    options: Any = dict(kind="split", scenario="task", num_tasks=TASKS)
    stream = make_stream(source(case, 0), SEEDS, **options)

    def recorder(setup):
        def init(params):
            x = jnp.zeros(setup.example.shape)
            n = jnp.zeros(x.shape[0], jnp.int32)
            seen = Batch(x, n, n, n.astype(jnp.float32), n)
            grads = jax.tree.map(jnp.zeros_like, params.net)
            return Recorded(grads, seen, jax.random.key_data(jax.random.key(0)))

        def record(grads, state, params, *, ctx, out):
            key = jax.random.key_data(ctx.key)
            return grads, Recorded(grads.net, ctx.batch, key)

        return strategy(init=init, grads=record)

    return Problem(
        model=build(case, stream.num_outputs),
        stream=stream,
        seeds=SEEDS,
        make_strategy=recorder,
        optimizer=optax.set_to_zero(),
        plan=Plan(epochs=1, batch_size=batch),
        seed_mode=case.seed_mode,
    )


@contextmanager
def watch_kinks() -> Iterator[list[jax.Array]]:
    """Collects each layer's distance to the nearest point without a derivative.

    Not counted are units that dropout set to exactly 0, because they stay at 0, and
    pooling windows whose maximum is rectified to 0, because none of their elements gets
    a gradient.
    """
    found: list[jax.Array] = []
    relu, pool = nn.relu, models.max_pool

    def watched_relu(x):
        found.append(jnp.where(x == 0, jnp.inf, jnp.abs(x)).min())
        return relu(x)

    def watched_pool(x):
        b, h, w, c = x.shape
        windows = x[:, : h // 2 * 2, : w // 2 * 2]
        windows = windows.reshape(b, h // 2, 2, w // 2, 2, c)
        windows = windows.transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
        top = jax.lax.top_k(windows, 2)[0]
        found.append(jnp.where(top[:, 0] > 0, top[:, 0] - top[:, 1], jnp.inf).min())
        return pool(x)

    with (
        mock.patch.object(nn, "relu", watched_relu),
        mock.patch.object(models, "max_pool", watched_pool),
    ):
        yield found


def double(tree: PyTree) -> PyTree:
    """Floats as float64, on the host."""

    def one(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf

    return jax.tree.map(one, tree)


@lru_cache
def initial(model: str, norm: str, full: bool) -> tuple[PyTree, PyTree]:
    """Initial weights and statistics [S, ...]; seed_mode and dropout do not matter."""
    prob = problem(Case(model, norm, False, "map", full))
    shape = (1, *prob.stream.input_shape)
    init = capture.init_fn(prob.model, jax.ShapeDtypeStruct(shape, jnp.float32))
    each = [jax.jit(init)(jax.random.key(seed)) for seed in SEEDS]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def make_epoch(case: Case, prob: Problem) -> Callable[[int], Recorded]:
    """Compiles the epoch: draw of images -> what each seed's step recorded [S, ...]."""
    where = SeedMesh(len(SEEDS), case.seed_mode, jax.devices()[:1])
    programs = make_programs(prob, where)
    mine = where.spread(per_seed(prob))
    seed = jax.eval_shape(programs.init, (), mine, ())
    seed = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), seed)
    net, model_state = initial(case.model, case.norm, case.full)
    start = seed._replace(
        params=Params(net, {}),
        model_state=model_state,
        progress=seed.progress._replace(
            lr_scale=np.ones_like(seed.progress.lr_scale),
            failed_task=np.full_like(seed.progress.failed_task, -1),
        ),
    )

    def epoch(draw: int) -> Recorded:
        base = where.share(images(case, prob, draw))
        numbers = (where.share(np.int32(n)) for n in (TASK, 0, 1))
        seed, _ = programs.epoch(where.spread(start), (mine, ()), (base, *numbers))
        return where.gather(seed.strategy_state)

    return epoch


def images(case: Case, prob: Problem, draw: int) -> Base:
    """The stream's arrays with the images of one draw; orders and labels stay."""
    x = source(case, draw).train_x
    return prob.stream.base._replace(train_x=x.reshape(len(x), -1))


def check(case: Case) -> Error:
    """The worst leaf of a case, over all seeds."""
    prob = problem(case)
    batch_size, distance = batch_and_kink(case)
    setup = make_setup(prob.model, prob.stream, batch_size)
    loss = transform_loss(strategy(), setup)

    def loss_of(net, model_state, key, batch):
        key = jax.random.wrap_key_data(key)
        ctx = context_of(batch, task=TASK, key=key, model_state=model_state)
        return loss(Params(net, {}), (), ctx)[0]

    def kink(*args):
        with watch_kinks() as found:
            loss_of(*args)
        return jnp.stack(found).min()

    if case.full:  # compiled, because many draws are needed
        kink = jax.jit(kink)
    epoch = make_epoch(case, prob)
    seen, net = epoch(0), initial(case.model, case.norm, case.full)
    worst = Error(0.0, "", 0)
    for i in range(len(SEEDS)):
        seed, mine = (
            jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: B023
            for tree in ((*net, seen.key), prob.stream.per_seed)
        )
        order = seen.batch.index[i]  # it does not depend on the images

        def keeps_distance(draw: int) -> bool:
            base = images(case, prob, draw)
            batch = prob.stream.view(base, mine, "train", TASK).take(order)  # noqa: B023
            with jax.enable_x64(True):
                return float(kink(*double((*seed, batch)))) >= distance  # noqa: B023

        draw = next(filter(keeps_distance, itertools.count(1)))
        step = jax.tree.map(lambda leaf: leaf[i], epoch(draw))  # noqa: B023
        with jax.enable_x64(True):
            args = jax.tree.map(jnp.asarray, double((*seed, step.batch)))
            exact = jax.tree.map(np.asarray, jax.grad(loss_of)(*args))
        worst = max(worst, Error(*compare(step.grads, exact), draw))
    return worst


def compare(grads: PyTree, exact: PyTree) -> tuple[float, str]:
    """The largest ‖Δ‖/‖g‖ and its leaf; if g is 0, relative to the largest ‖g‖."""
    flat, _ = jax.tree_util.tree_flatten_with_path(exact)
    norms = [np.linalg.norm(g) for _, g in flat]
    found = []
    for (path, g), norm, ours in zip(flat, norms, jax.tree.leaves(grads), strict=True):
        whole = norm if norm > 1e-10 * max(norms) else max(norms)
        relative = float(np.linalg.norm(ours - g) / whole)
        if np.isnan(relative):  # a maximum would ignore it
            relative = np.inf
        found.append((relative, jax.tree_util.keystr(path)))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", choices=("small", "full"), default="full")
    for name, known in (
        ("models", MODELS),
        ("norms", NORMS),
        ("seed_mode", ("map", "vmap")),
    ):
        parser.add_argument(f"--{name}", default=",".join(known))
    args = parser.parse_args()
    chosen = (getattr(args, n).split(",") for n in ("models", "norms", "seed_mode"))
    print("| model | norm | dropout | seed_mode | worst ‖Δ‖/‖g‖ | leaf | draws | s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases(*chosen, full=args.width == "full"):
        start = time.perf_counter()
        e = check(case)
        row = (case.model, case.norm, "on" if case.dropout else "off", case.seed_mode)
        took = f"{time.perf_counter() - start:.0f}"
        values = (*row, f"{e.relative:.1e}", f"`{e.leaf}`", str(e.draws), took)
        print(f"| {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
