"""The sizes of the blocks in which the TPU kernels compute, and what else is fixed when they are traced."""

from typing import NamedTuple

import jax.numpy as jnp

from alibi_jax.attention.blocks import block_size
from alibi_jax.attention.implementation import Inputs, Options
from alibi_jax.sharding import device

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
    dq_in_vmem: bool  # whether the backward pass sums the gradient of all queries of a key head there


# Of the VMEM that sums of dq may take: half of the 64 MiB of a tpu7x, the least that a newer chip has; older ones have 16.
DQ_BYTES = 32 * 2**20
OLD_CHIPS = "TPU v2", "TPU v3", "TPU v4", "TPU v4 lite"


def dq_fits(rows: int, width: int) -> bool:
    """Returns whether the float32 gradient of so many queries can be summed in VMEM on the chip that is traced for."""
    return device().kind not in OLD_CHIPS and rows * max(width, LANES) * 4 <= DQ_BYTES


def kernel_of(options: Options, inputs: Inputs) -> Kernel:
    """Returns the sizes with which these inputs are served."""
    queries, heads = inputs.q.shape[1:3]
    keys, key_heads = inputs.k.shape[1:3]
    by_key = options.causal and inputs.q.dtype != jnp.float32
    block_q, block_k = block_size(queries, LANES), block_size(keys, LANES)
    if device().kind in OLD_CHIPS and inputs.q.dtype == jnp.float32 and inputs.q.shape[3] > LANES:
        block_q = min(block_q, 256)  # the backward pass would take 0.6 MiB more than they have
    group = heads // key_heads
    return Kernel(options, keys, block_q, block_k, group, by_key, dq_fits(group * queries, inputs.q.shape[3]))
