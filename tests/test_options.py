"""The model's options: each computes its own formula, by an independent model in numpy's float64; and on several devices."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from alibi_jax.config import Config, MeshConfig, ModelConfig
from alibi_jax.errors import ConfigError
from alibi_jax.model import TransformerLM
from alibi_jax.model.placement import tree_shardings
from alibi_jax.positions import alibi_slopes
from alibi_jax.sharding import make_mesh
from alibi_jax.train import train
from conftest import TOLERANCE, assert_close

SMALL = {"num_layers": 2, "width": 16, "num_heads": 4, "mlp_width": 24, "vocab_size": 30}
TOKENS = np.random.default_rng(1).integers(0, 30, (2, 20), dtype=np.int32)
RMS = {"norm": "rms", "biases": (), "gated_mlp": True, "activation": "silu"}
MODELS = {
    "one key head, RMSNorm, SwiGLU": RMS | {"num_kv_heads": 1, "tied_embedding": False},
    "norms of heads, clipped": {
        "num_kv_heads": 2,
        "clip_qkv": 0.5,
        "qk_norm": "head",
        "slope_length": 8,
        "embedding_multiplier": 0.2,
        "norm_epsilon": 0.1,
    },
    "norms of channels": RMS | {"qk_norm": "channels", "num_kv_heads": 2, "scan_layers": True, "score_multiplier": 0.3},
    "norms without bias": {
        "norm_biases": False,
        "qk_norm": "channels",
        "activation": "gelu_erf",
        "biases": ("out", "up"),
        "slope_divisor": 4.0,
        "slope_scaling": "ntk",
    },
    "embedding norm, GEGLU": {
        "embedding_norm": True,
        "gated_mlp": True,
        "activation": "gelu_tanh",
        "biases": ("qkv", "down"),
        "scan_layers": True,
        "slope_scaling": "ntk",
        "slope_length": 10,
        "slope_divisor": 1.5,
    },
    "rounded": {
        "slope_rounding": "bfloat16",
        "slope_divisor": 0.5,
        "num_heads": 2,
        "bias_max": 1.5,  # slopes of 2^-0.75 and 2^-1.5, which bfloat16 does not hold
        "slope_length": 16,
        "logit_multiplier": 0.5,
    },
    "clusters": {
        "adaptive_cutoffs": (8, 16),
        "adaptive_factor": 2,
        "embedding_norm": True,
        "logit_multiplier": 3.0,
    },
}


def config_of(name: str) -> ModelConfig:
    return ModelConfig(**(SMALL | MODELS[name]))


@functools.cache
def shapes_of(config: ModelConfig):
    return jax.eval_shape(TransformerLM(config).init, jax.random.key(0), TOKENS)["params"]


def random_params(config: ModelConfig):
    """Parameters so large that biases and scales show."""
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: random.normal(0.1, 0.3, leaf.shape).astype(leaf.dtype), shapes_of(config))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_erf": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


class Float64:
    """The model in numpy, from the options' formulas, with no code of the library but the paper's slopes."""

    def __init__(self, config: ModelConfig, params, first: int = 0) -> None:
        self.config, self.params = config, jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        self.first = first  # position

    def norm(self, x, weights, axes=(-1,)):
        if self.config.norm == "layer":
            x = x - x.mean(axes, keepdims=True)
        x = x / np.sqrt((x**2).mean(axes, keepdims=True) + self.config.norm_epsilon) * weights["scale"]
        assert ("bias" in weights) == (self.config.norm == "layer" and self.config.norm_biases)
        return x + weights.get("bias", 0.0)

    def bias(self, length: int):
        config, heads = self.config, self.config.num_heads
        slopes = np.asarray(alibi_slopes(heads, config.bias_max), np.float64)
        divisor = config.slope_divisor * max(1, length / config.slope_length if config.slope_length else 1)
        powers = np.arange(heads) / (heads - 1) if config.slope_scaling == "ntk" else np.ones(heads)
        positions = self.first + np.arange(length)
        if config.slope_rounding == "bfloat16":
            products = slopes.astype(ml_dtypes.bfloat16)[:, None] * positions.astype(ml_dtypes.bfloat16)
            absolute = products.astype(np.float64) / divisor
            return absolute[:, None, :] - absolute[:, :, None]
        return -(slopes / divisor**powers)[:, None, None] * np.abs(positions[:, None] - positions[None])

    def attention(self, x, weights):
        config = self.config
        biased = "qkv" in config.biases
        q, k, v = (
            np.einsum("ble,ehd->blhd", x, weights[name]) + (weights[f"{name}_bias"] if biased else 0.0)
            for name in ("query", "key", "value")
        )
        if config.clip_qkv:
            q, k, v = (np.clip(each, -config.clip_qkv, config.clip_qkv) for each in (q, k, v))
        if config.qk_norm != "none":
            axes = (-1,) if config.qk_norm == "head" else (-2, -1)
            q, k = self.norm(q, weights["query_norm"], axes), self.norm(k, weights["key_norm"], axes)
        k, v = (np.repeat(each, config.num_heads // k.shape[2], axis=2) for each in (k, v))
        scale = config.score_multiplier / math.sqrt(config.width // config.num_heads)
        scores = scale * np.einsum("bthd,bshd->bhts", q, k) + self.bias(x.shape[1])
        later = np.triu(np.ones(scores.shape[-2:], bool), 1)
        weighted = np.einsum("bhts,bshd->bthd", np.exp(log_softmax(np.where(later, -np.inf, scores))), v)
        out = np.einsum("bthd,hde->bte", weighted, weights["out"])
        return out + (weights["out_bias"] if "out" in config.biases else 0.0)

    def mlp(self, x, weights):
        config = self.config
        activation, biased = ACTIVATIONS[config.activation], "up" in config.biases
        up = x @ weights["up"] + (weights["up_bias"] if biased else 0.0)
        if config.gated_mlp:
            hidden = activation(x @ weights["gate"] + (weights["gate_bias"] if biased else 0.0)) * up
        else:
            hidden = activation(up)
        return hidden @ weights["down"] + (weights["down_bias"] if "down" in config.biases else 0.0)

    def layer(self, i: int):
        if self.config.scan_layers:
            return jax.tree.map(lambda stacked: stacked[i], self.params["layers"])
        return self.params[f"layer_{i}"]

    def embedded(self, tokens):
        config, tables = self.config, self.params["embedding"]
        if not config.adaptive_cutoffs:
            return tables["table"][tokens]
        whole = [tables[f"table_{b}"] @ tables[f"projection_{b}"] for b in range(3)]
        return np.concatenate(whole)[tokens]

    def log_probabilities(self, x):
        config, tables = self.config, self.params["embedding"]
        if not config.adaptive_cutoffs:
            table = tables["table"] if config.tied_embedding else self.params["softmax"]["table"]
            return log_softmax(config.logit_multiplier * x @ table.T)
        rows = np.concatenate([tables["table_0"], self.params["softmax"]["classes"]])
        head = log_softmax(config.logit_multiplier * x @ rows.T)
        size, logs = len(tables["table_0"]), [head[..., : len(tables["table_0"])]]
        for b in (1, 2):
            within = x @ tables[f"projection_{b}"].T @ tables[f"table_{b}"].T
            logs.append(head[..., size + b - 1, None] + log_softmax(config.logit_multiplier * within))
        return np.concatenate(logs, -1)

    def __call__(self, tokens):
        config = self.config
        multiplier = config.embedding_multiplier
        x = self.embedded(tokens) * (math.sqrt(config.width) if multiplier == "sqrt_width" else multiplier)
        x = self.norm(x, self.params["embedding_norm"]) if config.embedding_norm else x
        for i in range(config.num_layers):
            layer = self.layer(i)
            x = x + self.attention(self.norm(x, layer["attention_norm"]), layer["attention"])
            x = x + self.mlp(self.norm(x, layer["mlp_norm"]), layer["mlp"])
        return self.log_probabilities(self.norm(x, self.params["final_norm"]))


def log_probabilities(model, params, tokens):
    return jax.nn.log_softmax(jax.jit(model.apply)({"params": params}, tokens), axis=-1)


@pytest.mark.parametrize("name", MODELS)
def test_options_compute_their_formulas_and_each_matters(name):
    config = config_of(name)
    params = random_params(config)
    expected = Float64(config, params)(TOKENS)
    assert_close(log_probabilities(TransformerLM(config), params, TOKENS), expected, "paper")
    for field, default in ((field.name, field.default) for field in dataclasses.fields(ModelConfig)):
        if field in {"scan_layers", "adaptive_cutoffs", "adaptive_factor", *SMALL} or getattr(config, field) == default:
            continue
        if field in {"slope_divisor", "slope_length"} and config.slope_scaling == "ntk":
            without = dataclasses.replace(config, slope_divisor=1.1, slope_length=None)
        else:
            without = dataclasses.replace(config, **{field: default})
        if shapes_of(without) == shapes_of(config):
            changed = np.abs(Float64(without, params)(TOKENS) - expected).max()
            assert changed > 50 * TOLERANCE["paper"], field


def test_a_rounded_bias_is_that_of_the_positions_passed_in():
    config = dataclasses.replace(config_of("rounded"), num_layers=1)
    params, model = random_params(config), TransformerLM(config)
    run = functools.partial(jax.jit(model.apply), {"params": params}, jnp.asarray(TOKENS))
    assert_close(jax.nn.log_softmax(run(100 + jnp.arange(20)), -1), Float64(config, params, 100)(TOKENS), "paper")
    assert np.abs(run(100 + jnp.arange(20)) - run(jnp.arange(20))).max() > 50 * TOLERANCE["paper"]


SHARDED = {  # (mesh, options)
    "keys on their own devices": ((2, 1, 2, 1), RMS | {"num_kv_heads": 2, "qk_norm": "head"}),
    "keys repeated": (
        (1, 2, 2, 1),
        {"num_kv_heads": 3, "num_heads": 6, "width": 24, "qk_norm": "channels", "embedding_norm": True},
    ),
    "one key head in a ring": (
        (1, 1, 2, 2),
        RMS | {"num_kv_heads": 1, "scan_layers": True, "slope_rounding": "bfloat16", "bias_max": 1.5},
    ),
}


def loss_and_gradient(config: ModelConfig, params):
    def loss(params):
        tokens = jnp.asarray(TOKENS)
        return TransformerLM(config).apply({"params": params}, tokens, tokens[:, ::-1], method="nats").mean()

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


@pytest.mark.parametrize("name", SHARDED)
def test_options_on_a_mesh_have_the_same_loss_and_gradients(name):
    """Blockwise on every device, in a ring where the sequence is split: key heads that do not divide are repeated."""
    sizes, changes = SHARDED[name]
    config = ModelConfig(**(SMALL | {"vocab_size": 32, "num_layers": 1, "attention": "reference"} | changes))
    params = random_params(config)
    expected = loss_and_gradient(config, params)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, tree_shardings(config, params, mesh))
        actual = loss_and_gradient(dataclasses.replace(config, attention="blockwise"), placed)
    assert_close(actual[0], expected[0], "sharded loss")
    jax.tree.map(functools.partial(assert_close, what="attention gradient"), actual[1], expected[1])


def test_bfloat16_parameters_compute_as_their_values_in_float32_and_are_not_trained(tmp_path):
    changes = RMS | {"num_kv_heads": 2, "qk_norm": "head", "adaptive_cutoffs": (8,), "compute_dtype": "bfloat16"}
    config = ModelConfig(**(SMALL | changes), parameter_dtype="bfloat16")
    params = random_params(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    kept = dataclasses.replace(config, parameter_dtype="float32")
    assert shapes_of(kept) == jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wide)
    low, high = (
        log_probabilities(TransformerLM(each), tree, TOKENS) for each, tree in ((config, params), (kept, wide))
    )
    assert low.dtype == jnp.float32 and (low == high).all()
    with pytest.raises(
        ConfigError, match=r"parameter_dtype: got 'bfloat16', expected 'float32' in training.*--init-from"
    ):
        train(Config(model=config), tmp_path / "run")
    assert not (tmp_path / "run").exists()
