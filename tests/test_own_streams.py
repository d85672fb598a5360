"""A user's own streams: given classes, rotated images, augmentation in the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.contract import strategy
from jaxcl.data.augment import Augment, augmented
from jaxcl.data.rotation import Angles, rotate
from jaxcl.data.scenarios import make_stream
from jaxcl.strategies import make
from jaxcl.testing import small_problem
from jaxcl.training import protocol
from jaxcl.training.fingerprint import fingerprint
from jaxcl.training.problem import per_seed
from jaxcl.training.programs import make_programs
from jaxcl.training.seeds import SeedMesh

SEEDS = (0, 7)


def stream_of(blobs, **options):
    options = dict(kind="split", scenario="task", num_tasks=3) | options
    return make_stream(blobs, SEEDS, **options)


def batch_of(stream, part, task, seed=0, joint=False):
    mine = jax.tree.map(lambda a: jnp.asarray(a[seed]), stream.per_seed)
    data = stream.view(stream.base, mine, part, jnp.asarray(task), joint)
    return data.take(jnp.arange(int(data.size)))


# --- classes --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*one class and a head of its own")
def test_labels_that_are_numbers_are_named_by_number(blobs):
    """One's own labels 1 … 6: the number 1 was the second of them."""
    own = blobs._replace(class_names=tuple("123456"))
    for order in ((6, 1, 3), "6, 1, 3", ("6", "1", "3")):
        assert stream_of(own, class_order=order).task_names == ("6", "1", "3")
    pairs = stream_of(own, task_classes=((1, 2), (3,), (4,)))
    assert pairs.task_names == ("1 2", "3", "4")
    with pytest.raises(ValueError, match=r"must .*name classes \(1, 2, 3, .*got 0"):
        stream_of(own, class_order=(0, 1, 2))


@pytest.mark.parametrize(
    "options,tasks,names",
    [
        ({"class_order": "5,4,3,2,1,0"}, [[5, 4], [3, 2], [1, 0]], ("f e", "d c")),
        ({"class_order": "b, a, 2"}, [[1], [0], [2]], ("b", "a")),
        ({"class_order": (3, 1, 0)}, [[3], [1], [0]], ("d", "b")),
        ({"class_order": np.array([3, 1, 0])}, [[3], [1], [0]], ("d", "b")),
        ({"class_order": np.array(["d", "b", "a"])}, [[3], [1], [0]], ("d", "b")),
        ({"task_classes": np.array([[3], [1], [0]])}, [[3], [1], [0]], ("d", "b")),
        (
            {"task_classes": ((0, 1, 2), (5,), (4, 3))},
            [[0, 1, 2], [5], [4, 3]],
            ("a … c", "f"),
        ),
        (
            {"task_classes": (("f", "a"), (2,), ("b",))},
            [[5, 0], [2], [1]],
            ("f a", "c"),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*one class and a head of its own")
def test_classes_in_the_order_that_is_given(blobs, options, tasks, names):
    stream = stream_of(blobs, **options)
    assert stream.task_names[:2] == names
    assert stream.num_outputs == sum(map(len, tasks))
    first = 0
    for task, classes in enumerate(tasks):
        index, offset = (a[1] for a in stream.per_seed.train)
        rows = index[offset[task] : offset[task + 1]]
        assert sorted(set(blobs.train_y[rows].tolist())) == sorted(classes)
        outputs = stream.per_seed.label[1, task][classes].tolist()
        assert outputs == list(range(first, first + len(classes)))
        assert np.flatnonzero(stream.logit_mask[task]).tolist() == outputs
        first += len(classes)


@pytest.mark.parametrize(
    "options,what",
    [
        ({"task_classes": ((0,), (1,))}, "num_tasks = 3 lists"),
        ({"task_classes": ((0,), (1,), ())}, "none empty"),
        ({"task_classes": ((0,), (1,), (0,))}, "class 0 is there twice"),
        (
            {"task_classes": ((0,), (1,), (6,))},
            "classes of 0 to 5 .a, b, .*got 6",
        ),
        ({"task_classes": ((0,), (1,), ("g",))}, "got 'g'"),
        (
            {"task_classes": ((0,), (1,), (2,)), "classes_per_task": 1},
            "task_classes says all: classes_per_task 1",
        ),
        ({"class_order": "0,1"}, "there are 2 classes, not enough for 3 tasks of 1"),
        ({"class_order": "sed"}, "be one of fixed, seed, or name .*got 'sed'"),
        (
            {"task_classes": ((0, 1), (2,), (3,)), "scenario": "domain"},
            r"equally many classes, got \[2, 1, 1\]",
        ),
        ({"kind": "rotated"}, "needs angles, angle_step or angle_draw"),
        ({"kind": "rotated", "angles": (0.0, 10.0)}, "one per task, 3, got"),
        (
            {"kind": "rotated", "angles": (0.0, 1.0, 2.0), "angle_step": 3.0},
            "angle_step 3.0",
        ),
        ({"kind": "rotated", "angle_draw": (10.0, 0.0)}, r"\(low, high\), got"),
        (
            {"angle_step": 10.0},
            "angle_step is for rotated streams, not split, got 10.0",
        ),
        (
            {"kind": "rotated", "angle_step": 1.0, "class_order": "seed"},
            "split streams",
        ),
        (
            {"kind": "rotated", "angle_step": 1.0, "first_permuted": False},
            "for permuted streams",
        ),
        (
            {"kind": "rotated", "angles": (0.0, 0.0, 0.0)},
            r"angles must rotate a task at least, got \(0.0, 0.0, 0.0\)",
        ),
        (
            {"kind": "rotated", "angle_step": 3e38},
            r"angle_step must leave the angles of 3 tasks finite .*got 3e\+38",
        ),
        (
            {"task_classes": ((0,), (1,), (2,)), "scenario": "domain"},
            r"at least two outputs, got classes per task \[1, 1, 1\]",
        ),
        ({"num_tasks": 1, "class_order": "b", "scenario": "class"}, "two outputs"),
        ({"crop_padding": 5}, r"crop_padding must be at most 4.* \[4, 4, 1\], got 5"),
        ({"crop_padding": 2_000_000_000}, "crop_padding must be at most 4"),
        ({"class_order": np.array([0, 1, 6])}, "class_order must .*got 6"),
        ({"crop_padding": -1}, "crop_padding must be at least 0, got -1"),
        (
            {"mean": (0.5, 0.5, 0.5)},
            "mean must have a value for each of 1 chan",
        ),
        ({"std": (0.5, 0.5)}, "std must have a value for each of 1 channels"),
        ({"std": (0.0,)}, "std must be greater than 0 in every entry"),
    ],
)
def test_streams_that_cannot_be_are_refused(blobs, options, what):
    with pytest.raises(ValueError, match=what):
        stream_of(blobs, **options)


# --- rotation -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5, 1), (4, 4, 3)])
def test_right_angles_are_exact(shape):
    x = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    for quarters in range(-4, 5):
        turned = rotate(x.reshape(3, -1), jnp.float32(90.0 * quarters), shape)
        expected = np.rot90(x, quarters, (1, 2)).reshape(3, -1)
        np.testing.assert_array_equal(turned, expected)


@pytest.mark.parametrize("shape", [(7, 9, 1), (6, 5, 3)])
def test_any_angle_is_bilinear_about_the_centre(shape):
    """Compared with SciPy's rotation, which has the axes in the other order."""
    from scipy import ndimage

    x = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    angles = np.array([10.0, -33.3, 200.0, 0.0], np.float32)
    height, width, _ = shape
    expected = []
    for image, angle in zip(x.astype(np.float64), angles, strict=True):
        c, s = np.cos(np.deg2rad(float(angle))), np.sin(np.deg2rad(float(angle)))
        turn = np.array([[c, s], [-s, c]])
        centre = np.array([height - 1, width - 1]) / 2
        channels = [
            ndimage.affine_transform(
                np.pad(image[..., k], 1),
                turn,
                centre + 1 - turn @ (centre + 1),
                order=1,
            )[1:-1, 1:-1]
            for k in range(shape[2])
        ]
        expected.append(np.stack(channels, -1).ravel())
    ours = rotate(x.reshape(4, -1), jnp.asarray(angles), shape)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    alone = rotate(x.reshape(4, -1), jnp.float32(-33.3), shape)[1]
    np.testing.assert_allclose(alone, ours[1], atol=1e-6)


@pytest.mark.parametrize("joint", [False, True])
def test_a_rotated_stream_turns_each_task_by_its_angle(blobs, joint):
    options = dict(kind="rotated", scenario="domain", angles=(0.0, 90.0, 45.0))
    stream = stream_of(blobs, **options)
    assert stream.num_outputs == 6 and stream.name == "rotated blobs"
    scale = (np.float32(blobs.train_x[:5]) / 255 - 0.5) / 0.25
    batch = batch_of(stream, "train", 1, joint=joint)
    start = 300 if joint else 0
    expected = np.rot90(scale, 1, (1, 2))
    np.testing.assert_allclose(batch.x[start : start + 5], expected, atol=1e-5)
    if joint:
        np.testing.assert_allclose(batch.x[:5], scale, atol=1e-5)
    # A memory of uint8 keeps what is rotated without loss.
    codec, x = stream.codec, batch_of(stream, "train", 2).x
    np.testing.assert_array_equal(codec.decode(codec.encode(x)), x)
    part = stream.between(1, 3)
    assert part.per_seed.angle.tolist() == [[90.0, 45.0]] * 2


def test_angles_by_a_step_less_a_draw_per_task_and_seed(blobs):
    """10° (t − 1) minus a draw from U(0, 10°), for each task and seed."""
    options = dict(kind="rotated", angle_step=10.0, scenario="domain", num_tasks=20)
    both = stream_of(blobs, angle_draw=(-10.0, 0.0), **options).per_seed.angle
    drawn = 10.0 * np.arange(20) - both
    assert (0 <= drawn).all() and (drawn <= 10).all()
    assert abs(drawn.mean() - 5) < 5 * 10 / 12**0.5 / 40**0.5
    assert len(np.unique(drawn)) == 40
    alone = make_stream(blobs, (7,), angle_draw=(-10.0, 0.0), **options)
    np.testing.assert_array_equal(alone.per_seed.angle[0], both[1])
    first = stream_of(blobs, angle_draw=(-10.0, 0.0), first_angle=0.0, **options)
    assert (first.per_seed.angle[:, 0] == 0).all()
    np.testing.assert_array_equal(first.per_seed.angle[:, 1:], both[:, 1:])
    fixed = Angles(step=7.0).of_seed(np.random.default_rng(0), 3)
    assert fixed.tolist() == [0, 7, 14]


# --- augmentation ---------------------------------------------------------------------


def test_an_augmented_image_is_a_shifted_or_mirrored_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(400, 3, 4, 2)), jnp.float32)
    black = jnp.array([-1.0, -2.0])
    change = augmented(Augment(flip=True, crop_padding=1), black)
    y = np.asarray(jax.jit(change)(x, jax.random.key(0)))
    seen = set()
    for before, after in zip(np.asarray(x), y, strict=True):
        wide = np.tile(np.asarray(black), (5, 6, 1))
        matches = []
        for flip in (0, 1):
            wide[1:-1, 1:-1] = before[:, ::-1] if flip else before
            for i, j in np.ndindex(3, 3):
                if (wide[i : i + 3, j : j + 4] == after).all():
                    matches.append((flip, i, j))
        assert len(matches) == 1
        seen |= set(matches)
    assert len(seen) == 18  # every possible outcome is drawn
    assert augmented(Augment(), black) is None


def run(problem, **options):
    *_, last = protocol.run(problem, **options)
    return last


def small(**options):
    return small_problem(
        lambda setup: make("finetune", setup, {}), seeds=(0, 1), **options
    )


def test_an_augmented_run_that_goes_on_is_the_unbroken_one_bit_for_bit(tmp_path):
    problem = small(crop_padding=1, flip=True, num_tasks=2)
    whole = run(problem, checkpoints=tmp_path / "whole", save_every=1e9)
    # Interrupted in the middle of the second task.
    events = protocol.run(problem, checkpoints=tmp_path / "broken", save_every=0.0)
    for _ in range(5):
        next(events)
    events.close()
    again = run(problem, checkpoints=tmp_path / "broken", save_every=1e9)
    np.testing.assert_array_equal(again.accuracy, whole.accuracy)


def test_what_was_prepared_of_inputs_is_not_used_of_augmented_ones():
    """Here a step learns only from examples whose position in the data is known."""

    def method(setup):
        def grads(grads, state, *args, ctx, **extra):
            known = (ctx.batch.index >= 0).any()
            return jax.tree.map(lambda g: g * known, grads), state

        return strategy(grads=grads)

    augmented_one = run(small_problem(method, seeds=(0,), crop_padding=1))
    np.testing.assert_array_equal(augmented_one.accuracy[:, -1], augmented_one.baseline)


def test_off_leaves_the_program_as_it_was():
    """Exactly the same jaxpr as without the options."""
    texts = []
    for options in ({}, {"flip": False, "crop_padding": 0}, {"crop_padding": 1}):
        problem = small(**options)
        mesh = SeedMesh(2, "map")
        programs = make_programs(problem, mesh)
        mine, base = mesh.spread(per_seed(problem)), problem.stream.base
        zero = np.int32(0)
        seed = jax.eval_shape(programs.init, (), mine, ())
        seed = jax.eval_shape(programs.begin, seed, (mine, mesh.real), ())
        cache = jax.eval_shape(programs.before_task, seed, mine, (base, zero))
        args = (seed, (mine, cache), (base, zero, zero, zero))
        texts.append(programs.epoch.lower(*args).as_text())
    assert texts[0] == texts[1] != texts[2]


# --- Labels that contradict -----------------------------------------------------------


def labels_of(stream, part, task, seed):
    """The labels that a seed gets for a task's examples, and the data set's own."""
    mine = jax.tree.map(lambda leaf: leaf[seed], stream.per_seed)
    rows = getattr(mine, part)
    index = rows.index[rows.offset[task] : rows.offset[task + 1]]
    data = stream.view(stream.base, mine, part, task)
    given = np.asarray(data.take(np.arange(int(data.size))).y)
    own = stream.base.test_y if part == "test" else stream.base.train_y
    return given, mine.label[task][own[index]]


@pytest.mark.parametrize("kind", ["split", "permuted"])
def test_a_share_of_each_class_is_called_another_of_its_task(blobs, kind):
    options = dict(kind=kind, scenario="task", num_tasks=2, label_noise=0.3)
    options |= {"first_permuted": True} if kind == "permuted" else {}
    stream = make_stream(blobs, (0, 1), **options)
    clean = make_stream(blobs, (0, 1), **options | {"label_noise": 0.0})
    changed = []
    for seed in (0, 1):
        for task in (0, 1):
            given, own = labels_of(stream, "train", task, seed)
            for label in np.unique(own):
                wrong = given[own == label] != label
                assert wrong.sum() == round(0.3 * len(wrong))
            assert set(given) == set(own)  # of the task, and all of it is met
            assert len(set(given[given != own])) == len(set(own))
            same, truth = labels_of(stream, "test", task, seed)
            np.testing.assert_array_equal(same, truth)
            # A seed's other draws are the same as without noise.
            np.testing.assert_array_equal(labels_of(clean, "train", task, seed)[0], own)
        changed.append(stream.per_seed.noisy[seed])
    assert (changed[0] != changed[1]).any()
    alone = make_stream(blobs, (1,), **options)
    np.testing.assert_array_equal(alone.per_seed.noisy[0], changed[1])


def test_a_confusion_table_changes_its_classes_alone(blobs):
    names = blobs.class_names
    table = ((names[0], names[1]), (4, 5))
    options = dict(kind="split", scenario="class", num_tasks=2, valid_fraction=0.25)
    stream = make_stream(blobs, (3,), label_noise=0.5, confusion=table, **options)
    noisy, own = stream.per_seed.noisy[0], np.asarray(blobs.train_y)
    moved = {(a, b) for a, b in zip(own, noisy, strict=True) if a != b}
    assert moved == {(0, 1), (4, 5)}
    for label in (0, 4):
        assert (noisy[own == label] != label).sum() == round(0.5 * (own == label).sum())
    given, truth = (
        np.concatenate(both)
        for both in zip(
            *(labels_of(stream, part, 0, 0) for part in ("train", "valid")), strict=True
        )
    )
    assert (given != truth).sum() == (noisy != own)[own < 3].sum()
    # The same noise in part of the stream.
    second = stream.between(1, 2)
    np.testing.assert_array_equal(
        labels_of(second, "train", 0, 0)[0], labels_of(stream, "train", 1, 0)[0]
    )


@pytest.mark.parametrize(
    "options, told",
    [
        ({"confusion": ((0, 1),)}, "needs a label_noise above 0"),
        ({"label_noise": 1.0}, r"label_noise must lie in \[0, 1\), got 1.0"),
        ({"label_noise": 0.2, "confusion": ((0, 3),)}, "class 0 would be called 3"),
        ({"label_noise": 0.2, "confusion": ((1, 1),)}, "confused with itself"),
        ({"label_noise": 0.2, "confusion": ((1, 9),)}, "classes of 0 to .*got 9"),
        ({"label_noise": 0.2, "confusion": ((1, 0), (1, 2))}, "class 1 is there twice"),
        ({"label_noise": 0.2, "confusion": ((1, 0, 2),)}, "pairs"),
        (
            {"label_noise": 0.2, "confusion": ((5, 4),), "class_order": "0,1,2,3"},
            r"confusion must be of classes in tasks, got \[5\], in no task",
        ),
        ({"label_noise": 0.2, "num_tasks": 6}, "two classes per task"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*one class and a head of its own")
def test_noise_that_cannot_be_drawn_is_refused(blobs, options, told):
    fixed = {"kind": "split", "scenario": "task", "num_tasks": 2}
    with pytest.raises(ValueError, match=told):
        make_stream(blobs, (0,), **fixed | options)


def blank(x, key):
    return 0 * x


def noisy(x, key):
    return x + 0.1 * jax.random.normal(key, x.shape)


def halves(x, key):
    return x[::2]


def fails(x, key):
    raise KeyError("no such pixel")


@pytest.mark.parametrize("stream", [{}, {"kind": "permuted", "scenario": "domain"}])
def test_an_augmentation_of_ones_own_is_what_a_step_sees(stream):
    """A network that is shown nothing learns nothing; given by path or as it is."""
    alone, shown = run(small(**stream)), run(small(augment=noisy, **stream))
    path = f"{__name__}:blank"
    *blind, named = (run(small(augment=f, **stream)) for f in (blank, path))
    np.testing.assert_array_equal(blind[0].accuracy, named.accuracy)
    own = [np.diagonal(r.accuracy, axis1=1, axis2=2).mean() for r in (alone, shown)]
    assert min(own) > np.diagonal(named.accuracy, axis1=1, axis2=2).mean() + 0.2
    assert not np.array_equal(alone.accuracy, shown.accuracy)


def test_an_augmentation_of_ones_own_comes_last():
    black = jnp.zeros(1)
    x = jnp.arange(32.0).reshape(2, 4, 4, 1)
    before = augmented(Augment(flip=True, crop_padding=1), black)
    after = augmented(Augment(flip=True, crop_padding=1, own=noisy), black)
    key = jax.random.key(3)
    difference = after(x, key) - before(x, key)
    assert 0.05 < float(jnp.std(difference)) < 0.2
    other = augmented(Augment(own=noisy), black)
    np.testing.assert_allclose(other(x, key) - x, difference, atol=1e-5)


def test_a_state_knows_the_file_of_an_augmentation():
    made = fingerprint(small(augment=blank), {})
    assert f"file of {__name__}" in made.versions
    assert made.problem != fingerprint(small(augment=noisy), {}).problem


@pytest.mark.parametrize(
    "given,said",
    [
        ("nowhere:cut", "augment 'nowhere:cut' cannot be imported"),
        (halves, r"augment halves must .* float32\[2, 4, 4, 1\], it gives .*\[1, 4, 4"),
        (lambda x, key: (x, key), "gives a tuple"),
        (lambda x, key: x > 0, r"gives bool\[2, 4, 4, 1\]"),
        (fails, "fails.*no such pixel"),
        (
            lambda x, key: x + jnp.ones((2, 5)),
            r"augment .*2, 4, 4, 1.* raised ValueError.* shapes.*test_own_streams",
        ),
        (lambda x: x, "takes 1 positional argument"),
    ],
)
def test_an_augmentation_of_another_form(given, said):
    with pytest.raises(ValueError, match=said):
        small(augment=given)
