"""Two CPU devices, and array caches of the test's own."""

import atexit
import os
import shutil
import tempfile

import numpy as np
import pytest

# What the tests cost is compiling the same small programs again and again: optimise
# them less and share them with the workers of pytest-xdist and the commands under test,
# which inherit the environment.
_FLAGS = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.mkdtemp(prefix="jaxcl-compiled-")
    atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)

from jaxcl.data.cache import Source  # noqa: E402
from jaxcl.data.scenarios import make_stream  # noqa: E402
from jaxcl.nn import models  # noqa: E402
from jaxcl.strategies import make  # noqa: E402
from jaxcl.training import protocol  # noqa: E402
from jaxcl.training.plan import Plan  # noqa: E402
from jaxcl.training.problem import Problem  # noqa: E402


@pytest.fixture(scope="session")
def tfds_dir() -> str:
    """The folder of prepared data sets, or a skip."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder:
        pytest.skip("TFDS_DATA_DIR is not set: no prepared MNIST and CIFAR-100")
    return folder


@pytest.fixture(scope="session")
def blobs() -> Source:
    return blobs_source()


def blobs_source() -> Source:
    """Six classes of noisy 4 × 4 images, small enough to train on in a test."""
    rng = np.random.default_rng(0)
    centre = rng.integers(40, 216, (6, 4, 4, 1))

    def draw(n):
        y = np.arange(n) % 6
        x = np.clip(centre[y] + rng.normal(0, 30, (n, 4, 4, 1)), 0, 255)
        return x.astype(np.uint8), y.astype(np.int32)

    train_x, train_y = draw(300)
    test_x, test_y = draw(120)
    names = tuple("abcdef")
    return Source(
        "blobs", train_x, train_y, test_x, test_y, names, 255, (0.5,), (0.25,)
    )


@pytest.fixture
def problem(blobs):
    """Makes a small `Problem`: three tasks, an MLP, three seeds."""

    def build(
        strategy="finetune",
        settings=None,
        *,
        seeds=(0, 1, 2),
        optimizer=None,
        make_strategy=None,
        model=None,
        joint=False,
        seed_mode="auto",
        plan=None,
        **stream,
    ) -> Problem:
        import optax

        options = dict(kind="split", scenario="task", num_tasks=3, valid_fraction=0.2)
        data = make_stream(blobs, seeds, **(options | stream))
        build_model = model or (lambda k: models.MLP((16,), k))
        return Problem(
            model=build_model(data.num_outputs),
            stream=data,
            seeds=seeds,
            make_strategy=make_strategy
            or (lambda s: make(strategy, s, settings or {})),
            optimizer=optimizer or optax.sgd(0.1),
            plan=Plan(**({"epochs": 2, "batch_size": 8} | (plan or {}))),
            joint=joint,
            seed_mode=seed_mode,
        )

    return build


@pytest.fixture
def finish():
    """Runs a problem to its end and gives the last event."""

    def run(problem, **options):
        *_, last = protocol.run(problem, **options)
        return last

    return run
