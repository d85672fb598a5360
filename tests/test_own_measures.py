"""Measures of one's own, named by an import path in ``config.features``."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_recording import cells, config_of, seen

import jaxcl
from experiments.reporting import feature_scores, figures, scores
from experiments.runs import foreign, measured
from experiments.runs.execute import execute
from jaxcl.training import measures


def spread_of_means(x, y):
    """Largest distance of a class's mean from the mean, over units."""
    x = x.reshape(len(x), -1)
    own = (y[:, None] == jnp.arange(4)).astype(x.dtype)
    means = own.T @ x / jnp.maximum(own.sum(0)[:, None], 1)
    distance = jnp.linalg.norm(means - x.mean(0), axis=1)
    return jnp.where(own.any(0), distance, 0).max()


def in_numpy(x, y):
    x = np.asarray(x, np.float64)
    means = [x[y == c].mean(0) for c in np.unique(y)]
    return max(np.linalg.norm(mean - x.mean(0)) for mean in means)


def per_example(x, y):
    return x.mean(1)


def broken(x, y):
    return x @ y


def effective_rank(x, y):
    return x.mean()


def path(function):
    return f"{__name__}:{function.__name__}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own")
    execute(config_of(features=f"rank, {path(spread_of_means)}"), workdir)
    return workdir


def test_it_is_measured_on_each_layer_after_each_task(folder):
    run = jaxcl.load_run(folder)
    for k, seed in enumerate(run.seeds):
        for trained, task, wanted in cells():
            features, y = seen(run, seed, trained - 1, task)
            for layer, x in features.items():
                value = run.measured[f"spread_of_means/{layer}"][k, trained, task]
                if wanted:
                    expected = in_numpy(x, np.asarray(y))
                    np.testing.assert_allclose(value, expected, rtol=1e-4)
                else:
                    assert np.isnan(value)


def test_it_is_in_the_long_table_the_table_and_a_figure(folder, tmp_path):
    run = jaxcl.load_run(folder)
    own = [r for r in run.records() if r["quantity"] == "spread_of_means"]
    assert {(r["layer"], r["tasks_trained"]) for r in own} >= {("hidden_0", 3)}
    values = run.measured["spread_of_means/hidden_1"]
    rows = scores.rows([run.result])
    text = feature_scores.text_table(rows)
    title, line = text.splitlines()[0], text.splitlines()[2]
    assert title.rstrip().endswith("spread_of_means untrained  spread_of_means end")
    untrained, end = values[:, 0].mean(), values[:, 3].mean()
    assert line.split()[1] == "hidden_1"
    assert line.split()[-2:] == [f"{untrained:.2f}", f"{end:.2f}"]
    figures.write(rows, tmp_path)
    assert (tmp_path / "own.png").exists()
    figures.write([r._replace(result=without(r.result)) for r in rows], tmp_path)
    assert not (tmp_path / "own.png").exists()  # it would seem to belong to these


def without(result):
    """A result whose run did not measure it."""
    kept = {k: v for k, v in result.features.items() if "spread" not in k}
    return result._replace(features=kept)


def test_what_is_drawn_and_measured_is_known_by_name():
    """To the check of other people's files, and to that of a function's name."""
    assert {"own", *figures.FEATURES} <= set(foreign.FIGURES)
    assert set(measures.QUANTITIES) == set(measured.AXES)


@pytest.mark.parametrize(
    "asked, told",
    [
        ("rank, nosuch", "or package.module:name; not nosuch"),
        ("nosuch_module:f", "cannot be imported"),
        (f"{__name__}:nosuch", "cannot be imported"),
        (path(effective_rank), "'effective_rank' is measured already"),
        (path(per_example), r"has to give a scalar, got \[50\]"),
        (path(broken), r"test_own_measures.py:\d+"),
    ],
)
def test_what_cannot_be_measured_is_refused(asked, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        execute(config_of(features=asked), tmp_path / "run")
