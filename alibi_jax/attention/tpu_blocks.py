"""The sizes of the blocks in which the TPU kernels compute, and what else is fixed when they are traced."""

from typing import NamedTuple

import jax.numpy as jnp

from alibi_jax.attention.blocks import block_size
from alibi_jax.attention.implementation import Inputs, Options

LANES = 128  # a block is a multiple of it: the width of a TPU's vector registers

# Blocks are 512 x 512 (blocks.py) on every chip. Bundles of a forward pass, as benchmarks/tpu_schedule counts, for 512 queries
# of 8 heads, over the blocks that a score bound of 6, and of 12, has visited; queries x keys:
#
#               512 x 512        1,024 x 512      512 x 1,024      512 x 256
#   v5e D128    48,581  60,931   56,631  68,438   52,516  63,354   54,132  69,606
#   v6e D128    32,084  39,707   32,313  38,390   32,876  38,975
#   v6e D64     27,163  33,599   28,447  33,745   29,217  34,612
#   v6e D256    41,346  51,289   40,389  48,056
#
# A bigger block takes fewer bundles a score (v6e, D128: 988 of 1,024 x 512, 1,260 of two of 512 x 512), but visits more scores
# that need not be, and has longer falls of the bias within it, so that more heads keep a running maximum.


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
