"""The commands: their files, resuming after a kill, messages for wrong inputs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import (
    digits,
    split_cifar100,
)
from experiments import config as configs
from experiments import launch
from experiments.runs import arguments, machine, results
from experiments.runs import execute as runs
from experiments.runs.execute import execute
from experiments.runs.machine import UsageError
from jaxcl.training.problem import validate
from jaxcl.training.protocol import Interrupted

pytestmark = pytest.mark.usefixtures("shared_programs")

ROOT = Path(__file__).parent.parent
QUICK = ["--config.train.epochs=2", "--config.data.train_per_task=60"]


def command(*arguments, env=None, **options):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finished(*arguments, **options):
    process = command(*arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture
def quick():
    """A config of digits that runs in seconds."""

    def build(row="bp", **fields):
        config = digits.get_config(row)
        config.seeds = (0, 1)
        config.train.epochs = 2
        config.data.train_per_task = 60
        config.update_from_flattened_dict(fields)
        return config

    return build


def test_compare_leaves_table_figures_and_runs(tmp_path):
    code, out, err = finished(
        "experiments.compare",
        "--config=configs/digits.py",
        "--strategies=bp,ewc",
        "--config.seeds=(3,4)",
        f"--workdir={tmp_path}",
        *QUICK,
    )
    assert code == 0, err
    assert "EWC" in out and "paired t-test" in out
    for name in ("table.txt", "table.md", "table.csv", "seeds.csv"):
        assert (tmp_path / name).read_text()
    for name in ("bars.png", "tasks.png", "matrix.png"):
        assert (tmp_path / name).stat().st_size > 5000
    for row in ("bp", "ewc"):
        result = results.load(tmp_path / row)
        assert result.seeds == [3, 4] and result.tasks_done == 5
        lower = np.tril_indices(5)
        assert np.isfinite(result.matrix[:, *lower]).all()
        assert json.loads((tmp_path / row / "config.json").read_text())["row"] == row
        lines = (tmp_path / row / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 5 * (2 + 1)
    # Finished runs are not run again; the tables are made from the folders alone.
    (tmp_path / "table.md").unlink()
    code, out, err = finished("experiments.report", tmp_path)
    assert code == 0 and (tmp_path / "table.md").exists(), err


@pytest.mark.minutes
def test_sigkill_in_a_task_changes_nothing(tmp_path):
    """Killed twice, with a state saved every epoch; ends like an uninterrupted run."""

    def arguments(folder):
        return [
            "experiments.run",
            "--config=configs/digits.py:ewc",
            "--config.seeds=(0,1,2)",
            "--config.checkpoint_every=0.0",
            f"--workdir={tmp_path / folder}",
            "--config.train.epochs=6",
            "--config.data.train_per_task=100",
        ]

    killed = 0
    for until in (9, 20):  # lines of metrics: inside the second and the third task
        process = command(*arguments("broken"))
        log = tmp_path / "broken" / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and len(log.read_text().splitlines()) >= until:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.005)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert killed == 2
    assert results.load(tmp_path / "broken").tasks_done < 5
    for folder in ("broken", "whole"):
        code, _, err = finished(*arguments(folder))
        assert code == 0, err
    *_, err = finished(*arguments("whole"))
    assert "was finished before" in err and "goes on" not in err
    broken, whole = (results.load(tmp_path / f) for f in ("broken", "whole"))
    np.testing.assert_array_equal(broken.matrix, whole.matrix)
    np.testing.assert_array_equal(broken.baseline, whole.baseline)

    def epochs(folder):
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        read = [json.loads(line) for line in lines]
        return [{k: v for k, v in r.items() if k != "seconds"} for r in read]

    assert epochs("broken") == epochs("whole")


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    arguments = [
        "experiments.run",
        "--config=configs/digits.py:bp",
        f"--workdir={tmp_path}",
        "--config.train.epochs=100000",
    ]
    process = command(*arguments)
    log = tmp_path / "metrics.jsonl"
    while process.poll() is None and not log.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "arguments,what",
    [
        (["--config=configs/digits.py", "--config.train.epoch=3"], "epoch"),
        (["--config=configs/digits.py", "--config.train.epochs=many"], "many"),
        (
            ["--config=configs/digits.py", "--config.optimizer.lr=None"],
            "config.optimizer.lr must be a number, got None",
        ),
        (["--config=configs/digits.py:nosuch"], "'nosuch' is no row (bp, bp_star"),
        (["--config=configs/digits.py:ecw"], "did you mean 'ewc'?"),
        (["--config=configs/nosuch.py"], "configs/nosuch.py"),
        (["--config=configs/digits.py", "--nosuch=1"], "nosuch"),
        (["--config=configs/digits.py", "stray"], "'stray'"),
        (
            ["--config=configs/digits.py", "--config.data.dataset=digitz"],
            "'digitz'",
        ),
        (
            ["--config=configs/digits.py", "--config.data.scenario=both"],
            "task, domain, class, got 'both'",
        ),
        (
            ["--config=configs/digits.py", "--config.strategy=nosuch"],
            "unknown strategy 'nosuch'; known: agem",
        ),
        (
            ["--config=configs/digits.py", "--config.optimizer.name=sdg"],
            "unknown optimizer 'sdg'; known: sgd, adam, adamw",
        ),
        (
            ["--config=configs/digits.py", "--config.model.name=mpl"],
            "unknown model 'mpl'; known: mlp",
        ),
        (
            ["--config=configs/digits.py:ewc", "--config.method.strength=-1.0"],
            "strength must be at least 0, got -1.0",
        ),
        (["--config=configs/digits.py", "--workdir=/dev/null/x"], "/dev/null/x"),
    ],
)
def test_a_wrong_input_is_one_line(commands, tmp_path, arguments, what):
    if not any("workdir" in a for a in arguments):
        arguments = [*arguments, f"--workdir={tmp_path / 'w'}"]
    code, out, err = commands("experiments.run", *arguments)
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and what in lines[0], err
    assert "Traceback" not in err and not (tmp_path / "w").exists()


def test_an_optional_field_is_set_to_none(commands, tmp_path):
    code, _, err = commands(
        "experiments.run",
        "--config=configs/digits.py:bp_star",
        "--config.data.num_tasks=2",
        "--config.seeds=(0,)",
        "--config.train.epochs=1",
        "--config.train.patience=None",
        "--config.optimizer.clip=None",
        f"--workdir={tmp_path}",
    )
    assert code == 0, err
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["train"]["patience"] is None and config["optimizer"]["clip"] is None


def test_told_to_stop_when_all_is_done_nothing_else_begins(
    quick, tmp_path, monkeypatch
):
    """The signal comes between the last epoch and the run's end."""

    class Late(machine.StopOnSignal):
        asked_for = 0

        def __call__(self):
            self.asked_for += 1
            return self.asked_for > 3  # two epochs and the end of the first task

    monkeypatch.setattr(machine, "StopOnSignal", Late)
    config = quick(**{"data.num_tasks": 2, "train.epochs": 1})
    with pytest.raises(Interrupted):
        execute(config, tmp_path)
    assert runs.finished(config, tmp_path).tasks_done == 2


def test_another_configs_workdir_is_refused(quick, tmp_path):
    execute(quick(), tmp_path)
    with pytest.raises(UsageError, match="optimizer.lr is 0.05 there and 0.5 now"):
        execute(quick(**{"optimizer.lr": 0.5}), tmp_path)
    # How often a run saves does not count as a difference.
    again = execute(quick(checkpoint_every=1.0), tmp_path)
    assert again.tasks_done == 5


def test_compare_checks_every_row_first(commands, tmp_path):
    code, _, err = commands(
        "experiments.compare",
        "--config=configs/digits.py",
        "--strategies=bp,nosuch",
        f"--workdir={tmp_path / 'w'}",
    )
    assert code == 2 and "'nosuch'" in err and not (tmp_path / "w").exists()


@pytest.mark.minutes
@pytest.mark.parametrize(
    "row", ["bp", "bp_star", "bp_star_star", "ewc", "gpm", "owm", "hat"]
)
def test_split_cifar100_fast_runs_on_the_real_data(tfds_dir, tmp_path, row):
    config = split_cifar100.get_config(f"{row},fast")
    config.seeds = (0, 1)
    result = execute(config, tmp_path)
    assert list(result.status) == ["ok", "ok"] and result.tasks_done == 3
    # 475 images in batches of 64, two epochs, three tasks, two seeds: too few steps to
    # learn CIFAR, enough to see that everything runs and that the loss falls.
    assert np.isfinite(result.matrix).all() and result.steps == 8 * 2 * 3 * 2
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().split("\n")[:2]
    ]
    first, second = (np.mean(line["loss"]) for line in lines)
    assert second < first


def test_problem_follows_its_config(quick):
    problem = configs.problem(quick("ewc", **{"train.max_steps": 7}))
    assert problem.plan.max_steps == 7 and problem.plan.lr == 0.05
    assert problem.stream.num_tasks == 5 and problem.seeds == (0, 1)
    validate(problem)


def test_an_optimizer_by_import_path(quick, tmp_path):
    config = quick(**{"optimizer.name": "optax:lion", "optimizer.lr": 1e-3})
    assert execute(config, tmp_path).tasks_done == 5
    with pytest.raises(ValueError, match="'optax:lino' cannot be imported"):
        configs.problem(quick(**{"optimizer.name": "optax:lino"}))


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_problem_is_built_and_checked_once_per_run(tmp_path, command):
    """Counted in the command itself, flags and all."""
    counting = f"""
import atexit, collections, runpy, sys
from jaxcl.training import problem, protocol
from jaxcl.data import sources
from experiments import config
from experiments.runs import execute
seen = collections.Counter()
def counted(owner, name):
    inner = getattr(owner, name)
    def outer(*args, **kwargs):
        seen[name] += 1
        return inner(*args, **kwargs)
    return outer
validate = counted(problem, "validate")
problem.validate = protocol.validate = execute.validate = validate
config.problem = counted(config, "problem")
sources.load = counted(sources, "load")
atexit.register(lambda: print(dict(seen)))
runpy.run_module("experiments.{command}", run_name="__main__", alter_sys=True)
"""
    rows = ["--strategies=bp,bp_star"] if command == "compare" else []
    process = subprocess.run(
        [sys.executable, "-c", counting, "--config=configs/digits.py", *rows]
        + [f"--workdir={tmp_path}", "--config.data.num_tasks=2", "--config.seeds=(0,)"]
        + ["--config.train.epochs=1", "--config.data.train_per_task=30"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    runs = 2 if command == "compare" else 1
    expected = {"load": runs, "problem": runs, "validate": runs}
    assert eval(process.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize(
    "field, wrap",
    [
        ("weight_decay", lambda inner: (optax.add_decayed_weights(0.5), inner)),
        ("clip", lambda inner: (optax.clip_by_global_norm(0.5), inner)),
    ],
)
def test_an_optimizer_by_import_path_is_clipped_and_decayed(quick, field, wrap):
    settings = {"optimizer.name": "optax:sgd", "optimizer.lr": 0.1}
    given = configs.problem(quick(**settings, **{f"optimizer.{field}": 0.5}))
    wanted = optax.chain(*wrap(optax.sgd(0.1)))
    params, grads = {"w": jnp.array([3.0, -1.0])}, {"w": jnp.array([2.0, 1.0])}

    def step(optimizer):
        return optimizer.update(grads, optimizer.init(params), params)[0]["w"]

    np.testing.assert_array_equal(step(given.optimizer), step(wanted))
    assert not np.allclose(step(given.optimizer), step(optax.sgd(0.1)))


def test_an_optimizer_by_import_path_takes_no_momentum(quick):
    settings = {"optimizer.name": "optax:sgd", "optimizer.momentum": 0.9}
    with pytest.raises(ValueError, match="momentum is for sgd, not optax:sgd"):
        configs.problem(quick(**settings))


@pytest.mark.parametrize(
    "given, config",
    [
        (["--config=digits"], "{0}/digits.py"),
        (["--config", "digits:ewc"], "{0}/digits.py:ewc"),
        (["--config=split_mnist:online,er"], "{0}/split_mnist.py:online,er"),
        (["--config=here/digits.py:gpm"], "here/digits.py:gpm"),
        (["--config.strategy=ewc", "--config=digits"], "{0}/digits.py:ewc"),
        (["--config=digits:hat", "--config.strategy=ewc"], "{0}/digits.py:ewc"),
        # A row that already is of this strategy stays as it is.
        (
            ["--config=digits:joint", "--config.strategy=finetune"],
            "{0}/digits.py:joint",
        ),
        (
            ["--config=split_mnist:ewc,online", "--config.strategy", "optax:sgd"],
            "{0}/split_mnist.py:optax:sgd,online",
        ),
    ],
)
def test_a_command_line_is_written_out(given, config):
    others = ["--workdir=x", "--config.seeds=(0,)"]
    written = arguments.written_out(["jaxcl run", *given, *others])
    expected = config.format(arguments.CONFIGS)
    assert written == ["jaxcl run", f"--config={expected}", *others]


@pytest.mark.parametrize(
    "given, name",
    [
        (["--config.data.dataset=folder:/a/my photos.v2/"], "my_photos_v2"),
        (["--config.data.dataset", "npz:../mine.npz"], "mine"),
        (["--config.data.dataset=tfds:mnist"], "mnist"),
        (["--config.data.dataset=my.data:digits"], "my_data_digits"),
        (["--config.data.dataset=folder:/a/Müll – Fotos"], "Müll_Fotos"),
        (["--config.data.dataset=folder:."], "own"),
        (["--config.data.dataset=npz:a.npz", "--config.name=b"], None),
        (["--config.data.dataset=mnist"], None),
    ],
)
def test_a_run_on_own_data_bears_their_name(given, name):
    line = ["jaxcl run", "--config=digits:ewc", *given]
    written = arguments.written_out(line)
    added = [word for word in written if word not in line][1:]
    assert added == ([f"--config.name={name}"] if name else [])


def test_a_config_that_is_not_shipped():
    with pytest.raises(
        ValueError, match="no config 'digitz'; known: any_model, digits, mnist_claims,"
    ):
        arguments.written_out(["jaxcl run", "--config=digitz:ewc"])


def test_ctrl_c_before_there_is_a_run(monkeypatch, capsys):
    def main(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "prepare_jax", lambda: None)
    assert launch._guarded(main)([]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on\n"
