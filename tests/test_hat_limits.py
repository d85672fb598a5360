"""The study of HAT's limits: what its points are, and one small study end to end."""

import csv

import numpy as np
import pytest

from experiments import hat_limits

SMALL = (
    "--config=configs/digits.py",
    "--config.data.num_tasks=2",
    "--config.train.epochs=1",
    "--config.seeds=(0,1)",
)


@pytest.mark.parametrize(
    ("study", "curves"),
    [
        (("--study=lr", "--lrs=0.05,50"), ["all", "weights", "embeddings", "bp"]),
        (("--study=capacity",), ["bp_star_star", "ewc", "gpm", "hat"]),
    ],
)
def test_a_study_ends_with_a_table_and_a_figure(commands, tmp_path, study, curves):
    flags = (*study, *SMALL, f"--workdir={tmp_path}")
    status, _, err = commands("experiments.hat_limits", *flags)
    assert status == 0, err
    with (tmp_path / "limits.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(dict.fromkeys(line["curve"] for line in lines)) == curves
    assert (tmp_path / "limits.png").stat().st_size > 5000
    if "--study=lr" in study:
        by = {(line["curve"], line["x"]): line for line in lines}
        # The control is the same network without gates: it has no embeddings.
        assert by["bp", "0.05"]["at clamp"] == ""
        assert 0 <= float(by["all", "0.05"]["at clamp"]) < 1
        # The reference rate is the same run, whichever rate is swept.
        runs = {p.name for p in tmp_path.iterdir() if p.is_dir()}
        assert runs == {f"{c}_50" for c in curves} | {"all_0.05", "bp_0.05"}
        assert by["bp", "50.0"]["acc"] != by["bp", "0.05"]["acc"]


def test_rates_apart_move_only_what_they_name():
    from jaxcl.types import Params

    params = Params(np.ones(2, np.float32), {"a": np.ones(2, np.float32)})
    for make, weights, embeddings in (
        (hat_limits.sgd_weights, 2.0, 0.05),
        (hat_limits.sgd_embeddings, 0.05, 2.0),
    ):
        tx = make(2.0)
        updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates.net, -weights)
        np.testing.assert_allclose(updates.aux["a"], -embeddings)
