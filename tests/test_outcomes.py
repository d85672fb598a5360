"""Unusual cases that are no wrong input: each has a defined outcome."""

import csv
import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from experiments import launch
from experiments.reporting import build, csv_files, feature_scores, sweeps
from experiments.runs import arrays, results
from experiments.runs.execute import execute
from experiments.runs.progress import Display
from jaxcl import checks, schema
from jaxcl.data import cache, scenarios, sources
from jaxcl.data.cache import DataError
from jaxcl.fields import FIELDS
from jaxcl.nn.models import MLP
from jaxcl.strategies import ewc, make, owm
from jaxcl.testing import small_problem, small_source
from jaxcl.training import room
from jaxcl.training.plan import Plan, validate_plan
from jaxcl.training.problem import init_of, setup_of
from jaxcl.training.protocol import TaskDone
from tests.in_process import RESULT, ROOT, refused

SMALL = [
    *("--config.data.num_tasks=2", "--config.train.epochs=1", "--config.seeds=(0,1)"),
    "--config.data.train_per_task=40",
]


def result_of(**fields):
    return results.check(results.Result(**(RESULT | fields)), "here")


def test_help_tells_every_field(command):
    status, out, _ = command("run", "--help")
    assert status == 0
    flat = " ".join(out.split())
    for name, field in FIELDS.items():
        allowed = f"({schema.words(field.kind)}; default {field.default!r})"
        told = f"--config.{name}: {field.comment} {allowed}"
        assert field.comment and " ".join(told.split()) in flat, name


def test_help_tells_the_settings_of_the_named_method_and_model(command):
    status, out, _ = command("run", "--help", "--config=digits:ewc")
    assert status == 0
    assert "--config.method.samples: examples per task for the Fisher (" in out
    assert re.search(r"method.strength: λ ≥ 0.*\(a number.*default [\d.]+\)", out)
    assert "--config.model.widths: of the hidden layers; may be empty (" in out
    one = ["--config=digits", "--config.strategy=hat", "--config.model.name=resnet18"]
    status, out, _ = command("run", *one, "--help")
    assert status == 0 and "--config.method.s_max: " in out
    assert "config.model.widths: " not in out and "--config.model.norm: " in out
    status, _, err = command("run", "--help", "--config=gone.py")
    assert (status, err.count("\n")) == (2, 1) and "gone.py" in err


def test_a_factory_with_two_stars_is_told_to_write_its_settings_out(
    command, tmp_path, monkeypatch
):
    (tmp_path / "starred.py").write_text("def kwargs(setup, **kw):\n    pass\n")
    one = ["--config=digits", "--config.strategy=starred:kwargs"]
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err = command("run", *one, "--config.method.strength=3")
    assert (status, err.count("\n")) == (2, 1)
    assert "starred:kwargs takes **kw: write its settings out" in err


def test_a_run_does_not_write_into_a_comparisons_folder(command, tmp_path):
    """It would write over the tables, and lock the comparison out of its folder."""
    shared = ["--config=digits", *SMALL, f"--workdir={tmp_path}"]
    assert command("compare", *shared, "--strategies=bp")[0] == 0
    table = (tmp_path / "table.txt").read_bytes()
    status, _, err = command("run", *shared)
    assert (status, err.count("\n")) == (2, 1)
    assert "is no run's folder, but these in it are: bp" in err
    assert (tmp_path / "table.txt").read_bytes() == table
    assert command("compare", *shared, "--strategies=bp")[0] == 0


def test_a_finished_run_says_that_it_writes_to_no_other_place(command, tmp_path):
    arguments = ["--config=digits", *SMALL, f"--workdir={tmp_path}"]
    assert command("run", *arguments)[0] == 0
    with pytest.warns(UserWarning, match="writes nothing to tensorboard; another"):
        assert command("run", *arguments, "--config.write_to=tensorboard")[0] == 0


def test_a_page_is_of_no_other_folders(command, tmp_path):
    status, _, err = command("report", str(tmp_path), f"--page={tmp_path}")
    assert status == 2 and "--page writes the page of one folder" in err
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    "field, value", [("feature_layers", "hidden_9"), ("feature_examples", 50)]
)
def test_fields_of_features_that_none_are_asked_for(field, value, tmp_path):
    config = digits.get_config("bp")
    config[field] = value
    with pytest.raises(ValueError, match=f"config.{field} is for config.features"):
        execute(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_npz_that_is_none_or_holds_objects(tmp_path):
    x, y = np.zeros((6, 4), np.uint8), np.array(["a", "b"] * 3)
    np.save(tmp_path / "one.npy", x)
    with pytest.raises(DataError, match="it is no .npz; see np.savez"):
        sources.load(f"npz:{tmp_path / 'one.npy'}")
    np.savez(tmp_path / "two.npz", x_train=x, y_train=y.astype(object))
    with pytest.raises(DataError, match=r"labels that are text: y.astype\(str\)"):
        sources.load(f"npz:{tmp_path / 'two.npz'}")


def test_a_run_whose_seeds_all_failed(command, tmp_path):
    diverges = "--config.optimizer.lr=1e30"
    arguments = ["--config=digits", *SMALL, diverges, f"--workdir={tmp_path}"]
    status, out, err = command("run", *arguments)
    assert status == 1
    assert err.splitlines()[-1].startswith(
        "error: digits/bp: every seed failed (failed"
    )
    assert "accuracy on tasks so far" not in err and "2 of 2 seeds failed" in err
    # A finished run reports the same again.
    assert command("run", *arguments)[0] == 1


def test_progress_is_of_healthy_seeds(capsys):
    accuracy = np.array([[[0.9]], [[0.1]]])
    event = TaskDone(
        0, accuracy, accuracy[0], ("ok", "failed: task 1, epoch 1"), 1, 1, {}
    )
    Display("x", 1, lambda task: 1, quiet=False).show(event)
    assert "far 90.00%, 1 of 2 seeds failed" in capsys.readouterr().err


def test_one_class_per_task_is_a_warning():
    def stream(scenario, **cut):
        return scenarios.make_stream(
            small_source(), (0,), kind="split", scenario=scenario, **cut
        )

    cut = {"num_tasks": 3, "classes_per_task": 1}
    with pytest.warns(UserWarning, match="every task: one class.* 100 %"):
        stream("task", **cut)
    # Left over: six classes in four tasks are 2, 2, 1, 1.
    cut = {"num_tasks": 4, "task_classes": ((0, 1), (2, 3), (4,), (5,))}
    with pytest.warns(UserWarning, match="tasks 3, 4: one class.* 100 %"):
        assert any("tasks 3, 4" in note for note in stream("task", **cut).notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream("class", **cut)


def test_a_healthy_run_makes_no_nan(tmp_path):
    config = digits.get_config("bp")
    config.seeds, config.train.epochs, config.data.num_tasks = (0, 1), 1, 2
    config.data.train_per_task = 40
    config.data.valid_fraction = 0.0
    config.features = "rank,conflict"
    with jax.debug_nans(True):
        assert execute(config, tmp_path).status == ["ok", "ok"]


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "No space left", "table.txt"),
        MemoryError("no room"),
    ],
)
def test_a_report_that_is_broken_off(command, tmp_path, monkeypatch, error):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))

    def broken(*_):
        raise error

    monkeypatch.setattr(build.figures, "write", broken)
    status, out, err = command("report", str(tmp_path))
    if isinstance(error, KeyboardInterrupt):
        assert (status, err) == (130, "stopped; the same command goes on\n")
    else:
        refused((status, out, err), error.args[1 if len(error.args) > 1 else 0])


def test_a_report_on_a_full_disk_names_the_file(command, tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))

    def full(*_):  # as a write, which names no file
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    done = command("report", str(tmp_path), f"--out={tmp_path / 'y'}")
    told = "table.txt: No space left on device; free the disk and run the same command"
    refused(done, f"{tmp_path / 'y' / told}")
    assert not list((tmp_path / "y").iterdir())


def test_a_report_into_a_closed_folder_says_what_to_do(command, tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))

    def closed(a, b):
        raise PermissionError(errno.EACCES, "Permission denied", str(a), None, str(b))

    monkeypatch.setattr("os.replace", closed)
    done = command("report", str(tmp_path), f"--out={tmp_path / 'y'}")
    told = "table.txt: Permission denied; change that or name another folder"
    refused(done, f"error: {tmp_path / 'y' / told}")


@pytest.mark.parametrize("after", [0.15, 0.6])
def test_ctrl_c_while_modules_are_imported(tmp_path, after):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "experiments.run", "--config=digits"]
        + [f"--workdir={tmp_path / 'w'}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    seen = []
    for line in process.stderr:  # once jaxcl's first module is there
        seen.append(line)
        if b"jaxcl._interrupts" in line:
            break
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[1].splitlines()
    own = [line for line in rest if not line.startswith(b"import time:")]
    assert process.returncode == 130 and own == [b"stopped; the same command goes on"]
    assert not (tmp_path / "w").exists()


SIGNALLED = """
import gc, os, signal
import numpy as np

def data(number):
    print("loading", flush=True)
    os.kill(os.getpid(), number)
    x = np.random.default_rng(0).random((40, 6))
    return x, np.arange(40) % 4, x, np.arange(40) % 4

def swallowed(number):
    def callback(phase, info):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), number)
        len("the handler runs before this line ends")

    gc.callbacks.append(callback)
    gc.collect()
    return data(0)

def int_lost(): return swallowed(signal.SIGINT)
def term_lost(): return swallowed(signal.SIGTERM)
def term(): return data(signal.SIGTERM)
def hup(): return data(signal.SIGHUP)
"""


@pytest.fixture
def heeded():
    """A command started here heeds every signal; the tests may be under nohup."""
    old = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGHUP)}
    for number, handler in old.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("what", ["int_lost", "term_lost", "term", "hup"])
def test_a_signal_before_training(tmp_path, what, heeded):
    """Python swallows what a callback of its garbage collector raises."""
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", "--config=digits"]
        + ["--strategies=bp,ewc", f"--config.data.dataset=signalled:{what}"]
        + ["--config.data.num_tasks=2", "--config.train.epochs=1"]
        + [f"--workdir={tmp_path / 'w'}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
    )
    told = done.stderr.splitlines()
    assert done.returncode == 130, told
    assert told[-1] == "stopped; the same command goes on"
    # One data set is loaded, not one for each row; nothing is trained or written.
    assert done.stdout == "loading\n" and not list(tmp_path.glob("w/**/*.json*"))


@pytest.mark.parametrize("home", ["/dev/null", "/proc/1/nosuch"])
def test_a_home_that_cannot_be_read(tmp_path, home):
    hidden = ("JAXCL_CACHE", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    kept = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", "--config=digits"]
        + [f"--workdir={tmp_path / 'w'}"],
        cwd=ROOT,
        env=kept
        | {"HOME": home, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    refused((done.returncode, done.stdout, done.stderr), home, "JAXCL_CACHE")
    assert not (tmp_path / "w").exists()


def test_no_home(monkeypatch):
    def none(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    monkeypatch.delenv("JAXCL_CACHE", raising=False)
    with pytest.raises(DataError, match="no home folder .* set JAXCL_CACHE"):
        cache.cache_root()


SETUP = None


def _setup():
    global SETUP
    SETUP = SETUP or setup_of(small_problem(lambda setup: make("finetune", setup, {})))
    return SETUP


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: ewc(_setup(), strength=float("nan")), "ewc: strength must be finite"),
        (lambda: ewc(_setup(), strength="1"), "strength must be a number, got '1'"),
        (
            lambda: ewc(_setup(), strength=1.0, samples=2.5),
            "samples must be an integer",
        ),
        (lambda: ewc(_setup(), strength=1.0, online=1), "online must be True or False"),
        (lambda: owm(_setup(), alpha=(1.0, -1.0)), "alpha must be greater than 0"),
        (lambda: MLP((10,), 10, dropout=2.0), r"MLP: dropout must lie in \[0, 1\)"),
        (lambda: MLP((10, -1), 10), "MLP: widths must be at least 1"),
        (lambda: MLP((10,), 10, norm="batc"), "MLP: norm must be one of none, batch"),
        (lambda: validate_plan(Plan(1, 0), has_validation=True), "batch_size must be"),
        (
            lambda: validate_plan(Plan(1, 1, lr_min=float("nan")), has_validation=True),
            "lr_min must be finite",
        ),
        (lambda: _stream(num_tasks=0), "num_tasks must be at least 1, got 0"),
        (
            lambda: _stream(kind="cut"),
            "kind must be one of split, permuted, rotated, got",
        ),
        (lambda: _stream(seeds=()), "seeds must not be empty"),
        (lambda: _stream(mean=(0.5,) * 2), "mean must have a value for each"),
        (lambda: _stream(labels=-1), "labels must lie in"),
        (lambda: _stream(labels=99), "labels must lie in"),
        (lambda: _stream(more=1), "as many train labels as images"),
        (lambda: _stream(nan=True), "images must be finite"),
        (
            lambda: _stream(kind="permuted", num_tasks=2_000_000_000),
            "2000000000 tasks need at least .* GB",
        ),
    ],
)
def test_public_functions_raise_the_same(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_steps_activations_are_refused_before_they_are_allocated(monkeypatch):
    images = 10_000
    problem = small_problem(
        model=lambda outputs: MLP((1000, 500), outputs), plan={"batch_size": images}
    )
    pixels = math.prod(problem.stream.input_shape)
    net, state = jax.eval_shape(init_of(problem), jax.random.key(0))
    setup = setup_of(problem)
    needed = 2 * images * (pixels + 1000 + 500) * 4  # two seeds; each layer's input
    monkeypatch.setattr(checks, "_memory", lambda: needed)
    room.require_activations_fit(setup, net, state, 2)
    monkeypatch.setattr(checks, "_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match="of 10000 images need at least .* GB"):
        room.require_activations_fit(setup, net, state, 2)


def _stream(labels=None, more=0, nan=False, seeds=(0,), **changed):
    source = small_source()
    if labels is not None:
        source = source._replace(train_y=np.full_like(source.train_y, labels))
    if more:
        source = source._replace(train_y=np.append(source.train_y, 0))
    if nan:
        source = source._replace(train_x=np.full(source.train_x.shape, np.nan))
    given = {"kind": "split", "scenario": "task", "num_tasks": 2}
    return scenarios.make_stream(source, seeds, **(given | changed))


def test_a_traced_setting_passes():
    @jax.jit
    def build(strength):
        ewc(_setup(), strength=strength)
        return strength

    assert build(-1.0) == -1.0


NASTY = ("=cmd()", "@x", "+1", "-1", "a\x1b[31mb", "$x$", "[red]y", "|p|<b>")


def test_text_that_a_spreadsheet_would_run_is_quoted():
    lines = [[name, -0.5, float("nan"), 3] for name in NASTY[:4]]
    text = csv_files.write_csv(("name", "x", "y", "z"), lines)
    read = list(csv.reader(io.StringIO(text)))[1:]
    assert [row[0] for row in read] == [f"'{name}" for name in NASTY[:4]]
    assert all(row[1:] == ["-0.5", "", "3"] for row in read)
    assert feature_scores.csv_table([]).startswith("method,row,layer")
    result = result_of(config_name="digits")
    assert "\n'=cmd" not in sweeps.csv_table(sweeps.rank(["=cmd()"], [result]))
    assert "'=cmd()" in sweeps.csv_table(sweeps.rank(["=cmd()"], [result]))


@pytest.mark.filterwarnings("error:Glyph")
def test_names_are_shown_as_they_are(tmp_path):
    """No part of a name moves the cursor or begins a formula, a link or a colour."""
    found = [
        result_of(
            row=f"somewhere:{name}",
            config_name=name,
            task_names=[name],
            status=["ok"],
            notes=[name],
            report={"taken": {name: [[0.5]]}},
        )
        for name in NASTY
    ]
    text = build.build(found, tmp_path)
    assert "\x1b" not in text and "a\ufffd[31mb" in text
    assert "\\[red\\]y" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "bars.png").stat().st_size > 1000
    assert "[red]y" in sweeps.text_table(sweeps.rank(["[red]y"], found[:1]))
    cells = list(csv.reader((tmp_path / "table.csv").open()))
    assert not any(c.startswith(("=", "@", "+")) for row in cells for c in row)


def _zip(file, size):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", b"0" * size)
    return file


def test_members_of_an_archive_are_bounded(tmp_path):
    tiny = pytest.importorskip("jaxcl.data.tiny_imagenet")
    with zipfile.ZipFile(_zip(tmp_path / "a.zip", 1 << 25)) as archive:
        with pytest.raises(DataError, match="at most 16777216 bytes, got 335"):
            tiny._lines(archive, "wnids.txt")
    # A member with a false size is not read beyond the limit.
    data = (tmp_path / "a.zip").read_bytes()
    size, lie = (1 << 25).to_bytes(4, "little"), (100).to_bytes(4, "little")
    (tmp_path / "b.zip").write_bytes(data.replace(size, lie))
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        with pytest.raises((DataError, zipfile.BadZipFile)):
            tiny.member(archive, "tiny-imagenet-200/wnids.txt", 1 << 24)


def test_an_image_of_another_size_is_not_decoded(tmp_path):
    tiny = pytest.importorskip("jaxcl.data.tiny_imagenet")
    encoded = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(encoded, "JPEG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.JPEG", encoded.getvalue())
        with pytest.raises(DataError, match=r"64 x 64 pixels, got \(5000, 5000\)"):
            tiny._image(archive, "x.JPEG")


def test_the_first_archive_is_remembered(tmp_path, monkeypatch):
    tiny = pytest.importorskip("jaxcl.data.tiny_imagenet")
    monkeypatch.setenv("JAXCL_CACHE", str(tmp_path / "cache"))
    assert tiny.URL.startswith("https://")

    class Downloads:
        def __init__(self, size):
            self.size = size

        def download(self, url):
            return _zip(tmp_path / f"{self.size}.zip", self.size)

    assert tiny.downloaded(Downloads(10)) == tiny.downloaded(Downloads(10))
    with pytest.raises(DataError, match="SHA-256 .* delete .*sha256 if the new one"):
        tiny.downloaded(Downloads(11))


def test_arrays_that_no_memory_can_hold(tmp_path, monkeypatch):
    arrays.save(tmp_path / "a.npz", {"x": np.zeros(1000)})
    monkeypatch.setattr("jaxcl.checks._memory", lambda: 1000)
    with pytest.raises(ValueError, match="a.npz need at least 8.13e-06 GB"):
        arrays.load(tmp_path / "a.npz")


@pytest.mark.parametrize("why", ["No space left on device", "another reason"])
def test_a_full_disk_under_a_checkpoint_is_one_line(tmp_path, monkeypatch, capfd, why):
    def full(*_, **__):
        from absl import logging

        logging.error("a thread's traceback")
        raise ValueError(f"RESOURCE_EXHAUSTED: {'Error writing; ' * 99}{why}")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", full)
    monkeypatch.setattr(launch, "prepare_jax", lambda: None)

    def main(argv):
        config = digits.get_config("bp")
        config.update_from_flattened_dict(
            {"data.num_tasks": 2, "train.epochs": 1, "data.train_per_task": 40}
        )
        execute(config, tmp_path)

    with pytest.raises(SystemExit):
        launch._guarded(main)([])
    lines = capfd.readouterr().err.splitlines()
    assert "cannot write checkpoint" in lines[-1] and len(lines[-1]) < 500
    told = "RESOURCE_EXHAUSTED: Error writing"
    if why.startswith("No space"):
        told = f"no space left on {tmp_path / 'checkpoints'}; earlier"
    assert [line for line in lines if told in line] == lines[-1:]
    assert "thread" not in "".join(lines) and "Traceback" not in "".join(lines)
