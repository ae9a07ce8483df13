"""The sections of a config, one frozen value each: every field has a type, a default, and a one-line meaning with its unit."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

from alibi_jax.checks import Section, require

Attention = Literal["auto", "reference", "blockwise", "pallas_tpu", "pallas_gpu"]
PositionName = Literal["alibi", "sinusoidal", "rotary", "t5", "learned", "none"]


class Band(NamedTuple):
    """Words first ... end - 1 of the vocabulary, with vectors of `width` channels."""

    first: int
    end: int
    width: int


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    position: PositionName = "alibi"  # position method
    num_layers: int = 4  # transformer layers
    width: int = 128  # channels of the residual stream
    num_heads: int = 8  # attention heads; must divide width
    mlp_width: int = 512  # channels inside the MLP
    vocab_size: int | None = None  # rows of the embedding; None: as many as the tokenizer has
    activation: Literal["relu", "gelu", "silu"] = "relu"  # nonlinearity of the MLP
    use_biases: bool = True  # biases on q, k, v, out and both MLP layers
    final_norm: bool = True  # LayerNorm before the softmax (the WikiText-103 recipe has none)
    norm_epsilon: float = 1e-5  # added to the variance in LayerNorm
    scale_embedding: bool = True  # multiply token embeddings by sqrt(width)
    tied_embedding: bool = True  # the softmax uses the embedding's rows
    adaptive_cutoffs: tuple[int, ...] = ()  # bands of the adaptive input and softmax end here, words; empty: one band
    adaptive_factor: int = 4  # the vectors of each band are so many times narrower than those of the band before
    adaptive_dropout: float = 0.0  # share dropped before the adaptive softmax and after each of its projections
    tied_projections: bool = True  # the adaptive softmax uses the projections of the adaptive input
    logits_mib: int = 256  # logits a device holds at once for a loss; of more the loss is made in parts, twice computed
    embedding_dropout: float = 0.0  # share dropped from the embedding's output
    residual_dropout: float = 0.0  # share dropped from the attention's and the MLP's output
    attention_dropout: float = 0.0  # share of attention weights dropped
    activation_dropout: float = 0.0  # share dropped inside the MLP
    bias_max: float = 8.0  # ALiBi: the last power-of-two head has slope 2^-bias_max
    slopes: Literal["geometric", "equal", "learned"] = "geometric"  # ALiBi: the paper's; 2^-bias_max for all; trained
    slope_divisor: float = 1.0  # ALiBi: slopes are divided by it, in evaluation too
    rotary_base: float = 10_000.0  # rotary: longest wavelength is 2 pi times this, tokens
    t5_buckets: int = 32  # T5 bias: number of distance buckets
    t5_max_distance: int = 128  # T5 bias: distances from here on share the last bucket, tokens
    learned_length: int = 1024  # learned: rows of the table, tokens; longer inputs are refused
    attention: Attention = "auto"  # implementation of attention
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters stay float32
    scan_layers: bool = False  # one compiled layer looped over stacked parameters
    remat: bool = False  # recompute each layer in the backward pass instead of storing it
    remat_saves: Literal["inputs", "attention", "products"] = "inputs"  # with remat, kept all the same

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def bands(self) -> list[Band]:
        """The bands of the vocabulary, which has to be known; one, of full width, where there are no cutoffs."""
        edges = itertools.pairwise((0, *self.adaptive_cutoffs, self.vocab_size))
        return [Band(first, end, self.width // self.adaptive_factor**b) for b, (first, end) in enumerate(edges)]

    def check(self) -> None:
        self.require_positive("num_layers", "width", "num_heads", "mlp_width", "bias_max", "learned_length")
        self.require_positive("slope_divisor", "adaptive_factor", "logits_mib")
        self.require_share("embedding_dropout", "residual_dropout", "attention_dropout", "activation_dropout")
        self.require_share("adaptive_dropout")
        self._check_bands()
        require(
            self.remat or self.remat_saves == "inputs",
            "model.remat_saves",
            f"{self.remat_saves!r} without remat",
            "model.remat, or 'inputs': without it all is kept",
            "Set model.remat.",
        )
        require(
            self.width % self.num_heads == 0,
            "num_heads",
            f"{self.num_heads} heads for width {self.width}",
            "a number of heads that divides the width",
            f"Use width {self.num_heads * max(1, round(self.width / self.num_heads))} or another num_heads.",
        )
        require(
            self.position != "rotary" or self.head_width % 2 == 0,
            "width / num_heads",
            self.head_width,
            "an even head width for rotary, which turns channels in pairs",
            "Change width or num_heads.",
        )
        require(
            self.position != "sinusoidal" or self.width % 2 == 0,
            "width",
            self.width,
            "an even width for sinusoidal, which is sines beside cosines",
            "Change width.",
        )
        require(
            self.t5_buckets >= 2 and self.t5_max_distance > self.t5_buckets // 2,
            "t5_max_distance",
            f"{self.t5_max_distance} with t5_buckets {self.t5_buckets}",
            "at least 2 buckets and a distance beyond the first half of them",
            "Raise t5_max_distance or lower t5_buckets.",
        )

    def _check_bands(self) -> None:
        cutoffs, factor = self.adaptive_cutoffs, self.adaptive_factor
        within = self.vocab_size or max(cutoffs, default=0) + 1
        require(
            all(low < high for low, high in itertools.pairwise((0, *cutoffs, within))),
            "model.adaptive_cutoffs",
            f"{cutoffs} with a vocabulary of {self.vocab_size or 'the tokenizer'}",
            "growing numbers of words, all below the vocabulary",
            "Lower them, or leave out those past it.",
        )
        require(
            self.width >= factor ** len(cutoffs),
            "model.adaptive_factor",
            f"{factor} for {len(cutoffs) + 1} bands of a model of width {self.width}",
            f"vectors of the last band at least 1 wide, not width / factor^{len(cutoffs)} below 1",
            "Lower adaptive_factor or name fewer cutoffs.",
        )
        require(
            bool(cutoffs) or (self.adaptive_dropout == 0 and self.tied_projections),
            "model.adaptive_cutoffs",
            f"none with adaptive_dropout {self.adaptive_dropout}, tied_projections {self.tied_projections}",
            "cutoffs, or these two as they are by default: without cutoffs they would do nothing",
            "Set model.adaptive_cutoffs.",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    source: Literal["stdlib", "files", "tfds"] = "stdlib"  # where text comes from
    train_path: str = ""  # files: a file, folder or glob of UTF-8 text, .gz too
    valid_path: str = ""  # files: the same for validation; empty: cut from the training text
    test_path: str = ""  # files: the same for testing; empty: cut from the training text
    tfds_name: str = ""  # tfds: data set, with config and version if wanted, such as lm1b:1.1.0
    tfds_dir: str = ""  # tfds: folder of prepared data sets; empty: the library's own
    tfds_manual_dir: str = ""  # tfds: folder of files to prepare wikitext/* from (zip or .tokens); empty: download
    tfds_text: str = "text"  # tfds: name of the text feature
    tfds_splits: tuple[str, ...] = ("train", "validation", "test")  # tfds: split (or slice) for train, valid, test
    tokenizer: Literal["bytes", "words", "bpe"] = "bytes"  # text to tokens
    bpe_vocab_size: int = 1024  # bpe: tokens in the vocabulary, special ones included
    directory: str = "corpora"  # folder of prepared corpora

    def check(self) -> None:
        self.require_positive("bpe_vocab_size")
        require(
            self.source != "files" or self.train_path != "",
            "data.train_path",
            "''",
            "a file, folder or glob when data.source is 'files'",
            "Pass --data.train_path PATH.",
        )
        require(
            self.source != "tfds" or self.tfds_name != "",
            "data.tfds_name",
            "''",
            "a data set's name when data.source is 'tfds'",
            "Pass --data.tfds_name NAME.",
        )
        require(
            len(self.tfds_splits) == 3,
            "data.tfds_splits",
            self.tfds_splits,
            "three names: train, valid, test",
            "Name 3.",
        )
        require(
            self.tokenizer != "bpe" or self.bpe_vocab_size >= 257,
            "data.bpe_vocab_size",
            self.bpe_vocab_size,
            "at least 257 (256 bytes and the end-of-text token)",
            "Raise it; 1,000 to 50,000 is usual.",
        )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    name: Literal["adamw", "nag"] = "adamw"  # nag: Nesterov's accelerated gradient, as fairseq has it
    peak_learning_rate: float = 1e-3  # after warm-up
    initial_learning_rate: float = 0.0  # where warm-up starts
    final_learning_rate: float = 1e-4  # where cosine and linear end
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # after warm-up
    warmup_steps: int = 100  # updates of linear warm-up
    momentum: float = 0.99  # nag: decay of the sum of gradients
    beta1: float = 0.9  # adamw: decay of the first moment
    beta2: float = 0.98  # adamw: decay of the second moment
    epsilon: float = 1e-8  # adamw: added to the root of the second moment
    weight_decay: float = 0.1  # decoupled, on matrices only
    clip_norm: float = 1.0  # largest global gradient norm

    def check(self) -> None:
        self.require_positive("peak_learning_rate", "epsilon", "clip_norm")
        self.require_share("beta1", "beta2", "momentum")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more", "Raise warmup_steps.")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more", "Raise weight_decay.")
        require(
            0 <= self.final_learning_rate <= self.peak_learning_rate,
            "final_learning_rate",
            self.final_learning_rate,
            f"between 0 and the peak, {self.peak_learning_rate}",
            "Lower final_learning_rate.",
        )
        require(
            0 <= self.initial_learning_rate <= self.peak_learning_rate,
            "initial_learning_rate",
            self.initial_learning_rate,
            f"between 0 and the peak, {self.peak_learning_rate}",
            "Lower initial_learning_rate.",
        )
        require(
            self.warmup_steps > 0 or self.initial_learning_rate == 0,
            "initial_learning_rate",
            f"{self.initial_learning_rate} without warm-up",
            "0 where there is no warm-up to start from it",
            "Set warmup_steps.",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    train_length: int = 128  # tokens of one training sequence
    batch_size: int = 32  # sequences of one update, over all devices
    gradient_accumulation: int = 1  # parts an update's batch is computed in; must divide batch_size
    steps: int = 1000  # updates
    seed: int = 0  # of initial parameters, batch order and dropout
    log_every: int = 10  # steps between lines of metrics
    validate_every: int = 250  # steps between validations; 0: only at the end
    validate_tokens: int = 16_384  # validation tokens scored each time
    validate_lengths: tuple[int, ...] = ()  # lengths scored, tokens; empty: train_length; the first decides the best
    checkpoint_every: int = 250  # steps between checkpoints
    max_to_keep: int = 2  # latest checkpoints kept, beside the best by validation

    def check(self) -> None:
        self.require_positive("train_length", "batch_size", "gradient_accumulation", "steps", "log_every")
        self.require_positive("validate_tokens", "checkpoint_every", "max_to_keep")
        require(self.validate_every >= 0, "validate_every", self.validate_every, "0 or more", "Raise validate_every.")
        check_lengths("train.validate_lengths", self.validate_lengths)
        require(
            self.batch_size % self.gradient_accumulation == 0,
            "gradient_accumulation",
            f"{self.gradient_accumulation} parts of a batch of {self.batch_size}",
            "a number that divides the batch",
            "Change train.gradient_accumulation or train.batch_size.",
        )


def check_lengths(name: str, lengths: Sequence[int]) -> None:
    """Every evaluation length is at least one token."""
    for length in lengths:
        require(length >= 1, name, length, "lengths of 1 token or more", "Remove it.")


def parse_stride(stride: str, length: int) -> int:
    """Stride in tokens at `length`: "L" (non-overlapping), "L/k" (rounded down) or a number of tokens."""
    text = stride.strip().upper()
    divisor = text.removeprefix("L/")
    if text == "L":
        return length
    if text.startswith("L/") and divisor.isdigit() and int(divisor) > 0:
        return max(1, length // int(divisor))
    require(text.isdigit(), "stride", repr(stride), "'L', 'L/4' or a number of tokens", "Write one of these.")
    require(
        1 <= int(text) <= length,
        "stride",
        f"{text} tokens at length {length}",
        "1 to the length (a longer stride would leave tokens unscored)",
        "Lower the stride or raise the length.",
    )
    return int(text)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    lengths: tuple[int, ...] = ()  # input lengths, tokens; empty: 1, 2, 4, 8 and 16 times the training length
    strides: tuple[str, ...] = ("L", "L/4")  # tokens between windows: L is non-overlapping, L/4 or 64 sliding
    far_stride: str = "L/16"  # stride at the training length against which far context is measured; 1 is exact
    split: Literal["valid", "test"] = "valid"  # which held-out text
    max_tokens: int = 0  # score only the first so many; 0: all
    batch_tokens: int = 8192  # tokens of one batch of windows; at least one window
    memory_limit_gib: float = 0.0  # a length that would need more is recorded as out of memory; 0: what is free
    checkpoint: Literal["best", "last"] = "best"  # which checkpoint
    attention: Attention = "auto"  # implementation of attention, whatever the model was trained with

    def check(self) -> None:
        self.require_positive("batch_tokens")
        require(self.max_tokens >= 0, "evaluate.max_tokens", self.max_tokens, "0 or more", "Raise it.")
        require(
            self.memory_limit_gib >= 0, "evaluate.memory_limit_gib", self.memory_limit_gib, "0 or more", "Raise it."
        )
        check_lengths("evaluate.lengths", self.lengths)
        for stride in (*self.strides, self.far_stride):
            parse_stride(stride, 2**30)

    def check_strides(self, train_length: int) -> None:
        """Every stride fits every length it is used at."""
        parse_stride(self.far_stride, train_length)
        for stride in self.strides:
            for length in self.lengths or (train_length,):
                parse_stride(stride, length)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    data: int = -1  # devices that share nothing but gradients; -1: the rest
    fsdp: int = 1  # devices over which parameters and moments are split
    tensor: int = 1  # devices over which heads, MLP channels and vocabulary are split
    sequence: int = 1  # devices over which each sequence is split

    def check(self) -> None:
        sizes = dataclasses.asdict(self)
        require(
            all(size >= 1 or size == -1 for size in sizes.values()) and list(sizes.values()).count(-1) <= 1,
            "mesh",
            ", ".join(f"{axis} {size}" for axis, size in sizes.items()),
            "sizes of 1 or more, at most one of them -1 (the rest)",
            "Correct the sizes.",
        )
