"""The ALiBi paper's language model in float64 numpy, written from its text alone: the oracle of test_adaptive.py.

L tokens, E width, H heads, D = E / H, V vocabulary. Weights go by the names of the reference's checkpoints. It shares no code
with alibi_jax, and was written without looking at it.
"""

import math

import numpy as np


def alibi_slopes(num_heads):
    """[H]: 2^(-8k/H), k = 1..H; any other H takes the power of two c below it, then slopes(2c)[0::2]."""
    if num_heads < 1:
        raise ValueError(f"num_heads must be positive, not {num_heads}")
    below = 2 ** (num_heads.bit_length() - 1)
    if below == num_heads:
        return 2.0 ** (-8.0 * np.arange(1, num_heads + 1) / num_heads)
    return np.concatenate([alibi_slopes(below), alibi_slopes(2 * below)[0::2][: num_heads - below]])


def causal_bias(slopes, length):
    """[H, L, L]: -slope * (i - j) for query i and key j <= i, -inf for future keys."""
    backward = np.arange(length)[None, :] - np.arange(length)[:, None]
    return np.where(backward <= 0, slopes[:, None, None] * backward, -np.inf)


def alibi_bias(num_heads, length):
    """[H, L, L]: what is added to the scaled scores, -inf above the diagonal."""
    return causal_bias(alibi_slopes(num_heads), length)


def sinusoids(length, width):
    """[L, E], E even and at least 4: fairseq's table, sines then cosines, for positions counted from 0.

    A fairseq model itself starts counting at padding_idx + 1.
    """
    half = width // 2
    frequencies = np.exp(-math.log(10000.0) / (half - 1) * np.arange(half))
    angles = np.arange(length)[:, None] * frequencies[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def log_softmax(logits):
    """[..., N] -> [..., N]: over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def weight(state, name):
    """The named array of the decoder, in float64 (a checkpoint may hold float16)."""
    return np.asarray(state["decoder." + name], dtype=np.float64)


def linear(state, name, x):
    """[L, in] -> [L, out]: torch's Linear, weight [out, in], with bias."""
    return x @ weight(state, name + ".weight").T + weight(state, name + ".bias")


def layer_norm(state, name, x):
    """[L, E] -> [L, E]: biased variance, eps 1e-5."""
    centred = x - x.mean(axis=-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return normal * weight(state, name + ".weight") + weight(state, name + ".bias")


def embed(state, tokens, cutoffs):
    """[L] -> [L, E]: adaptive input, each cluster projected by its own matrix, then times sqrt(E).

    One token at a time, so that a row's rounding cannot depend on how many other tokens share its cluster.
    """
    clusters = np.searchsorted(cutoffs, tokens, side="right")
    rows = []
    for token, cluster in zip(tokens, clusters, strict=True):
        name = f"embed_tokens.embeddings.{cluster}"
        vector = state[f"decoder.{name}.0.weight"][token - (0, *cutoffs)[cluster]]
        rows.append(weight(state, name + ".1.weight") @ np.asarray(vector, dtype=np.float64))
    return np.stack(rows) * math.sqrt(len(rows[0]))


def attention(state, name, x, bias):
    """[L, E] -> [L, E]: heads are contiguous slices of D channels; bias [H, L, L] joins after 1/sqrt(D)."""
    heads = len(bias)
    q, k, v = (np.split(linear(state, f"{name}.{part}_proj", x), heads, axis=1) for part in "qkv")
    mixed = [np.exp(log_softmax(q[h] @ k[h].T / math.sqrt(q[h].shape[1]) + bias[h])) @ v[h] for h in range(heads)]
    return linear(state, f"{name}.out_proj", np.concatenate(mixed, axis=1))


def layer(state, name, x, bias):
    """[L, E] -> [L, E]: pre-LayerNorm attention, then pre-LayerNorm ReLU MLP, each with its residual."""
    x = x + attention(state, name + ".self_attn", layer_norm(state, name + ".self_attn_layer_norm", x), bias)
    hidden = linear(state, name + ".fc1", layer_norm(state, name + ".final_layer_norm", x))
    return x + linear(state, name + ".fc2", np.maximum(hidden, 0.0))


def adaptive_log_softmax(state, x, cutoffs):
    """[L, E] -> [L, V]: head over cluster 0 words then class rows; a tail word adds its class row's share.

    tail.0 is cluster 1: fairseq numbers the tails from 0.
    """
    name = "adaptive_softmax"
    rows = [weight(state, f"{name}.head.{part}_proj.weight") for part in ("word", "class")]
    head = log_softmax(x @ np.concatenate(rows).T)
    parts = [head[:, : cutoffs[0]]]
    for b in range(len(cutoffs)):
        logits = x @ weight(state, f"{name}.tail.{b}.0.weight") @ weight(state, f"{name}.tail.{b}.2.weight").T
        parts.append(head[:, cutoffs[0] + b, None] + log_softmax(logits))
    return np.concatenate(parts, axis=1)


def log_probabilities(state, tokens, *, num_heads, cutoffs, position="alibi"):
    """[L] -> [L, V]: log p of each next token; position is "alibi", "sinusoidal" or "none"."""
    if position not in ("alibi", "sinusoidal", "none"):
        raise ValueError(f"unknown position {position!r}")
    x = embed(state, tokens, cutoffs)
    if position == "sinusoidal":
        x = x + sinusoids(*x.shape)
    slopes = alibi_slopes(num_heads) if position == "alibi" else np.zeros(num_heads)
    bias = causal_bias(slopes, len(x))
    for i in range(len({key.split(".")[2] for key in state if key.startswith("decoder.layers.")})):
        x = layer(state, f"layers.{i}", x, bias)
    return adaptive_log_softmax(state, x, cutoffs)  # no final LayerNorm
