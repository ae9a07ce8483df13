"""Transformer language model in Flax Linen, one module for every position method."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.attention import attend
from alibi_jax.config import ModelConfig
from alibi_jax.config.model import Biased
from alibi_jax.model.adaptive import Embedding, Softmax, xavier
from alibi_jax.model.remat import REMAT_SAVES, layers_keep
from alibi_jax.positions.base import PositionMethod, check_consecutive, check_positions
from alibi_jax.positions.bias import Bias, LinearBias, concrete
from alibi_jax.positions.methods import POSITIONS
from alibi_jax.sharding import kv_dimension, shard

ACTIVATIONS = {
    "relu": nn.relu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "gelu_erf": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
}
zeros = nn.initializers.zeros_init()


def add_bias(module: nn.Module, of: Biased, name: str, x: Array, shape: tuple[int, ...]) -> Array:
    """Returns x [B, L, *shape] plus a parameter of `shape` that starts at zero; x itself where `of` has no biases."""
    if of not in module.config.biases:
        return x
    return x + module.param(name, zeros, shape, jnp.dtype(module.config.parameter_dtype)).astype(x.dtype)[None, None]


class Context(NamedTuple):
    """What every layer reads beside its input. A value of each layer's own, such as a cache, would be a field to scan over."""

    positions: Int[Array, " L"]
    bias: Bias | None


def implementation(name: str, position: PositionMethod, bias: Bias | None) -> str:
    """Returns the attention that is named; "blockwise" for "auto" where slopes are trained.

    "auto" would choose a kernel for them, and kernels compute no gradient of slopes.
    """
    trained = isinstance(bias, LinearBias) and bool(position.parameters())
    return "blockwise" if trained and name == "auto" else name


def check_ids(name: str, ids: Array, vocab_size: int) -> None:
    """ValueError where ids are no batch of integers, or are known now and outside the vocabulary."""
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name}: got {ids.dtype}, expected integers, the tokens' ids. Cast them.")
    if ids.ndim != 2:
        raise ValueError(f"{name}: got shape {list(ids.shape)}, expected [B, L]. Pass {name}[None] for one sequence.")
    values = concrete(ids)
    wrong = np.empty(0) if values is None else values[(values < 0) | (values >= vocab_size)]
    if wrong.size:
        raise ValueError(
            f"{name}: got token {wrong[0]}, expected ids from 0 to {vocab_size - 1}, the vocabulary. Use the tokenizer that "
            "the model was trained with."
        )


class Attention(nn.Module):
    """Multi-head self-attention; the position method rotates q and k, or biases the scores, or neither."""

    config: ModelConfig
    rotate: Callable[[Array, Array], Array]  # the position method's
    implementation: str

    @nn.compact
    def __call__(self, x: Float[Array, "B L E"], context: Context, train: bool) -> Float[Array, "B L E"]:
        config, dtype = self.config, x.dtype
        kept = jnp.dtype(config.parameter_dtype)

        def project(name: str, count: int, dimension: str) -> Float[Array, "B L _ D"]:
            shape = count, config.head_width
            kernel = self.param(name, xavier(2**-0.5, 0, (1, 2)), (config.width, *shape), kept)
            projected = jnp.einsum("ble,ehd->blhd", x, kernel.astype(dtype))
            heads = add_bias(self, "qkv", f"{name}_bias", projected, shape)
            if config.clip_qkv is not None:
                heads = jnp.clip(heads, -config.clip_qkv, config.clip_qkv)
            return shard(heads, "batch", "length", dimension, "head_width")

        of_keys = kv_dimension(config.kv_heads, jax.sharding.get_abstract_mesh())
        queries = project("query", config.num_heads, "heads")
        keys, values = (project(name, config.kv_heads, of_keys) for name in ("key", "value"))
        if config.qk_norm != "none":
            axes = 1 if config.qk_norm == "head" else 2
            queries, keys = Norm(config, axes, name="query_norm")(queries), Norm(config, axes, name="key_norm")(keys)
        queries, keys = (self.rotate(heads, context.positions) for heads in (queries, keys))
        if config.score_multiplier != 1:  # in float32: bfloat16 would round the multiplier, and so all scores alike
            queries = (config.score_multiplier * queries.astype(jnp.float32)).astype(dtype)
        for name, heads in (("queries", queries), ("keys", keys), ("values", values)):
            self.sow("intermediates", name, heads)  # kept only where apply(..., mutable="intermediates") asks
        rate = config.attention_dropout if train else 0.0
        attended = attend(
            queries,
            keys,
            values,
            bias=context.bias,
            causal=config.causal,
            implementation=self.implementation,
            dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if rate > 0 else None,
        )
        shape = config.num_heads, config.head_width, config.width
        kernel = self.param("out", xavier(1.0, (0, 1), 2), shape, kept)
        out = jnp.einsum("blhd,hde->ble", attended, kernel.astype(dtype))
        return add_bias(self, "out", "out_bias", out, (config.width,))


class MLP(nn.Module):
    """Two matrices with a nonlinearity between them; gated, the nonlinearity of a third one's output is multiplied in."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L E"], train: bool) -> Float[Array, "B L E"]:
        config, dtype = self.config, x.dtype
        activation, kept = ACTIVATIONS[config.activation], jnp.dtype(config.parameter_dtype)
        # both before any bias: initial values depend on the order
        up = self.param("up", xavier(1.0, 0, 1), (config.width, config.mlp_width), kept)
        down = self.param("down", xavier(1.0, 0, 1), (config.mlp_width, config.width), kept)

        def project(name: str, kernel: Array) -> Float[Array, "B L F"]:
            hidden = add_bias(self, "up", f"{name}_bias", x @ kernel.astype(dtype), (config.mlp_width,))
            return shard(hidden, "batch", "length", "mlp")

        hidden = project("up", up)
        if config.gated_mlp:
            gate = self.param("gate", xavier(1.0, 0, 1), (config.width, config.mlp_width), kept)
            hidden = activation(project("gate", gate)) * hidden
        else:
            hidden = activation(hidden)
        hidden = nn.Dropout(config.activation_dropout, deterministic=not train)(hidden)
        return add_bias(self, "down", "down_bias", hidden @ down.astype(dtype), (config.width,))


class Norm(nn.Module):
    """LayerNorm, or RMSNorm (Zhang & Sennrich 2019), over the last axes, in float32 whatever the compute dtype."""

    config: ModelConfig
    axes: int = 1  # how many, as one

    @nn.compact
    def __call__(self, x: Float[Array, "B L *shape"]) -> Float[Array, "B L *shape"]:
        config, axes = self.config, tuple(range(-self.axes, 0))
        kept, shape = jnp.dtype(config.parameter_dtype), x.shape[-self.axes :]

        def parameter(name: str, init: nn.initializers.Initializer) -> Float32[Array, "..."]:
            values = self.param(name, init, shape, kept).astype(jnp.float32)
            return jnp.expand_dims(values, tuple(range(x.ndim - self.axes)))

        scale = parameter("scale", nn.initializers.ones_init())
        wide = x.astype(jnp.float32)
        if config.norm == "layer":
            wide = wide - wide.mean(axes, keepdims=True)
        normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(axes, keepdims=True) + config.norm_epsilon) * scale
        if config.norm == "layer" and config.norm_biases:
            normed = normed + parameter("bias", zeros)
        return normed.astype(x.dtype)


class Block(nn.Module):
    """Pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x)). Returns (x, None), as nn.scan expects it."""

    config: ModelConfig
    rotate: Callable[[Array, Array], Array]
    implementation: str
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B L E"], context: Context) -> tuple[Float[Array, "B L E"], None]:
        config = self.config
        drop = nn.Dropout(config.residual_dropout, deterministic=not self.train)
        attention = Attention(config, self.rotate, self.implementation, name="attention")
        x = x + drop(attention(Norm(config, name="attention_norm")(x), context, self.train))
        x = x + drop(MLP(config, name="mlp")(Norm(config, name="mlp_norm")(x), self.train))
        return shard(x, "batch", "length", "channels"), None


class TransformerLM(nn.Module):
    """A language model: logits[b, t] for the token after tokens[b, :t+1], at any length L, whatever it was trained at.

    `params = model.init(key, tokens)["params"]`, `model.apply({"params": params}, tokens) -> float32 [B, L, V]`; parameters
    are plain nested dicts of arrays. With adaptive_cutoffs the output is normalised: log-probabilities. For a loss use
    `model.apply({"params": params}, tokens, targets, method="nats") -> float32 [B, L]`, which never holds [B, L, V] numbers.
    With train=True dropout acts and needs rngs={"dropout": key}. With config.causal False every position sees all tokens.

    positions: int32 [L], 0 ... L - 1 where None. Embeddings and rotations take any; which tokens come earlier is a matter of
    their order alone. Attention computes a bias from the distance in that order: a method with one needs consecutive positions,
    and where they start changes nothing but a rounding (slope_rounding).

    ValueError for a config without vocab_size, ids outside the vocabulary, positions that do not fit, and a length that the
    position method refuses (`learned`). Under jax.jit values are not known: there an id outside gives NaN, as a target and, as
    an input, for all positions that see it; positions that should be consecutive and are not give NaN everywhere.
    """

    config: ModelConfig

    @property
    def vocab_size(self) -> int | None:
        """Returns the number of token ids; None where the config leaves it open."""
        return self.config.vocab_size

    @property
    def causal(self) -> bool:
        """Returns whether a token sees only itself and those before it."""
        return self.config.causal

    def _layers(
        self, x: Float[Array, "B L E"], context: Context, position: PositionMethod, train: bool
    ) -> Float[Array, "B L E"]:
        config = self.config
        fields = config, position.rotate, implementation(config.attention, position, context.bias), train
        layer = Block
        if config.remat:
            policy = REMAT_SAVES[layers_keep(config, *x.shape[:2])]
            layer = nn.remat(Block, prevent_cse=not config.scan_layers, policy=policy)
        if config.scan_layers:
            scanned = nn.scan(
                layer,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=config.num_layers,
            )
            return scanned(*fields, name="layers")(x, context)[0]
        for i in range(config.num_layers):
            x, _ = layer(*fields, name=f"layer_{i}")(x, context)
        return x

    def __call__(
        self, tokens: Int[Array, "B L"], positions: Int[Array, " L"] | None = None, *, train: bool = False
    ) -> Float32[Array, "B L V"]:
        """Returns the logits, or log-probabilities, of every token of the vocabulary at every position."""
        return self._checked(tokens, None, positions, train)

    def nats(
        self,
        tokens: Int[Array, "B L"],
        targets: Int[Array, "B L"],
        positions: Int[Array, " L"] | None = None,
        *,
        train: bool = False,
    ) -> Float32[Array, "B L"]:
        """Returns -log p of targets[b, t] given the tokens that position t sees; natural logarithm, float32."""
        return self._checked(tokens, targets, positions, train)

    def _checked(
        self,
        tokens: Int[Array, "B L"],
        targets: Int[Array, "B L"] | None,
        positions: Int[Array, " L"] | None,
        train: bool,
    ) -> Array:
        if self.config.vocab_size is None:
            raise ValueError("model.vocab_size: got None, expected a number. Set it to the tokenizer's vocabulary.")
        check_ids("tokens", tokens, self.config.vocab_size)
        if targets is not None:
            check_ids("targets", targets, self.config.vocab_size)
        # accelerators would multiply float32 as TF32 or bfloat16, and a float32 evaluation would not be one
        with jax.default_matmul_precision("highest" if self.config.compute_dtype == "float32" else "default"):
            return self._forward(tokens, targets, positions, train)

    @nn.compact
    def _forward(
        self,
        tokens: Int[Array, "B L"],
        targets: Int[Array, "B L"] | None,
        positions: Int[Array, " L"] | None,
        train: bool,
    ) -> Array:
        config = self.config
        embedding = Embedding(config, name="embedding")
        position = POSITIONS[config.position].from_config(config).copy(name="position")
        x = embedding(tokens)
        x = Norm(config, name="embedding_norm")(x) if config.embedding_norm else x
        bias = position.bias(tokens.shape[1])
        if positions is None:
            positions = jnp.arange(tokens.shape[1])
        elif bias is None:
            check_positions(x, positions)
        else:
            x, bias = check_consecutive(x, positions), bias.from_position(positions[0])
        x = position.embed(x, positions)
        x = nn.Dropout(config.embedding_dropout, deterministic=not train)(x)
        x = self._layers(shard(x, "batch", "length", "channels"), Context(positions, bias), position, train)
        x = Norm(config, name="final_norm")(x) if config.final_norm else x
        return Softmax(config, name="softmax")(x, embedding, targets, train)
