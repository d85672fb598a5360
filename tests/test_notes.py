"""The notes for a run's user on the space that the method has left."""

import numpy as np

from experiments.runs.notes import of_task
from experiments.runs.results import OK

TWO = (OK, OK)


def both(*values):
    return np.array([values, values], float)


def test_a_layer_that_is_full_is_told_of_once():
    report = {"taken": {"a": both(0.5, 0.96, 0.97), "b": both(0.1, 0.2, 0.3)}}
    assert [of_task(report, t, TWO) for t in (0, 2)] == [[], []]
    assert of_task(report, 1, TWO) == [
        "layer a is nearly full after task 2: less than 5% of it is free"
    ]


def test_the_clamp():
    report = {"at_clamp": {"a": both(0.1, 0.6, 0.7), "b": both(0.1, 0.2, 0.3)}}
    assert [of_task(report, t, TWO) for t in (0, 2)] == [[], []]
    (note,) = of_task(report, 1, TWO)
    assert note.startswith("over 50% of the embeddings of layer a ended task 2 at the")


def test_a_layer_that_is_closed_to_a_task():
    report = {
        "taken": {"a": both(0.4, 0.4, 0.4)},
        "shared": {"a": both(0.0, 0.1, 0.0)},
    }
    assert of_task(report, 0, TWO) == []  # claims .4
    assert of_task(report, 1, TWO) == []  # claims nothing and shares .1
    (note,) = of_task(report, 2, TWO)
    assert note.startswith("task 3 uses nothing of layer a in 2 of 2 seeds")


def test_a_seed_that_failed_has_no_say():
    report = {"taken": {"a": both(0.4, 0.4)}, "shared": {"a": both(0.0, 0.1)}}
    report["taken"]["a"][1] = report["shared"]["a"][1] = 0.0
    assert "1 of 2" in of_task(report, 1, TWO)[0]
    assert of_task(report, 1, (OK, "failed")) == []


def test_what_is_not_measured_is_not_told_of():
    blank = both(np.nan, np.nan)
    quantities = ("taken", "shared", "at_clamp")
    assert of_task({q: {"a": blank} for q in quantities}, 1, TWO) == []
    assert of_task({}, 0, TWO) == []


def test_shared_without_taken_says_nothing():
    assert of_task({"shared": {"a": both(0.0, 0.0)}}, 1, TWO) == []


def test_other_quantities_and_layers_with_room_say_nothing():
    full = both(0.99, 0.99)
    assert of_task({"rank": {"a": full}}, 0, TWO) == []
    assert of_task({"taken": {"a": both(0.5, 0.5)}}, 1, TWO) == []
