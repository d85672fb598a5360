"""Tasks of one's own: classes that come again, are missing, or share outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from configs import digits
from experiments.runs.execute import execute
from jaxcl.data import Reading, from_tasks, make_stream
from jaxcl.nn import models
from jaxcl.nn.capture import init_fn
from jaxcl.ops import sampling
from jaxcl.strategies import agem
from jaxcl.training.problem import make_setup

RNG = np.random.default_rng(0)
CENTRE = {c: RNG.integers(0, 200, 16) for c in ("cat", "dog", "elk", "fox")}


def images(classes, n, seed=0):
    rng = np.random.default_rng(seed)
    y = np.array([classes[i % len(classes)] for i in range(n)])
    x = np.stack([CENTRE[c] for c in y]) + rng.integers(0, 40, (n, 16))
    return x.reshape(-1, 4, 4, 1).astype(np.uint8), y


def task(classes, seed):
    return (*images(classes, 40, seed), *images(classes, 20, seed + 100))


# cat and dog, then dog and elk, then cat and fox: two classes come again.
TASKS = {
    "spring": task(("cat", "dog"), 1),
    "summer": task(("dog", "elk"), 2),
    "autumn": task(("fox", "cat"), 3),
}


def tasks():
    return TASKS


def stream_of(scenario, **options):
    options = {"seeds": (0, 1), "kind": "split", "num_tasks": 3} | options
    return make_stream(from_tasks(TASKS), scenario=scenario, **options)


def test_a_warning_of_a_stream_shows_where_it_was_made():
    """Not the check of the arguments, through which the call goes."""
    alone = {name: task((c,), 1) for name, c in (("a", "cat"), ("b", "dog"))}
    source = from_tasks(alone)
    with pytest.warns(UserWarning, match="one class and a head of its own") as told:
        make_stream(source, (0,), kind="split", scenario="task", num_tasks=2)
    assert [w.filename for w in told] == [__file__]


def test_a_class_without_a_test_example_in_its_task_is_named():
    x, y, test_x, test_y = TASKS["summer"]
    dogs = test_y == "dog"
    source = from_tasks(TASKS | {"summer": (x, y, test_x[dogs], test_y[dogs])})
    assert source.notes == ("summer: 1 class (elk), without a test example",)
    stream = make_stream(
        source, (0,), kind="split", scenario="class", num_tasks=len(TASKS)
    )
    assert stream.notes[0] == source.notes[0]
    assert from_tasks(TASKS).notes == ()


@pytest.mark.parametrize(
    "scenario, mask, label",
    [
        (
            "class",
            [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
            [[0, 1, -1, -1], [-1, 1, 2, -1], [0, -1, -1, 3]],
        ),
        (
            "task",
            [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]],
            [[0, 1, -1, -1], [-1, 2, 3, -1], [4, -1, -1, 5]],
        ),
        (
            "domain",
            [[1] * 4] * 3,
            [[0, 1, -1, -1], [-1, 1, 2, -1], [0, -1, -1, 3]],
        ),
    ],
)
def test_what_outputs_stand_for(scenario, mask, label):
    stream = stream_of(scenario)
    assert stream.task_names == ("spring", "summer", "autumn")
    assert stream.class_names == ("cat", "dog", "elk", "fox")
    assert stream.logit_mask.astype(int).tolist() == mask
    assert stream.per_seed.label[0].tolist() == label
    assert stream.repeats == (scenario != "task")


@pytest.mark.parametrize("part, column", [("train", 0), ("test", 2)])
def test_each_task_has_its_own_examples_and_no_other(part, column):
    """Images of a class that comes again stay with the task they were given with."""
    stream = stream_of("class", mean=(0.0,), std=(1 / 255,))
    mine = jax.tree.map(lambda leaf: leaf[0], stream.per_seed)
    for t, given in enumerate(TASKS.values()):
        data = stream.view(stream.base, mine, part, t)
        batch = data.take(np.arange(int(data.size)))
        found = np.round(np.asarray(batch.x)).astype(int).reshape(len(batch.y), -1)
        right = given[column].astype(int).reshape(len(given[column]), -1)
        order, other = np.lexsort(found.T), np.lexsort(right.T)
        np.testing.assert_array_equal(found[order], right[other])
        names = [stream.class_names[list(mine.label[t]).index(k)] for k in batch.y]
        assert np.array(names)[order].tolist() == given[column + 1][other].tolist()


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_wrong_labels_are_of_the_tasks_own_classes(scenario):
    """Also of a class that comes again: its partners differ from task to task."""
    clean, noisy = (stream_of(scenario, label_noise=r) for r in (0.0, 0.3))
    for seed in range(2):
        mine, theirs = (
            jax.tree.map(lambda leaf, s=seed: leaf[s], stream.per_seed)
            for stream in (clean, noisy)
        )
        for t in range(3):
            data = clean.view(clean.base, mine, "train", np.int32(t))
            wrong = noisy.view(noisy.base, theirs, "train", np.int32(t))
            at = np.arange(int(data.size))
            y, given = np.asarray(data.take(at).y), np.asarray(wrong.take(at).y)
            own = mine.label[t][mine.label[t] >= 0]
            assert len(own) == 2 and set(given) == set(own.tolist())
            for c in own:  # 6 of the 20 of each class
                assert (given[y == c] != c).sum() == 6


def test_confusion_of_a_class_that_comes_again():
    """Refused unless the class it is called is in each of its tasks."""
    words = {"label_noise": 0.5, "confusion": (("dog", "cat"),)}
    with pytest.raises(ValueError, match=r"class 1 would be called 0, .*\[1, 2\]"):
        stream_of("class", **words)


def test_probes_of_a_later_task_alone(tmp_path):
    """Its outputs, 0 and 3 of 4, need not lie side by side."""
    config = digits.get_config("bp")
    config.update_from_flattened_dict(
        {
            "data.dataset": f"{__name__}:tasks",
            "data.num_tasks": 3,
            "data.scenario": "class",
            "data.tasks": (2, 3),
            "seeds": (0,),
            "train.epochs": 4,
            "features": "probes,multinomial",
            "feature_examples": 20,
        }
    )
    execute(config, tmp_path)
    measured = jaxcl.load_run(tmp_path).measured
    kinds = ("probe_ridge", "probe_ncm", "probe_multinomial")
    found = {k: np.nanmin(v) for k, v in measured.items() if k.startswith(kinds)}
    assert len(found) >= 3 and min(found.values()) > 0.9, found


def test_agem_keeps_as_many_of_each_class_of_a_task():
    """Also of those that earlier tasks had: of its classes, not of its new ones."""
    grows = [images(("cat", "dog", "elk", "fox")[: 2 + t], 60, t) for t in range(3)]
    stream = make_stream(
        from_tasks(grows), (0,), kind="split", scenario="class", num_tasks=3
    )
    model = models.MLP((8,), stream.num_outputs)
    setup = make_setup(model, stream, 8)
    assert setup.num_classes == (2, 3, 4)
    method = agem(setup, per_class=5)
    net, model_state = init_fn(model, setup.example)(jax.random.key(0))
    params = jaxcl.init_params(method, jax.random.key(1), net)
    state, had = method.init(params), 0
    mine = jax.tree.map(lambda leaf: leaf[0], stream.per_seed)
    for t in range(3):
        params, state = method.after_task(
            params,
            state,
            data=stream.view(stream.base, mine, "train", np.int32(t)),
            model_state=model_state,
            task=jnp.int32(t),
            key=jax.random.key(t),
        )
        kept = np.bincount(np.asarray(state.y[had : int(state.size)]), minlength=4)
        assert kept.tolist() == [5] * (2 + t) + [0] * (2 - t)
        had = int(state.size)


def test_validation_limits_and_a_test_part_that_is_drawn():
    stream = stream_of("class", valid_fraction=0.25, train_per_task=20)
    assert np.diff(stream.per_seed.train.offset[0]).tolist() == [15] * 3
    assert np.diff(stream.per_seed.valid.offset[0]).tolist() == [5] * 3
    drawn = from_tasks([images(("cat", "dog"), 40), images(("dog", "elk"), 30)])
    assert drawn.tasks.names == ("task 1", "task 2")
    assert np.bincount(drawn.tasks.test).tolist() == [8, 6]  # a fifth of each class
    assert np.bincount(drawn.tasks.train).tolist() == [32, 24]


def test_what_has_no_effect_or_no_training_is_refused():
    with pytest.raises(ValueError, match="test_fraction is for .* tasks with x_test"):
        from_tasks(TASKS, reading=Reading(test_fraction=0.3))
    with pytest.raises(ValueError, match="image_size is for .* tasks of one's own"):
        from_tasks(TASKS, reading=Reading(image_size=(4, 4)))
    source = from_tasks(TASKS)
    other = source.tasks._replace(test=source.tasks.test[::-1].copy())
    options = dict(seeds=(0,), kind="split", scenario="class", num_tasks=3)
    with pytest.raises(ValueError, match="spring is tested on labels that it is not"):
        make_stream(source._replace(tasks=other), **options)


def test_later_tasks_alone_keep_their_classes_in_play():
    """A class of a task that is left out stays out, unless it comes again."""
    cut = stream_of("class").between(1, 3)
    assert cut.logit_mask.astype(int).tolist() == [[0, 1, 1, 0], [1, 1, 1, 1]]
    whole = stream_of("class")
    same = whole.between(0, 3)
    np.testing.assert_array_equal(same.logit_mask, whole.logit_mask)


@pytest.mark.parametrize("row", ["bp", "er", "lwf", "agem", "ewc", "bp_slda"])
@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_methods_train_on_them_from_the_command_line(row, scenario, tmp_path):
    config = digits.get_config(row)
    config.update_from_flattened_dict(
        {
            "data.dataset": f"{__name__}:tasks",
            "data.num_tasks": 3,
            "data.scenario": scenario,
            "seeds": (0,),
            "train.epochs": 4,
            "keep_weights": "last",
            "features": "confusion",
        }
    )
    execute(config, tmp_path)
    run = jaxcl.load_run(tmp_path)
    assert run.result.task_names == ["spring", "summer", "autumn"]
    assert run.class_names(0, 2) == {0: "cat", 3: "fox"}
    final = run.result.matrix[0, 2]
    assert np.isfinite(final).all() and final[2] >= 0.5
    shares = run.measured["confusion/outputs"][0, -1]
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    if scenario == "class":
        with pytest.raises(ValueError, match="told is for tasks that share no class"):
            run.accuracy(run.weights(0, 2), 0, 0, told=True)


@pytest.mark.parametrize("most, kept", [(6, [3, 3]), (4, [2, 2]), (3, [2, 1])])
def test_a_memory_that_is_too_small_leaves_no_class_out(most, kept):
    """Picked in the order of the labels, the last classes would have been left out."""
    y = jnp.array([0] * 10 + [1] * 10)
    data = jaxcl.array_data(jnp.zeros([20, 2]), y, task=0)
    position, keep = sampling.choose(
        data, jax.random.key(0), per_task=None, per_class=3, most=most
    )
    assert keep[:most].all()
    assert np.bincount(np.asarray(y[position[:most]])).tolist() == kept


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_tasks": 2}, "num_tasks must be 3, as .* has tasks of its own, got 2"),
        ({"kind": "permuted", "scenario": "domain"}, "a split stream, not a permuted"),
        ({"class_order": "seed"}, "class_order is for data without tasks of their own"),
        ({"classes_per_task": 2}, "classes_per_task is for data without tasks of"),
        (
            {"task_classes": ((0,), (1,), (2,))},
            "task_classes is for data without",
        ),
    ],
)
def test_what_the_tasks_say_cannot_be_said_again(change, message):
    with pytest.raises(ValueError, match=message):
        stream_of(**{"scenario": "class"} | change)


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "tasks must be at least one, got none"),
        ([images(("cat", "dog"), 8)[0]], r"task 1 must be \(x_train, y_train\)"),
        ({"a": (*images(("cat",), 4), *images(("dog",), 4))}, "a: y_test has labels"),
        ([(np.zeros([4, 2]), np.arange(3))], "task 1: .* same number of rows, above 0"),
        (
            [images(("cat", "dog"), 8), (np.zeros([8, 2, 2]), ["cat", "dog"] * 4)],
            "all tasks need examples of one shape, got x_train of",
        ),
        (
            [images(("cat", "dog"), 8), (images(("cat",), 8)[0], np.arange(8) % 2)],
            "y_train of all tasks must be numbers, or all be text",
        ),
    ],
)
def test_tasks_that_are_none_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        from_tasks(given)
