"""What a bias is: a value. The biases of ALiBi and T5, and their mathematics; no Flax in them."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

Positions = Int[Array, " T"]
ORIGIN = np.float32(0)


def concrete(x: Any) -> np.ndarray | None:
    """Returns the numbers of x where they are known now; None where x is traced by jax.jit, or lies on other hosts too."""
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    return np.asarray(x)


class Bias:
    """A number for every (head, query position, key position), computed where it is needed, never stored whole.

    A subclass is a frozen dataclass registered as a pytree: its arrays are leaves, other fields are static. One array at least
    has a dimension "heads": that one is split where the heads are.
    """

    dimensions: ClassVar[dict[str, tuple[str, ...]]]  # of each array, by its field: names from sharding.RULES
    may_hide: ClassVar[bool] = False  # whether its arrays may hold -inf, which hides keys

    def arrays(self) -> list[tuple[tuple[str, ...], Any]]:
        """Returns (names of the dimensions, array) for each array, in the order of the pytree's leaves."""
        leaves = jax.tree_util.tree_leaves_with_path(self)
        return [(self.dimensions[path[0].name], leaf) for path, leaf in leaves]

    def from_position(self, first: Int[Array, ""]) -> "Bias":
        """Returns the bias of positions that are counted from `first` on; itself where distances alone matter, as here."""
        return self

    def select_heads(self, first: int | Int[Array, ""], count: int) -> "Bias":
        """Returns the bias of `count` heads from `first` on."""
        selected = [
            jax.lax.dynamic_slice_in_dim(array, first, count, names.index("heads")) if "heads" in names else array
            for names, array in self.arrays()
        ]
        return jax.tree.unflatten(jax.tree.structure(self), selected)

    def block(self, q_positions: Positions, k_positions: Int[Array, " S"]) -> Float32[Array, "H T S"]:
        """Returns the bias added to the scaled scores of these queries and keys, before the softmax."""
        raise NotImplementedError

    def decay(self) -> Float32[Array, " H"] | None:
        """Returns slopes m such that no bias at distance d is above -m d; None where no such bound is known."""
        return None

    def largest(self) -> Float32[Array, " H"]:
        """Returns b such that no bias is above b and none at distance 0 below -b; infinite where nothing is known, as here."""
        heads = next(array.shape[names.index("heads")] for names, array in self.arrays() if "heads" in names)
        return jnp.full(heads, jnp.inf, jnp.float32)


def _geometric(num_heads: int, bias_max: float) -> list[float]:
    return [2.0 ** (-bias_max * k / num_heads) for k in range(1, num_heads + 1)]


def alibi_slopes(num_heads: int, bias_max: float = 8.0) -> np.ndarray:
    """Returns the slopes m_1 ... m_H, float32 [H], in the order in which the reference code gives them to the heads.

    For a power of two, m_k = 2^(-bias_max * k / H). Otherwise, with c the power of two below H: the c slopes of c heads,
    then the first H - c of every second slope of 2c heads, unsorted (the order matters to a checkpoint).
    bias_max is 8 in the paper; MPT calls it alibi_bias_max. ValueError for a number of heads that is not an int of 1 or more,
    and a bias_max outside (0, 126]: smaller slopes are 0 in float32 on accelerators.
    """
    if not isinstance(num_heads, int | np.integer) or isinstance(num_heads, bool) or num_heads < 1:
        raise ValueError(
            f"num_heads: got {num_heads!r}, expected an int, at least 1. Give the number of attention heads."
        )
    if not 0 < bias_max <= 126:
        raise ValueError(f"bias_max: got {bias_max}, expected more than 0 and at most 126. The paper's value is 8.")
    num_heads = int(num_heads)
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = _geometric(power, bias_max) + _geometric(2 * power, bias_max)[0::2][: num_heads - power]
    return np.array(slopes, np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearBias(Bias):
    """ALiBi: -slope * |query position - key position| (Press et al. 2022, section 3).

    The distance is taken in int32 and the product in float32, whatever the compute dtype: bfloat16 with absolute
    positions misplaces 26 % of the softmax mass at 2,048 tokens. Symmetric, so it serves encoders too.
    """

    dimensions: ClassVar[dict[str, tuple[str, ...]]] = {"slopes": ("heads",)}

    slopes: Any  # float32 [H]; Any, because JAX puts placeholders here when it takes trees apart

    def block(self, q_positions: Positions, k_positions: Int[Array, " S"]) -> Float32[Array, "H T S"]:
        """Returns -slope * distance for each head, query and key."""
        distances = jnp.abs(q_positions[:, None] - k_positions[None, :])
        return -self.slopes[:, None, None] * distances.astype(jnp.float32)[None]

    def decay(self) -> Float32[Array, " H"]:
        """Returns the slopes themselves."""
        return self.slopes

    def largest(self) -> Float32[Array, " H"]:
        """Returns 0, which is the bias at distance 0; infinity for a negative slope."""
        return jnp.where(self.slopes >= 0, jnp.float32(0.0), jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoundedBias(Bias):
    """ALiBi as Falcon-RW has it: (a_h(key) - a_h(query)) / divisor_h, a_h(j) = slope_h * j in bfloat16 (Penedo et al. 2023).

    Slope, position and product are each rounded to bfloat16's 8 bits, whatever the compute dtype: at 2,048 tokens a_h is off by
    up to 9, and a model that was trained so is another with exact slopes. The query's term is the same for all its keys; it is
    there so that distance 0 has no bias. No `decay()`: nothing is skipped.
    """

    dimensions: ClassVar[dict[str, tuple[str, ...]]] = {"slopes": ("heads",), "divisors": ("heads",), "first": ()}

    slopes: Any  # float32 [H]; Any, because JAX puts placeholders here when it takes trees apart
    divisors: Any  # float32 [H]
    first: Any = ORIGIN  # tokens before position 0

    def from_position(self, first: Int[Array, ""]) -> "RoundedBias":
        """Returns the bias of positions that are counted from `first` on."""
        return dataclasses.replace(self, first=self.first + first)

    def _rounded(self, positions: Positions) -> Float32[Array, "H T"]:
        slopes = _to_bfloat16(self.slopes)[:, None]
        return _to_bfloat16(slopes * _to_bfloat16(self.first + positions.astype(jnp.float32))[None])

    def block(self, q_positions: Positions, k_positions: Int[Array, " S"]) -> Float32[Array, "H T S"]:
        """Returns the difference of rounded products for each head, query and key; symmetric."""
        differences = jnp.abs(self._rounded(q_positions)[:, :, None] - self._rounded(k_positions)[:, None])
        return -differences / self.divisors[:, None, None]

    def largest(self) -> Float32[Array, " H"]:
        """Returns 0, which is the bias at distance 0; infinity for a negative slope or divisor."""
        return jnp.where((self.slopes >= 0) & (self.divisors > 0), jnp.float32(0.0), jnp.inf)


def _to_bfloat16(x: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Returns the nearest bfloat16 of each number; XLA would leave out a cast to bfloat16 and back."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def bucket_edges(num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the smallest distance of each bucket 1 ... R-1, int32 [R-1]: one bucket per distance up to R/2, then
    logarithmic ones.

    Bucket r >= R/2 starts at the first whole distance d with log(d / (R/2)) / log(max_distance / (R/2)) * R/2 >= r - R/2;
    the last holds all distances from its edge on. This is T5's rule for causal attention. ValueError for fewer than two
    buckets, and for a max_distance that is not an integer above R/2.
    """
    exact = num_buckets // 2
    if exact < 1 or not isinstance(max_distance, int | np.integer) or max_distance <= exact:
        raise ValueError(
            f"T5 buckets: got {num_buckets} with max_distance {max_distance}, expected 2 or more, and an integer beyond "
            "the first half of them. T5's own are 32 and 128."
        )
    steps = np.arange(num_buckets - exact) / (num_buckets - exact)
    logarithmic = np.ceil(exact * (max_distance / exact) ** steps - 1e-9)
    return np.concatenate([np.arange(1, exact), logarithmic]).astype(np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BucketBias(Bias):
    """T5: table[bucket(query position - key position), head] (Raffel et al. 2020, section 2.1).

    Keys after the query are in bucket 0, as in T5's decoder. A table may hold -inf, which hides the keys of a bucket.
    """

    dimensions: ClassVar[dict[str, tuple[str, ...]]] = {"table": ("rows", "heads")}
    may_hide: ClassVar[bool] = True

    table: Any  # float32 [R, H]; Any, because JAX puts placeholders here when it takes trees apart
    max_distance: int = dataclasses.field(default=128, metadata={"static": True})

    def buckets(self, distances: Int[Array, "*shape"]) -> Int32[Array, "*shape"]:
        """Returns the bucket of each distance, a row of the table."""
        edges = jnp.asarray(bucket_edges(self.table.shape[0], self.max_distance))
        return jnp.searchsorted(edges, distances, side="right", method="compare_all").astype(jnp.int32)

    def block(self, q_positions: Positions, k_positions: Int[Array, " S"]) -> Float32[Array, "H T S"]:
        """Returns the table's entry for each head, query and key."""
        distances = q_positions[:, None] - k_positions[None, :]
        return jnp.moveaxis(self.table.astype(jnp.float32)[self.buckets(distances)], -1, 0)

    def largest(self) -> Float32[Array, " H"]:
        """Returns the largest absolute entry of each head."""
        return jnp.abs(self.table.astype(jnp.float32)).max(0)
