"""The section of a config that describes the model, and the clusters of its vocabulary."""

import dataclasses
import itertools
from typing import ClassVar, Literal, NamedTuple

from alibi_jax.config.checks import LARGEST, Section, gib
from alibi_jax.config.sizes import STATE, parameter_count
from alibi_jax.errors import require
from alibi_jax.positions.methods import POSITIONS

Attention = Literal["auto", "reference", "blockwise", "pallas_tpu", "pallas_gpu", "mosaic_gpu"]
PositionName = Literal[tuple(POSITIONS)]  # a method is named in one place; type checkers see any name


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

    position: PositionName = "alibi"  # position method
    causal: bool = True  # a token sees only itself and those before it; runs need this, a model of your own may not
    num_layers: int = 4  # transformer layers
    width: int = 128  # channels of the residual stream
    num_heads: int = 8  # attention heads; must divide width
    mlp_width: int = 512  # channels of the MLP's hidden layer
    vocab_size: int | None = None  # rows of the embedding; None: as many as the tokenizer has tokens
    activation: Literal["relu", "gelu", "silu"] = "relu"  # activation function of the MLP
    use_biases: bool = True  # biases in the query, key, value and output projections and in the MLP
    final_norm: bool = True  # LayerNorm before the softmax (the WikiText-103 recipe has none)
    norm_epsilon: float = 1e-5  # added to the variance in LayerNorm
    scale_embedding: bool = True  # multiply token embeddings by sqrt(width)
    tied_embedding: bool = True  # the softmax shares the embedding's weights
    adaptive_cutoffs: tuple[int, ...] = ()  # adaptive: first token id of each cluster but the first; empty: one cluster
    # adaptive: embeddings of each cluster are narrower by this factor than those of the one before
    adaptive_factor: int = 4
    adaptive_dropout: float = 0.0  # adaptive: dropout rate of the softmax's input and of each projection's output
    tied_projections: bool = True  # adaptive: the softmax shares the projections of the input
    # most logits (MiB per device) held at once; a larger loss is computed in chunks and recomputed in the backward pass
    logits_mib: int = 256
    embedding_dropout: float = 0.0  # dropout rate of the embedding's output
    residual_dropout: float = 0.0  # dropout rate of the attention's and the MLP's output
    attention_dropout: float = 0.0  # dropout rate of the attention weights
    activation_dropout: float = 0.0  # dropout rate inside the MLP
    bias_max: float = 8.0  # ALiBi: the smallest slope is 2^-bias_max
    # ALiBi: the paper's; 2^-bias_max for all heads; trained
    slopes: Literal["geometric", "equal", "learned"] = "geometric"
    slope_divisor: float = 1.0  # ALiBi: divides every slope, in evaluation too
    rotary_base: float = 10_000.0  # rotary: the longest wavelength is 2 pi times this, tokens
    t5_buckets: int = 32  # T5 bias: number of distance buckets
    t5_max_distance: int = 128  # T5 bias: distances from here on share the last bucket, tokens
    learned_length: int = 1024  # learned: rows of the position table, tokens; longer inputs are refused
    attention: Attention = "auto"  # implementation of attention
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # data type of activations; parameters are float32
    scan_layers: bool = False  # compile one layer and scan it over stacked parameters
    remat: bool = False  # recompute each layer's activations in the backward pass instead of storing them
    # with remat: what is stored anyway; auto: as much as fits a device of a known kind, by an estimate (`plan` says it)
    remat_saves: Literal["auto", "inputs", "attention", "products"] = "auto"

    @property
    def head_width(self) -> int:
        """Returns the channels of one attention head."""
        return self.width // self.num_heads

    @property
    def clusters(self) -> list[Cluster]:
        """Returns the clusters of the vocabulary, which has to be known: one of full width without cutoffs."""
        edges = itertools.pairwise((0, *self.adaptive_cutoffs, self.vocab_size))
        return [Cluster(first, end, self.width // self.adaptive_factor**b) for b, (first, end) in enumerate(edges)]

    def memory(self) -> int:
        """Returns the bytes of the parameters, their gradients and moments, over all devices."""
        return STATE * parameter_count(self)

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
