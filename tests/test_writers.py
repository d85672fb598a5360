"""A run's numbers in TensorBoard and W&B: each is written once."""

import json
import struct
import sys
import types

import numpy as np
import pytest

from configs import digits
from experiments.runs import writers
from experiments.runs.execute import carry_out, prepare
from jaxcl.training.epoch import EpochMetrics
from jaxcl.training.protocol import EpochDone, TaskDone


def config_of(**fields):
    config = digits.get_config("bp")
    config.seeds = (0, 1)
    quick = {"data.num_tasks": 2, "data.train_per_task": 40, "train.epochs": 2}
    config.update_from_flattened_dict(quick | fields)
    return config


class Fake(types.ModuleType):
    """The parts of wandb that a writer uses; records all calls."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")
        self.begun, self.logged, self.ended = [], [], 0

    def init(self, **options):
        self.begun.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.ended += 1


def epochs_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "epoch" in line]


def test_both_places_get_each_number_once_also_of_a_run_that_goes_on(
    tmp_path, monkeypatch
):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = config_of(write_to="tensorboard,wandb")
    carry_out(prepare(config, tmp_path))
    steps = [step for step, _ in fake.logged]
    assert steps == [1, 2, 2, 3, 4, 4]  # two epochs and an end, twice
    assert fake.begun[0]["config"]["data.num_tasks"] == 2 and fake.ended == 1
    # Else wandb would give the settings of a sweep, trained together, one run.
    assert fake.begun[0]["reinit"] == "create_new"
    tags = read_events(tmp_path / "tensorboard")
    told = epochs_of(tmp_path)
    for seed in (0, 1):
        expected = [line["loss"][seed] for line in told]
        ours = [tags[f"loss/seed_{seed}"][step] for step in (1, 2, 3, 4)]
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert tags["accuracy_task_1/mean"].keys() == {2, 4}
    assert tags["accuracy_task_2/mean"].keys() == {4}
    logged = {step: values for step, values in fake.logged}
    for name, by_step in tags.items():
        for step, value in by_step.items():
            if name in logged[step]:
                np.testing.assert_allclose(value, logged[step][name], rtol=1e-6)
    # Finished: nothing is written again.
    carry_out(prepare(config, tmp_path))
    assert len(fake.logged) == 6 and len(fake.begun) == 1


def read_events(folder):
    """tag -> step -> value of the event files in a folder."""
    from tensorboardX.proto import event_pb2

    found = {}
    for file in folder.glob("events*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            for value in event.summary.value:
                steps = found.setdefault(value.tag, {})
                assert event.step not in steps, (value.tag, event.step)
                steps[event.step] = value.simple_value
            at += 16 + size
    return found


def test_what_is_not_finite_is_left_out():
    nan = np.nan
    metrics = EpochMetrics(
        *np.array([[1.0, nan], [nan, nan], [0.5, 0.7], [1, 1], [3, 0]])
    )
    event = EpochDone(task=0, epoch=0, metrics=metrics, seconds=1.0)
    assert writers.scalars_of(event, (3, 9)) == {
        "loss/seed_3": 1.0,
        "loss/mean": 1.0,
        "val_accuracy/seed_3": 0.5,
        "val_accuracy/seed_9": 0.7,
        "val_accuracy/mean": 0.6,
    }
    accuracy = np.array([[[0.5, nan], [0.25, 0.75]]])
    ended = TaskDone(
        task=1,
        accuracy=accuracy,
        baseline=accuracy[:, 0],
        status=("ok",),
        steps=np.array([3]),
        seconds=1.0,
        report={},
    )
    found = writers.scalars_of(ended, (3,))
    assert found["accuracy_so_far/mean"] == 0.5
    assert found["accuracy_task_2/seed_3"] == 0.75


@pytest.mark.parametrize(
    "write_to,what",
    [
        ("tensorbord", "must be of tensorboard, wandb.*got 'tensorbord'"),
        ("wandb", r'needs wandb: pip install "jaxcl\[wandb\]"'),
    ],
)
def test_a_place_that_is_not_there_is_refused(tmp_path, monkeypatch, write_to, what):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=what):
        prepare(config_of(write_to=write_to), tmp_path)
