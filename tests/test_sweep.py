"""The sweep: its grid, its choice on validation data, streams cut to some tasks."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.reporting import sweeps
from experiments.runs import grid as grids
from experiments.runs.log import of_seeds
from experiments.runs.results import Result
from experiments.runs.together import joined, together
from jaxcl import benchmark
from jaxcl.data.scenarios import make_stream
from jaxcl.data.sources import load
from jaxcl.training.protocol import TaskDone


def make_config(row: str) -> ConfigDict:
    config = benchmark.base("small")
    config.model.widths = (8,)
    config.train.epochs = 1
    return benchmark.finish(config, row, {"ewc": {"strength": 1.0}})


def points(grid):
    return grids.points(grid, [make_config(row) for row in grid])


def make_result(row, accuracies):
    matrix = np.array([np.full((2, 2), a) for a in accuracies])
    return Result(
        config_name="small",
        row=row,
        scenario="task",
        seeds=list(range(len(accuracies))),
        status=["ok"] * len(accuracies),
        matrix=matrix,
        baseline=np.zeros((len(accuracies), 2)),
        task_names=["a", "b"],
        tasks_done=2,
        steps=1,
        wall_s=1.0,
        device="",
        versions={},
    )


def test_rates_over_a_floor_are_not_scaled_from_one_another():
    """The floor was scaled with the first rate: a rate's result hung on its place."""
    configs = [make_config("bp") for _ in range(2)]
    for config, rate in zip(configs, (0.02, 0.2), strict=True):
        config.optimizer.update(lr=rate, decay_per_task=0.1)
    assert together(configs) == [[0, 1]]
    for config in configs:
        config.optimizer.lr_floor = 0.01
    assert together(configs) == [[0], [1]]


def test_points_are_every_combination_on_validation_data():
    grid = {
        "ewc": {"method.strength": (1.0, 100.0), "optimizer.lr": (0.1, 0.01)},
        "bp": {"data.tasks": ((0, 3),)},
    }
    found = points(grid)
    assert [p.name for p in found] == [
        "method.strength=1,optimizer.lr=0.1",
        "method.strength=1,optimizer.lr=0.01",
        "method.strength=100,optimizer.lr=0.1",
        "method.strength=100,optimizer.lr=0.01",
        "only",
    ]
    assert [p.config.row for p in found] == ["ewc"] * 4 + ["bp"]
    assert all(p.config.measure == "valid" for p in found)
    assert found[3].config.method.strength == 100.0
    assert found[3].config.optimizer.lr == 0.01
    assert found[4].config.data.tasks == (0, 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"optimizer.nothing": (1.0,)}, "ewc: no field optimizer.nothing"),
        ({"method.strenght": (1.0,)}, "ewc: no field method.strenght"),
        ({"method.strength": 1.0}, "method.strength needs a list of values, got 1.0"),
        ({"method.strength": ()}, r"needs a list of values, got \(\)"),
    ],
)
def test_mistakes_in_a_grid(fields, message):
    with pytest.raises(ValueError, match=message):
        points({"ewc": fields})


def test_the_best_has_no_failed_seed_before_it_has_the_most_accuracy():
    strengths = {"method.strength": (1.0, 2.0, 3.0, 4.0)}
    found = points({"ewc": strengths})
    found += points({"bp": {}})
    accuracies = [(0.5, 0.6), (0.9, np.nan), (0.7, 0.5), (np.nan, np.nan), (0.1, 0.2)]
    results = [
        make_result(p.config.row, a) for p, a in zip(found, accuracies, strict=True)
    ]
    scores = sweeps.rank([p.name for p in found], results)
    assert [s.best for s in scores] == [False, False, True, False, True]
    text = sweeps.text_table(scores)
    assert "method.strength=3 *" in text and "60.00 ± 14.14" in text and "1/2" in text
    lines = sweeps.csv_table(scores).splitlines()
    assert len(lines) == 6 and lines[3].startswith("ewc,method.strength=3,0.6,")
    assert lines[3].endswith(",2,0,1") and lines[2].endswith(",2,1,0")


def test_points_that_differ_in_what_can_be_traced_go_together():
    grid = {
        "ewc": {
            "method.strength": (1.0, 100.0),
            "method.samples": (8, 16),
            "optimizer.lr": (0.1, 0.2),
        },
        "bp": {"optimizer.lr": (0.1, 0.3), "optimizer.name": ("sgd", "adam")},
    }
    found = [p.config for p in points(grid)]
    assert together(found) == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 10], [9, 11]]
    problem = joined([found[i] for i in (0, 1, 4)])
    assert problem.seeds == (0, 1, 2, 3, 4) * 3
    assert problem.settings == {"strength": (1.0,) * 10 + (100.0,) * 5}
    np.testing.assert_allclose(problem.rates, [1.0] * 5 + [2.0] * 5 + [1.0] * 5)


def test_settings_that_must_be_numbers_are_trained_apart_their_rates_together(
    tmp_path,
):
    grid = {"gpm": {"method.threshold": (0.9, 0.95), "optimizer.lr": (0.1, 0.2)}}
    config = benchmark.base("small")
    config.model.widths = (8,)
    config.train.epochs = 1
    config = benchmark.finish(config, "gpm", {"gpm": {"threshold": 0.9}})
    sweep = grids.prepare_points(grids.points(grid, [config]), tmp_path)
    assert [numbers for numbers, _ in sweep.left] == [[0, 1], [2, 3]]
    for _, job in sweep.left:
        assert job.problem.rates and not job.problem.settings


def test_each_part_gets_its_seeds_of_an_event_in_the_strategys_order():
    values = np.arange(12.0).reshape(6, 2)
    layers = {name: values for name in ("hidden_0", "hidden_10", "hidden_9", "head")}
    whole = TaskDone(
        task=0,
        accuracy=np.arange(24.0).reshape(6, 2, 2),
        baseline=values,
        status=tuple("abcdef"),
        steps=np.arange(6),
        seconds=9.0,
        report={"taken": layers, "at_clamp": layers},
    )
    part = of_seeds(whole, slice(2, 4), 1 / 3)
    assert part.seconds == 3.0 and part.status == ("c", "d")
    assert part.accuracy.tolist() == [[[8, 9], [10, 11]], [[12, 13], [14, 15]]]
    assert list(part.report) == ["taken", "at_clamp"]
    for of_layer in part.report.values():
        assert list(of_layer) == list(layers)
        assert all(v.tolist() == [[4, 5], [6, 7]] for v in of_layer.values())


def digits_stream(**options):
    settings = dict(kind="split", scenario="task", num_tasks=5, valid_fraction=0.2)
    return make_stream(load("digits"), (0, 1), **(settings | options))


def rows_of(stream, part, task, seed):
    """Positions of a task's examples in the base arrays, and the task's two maps."""
    index, offset = getattr(stream.per_seed, part)
    rows = index[seed, offset[seed, task] : offset[seed, task + 1]]
    return rows, stream.per_seed.label[seed, task], stream.per_seed.pixel[seed, task]


@pytest.mark.parametrize("kind", ["split", "permuted"])
def test_between_gives_the_same_tasks(kind):
    options = dict(scenario="domain", train_per_task=60) if kind == "permuted" else {}
    stream = digits_stream(kind=kind, **options)
    part = stream.between(2, 4)
    assert part.num_tasks == 2 and part.task_names == stream.task_names[2:4]
    for split in ("train", "valid", "test"):
        for seed in (0, 1):
            for task in (0, 1):
                got = rows_of(part, split, task, seed)
                want = rows_of(stream, split, task + 2, seed)
                for a, b in zip(got, want, strict=True):
                    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(part.logit_mask, stream.logit_mask[2:4])
    whole = stream.between(0, 5)
    np.testing.assert_array_equal(
        whole.per_seed.train.index, stream.per_seed.train.index
    )


def test_between_leaves_the_classes_before_out_of_play():
    part = digits_stream(scenario="class").between(1, 3)
    assert np.flatnonzero(part.logit_mask[0]).tolist() == [2, 3]
    assert np.flatnonzero(part.logit_mask[1]).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("first, stop", [(-1, 2), (2, 2), (0, 6), (3, 1)])
def test_between_refuses_tasks_that_are_not_there(first, stop):
    with pytest.raises(ValueError, match=rf"stop <= 5, got \({first}, {stop}\)"):
        digits_stream().between(first, stop)


def test_the_command_runs_a_grid_and_goes_on_where_it_was(commands, tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(
        "from jaxcl.benchmark import base, finish, variant\n"
        "def get_config(argument=''):\n"
        "    row, _ = variant(argument, ())\n"
        "    config = base('tiny')\n"
        "    config.seeds = (0,)\n"
        "    config.data.update(num_tasks=2, train_per_task=40, test_per_task=20)\n"
        "    config.model.update(name='mlp', widths=(8,))\n"
        "    config.train.update(epochs=1, batch_size=8)\n"
        "    return finish(config, row, {'ewc': {'strength': 1.0, 'samples': 8}})\n"
        "def sweep():\n"
        "    return {'bp': {'optimizer.lr': (0.1, 1e-6)},\n"
        "            'ewc': {'method.strength': (2.0, 30.0)}}\n"
    )

    def run(*more):
        flags = f"--config={file}", f"--workdir={tmp_path / 'out'}"
        return commands("experiments.sweep", *flags, *more)

    code, out, err = run("--strategies=bp")
    assert code == 0, err
    assert "optimizer.lr=0.1 *" in out and "EWC" not in out
    folder = tmp_path / "out" / "bp" / "optimizer.lr=1e-06"
    config = json.loads((folder / "config.json").read_text())
    assert config["measure"] == "valid"
    before = json.loads((folder / "result.json").read_text())

    def epochs():
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [line for line in lines if "epoch" in json.loads(line)]

    epochs_before = epochs()
    code, out, err = run()
    assert code == 0, err
    assert "EWC" in out
    assert epochs() == epochs_before
    after = json.loads((folder / "result.json").read_text())
    assert after["matrix"] == before["matrix"]
    assert len((tmp_path / "out" / "sweep.csv").read_text().splitlines()) == 5


def test_a_grid_of_one_row_alone(command, tmp_path):
    status, _, errors = command(
        *["sweep", "--config=digits", "--strategies=ewc,hat", f"--workdir={tmp_path}"],
        *["--grid=optimizer.lr=0.01,0.02", "--grid=ewc:method.strength=1,100"],
        *["--grid=hat:optimizer.lr=0.05", "--grid=hat:method.strength=0.1,0.5"],
        *["--config.train.epochs=1", "--config.data.train_per_task=40"],
        *["--config.data.num_tasks=2", "--config.seeds=(0,)"],
    )
    assert status == 0, errors
    found = {
        (p.parent.parent.name, p.parent.name) for p in tmp_path.rglob("result.json")
    }
    ewc = {
        f"optimizer.lr={r},method.strength={s}" for r in (0.01, 0.02) for s in (1, 100)
    }
    hat = {f"method.strength={s}" for s in (0.1, 0.5)}
    assert found == {("ewc", name) for name in ewc} | {("hat", name) for name in hat}
    for file in tmp_path.glob("hat/*/config.json"):  # its own values, not all rows'
        assert json.loads(file.read_text())["optimizer"]["lr"] == 0.05


def test_a_row_without_a_grid_is_refused():
    with pytest.raises(ValueError, match="no row 'hat'; it has bp, ewc"):
        grids.row_grid({"bp": {}, "ewc": {}}, "hat")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("method.strength=1,10,100", {"method.strength": (1, 10, 100)}),
        ("method.strength=0.5", {"method.strength": (0.5,)}),
        ("model.widths=(8,),(8, 8)", {"model.widths": ((8,), (8, 8))}),
        ("optimizer.name=sgd, adam", {"optimizer.name": ("sgd", "adam")}),
        ("train.patience=None,5", {"train.patience": (None, 5)}),
        ("{'a.b': (1, 2), 'c': (3,)}", {"a.b": (1, 2), "c": (3,)}),
    ],
)
def test_a_grid_in_words(text, expected):
    assert grids.parsed(text) == expected


@pytest.mark.parametrize("text", ["method.strength", "=1,2", "a=", "{1", "{1, 2}"])
def test_a_grid_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="--grid must be FIELD=VALUE,VALUE"):
        grids.parsed(text)


def test_whole_numbers_of_a_grid_are_traced_as_a_setting_with_fractions_is():
    grid = {
        "ewc": grids.parsed("method.strength=1,10") | grids.parsed("optimizer.lr=1")
    }
    found = points(grid)
    assert [p.name for p in found] == ["method.strength=1", "method.strength=10"]
    assert together([p.config for p in found]) == [[0, 1]]
    with pytest.raises(ValueError, match="train.batch_size must be int, got .many."):
        points({"ewc": grids.parsed("train.batch_size=8,many")})
