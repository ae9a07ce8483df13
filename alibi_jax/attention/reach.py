r"""How far a head sees: which keys together hold less than a tolerance of a query's softmax mass, and so may be skipped.

Let query i stand at position p, and let its score with key j be q.k_j / sqrt(D) - m (p - j), m > 0 the slope. With K the
largest |k_j| of the keys up to p, Cauchy and Schwarz give every score at distance d the bound |q| K / sqrt(D) - m d.
The keys at distance W and more therefore weigh together at most

    sum over d >= W of exp(|q| K / sqrt(D) - m d)  =  exp(|q| K / sqrt(D) - m W) / (1 - exp(-m)).

The softmax divides by the sum of exp(score) over all keys. Let `log_mass` be the logarithm of that sum over any of the keys:
one, some, or all of them (the log-sum-exp). What is skipped is then at most the fraction `tolerance` of the row's mass if

    W >= (|q| K / sqrt(D) - log_mass - log(tolerance) - log(1 - exp(-m))) / m.

A block of queries starting at position p_0 can skip every key at least W_t + t before its query p_0 + t for each t, that is
every key at least max_t(W_t - t) before p_0. Nothing is assumed of the inputs: where norms are large or m <= 0, W is large or
infinite, and everything is visited; NaN skips nothing. Sharper bounds of the scores (a ball around each block of keys, a list
of blocks in place of a range) were measured on trained models and bought little: experiments/results/reach.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32

from alibi_jax.attention.implementation import RowBounds
from alibi_jax.sharding import device

# Largest fraction skipped, by input dtype: a quarter of the float32 spacing at 1; for the short types well under theirs.
DEFAULT_TOLERANCE = {"float32": 2.0**-25, "bfloat16": 2.0**-13, "float16": 2.0**-16}
# The bound is computed in floating point, and so are the scores: their relative errors are below D 2^-23.
SLACK = 1.0 + 2.0**-10
# Keys up to a query whose weights `nearest_mass` sums; 8 buy most of what 128 would (experiments/results/reach).
NEAREST = 8
# All positions are below it: int32 holds them, their differences, and their sums with a block's length.
POSITIONS = 2**30
FAR = float(POSITIONS)  # tokens; a reach that leaves nothing out


def norms(x: Float[Array, "B L H D"]) -> Float32[Array, "B L H"]:
    """Returns |x| of every head's vectors, in float32."""
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(-1))


def bounds_from(q: Float[Array, "B T H D"], largest: Float32[Array, "B t K"]) -> Float32[Array, "B H T"]:
    """Returns |q| / sqrt(D) times the largest norm of the keys: of each row (t = T), or of all rows (t = 1)."""
    largest = jnp.repeat(largest, q.shape[2] // largest.shape[2], axis=2)
    return (norms(q) * largest * (SLACK * q.shape[-1] ** -0.5)).swapaxes(1, 2)


def score_bounds(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], q_offset: Int[Array, ""], causal: bool
) -> Float32[Array, "B H T"]:
    """Returns |q| max|k| / sqrt(D), the maximum over the keys a query may see: no scaled score is larger, nor smaller than
    minus it."""
    k_norms = norms(k)
    if causal:
        last = jnp.minimum(q_offset + jnp.arange(q.shape[1]), k.shape[1] - 1)
        largest = jax.lax.cummax(k_norms, axis=1)[:, last]
    else:
        largest = k_norms.max(1, keepdims=True)
    return bounds_from(q, largest)


def nearest_mass(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], slopes: Float32[Array, " H"], q_offset: Int[Array, ""]
) -> Float32[Array, "B H T"]:
    """Returns the log of the sum of exp(score) over the NEAREST keys up to each query: `log_mass` of the proof above."""
    keys = k.shape[1]
    group = q.shape[2] // k.shape[2]
    positions = q_offset + jnp.arange(q.shape[1])
    platform = device().platform
    padded = jnp.pad(k, ((0, 0), (NEAREST - 1, q.shape[1]), (0, 0), (0, 0))) if platform == "tpu" else None

    def at(distance: Int32[Array, ""], index: Int32[Array, " T"]) -> Float[Array, "B T K D"]:
        """Returns each query's key at a distance, any where there is none. The TPU compiler copies what is gathered, and reads
        slices where they lie."""
        if padded is None:
            return k[:, jnp.clip(index, 0, keys - 1)]
        return jax.lax.dynamic_slice_in_dim(padded, q_offset - distance + NEAREST - 1, q.shape[1], axis=1)

    def add(distance: Int32[Array, ""], total: Float32[Array, "B T H"]) -> Float32[Array, "B T H"]:
        index = positions - distance
        near = jnp.repeat(at(distance, index), group, axis=2)
        scores = (q.astype(jnp.float32) * near.astype(jnp.float32)).sum(-1) * q.shape[-1] ** -0.5
        inside = ((index >= 0) & (index < keys))[None, :, None]
        return jnp.logaddexp(total, jnp.where(inside, scores - slopes[None, None] * distance, -jnp.inf))

    # A loop on CPUs, because each distance copies the keys: of unrolled steps, compilers hold several copies at once. Those for
    # GPUs and TPUs copy none, and read queries and keys once or twice for unrolled steps, eight times for a loop.
    total = jnp.full(q.shape[:3], -jnp.inf, jnp.float32)
    return jax.lax.fori_loop(0, min(NEAREST, keys), add, total, unroll=platform != "cpu").swapaxes(1, 2)


def causal_row_bounds(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], slopes: Float32[Array, " H"], q_offset: Int[Array, ""]
) -> RowBounds:
    """Returns bounds of the rows of causal attention: Cauchy's of the scores, and the NEAREST keys' mass."""
    return RowBounds(score_bounds(q, k, q_offset, True), nearest_mass(q, k, slopes, q_offset))


def excess_within(margin: Float32[Array, "*heads T"], slopes: Float32[Array, "*heads"]) -> Float32[Array, "*heads"]:
    """Returns max over a block's queries t of (margin - m t), margin = bound - log_mass, from which `reach` is computed."""
    index = jax.lax.broadcasted_iota(jnp.float32, margin.shape, margin.ndim - 1)
    return (margin - slopes[..., None] * index).max(-1)


def reach(
    excess: Float32[Array, "*heads"], slopes: Float32[Array, "*heads"], tolerance: float
) -> Float32[Array, "*heads"]:
    """Returns W of a block of queries, in tokens before its first: keys at least that far from it may be skipped."""
    tokens = (excess - jnp.log(tolerance) - jnp.log(-jnp.expm1(-slopes))) / slopes
    return jnp.where((slopes > 0) & (tokens < FAR), jnp.maximum(tokens, 1.0), jnp.inf)  # NaN is infinite, too


def first_key_block(
    reach: Float32[Array, "*heads"], position: Int[Array, "*heads"], block_k: int
) -> Int32[Array, "*heads"]:
    """Returns the first block of keys that queries from `position` on visit, given the reach of their block."""
    tokens = jnp.where(reach < FAR, jnp.ceil(reach), FAR).astype(jnp.int32)
    return jnp.maximum(position - tokens + 1, 0) // block_k


def first_key_blocks(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    slopes: Float32[Array, " H"],
    q_offset: Int[Array, ""],
    tolerance: float,
    block_q: int,
    block_k: int,
    row_bounds: RowBounds | None = None,
) -> Int32[Array, "B H N"]:
    """Returns the first block of keys each block of queries visits in causal attention; the keys before it hold at most the
    fraction `tolerance` of any row's softmax mass.

    N = ceil(T / block_q). O(T + S) memory and time. `row_bounds` None: computed, from the NEAREST keys' mass. A number past the
    last block of keys: none is needed.
    """
    if row_bounds is None:
        row_bounds = causal_row_bounds(q, k, slopes, q_offset)
    margin = row_bounds.scores - row_bounds.log_mass
    margin = jnp.pad(margin, ((0, 0), (0, 0), (0, -q.shape[1] % block_q)), constant_values=-jnp.inf)
    margin = margin.reshape(*margin.shape[:2], -1, block_q)
    slopes = jnp.broadcast_to(slopes[None, :, None], margin.shape[:3])
    tokens = reach(excess_within(margin, slopes), slopes, tolerance)
    positions = q_offset + block_q * jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 2)
    return first_key_block(tokens, positions, block_k)


def last_query_blocks(first: Int32[Array, "B H N"], key_blocks: int) -> Int32[Array, "B H M"]:
    """Returns the last block of queries that visits each block of keys, -1 where none does."""
    queries = jnp.arange(first.shape[2], dtype=jnp.int32)

    def of_head(first: Int32[Array, " N"]) -> Int32[Array, " M"]:
        # the last that begins at a block of keys, then that begins at it or before: all pairs of blocks would be quadratic
        begins = jnp.full(key_blocks, -1, jnp.int32).at[first].max(queries, mode="drop")
        return jax.lax.cummax(begins)

    return jax.vmap(jax.vmap(of_head))(first)
