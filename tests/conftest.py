"""Two CPU devices, separate caches for the tests, and settings that make runs cheap."""

import atexit
import functools
import gc
import os
import shutil
import tempfile

import pytest

from tests.xla_flags import EMITTERS, FASTER

# Most of the tests' time goes into compiling the same small programs again and again.
# So they are optimised less, and shared with the workers of pytest-xdist and with the
# commands under test, which inherit the environment.
os.environ["XLA_FLAGS"] = f"{FASTER} {os.environ.get('XLA_FLAGS', '')}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.mkdtemp(prefix="jaxcl-compiled-")
    atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)

from jaxcl.data.cache import Source  # noqa: E402
from jaxcl.strategies import make  # noqa: E402
from jaxcl.testing import small_problem, small_source  # noqa: E402
from jaxcl.training import protocol  # noqa: E402
from jaxcl.training.fingerprint import fingerprint  # noqa: E402
from jaxcl.training.problem import Problem  # noqa: E402
from tests import in_process  # noqa: E402
from tests.commands import Server  # noqa: E402

# A trace creates very many objects. Repeated searches of the garbage collector among
# the libraries' objects took a tenth of the time.
gc.freeze()
gc.set_threshold(100_000)


@pytest.fixture(scope="module", autouse=True)
def _forget_what_was_compiled():
    """Clears compiled programs after each file.

    A process may map 65,530 pieces of memory, and XLA dies if it needs more. Each
    compiled program takes some, and files seldom share programs.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def tfds_dir() -> str:
    """The folder of prepared data sets, or a skip."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder:
        pytest.skip("TFDS_DATA_DIR is not set: no prepared MNIST and CIFAR-100")
    return folder


@pytest.fixture(scope="session")
def blobs() -> Source:
    return small_source()


@pytest.fixture
def problem():
    """Makes a small `Problem` with a strategy, by the strategy's name."""

    def build(
        strategy="finetune", settings=None, *, make_strategy=None, **options
    ) -> Problem:
        def by_name(setup):
            return make(strategy, setup, settings or {})

        return small_problem(make_strategy or by_name, **options)

    return build


@pytest.fixture
def command(monkeypatch):
    """``(name, *arguments) -> (status, output, errors)``, run in this process."""
    monkeypatch.setattr("experiments.launch.prepare_jax", lambda: None)
    monkeypatch.chdir(in_process.ROOT)
    return functools.partial(in_process.run, monkeypatch)


@pytest.fixture(scope="session")
def commands():
    """``(module, *arguments, cwd=, env=) -> (status, output, errors)`` of a command."""
    server = Server()
    yield server.run
    server.close()


@pytest.fixture(scope="module")
def shared_programs():
    """Within a file, runs of equal problems share their compiled programs.

    Problems are equal if they could resume from each other's checkpoints, and if their
    seeds are laid out in the same way.
    """
    made = {}

    def make_programs(problem, mesh, inner=protocol.make_programs):
        where = (mesh.mode, mesh.num_seeds, tuple(mesh.mesh.devices.flat), jax.jit)
        key = (*sorted(fingerprint(problem, {}).problem.items()), where)
        if key not in made:
            made[key] = inner(problem, mesh), mesh.traces
        programs, mesh.traces = made[key]
        return programs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "make_programs", make_programs)
        yield


@pytest.fixture
def newer_emitters(monkeypatch):
    """Makes `jax.jit` compile with the emitters that XLA uses by default.

    For tests that need two programs to agree to the last bit. With the older emitters,
    which compile faster, a seed's last bit depends on the number of seeds in the
    program.
    """
    options: dict[str, int | bool] = {"xla_backend_optimization_level": 1}
    if EMITTERS:
        options["xla_cpu_use_fusion_emitters"] = True
    jit = functools.partial(jax.jit, compiler_options=options)
    monkeypatch.setattr(jax, "jit", jit)


@pytest.fixture
def finish():
    """Runs a problem to its end and returns the last event."""

    def run(problem, **options):
        *_, last = protocol.run(problem, **options)
        return last

    return run
