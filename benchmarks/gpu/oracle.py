"""Attention and its gradients in float64 numpy, dense, a head at a time: nothing is shared with the code under test."""

import numpy as np


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    d_out: np.ndarray,
    slopes: np.ndarray,
    *,
    q_offset: int = 0,
    causal: bool = True,
    keep_scale: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (out, dq, dk, dv), the last three the gradients of sum(out * d_out), all float64.

    q and d_out [B, T, H, D], k and v [B, S, K, D], slopes [H]; keep_scale [B, H, T, S]: what dropout multiplies the weights
    by.
    """
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    distances = q_offset + np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])[None, :]
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        key_head = h // (q.shape[2] // k.shape[2])
        keys, values = k[b, :, key_head], v[b, :, key_head]
        keep = 1.0 if keep_scale is None else keep_scale[b, h]
        weights = _weights(
            q[b, :, h] @ keys.T / np.sqrt(q.shape[3]) - float(slopes[h]) * abs(distances), distances, causal
        )
        out[b, :, h] = (weights * keep) @ values
        d_weights = (d_out[b, :, h] @ values.T) * keep
        d_scores = weights * (d_weights - (weights * d_weights).sum(1, keepdims=True)) / np.sqrt(q.shape[3])
        dq[b, :, h] = d_scores @ keys
        dk[b, :, key_head] += d_scores.T @ q[b, :, h]
        dv[b, :, key_head] += (weights * keep).T @ d_out[b, :, h]
    return out, dq, dk, dv


def _weights(scores: np.ndarray, distances: np.ndarray, causal: bool) -> np.ndarray:
    """Returns the softmax [T, S]; 0 in rows that see no key."""
    scores = np.where(distances >= 0, scores, -np.inf) if causal else scores
    largest = scores.max(1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0.0))
    return weights / np.maximum(weights.sum(1, keepdims=True), np.finfo(np.float64).tiny)
