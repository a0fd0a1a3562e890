"""Settings that every test runs under: no silent broadcasting, annotations of pcexp enforced, a seeded Hypothesis."""

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# Before jax is imported, and inherited by the processes that tests start.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "0"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Tests spend most of their time in compiling tiny programs, and half of that in making them fast. What is compared to the bit
# is compiled alike on both sides; `XLA_FLAGS= make test` tests the code of a real run.
# XLA ends a process that names a flag that it does not know, as newer ones do the second.
os.environ["XLA_FLAGS"] = os.environ.get(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
# What several tests, or the processes that they start, compile alike is compiled once in a run of the tests.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR") or tempfile.mkdtemp(
    prefix=f"pcexp-tests-{os.getpid()}-"
)
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
    if f"pcexp-tests-{os.getpid()}-" in os.environ["JAX_COMPILATION_CACHE_DIR"]:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"])


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
