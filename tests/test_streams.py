"""Streams: the examples, labels and pixels of each task, for each seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.data.scenarios import make_stream
from jaxcl.data.sources import load
from jaxcl.heads import cross_entropy, scenario_mask
from jaxcl.ops.sampling import batch_positions, shuffled
from jaxcl.types import Batch

SEEDS = (0, 7)


def _stream(blobs, **options):
    options = dict(kind="split", scenario="task", num_tasks=3) | options
    return make_stream(blobs, options.pop("seeds", SEEDS), **options)


def _view(stream, part, task, seed=0, joint=False):
    mine = jax.tree.map(lambda a: jnp.asarray(a[seed]), stream.per_seed)
    data = stream.view(stream.base, mine, part, jnp.asarray(task), joint)
    return data, data.take(jnp.arange(int(data.size)))


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_split_parts_the_classes(blobs, scenario):
    stream = _stream(blobs, scenario=scenario, valid_fraction=0.2)
    seen = []
    for task in range(3):
        train, valid, test = (
            _view(stream, part, task)[1] for part in ("train", "valid", "test")
        )
        assert (len(train.y), len(valid.y), len(test.y)) == (80, 20, 40)
        expected = {0, 1} if scenario == "domain" else {2 * task, 2 * task + 1}
        for batch in (train, valid, test):
            assert set(batch.y.tolist()) == expected
            assert set(batch.task.tolist()) == {task}
        seen += [train.x, valid.x]
    # Every training image occurs once, whatever the split.
    rows = np.sort(np.concatenate(seen).reshape(300, -1), axis=0)
    x = (np.float32(blobs.train_x) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(rows, np.sort(x.reshape(300, -1), axis=0), atol=1e-5)


def test_labels_follow_the_images(blobs):
    stream = _stream(blobs, class_order="seed")
    nearest = np.stack([blobs.train_x[blobs.train_y == c].mean(0) for c in range(6)])
    for seed in range(2):
        label = stream.per_seed.label[seed]
        order = [int(np.flatnonzero((label == k).any(0))[0]) for k in range(6)]
        assert sorted(order) == list(range(6))
        for task in range(3):
            batch = _view(stream, "train", task, seed)[1]
            x = (np.asarray(batch.x) * 0.25 + 0.5) * 255
            distance = ((x[:, None] - nearest[None]) ** 2).sum((2, 3, 4))
            true = distance.argmin(1)
            np.testing.assert_array_equal(np.array(order)[batch.y], true)
    assert not np.array_equal(stream.per_seed.label[0], stream.per_seed.label[1])


@pytest.mark.parametrize("joint", [False, True])
def test_permuted_pixels_are_drawn_once_per_seed_and_task(blobs, joint):
    stream = _stream(blobs, kind="permuted", scenario="domain", first_permuted=False)
    plain = (np.float32(blobs.train_x) / 255 - 0.5) / 0.25
    for seed in range(2):
        pixel = stream.per_seed.pixel[seed]
        assert (np.sort(pixel, axis=1) == np.arange(16)).all()
        np.testing.assert_array_equal(pixel[0], np.arange(16))
        batch = _view(stream, "train", 2, seed, joint)[1]
        assert len(batch.y) == (900 if joint else 300)
        for i in (0, 150, len(batch.y) - 1):
            task = int(batch.task[i])
            assert task == (i // 300 if joint else 2)
            expected = plain[i % 300].reshape(16)[pixel[task]]
            np.testing.assert_allclose(batch.x[i].reshape(16), expected, atol=1e-5)
    assert not np.array_equal(*stream.per_seed.pixel[:, 1])
    assert stream.base.train_x.shape[0] == 300  # stored once


def test_a_seed_does_not_depend_on_its_neighbours(blobs):
    options = dict(valid_fraction=0.1, class_order="seed")
    both = _stream(blobs, **options).per_seed
    alone = _stream(blobs, seeds=(7,), **options).per_seed
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), both, alone)


def test_joint_is_all_tasks_so_far(blobs):
    stream = _stream(blobs)
    data, batch = _view(stream, "train", 1, joint=True)
    assert int(data.size) == 200 and data.capacity == 300
    assert batch.task.tolist() == [0] * 100 + [1] * 100
    assert set(batch.y[:100].tolist()) == {0, 1}
    assert set(batch.y[100:].tolist()) == {2, 3}


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("class_order", ["fixed", "seed"])
@pytest.mark.filterwarnings("ignore:.*one class and a head of its own")
def test_classes_are_shared_as_evenly_as_can_be(blobs, scenario, class_order):
    """Six classes in four tasks are 2, 2, 1 and 1: none is dropped."""
    stream = _stream(blobs, scenario=scenario, class_order=class_order, num_tasks=4)
    expected = [[0, 1], [2, 3], [4], [5]]
    assert stream.num_outputs == 6
    seen = []
    for task, outputs in enumerate(expected):
        batch = _view(stream, "train", task)[1]
        assert sorted(set(batch.y.tolist())) == outputs
        assert len(batch.y) == 50 * len(outputs)
        if scenario == "task":
            assert np.flatnonzero(stream.logit_mask[task]).tolist() == outputs
        else:
            assert np.flatnonzero(stream.logit_mask[task])[-1] == outputs[-1]
        seen.append(batch.x)
    rows = np.sort(np.concatenate(seen).reshape(300, -1), axis=0)
    x = (np.float32(blobs.train_x) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(rows, np.sort(x.reshape(300, -1), axis=0), atol=1e-5)
    if class_order == "fixed":
        assert stream.task_names == ("a b", "c d", "e", "f")


def test_classes_that_were_asked_for_are_given():
    source = load("digits")
    options = dict(kind="split", scenario="task", num_tasks=3)
    assert make_stream(source, (0,), **options).num_outputs == 10
    names = make_stream(source, (0,), **options).task_names
    assert names == ("0 … 3", "4 … 6", "7 … 9")
    fewer = make_stream(source, (0,), classes_per_task=3, **options)
    assert fewer.num_outputs == 9


def test_a_stratified_split_holds_out_the_same_share_of_each_class(blobs):
    """A task of 50, 37 and 20 examples per class gives 10, 7 or 8 and 4, 21 in all."""
    y = np.asarray(blobs.train_y)
    rows = np.concatenate([np.flatnonzero(y == c)[:n] for c, n in enumerate(COUNTS)])
    source = blobs._replace(train_x=blobs.train_x[rows], train_y=y[rows])
    options = dict(num_tasks=2, valid_fraction=0.2, seeds=tuple(range(8)))
    plain = _stream(source, **options)
    stream = _stream(source, stratified=True, **options)
    differs = False
    for seed in range(8):
        for task in range(2):
            label = y[rows][_rows(stream, "valid", task, seed)]
            other = y[rows][_rows(plain, "valid", task, seed)]
            assert len(label) == len(other)
            for c in range(3 * task, 3 * task + 3):
                assert abs((label == c).sum() - 0.2 * COUNTS[c]) < 1
                differs |= abs((other == c).sum() - 0.2 * COUNTS[c]) >= 1
            both = [_rows(stream, part, task, seed) for part in ("train", "valid")]
            together = np.sort(np.concatenate(both))
            wanted = np.flatnonzero(np.isin(y[rows], range(3 * task, 3 * task + 3)))
            np.testing.assert_array_equal(together, wanted)
    assert differs  # without stratification some class is off by a whole example
    drawn = [tuple(_rows(stream, "valid", 0, seed)) for seed in range(8)]
    assert len(set(drawn)) == 8


COUNTS = (50, 37, 20, 49, 31, 12)


def _rows(stream, part, task, seed):
    index, offset = getattr(stream.per_seed, part)
    return index[seed][offset[seed][task] : offset[seed][task + 1]]


def test_limits(blobs):
    stream = _stream(blobs, train_per_task=50, test_per_task=10, valid_fraction=0.1)
    sizes = [int(_view(stream, p, 1)[0].size) for p in ("train", "valid", "test")]
    assert sizes == [45, 5, 10]


@pytest.mark.parametrize(
    "options,what",
    [
        (dict(kind="turned"), "split, permuted, rotated, got 'turned'"),
        (dict(scenario="instance"), "task, domain, class, got 'instance'"),
        (dict(class_order="random"), "'random'"),
        (dict(num_tasks=0), "got 0"),
        (dict(num_tasks=4, classes_per_task=2), "6 classes, not enough for 4 tasks"),
        (dict(num_tasks=7), "6 classes, not enough for 7 tasks of 1"),
        (dict(num_tasks=3, classes_per_task=0), "classes_per_task must be at least 1"),
        (dict(num_tasks=4, scenario="domain"), r"equally many classes, got \[2, 2, 1"),
        (dict(stratified=True), "stratified=True needs a valid_fraction above 0"),
        (dict(valid_fraction=1.0), r"\[0, 1\), got 1.0"),
        (dict(valid_fraction=0.001), "too few to hold out valid_fraction=0.001"),
        (dict(seeds=()), "seeds must not be empty"),
        (dict(train_per_task=0), "train_per_task must be at least 1, got 0"),
        (dict(kind="permuted", classes_per_task=2), "for split streams"),
        (dict(first_permuted=False), "for permuted streams"),
    ],
)
def test_wrong_options_are_named(blobs, options, what):
    with pytest.raises(ValueError, match=what):
        _stream(blobs, **options)


def _x(source):
    return np.asarray(source.test_x)


@pytest.mark.parametrize(
    "changed,what",
    [
        (lambda s: None, "source must be a jaxcl.data.Source, got NoneType"),
        (lambda s: {"name": None}, "name must be text, got None"),
        (
            lambda s: {"test_x": _x(s).reshape(120, 2, 8, 1)},
            r"one shape, got \[4, 4, 1",
        ),
        (lambda s: {"test_x": _x(s)[:, :3]}, r"got \[4, 4, 1\] and \[3, 4, 1\]"),
        (
            lambda s: {"test_x": _x(s) / 255},
            "blobs: train_x and test_x need one scale: train_x is 0 to 255, test_x 0 ",
        ),
        (lambda s: {"test_x": np.ma.masked_less(_x(s), 9)}, "no masked entries, got"),
        (lambda s: {"test_x": _x(s).tolist()}, "test_x must be .* got list"),
        (lambda s: {"test_x": _x(s).ravel()}, r"test_x must be .* got uint8\[1920\]"),
        (lambda s: {"test_x": _x(s).astype(str)}, "test_x must be an array of numbers"),
        (lambda s: {"test_x": _x(s)[:0], "test_y": s.test_y[:0]}, "above 0, got 0"),
        (
            lambda s: {"test_y": s.test_y / 1},
            r"whole numbers \[N\], got float64\[120\]",
        ),
        (lambda s: {"test_y": s.test_y.tolist()}, "test_y must be .* got list"),
        (lambda s: {"test_y": s.test_y.astype(str)}, "test_y must be"),
        (lambda s: {"test_y": s.test_y[:, None]}, r"test_y must be .* int32\[120, 1\]"),
        (
            lambda s: {"class_names": None},
            r"class_names must be \(text, ...\), got None",
        ),
        (lambda s: {"class_names": range(6)}, "class_names must be"),
        (lambda s: {"class_names": tuple(range(6))}, "class_names must be text in"),
        (lambda s: {"class_names": tuple("abcdea")}, "class_names must differ"),
        (lambda s: {"max_value": 0}, "max_value must be greater than 0, got 0"),
        (lambda s: {"max_value": float("nan")}, "max_value must be finite"),
        (lambda s: {"mean": None}, "mean must be .* got None"),
        (lambda s: {"mean": (float("nan"),)}, "mean must be finite"),
        (lambda s: {"mean": (0.5,) * 3}, "mean must have a value for each of 1"),
        (lambda s: {"std": (-0.25,)}, "std must be greater than 0 in every entry"),
        (lambda s: {"std": (0.0,)}, "std must be greater than 0 in every entry"),
        (lambda s: {"std": (float("nan"),)}, "std must be finite"),
        (lambda s: {"notes": "odd"}, "notes must be"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(blobs, changed, what):
    """Its own test images of another shape were scrambled; others gave tracebacks."""
    fields = changed(blobs)
    source = None if fields is None else blobs._replace(**fields)
    with pytest.raises(ValueError, match=what) as error:
        _stream(source, seeds=(0,))
    assert "\n" not in str(error.value)


def test_a_source_of_other_arrays_is_read_alike(blobs):
    wide = blobs._replace(
        train_y=blobs.train_y.astype(np.int64),
        test_x=jnp.asarray(blobs.test_x),
        class_names=list(blobs.class_names),
        mean=np.array([0.5]),
        std=[np.float32(0.25)],
    )
    for part in ("train", "test"):
        one, other = (_view(_stream(s), part, 1)[1] for s in (blobs, wide))
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_tasks_and_parts_that_are_none_are_refused(blobs):
    stream = _stream(blobs)
    for first, stop in ((0.5, 2), ("a", 2), (0, None)):
        with pytest.raises(ValueError, match=r"tasks must be .*an integer.* got \("):
            stream.between(first, stop)
    with pytest.raises(ValueError, match=r"0 <= first < stop <= 3, got \(2, 2\)"):
        stream.between(2, 2)
    for ask in (lambda p: stream.capacity(p), lambda p: _view(stream, p, 0)):
        with pytest.raises(ValueError, match="part must be one of train, .* 'nosuch'"):
            ask("nosuch")


def test_masks_of_the_scenarios():
    mask, by = scenario_mask("task", 2, [2, 1])
    assert by == "example" and mask.tolist() == [[1, 1, 0], [0, 0, 1]]
    mask, by = scenario_mask("class", 2, [2, 1])
    assert by == "task" and mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    mask, by = scenario_mask("domain", 2, [2, 2])
    assert mask.tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ValueError, match="equally many"):
        scenario_mask("domain", 2, [2, 1])


def test_cross_entropy_is_over_the_outputs_in_play():
    mask, by = scenario_mask("task", 2, [2, 2])
    logits = jnp.array([[1.0, 2.0, 9.0, 9.0], [5.0, 5.0, 0.0, 1.0], [0.0] * 4])
    batch = Batch(
        x=logits,
        y=jnp.array([1, 2, 0]),
        task=jnp.array([0, 1, 0]),
        weight=jnp.array([1.0, 1.0, 0.0]),
        index=jnp.arange(3),
    )
    value, grad = jax.value_and_grad(cross_entropy(mask, by))(logits, batch, 0)
    expected = (np.log1p(np.exp(-1.0)) + np.log1p(np.exp(1.0))) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert (grad[0, 2:] == 0).all() and (grad[1, :2] == 0).all()
    assert (grad[2] == 0).all() and jnp.isfinite(grad).all()


def test_shuffled_is_a_permutation_of_a_traced_length():
    draw = jax.jit(shuffled, static_argnums=2)
    orders = [np.asarray(draw(jax.random.key(k), 7, 10)) for k in range(200)]
    for order in orders:
        assert sorted(order[:7]) == list(range(7))
        np.testing.assert_array_equal(order[7:], order[:3])
    first = np.bincount([o[0] for o in orders], minlength=7)
    assert abs(first - 200 / 7).max() < 5 * (200 / 7) ** 0.5
    few = jax.jit(shuffled, static_argnums=(2, 3))
    for count in (3, 9):  # fewer than the size, and more
        np.testing.assert_array_equal(
            few(jax.random.key(0), 7, 10, count), orders[0][:count]
        )
    # Some of so many draws are equal.
    many = (jax.random.key(1), 60_000, 70_000)
    np.testing.assert_array_equal(few(*many, 65_000), draw(*many)[:65_000])
    position, weight = batch_positions(jnp.asarray(orders[0]), 1, 4, 7)
    assert weight.tolist() == [1, 1, 1, 0]
    assert position.tolist() == [*orders[0][4:7], orders[0][0]]
