"""A field on the command line that would change nothing is refused."""

import pytest

DIGITS = ("--config.seeds=(0,)", "--config.train.epochs=1", "--config.data.num_tasks=2")


@pytest.mark.parametrize(
    "field, needs, added",
    [
        ("train.lr_factor=2", "train.patience", "train.patience=3"),
        ("train.lr_min=0.001", "train.patience", "train.patience=3"),
        ("train.patience_metric=loss", "train.patience", "train.patience=3"),
        ("train.select_metric=loss", "train.select=best", "train.select=best"),
        ("optimizer.lr_floor=0.001", "decay_per_task", "optimizer.decay_per_task=0.9"),
    ],
)
def test_it_needs_the_field_that_makes_it_count(field, needs, added, command, tmp_path):
    given = ("--config=digits", *DIGITS, f"--config.{field}")
    status, _, errors = command("run", *given, f"--workdir={tmp_path / 'a'}")
    name, value = field.split("=")
    assert status == 2 and f"config.{name} changes nothing without config." in errors
    assert needs in errors and value in errors
    assert not (tmp_path / "a").exists()
    status, out, errors = command(
        *("run", *given, f"--config.{added}"), f"--workdir={tmp_path / 'b'}"
    )
    assert status == 0, errors


def test_one_row_that_uses_it_is_enough(command, tmp_path):
    given = ("--config=digits", *DIGITS, "--config.train.select_metric=loss")
    rows = ("--strategies=bp,bp_star_star", f"--workdir={tmp_path / 'a'}")
    status, _, errors = command("compare", *given, *rows)
    assert status == 2 and "changes nothing" in errors
    one = ("--for=bp_star_star:train.select=best",)
    status, _, errors = command("compare", *given, *rows, *one)
    assert status == 0, errors


def test_a_field_of_one_row_and_of_a_grid_too(command, tmp_path):
    given = ("--config=digits", *DIGITS, f"--workdir={tmp_path / 'a'}")
    rows = ("--strategies=bp,bp_star_star", "--for=bp:train.select_metric=loss")
    status, _, errors = command("compare", *given, *rows)
    assert status == 2 and "config.train.select_metric changes nothing" in errors
    grid = ("--strategies=bp", "--grid=train.lr_factor=2,4")
    status, _, errors = command("sweep", *given, *grid)
    assert status == 2 and "config.train.lr_factor changes nothing" in errors
    assert not (tmp_path / "a").exists()


def test_its_default_may_be_said(command, tmp_path):
    given = ("--config=digits", *DIGITS, "--config.train.lr_factor=3.0")
    assert command("run", *given, f"--workdir={tmp_path}/a")[0] == 0
