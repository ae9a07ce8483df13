"""FlexAttention as the GPU benchmark calls it, on a CPU."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention as flex

from benchmarks.gpu import contenders, inputs
from benchmarks.gpu.speed import LARGEST_DIFFERENCE

pytestmark = pytest.mark.peers
LENGTH, HEADS, WIDTH = 384, 2, 16


def test_block_mask_is_that_of_all_pairs():
    actual = contenders.causal_block_mask(512, "cpu")
    expected = flex.create_block_mask(lambda b, h, q, k: q >= k, None, None, 512, 512, device="cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name))
    for side in ("kv", "full_kv", "q", "full_q"):  # indices past a row's number of blocks mean nothing
        counts, indices = getattr(expected, f"{side}_num_blocks")[0, 0], getattr(expected, f"{side}_indices")[0, 0]
        for row, count in enumerate(counts.tolist()):
            assert getattr(actual, f"{side}_indices")[0, 0, row, :count].tolist() == indices[row, :count].tolist()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
def test_flex_attention_equals_ours(direction, trained, monkeypatch):
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)  # refuses a backward pass on a CPU, which works
    arrays = inputs.make_inputs(LENGTH, HEADS, WIDTH, trained)
    ours = contenders.program(contenders.ours("blockwise", False), direction)(*arrays)
    theirs = contenders.as_jax(contenders.flex_call(flex.flex_attention, direction, arrays, "cpu")())
    for x, y in zip(ours, theirs, strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        assert x.shape == y.shape
        assert np.abs(x - y).max() <= LARGEST_DIFFERENCE * max(1, np.abs(x).max())


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own call
def test_one_compilation_serves_all_lengths():
    """Eight blocks of keys, or heads, or channels: equal numbers are not taken for one. On a CPU forward alone."""
    torch._dynamo.reset()
    compile_ = contenders.lower_flex("cpu")("forward", inputs.make_inputs(1024, 8, WIDTH, False))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (256, 1024):
            arrays = inputs.make_inputs(length, 8, WIDTH, True)
            (theirs,) = contenders.as_jax(compile_()(arrays)())
            (ours,) = contenders.program(contenders.ours("blockwise", False), "forward")(*arrays)
            difference = jnp.abs(theirs.astype(jnp.float32) - ours.astype(jnp.float32)).max()
            assert difference <= LARGEST_DIFFERENCE * jnp.abs(ours).max()
