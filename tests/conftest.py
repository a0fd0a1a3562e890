"""Settings that every test runs under: no silent broadcasting, annotations of pcexp enforced, a seeded Hypothesis."""

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

# Before jax is imported, and inherited by the processes that tests start.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "0"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Most of the time of a test is spent in compiling tiny programs: in LLVM's plainest code and without MLIR, in half of it. All
# that is compared to the bit is computed in one way or the other; XLA_FLAGS= runs the tests with the code of a real run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
# What several tests, or the processes that they start, compile alike is compiled once in a run of the tests.
OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="pcexp-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
sys.path.append(str(Path(__file__).parent / "numerics"))  # by_hand and typechecker, shared with the tests of the theory

import jax
import pytest
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning
from hypothesis import settings
from jaxtyping import install_import_hook

# Never uninstalled: modules of pcexp are imported whenever a test first needs them.
install_import_hook("pcexp", "typechecker.checked")
with warnings.catch_warnings():
    # The hook looks into OmegaConf's DictConfig, whose bases are written the old way.
    warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
    import pcexp.__main__  # noqa: F401

# Deadlines would measure compilation; a derandomised run fails on every machine or on none.
settings.register_profile("pcexp", deadline=None, derandomize=True, database=None)
settings.load_profile("pcexp")


def pytest_unconfigure() -> None:
    """The process that made the folder of compiled programs removes it; its workers found it in their environment."""
    if OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 throughout, as for all theory."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """No compiled program outlives its module: each holds memory maps, and a process that has too many crashes in XLA."""
    yield
    jax.clear_caches()
