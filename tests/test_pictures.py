"""The commands `plane` and `attention`, and their pure functions in float64."""

import copy
import json

import jax
import numpy as np
import pytest
from scipy import stats

from configs import digits
from experiments import attention, plane
from experiments.runs import arrays, landscape, machine, maps, rows
from jaxcl import features


def tree(rng, scale=1.0):
    shapes = {"head": {"kernel": (3, 4)}, "conv": {"kernel": (5, 2, 2), "bias": (2,)}}
    return jax.tree.map(
        lambda shape: np.float32(scale * rng.normal(size=shape)),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def flat(weights):
    return np.concatenate([np.float64(v).ravel() for v in jax.tree.leaves(weights)])


def axes_of(a, b, c):
    """Gram–Schmidt in float64."""
    first = (b - a) / np.linalg.norm(b - a)
    rest = (c - a) - (c - a) @ first * first
    return first, rest / np.linalg.norm(rest)


@pytest.mark.parametrize("apart", [1.0, 1e-3], ids=["apart", "nearly on a line"])
def test_plane_coordinates_and_the_share_outside(apart):
    rng = np.random.default_rng(0)
    a, b, w = tree(rng), tree(rng), tree(rng)
    c = jax.tree.map(lambda u, v, t: u + 2 * (v - u) + apart * t, a, b, tree(rng))
    plane = features.plane_through(a, b, c)
    e1, e2 = axes_of(flat(a), flat(b), flat(c))
    tolerance = {"atol": 2e-6 / apart, "rtol": 2e-6}
    np.testing.assert_allclose(flat(plane.first), e1, atol=1e-6)
    np.testing.assert_allclose(flat(plane.second), e2, **tolerance)
    for point in (a, b, c, w):
        r = flat(point) - flat(a)
        rest = r - r @ e1 * e1 - r @ e2 * e2
        outside = rest @ rest / (r @ r) if (r @ r) else 0.0
        found = jax.jit(features.place_in)(plane, point)
        size = {"atol": 1e-5 / apart, "rtol": 1e-5}
        np.testing.assert_allclose(found.coordinates, (r @ e1, r @ e2), **size)
        np.testing.assert_allclose(found.outside, outside, atol=1e-6 + 1e-8 / apart)
    assert outside > 0.5  # w's, which was drawn freely


def test_a_point_of_the_plane_is_where_it_is_said_to_be():
    rng = np.random.default_rng(1)
    corners = [tree(rng) for _ in range(3)]
    plane = features.plane_through(*corners)
    for corner in corners:
        there = features.point_of(plane, features.place_in(plane, corner).coordinates)
        np.testing.assert_allclose(flat(there), flat(corner), atol=2e-6)
    e1, e2 = axes_of(*map(flat, corners))
    there = flat(features.point_of(plane, np.float32([-0.5, 2.0])))
    np.testing.assert_allclose(there, flat(corners[0]) - 0.5 * e1 + 2 * e2, atol=3e-6)


def test_a_corner_up_to_rounding_lies_in_the_plane():
    rng = np.random.default_rng(4)
    corners = [tree(rng) for _ in range(3)]
    plane = features.plane_through(*corners)
    near = jax.tree.map(lambda v: v + np.float32(1e-6) * rng.normal(), corners[0])
    found = jax.jit(features.place_in)(plane, near)
    assert found.outside == 0
    np.testing.assert_allclose(found.coordinates, 0, atol=1e-4)
    away = jax.tree.map(lambda v: v + np.float32(1e-3) * rng.normal(), corners[0])
    assert jax.jit(features.place_in)(plane, away).outside > 0.5


def test_three_points_on_a_line_give_no_second_axis():
    a = tree(np.random.default_rng(2))
    b = jax.tree.map(lambda v: 1.5 * v, a)
    c = jax.tree.map(lambda v: -0.3 * v, a)
    assert not flat(features.plane_through(a, b, c).second).any()
    assert not flat(features.plane_through(a, a, c).first).any()


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_spearmans(ties):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 2, 5, 7, 6))
    b += a * np.arange(5)[:, None, None]
    if ties:
        a, b = np.round(a), np.round(b)
    found = jax.jit(features.rank_correlation)(np.float32(a), np.float32(b))
    for i in np.ndindex(2, 5):
        x, y = np.float32(a[i]).ravel(), np.float32(b[i]).ravel()
        expected = stats.spearmanr(np.float64(x), np.float64(y)).statistic
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    assert np.ptp(found) > 0.5


def test_rank_correlation_of_equal_opposite_and_flat_maps():
    a = np.float32(np.random.default_rng(4).normal(size=(2, 3, 3)))
    np.testing.assert_allclose(features.rank_correlation(a, 3 * a + 1), 1, atol=1e-6)
    np.testing.assert_allclose(features.rank_correlation(a, -a), -1, atol=1e-6)
    assert np.isnan(features.rank_correlation(a, np.zeros_like(a))).all()
    with pytest.raises(ValueError, match=r"\(2, 3, 3\) and \(3, 3\)"):
        features.rank_correlation(a, a[0])


# --- The commands ---------------------------------------------------------------------

FIELDS = {
    "seeds": (3, 5),
    "data.num_tasks": 2,
    "data.train_per_task": 60,
    "train.epochs": 2,
    "train.select": "last",
    "keep_weights": "epochs",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on digits: row -> run."""
    found = [digits.get_config(row) for row in ("bp", "joint", "hat")]
    for config in found:
        config.update_from_flattened_dict(FIELDS)
    return rows.trained(found, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def planar(runs):
    return {row: runs[row] for row in ("bp", "joint")}


@pytest.fixture(scope="module")
def shown(planar, tmp_path_factory):
    """The plane's numbers as written, and the folder."""
    workdir = tmp_path_factory.mktemp("plane")
    plane.show(planar, workdir, 5, 5)
    return json.loads((workdir / "plane.json").read_text()), workdir


def test_the_plane_goes_through_the_three_networks(planar, shown):
    found, _ = shown
    bp, joint = planar.values()
    for row, run in planar.items():
        own = found["rows"][row]
        # The accuracy of each network itself is the one that the run has measured.
        np.testing.assert_allclose(own["accuracy"], run.result.matrix[1, 1], atol=1e-6)
        # Both paths begin and end in corners, which lie in the plane.
        np.testing.assert_allclose(own["path"][0], 0, atol=1e-6)
        assert own["outside"][0] == 0 and own["outside"][-1] < 1e-6
        assert len(own["path"]) == 1 + 2 + 1
        shadow = own["nearest_point_accuracy"]
        np.testing.assert_allclose(shadow, own["accuracy"], atol=0.02)
    corners = [flat(run.weights(5, 1).params.net) for run in (bp, joint)]
    start = flat(bp.weights(5, 0).params.net)
    lengths = [np.linalg.norm(corner - start) for corner in corners]
    at = np.array([found["corners"][name] for name in ("task_2", "joint")])
    np.testing.assert_allclose(np.linalg.norm(at, axis=1), lengths, rtol=1e-5)
    assert at[0, 1] < 1e-6 < at[1, 1]


def test_the_height_of_the_plane_is_the_accuracy_there(planar, shown):
    found, _ = shown
    bp = planar["bp"]
    start = flat(bp.weights(5, 0).params.net)
    ends = [flat(run.weights(5, 1).params.net) for run in planar.values()]
    e1, e2 = axes_of(start, *ends)
    like, treedef = jax.tree.flatten(bp.weights(5, 1).params.net)
    i, j = 1, 3
    point = start + found["x"][j] * e1 + found["y"][i] * e2
    parts = np.split(point, np.cumsum([leaf.size for leaf in like])[:-1])
    net = treedef.unflatten(
        [np.float32(v.reshape(leaf.shape)) for v, leaf in zip(parts, like, strict=True)]
    )
    weights = bp.weights(5, 1)
    weights = weights._replace(params=weights.params._replace(net=net))
    for task in (0, 1):
        x, y = bp.data(5, task)
        mask = np.asarray(bp.problem.stream.logit_mask)[task]
        logits = np.where(mask, bp.apply(weights, x, task).logits, -np.inf)
        expected = np.mean(logits.argmax(1) == y)
        assert abs(found["accuracy"][task][i][j] - expected) < 1.5 / len(y)
    mean = np.mean(found["accuracy"], axis=0)
    assert np.mean(found["best_of_the_plane"]["accuracy"]) == mean.max()


def test_what_is_measured_of_a_plane_is_not_measured_again(
    planar, shown, monkeypatch, tmp_path
):
    found, workdir = shown
    for kind in ("png", "svg"):
        assert (workdir / f"plane.{kind}").stat().st_size > 5000
    for key in ("arguments", "runs", "measured_with", "seconds_of_the_plane"):
        assert key in found
    asked = []
    real = landscape.tasks_of

    def counted(*given):
        tasks = real(*given)
        return tasks._replace(accuracy=lambda w: asked.append(w) or tasks.accuracy(w))

    monkeypatch.setattr(landscape, "tasks_of", counted)
    again = plane.show(planar, workdir, 5, 5)
    assert again["accuracy"] == found["accuracy"]
    assert len(asked) == 2 * len(planar)  # the ends of paths and their shadows
    # If half of the plane is measured, only the other half is measured again.
    file = workdir / "plane.npz"
    held = arrays.load(file)
    held["accuracy"][:, 0] = np.nan
    arrays.save(tmp_path / "plane.npz", held)
    asked.clear()
    assert plane.show(planar, tmp_path, 5, 5)["accuracy"] == found["accuracy"]
    assert len(asked) == 2 * len(planar) + len(found["x"])


def test_a_grid_of_squares_holds_all_that_is_drawn():
    drawn = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 1.0]])
    x, y = landscape.grid_of(drawn, 11)
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0])
    np.testing.assert_allclose(np.diff(y), np.diff(x)[0])
    assert len(x) == 11 and x[0] == -0.6 and abs(x[-1] - 4.6) < 1e-9
    assert y[0] == -0.6 and 1.6 <= y[-1] < 1.6 + np.diff(y)[0]


@pytest.mark.parametrize(
    "named, told",
    [
        (("bp", "hat", "joint"), "HAT answers by more than its weights"),
        (("bp",), "name one of each"),
        (("joint",), "name one of each"),
    ],
)
def test_what_has_no_plane_is_refused(runs, tmp_path, named, told):
    with pytest.raises(machine.UsageError, match=told):
        plane.show({row: runs[row] for row in named}, tmp_path, None, 3)
    assert not list(tmp_path.iterdir())


def test_runs_are_found_in_folders(runs, tmp_path):
    found = rows.given([str(runs["hat"].workdir), str(runs["bp"].workdir)])
    assert list(found) == ["hat", "bp"]
    with pytest.raises(machine.UsageError, match="are both of row 'bp'"):
        rows.given([str(runs["bp"].workdir)] * 2)
    with pytest.raises(machine.UsageError, match="no run's folder"):
        rows.given([str(tmp_path)])


def test_what_is_told_of_a_command_names_no_folder_of_this_machine():
    given = ["--config=/far/away/configs/digits.py:bp,class", "--config.seeds=(0,)"]
    given += ["--workdir=/far/away/out", "--runs=/far/away/a,/far/away/b", "--points=9"]
    expected = ["--config=digits:bp,class", "--config.seeds=(0,)", "--points=9"]
    assert rows.told(given) == expected


@pytest.fixture(scope="module")
def looked(runs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("attention")
    pair = {row: runs[row] for row in ("bp", "hat")}
    return attention.show(pair, workdir, ["0", "5"], 20), workdir


def test_maps_are_what_covering_takes_from_the_probability(runs, looked):
    """For one image, square by square, with the run's own forward pass."""
    run, (_, workdir) = runs["hat"], looked
    held = arrays.load(workdir / "attention.npz")
    (name,) = [name for name in held if name.startswith("maps/hat/5/1/")]
    x, y = run.data(5, 0)
    weights = run.weights(5, 1)
    mask = np.asarray(run.problem.stream.logit_mask)[0]

    def known(image):
        logits = np.asarray(run.apply(weights, image[None], 0, current=1).logits[0])
        logits = np.float64(logits[mask])
        right = int(np.flatnonzero(mask).tolist().index(y[5]))
        return logits[right] - np.log(np.exp(logits).sum())

    assert held[name].shape == (2 + 20, 7, 7)  # squares of 2 at every pixel of 8 × 8
    for r, c in ((0, 0), (3, 4), (6, 6)):
        covered = x[5].copy()
        covered[r : r + 2, c : c + 2] = 0
        expected = known(x[5]) - known(covered)
        np.testing.assert_allclose(held[name][1, r, c], expected, atol=2e-5)
    chance = held[name.replace("maps/", "chance/")][1]
    np.testing.assert_allclose(chance, np.exp(known(x[5])), atol=1e-5)


def test_hat_looks_where_it_looked_and_seeds_are_compared(looked):
    found, workdir = looked
    agreement = found["agreement"]
    # HAT's gates of task 1 and the units that they open do not change.
    np.testing.assert_allclose(agreement["with_task_1"]["hat"], [1, 1], atol=1e-4)
    assert agreement["with_task_1"]["bp"][0] > 1 - 1e-6
    assert agreement["with_task_1"]["bp"][1] < 1 - 1e-3
    for row in ("bp", "hat"):
        assert len(agreement["between_seeds"][row]) == 2
        other, seeds = agreement["other_image"][row], agreement["between_seeds"][row]
        assert all(abs(v) < 1 for v in other + seeds)
    assert json.loads((workdir / "attention.json").read_text())["images"] == [0, 5]
    assert (workdir / "attention.png").stat().st_size > 5000
    assert (workdir / "attention.svg").stat().st_size > 5000


def test_maps_that_are_measured_are_not_measured_again(runs, looked, monkeypatch):
    found, workdir = looked

    def never(run):
        return lambda *given: pytest.fail("measured again")

    monkeypatch.setattr(maps, "_maps_of", never)
    pair = {row: runs[row] for row in ("bp", "hat")}
    assert (
        attention.show(pair, workdir, ["0", "5"], 20)["agreement"]
        == (found["agreement"])
    )


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_agreements_by_hand():
    """Means over images and seeds of Spearman's ρ, flat maps left out."""
    rng = np.random.default_rng(5)
    a, b = (np.float32(rng.normal(size=(2, 3, 4, 5, 5))) for _ in range(2))
    a[0, 1, 2] = 0.0
    found = maps.numbers({"a": a, "b": b}, alike=True)

    def rho(x, y):
        return stats.spearmanr(x.ravel(), y.ravel()).statistic

    between = [
        [rho(a[s, t, n], b[s, t, n]) for s in (0, 1) for n in range(4)]
        for t in range(3)
    ]
    np.testing.assert_allclose(
        found["between_methods"], [np.nanmean(v) for v in between], atol=1e-6
    )
    seeds = [[rho(b[0, t, n], b[1, t, n]) for n in range(4)] for t in range(3)]
    np.testing.assert_allclose(
        found["between_seeds"]["b"], np.mean(seeds, 1), atol=1e-6
    )
    np.testing.assert_allclose(found["with_task_1"]["b"][0], 1, atol=1e-6)
    assert maps.numbers({"a": a, "b": b}, alike=False)["between_seeds"]["a"] == []


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    pair = {row: runs[row] for row in ("bp", "hat")}
    with pytest.raises(machine.UsageError, match="two methods are compared, got bp"):
        attention.show({"bp": runs["bp"]}, tmp_path, None, 4)
    with pytest.raises(machine.UsageError, match=r"places in 0\.\.\d+, got 99999"):
        attention.show(pair, tmp_path, ["99999"], 4)


def with_failures(run, *seeds):
    """A run as if some of its seeds had failed in task 2."""
    changed, result = copy.copy(run), run.result
    status, matrix = list(result.status), result.matrix.copy()
    for seed in seeds:
        place = run.seeds.index(seed)
        status[place], matrix[place, 1] = "failed: task 2, epoch 1", np.nan
    changed.result = result._replace(status=status, matrix=matrix)
    return changed


def test_a_plane_is_of_a_seed_that_has_not_failed(planar, tmp_path):
    bad = {**planar, "bp": with_failures(planar["bp"], 3)}
    with pytest.raises(machine.UsageError, match="bp, seed 3: failed: task 2, epoch 1"):
        plane.show(bad, tmp_path, 3, 2)
    none = {**planar, "bp": with_failures(planar["bp"], 3, 5)}
    with pytest.raises(machine.UsageError, match="no seed is without a failure"):
        plane.show(none, tmp_path, None, 2)
    plane.show(bad, tmp_path, None, 2)
    assert json.loads((tmp_path / "plane.json").read_text())["seed"] == 5


def test_maps_are_of_seeds_that_have_not_failed(runs, looked, tmp_path, capsys):
    whole, _ = looked
    pair = {"bp": with_failures(runs["bp"], 3), "hat": runs["hat"]}
    shown = attention.show(pair, tmp_path, ["0", "5"], 20)
    assert "bp, seed 3: failed: task 2, epoch 1" in capsys.readouterr().out
    written = json.loads((tmp_path / "attention.json").read_text())
    assert written["failed"] == {"bp": {"3": "failed: task 2, epoch 1"}, "hat": {}}
    assert (shown["seed_shown"], shown["seeds_measured"]) == (5, [5])
    assert shown["accuracy"] == {r: a[1:] for r, a in whole["accuracy"].items()}
    pair["hat"] = with_failures(runs["hat"], 5)
    with pytest.raises(machine.UsageError, match="no seed is without a failure"):
        attention.show(pair, tmp_path, None, 20)


def test_images_shown_are_images_that_every_seed_has(runs, tmp_path):
    """Where seeds draw their classes, their tests differ in size."""

    def shorter(run):
        changed = copy.copy(run)

        def data(seed, task, part="test"):
            last = 30 if seed == 5 else None
            return tuple(v[:last] for v in run.data(seed, task, part))

        changed.data = data
        return changed

    pair = {row: shorter(runs[row]) for row in ("bp", "hat")}
    shown = attention.show(pair, tmp_path, None, 4)
    assert max(shown["images"]) < 30 and shown["images_measured"] == 4
