"""What a run's user is told of the space its method has left."""

import numpy as np

from experiments.runs.notes import of_task
from experiments.runs.results import OK
from jaxcl.strategies.hat import AT_CLAMP, SHARED

TWO = (OK, OK)


def both(*values):
    return np.array([values, values], float)


def test_a_layer_that_is_full_is_told_of_once():
    report = {"a": both(0.5, 0.96, 0.97), "b": both(0.1, 0.2, 0.3)}
    assert [of_task(report, t, TWO) for t in (0, 2)] == [[], []]
    assert of_task(report, 1, TWO) == [
        "layer a is nearly full after task 2: less than 5% of it is free"
    ]


def test_the_clamp():
    report = {AT_CLAMP: both(0.1, 0.6)}
    assert of_task(report, 0, TWO) == []
    (note,) = of_task(report, 1, TWO)
    assert note.startswith("over 50% of the embeddings of task 2 ended at the clamp")


def test_a_layer_that_is_closed_to_a_task():
    report = {"a": both(0.4, 0.4, 0.4), "a" + SHARED: both(0.0, 0.1, 0.0)}
    assert of_task(report, 0, TWO) == []  # claims .4
    assert of_task(report, 1, TWO) == []  # claims nothing and shares .1
    (note,) = of_task(report, 2, TWO)
    assert note.startswith("task 3 uses nothing of layer a in 2 of 2 seeds")


def test_a_seed_that_failed_has_no_say():
    report = {"a": both(0.4, 0.4), "a" + SHARED: both(0.0, 0.1)}
    report["a"][1] = report["a" + SHARED][1] = 0.0
    assert "1 of 2" in of_task(report, 1, TWO)[0]
    assert of_task(report, 1, (OK, "failed")) == []


def test_what_is_not_measured_is_not_told_of():
    blank = both(np.nan, np.nan)
    assert of_task({"a": blank, "a" + SHARED: blank, AT_CLAMP: blank}, 1, TWO) == []
    assert of_task({}, 0, TWO) == []
