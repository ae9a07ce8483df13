"""The kernels of attention, and which of their tests run here, where Pallas interprets them."""

import functools

import pytest
from jax.experimental.pallas import tpu as pltpu

from alibi_jax.attention import IMPLEMENTATIONS, mosaic_gpu
from alibi_jax.sharding import Device

KERNELS = ["pallas_tpu", "pallas_gpu", "mosaic_gpu"]
OBSTACLE = mosaic_gpu.IMPLEMENTATION.obstacle(Device("cpu", "cpu"), True)


def parameters(*values, quick: bool = True):
    """A test's parameters. Of mosaic_gpu, whose interpreter is slow, the quick ones are run by make test-versions, too."""
    if "mosaic_gpu" not in values:
        return pytest.param(*values)
    marks = (
        pytest.mark.versions if quick else pytest.mark.slow,
        pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE)),
    )
    return pytest.param(*values, marks=marks)


@pytest.fixture
def mosaic_gpu_of_float32(monkeypatch):
    """Lets the interpreter run Mosaic GPU's kernels in float32, which it multiplies exactly: a GPU would round to tf32."""
    named = IMPLEMENTATIONS["mosaic_gpu"]
    monkeypatch.setitem(IMPLEMENTATIONS, "mosaic_gpu", named._replace(dtypes=("float32", *named.dtypes)))


@pytest.fixture
def no_races(monkeypatch, capfd):
    """Has the TPU interpreter look for copies that race with what reads or writes their blocks, and fill memory with NaN before
    it is written."""
    strict = functools.partial(pltpu.InterpretParams, detect_races=True, uninitialized_memory="nan")
    monkeypatch.setattr(pltpu, "InterpretParams", strict)
    yield
    assert "RACE DETECTED" not in capfd.readouterr().out
