"""What examples in docstrings and in the README are given."""

import pytest


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The folder of a run of two tasks whose weights were kept."""
    from configs import digits
    from experiments.runs.execute import execute

    config = digits.get_config()
    config.update_from_flattened_dict(
        {
            "seeds": (0,),
            "data.num_tasks": 2,
            "data.train_per_task": 60,
            "train.epochs": 1,
            "keep_weights": "tasks",
        }
    )
    workdir = tmp_path_factory.mktemp("run")
    execute(config, workdir)
    return workdir


@pytest.fixture(autouse=True)
def _a_run_to_open(request, doctest_namespace):
    """``workdir``, in examples that open a run."""
    example = getattr(request.node, "dtest", None)
    if example and any("load_run(" in e.source for e in example.examples):
        doctest_namespace["workdir"] = request.getfixturevalue("small_run")
