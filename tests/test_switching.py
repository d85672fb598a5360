"""What a researcher who comes from other libraries expects: found missing, mended."""

import shlex
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxcl
from configs import digits
from experiments.reporting.build import build
from experiments.reporting.sweeps import chosen, rank
from experiments.runs import results
from experiments.runs.execute import execute
from experiments.runs.writers import scalars_of
from jaxcl.benchmark import defaults
from jaxcl.contract import strategy
from jaxcl.strategies import finetune, gpm, owm
from jaxcl.strategies._chained import chain_factories
from jaxcl.training.protocol import TaskDone
from tests.in_process import RESULT

SMALL = {
    "seeds": (0, 1),
    "data.num_tasks": 3,
    "data.train_per_task": 60,
    "data.test_per_task": 40,
    "train.epochs": 1,
    "keep_weights": "tasks",
}


def run_of(row, workdir, **fields):
    config = digits.get_config(row)
    config.update_from_flattened_dict(SMALL | fields)
    execute(config, workdir)
    return jaxcl.load_run(workdir)


class Attentive(nn.Module):
    """Its attention's kernels are in no dense layer that is known."""

    num_outputs: int

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(8)(x.reshape(len(x), 4, -1))
        y = y + self.param("place", nn.initializers.normal(1.0), (4, 8))
        return nn.Dense(self.num_outputs, name="head")(y.mean(1))


@pytest.mark.parametrize("make", [gpm, owm])
def test_weights_of_no_known_layer_are_refused_by_name(make):
    """They stood still from the second task on, without a word."""
    setup, net, _ = _setup(Attentive)
    method = make(setup, **({"threshold": 0.9} if make is gpm else {}))
    with pytest.raises(
        ValueError, match=rf"{make.__name__} knows no layer that 'place'"
    ):
        tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup)
        tx.init(jaxcl.init_params(method, jax.random.key(0), net))


def _setup(model):
    x = jnp.zeros((6, 8, 2))
    module = model(num_outputs=4)
    setup = jaxcl.setup_for_linen(
        module, x, num_outputs=4, num_tasks=2, heads=(("head",),)
    )
    return setup, module.init(jax.random.key(0), x)["params"], x


def my_data(flip=False):
    rng = np.random.default_rng(0)
    y = np.arange(80) % 4
    x = (rng.random((80, 4, 4, 1)) * 60 + 45 * y[:, None, None, None]).astype(np.uint8)
    return jaxcl.data.from_arrays(x, y[::-1].copy() if flip else y)


DATA = {"flip": False}


def source():
    return my_data(**DATA)


def test_a_run_opened_with_other_data_says_so(tmp_path, monkeypatch):
    fields = {"data.dataset": f"{__name__}:source", "data.num_tasks": 2}
    run = run_of("bp", tmp_path, **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.problem
    monkeypatch.setitem(DATA, "flip", True)
    with pytest.warns(UserWarning, match="is opened with other data or code than"):
        assert jaxcl.load_run(tmp_path).problem


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_answers_and_the_names_of_their_classes(scenario, tmp_path):
    fields = {"data.scenario": scenario, "data.class_order": "seed"}
    run = run_of("bp", tmp_path, **fields)
    for seed in run.seeds:
        weights = run.weights(seed, 1)
        x, y = run.data(seed, 0)
        answers = run.predict(weights, x, 0).argmax(-1)
        assert float((np.asarray(answers) == y).mean()) == pytest.approx(
            run.accuracy(weights, seed, 0)
        )
        names = run.class_names(seed, 0)
        assert set(y) <= set(names) and len(set(names.values())) == len(names)
    order = [tuple(run.class_names(seed, 0).values()) for seed in run.seeds]
    assert order[0] != order[1]  # each seed's own
    # The name is the data set's: each output's images look like those of its name.
    from sklearn.datasets import load_digits

    whole = load_digits()
    for seed in run.seeds:
        x, y = run.data(seed, 0)
        for k, name in run.class_names(seed, 0).items():
            mine = x[y == k].mean(0).ravel()
            alike = {
                c: np.corrcoef(mine, whole.data[whole.target == c].mean(0))[0, 1]
                for c in range(10)
            }
            assert max(alike, key=alike.get) == int(name)


def test_an_optimizer_under_which_nothing_is_protected_is_a_note_of_the_table(tmp_path):
    with pytest.warns(UserWarning, match="earlier tasks are not protected"):
        run_of("gpm", tmp_path / "a", **{"optimizer.name": "adam"})
    said = results.load(tmp_path / "a").notes
    assert any(note.startswith("this strategy projects") for note in said)
    table = build([results.load(tmp_path / "a")], tmp_path)
    assert "GPM: this strategy projects" in table and "GPM: GPM" not in table
    run_of("gpm", tmp_path / "b")
    assert not any("projects" in note for note in results.load(tmp_path / "b").notes)


def test_settings_need_no_star():
    def mine(setup, strength=1.0, *, rate: float):
        return finetune(setup)

    found = defaults(mine)
    assert set(found) == {"strength", "rate"} and found["strength"] == 1.0


def test_settings_of_chained_methods_need_no_star():
    def mine(setup, strength=1.0):
        return finetune(setup)

    def other(setup, *, rate=2.0):
        return finetune(setup)

    found = defaults(chain_factories(other, mine))
    assert found == {"rate": 2.0, "strength": 1.0}


def test_a_state_that_is_no_array_is_named():
    def init(params):
        return {"seen": {"n": 0}}

    setup, net, _ = _setup(Attentive)
    method = strategy(init=init)
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup)
    with pytest.raises(ValueError, match="hook init .* leaf 'seen/n' is 0, of int"):
        tx.init(jaxcl.init_params(method, jax.random.key(0), net))


def test_what_a_method_reports_goes_to_tensorboard_too():
    accuracy = np.full((2, 3, 3), np.nan)
    accuracy[:, :2, :2] = 0.5
    report = {"taken": {"hidden_0": np.array([[0.1, 0.2, np.nan], [0.3, 0.4, np.nan]])}}
    done = TaskDone(
        1, accuracy, np.zeros((2, 3)), ("ok", "ok"), np.ones(2), 1.0, report
    )
    found = scalars_of(done, (4, 7))
    assert found["taken/hidden_0/seed_4"] == 0.2
    assert found["taken/hidden_0/seed_7"] == 0.4
    assert found["taken/hidden_0/mean"] == pytest.approx(0.3)


def test_a_writers_files_are_no_older_than_the_runs_log(tmp_path):
    """Killed after any epoch, TensorBoard has what metrics.jsonl has."""
    pytest.importorskip("tensorboardX")
    from experiments.runs.writers import WRITERS

    writer = WRITERS["tensorboard"].open(digits.get_config("bp"), tmp_path, 0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    before = file.stat().st_size
    writer.scalars(1, {"loss": 1.0})
    assert file.stat().st_size > before  # without closing it
    writer.close()


def test_a_sweeps_best_settings_are_flags():
    """With one --for each, which compare takes, and a word where a grid ends."""
    matrices = {1.0: 0.3, 10.0: 0.6, 100.0: 0.9}
    found, varied = [], []
    for strength, accuracy in matrices.items():
        matrix = [[[accuracy] * 2] * 2]
        found.append(results.Result(**(RESULT | {"row": "ewc"} | _of(matrix))))
        varied.append({"method.strength": strength, "model.widths": (8, 8)})
    scores = rank(["a", "b", "c"], found)
    flags, notes = chosen(varied, scores)
    assert [shlex.split(flag) for flag in flags] == [
        ["--for=ewc:method.strength=100.0"],
        ["--for=ewc:model.widths=(8,8)"],
    ]
    assert notes == [
        "EWC: method.strength 100.0 is the highest tried; a better one may lie beyond"
    ]


def _of(matrix):
    matrix = np.array(matrix)
    s, t, _ = matrix.shape
    return {
        "matrix": matrix,
        "baseline": np.zeros((s, t)),
        "seeds": list(range(s)),
        "status": ["ok"] * s,
        "task_names": [str(i) for i in range(t)],
        "tasks_done": t,
    }


def test_a_field_of_the_method_is_found_without_its_prefix(command, tmp_path):
    status, _, errors = command(
        *("compare", "--config=digits", "--strategies=ewc,bp"),
        *("--for=ewc:strength=3", f"--workdir={tmp_path / 'w'}"),
    )
    assert status == 2 and "did you mean method.strength?" in errors
