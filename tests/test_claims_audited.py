"""Claims: what an audit of the recorded ones found, each with the right value."""

import json
import re

import numpy as np
import pytest

from experiments import config as configs
from experiments.claims import (
    classifier,
    decide,
    hat_rate,
    hat_room,
    report,
    transfer,
    transfer_runs,
    unstable,
)
from experiments.claims.claim import SETTINGS
from experiments.claims.keys import key_of
from experiments.claims.recorded import RECORDED
from experiments.claims.streams import seeds
from experiments.claims.table import CLAIMS
from tests.test_claims import ROOT, make_outcome

README = (ROOT / "README.md").read_text()


def test_what_a_failed_seed_kept_is_not_known():
    last = np.repeat(np.linspace(0.7, 0.97, 10)[:, None], 5, 1)
    last[:3, :4] = 0.51
    status = ["ok"] * 9 + ["diverged"]
    outcomes = {"split_mnist_bp": make_outcome("split_mnist_bp", last, status=status)}
    stream = next(s for s in unstable.STREAMS if s.name == "split MNIST")
    found = unstable.some_forget(stream).estimate(outcomes)
    assert (found.value, found.failed) == (3.0, 1)
    mean, without = 100 * last[:9].mean(), 100 * last[3:9].mean()
    assert unstable.shown(outcomes)[-1] == (
        f"| split MNIST | 9 | 3 | [0.07, 0.70] | {mean:.2f} | {without:.2f} |"
    )


@pytest.mark.parametrize("best, known", [(0.1, 0), (0.02, 5)])
def test_a_share_that_is_one_by_definition_has_no_interval(best, known):
    """If .1 is the best rate, learned at .1 / at the best rate is no estimate."""

    def name(rate):
        return hat_rate.name_of("permuted MNIST", "plain SGD", "hat", rate)

    spread = np.linspace(0.0, 0.04, 5)
    outcomes = {name(r): make_outcome(name(r), 0.5 + spread) for r in hat_rate.RATES}
    outcomes[name(best)] = make_outcome(name(best), 0.9 + spread)
    for outcome in outcomes.values():
        own = outcome.result.matrix[:, -1].copy()
        at = np.arange(own.shape[1])
        outcome.result.matrix[:, at, at] = own
    effect = hat_rate.share("permuted MNIST", "plain SGD", "hat")
    found = effect.estimate(outcomes)
    assert len(found.per_seed) == known
    right = np.mean((40 + 100 * spread) / (80 + 100 * spread)) if known else 1.0
    assert found.value == pytest.approx(right)
    if not known:
        assert (found.low, found.high, found.failed) == (1.0, 1.0, 0)
        assert decide.verdict_of(found, effect.claimed) == decide.NOT


def test_rows_with_grids_extended_later_are_decided_on_unseen_seeds():
    runs = {run.name: run.config for run in transfer_runs.runs("toy")}
    first, further = seeds("toy"), (205, 206, 207, 208, 209)
    effects = {name: transfer.spot(name) for name in transfer.SPOTS}
    for name, effect in effects.items():
        own = further if name in transfer_runs.DECIDED_AGAIN else first
        assert {tuple(runs[needed].seeds) for needed in effect.needs} == {own}
    for noise in transfer_runs.NOISE:  # from scratch, and what it is compared with
        needs = transfer.beats(noise).needs
        assert {tuple(runs[needed].seeds) for needed in needs} == {further}
    # At "full" nothing had been decided, so nothing is decided again.
    full = {run.name: run.config for run in transfer_runs.runs("full")}
    assert {tuple(config.seeds) for config in full.values()} == {first}


def test_the_bounds_of_a_row_have_its_seeds():
    """On source and target: 5 and 4 points below, with each seed's own bounds."""

    def outcome(name, source, target):
        made = make_outcome(name, np.stack([source, target], 1))
        made.result.matrix[:, 0, 0] = 0.44
        return name, made

    ones = np.ones(5)
    outcomes = dict(
        [
            outcome("fine_tune", 0.3 * ones, 0.7 * ones),
            outcome("fine_tune_clean", 0.3 * ones, 0.9 * ones),
            outcome("fine_tune_clean_again", 0.3 * ones, 0.8 * ones),
            outcome("lwf", 0.42 * ones, 0.75 * ones),
            outcome("ewc", 0.42 * ones, 0.75 * ones),
        ]
    )
    np.testing.assert_allclose(transfer.slack(outcomes, "lwf"), 75 - 80 + 4)
    np.testing.assert_allclose(transfer.slack(outcomes, "ewc"), 75 - 90 + 4)


def test_what_an_untrained_network_would_change_stands_beside_unchanged():
    outcomes = {}
    for name, probe in (
        ("class_split_mnist_random_frozen", [80.0, 82.0]),
        ("class_split_mnist_bp", [90.0, 92.0]),
        ("split_mnist_bp", [92.0, 94.5]),
    ):
        measured = {head: np.array(probe) for head in classifier.HEADS}
        made = make_outcome(name, [0.5, 0.6])
        outcomes[name] = made._replace(measured=measured)
    assert classifier.shown(outcomes)[-1] == "| split MNIST, BP | -2.25 | -12.25 |"


def test_a_page_tells_which_rows_clip():
    outcome = make_outcome("ewc", [0.5, 0.6], row="ewc")
    assert report._settings(outcome)["optimizer.clip"] == 10.0
    assert "optimizer.clip" not in report._settings(make_outcome("bp", [0.5, 0.6]))


def test_hats_published_strength_stands_beside_the_chosen_one():
    runs = {run.name: run for run in hat_room.runs("toy")}
    beside, chosen = runs[hat_room.PUBLISHED], runs["permuted_30_hat"]
    assert beside.config.method.strength == 0.75
    assert [list(stage.fields) for stage in beside.choice] == [["optimizer.lr"]]
    assert len(chosen.choice) == 2  # strengths, then rates
    needed = {
        n for q in CLAIMS["hat_room"].questions for e in q.effects for n in e.needs
    }
    assert hat_room.PUBLISHED not in needed


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_runs_config_is_whole(setting):
    """What CI runs at ``quick`` says nothing of the configs at the other settings."""
    for claim in CLAIMS.values():
        for run in claim.runs(setting):
            configs.require_plan(run.config)
            if run.tried is not None:
                configs.require_plan(run.tried)


def test_recorded_runs_are_found_by_the_keys_of_their_configs():
    """A default that changes, of a field or of a method, would lose them."""
    for folder in (RECORDED / "runs").iterdir():
        config = configs.from_json(json.loads((folder / "config.json").read_text()))
        assert key_of(config) == folder.name


def test_figures_in_words_are_those_that_are_recorded():
    """A row of another table in claim 13's notes; how many rows have no commit."""
    lines = (RECORDED.parent / "heads_split_cifar100" / "heads.md").read_text()
    (er,) = (line for line in lines.splitlines() if line.startswith("| ER "))
    softmax = float(er.split("|")[2].split()[0])
    notes = " ".join(CLAIMS["features_win"].notes)
    assert f"ER from scratch has {softmax:.1f} %" in notes
    page = (RECORDED.parent / "README.md").read_text().splitlines()
    without = sum(line.rstrip().endswith("| – |") for line in page)
    assert without == 11 and "but for eleven early rows" in README


def test_the_readme_has_the_step_times_that_are_recorded():
    bench = json.loads((RECORDED.parent / "bench.json").read_text())
    steps = {(row["case"], row["what"]): row for row in bench["rows"]}
    mlp, alexnet = steps["mlp10", "BP, 5 seeds"], steps["alexnet", "BP, 5 seeds"]
    told = re.search(
        r"takes (\d+) µs per seed on two CPU cores, a tenth of PyTorch's; one of "
        r"AlexNet (\d+) ms, (\.\d\d) of PyTorch's",
        README,
    )
    assert told
    assert int(told[1]) == round(mlp["us_per_step_and_seed"])
    assert round(mlp["to_torch"], 1) == 0.1
    assert int(told[2]) == round(alexnet["us_per_step_and_seed"] / 1000)
    assert float(told[3]) == round(alexnet["to_torch"], 2)
