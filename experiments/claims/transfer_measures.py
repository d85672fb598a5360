"""What claim 11 measures of a run that is finished, from the weights it has kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import features
from jaxcl.data import sources
from jaxcl.data.noise import noise_of, redrawn
from jaxcl.heads import head_mask
from jaxcl.training.problem import setup_of
from jaxcl.types import PyTree

from ..runs import kept
from ..runs.landscape import grid_of
from ..runs.machine import UsageError
from ..runs.opened import Run as Opened
from ..runs.opened import Weights, load_run
from ..runs.results import OK
from .claim import Array
from .transfer_data import first_of_each

CHUNK = 250  # images at once
SHARES = (0.25, 0.5, 0.75)  # of the way from pretrained to fine-tuned
EVERY = 3  # of the training images of the target so many-th is looked at
POINTS, FEW = 7, 250  # of the plane: on its longer side; images of each task
PROBED = (24, 6, 10)  # CIFAR-100's images of a class: to fit, to choose by, to test
SOURCE, TARGET = 0, 1  # the tasks

Found = Mapping[str, Array]


def of_row(folder: Path) -> Found:
    """The way of a row, and how far its training accuracy is from its test accuracy.

    Args:
      folder: of a run that has kept its weights, of every epoch or the last.

    Returns:
      Per cent: ``source`` and ``target`` [S, E + 1], on test images before training on
      the target and after each epoch of it (its end alone where no others were kept);
      ``train`` [S], on every third training image by the labels trained with;
      ``redrawn`` [S], on the test images by labels redrawn as those were. NaN: the seed
      failed.
    """
    run = load_run(folder)
    rows = [_row_of(run, place) for place in range(len(run.seeds))]
    found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    bad = np.array([status != OK for status in run.result.status])
    for values in found.values():
        values[bad] = np.nan
    return found


def _row_of(run: Opened, place: int) -> dict[str, list[float] | float]:
    seed, result = run.seeds[place], run.result
    first = result.matrix[place, SOURCE]
    way = [np.where(np.isfinite(first), first, result.baseline[place])]
    for epoch in itertools.count():
        # After the last epoch the task's end, whose accuracies the run has.
        if not kept.file_of(run.workdir, TARGET, epoch + 1).is_file():
            break
        weights = run.weights(seed, TARGET, epoch)
        way.append(np.array([accuracy(run, seed, weights, t) for t in (0, 1)]))
    way.append(result.matrix[place, TARGET])
    weights = run.weights(seed, TARGET)
    x, y = run.data(seed, TARGET, "test")
    again = _redrawn(run, seed, y)
    return {
        "source": [100 * at[SOURCE] for at in way],
        "target": [100 * at[TARGET] for at in way],
        "train": 100 * accuracy(run, seed, weights, TARGET, "train", EVERY),
        "redrawn": 100 * float((predicted(run, weights, TARGET, x) == again).mean()),
    }


def _redrawn(run: Opened, seed: int, y: np.ndarray) -> np.ndarray:
    """Labels of test images, contradicted as the training labels of the run are."""
    data, stream = run.config.data, run.problem.stream
    outputs = np.flatnonzero(np.asarray(stream.logit_mask)[TARGET])
    names = list(map(str, range(stream.num_outputs)))
    if data.task_classes is not None:
        names = list(itertools.chain(*data.task_classes))
    noise = noise_of(names, data.label_noise, data.confusion)
    return redrawn(y, [outputs.tolist()], noise, np.random.default_rng([seed, TARGET]))


def predicted(run: Opened, weights: Weights, task: int, x: np.ndarray) -> np.ndarray:
    """The class of each input among its task's outputs: int[N]."""
    mask = np.asarray(run.problem.stream.logit_mask)
    found = [
        np.where(
            mask[task], run.apply(weights, part, task, current=TARGET).logits, -np.inf
        )
        for part in _chunks(x)
    ]
    return np.concatenate(found)[: len(x)].argmax(1)


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    """Inputs in pieces of one shape, for one compilation: the last one is filled up."""
    size = min(CHUNK, len(x))
    whole = np.concatenate([x, np.repeat(x[:1], -len(x) % size, 0)])
    return [whole[i : i + size] for i in range(0, len(whole), size)]


def accuracy(
    run: Opened, seed: int, weights: Weights, task: int, part: str = "test", every=1
) -> float:
    """Share of right answers on every so many-th example of a task."""
    x, y = (rows[::every] for rows in run.data(seed, task, part))
    return float((predicted(run, weights, task, x) == y).mean())


def of_fine_tuned(folder: Path) -> Found:
    """As `of_row`; and between pretrained and fine-tuned, and of features in general.

    Returns:
      Also ``mixed_source`` and ``mixed_target`` [S, `SHARES`]; of a network of images
      ``probe_before`` and ``probe_after`` [S], see `_probe`.
    """
    run, found = load_run(folder), dict(of_row(folder))
    mixed, probes, before = [], [], None
    for seed in run.seeds:
        ends = [run.weights(seed, task) for task in (SOURCE, TARGET)]
        points = [mix(run, *ends, share) for share in SHARES]
        mixed.append([[accuracy(run, seed, w, t) for w in points] for t in (0, 1)])
        if _shows(run):
            # All seeds start from one extractor.
            before = _probe(run, ends[0]) if before is None else before
            probes.append([before, _probe(run, ends[1])])
    both = 100 * np.array(mixed)
    found |= {"mixed_source": both[:, SOURCE], "mixed_target": both[:, TARGET]}
    if probes:
        before, after = 100 * np.array(probes).T
        found |= {"probe_before": before, "probe_after": after}
    return found


def _shows(run: Opened) -> bool:
    """Whether a network reads colour images as large as CIFAR-100's at least."""
    height, *_, channels = run.problem.stream.input_shape
    return channels == 3 and height >= 32


def mix(run: Opened, before: Weights, after: Weights, share: float) -> Weights:
    """The extractor a share of the way between two, with the classifier of the second.

    Nothing had trained the target's outputs before. Running statistics are on the way
    too. After Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022,
    https://arxiv.org/abs/2109.01903.
    """

    def between(a, b):
        return (a + share * (b - a)).astype(b.dtype)

    net = jax.tree.map(
        lambda a, b, is_head: b if is_head else between(a, b),
        before.params.net,
        after.params.net,
        head_mask(setup_of(run.problem), after.params.net),
    )
    state = jax.tree.map(between, before.model_state, after.model_state)
    return after._replace(params=after.params._replace(net=net), model_state=state)


def _probe(run: Opened, weights: Weights) -> float:
    """Accuracy of a ridge probe on CIFAR-100, by what the classifier reads of it."""
    source = sources.load("cifar100")
    fit, held, test = PROBED
    x, y = _features(run, weights, source.train_x, source.train_y, fit + held)
    # Class after class: of each the first so many fit, the others choose the strength.
    fits = np.arange(len(y)) % (fit + held) < fit
    classes = len(source.class_names)
    probe = features.ridge_probe(
        x[fits], y[fits], x[~fits], y[~fits], num_classes=classes
    )
    shown = _features(run, weights, source.test_x, source.test_y, test)
    return float(features.accuracy(probe, *shown))


def _features(
    run: Opened, weights: Weights, x: np.ndarray, y: np.ndarray, each: int
) -> tuple[jax.Array, jax.Array]:
    rows, stream = first_of_each(y, each), run.problem.stream
    shape = (CHUNK, *stream.input_shape)
    found = []
    for part in _chunks(x[rows]):
        large = jax.image.resize(part.astype(np.float32), shape, "bilinear")
        large = (large / stream.scale - jnp.array(stream.mean)) / jnp.array(stream.std)
        out = run.apply(weights, large, TARGET)
        found.append(np.asarray(out.taps["head"]))
    return jnp.asarray(np.concatenate(found)[: len(rows)]), jnp.asarray(y[rows])


def of_joint(fine_tuned: Callable[[Path], Path | None]) -> Callable[[Path], Found]:
    """What is measured of joint training: the plane through three networks beside.

    Args:
      fine_tuned: ``(folder of the joint run) -> folder of the fine-tuned one``.

    Returns:
      ``(folder) -> `` as `of_row`, and of the first seed ``plane_x`` [X], ``plane_y``
      [Y], per cent ``plane`` [2, Y, X] of source and target, and where pretrained,
      fine-tuned and joint lie, ``corners`` [3, 2].
    """

    def of_joint(folder: Path) -> Found:
        other = fine_tuned(folder)
        if other is None:
            raise UsageError(
                "joint: the plane needs the run fine_tune, which is missing"
            )
        return {**of_row(folder), **_plane(load_run(other), load_run(folder))}

    return of_joint


def _plane(fine_tuned: Opened, joint: Opened) -> dict[str, Array]:
    seed = fine_tuned.seeds[0]
    ends = [fine_tuned.weights(seed, task) for task in (SOURCE, TARGET)]
    ends.append(joint.weights(seed, TARGET))
    nets: list[PyTree] = [weights.params.net for weights in ends]
    plane = features.plane_through(*nets)
    corners = np.stack([features.place_in(plane, net).coordinates for net in nets])
    x, y = grid_of(corners, POINTS)
    found, step = np.zeros((2, len(y), len(x))), [1, 1]
    for task in (SOURCE, TARGET):
        step[task] = -(-len(fine_tuned.data(seed, task)[1]) // FEW)
    for i, j in np.ndindex(len(y), len(x)):
        net = features.point_of(plane, jnp.array([x[j], y[i]], jnp.float32))
        at = ends[0]._replace(params=ends[0].params._replace(net=net))
        found[:, i, j] = [
            100 * accuracy(fine_tuned, seed, at, t, every=step[t]) for t in (0, 1)
        ]
    return {"plane_x": x, "plane_y": y, "plane": found, "corners": corners}
