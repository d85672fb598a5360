"""A method in a file outside the package, as in README's "Adding a method"."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.reporting.build import build
from experiments.runs.load import find
from experiments.runs.results import load
from jaxcl.testing import StrategyContract
from jaxcl.training.describe import described

ROOT = Path(__file__).parents[1]
L2 = "my_package.methods:l2"
SHORT = (
    "--config.data.num_tasks=2",
    "--config.data.train_per_task=30",
    "--config.seeds=(0,1)",
    "--config.train.epochs=1",
)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with a package that contains README's method."""
    folder = tmp_path_factory.mktemp("elsewhere")
    readme = (ROOT / "README.md").read_text()
    (folder / "my_package").mkdir()
    for file, told_by in (
        ("my_package/methods.py", r"def l2\("),
        ("test_l2.py", r"\(StrategyContract\)"),
    ):
        pattern = rf"```python\n((?:(?!```).)*{told_by}.*?)```"
        (code,) = re.findall(pattern, readme, re.S)
        (folder / file).write_text(code)
    return folder


@pytest.fixture
def command(commands, elsewhere):
    """Runs a command of `experiments` where the method can be imported."""

    def run(name, *arguments):
        status, out, err = commands(f"experiments.{name}", *arguments, cwd=elsewhere)
        assert status == 0, err
        return out, err

    return run


WRONG = """
import jax.numpy as jnp
from jaxcl import strategy


def reads(setup):
    def loss(loss_fn, state):
        return lambda params, ctx: state["nothing"]

    return strategy(loss=loss)


def adds(setup):
    def after_task(params, state, *, data, model_state, task, key):
        return params, jnp.zeros(3) @ jnp.zeros(4)

    return strategy(init=lambda params: jnp.zeros(()), after_task=after_task)


def bare(setup):
    return strategy(loss=lambda loss_fn, state: lambda p, ctx: loss_fn(p, ctx)[0])


def logits(setup):
    def loss(loss_fn, state):
        def new(params, ctx):
            value, out = loss_fn(params, ctx)
            return value, out.logits

        return new

    return strategy(loss=loss)


def wide(setup):
    def loss(loss_fn, state):
        return lambda p, ctx: (jnp.zeros(2), loss_fn(p, ctx)[1])

    return strategy(loss=loss)
"""


@pytest.mark.parametrize(
    "name, said",
    [
        ("reads", r"TypeError: .* \(wrong.py:8\)"),
        ("adds", r"dot_general .* \(wrong.py:15\)"),
        ("bare", r"has to make a function .*; this one gave float32\[\]$"),
        ("logits", r"this one gave \(float32\[\], float32\[10, 10\]\)$"),
        ("wide", r"gave \(float32\[2\], Output\)$"),
    ],
)
def test_a_hook_that_is_wrong_is_one_line_with_its_place(
    commands, tmp_path, name, said
):
    (tmp_path / "wrong.py").write_text(WRONG)
    status, _, err = commands(
        *("experiments.run", f"--config=digits:wrong:{name}"),
        *("--workdir=w", *SHORT),
        cwd=tmp_path,
    )
    assert status == 2 and err.count("\n") == 1, err
    assert re.search(said, err.strip()), err
    assert not (tmp_path / "w").exists()


def test_a_factory_that_is_wrong_is_one_line_with_its_place(commands, tmp_path):
    """JAX's one-line ValueErrors do not say whose shapes they are."""
    (tmp_path / "wrong.py").write_text("""import jax.numpy as jnp


def broken(setup):
    return jnp.zeros((2, 3)) + jnp.zeros(4)
""")
    status, _, err = commands(
        *("experiments.run", "--config=digits:wrong:broken", "--workdir=w", *SHORT),
        cwd=tmp_path,
    )
    said = r"strategy 'wrong:broken' raised ValueError.* shapes.* \(wrong.py:5\)$"
    assert status == 2 and err.count("\n") == 1, err
    assert re.search(said, err.strip()), err


def test_an_optimizer_that_is_wrong_is_one_line_with_its_place(commands, tmp_path):
    (tmp_path / "wrong.py").write_text("""import jax.numpy as jnp
import optax


def broken(lr):
    def update(grads, state, params=None):
        return jnp.zeros((2, 3)) + jnp.zeros(4), state

    return optax.GradientTransformation(lambda params: (), update)
""")
    status, _, err = commands(
        *("experiments.run", "--config=digits", "--workdir=w", *SHORT),
        "--config.optimizer.name=wrong:broken",
        cwd=tmp_path,
    )
    said = r"optimizer 'wrong:broken' cannot train .* shapes.* \(wrong.py:7\)$"
    assert status == 2 and err.count("\n") == 1, err
    assert re.search(said, err.strip()), err
    assert not (tmp_path / "w").exists()


class Outcomes:
    """A pytest plugin that records each test's outcome."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self.of[report.nodeid.rpartition("::")[2]] = report.outcome


def test_it_inherits_the_contract_suite(elsewhere, monkeypatch):
    """README's three lines, run as pytest runs them."""
    monkeypatch.syspath_prepend(elsewhere)
    seen = Outcomes()
    arguments = ["-q", f"--rootdir={elsewhere}", "-p", "no:cacheprovider"]
    code = pytest.main([str(elsewhere / "test_l2.py"), *arguments], plugins=[seen])
    owed = {name for name in dir(StrategyContract) if name.startswith("test_")}
    assert code == 0 and seen.of == dict.fromkeys(owed, "passed")
    assert len(owed) == 6


def test_it_runs_under_its_own_name(command, tmp_path):
    out, err = command(
        *["run", "--config=digits", f"--config.strategy={L2}", *SHORT],
        *["--config.method.strength=3.0", f"--workdir={tmp_path}"],
    )
    assert re.search(r"^ *l2 ", out, re.M) and not re.search(r"^ *BP ", out, re.M)
    assert "digits/l2: task 2/2 done" in err
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["row"] == config["strategy"] == L2
    assert config["method"] == {"strength": 3.0}
    assert load(tmp_path).row == L2


def test_it_is_compared_beside_another_and_reported(command, tmp_path):
    out, _ = command(
        *["compare", f"--config=digits:{L2}", "--config.method.strength=3.0"],
        *[f"--strategies=ewc,{L2}", f"--workdir={tmp_path}", *SHORT],
    )
    assert re.search(r"^ *EWC ", out, re.M) and re.search(r"^ *l2 ", out, re.M)
    strengths = {}
    for run in _runs(tmp_path):
        config = json.loads((run / "config.json").read_text())
        strengths[run.name] = config["method"]["strength"]
        named = "file of my_package.methods" in load(run).versions
        assert named == (run.name != "ewc")
    # A setting of the other method does not apply to EWC.
    assert strengths == {"ewc": 100.0, "my_package.methods.l2": 3.0}
    # From the folders alone, where the method's module cannot be imported.
    found, _ = find([tmp_path])
    text = build(found, tmp_path / "again")
    assert re.search(r"^ *l2 ", text, re.M)
    assert (tmp_path / "again" / "bars.png").stat().st_size > 5000


def _runs(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


def test_what_was_edited_since_is_told(commands, elsewhere, tmp_path):
    """A finished run is another's if its method or its data have been changed."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 4)).astype(np.float32), np.arange(80) % 4

    def save(labels):
        parts = dict(x_train=x, y_train=labels, x_test=x, y_test=labels)
        np.savez(tmp_path / "own.npz", **parts)

    def run(*more, env=None):
        arguments = (f"--config={ROOT}/configs/digits.py", *SHORT[:1], *SHORT[2:])
        arguments += (f"--config.strategy={L2}", "--config.method.strength=1.0")
        arguments += (f"--config.data.dataset=npz:{tmp_path}/own.npz", *more)
        arguments += (f"--workdir={tmp_path}/run",)
        return commands("experiments.run", *arguments, cwd=elsewhere, env=env)

    save(y)
    assert run()[0] == 0
    status, _, err = run("--strict")
    assert status == 0 and "finished before" in err and "file of" not in err
    methods = elsewhere / "my_package" / "methods.py"
    before = methods.read_text()
    methods.write_text(before + "# edited\n")
    try:
        status, _, err = run()
        assert status == 0 and "not run again: file of my_package.methods is" in err
        status, _, err = run("--strict")
        assert status != 0 and "file of my_package.methods is" in err
    finally:
        methods.write_text(before)
    save((y + 1) % 4)
    status, _, err = run()
    told = f"the data of npz:{tmp_path}/own.npz have changed since: 80 training"
    assert status != 0 and f"is of another problem: {told}" in err
    assert "then and now, some with other values or labels; " in err
    assert len(err.strip().splitlines()) == 1 and "stream" not in err
    x, y = np.concatenate([x, x]), np.concatenate([y, y])
    save(y)
    status, _, err = run()
    assert "80 training examples then, 160 now; 80 test" in err and "stream" not in err
    status, _, err = run(env={"JAXCL_TRACEBACK": "1"})
    assert "stream.base.train_x is " in err  # which arrays, for whoever looks closer
    # So of a run that is not finished.
    (tmp_path / "run" / "result.json").unlink()
    status, _, err = run()
    assert status != 0 and "of another run: the data of npz:" in err
    assert "80 training examples then, 160 now" in err and "stream" not in err


def test_it_is_swept(command, tmp_path):
    out, err = command(
        *["sweep", "--config=digits", f"--strategies={L2}", *SHORT],
        *["--grid={'method.strength': (0.1, 10.0)}", f"--workdir={tmp_path}"],
    )
    assert len(re.findall(r"^\s*l2 ", out, re.M)) == 2 and " *" in out
    assert "digits/l2, 2 settings at once" in err  # its strength is traced
    (row,) = [run for run in _runs(tmp_path)]
    assert row.name == "my_package.methods.l2"


def test_the_config_in_effect_is_printed(command):
    out, _ = command(
        *["compare", f"--config=digits:{L2}", f"--strategies=owm,{L2}"],
        *["--config.method.strength=3.0", "--print_config"],
        *["--config.optimizer.lr=0.25"],
    )
    owm, l2 = out.split("\n\n")
    assert owm.startswith("# digits, owm") and "method.alpha = 1.0" in owm
    assert f"row = '{L2}'" in l2 and "method.strength = 3.0" in l2
    assert "optimizer.lr = 0.25" in owm and "optimizer.lr = 0.25" in l2


def test_fields_of_one_row_alone(command):
    out, _ = command(
        *["compare", "--config=digits", f"--strategies=ewc,{L2},bp"],
        *["--for=ewc:method.strength=7", f"--for={L2}:method.strength=3.0"],
        *[f"--for={L2}:config.optimizer.lr=0.25", "--for=bp:data.tasks=(0,2)"],
        *["--config.optimizer.lr=0.5", "--print_config"],
    )
    ewc, l2, bp = out.split("\n\n")
    assert "method.strength = 7.0" in ewc and "optimizer.lr = 0.5" in ewc
    assert "method.strength = 3.0" in l2 and "optimizer.lr = 0.25" in l2
    assert "optimizer.lr = 0.5" in bp and "data.tasks = (0, 2)" in bp
    assert "data.tasks = None" in ewc


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["run", f"--config.strategy={L2}"], "needs a value for strength: --config"),
        (
            ["compare", f"--config.strategy={L2}", "--config.method.strength=1.0"],
            f"is set for '{L2}', which is not among the rows: bp,",
        ),
    ],
)
def test_what_is_wrong_is_one_line(command, tmp_path, arguments, told):
    name, *rest = arguments
    with pytest.raises(AssertionError) as error:
        command(name, "--config=digits", f"--workdir={tmp_path}", *rest)
    text = str(error.value)
    assert told in text and "Traceback" not in text


def test_helpers_in_other_files_belong_to_a_method(tmp_path, monkeypatch):
    """Also those that a helper imports; installed modules do not."""
    package = tmp_path / "of_three"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "methods.py").write_text(
        "import numpy as np\nfrom of_three import middle\n"
        "def f(x):\n    return np.sum(middle.g(x))\n"
    )
    (package / "middle.py").write_text(
        "from of_three.last import scale\ndef g(x):\n    return scale * x\n"
        "from of_three.last import h\n"
    )
    (package / "last.py").write_text("scale = 2.0\ndef h(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    f = importlib.import_module("of_three.methods").f
    sources = described(f)[1]
    names = ("methods", "middle", "last")
    assert {f"of_three.{name}" for name in names} == set(sources)
