"""Claim 11's measurements of a finished run, from the weights that the run has kept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import features
from jaxcl.data import sources
from jaxcl.data.noise import noise_of, redrawn
from jaxcl.heads import head_mask
from jaxcl.training.problem import setup_of

from ..runs import kept
from ..runs.opened import Run as Opened
from ..runs.opened import Weights, load_run
from ..runs.results import OK
from .claim import Array
from .transfer_data import first_of_each

CHUNK = 250  # images per forward pass
SHARES = (0.25, 0.5, 0.75)  # of the way from pretrained to fine-tuned
EVERY = 3  # training accuracy is measured on every third image of the target
PROBED = (24, 6, 10)  # CIFAR-100's images per class: to fit, to choose, to test
SOURCE, TARGET = 0, 1  # the tasks

Found = Mapping[str, Array]


def of_row(folder: Path) -> Found:
    """A row's accuracies during training on the target, and on its training images.

    Args:
      folder: of a run that has kept the weights of every epoch, or the last ones.

    Returns:
      Accuracies in per cent. ``source`` and ``target`` [S, E + 1]: on test images
      before training on the target and after each of its epochs (only at the end if the
      epochs' weights were not kept). ``train`` [S]: on every third training image, by
      the labels of training. ``redrawn`` [S]: on the test images, by labels redrawn in
      the same way as those. NaN: failed seed.
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
        # The last epoch is the task's end: the run's result has its accuracies.
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
    """Labels of test images, redrawn in the same way as the run's training labels."""
    data, stream = run.config.data, run.problem.stream
    outputs = np.flatnonzero(np.asarray(stream.logit_mask)[TARGET])
    names = list(map(str, range(stream.num_outputs)))
    if data.task_classes is not None:
        names = list(itertools.chain(*data.task_classes))
    noise = noise_of(names, data.label_noise, data.confusion)
    return redrawn(y, [outputs.tolist()], noise, np.random.default_rng([seed, TARGET]))


def predicted(run: Opened, weights: Weights, task: int, x: np.ndarray) -> np.ndarray:
    """The predicted class of each input, among its task's outputs: int[N]."""
    mask = np.asarray(run.problem.stream.logit_mask)
    found = [
        np.where(
            mask[task], run.apply(weights, part, task, current=TARGET).logits, -np.inf
        )
        for part in _chunks(x)
    ]
    return np.concatenate(found)[: len(x)].argmax(1)


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    """Inputs in chunks of one shape, for one compilation; the last chunk is padded."""
    size = min(CHUNK, len(x))
    whole = np.concatenate([x, np.repeat(x[:1], -len(x) % size, 0)])
    return [whole[i : i + size] for i in range(0, len(whole), size)]


def accuracy(
    run: Opened,
    seed: int,
    weights: Weights,
    task: int,
    part: str = "test",
    every: int = 1,
) -> float:
    """Accuracy in [0, 1] on a task's examples; `every` n: on each n-th of them."""
    x, y = (rows[::every] for rows in run.data(seed, task, part))
    return float((predicted(run, weights, task, x) == y).mean())


def of_fine_tuned(folder: Path) -> Found:
    """As `of_row`, and also of mixed weights, and of a probe on the features.

    Returns:
      As `of_row`. Also, for each of `SHARES`, ``mixed_source`` and ``mixed_target``
      [S, 3] on test images, and ``mixed_valid`` [S, 3], the mean of both tasks on
      validation images. If the network reads images, also ``probe_before`` and
      ``probe_after`` [S], see `_probe`.
    """
    run, found = load_run(folder), dict(of_row(folder))
    mixed, probes, before = [], [], None
    for seed in run.seeds:
        ends = [run.weights(seed, task) for task in (SOURCE, TARGET)]
        points = [mix(run, *ends, share) for share in SHARES]
        mixed.append([_both(run, seed, weights) for weights in points])
        if _shows(run):
            # All seeds start from one extractor.
            before = _probe(run, ends[0]) if before is None else before
            probes.append([before, _probe(run, ends[1])])
    values = 100 * np.moveaxis(np.array(mixed), -1, 0)
    names = ("mixed_source", "mixed_target", "mixed_valid")
    found |= dict(zip(names, values, strict=True))
    if probes:
        before, after = 100 * np.array(probes).T
        found |= {"probe_before": before, "probe_after": after}
    bad = [status != OK for status in run.result.status]
    for name in found:
        found[name] = np.array(found[name], float)
        found[name][bad] = np.nan
    return found


def _both(run: Opened, seed: int, weights: Weights) -> tuple[float, float, float]:
    """Accuracy on each task's test images; both tasks' mean on validation images."""
    held = np.mean([accuracy(run, seed, weights, task, "valid") for task in (0, 1)])
    source, target = (accuracy(run, seed, weights, task) for task in (0, 1))
    return source, target, float(held)


def _shows(run: Opened) -> bool:
    """Whether a network reads colour images at least as large as CIFAR-100's."""
    height, *_, channels = run.problem.stream.input_shape
    return channels == 3 and height >= 32


def mix(run: Opened, before: Weights, after: Weights, share: float) -> Weights:
    """An extractor interpolated between two, with the classifier of the second.

    The classifier is not interpolated: the target's outputs were untrained before. The
    running statistics are. After Wortsman et al., Robust fine-tuning of zero-shot
    models, CVPR 2022, https://arxiv.org/abs/2109.01903.
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
    """Accuracy of a ridge probe on CIFAR-100, fitted to the classifier's inputs."""
    source = sources.load("cifar100")
    fit, held, test = PROBED
    x, y = _features(run, weights, source.train_x, source.train_y, fit + held)
    # Sorted by class: in each class the first `fit` examples fit the probe, and the
    # others choose its strength.
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
