"""The section of a config that describes the model, and the clusters of its vocabulary."""

import dataclasses
import itertools
from typing import ClassVar, Literal, NamedTuple, get_args

from alibi_jax.config.checks import LARGEST, Section, gib
from alibi_jax.config.sizes import STATE, parameter_count
from alibi_jax.errors import require
from alibi_jax.positions.methods import POSITIONS

Attention = Literal["auto", "reference", "blockwise", "pallas_tpu", "pallas_gpu", "mosaic_gpu"]
PositionName = Literal[tuple(POSITIONS)]  # a method is named in one place; type checkers see any name
Biased = Literal["qkv", "out", "up", "down"]
BIASED: tuple[Biased, ...] = get_args(Biased)


class Cluster(NamedTuple):
    """Tokens first ... end - 1 of the vocabulary, with vectors of `width` channels (Grave et al. 2017)."""

    first: int
    end: int
    width: int

    @property
    def size(self) -> int:
        """Returns the number of tokens in the cluster."""
        return self.end - self.first


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The architecture of a transformer language model."""

    section: ClassVar[str] = "model"

    # sizes
    num_layers: int = 4  # transformer layers
    width: int = 128  # channels of the residual stream
    num_heads: int = 8  # attention heads; must divide width
    num_kv_heads: int | None = None  # heads of keys and values; must divide num_heads; None: as many as num_heads
    mlp_width: int = 512  # channels of the MLP's hidden layer

    # vocabulary
    vocab_size: int | None = None  # rows of the embedding; None: as many as the tokenizer has tokens
    embedding_multiplier: float | Literal["sqrt_width"] = "sqrt_width"  # of token embeddings; sqrt_width: sqrt(width)
    tied_embedding: bool = True  # the softmax shares the embedding's weights
    logit_multiplier: float = 1.0  # of the logits, before the softmax
    adaptive_cutoffs: tuple[int, ...] = ()  # adaptive: first token id of each cluster but the first; empty: one cluster
    # adaptive: embeddings of each cluster are narrower by this factor than those of the one before
    adaptive_factor: int = 4
    tied_projections: bool = True  # adaptive: the softmax shares the projections of the input

    # attention
    causal: bool = True  # a token sees only itself and those before it; runs need this, a model of your own may not
    # linear layers with biases: query, key and value; attention's output; the MLP's up (and gate) and down
    biases: tuple[Biased, ...] = BIASED
    clip_qkv: float | None = None  # largest absolute value of queries, keys and values; None: any
    score_multiplier: float = 1.0  # of the scores, in addition to head_width^-0.5

    # MLP
    activation: Literal["relu", "gelu_tanh", "gelu_erf", "silu"] = "relu"  # activation function of the MLP
    gated_mlp: bool = False  # the MLP is down(activation(gate x) * up x), not down(activation(up x))

    # norms
    norm: Literal["layer", "rms"] = "layer"  # LayerNorm, or RMSNorm: nothing is subtracted, and it has no bias
    norm_biases: bool = True  # LayerNorm has a bias
    norm_epsilon: float = 1e-5  # added to the variance, or to the mean square, in a norm
    final_norm: bool = True  # a norm before the softmax (the WikiText-103 recipe has none)
    embedding_norm: bool = False  # a norm of the token embeddings, after their multiplier
    # norm of queries and keys, after clip_qkv and before rotation: of each head, or of all heads' channels together
    qk_norm: Literal["none", "head", "channels"] = "none"

    # position
    position: PositionName = "alibi"  # position method
    bias_max: float = 8.0  # ALiBi: the smallest slope is 2^-bias_max
    # ALiBi: the paper's; 2^-bias_max for all heads; trained
    slopes: Literal["geometric", "equal", "learned"] = "geometric"
    slope_divisor: float = 1.0  # ALiBi: divides every slope, in evaluation too
    # ALiBi, tokens: an input of more divides the slopes by length / slope_length as well; None: by nothing
    slope_length: int | None = None
    # ALiBi, which slopes are divided: linear: all alike; ntk: the smallest, and the larger ones by less, the largest by 1
    slope_scaling: Literal["linear", "ntk"] = "linear"
    # ALiBi: bfloat16: slopes, and slope times position, are rounded to bfloat16, as Falcon-RW was trained
    slope_rounding: Literal["none", "bfloat16"] = "none"
    rotary_base: float = 10_000.0  # rotary: the longest wavelength is 2 pi times this, tokens
    t5_buckets: int = 32  # T5 bias: number of distance buckets
    t5_max_distance: int = 128  # T5 bias: distances from here on share the last bucket, tokens
    learned_length: int = 1024  # learned: rows of the position table, tokens; longer inputs are refused

    # dropout
    embedding_dropout: float = 0.0  # dropout rate of the embedding's output
    residual_dropout: float = 0.0  # dropout rate of the attention's and the MLP's output
    attention_dropout: float = 0.0  # dropout rate of the attention weights
    activation_dropout: float = 0.0  # dropout rate inside the MLP
    adaptive_dropout: float = 0.0  # adaptive: dropout rate of the softmax's input and of each projection's output

    # computation
    attention: Attention = "auto"  # implementation of attention
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # data type of activations
    # data type of parameters, in memory and in checkpoints, but of the position method's (float32); training needs float32
    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False  # compile one layer and scan it over stacked parameters
    remat: bool = False  # recompute each layer's activations in the backward pass instead of storing them
    # with remat: what is stored anyway; auto: as much as fits a device of a known kind, by an estimate (`plan` says it)
    remat_saves: Literal["auto", "inputs", "attention", "products"] = "auto"
    # most logits (MiB per device) held at once; a larger loss is computed in chunks and recomputed in the backward pass
    logits_mib: int = 256

    @property
    def head_width(self) -> int:
        """Returns the channels of one attention head."""
        return self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Returns the number of heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def clusters(self) -> list[Cluster]:
        """Returns the clusters of the vocabulary, which has to be known: one of full width without cutoffs."""
        edges = itertools.pairwise((0, *self.adaptive_cutoffs, self.vocab_size))
        return [Cluster(first, end, self.width // self.adaptive_factor**b) for b, (first, end) in enumerate(edges)]

    def memory(self) -> int:
        """Returns the bytes of the parameters, their gradients and moments, over all devices."""
        return STATE * parameter_count(self)

    def check_trainable(self) -> None:
        """Raises ConfigError for parameters of a data type that training cannot update."""
        require(
            self.parameter_dtype == "float32",
            "model.parameter_dtype",
            repr(self.parameter_dtype),
            "'float32' in training: most updates are smaller than bfloat16's rounding",
            "Start a new run from these parameters with --init-from, which makes them float32; plan it with "
            "--model.parameter-dtype float32.",
        )

    def check(self) -> None:
        """Raises ConfigError where sizes do not fit together."""
        self._check_clusters()
        require(
            self.width % self.num_heads == 0,
            "model.num_heads",
            f"{self.num_heads} heads for width {self.width}",
            "a number of heads that divides the width",
            f"Use width {self.num_heads * max(1, round(self.width / self.num_heads))} or another num_heads.",
        )
        require(
            self.num_heads % self.kv_heads == 0,
            "model.num_kv_heads",
            f"{self.kv_heads} heads of keys and values for {self.num_heads} attention heads",
            "a number that divides num_heads",
            "Use 1, num_heads, or a divisor of it.",
        )
        require(
            self.biases == tuple(name for name in BIASED if name in self.biases),
            "model.biases",
            self.biases,
            f"each name once, in the order {', '.join(BIASED)}",
            "Write them so.",
        )
        require(
            self.memory() <= LARGEST,
            "model",
            f"{parameter_count(self):,} parameters, which would take {gib(self.memory())} in training",
            f"at most {gib(LARGEST)}",
            "Lower model.width, mlp_width, num_layers, vocab_size or learned_length.",
        )

    def _check_clusters(self) -> None:
        cutoffs, factor = self.adaptive_cutoffs, self.adaptive_factor
        within = self.vocab_size or max(cutoffs, default=0) + 1
        require(
            all(low < high for low, high in itertools.pairwise((0, *cutoffs, within))),
            "model.adaptive_cutoffs",
            f"{cutoffs} with a vocabulary of {self.vocab_size or 'the tokenizer'}",
            "increasing token ids, all below the size of the vocabulary",
            "Lower them, or leave out those past it.",
        )
        require(
            self.width >= factor ** len(cutoffs),
            "model.adaptive_factor",
            f"{factor} for {len(cutoffs) + 1} clusters of a model of width {self.width}",
            f"embeddings at least 1 wide in the last cluster: width / factor^{len(cutoffs)} of 1 or more",
            "Lower adaptive_factor or name fewer cutoffs.",
        )
