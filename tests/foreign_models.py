"""BTLM and Jais, Baichuan-13B and Refact in float64 numpy, written from descriptions alone: the oracles of test_families.py.

L tokens, E width, H heads, D = E / H, V vocabulary. Weights and config go by the names of their own files. It shares no code
with alibi_jax, and was written without looking at it.
"""

import math

import numpy as np

from paper_model import causal_bias, log_softmax


def slopes(heads):
    """[H]: for P the power of two at or above H, 2^(-8k/P), k = 1..P; fewer heads take every second first, then the others."""
    above = 2 ** math.ceil(math.log2(heads))
    every = 2.0 ** (-8.0 * np.arange(1, above + 1) / above)
    return every if above == heads else np.concatenate([every[1::2], every[::2]])[:heads]


def silu(x):
    """x sigmoid(x)."""
    return x / (1.0 + np.exp(-x))


def layer_norm(weights, name, x, epsilon):
    """[L, E] -> [L, E]: biased variance, with a scale, and a bias where the file has one."""
    centred = x - x.mean(axis=-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return normal * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)


def rms_norm(weights, name, x, epsilon):
    """[L, E] -> [L, E]: by the root of the mean square, with a scale alone."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weights[f"{name}.weight"]


def attend(queries, keys, values, heads, bias, scale):
    """[L, H D], [L, K D], [L, K D] -> [L, H D]: head h reads key head h // (H / K); bias [H, L, L] joins after the scale."""
    width = queries.shape[1] // heads
    repeats = heads * width // keys.shape[1]
    mixed = []
    for h in range(heads):
        own, shared = (slice(i * width, (i + 1) * width) for i in (h, h // repeats))
        scores = queries[:, own] @ keys[:, shared].T * scale + bias[h]
        mixed.append(np.exp(log_softmax(scores)) @ values[:, shared])
    return np.concatenate(mixed, axis=1)


def _float64(weights, prefix):
    """The arrays without the prefix of their names, in float64."""
    return {name.removeprefix(prefix): np.asarray(array, np.float64) for name, array in weights.items()}


def btlm(weights, config, tokens):
    """[L] -> [L, V]: log p of each next token of BTLM or Jais. A Conv1D's matrix is [in, out]; the MLP's gate is c_fc2."""
    weights, heads = _float64(weights, "transformer."), config["n_head"]
    epsilon, length = config.get("layer_norm_epsilon", 1e-5), len(tokens)

    def conv(name, x):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def either(new, old):
        return config[new] if new in config else config[old]

    scaling, divisor = config.get("alibi_scaling"), 1.0
    if scaling and scaling.get("factor"):
        divisor = scaling["factor"]
    elif scaling:
        divisor = max(1.0, length / scaling["train_seq_len"])
    bias = causal_bias(slopes(heads) / divisor, length)
    head_width = config["n_embd"] // heads
    scale = 1 / head_width if either("mup_scale_qk_dot_by_d", "scale_qk_dot_by_d") else head_width**-0.5
    x = weights["wte.weight"][tokens] * either("mup_embeddings_scale", "embeddings_scale")
    for i in range(config["n_layer"]):
        qkv = np.split(conv(f"h.{i}.attn.c_attn", layer_norm(weights, f"h.{i}.ln_1", x, epsilon)), 3, axis=1)
        x = x + conv(f"h.{i}.attn.c_proj", attend(*qkv, heads, bias, scale))
        h = layer_norm(weights, f"h.{i}.ln_2", x, epsilon)
        x = x + conv(f"h.{i}.mlp.c_proj", conv(f"h.{i}.mlp.c_fc", h) * silu(conv(f"h.{i}.mlp.c_fc2", h)))
    multiplier = config.get("mup_output_alpha", 1.0) * either("mup_width_scale", "width_scale")
    return log_softmax(layer_norm(weights, "ln_f", x, epsilon) @ weights["wte.weight"].T * multiplier)


def baichuan(weights, config, tokens, *, normalised_head=False):
    """[L] -> [L, V]: log p of each next token of Baichuan-13B, or with a normalised head of Baichuan2-13B."""
    weights, heads, epsilon = _float64(weights, "model."), config["num_attention_heads"], config["rms_norm_eps"]
    bias = causal_bias(slopes(heads), len(tokens))
    x = weights["embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        name = f"layers.{i}"
        h = rms_norm(weights, f"{name}.input_layernorm", x, epsilon)
        qkv = np.split(h @ weights[f"{name}.self_attn.W_pack.weight"].T, 3, axis=1)
        mixed = attend(*qkv, heads, bias, (x.shape[1] // heads) ** -0.5)
        x = x + mixed @ weights[f"{name}.self_attn.o_proj.weight"].T
        h = rms_norm(weights, f"{name}.post_attention_layernorm", x, epsilon)
        gate, up, down = (weights[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        x = x + (silu(h @ gate.T) * (h @ up.T)) @ down.T
    head = weights["lm_head.weight"]
    if normalised_head:
        head = head / np.maximum(np.linalg.norm(head, axis=1, keepdims=True), 1e-12)
    return log_softmax(rms_norm(weights, "norm", x, epsilon) @ head.T)


def refact(weights, config, tokens):
    """[L] -> [L, V]: log p of each next token of Refact: one key and value head, rows of gate before those of up.

    Its norms are LayerNorm without bias: so its model card ("LayerNorm instead of RMSNorm"), its authors' GPTRefact class and
    vLLM have it. llama.cpp divides by the root of the mean square instead.
    """
    weights, heads, epsilon = _float64(weights, "transformer."), config["n_head"], config["layer_norm_epsilon"]
    bias = causal_bias(slopes(heads), len(tokens))
    x = weights["wte.weight"][tokens]
    for i in range(config["n_layer"]):
        h = layer_norm(weights, f"h.{i}.ln_1", x, epsilon)
        keys, values = np.split(h @ weights[f"h.{i}.attn.kv.weight"].T, 2, axis=1)
        mixed = attend(h @ weights[f"h.{i}.attn.q.weight"].T, keys, values, heads, bias, keys.shape[1] ** -0.5)
        x = x + mixed @ weights[f"h.{i}.attn.c_proj.weight"].T
        h = layer_norm(weights, f"h.{i}.ln_2", x, epsilon)
        gate, up = np.split(h @ weights[f"h.{i}.mlp.gate_up_proj.weight"].T, 2, axis=1)
        x = x + (silu(gate) * up) @ weights[f"h.{i}.mlp.c_proj.weight"].T
    return log_softmax(layer_norm(weights, "ln_f", x, epsilon) @ weights["lm_head.weight"].T)
