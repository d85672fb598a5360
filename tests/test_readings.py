"""The command `readings` (is rank information?): what it measures and writes."""

import csv
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import readings


class Network:
    """A run whose features show the class in one of D directions, or are 0."""

    seeds = (0, 1)
    result = SimpleNamespace(
        device="cpu", versions={"commit": "abc"}, wall_s=2.0, status=["ok", "ok"]
    )

    def __init__(self, directions, dead=0.0):
        self.directions, self.dead = directions, dead

    def weights(self, seed, task):
        return None

    def data(self, seed, task, part="test"):
        n = readings.FITTED + readings.HELD if part == "train" else 2000
        y = np.arange(n, dtype=np.int32) % 10
        return np.eye(10, dtype=np.float32)[y], y

    def apply(self, weights, x, task):
        features = jnp.asarray(x)[:, : self.directions]
        alive = jnp.arange(len(x)) >= self.dead * len(x)
        return SimpleNamespace(taps={"head": features * alive[:, None]})


def test_rank_probe_and_dead_are_those_of_what_the_classifier_reads():
    whole = readings.measure(Network(10), 0, 0, Network(10))
    # Uncentred one-hot features of ten equally large classes: ten equal directions.
    np.testing.assert_allclose(whole, (10.0, 1.0, 0.0), rtol=1e-3)
    half = readings.measure(Network(5), 0, 0, Network(10))
    np.testing.assert_allclose(half.rank, 5.0, rtol=1e-3)
    # Classes 5 to 9 all look alike: one of them is right.
    np.testing.assert_allclose(half.probe, 0.6, atol=1e-6)
    assert half.dead == 0.5
    dead = readings.measure(Network(10, dead=0.25), 0, 0, Network(10))
    assert dead.dead == 0.25


def test_the_table_the_figure_and_where_they_come_from(tmp_path):
    names = ["untrained", *(readings._name(r) for r in readings.READINGS)]
    assert len(set(names)) == 9
    lines = [
        line
        for images in readings.IMAGES
        for i, name in enumerate(names)
        for line in readings.lines_of(images, name, np.array([[i, 0.5, 0.0]] * 2))
    ]
    readings.write(tmp_path, lines, [Network(10)] * 2)
    with (tmp_path / "readings.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 9 * 2
    assert (tmp_path / "readings.png").stat().st_size > 5000
    about = json.loads((tmp_path / "readings.json").read_text())
    assert about["commits_of_runs"] == ["abc"] and about["seconds_of_runs"] == 4.0
    assert about["measured_with"]["jax"]


@pytest.mark.parametrize("images", readings.IMAGES)
def test_a_reading_is_the_extractor_alone(images):
    config = readings.config_of(images, ("rows", "features", "pre"), (0, 1), 8000)
    assert config.strategy == "ol" and config.method.extractor == 1.0
    assert (config.method.norm, config.method.of, config.method.on) == (
        "rows",
        "features",
        "pre",
    )
    assert config.train.epochs == 2 and config.train.max_steps is None
