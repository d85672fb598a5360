"""Claims: verdicts, choices, keys, pages; the command, interrupted and resumed."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims import carry, choose, decide, resnet, unstable
from experiments.claims.claim import (
    SETTINGS,
    Effect,
    Estimate,
    Outcome,
    Question,
    Run,
    Stage,
    above,
    below,
)
from experiments.claims.keys import key_of
from experiments.claims.pages import write
from experiments.claims.recorded import RECORDED
from experiments.claims.report import report
from experiments.claims.streams import CHART, FIRST_SEED, chart_run, choice, small
from experiments.claims.table import CLAIMS
from experiments.reporting import claim_page, results_page
from experiments.runs import results
from experiments.runs.results import Result
from jaxcl.types import Params

ROOT = Path(__file__).parents[1]


def make_result(last, *, row="bp", seeds=None, status=None, tasks=3):
    """A result whose last row of the matrix is `last` [S, T] or [S]."""
    last = np.asarray(last, float)
    if last.ndim == 1:
        last = np.repeat(last[:, None], tasks, 1)
    s, t = last.shape
    matrix = np.full((s, t, t), 0.9)
    matrix[:, -1] = last
    return Result(
        config_name="small",
        row=row,
        scenario="task",
        seeds=seeds or list(range(s)),
        status=status or ["ok"] * s,
        matrix=matrix,
        baseline=np.zeros((s, t)),
        task_names=[f"task {i}" for i in range(t)],
        tasks_done=t,
        steps=1,
        wall_s=1.0,
        device="cpu",
        versions={"commit": "abc"},
        config=json.loads(small(row).to_json_best_effort()),
    )


def make_outcome(name, last, **options):
    result = make_result(last, **options)
    run = Run(name, name.upper(), small(result.row))
    return Outcome(run, "key", Path(), result, (), {})


@pytest.mark.parametrize(
    "interval, claimed, verdict",
    [
        ((0.1, 2.0), above(0.0), "held"),
        ((-2.0, -0.1), above(0.0), "did not hold"),
        ((-2.0, 0.0), above(0.0), "did not hold"),
        ((0.0, 2.0), above(0.0), "undecided"),
        ((-1.9, 5.0), above(-2.0), "held"),
        ((-2.1, 5.0), above(-2.0), "undecided"),
        ((-9.0, -5.1), below(-5.0), "held"),
        ((-4.0, 3.0), below(-5.0), "did not hold"),
        ((-4.9, 4.9), (-5.0, 5.0), "held"),
        ((-4.9, 5.1), (-5.0, 5.0), "undecided"),
        ((5.1, 6.0), (-5.0, 5.0), "did not hold"),
        ((math.nan, 6.0), above(0.0), "undecided"),
        ((36.4, math.inf), above(1.5), "held"),
        ((math.inf, math.inf), above(1.5), "held"),
        ((-math.inf, -7.0), below(-5.0), "held"),
        ((-math.inf, -math.inf), above(0.0), "did not hold"),
    ],
)
def test_an_interval_decides_by_the_side_of_the_margin_it_lies_on(
    interval, claimed, verdict
):
    low, high = interval
    estimate = Estimate((low + high) / 2, low, high)
    assert decide.verdict_of(estimate, claimed) == verdict


def test_a_failed_seed_decides_nothing():
    estimate = Estimate(5.0, 4.0, 6.0, (5.0, 5.0, math.nan), failed=1)
    assert decide.verdict_of(estimate, above(0.0)) == "undecided"


@pytest.mark.parametrize(
    "verdicts, every, some",
    [
        (["held", "held"], "held", "held"),
        (["held", "undecided"], "undecided", "held"),
        (["did not hold", "undecided"], "did not hold", "undecided"),
        (["did not hold", "held"], "did not hold", "held"),
        (["did not hold", "did not hold"], "did not hold", "did not hold"),
        (["held", "not yet run"], "run in part", "held"),
        (["undecided", "not yet run"], "run in part", "run in part"),
        (["did not hold", "not yet run"], "did not hold", "run in part"),
        (["did not hold", "run in part"], "did not hold", "run in part"),
        (["not yet run", "not yet run"], "not yet run", "not yet run"),
        ([], "not yet run", "not yet run"),
    ],
)
def test_every_row_has_to_hold_or_some_row(verdicts, every, some):
    assert decide.combined(verdicts, "every") == every
    assert decide.combined(verdicts, "some") == some


def test_an_effect_is_paired_seed_by_seed_with_its_t_interval():
    rng = np.random.default_rng(0)
    y = rng.uniform(0.4, 0.8, 5)
    x = y + [0.02, 0.05, 0.03, 0.04, 0.01]
    outcomes = {"x": make_outcome("x", x), "y": make_outcome("y", y)}
    effect = decide.difference("x", "y", "X − Y", above(0.0))
    found = effect.estimate(outcomes)
    d = 100 * (x - y)
    half = 2.7764451 * d.std(ddof=1) / np.sqrt(5)  # t(.975, 4), from a table
    np.testing.assert_allclose(found.per_seed, d)
    np.testing.assert_allclose(
        (found.value, found.low, found.high),
        (d.mean(), d.mean() - half, d.mean() + half),
        rtol=1e-6,
    )


def test_runs_with_other_seeds_are_not_paired():
    outcomes = {
        "x": make_outcome("x", [0.5, 0.6], seeds=[0, 1]),
        "y": make_outcome("y", [0.5, 0.6], seeds=[1, 0]),
    }
    with pytest.raises(ValueError, match="compared seed by seed"):
        decide.difference("x", "y", "X − Y", above(0.0)).estimate(outcomes)


def test_p_values_are_against_the_margin_and_by_holm_within_the_claim():
    x, y = [0.70, 0.72, 0.71, 0.74, 0.70], [0.6, 0.61, 0.62, 0.6, 0.6]
    outcomes = {"x": make_outcome("x", x), "y": make_outcome("y", y)}
    effects = [
        decide.difference("x", "y", str(margin), above(margin)) for margin in (0, 11)
    ]
    missing = decide.difference("x", "z", "missing", above(0))
    claim = CLAIMS["chart"]._replace(
        questions=(
            Question("two", tuple(effects)),
            Question("one", (missing,)),
        )
    )
    verdict, (two, one) = decide.judge(claim, outcomes)
    assert verdict == "run in part" and one.verdict == "not yet run"
    first, second = two.effects
    assert first.p_t < 0.001 < second.p_t and first.p_sign == 0.0625
    assert first.p_holm == pytest.approx(2 * first.p_t)
    assert second.p_holm == pytest.approx(second.p_t)


@pytest.fixture
def scores(monkeypatch):
    """Replaces training by given scores; records which configs were asked for."""
    asked = []

    def install(score):
        def run(configs, workdir, execute):
            asked.append([c.copy_and_resolve_references() for c in configs])
            return [make_result(np.array([[score(c)] * 2])) for c in configs]

        monkeypatch.setattr(choose, "_results", run)
        return asked

    return install


def test_strengths_come_first_then_rates_with_the_best_two(scores, tmp_path):
    """The same for every row, on validation data of a seed that decides nothing."""
    score = {0.1: 0.5, 1.0: 0.7, 10.0: 0.6}
    asked = scores(lambda c: score[c.method.strength] + c.optimizer.lr)
    run = Run(
        "lwf",
        "LwF",
        small("lwf"),
        (
            Stage({"method.strength": (0.1, 1.0, 10.0)}, tasks=2, keep=2),
            Stage({"optimizer.lr": (0.01, 0.02)}, tasks=3),
        ),
    )
    chosen = choose.choose(run, tmp_path)
    assert chosen is not None
    assert (chosen.config.method.strength, chosen.config.optimizer.lr) == (1.0, 0.02)
    assert chosen.config.measure == "test"
    assert chosen.config.seeds == run.config.seeds
    first, second = asked
    assert [c.method.strength for c in first] == [0.1, 1.0, 10.0]
    pairs = [(c.method.strength, c.optimizer.lr) for c in second]
    assert pairs == [(1.0, 0.01), (1.0, 0.02), (10.0, 0.01), (10.0, 0.02)]
    assert all(c.measure == "valid" and c.seeds == (199,) for c in first + second)
    assert {c.data.tasks for c in first} == {(0, 2)}
    assert {c.data.tasks for c in second} == {(0, 3)}
    assert [t.chosen for t in chosen.trials] == [False] * 4 + [True] + [False] * 2
    assert len(chosen.trials) == 7


def test_a_trial_that_failed_is_never_chosen(scores, tmp_path):
    scores(lambda c: 0.9 if c.optimizer.lr == 0.01 else 0.3)
    whole = choose._results

    def with_failure(configs, workdir, execute):
        found = whole(configs, workdir, execute)
        return [found[0]._replace(status=["failed: task 1, epoch 1"]), *found[1:]]

    choose._results = with_failure
    run = Run("bp", "BP", small("bp"), (Stage({"optimizer.lr": (0.01, 0.1)}, 2),))
    chosen = choose.choose(run, tmp_path)
    assert chosen is not None and chosen.config.optimizer.lr == 0.1
    assert math.isnan(chosen.trials[0].accuracy)


def test_a_run_is_known_by_its_config_alone():
    a, b = small("ewc"), small("ewc")
    b.checkpoint_every, b.rows, b.keep_weights = 1.0, ("bp",), "last"
    assert key_of(a) == key_of(b)
    b.method.strength = 2 * a.method.strength
    assert key_of(a) != key_of(b)
    # A new field at its default changes no key.
    older = small("ewc")
    with older.unlocked():
        del older.joint_once, older.optimizer.warmup
        del older.method.decay
    assert key_of(older) == key_of(a)


@pytest.mark.parametrize("setting", ["quick", "toy", "full"])
@pytest.mark.parametrize("name", CLAIMS)
def test_every_claims_runs_have_fresh_seeds_and_can_be_chosen(name, setting):
    runs = CLAIMS[name].runs(setting)
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        seeds = run.config.seeds
        assert len(seeds) >= (2 if setting == "quick" else 5)
        assert min(seeds) >= FIRST_SEED and choose.CHOOSING_SEED not in seeds
        # Rates may be compared on validation data; chosen settings are then tested.
        assert run.config.measure == "test" or not run.choice
        for stage in run.choice:
            for field in stage.fields:
                config = run.tried or run.config
                value = config
                for part in field.split("."):
                    value = value[part]
    keys = {key_of(run.config) for run in runs}
    names = {n for q in CLAIMS[name].questions for e in q.effects for n in e.needs}
    assert keys and names


@pytest.mark.parametrize("setting", SETTINGS)
def test_claims_that_share_a_run_keep_the_same_weights_of_it(setting):
    """Else the claim that comes first decides what the other can measure."""
    kept = {}
    for claim in CLAIMS.values():
        for run in claim.runs(setting):
            kept.setdefault(key_of(run.config), set()).add(run.config.keep_weights)
    assert {key for key, values in kept.items() if len(values) > 1} == set()


def test_no_recorded_result_has_a_deciding_seed():
    """Except claims' own runs, and runs of a kind that no claim decides by."""

    def kind(result):
        return result.config_name, result.scenario, result.row

    claims = [results.load(file) for file in RECORDED.rglob("result.json")]
    deciding = set()
    for claim in CLAIMS.values():
        needed = {n for q in claim.questions for e in q.effects for n in e.needs}
        for run in claim.runs("toy"):
            if run.name in needed:
                c = run.config
                deciding.add((c.name, c.data.scenario, c.row))
    assert {kind(r) for r in claims} & deciding
    for file in RECORDED.parent.rglob("result.json"):
        found = results.load(file)
        if RECORDED in file.parents or max(found.seeds) < choose.CHOOSING_SEED:
            continue
        same = [r for r in claims if kind(r) == kind(found)]
        is_a_claims = any(np.array_equal(r.matrix, found.matrix) for r in same)
        assert is_a_claims or kind(found) not in deciding, file


def test_the_charts_rows_share_their_network_and_training():
    for name in CHART:
        config = chart_run("toy", name).config
        if name != "linear":
            assert config.model.to_dict() == {
                "name": "alexnet",
                "width": 0.25,
                "norm": "none",
                "use_bias": True,
                "dropout": 0.0,
                "dropout_late": 0.3,
                "dtype": "float32",
                "head": "head",
            }
        o, t = config.optimizer, config.train
        assert (o.name, o.momentum, o.nesterov, o.weight_decay) == (
            "sgd",
            0.9,
            True,
            5e-4,
        )
        assert o.schedule == ("constant" if "constant" in name else "cosine")
        assert (t.epochs, t.batch_size, t.patience) == (20, 64, None)
        last = name in ("bp", "bp_constant", "ol", "linear")
        assert t.select == ("last" if last else "best")
        assert config.data.num_tasks == 10 and len(config.seeds) == 5


def test_seeds_that_forget_everything_are_counted_and_kept():
    """Three of ten seeds: tasks 1 … T−1 within 2 points of chance."""
    last = np.repeat(np.linspace(0.7, 0.97, 10)[:, None], 5, 1)
    last[:3, :4] = 0.51
    outcomes = {
        "split_mnist_bp": make_outcome("split_mnist_bp", last),
        "split_mnist_ewc": make_outcome("split_mnist_ewc", np.linspace(0.9, 0.91, 10)),
    }
    stream = next(s for s in unstable.STREAMS if s.name == "split MNIST")
    found = unstable.some_forget(stream).estimate(outcomes)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)
    line = unstable.shown(outcomes)[-1]
    mean, without = 100 * last.mean(), 100 * last[3:].mean()
    assert line == (
        f"| split MNIST | 10 | 3 | [0.07, 0.65] | {mean:.2f} | {without:.2f} |"
    )
    ratio = unstable.ratio(stream, "ewc").estimate(outcomes)
    assert ratio.low > 1.5 and decide.verdict_of(ratio, above(1.5)) == "held"


def command(workdir, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.claims", f"--workdir={workdir}"]
        + ["--setting=quick", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def without_times(folder):
    """A claim's JSON without the seconds."""

    def strip(value):
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k != "seconds"}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(json.loads((folder / "claim.json").read_text()))


def lines(workdir):
    """How many lines all runs and trials have logged."""
    # Files are named, not searched for: a state's folder may vanish during a search.
    files = [
        f / "metrics.jsonl" for part in ("runs", "trials") for f in _in(workdir / part)
    ]
    return sum(len(f.read_text().splitlines()) for f in files if f.exists())


def _in(folder):
    return list(folder.iterdir()) if folder.exists() else []


@pytest.mark.minutes
def test_three_kills_leave_the_same_claim(tmp_path):
    """SIGKILL at random moments of a claim that chooses, runs and measures."""
    arguments = ("--claim=chart", "--runs=bp,ewc")
    whole = command(tmp_path / "whole", *arguments)
    out, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, out
    assert "GPM − BP**: not yet run" in out and "quick: decides nothing" in out
    total, draw = lines(tmp_path / "whole"), random.Random(1)
    for at in sorted(draw.sample(range(1, total), 3)):
        process = command(tmp_path / "broken", *arguments)
        while process.poll() is None and lines(tmp_path / "broken") < at:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = command(tmp_path / "broken", *arguments)
    out, _ = last.communicate(timeout=600)
    assert last.returncode == 0, out
    one, other = (
        without_times(tmp_path / name / "claims" / "chart")
        for name in ("whole", "broken")
    )
    assert one == other
    assert {run["name"] for run in one["runs"]} == {"bp", "bp_constant", "ewc"}
    # Finished runs are not run again.
    again = command(tmp_path / "whole", *arguments)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "epoch 1/" not in out, out
    assert lines(tmp_path / "whole") == total


@pytest.mark.parametrize("tasks, groups", [(30, [3, 30]), (10, [3, 10]), (2, [2])])
def test_the_tasks_that_chose_the_settings_are_reported_apart(tasks, groups):
    last = np.tile(np.arange(tasks) / tasks, (5, 1))
    outcome = make_outcome("bp", last)
    run = outcome.run._replace(choice=choice("toy", "bp"))
    found = report(CLAIMS["chart"], "toy", {"bp": outcome._replace(run=run)})
    parts = found["runs"][0]["acc_of_tasks"]
    assert [part["tasks"][1] for part in parts] == groups
    means = [np.arange(a, b).mean() for a, b in itertools.pairwise([0, *groups])]
    assert [part["acc_mean"] for part in parts] == pytest.approx(
        [100 * mean / tasks for mean in means], abs=1e-4
    )


def test_an_unknown_claim_is_one_line(commands, tmp_path):
    flags = ("--claim=nosuch", f"--workdir={tmp_path}")
    status, _, err = commands("experiments.claims", *flags)
    assert status == 2
    assert "unknown claim 'nosuch'; known: chart, unstable" in err


def test_recorded_runs_are_refused_where_there_are_none(commands, tmp_path):
    flags = ("--claim=chart", "--recorded", f"--workdir={tmp_path / 'new'}")
    status, _, err = commands("experiments.claims", *flags)
    assert status == 2 and not (tmp_path / "new").exists()
    assert "--recorded needs --setting=toy or full, got quick" in err


def test_a_run_that_breaks_fails_the_claim(tmp_path):
    config = small("bp")
    config.optimizer.lr = -1.0
    with pytest.raises(ValueError, match="lr must be greater than 0"):
        carry.carry_out(Run("bp", "BP", config), tmp_path)


def test_a_page_says_what_its_json_says(tmp_path):
    bp = np.array([0.6, 0.7, 0.65, 0.62, 0.64])
    outcomes = {
        "bp": make_outcome("bp", bp),
        "ewc": make_outcome("ewc", bp + [0.05, 0.06, 0.05, 0.04, 0.05], row="ewc"),
        "hat": make_outcome("hat", bp - 0.1, row="hat"),
    }
    claim = CLAIMS["chart"]
    folder = write(claim, "quick", outcomes, tmp_path)
    found = json.loads((folder / "claim.json").read_text())
    assert found == report(claim, "quick", outcomes)
    by_name = {q["name"]: q for q in found["questions"]}
    assert by_name["EWC − BP"]["verdict"] == "held"
    assert by_name["HAT − EWC"]["verdict"] == "did not hold"
    assert by_name["OL − BP"]["verdict"] == "not yet run"
    assert by_name["EWC − BP"]["effects"][0]["effect"] == pytest.approx(5.0)
    text = (folder / "README.md").read_text()
    assert text == claim_page.markdown(found, ["chart.png"])
    assert "cannot go below 0.0625" in text
    assert "| EWC − BP | **held** | EWC − BP | 5.00 points |" in text
    assert r"BP\*\* − HAT" in text and "GPM (claims_quick)" in found["missing"]
    png, svg = (folder / f"chart.{kind}" for kind in ("png", "svg"))
    assert png.stat().st_size > 5000 and "</svg>" in svg.read_text()
    before = svg.read_bytes()
    write(claim, "quick", outcomes, tmp_path)
    assert svg.read_bytes() == before


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_a_page_and_a_figure_before_anything_has_run(name, tmp_path):
    folder = write(CLAIMS[name], "toy", {}, tmp_path)
    found = json.loads((folder / "claim.json").read_text())
    assert found["verdict"] == "not yet run" and not found["runs"]
    assert (folder / f"{name}.png").stat().st_size > 500


def test_recorded_pages_are_those_of_their_json():
    for file in RECORDED.glob("*/claim.json"):
        found = json.loads(file.read_text())
        page = (file.parent / "README.md").read_text()
        assert page == claim_page.markdown(found, [f"{found['claim']}.png"])
        for run in found["runs"]:
            result = results.load(RECORDED / "runs" / run["key"])
            acc = decide.accuracy(result)
            # A seed that diverged has no accuracy: JSON says null, numpy nan.
            told = [np.nan if a is None else a for a in run["acc"]]
            np.testing.assert_allclose(told, acc, atol=1e-4)


def test_the_page_of_results_agrees_with_what_is_recorded():
    root = RECORDED.parent
    assert (root / "README.md").read_text() == results_page.page(root)


def test_reproduced_or_by_how_much_not():
    from experiments.reporting.published import Figure, compared

    assert compared(90.9, Figure(90.0, None, "a")) == "reproduced"
    assert compared(88.5, Figure(90.0, None, "a")) == "1.50 points below"
    assert compared(88.5, Figure(90.0, 0.8, "a")) == "reproduced"
    assert compared(92.0, Figure(90.0, 0.8, "a")) == "2.00 points above"


def test_an_effect_that_is_not_a_mean_has_no_p(tmp_path):
    effect = Effect("count", ("bp",), lambda o: Estimate(2, 2, 2), above(0.0))
    claim = CLAIMS["chart"]._replace(questions=(Question("some", (effect,)),))
    outcomes = {"bp": make_outcome("bp", [0.5, 0.6])}
    _, (answer,) = decide.judge(claim, outcomes)
    assert answer.verdict == "held" and math.isnan(answer.effects[0].p_t)


def test_the_largest_update_is_the_tasks_own():
    watch = resnet.largest()
    zero = Params({"w": jnp.zeros(2), "b": jnp.zeros(1)}, {})
    state = watch.init(zero)
    for biggest in (-0.5, 0.25):
        moved = Params({"w": jnp.array([biggest, 0.1]), "b": jnp.zeros(1)}, {})
        out, state = watch.updates(moved, state, zero, grads=zero, ctx=None, out=None)
        assert out is moved
    rest = dict(data=None, model_state={}, task=0, key=None)
    _, state = watch.after_task(zero, state, **rest)
    assert watch.report(state) == {"largest_update": {"network": 0.5}}
    _, state = watch.after_task(zero, state, **rest)  # a task without any update
    assert watch.report(state) == {"largest_update": {"network": 0.0}}
