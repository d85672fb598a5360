"""Somebody else's files are not written over, by a run, a report or a page."""

import pytest

from configs import digits
from experiments.runs import foreign, machine
from experiments.runs.execute import execute
from jaxcl import files

RUN = ("--config=digits", "--config.seeds=(0,)", "--config.data.num_tasks=2")
SHORT = ("--config.train.epochs=1", "--config.data.train_per_task=60")
MINE = "mine\n"


def of_somebody(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(MINE)
    return {name: (folder / name) for name in names}


@pytest.mark.parametrize("name", foreign.WRITTEN)
def test_a_run_leaves_somebody_elses_folder(command, tmp_path, name):
    there = of_somebody(tmp_path, name)
    status, _, errors = command("run", *RUN, *SHORT, f"--workdir={tmp_path}")
    assert status == 2 and name in errors and "use another folder" in errors
    assert {p.name for p in tmp_path.iterdir()} == {name}
    assert there[name].read_text() == MINE


def test_compare_and_report_leave_it_too(command, tmp_path):
    mine, run = tmp_path / "mine", tmp_path / "run"
    there = of_somebody(mine, "rank.png")
    status, _, errors = command("compare", *RUN, *SHORT, f"--workdir={mine}")
    assert status == 2 and "rank.png" in errors
    assert command("run", *RUN, *SHORT, f"--workdir={run}")[0] == 0
    status, _, errors = command("report", str(run), f"--out={mine}")
    assert status == 2 and "rank.png" in errors
    assert there["rank.png"].read_text() == MINE
    status, _, errors = command("compare", *RUN, *SHORT, f"--workdir={run}")
    assert status == 2 and "a run's own folder" in errors


def test_runs_comparisons_and_sweeps_have_folders_of_their_own(command, tmp_path):
    """A sweep wrote its table and its rows into the folder of a comparison."""
    compared, swept = tmp_path / "compared", tmp_path / "swept"
    alone = compared / "bp"
    one = (*RUN, *SHORT, "--strategies=bp")
    sweep = ("sweep", *one, "--grid=optimizer.lr=0.1,0.2")
    assert command("compare", *one, f"--workdir={compared}")[0] == 0
    assert command(*sweep, f"--workdir={swept}")[0] == 0
    assert command(*sweep, f"--workdir={swept}")[0] == 0  # it goes on
    before = sorted(tmp_path.rglob("*"))
    heads = ("heads", *RUN, *SHORT, "--strategies=bp", "--config.data.scenario=class")
    ewc = (*RUN, *SHORT, "--strategies=ewc")
    for what, folder, told in (
        (sweep, compared, "is a comparison's folder, its runs are bp; use another"),
        (sweep, alone, "is a run's own folder; use another --workdir"),
        (("compare", *ewc), swept, "is a sweep's folder"),
        (heads, alone, "is a run's own folder"),
        (("run", *RUN, *SHORT), swept, "these in it are: bp/optimizer.lr=0.1, bp/opt"),
    ):
        status, _, errors = command(*what, f"--workdir={folder}")
        assert status == 2 and f"{folder} " in errors and told in errors, errors
    status, _, errors = command("report", str(swept))
    told = f"a sweep's folder: its table is sweep.csv; its runs are in {swept / 'bp'},"
    assert status == 2 and told in errors
    status, _, errors = command("report", str(tmp_path))
    assert status == 2 and f"holds no run, but these in it do: {compared}" in errors
    assert sorted(tmp_path.rglob("*")) == before
    assert command("report", str(swept / "bp"), f"--out={tmp_path / 'out'}")[0] == 0


def test_other_files_do_not_matter_and_stay(command, tmp_path):
    """A log, notes, hidden files of an editor: all are there afterwards."""
    names = ("log.txt", ".notes.tmp", ".draft.tmp.md", "sub/.x.tmp", "sub/bars.png")
    there = of_somebody(tmp_path, *names)
    for _ in range(2):  # the second time the run is finished, and its folder tidied
        assert command("run", *RUN, *SHORT, f"--workdir={tmp_path}")[0] == 0
    assert command("report", str(tmp_path))[0] == 0
    assert all(file.read_text() == MINE for file in there.values())


def test_what_a_killed_writer_left_is_removed(tmp_path):
    ours = (".result.json.4711.tmp", ".3.tmp", ".3.old.tmp")
    of_somebody(tmp_path, *ours, ".mine.tmp")
    files.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".mine.tmp"]


def test_all_that_is_written_is_known(command, tmp_path):
    """Every table and figure is in the list, so that none is written over."""
    config = digits.get_config("hat")
    config.update_from_flattened_dict(
        {"seeds": (0,), "data.num_tasks": 2, "train.epochs": 1}
        | {"features": "rank,probes,cka", "feature_examples": 20}
    )
    execute(config, tmp_path)
    own = {p.name for p in tmp_path.iterdir()}
    assert command("report", str(tmp_path))[0] == 0
    written = {p.name for p in tmp_path.iterdir()} - own
    assert written and written <= set(foreign.WRITTEN)
    assert own & set(foreign.WRITTEN) >= {"metrics.jsonl", "matrix.npy"}


@pytest.mark.parametrize("name", ["report", "memory", "roofline"])
def test_a_page_does_not_replace_another_readme(command, tmp_path, name):
    there = of_somebody(tmp_path, "README.md")
    where = f"--page={tmp_path}" if name == "report" else f"--workdir={tmp_path}"
    more = ["--config=digits"] if name == "memory" else []
    status, _, errors = command(name, *more, where)
    assert status == 2 and "is no page of this command" in errors
    assert there["README.md"].read_text() == MINE
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    "name, file, more",
    [
        ("heads", "heads.md", ("--strategies=bp", "--config.data.scenario=class")),
        ("sweep", "sweep.csv", ("--strategies=bp", "--grid=optimizer.lr=0.1,0.2")),
        ("plane", "plane.png", ()),
        ("attention", "attention.json", ()),
        ("readings", "readings.csv", None),
    ],
)
def test_a_commands_output_does_not_replace_another_file(
    command, tmp_path, name, file, more
):
    there = of_somebody(tmp_path, file)
    given = () if more is None else (*RUN, *SHORT, *more)
    status, _, errors = command(name, *given, f"--workdir={tmp_path}")
    assert status == 2 and file in errors and "not of this command" in errors
    assert there[file].read_text() == MINE
    assert [p.name for p in tmp_path.iterdir()] == [file]


def test_a_command_replaces_its_own_output(tmp_path):
    """Where its runs are, or where its JSON says what it is of."""
    of_somebody(tmp_path / "rows", "bp/config.json", "heads.md")
    of_somebody(tmp_path / "sweep", "bp/lr=1/config.json", "sweep.csv")
    of_somebody(tmp_path / "picture", "plane.png")
    told = tmp_path / "picture" / "plane.json"
    told.write_text('{"arguments": [], "runs": {}}')
    foreign.require_own_output(tmp_path / "rows", "heads.md")
    foreign.require_own_output(tmp_path / "sweep", "sweep.csv")
    foreign.require_own_output(tmp_path / "picture", "plane.png", "plane.json")
    told.write_text("{}")
    with pytest.raises(machine.UsageError, match="plane.png is there"):
        foreign.require_own_output(tmp_path / "picture", "plane.png", "plane.json")


@pytest.mark.parametrize("family", ["", "family,"])
def test_a_table_of_an_earlier_version_is_a_reports(tmp_path, family):
    header = f"method,row,{family}config,scenario,tasks"
    (tmp_path / "table.csv").write_text(f"{header}\n")
    foreign.require_own(tmp_path)
    (tmp_path / "table.csv").write_text("method,row,accuracy\n")  # somebody else's
    with pytest.raises(machine.UsageError, match=r"table\.csv is there"):
        foreign.require_own(tmp_path)
