"""MPT in float64 numpy, from its definition in llm-foundry.

It has what transformers' class lacks or ignores: grouped heads, norms of queries and keys, biases, scaled logits.
"""

import math
from typing import Any

import numpy as np
from scipy.special import erf, log_softmax, softmax

EPSILON = 1e-5


def _slopes(heads: int, bias_max: float) -> np.ndarray:
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** -(np.arange(1, power + 1) * bias_max / power)
    return slopes if power == heads else np.concatenate([slopes[1::2], slopes[::2]])[:heads]


class Mpt:
    """An MPT with the keys of its config.json and its tensors' names without the prefix."""

    def __init__(self, config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
        self.config, self.attention = config, config["attn_config"]
        self.weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
        self.heads, self.kv_heads = config["n_heads"], self.attention.get("kv_n_heads", config["n_heads"])
        self.head_width = config["d_model"] // config["n_heads"]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        if "rms" not in self.config["norm_type"]:
            x = x - x.mean(-1, keepdims=True)
        normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON)
        return normed * self.weights[f"{name}.weight"] + self.weights.get(f"{name}.bias", 0.0)

    def _split(self, x: np.ndarray, heads: int) -> np.ndarray:
        """[B, L, heads D] -> [B, query heads, L, D], a key's head repeated for all queries that share it."""
        split = x.reshape(*x.shape[:2], heads, self.head_width).transpose(0, 2, 1, 3)
        return split.repeat(self.heads // heads, axis=1)

    def _attend(self, x: np.ndarray, name: str) -> np.ndarray:
        fused = self._linear(x, f"{name}.Wqkv")
        if clip := self.attention.get("clip_qkv"):
            fused = fused.clip(-clip, clip)
        width, kv_width = self.heads * self.head_width, self.kv_heads * self.head_width
        queries, keys, values = np.split(fused, [width, width + kv_width], axis=-1)
        if self.attention.get("qk_ln"):
            queries, keys = self._norm(queries, f"{name}.q_ln"), self._norm(keys, f"{name}.k_ln")
        queries, keys, values = (
            self._split(queries, self.heads),
            *(self._split(y, self.kv_heads) for y in (keys, values)),
        )
        if self.attention.get("qk_gn"):
            queries, keys = self._norm(queries, f"{name}.q_ln"), self._norm(keys, f"{name}.k_ln")
        scale = self.attention.get("softmax_scale") or self.head_width**-0.5
        distances = np.arange(x.shape[1])[:, None] - np.arange(x.shape[1])
        bias = -_slopes(self.heads, self.attention.get("alibi_bias_max", 8))[:, None, None] * distances
        scores = np.where(distances < 0, -np.inf, scale * queries @ keys.swapaxes(2, 3) + bias)
        attended = (softmax(scores, -1) @ values).transpose(0, 2, 1, 3).reshape(*x.shape[:2], width)
        return self._linear(attended, f"{name}.out_proj")

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Returns those of the next token, [B, L, V]."""
        x = self.weights["wte.weight"][tokens]
        for i in range(self.config["n_layers"]):
            name = f"blocks.{i}"
            x = x + self._attend(self._norm(x, f"{name}.norm_1"), f"{name}.attn")
            up = self._linear(self._norm(x, f"{name}.norm_2"), f"{name}.ffn.up_proj")
            x = x + self._linear(up * (1 + erf(up / math.sqrt(2))) / 2, f"{name}.ffn.down_proj")
        scale = self.config.get("logit_scale") or 1.0
        scale = self.config["d_model"] ** -0.5 if scale == "inv_sqrt_d_model" else scale
        head = self.weights.get("lm_head.weight", self.weights["wte.weight"])
        return log_softmax(scale * self._norm(x, "norm_f") @ head.T, -1)


def random_weights(config: dict[str, Any], vocab_size: int) -> dict[str, np.ndarray]:
    """Returns float32 weights for a config, by their names without the prefix."""
    random, attention = np.random.default_rng(0), config["attn_config"]
    width, head_width = config["d_model"], config["d_model"] // config["n_heads"]
    kv_width = attention["kv_n_heads"] * head_width
    linear = {"attn.Wqkv": (width + 2 * kv_width, width), "attn.out_proj": (width, width)}
    linear |= {"ffn.up_proj": (4 * width, width), "ffn.down_proj": (width, 4 * width)}
    norms = {"norm_1": width, "norm_2": width, "attn.q_ln": width, "attn.k_ln": kv_width}
    if attention.get("qk_gn"):
        norms |= {"attn.q_ln": head_width, "attn.k_ln": head_width}
    shapes = {"wte.weight": (vocab_size, width), "norm_f.weight": (width,)}
    for i in range(config["n_layers"]):
        shapes |= {f"blocks.{i}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"blocks.{i}.{name}.weight": (size,) for name, size in norms.items()}
    if not config["no_bias"]:
        has_bias = [name for name in shapes if name != "wte.weight"]
        shapes |= {name.replace("weight", "bias"): shapes[name][:1] for name in has_bias}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab_size, width)
    return {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
