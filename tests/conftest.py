"""What all tests share: eight CPU devices, strict JAX, and the one table of tolerances (benchmarks/tolerances.py)."""

import dataclasses
import functools
import importlib
import logging
import os

from flags import QUICK

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The TPU compiler without a TPU: quiet, and once for each of several processes.
os.environ |= {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest

import parity
from benchmarks.tolerances import TOLERANCE

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("no deadline", deadline=None)  # an example may be slow on a busy machine
hypothesis.settings.load_profile("no deadline")


def pytest_addoption(parser):
    parser.addoption(
        "--parity", metavar="PATH", help="write the parity table of imported models to PATH.md and PATH.json"
    )


def pytest_sessionfinish(session):
    if path := session.config.getoption("parity"):
        parity.write_table(path)


def assert_close(actual, expected, what: str) -> None:
    """|actual - expected| at most TOLERANCE[what] everywhere, with the largest error in the message."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    error = np.max(np.abs(actual - expected), initial=0.0)
    assert error <= TOLERANCE[what], f"{what}: largest error {error:.3g}, allowed {TOLERANCE[what]:.3g}"


def pytest_make_parametrize_id(val, argname):
    """Names bytes by their argument: compressed ones hold the time, and every process must name a test alike."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    """The command line sets the package's logger up for good."""
    log = logging.getLogger("alibi_jax")
    before = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture
def shapes_unchecked():
    """Signatures' shapes are checked in the tests only; here the library's own message is what is tested."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@functools.cache
def kept(programs, config, mesh):
    return programs(config, mesh)


@pytest.fixture
def programs_once(monkeypatch):
    """Has runs whose configs differ in their text alone compile their step once a process: each takes three seconds."""
    from alibi_jax.config import DataConfig

    module = importlib.import_module("alibi_jax.train")
    programs = module.programs
    monkeypatch.setattr(
        module, "programs", lambda config, mesh: kept(programs, dataclasses.replace(config, data=DataConfig()), mesh)
    )


@pytest.fixture
def tiny_data(tmp_path):
    """A DataConfig over a few kilobytes of text of its own, as bytes."""
    from alibi_jax.config import DataConfig

    words = np.random.default_rng(0).choice(["north", "south", "east", "west", "and", "the", "\n"], 6000)
    (tmp_path / "text.txt").write_text(" ".join(words))
    return DataConfig(source="files", train_path=str(tmp_path / "text.txt"), directory=str(tmp_path / "corpora"))
