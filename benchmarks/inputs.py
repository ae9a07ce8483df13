"""Queries, keys and values that make attention fail where it can: what tests and benchmarks share beside the shapes."""

from collections.abc import Callable

import numpy as np

from benchmarks.shapes import Shape

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # q [B, T, H, D], k and v [B, S, K, D], float32
Maker = Callable[[int, Shape, float], Arrays]  # of a seed, a shape, and the size of queries and keys


def normal(seed: int, shape: Shape, size: float = 1.0) -> Arrays:
    """Returns normal numbers, those of queries and keys times `size`."""
    rng = np.random.default_rng(seed)
    keys = shape.batch, shape.keys, shape.key_heads, shape.width
    sizes = (shape.batch, shape.queries, shape.heads, shape.width), keys, keys
    q, k, v = (rng.standard_normal(each, np.float32) for each in sizes)
    return np.float32(size) * q, np.float32(size) * k, v


def far_huge_key(seed: int, shape: Shape, size: float) -> Arrays:
    """Returns normal numbers but for one key, which is a hundred times `size` longer: it must not be skipped."""
    q, k, v = normal(seed, shape)
    k[:, seed % shape.keys] *= 100 * size
    return q, k, v


def far_sink(seed: int, shape: Shape, size: float) -> Arrays:
    """Returns queries that all point at key 0."""
    q, k, v = normal(seed, shape)
    k[:, 0] = 10 * size
    return q + np.float32(size), k, v


def equal_keys(seed: int, shape: Shape, size: float) -> Arrays:
    """Returns keys that are all equal, so that the bias alone tells them apart."""
    q, k, v = normal(seed, shape, size)
    return q, np.broadcast_to(k[:, :1], k.shape).copy(), v


def zero_queries(seed: int, shape: Shape, size: float) -> Arrays:
    """Returns queries a third of which are 0."""
    q, k, v = normal(seed, shape, size)
    q[:, seed % 3 :: 3] = 0
    return q, k, v


def against_itself(seed: int, shape: Shape, size: float) -> Arrays:
    """Returns keys that are minus the queries: the nearest are the worst, so that little is known of a row's sum."""
    q, _, v = normal(seed, shape, size)
    return q, -q[:, : shape.keys, :: shape.heads // shape.key_heads], v


INPUTS: tuple[Maker, ...] = (normal, far_huge_key, far_sink, equal_keys, zero_queries, against_itself)
