"""Claim 11: the tasks' classes, the contradictory labels, the rows' measurements."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config as configs
from experiments.claims import carry, transfer, transfer_data, transfer_runs
from experiments.claims.claim import Outcome, Run
from experiments.claims.imagenet import INDEX
from experiments.claims.transfer_measures import SHARES, mix
from experiments.runs.machine import UsageError
from experiments.runs.opened import Weights
from experiments.runs.results import Result
from jaxcl.data import sources
from jaxcl.data.source import Source
from jaxcl.nn import pretrained
from jaxcl.training import protocol
from jaxcl.types import Params

HAS_WEIGHTS = find_spec(pretrained.PACKAGE) is not None
needs_weights = pytest.mark.skipif(not HAS_WEIGHTS, reason="no pretrained weights")
EACH = 20  # made examples of a class of the target
SOURCE, TARGET = transfer_data.SOURCE, transfer_data.TARGET


def words():
    """Classes of made examples: two per class of the source, EACH of the target."""
    return np.concatenate([np.repeat(SOURCE, 2), np.repeat(TARGET, EACH)])


def made_images():
    """Images of 4 × 4 pixels that contain their classes' numbers."""
    y = words()
    x = np.zeros((len(y), 4, 4, 3), np.uint8)
    x[..., 0] = np.unique(y, return_inverse=True)[1][:, None, None]
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y}


def made_features():
    """Features with a separate direction for each class."""
    y = words()
    rng = np.random.default_rng(0)
    _, which = np.unique(y, return_inverse=True)
    x = rng.random((len(SOURCE) + len(TARGET), 1280))[which]
    x = (x + 0.1 * rng.random(x.shape)).astype(np.float32)
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y}


def test_the_sources_classes_are_where_imagenet_has_them():
    package = find_spec("tensorflow_datasets")
    assert package is not None and package.origin is not None
    file = Path(package.origin).parent / "datasets" / "imagenet2012" / "labels.txt"
    wnids = file.read_text().split()
    assert len(wnids) == 1000 and wnids == sorted(wnids)
    assert len(INDEX) == 200 and list(INDEX) == sorted(INDEX)
    assert {wnid: wnids.index(wnid) for wnid in INDEX} == INDEX


def test_the_sources_classes_are_tiny_imagenets(tfds_dir):
    import zipfile

    archive = Path(tfds_dir) / "downloads" / "manual" / "tiny-imagenet-200.zip"
    if not archive.is_file():
        pytest.skip("no Tiny-ImageNet")
    with zipfile.ZipFile(archive) as file:
        found = file.read("tiny-imagenet-200/wnids.txt").decode().split()
    assert sorted(found) == list(INDEX)


def test_images_are_the_first_of_each_class_of_the_source_and_all_waste(monkeypatch):
    def source(name, side, classes, each):
        y = np.tile(np.arange(len(classes), dtype=np.int32), each)  # not by class
        x = np.zeros((len(y), side, side, 3), np.uint8)
        x[..., 0], x[..., 1] = (
            y[:, None, None],
            (np.arange(len(y)) // len(classes))[:, None, None],
        )
        return Source(
            name, x, y, x[: len(y) // 2], y[: len(y) // 2], classes, 255, (), ()
        )

    def load(name, *, reading=None):
        if name == "tiny_imagenet":
            return source(name, 2, SOURCE, 24)
        assert name.startswith("folder:") and reading.image_size == (96,)
        return source(name, 96, TARGET, 4)

    monkeypatch.setattr(sources, "load", load)
    transfer_data.images.cache_clear()
    found = transfer_data.images()
    transfer_data.images.cache_clear()
    for part, each, waste in (("train", 10, 24), ("test", 5, 12)):
        x, y = found[f"x_{part}"], found[f"y_{part}"]
        assert x.shape == (200 * each + waste, 96, 96, 3) and x.dtype == np.uint8
        assert y[: 200 * each].tolist() == np.repeat(SOURCE, each).tolist()
        np.testing.assert_array_equal(
            x[: 200 * each, 0, 0, 1], np.tile(range(each), 200)
        )
        assert set(y[200 * each :]) == set(TARGET)


def stream_of(noise, seeds=(0, 1)):
    """The tasks of a row on made images."""
    config = transfer_runs.config_of("toy", "fine_tune", noise)
    config.seeds = seeds
    config.data.dataset = f"{__name__}:made_images"
    config.model = {"name": "linear", "head": "head", "dtype": "float32"}
    return configs.problem(config).stream


def test_labels_contradict_in_the_target_alone():
    stream = stream_of(0.2)
    y, views = np.asarray(stream.base.train_y), stream.per_seed
    names = np.unique(words())
    for noisy in np.asarray(views.noisy):
        changed = np.flatnonzero(noisy != y)
        told = dict(transfer_data.CONFUSION)
        assert set(told) == set(TARGET) == set(told.values())
        for before, after in zip(names[y[changed]], names[noisy[changed]], strict=True):
            assert told[before] == after
        count = np.bincount(y[changed], minlength=len(names))
        expected = [0.2 * EACH if name in TARGET else 0 for name in names]
        assert count.tolist() == expected
    assert (np.asarray(views.noisy)[0] != np.asarray(views.noisy)[1]).any()
    # Test labels are the data set's own, and the source's outputs come first.
    test = stream.view(stream.base, jax.tree.map(lambda v: v[0], views), "test", 1)
    own = names[np.asarray(stream.base.test_y)]
    expected = [200 + TARGET.index(name) for name in own if name in TARGET]
    assert np.asarray(test.take(np.arange(int(test.size))).y).tolist() == expected
    assert isinstance(stream_of(0.0).per_seed.noisy, tuple)


@needs_weights
@pytest.mark.parametrize("name", ["bp_star_star", "slda"])
def test_without_an_epoch_the_source_is_known_as_before(name):
    """By ImageNet's classifier among the 200 classes; a frozen row keeps it."""
    config = transfer_runs.config_of("toy", name, 0.2)
    config.data.dataset = f"{__name__}:made_features"
    config.seeds, config.train.epochs = (0, 1), 2
    problem = configs.problem(config)
    done = [e for e in protocol.run(problem) if isinstance(e, protocol.TaskDone)]
    given, data = pretrained.efficientnet_lite0(), made_features()
    rows = data["x_test"][: 2 * len(SOURCE)].astype(np.float64)
    logits = rows @ given["params", "head", "kernel"] + given["params", "head", "bias"]
    chosen = logits[:, [INDEX[wnid] for wnid in SOURCE]].argmax(1)
    expected = np.mean(np.array(SOURCE)[chosen] == data["y_test"][: len(rows)])
    first, last = done
    assert expected > 0
    np.testing.assert_allclose(first.baseline[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(first.accuracy[:, 0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(last.accuracy[:, 1, 0], expected, atol=1e-6)
    assert (last.accuracy[:, 1, 1] > 0.25).all()  # of six classes


@needs_weights
def test_the_network_of_images_has_imagenets_rows_before_drawn_ones():
    config = transfer_runs.config_of("toy", "fine_tune", 0.2)
    config.data.dataset = f"{__name__}:made_images"
    problem = configs.problem(config)
    shape = jnp.zeros((1, 32, 32, 3))
    init = jax.jit(lambda key: problem.model.init(key, shape, jnp.zeros(1, int), False))
    head = init(jax.random.key(0))["params"]["head"]
    other = init(jax.random.key(1))["params"]["head"]
    index = np.array(list(INDEX.values()))
    for leaf in ("kernel", "bias"):
        given = pretrained.efficientnet_lite0()["params", "head", leaf]
        np.testing.assert_array_equal(head[leaf][..., :200], given[..., index])
        assert head[leaf].shape[-1] == 206
        assert (head[leaf][..., 200:] != other[leaf][..., 200:]).all()


def test_weights_are_mixed_but_for_the_classifier(problem):
    made = problem()
    net = {
        "hidden_0": {"kernel": jnp.zeros((16, 16))},
        "head": {"kernel": jnp.zeros(1)},
    }

    def at(value):
        state = {"mean": jnp.full(2, 10.0 * value)}
        same = jax.tree.map(lambda leaf: leaf + value, net)
        return Weights(Params(same, {}), state, None)

    found = mix(SimpleNamespace(problem=made), at(1.0), at(3.0), 0.25)
    assert (found.params.net["hidden_0"]["kernel"] == 1.5).all()
    assert (found.params.net["head"]["kernel"] == 3.0).all()
    assert (found.model_state["mean"] == 15.0).all()


def outcome(name, source, target, mixed=None, before=0.45):
    """A run of two seeds with these final accuracies; mixed: one for each share."""
    matrix = np.full((2, 2, 2), before)
    matrix[:, 1, 0], matrix[:, 1, 1] = source, target
    result = Result(
        config_name="transfer",
        row="bp",
        scenario="task",
        seeds=[200, 201],
        status=["ok"] * 2,
        matrix=matrix,
        baseline=np.zeros((2, 2)),
        task_names=["source", "target"],
        tasks_done=2,
        steps=1,
        wall_s=1.0,
        device="cpu",
        versions={},
        config=json.loads(transfer_runs.small("bp").to_json_best_effort()),
    )
    way = {"source": np.array(source), "target": np.array(target)}
    measured = {task: 100 * np.stack([0 * v, v], 1) for task, v in way.items()}
    measured |= {key: 100 * way["target"] for key in ("train", "redrawn")}
    for key, values in (mixed or {}).items():
        measured[f"mixed_{key}"] = 100 * np.array(values)
    run = Run(name, name, transfer_runs.small("bp"))
    return Outcome(run, "key", Path(), result, (), measured)


def test_effects_are_points_between_rows():
    mixed = {
        "source": [[0.41, 0.40, 0.30], [0.44, 0.42, 0.40]],
        "target": [[0.81, 0.82, 0.85], [0.70, 0.85, 0.90]],
        "valid": [[0.70, 0.60, 0.60], [0.50, 0.60, 0.60]],
    }
    outcomes = {
        "fine_tune": outcome("fine_tune", [0.20, 0.22], [0.81, 0.83], mixed),
        "scratch": outcome("scratch", [0.0, 0.0], [0.50, 0.54]),
        "fine_tune_clean": outcome("fine_tune_clean", [0.2, 0.2], [0.82, 0.84]),
        "lwf": outcome("lwf", [0.44, 0.39], [0.79, 0.84]),
    }
    for name in ("fine_tune", "fine_tune_clean"):  # at "toy" with further seeds
        outcomes[f"{name}_again"] = outcomes[name]
    by_name = {
        effect.name: effect.estimate(outcomes).per_seed
        for question in transfer.CLAIM.questions
        for effect in question.effects
        if set(effect.needs) <= set(outcomes)
    }
    expected = {
        "fine-tuned − from scratch, target, 20 % contradictory": (31, 29),
        "fine-tuned: source, after − before": (-25, -23),
        "fine-tuned: inside by": (-20, -18),  # the source's bound
        "LwF: inside by": (1, -1),  # the target's, then the source's
        "interpolated: inside by": (1, 2),  # a quarter, half
    }
    assert by_name.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(by_name[name], values, atol=1e-9)
    text = "\n".join(transfer.shown(outcomes))
    assert "| scratch | – | 52.0 ± 2.8 |" in text
    assert "| 0.5 | 41.0 ± 1.4 | 83.5 ± 2.1 | 60.0 ± 0.0 |" in text


def test_every_row_is_measured_on_its_way(tmp_path):
    """At ``quick``: accuracies after each epoch; the run itself gives both ends."""
    found = {}
    for name in ("fine_tune", "joint"):
        run = transfer_runs.run_of("quick", name, 0.2)
        found[name] = carry.carry_out(run, tmp_path)
    for outcome in found.values():
        m, result = outcome.measured, outcome.result
        assert m["source"].shape == m["target"].shape == (2, 3)
        for i, task in enumerate(("source", "target")):
            last = 100 * result.matrix[:, 1, i]
            np.testing.assert_allclose(m[task][:, -1], last, atol=1e-4)
        assert ((0 <= m["train"]) & (m["train"] <= 100)).all()
    m = found["fine_tune"].measured
    first = 100 * found["fine_tune"].result.matrix[:, 0, 0]
    np.testing.assert_allclose(m["source"][:, 0], first, atol=1e-4)
    assert m["mixed_source"].shape == (2, len(SHARES)) and "probe_after" not in m
    plane = found["joint"].measured
    shape = (2, len(plane["plane_y"]), len(plane["plane_x"]))
    assert plane["plane"].shape == shape and plane["corners"].shape == (3, 2)


def test_the_plane_needs_the_fine_tuned_run(tmp_path):
    run = transfer_runs.run_of("quick", "joint", 0.2)
    assert run.measure is not None
    with pytest.raises(UsageError, match="needs the run fine_tune"):
        run.measure(tmp_path / "runs" / "joint")
