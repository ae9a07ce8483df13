"""What the devices of a ring send each other; all but `ring_size` inside `sharding.on_each_device`."""

from typing import Any

import jax
import jax.numpy as jnp

from alibi_jax.sharding import RULES, num_shards

AXIS = RULES["length"]  # the mesh axis that splits a sequence, whatever its name


def ring_size() -> int:
    """Returns the number of shards of a sequence under the mesh of `jax.set_mesh`; 1 in a shard_map, where it is whole."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.manual_axes else num_shards(mesh, "length")


def ring_index() -> jax.Array:
    """Returns which shard of the sequence this device holds."""
    return jax.lax.axis_index(AXIS)


def from_earlier(tree: Any, steps: int) -> Any:
    """Returns what the device `steps` shards earlier in the sequence holds (later, if negative), the last before the first."""
    size = jax.lax.axis_size(AXIS)
    pairs = [(source, (source + steps) % size) for source in range(size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, pairs), tree)


def max_over_sequence(x: jax.Array) -> jax.Array:
    """Returns the maximum over the devices that hold shards of the same sequence; infinity for NaN."""
    return jax.lax.pmax(jnp.where(jnp.isnan(x), jnp.inf, x), AXIS)  # pmax itself would drop NaN


def max_over_devices(x: jax.Array) -> jax.Array:
    """Returns the maximum over all devices: they have to agree before a collective that not every step needs."""
    return jax.lax.pmax(x, jax.sharding.get_abstract_mesh().axis_names)
