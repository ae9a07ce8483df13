"""The kernels of attention, and which of their tests run here, where Pallas interprets them."""

import pytest

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
