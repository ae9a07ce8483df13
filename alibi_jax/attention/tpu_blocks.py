"""The sizes of the blocks in which the TPU kernels compute, and what else is fixed when they are traced."""

from typing import NamedTuple

import jax.numpy as jnp

from alibi_jax.attention.blocks import block_size
from alibi_jax.attention.implementation import Inputs, Options

LANES = 128  # a block is a multiple of it: the width of a TPU's vector registers


class Kernel(NamedTuple):
    """The sizes that are fixed when the kernels are traced."""

    options: Options
    num_keys: int  # before padding
    block_q: int
    block_k: int
    group: int  # query heads per key head
    bias_by_key: bool  # a number a key, not a score: causal, and 16 bits, as it costs float32 its last ones


def kernel_of(options: Options, inputs: Inputs) -> Kernel:
    """Returns the sizes with which these inputs are served."""
    queries, heads = inputs.q.shape[1:3]
    keys, key_heads = inputs.k.shape[1:3]
    by_key = options.causal and inputs.q.dtype != jnp.float32
    return Kernel(options, keys, block_size(queries, LANES), block_size(keys, LANES), heads // key_heads, by_key)
