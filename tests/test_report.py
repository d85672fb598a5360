"""The report from synthetic results: files, numbers, footnotes, errors, round trips."""

import csv
import io
import json
import os
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from experiments import report
from experiments.claims import figures as figures_of_claims
from experiments.reporting import (
    claim_page,
    csv_files,
    figures,
    latex,
    scores,
    space_figures,
    style,
    tables,
)
from experiments.reporting.build import build
from experiments.runs.load import find
from experiments.runs.results import Result, load, save
from jaxcl import metrics, statistics
from jaxcl.strategies import METHODS

pytestmark = pytest.mark.filterwarnings("error")
CONFIG = {
    "measure": "test",
    "data": {"dataset": "digits", "stream": "split", "mean": [0.5], "std": None},
    "model": {"name": "mlp", "widths": [16, 16], "dropout": 0.0},
}
TEXTS = {f"table.{kind}" for kind in ("txt", "md", "tex", "csv")}
TEXTS |= {"seeds.csv", "results.csv"}


def drawings(*names):
    """The names of the figures' files."""
    return {f"{name}{suffix}" for name in names for suffix in (".png", ".svg")}


IMAGES = drawings("bars", "tasks", "matrix")


def make(row="bp", tasks=3, seeds=(0, 1, 2), shift=0.0, done=None, **fields):
    """A plausible run with `done` finished tasks, by default all."""
    done = tasks if done is None else done
    s = len(seeds)
    age = np.maximum(np.arange(tasks)[:, None] - np.arange(tasks), 0)
    trained = np.arange(tasks)[:, None] >= np.arange(tasks)
    one = np.where(trained, 0.8 - 0.1 * np.minimum(age, 5), 0.2)
    matrix = one + shift + 0.01 * np.square(np.array(seeds))[:, None, None]
    matrix[:, done:] = np.nan
    result = Result(
        config_name="digits",
        row=row,
        scenario="task",
        seeds=list(seeds),
        status=["ok"] * s,
        matrix=matrix,
        baseline=np.full((s, tasks), 0.1),
        task_names=[f"digits {2 * t}, {2 * t + 1}" for t in range(tasks)],
        tasks_done=done,
        steps=100 * done,
        wall_s=12.5,
        device="cpu",
        versions={"jax": "0"},
        config=CONFIG,
    )
    return result._replace(**fields)


def changed(section, **fields):
    """CONFIG with some fields of a section changed."""
    return CONFIG | {section: CONFIG[section] | fields}


def fail(result, seed, status, from_task):
    """The same run with one seed failed."""
    k = result.seeds.index(seed)
    matrix = np.array(result.matrix)
    matrix[k, from_task:] = np.nan
    statuses = list(result.status)
    statuses[k] = status
    return result._replace(matrix=matrix, status=statuses)


def write(folder, result):
    folder.mkdir(parents=True)
    save(folder / "result.json", result)
    return folder


def read_csv(file):
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


def assert_same(x, y):
    if isinstance(x, dict):
        assert x.keys() == y.keys()
        for key in x:
            assert_same(x[key], y[key])
    else:
        np.testing.assert_array_equal(x, y)


def same(a, b):
    """Whether two results are equal, NaN in the same places."""
    for x, y in zip(a, b, strict=True):
        assert_same(x, y)
    return True


def test_round_trip(tmp_path):
    result = fail(make(done=2), 1, "failed: task 2, epoch 1", 1)
    result = result._replace(
        wall_s=float("nan"),
        notes=["a note"],
        report={
            "taken": {
                "hidden_10": np.array([[0.1, 0.2, np.nan]] * 3),
                "hidden_9": np.array([[0.3, np.nan, np.nan]] * 3),
            },
            "at_clamp": {"hidden_10": np.array([[0.0, 1.0, np.nan]] * 3)},
        },
        config=None,
    )
    save(tmp_path, result)
    loaded = load(tmp_path)
    assert same(loaded, result)
    assert same(load(tmp_path / "result.json"), result)
    # A figure's layers are in the strategy's order.
    assert list(loaded.report) == ["taken", "at_clamp"]
    assert list(loaded.report["taken"]) == ["hidden_10", "hidden_9"]
    text = (tmp_path / "result.json").read_text()
    assert "NaN" not in text and "null" in text
    plain = make()
    save(tmp_path, plain)
    fields = json.loads((tmp_path / "result.json").read_text())
    assert fields.pop("report") == {} and load(tmp_path).report == {}
    (tmp_path / "result.json").write_text(json.dumps(fields))
    assert load(tmp_path).report == {}


def test_a_strategy_may_report_what_is_no_share(tmp_path):
    """Ranks, norms and overflows are written, but not drawn."""
    values = np.array([[7.0, -3.5, np.inf], [0.0, 1e30, np.nan], [1.0, 2.0, -np.inf]])
    result = make("mine", report={"rank": {"a": values}, "shared": {"a": values}})
    save(tmp_path, result)
    want = np.where(np.isfinite(values), values, np.nan)
    np.testing.assert_array_equal(load(tmp_path).report["rank"]["a"], want)
    build([load(tmp_path)], tmp_path / "report")
    assert {f.name for f in (tmp_path / "report").iterdir()} == TEXTS | IMAGES


def test_numpy_scalars_and_float32_are_written(tmp_path):
    result = make()._replace(
        seeds=np.arange(3), steps=np.int64(7), matrix=np.ones((3, 3, 3), np.float32)
    )
    save(tmp_path, result)
    loaded = load(tmp_path)
    assert loaded.seeds == [0, 1, 2] and loaded.steps == 7
    assert loaded.matrix.dtype == np.float64


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    save(tmp_path, make())
    before = (tmp_path / "result.json").read_bytes()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, make("ewc"))
    assert (tmp_path / "result.json").read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["result.json"]


def test_load_errors_name_the_file(tmp_path):
    file = tmp_path / "result.json"
    with pytest.raises(FileNotFoundError, match=r"result\.json: no such file"):
        load(file)
    save(file, make())
    text = file.read_text()
    good = json.loads(text)
    for broken, reason in [
        (text[: len(text) // 2], "not valid JSON"),
        (text.replace("12.5", "NaN"), "NaN is not JSON"),
        ("[1]", "expected a JSON object, got list"),
        (json.dumps({k: v for k, v in good.items() if k != "row"}), "lacks row"),
        (json.dumps(good | {"matrix": [[0.5]]}), r"matrix .*\(3, 3, 3\), got \(1, 1\)"),
        (json.dumps(good | {"matrix": [[0.5], [1, 2]]}), "matrix must be numbers"),
        (json.dumps(good | {"baseline": [[50] * 3] * 3}), r"\[0, 1\], got 50"),
        (json.dumps(good | {"status": ["ok"]}), "1 for 3 seeds"),
        (
            json.dumps(good | {"status": "ok"}),
            r"status must be \(text, \.\.\.\), got 'ok'",
        ),
        (json.dumps(good | {"seeds": [1, 1, 2]}), "distinct"),
        (json.dumps(good | {"tasks_done": 4}), "0..3, got 4"),
        (json.dumps(good | {"steps": "many"}), "steps must be an integer, got 'many'"),
        (
            json.dumps(good | {"report": {"taken": {"a": [[0.1]]}}}),
            r"report\['taken'\]\['a'\].*\(1, 1\)",
        ),
        (
            json.dumps(good | {"report": {"taken": [0.1]}}),
            r"\['taken'\] must be an obj",
        ),
        (json.dumps(good | {"report": None}), "report must be an object, got None"),
        (json.dumps(good | {"versions": None}), "versions must be an object"),
    ]:
        file.write_text(broken)
        with pytest.raises(ValueError, match=reason) as error:
            load(file)
        assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_scores_and_test_against_bp():
    ewc = make("ewc", shift=0.05)
    ewc.matrix[1] += 0.02
    bp, other = scores.rows([ewc, make("bp")])
    assert (bp.label, other.label) == ("BP", "EWC") and bp.test is None
    # Last row .6, .7, .8 and 0, .01, .04 by seed.
    np.testing.assert_allclose(bp.scores["acc"], [0.7, 0.71, 0.74])
    aia = metrics.average_incremental_accuracy(bp.result.matrix)
    np.testing.assert_allclose(bp.scores["aia"], aia)
    np.testing.assert_allclose(bp.scores["bwt"], -0.15)
    np.testing.assert_allclose(bp.scores["fgt"], 0.15)
    np.testing.assert_allclose(bp.scores["fwt"], [0.1, 0.11, 0.14])
    expected = statistics.paired_test([0.75, 0.78, 0.79], [0.7, 0.71, 0.74])
    assert other.test == pytest.approx(expected)


def test_pairs_are_matched_by_seed_and_benchmark():
    found = [make("bp", seeds=(0, 1, 2)), make("gpm", seeds=(2, 1, 5), shift=-0.05)]
    row = scores.rows(found)[1]
    assert row.test == pytest.approx((0, -0.05, 2))
    longer = make("gpm", tasks=4)
    assert [r.test for r in scores.rows([make("bp"), longer])] == [None, None]


@pytest.mark.parametrize(
    "config, apart",
    [
        (changed("model", widths=[16]), ("model.widths",)),
        (changed("model", norm="batch_current"), ("model.norm",)),
        (
            changed("data", mean=[0.0], first_permuted=False),
            ("data.first_permuted", "data.mean"),
        ),
        (changed("data", stratified=True), ("data.stratified",)),
        (CONFIG | {"measure": "valid"}, ("measure",)),
        (None, ("a config that is not known",)),
    ],
)
def test_a_test_is_between_runs_of_one_network_and_data(config, apart):
    found = [make("bp"), make("owm", shift=0.05, config=config)]
    row = scores.rows(found)[1]
    assert row.test is None and row.apart == apart
    (note,) = tables.footnotes([row])
    assert f": not tested against BP, from which it differs in {apart[0]}" in note
    assert note.startswith("OWM (valid)" if apart == ("measure",) else "OWM:")
    # If there is a BP with its own setting, it is tested against that.
    found.insert(1, make("bp", shift=0.01, config=config))
    tested = scores.rows(found)[2]
    if config is not None:
        assert tested.test == pytest.approx((0, 0.04, 3)) and tested.apart == ()


def test_a_field_that_a_config_does_not_name_has_its_default():
    """The config of an older run lacks settings that were added later."""
    later = changed("data", stratified=False, mean=(0.5,), classes_per_task=None)
    later |= {"model": CONFIG["model"] | {"norm": "none", "use_bias": True}}
    row = scores.rows([make("bp"), make("gpm", shift=0.05, config=later)])[1]
    assert row.test == pytest.approx((0, 0.05, 3)) and row.apart == ()


def test_a_config_is_read_from_beside_a_result(tmp_path):
    save(tmp_path, make())
    assert "config" not in json.loads((tmp_path / "result.json").read_text())
    assert load(tmp_path).config is None
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert load(tmp_path).config == CONFIG
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not valid JSON"):
        load(tmp_path)


def test_recorded_owm_is_not_tested_against_another_network():
    folder = Path(scores.__file__).parents[1] / "results" / "permuted_mnist"
    found = [load(folder / name) for name in ("bp", "ewc", "owm")]
    bp, ewc, owm = scores.rows(found)
    assert bp.result.row == "bp" and ewc.test is not None
    assert owm.test is None and "model.widths" in owm.apart


def test_recorded_results_report_what_figures_and_notes_read():
    folder = Path(scores.__file__).parents[1] / "results" / "permuted_mnist"
    layers = {
        row: {quantity: list(of) for quantity, of in load(folder / row).report.items()}
        for row in ("bp", "gpm", "owm", "hat")
    }
    hidden = ["hidden_0", "hidden_1"]
    assert layers == {
        "bp": {},
        "gpm": {"taken": [*hidden, "head"]},
        "owm": {"taken": ["hidden_0", "head"]},
        "hat": dict.fromkeys(("taken", "shared", "at_clamp"), hidden),
    }


def test_intervals_stay_on_their_scale():
    # ACC .983, .987 and .997 by seed: the interval would reach above 1.
    found = make(shift=0.35)
    high = np.minimum(found.matrix, 1.0)
    (row,) = scores.rows([found._replace(matrix=high)])
    i = row.intervals["acc"]
    plain = statistics.interval(row.scores["acc"])
    assert plain.high95 > 1 and i.high95 == 1 and i.low95 == plain.low95
    worst = np.zeros((3, 2, 2))
    worst[:, 0, 0] = [1.0, 0.9, 1.0]
    (row,) = scores.rows([make(tasks=2)._replace(matrix=worst)])
    i = row.intervals["bwt"]
    assert statistics.interval(row.scores["bwt"]).low95 < -1 and i.low95 == -1
    assert row.intervals["fgt"].high95 == 1


def test_labels_of_many_differences_name_some_of_them():
    models = [
        {"model": {"name": "mlp", "depth": 2, "width": 8}, "joint": False},
        {"model": {"name": "cnn", "norm": "batch", "size": 3}, "joint": True},
    ]
    found = [make("er")._replace(config=config) for config in models]
    assert [r.label for r in scores.rows(found)] == [
        "ER (model.name=mlp, joint=False, model.depth=2, …)",
        "ER (model.name=cnn, joint=True, model.depth=None, …)",
    ]


@pytest.mark.parametrize(
    "dataset, end", [("digits", "alone."), ("my:tasks", "alone, if no class comes")]
)
def test_what_is_expected_without_replay_holds_if_no_class_comes_again(dataset, end):
    config = {"data": {"dataset": dataset}}
    found = make("er")._replace(config=config, scenario="class")
    notes = " ".join(tables.footnotes(scores.rows([found])))
    assert f"%, the last task {end}" in notes


def test_labels_are_unique_and_say_what_differs():
    found = [make("er"), make("bp_star"), make("er"), make("mine")]
    assert [r.label for r in scores.rows(found)] == ["BP*", "ER", "ER #2", "mine"]
    rates = [{"optimizer": {"lr": r}, "measure": "valid"} for r in (0.1, 0.2, 0.2)]
    found = [make("er")._replace(config=config) for config in rates]
    table = scores.rows(found)
    assert [r.label for r in table] == [
        "ER (optimizer.lr=0.1)",
        "ER (optimizer.lr=0.2)",
        "ER (optimizer.lr=0.2) #2",
    ]
    assert ", on validation data (on" in tables.title(table)
    found[2] = found[2]._replace(config=rates[2] | {"measure": "test"})
    labels = [r.label for r in scores.rows(found)]
    assert labels[1] == "ER (valid) (optimizer.lr=0.2)" and labels[2] == "ER (test)"
    found = [make("er"), make("er", scenario="class"), make("bp", tasks=5)]
    assert [r.label for r in scores.rows(found)] == [
        "ER (task, T = 3)",
        "ER (class, T = 3)",
        "BP (task, T = 5)",
    ]


def test_every_row_says_which_data_it_is_of_if_they_differ():
    """Of two data sets those of methods that are there once had no data named."""
    data = [changed("data", dataset=f"folder:{name}") for name in ("a", "b")]
    found = [make("bp", config=data[0]), make("bp", config=data[1])]
    found += [make("ewc", config=data[0]), make("gpm", config=data[1])]
    found += [make("er", config=data[0] | {"optimizer": {"lr": r}}) for r in (1, 2)]
    found += [make("hat", config=None), make("owm", scenario="class", config=data[0])]
    assert [r.label for r in scores.rows(found[:6])] == [
        "BP (data.dataset=folder:a)",
        "BP (data.dataset=folder:b)",
        "EWC (data.dataset=folder:a)",
        "GPM (data.dataset=folder:b)",
        "ER (data.dataset=folder:a) (optimizer.lr=1)",
        "ER (data.dataset=folder:a) (optimizer.lr=2)",
    ]
    labels = {r.label for r in scores.rows(found)}
    assert {"EWC (task, data.dataset=folder:a)", "HAT (task)", "OWM (class)"} < labels
    many = changed("data", dataset="x", mean=[1.0], stratified=True, stream="")
    assert [r.label for r in scores.rows([make("bp"), make("ewc", config=many)])] == [
        "BP (data.dataset=digits, data.mean=[0.5], data.stratified=False, …)",
        "EWC (data.dataset=x, data.mean=[1.0], data.stratified=True, …)",
    ]


def test_a_field_that_an_older_config_lacks_is_no_difference():
    old = CONFIG | {"train": {"epochs": 1}}
    new = changed("data", augment="", first_permuted=True) | {"train": {"epochs": 2}}
    found = [make("er", config=config) for config in (old, new)]
    labels = [r.label for r in scores.rows(found)]
    assert labels == ["ER (train.epochs=1)", "ER (train.epochs=2)"]


def test_build_writes_everything(tmp_path):
    taken = {"conv": np.full((3, 3), 0.5), "dense": np.full((3, 3), 0.25)}
    found = [
        make("bp"),
        fail(make("ewc", shift=0.05), 2, "failed: task 2, epoch 4", 1),
        make("lwf", done=2),
        make("gpm", shift=0.1, report={"taken": taken}, notes=["rank 7 of 9"]),
        make("bp_star_star", done=0),
        make("hat", seeds=(4,)),
    ]
    text = build(found, tmp_path, ["si: left out."])
    assert {f.name for f in tmp_path.iterdir()} == TEXTS | IMAGES | drawings("space")
    for image in tmp_path.glob("*.png"):
        assert 1000 < image.stat().st_size < 150_000
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == text
    for part in (
        "71.67 ± 2.08",  # BP: mean of .70, .71, .74
        "[70.00, 74.00]",
        "[lowest, highest]",
        "1/3",
        "BWT            mean_{j<T} (A[T, j] − A[j, j])",
        "EWC, seed 2: failed: task 2, epoch 4",
        "† LwF: unfinished, 2 of 3 tasks done; figures are over the first 2",
        "† BP**: unfinished, 0 of 3 tasks done; no figures yet",
        "GPM: rank 7 of 9",
        "si: left out.",
    ):
        assert part in text
    assert "Class-incremental" not in text and "-0.00" not in text
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| BP\\*\\* † |" in markdown and "EWC, seed 2: failed" in markdown
    lines = [x for x in markdown.splitlines() if x.startswith("|")]
    assert len(lines) == 2 + len(found)
    assert {x.replace("\\|", "").count("|") for x in lines} == {12}


def test_latex_has_the_cells_of_the_table():
    odd = "a_b & 50 % {x} <\n$1"
    found = [
        make("bp", config_name=odd),
        make("my:[*_x-2]", shift=-0.05, config_name=odd),
    ]
    text = latex.latex_table(scores.rows(found), ["100 % \\input{x}"])
    _, _, body, _ = re.split(r"\\(?:top|mid|bottom)rule\n", text)
    lines = body.splitlines()
    for line, label in zip(lines, ("BP", r"{[}{*}\_x-2]"), strict=True):
        assert line.endswith(r" \\")
        cells = [cell.strip() for cell in re.split(r"(?<!\\)&", line[:-3])]
        assert len(cells) == len(tables.COLUMNS) and cells[0] == label
        assert cells[5] == r"$-$15.00 $\pm$ 0.00"
    assert r"{a\_b \& 50 \% \{x\} \textless{} \$1, task-incremental" in text
    assert r"\footnotesize 100 \% \textbackslash{}input\{x\}" in text


def test_csv_holds_the_raw_numbers(tmp_path):
    ewc = fail(make("ewc", shift=0.05), 2, "failed: task 2, epoch 4", 1)
    build([make("bp"), ewc, make("si", done=2)], tmp_path)
    bp, ewc, si = read_csv(tmp_path / "table.csv")
    i = statistics.interval([0.7, 0.71, 0.74])
    for name in ("mean", "std", "low95", "high95"):
        assert float(bp[f"acc_{name}"]) == pytest.approx(getattr(i, name), rel=1e-12)
    assert float(bp["acc_min"]) == pytest.approx(0.7)
    assert float(bp["acc_max"]) == pytest.approx(0.74)
    assert bp["p_vs_bp"] == "" and bp["failed"] == "0" and bp["wall_s"] == "12.5"
    assert float(ewc["acc_mean"]) == pytest.approx(0.755)
    assert (ewc["failed"], ewc["pairs_vs_bp"], ewc["p_vs_bp"]) == ("1", "2", "0.0")
    # The first two tasks: last row .7, .8.
    assert float(si["acc_min"]) == pytest.approx(0.75)
    assert (si["tasks"], si["tasks_done"], si["p_vs_bp"]) == ("3", "2", "")
    seeds = read_csv(tmp_path / "seeds.csv")
    assert len(seeds) == 9
    assert [s["acc"] == "" for s in seeds] == [k == 5 for k in range(9)]
    assert seeds[5]["status"] == "failed: task 2, epoch 4"
    assert float(seeds[1]["bwt"]) == pytest.approx(-0.15)


def test_a_late_failure_is_not_averaged_and_a_missing_number_is_a_failure():
    late = make()._replace(status=["ok", "ok", "failed: task 3, epoch 9"])
    (row,) = scores.rows([late])
    assert row.intervals["acc"][6:] == (2, 1)
    missing = fail(make(), 0, "ok", 2)
    (row,) = scores.rows([missing])
    assert row.failed == [(0, "failed: its accuracy is missing")]


def test_class_incremental_chance_is_named():
    table = scores.rows([make(scenario="class", tasks=5)])
    assert any("1/T = 20.0 %" in note for note in tables.footnotes(table))


@pytest.mark.parametrize("tasks", [1, 2, 20])
def test_figures_of_any_size(tmp_path, tasks):
    names = list(METHODS)[: 14 if tasks == 2 else 2]
    found = [make(name, tasks=tasks) for name in names] + [make("si", tasks=3)]
    build(found, tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == TEXTS | IMAGES
    assert all(f.stat().st_size < 150_000 for f in tmp_path.glob("*.png"))


def test_a_report_of_very_many_tasks_is_soon_written(tmp_path):
    """Its parts do not grow as T²: one of 1,000 tasks took half an hour and 6 GB."""
    table = scores.rows([make(tasks=400, seeds=(0,))])
    pieces = list(csv_files.csv_results(table))
    assert sum(piece.count("\n") for piece in pieces) == 1 + 401 * 400
    assert max(map(len, pieces)) < 1_000_000
    with matplotlib.rc_context(style.STYLE):
        one, all_tasks = figures.matrix(table), figures.tasks(table)
    ax = one.axes[0]
    assert len(ax.images) == 2 and not ax.patches and len(ax.lines) < 5
    assert len(all_tasks.axes[0].lines) <= 2 * figures.CURVES + 2
    assert "tasks 1, 8, 15, …" in all_tasks.get_suptitle()
    build([make(tasks=400, seeds=(0,))], tmp_path)
    assert all(f.stat().st_size < 3_000_000 for f in tmp_path.glob("*.svg"))


def test_all_seeds_failed_and_one_seed(tmp_path):
    lost = make("ewc", seeds=(3,))
    lost = fail(lost, 3, "failed: task 1, epoch 1", 0)
    text = build([lost], tmp_path)
    assert "1/1" in text and "EWC, seed 3: failed: task 1, epoch 1" in text


def test_units_claimed_and_shared_are_drawn_of_layers_that_tell_both(tmp_path):
    taken = {name: np.full((3, 3), 0.5) for name in ("conv", "dense")}
    shared = {"dense": np.full((3, 3), 0.25), "other": np.full((3, 3), 0.25)}
    hat = make("hat", report={"taken": taken, "shared": shared})
    build([hat, make("gpm", report={"taken": taken})], tmp_path)
    drawn = {f.name for f in tmp_path.iterdir()}
    assert drawn == TEXTS | IMAGES | drawings("space", "capacity")
    rows = scores.rows([hat])
    assert space_figures.shared_layers(rows[0]) == ["dense"]
    (ax,) = space_figures.capacity(rows).axes
    assert ax.get_title().endswith(": dense")


def test_old_figures_of_space_are_removed(tmp_path):
    for name in drawings("space", "capacity"):
        (tmp_path / name).write_bytes(b"old")
    build([make()], tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == TEXTS | IMAGES


def test_every_accuracy_is_in_results_csv_in_long_form(tmp_path):
    results = [
        make("bp", seeds=(0, 4)),
        fail(make("ewc", tasks=2, seeds=(1,)), 1, "failed: task 2, epoch 1", 1),
        make("si", done=1, seeds=(0,)),
    ]
    build(results, tmp_path)
    lines = read_csv(tmp_path / "results.csv")
    # After 0 (untrained) to T tasks, on T tasks; an unfinished run has fewer lines.
    assert len(lines) == 2 * 4 * 3 + 3 * 2 + 2 * 3
    by_place = {
        tuple(line[k] for k in ("row", "seed", "after_task", "on_task")): line
        for line in lines
    }
    assert len(by_place) == len(lines)
    for (name, seed, after, on), line in by_place.items():
        result = next(r for r in results if r.row == name)
        k, i, j = result.seeds.index(int(seed)), int(after) - 1, int(on) - 1
        expected = result.baseline[k, j] if i < 0 else result.matrix[k, i, j]
        got = float(line["accuracy"]) if line["accuracy"] else np.nan
        np.testing.assert_array_equal(got, expected)
        assert METHODS[name].label in line["method"] and line["config"] == "digits"
    assert by_place["ewc", "1", "2", "1"]["accuracy"] == ""


def test_a_note_that_every_run_has_is_said_once(tmp_path):
    data = "folder:x: 1 file cannot be read (a/b.jpg), left out"
    both = [make("bp", notes=[data]), make("ewc", notes=[data, "rank 7"])]
    notes = tables.footnotes(scores.rows(both))
    assert notes == [data, "EWC: rank 7"]
    three = scores.rows([*both, make("si")])
    assert tables.footnotes(three)[0] == f"BP, EWC: {data}"


def test_figures_name_the_benchmark_and_svg_is_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        build([make("bp", config_name="pebbles")], tmp_path / name)
    for name in IMAGES:
        first, second = ((tmp_path / x / name).read_bytes() for x in "ab")
        assert first == second
        if name.endswith(".svg"):
            text = first.decode()
            assert text.count("pebbles, task-incremental") == 1 and "<svg" in text


def test_a_layer_has_one_colour_in_all_panels():
    few = {"dense": np.full((3, 3), 0.5), "head": np.full((3, 3), 0.25)}
    many = {"conv": np.full((3, 3), 0.75)} | few
    rows = scores.rows(
        [make("gpm", report={"taken": many}), make("owm", report={"taken": few})]
    )
    figure = space_figures.space(rows)
    colours = [
        {line.get_label(): tuple(line.get_color()) for line in ax.get_lines()}
        for ax in sorted(figure.axes, key=lambda ax: ax.get_title())  # GPM, OWM
    ]
    assert len({colours[0][name] for name in many}) == 3
    for name in few:
        assert colours[0][name] == colours[1][name]


def test_colours_are_distinct_and_do_not_depend_on_the_company():
    known = [method.colour for method in METHODS.values()]
    assert len(set(known) | set(style.SPARE)) == len(known) + len(style.SPARE)
    alone = style.colours(scores.rows([make("gpm")]))["gpm"]
    many = style.colours(scores.rows([make("mine"), make("gpm"), make("bp")]))
    assert alone == many["gpm"] and many["mine"] in style.SPARE
    others = style.colours(scores.rows([make("mine"), make("zzz:other")]))
    assert others["mine"] == many["mine"] != others["zzz:other"]


def test_methods_from_elsewhere_have_their_own_names_and_colours():
    paths = [f"package_{k}.methods:l2" for k in range(len(style.SPARE))]
    rows = scores.rows([make("bp"), make("joint"), make(paths[0])])
    assert [r.label for r in rows] == ["BP", "Joint", "l2"]
    rows = scores.rows([make(path) for path in paths])
    assert [r.label for r in rows] == paths
    assert len(set(style.colours(rows).values())) == len(paths)
    text = csv_files.csv_table(scores.rows([make("gpm"), make(paths[0])]))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["family"] for line in lines] == ["division", "elsewhere"]


def test_find_takes_runs_and_comparisons_and_each_once(tmp_path):
    write(tmp_path / "all" / "bp", make("bp"))
    write(tmp_path / "all" / "ewc", make("ewc"))
    write(tmp_path / "own", make("gpm"))
    pending = tmp_path / "all" / "si"
    pending.mkdir()
    (pending / "config.json").write_text("{}")
    (tmp_path / "all" / "config.json").write_text("{}")
    (tmp_path / "all" / "logs").mkdir()
    folders = [tmp_path / "all", tmp_path / "own", tmp_path / "all" / "bp"]
    found, notes = find(folders)
    assert [r.row for r in found] == ["bp", "ewc", "gpm"]
    assert len(notes) == 1 and str(pending) in notes[0]
    with pytest.raises(FileNotFoundError, match="no result.json yet"):
        find([pending])
    with pytest.raises(ValueError, match="at least one"):
        build([], tmp_path)


def test_narrow_terminals_get_two_whole_tables():
    table = scores.rows([make("bp"), make("derpp")])
    for width, times in ((200, 1), (80, 2)):
        stream = io.StringIO()
        console = Console(file=stream, width=width, force_terminal=True)
        tables.print_table(table, console=console)
        assert stream.getvalue().count("DER++") == times
        assert "…" not in stream.getvalue()
    stream = io.StringIO()
    tables.print_table(table, console=Console(file=stream, width=80))
    assert stream.getvalue() == tables.text_table(table)


def test_command(commands, tmp_path):
    write(tmp_path / "bp", make("bp"))
    status, out, err = commands(
        "experiments.report", tmp_path, f"--out={tmp_path / 'out'}"
    )
    assert status == 0, err
    assert (tmp_path / "out" / "table.txt").read_text() in out


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_a_wrong_folder_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="expected a run's folder") as error:
        report.main(["report", str(tmp_path / name)])
    assert f"{tmp_path / name}: " in str(error.value)


def test_small_things_keep_their_colours(tmp_path):
    """A figure of a thousand shades, with one small dot of a method's colour."""
    figure = Figure(figsize=(4, 3))
    ax = figure.subplots()
    ax.imshow(np.random.default_rng(0).normal(size=(300, 300)), cmap="viridis")
    dot = METHODS["ewc"].colour
    ax.plot(150, 150, "s", ms=3, color=dot, mew=0)
    style.save(figure, tmp_path / "shades.png")
    with Image.open(tmp_path / "shades.png") as image:
        assert image.mode == "P"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    wanted = np.round(255 * np.array(to_rgb(dot)))
    assert (pixels == wanted).all(1).sum() > 10


def test_a_choice_at_an_end_of_what_was_tried_is_told():
    def trial(chosen, **fields):
        return {"fields": {f"method.{k}": v for k, v in fields.items()}} | {
            "chosen": chosen
        }

    at_an_end = claim_page._at_an_end
    tried = [trial(False, a=a, b=b) for a in (1, 2, 3) for b in (0.1, 0.2)]
    assert at_an_end([*tried, trial(True, a=3, b=0.1)]) == [
        "a 3, the highest",
        "b 0.1, the lowest",
    ]
    inner = [trial(False, a=1), trial(True, a=2), trial(False, a=3)]
    assert at_an_end(inner) == []
    # A stage with one value has no ends.
    assert at_an_end([trial(True, a=1)]) == []


def test_effects_of_the_same_name_are_told_apart_by_their_stream():
    effect = {
        "name": "BP** − HAT",
        "effect": 1.0,
        "interval": [0.0, 2.0],
        "claimed": [0.0, None],
        "verdict": "held",
    }
    once = effect | {"name": "BP** − OWM"}
    questions = [
        {"name": f"rivals, {stream}", "effects": found}
        for stream, found in (("CIFAR", [effect]), ("MNIST", [effect, once]))
    ]
    (ax,) = figures_of_claims.intervals({"questions": questions}, "points").axes
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["BP** − HAT, CIFAR", "BP** − HAT, MNIST", "BP** − OWM"]
