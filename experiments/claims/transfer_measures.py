"""What claim 11 measures of a run that is finished, from the weights it has kept."""

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

CHUNK = 250  # images at once
SHARES = (0.25, 0.5, 0.75)  # of the way from pretrained to fine-tuned
EVERY = 3  # of the training images of the target so many-th is looked at
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
    run: Opened,
    seed: int,
    weights: Weights,
    task: int,
    part: str = "test",
    every: int = 1,
) -> float:
    """Share of right answers on every so many-th example of a task."""
    x, y = (rows[::every] for rows in run.data(seed, task, part))
    return float((predicted(run, weights, task, x) == y).mean())


def of_fine_tuned(folder: Path) -> Found:
    """As `of_row`; and between pretrained and fine-tuned, and of features in general.

    Returns:
      Also, for each of `SHARES`, ``mixed_source`` and ``mixed_target`` [S, 3] on test
      images and ``mixed_valid`` [S, 3], the mean of both tasks on validation images; of
      a network of images ``probe_before`` and ``probe_after`` [S], see `_probe`.
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
    return found


def _both(run: Opened, seed: int, weights: Weights) -> tuple[float, float, float]:
    """Accuracy on both tasks' test images, and the mean of both on validation's."""
    held = np.mean([accuracy(run, seed, weights, task, "valid") for task in (0, 1)])
    source, target = (accuracy(run, seed, weights, task) for task in (0, 1))
    return source, target, float(held)


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
