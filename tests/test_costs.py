"""What a step and a run cost: counted operations, a device's limits, peak memory."""

import json

import pytest

from experiments.reporting import roofs
from experiments.runs import arithmetic, devices, machine, resident
from experiments.runs.cases import CASES
from jaxcl.benchmark import load
from tests.in_process import ROOT, refused


@pytest.fixture(scope="module")
def mlp():
    return {n: arithmetic.work(CASES["mlp10"], "bp", n) for n in (1, 3)}


def test_operations_of_a_step_are_those_of_its_products(mlp):
    # Forward, kernels' gradients, and inputs' gradients but for the first layer.
    first, others, batch = 784 * 100, 100 * 100 + 100 * 10, 10
    products = 2 * batch * (2 * first + 3 * others)
    assert products < mlp[1].flops < 1.25 * products
    assert mlp[3].flops == pytest.approx(3 * mlp[1].flops, rel=0.01)
    # The parameters are read twice and written once at least.
    assert mlp[1].bytes > 3 * 4 * (first + others)
    assert mlp[3].bytes == pytest.approx(3 * mlp[1].bytes, rel=0.1)
    assert 3 <= mlp[3].kernels <= 1.2 * mlp[1].kernels  # products of all seeds are one


def test_operations_do_not_depend_on_the_steps_of_an_epoch(mlp, monkeypatch):
    monkeypatch.setattr(arithmetic, "STEPS", 40)
    longer = arithmetic.flops(CASES["mlp10"], "bp", 1)
    assert mlp[1].flops < longer < 1.05 * mlp[1].flops  # the order of more images


def test_derpp_replays_two_batches_beside_the_tasks_own():
    case = CASES["mlp256"]
    ratio = arithmetic.flops(case, "derpp", 1) / arithmetic.flops(case, "bp", 1)
    assert 2.5 < ratio < 3.2


@pytest.mark.parametrize(
    "flops, size, kernels, seconds, by",
    [
        (4e12, 1.0, 1, 4.0, "arithmetic"),
        (1e12, 3e9, 1, 3.0, "memory"),
        (1e12, 1e9, 5000, 5.0, "kernels"),
    ],
)
def test_the_least_time_is_the_largest_of_three(flops, size, kernels, seconds, by):
    device = devices.Device("d", 1e12, 1e9, 1e-3, "")
    work = arithmetic.Work(flops, size, kernels)
    assert devices.bound(work, device) == (pytest.approx(seconds), by)


def test_this_machines_limits_are_possible():
    found = devices.this_machine()
    assert 1e8 < found.flops < 1e14 and 1e8 < found.bytes < 1e13
    assert 0 < found.kernel < 1e-3


def test_numbers_of_a_page_have_three_digits():
    found = [roofs.short(x) for x in (0.00437, 4.368, 43.68, 8785.2, 0)]
    assert found == ["0.00437", "4.37", "43.7", "8,785", "0"]


def test_roofline_writes_a_page_and_a_figure(command, tmp_path):
    arguments = ("--networks=mlp10", "--seeds=2,1", "--rounds=0")
    status, out, err = command("roofline", *arguments, f"--workdir={tmp_path / 'w'}")
    assert status == 0, err
    page = (tmp_path / "w/README.md").read_text()
    assert page.count("| MLP 784-100-100, batch 10 | 2 |") == 2  # cost, and over one
    assert page.count("| MLP 784-100-100, batch 10 | 1 |") == 1
    about = json.loads((tmp_path / "w/roofline.json").read_text())
    least = about["lines"][1]["least"]["H100 SXM"]
    assert least["by"] == "kernels" and about["lines"][1]["measured_s"] is None
    assert (tmp_path / "w/roofline.png").stat().st_size > 5000


def config(seeds, tasks, row="ewc"):
    found = load(ROOT / "configs/digits.py").get_config(row)
    found.seeds, found.data.num_tasks = tuple(range(seeds)), tasks
    return found


def test_what_training_carries_grows_with_the_seeds():
    one, two = resident.known(config(1, 5)), resident.known(config(2, 5))
    assert one["images"] == two["images"] > 1797 * 64  # bytes of the pixels
    assert two["state"] == pytest.approx(2 * one["state"], rel=0.01)
    # Weights, and EWC's anchor and importance of the 64-100-100-10 network.
    assert one["state"] >= 3 * 4 * (64 * 100 + 100 * 100 + 100 * 10)


def test_memory_is_measured_once(command, tmp_path):
    arguments = ("--config=digits", "--strategies=bp", "--seeds=1", "--tasks=2")
    arguments += ("--images=20", f"--workdir={tmp_path}")
    status, out, err = command("memory", *arguments)
    assert status == 0, err
    about = json.loads((tmp_path / "memory.json").read_text())
    (line,) = about["lines"]
    # A run has the libraries, and JAX alone takes more than this.
    assert line["peak"] > about["libraries"] > 100 * 2**20
    assert "| BP | 1 | 2 |" in (tmp_path / "README.md").read_text()
    status, again, err = command("memory", *arguments)
    assert status == 0 and "MiB" in out and "MiB" not in again
    refused(command("memory", *arguments, "--images=30"), "memory.json", "another")


def test_another_model_is_what_is_measured(command, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(resident, "peak", lambda given: asked.append(given) or 2**20)
    arguments = ("--config=digits", "--strategies=bp", "--seeds=1", "--tasks=2")
    arguments += ("--images=20", f"--workdir={tmp_path}", "--config.model.name=mlp")
    status, _, err = command("memory", *arguments, "--config.model.widths=(7,)")
    assert status == 0, err
    for given in asked:
        assert {"--model=name=mlp", "--model=widths=(7,)"} <= set(given)
    other = command("memory", *arguments, "--config.model.widths=(8,)")
    refused(other, "memory.json", "another")


def test_peak_memory_is_not_that_of_the_process_that_asks():
    held = bytearray(b"1") * 2**30
    assert resident.peak(["--config=digits:bp", "--print_config"]) < len(held)


def test_a_failed_run_is_told():
    with pytest.raises(machine.UsageError, match="a run ended with 2: error: .*"):
        resident.peak(["--config=nosuch"])
