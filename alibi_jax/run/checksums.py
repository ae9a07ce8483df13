"""Checksums of arrays, by which a damaged checkpoint is noticed: Orbax has none of its own for the values in its data files."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

# numbers of an array in the host's memory that are summed together: what is computed stays in the cache
AT_ONCE = 2**20


def _bits_sum(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Returns the sum mod 2^32 of an array's elements as integers, each times an odd number from its place.

    One wrong bit changes it, another mesh does not.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    strides = [math.prod(x.shape[axis + 1 :]) % 2**32 for axis in range(x.ndim)]
    places = [
        jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride) for axis, stride in enumerate(strides)
    ]
    return (bits * (2 * sum(places, jnp.uint32(0)) + 1)).sum(dtype=jnp.uint32)


@jax.jit
def _bits_sums(tree: Any) -> Any:
    """Returns the sums of all arrays of a tree, in one program."""
    return jax.tree.map(_bits_sum, tree)


def _host_sum(x: np.ndarray) -> int:
    """Returns the same sum of an array in the host's memory, slab by slab.

    XLA's program for CPUs takes twice the memory of a bfloat16 array, as it sums no product that it has not written first.
    """
    bits = x.reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
    odd = 2 * np.arange(min(AT_ONCE, bits.size), dtype=np.uint32) + 1
    total = 0
    for start in range(0, bits.size, AT_ONCE):
        slab = bits[start : start + AT_ONCE].astype(np.uint32)
        total += int(np.dot(slab, odd[: slab.size])) + 2 * start * int(slab.sum(dtype=np.uint32))
    return total % 2**32


def _in_host_memory(x: Any) -> bool:
    """Returns whether an array is no device's, or whole on one CPU, where numpy reads it without a copy."""
    return not isinstance(x, jax.Array) or [device.platform for device in x.devices()] == ["cpu"]


def checksums(tree: Any) -> dict[str, int]:
    """Returns the name of each array -> a checksum of its bits."""
    in_memory = all(map(_in_host_memory, jax.tree.leaves(tree)))
    sums = jax.tree.map(lambda x: _host_sum(np.asarray(x)), tree) if in_memory else jax.device_get(_bits_sums(tree))
    named = jax.tree_util.tree_leaves_with_path(sums)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): int(value) for path, value in named}
