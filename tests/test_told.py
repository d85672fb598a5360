"""A class-incremental network read as if the task were told."""

import numpy as np
import pytest

import jaxcl
from configs import digits
from experiments.reporting import tables
from experiments.reporting.scores import rows
from experiments.runs import results
from experiments.runs.execute import execute
from jaxcl.training.evaluation import told
from jaxcl.training.problem import setup_of

FIELDS = {
    "seeds": (3, 5),
    "data.scenario": "class",
    "data.num_tasks": 3,  # of 4, 3 and 3 classes
    "data.train_per_task": 80,
    "data.test_per_task": 60,
    "train.epochs": 2,
    "keep_weights": "tasks",
    "features": "told",
}
FIRST = (0, 4, 7, 10)


def run_of(row, workdir, **fields):
    config = digits.get_config(row)
    config.update_from_flattened_dict(FIELDS | fields)
    execute(config, workdir)
    return jaxcl.load_run(workdir)


# BP has forgotten the old classes, SLDA's logits come from a head in closed form, and a
# linear network has no features.
@pytest.mark.parametrize("row", ["bp", "bp_slda", "linear"])
def test_the_outputs_of_the_examples_task_alone_are_in_play(row, tmp_path):
    run = run_of(row, tmp_path)
    found = run.measured["accuracy_told/outputs"]
    assert found.shape == (2, 4, 3)
    for place, seed in enumerate(run.seeds):
        for after in (1, 2, 3):
            weights = run.weights(seed=seed, task=after - 1)
            for task in range(after):
                x, y = run.data(seed=seed, task=task)
                own = slice(FIRST[task], FIRST[task + 1])
                logits = run.apply(weights, x, task, current=after - 1).logits[:, own]
                right = np.mean(np.argmax(logits, 1) + FIRST[task] == y)
                np.testing.assert_allclose(found[place, after, task], right, atol=1e-6)
                given = dict(seed=seed, task=task, current=after - 1)
                same = run.accuracy(weights, **given, told=True)
                np.testing.assert_allclose(same, right, atol=1e-6)
    matrix = run.result.matrix
    assert (found[:, 3] >= matrix[:, 2] - 1e-6).all()
    assert (found[:, 3, 0] > matrix[:, 2, 0] + 0.2).all() or row == "bp_slda"
    assert {"accuracy_told"} < {r["quantity"] for r in run.records()}
    text = tables.text_table(rows([results.load(tmp_path / "result.json")]))
    mean = f"ACC is {100 * found[:, 3].mean():.2f} ±"
    assert "if it is told the task" in text and mean in text


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_told_is_for_class_incremental_runs(scenario, command, tmp_path):
    stream = {"task": "split", "domain": "permuted"}[scenario]
    status, _, errors = command(
        *("run", "--config=digits", f"--config.data.scenario={scenario}"),
        *(f"--config.data.stream={stream}", "--config.features=told"),
        f"--workdir={tmp_path / 'w'}",
    )
    assert status == 2 and errors.count("\n") == 1
    assert "told reads a class-incremental network" in errors
    assert not (tmp_path / "w").exists()


def test_a_tasks_outputs_are_those_that_came_with_it(problem):
    setup = told(setup_of(problem(scenario="class")))
    owner = [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert setup.logit_mask.astype(int).tolist() == owner
    assert setup.mask_by == "example"


@pytest.mark.parametrize("row", ["bp", "bp_slda"])
def test_accuracy_is_the_matrix_of_the_weights_task(row, tmp_path):
    """The classes of all tasks that the weights have trained are in play."""
    run = run_of(row, tmp_path, features="")
    for place, seed in enumerate(run.seeds):
        for after in range(3):
            weights = run.weights(seed=seed, task=after)
            for task in range(3):
                found = run.accuracy(weights, seed=seed, task=task)
                right = run.result.matrix[place, after, task]
                np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.parametrize("row, scenario", [("bp", "class"), ("hat", "task")])
def test_predict_answers_as_the_run(row, scenario, tmp_path):
    run = run_of(row, tmp_path, features="", **{"data.scenario": scenario})
    setup = setup_of(run.problem)
    method = run.problem.make_strategy(setup)
    weights, (x, y) = run.weights(seed=3, task=2), run.data(seed=3, task=0)
    state = jaxcl.OptState((), method.init(weights.params))
    told = dict(task=0, current=2)
    logits = jaxcl.predict(method, setup, weights.params, state, x, **told)
    right = np.mean(np.asarray(logits).argmax(-1) == y)
    np.testing.assert_allclose(right, run.accuracy(weights, seed=3, task=0), atol=1e-6)
    closed = np.asarray(logits) == np.finfo(np.float32).min
    assert closed[:, FIRST[1] :].all() == (scenario == "task")
    with pytest.raises(ValueError, match="current"):
        jaxcl.predict(method, setup, weights.params, state, x, task=0, current=3)


CONFUSED = {"features": "confusion", "feature_examples": 20}


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_a_confusion_matrix_is_what_the_kept_weights_answer(scenario, tmp_path):
    stream = {"data.stream": "permuted" if scenario == "domain" else "split"}
    fields = CONFUSED | stream | {"data.scenario": scenario}
    run = run_of("bp", tmp_path, **fields)
    found = run.measured["confusion/outputs"]
    k = found.shape[-1]
    assert found.shape == (2, 4, k, k)
    for place, seed in enumerate(run.seeds):
        for after in (1, 2, 3):
            weights = run.weights(seed=seed, task=after - 1)
            counts = np.zeros((k, k))
            for task in range(after):
                x, y = run.data(seed=seed, task=task)
                logits = np.array(run.apply(weights, x, task, current=after - 1).logits)
                if scenario == "task":
                    logits[:, [c for c in range(k) if c not in set(y)]] = -np.inf
                elif scenario == "class":
                    logits[:, FIRST[after] :] = -np.inf
                np.add.at(counts, (y, logits.argmax(1)), 1)
            n = counts.sum(1, keepdims=True)
            right = np.where(n > 0, counts / np.maximum(n, 1), np.nan)
            np.testing.assert_allclose(found[place, after], right, atol=1e-6)
            # Its diagonal, by class, adds up to the matrix's accuracy.
            hits, sizes = np.nansum(np.diag(right) * n[:, 0]), n.sum()
            matrix = run.result.matrix[place, after - 1, :after]
            each = [len(run.data(seed=seed, task=t)[1]) for t in range(after)]
            assert hits / sizes == pytest.approx(np.average(matrix, weights=each))
    table = [r for r in run.records() if r["quantity"] == "confusion"]
    assert {"output", "answer", "tasks_trained"} <= set(table[0])


def test_classes_of_earlier_tasks_are_taken_for_the_last_ones(tmp_path):
    """BP's answers, class-incremental, as a picture with lines between the tasks."""
    from experiments.reporting import answer_figures, figures

    run_of("bp", tmp_path / "bp", **CONFUSED)
    found = rows([results.load(tmp_path / "bp" / "result.json")])
    shares = found[0].result.features["confusion/outputs"][:, -1]
    assert shares[:, :7, 7:].sum(-1).mean() > 0.5  # recency
    (ax, *_) = answer_figures.confusion(found).axes
    lines = {tuple(np.unique(line.get_xydata()[:, 0])) for line in ax.lines}
    assert {(3.5,), (6.5,)} <= lines
    np.testing.assert_allclose(ax.images[0].get_array(), 100 * shares.mean(0))
    out = tmp_path / "out"
    out.mkdir()
    assert out / "confusion.png" in figures.write(found, out)
