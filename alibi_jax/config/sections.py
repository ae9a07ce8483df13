"""The sections of a config but the model's, one frozen value each: every field has a type, a default, and a meaning with its
unit."""

import dataclasses
import re
from typing import ClassVar, Literal

from alibi_jax.config.checks import Section, gib
from alibi_jax.config.limits import COUNT, FILES
from alibi_jax.config.model import Attention
from alibi_jax.errors import require, shown

INPUT_AND_TARGET = 2 * 4  # bytes of a token as an input and as a target, int32

SourceName = Literal["stdlib", "files", "tfds"]  # as in data/sources
TokenizerName = Literal["bytes", "words", "bpe", "file"]  # as in data/tokenizer
TOKENIZER_FILES = ("tokenizer.json", "vocabulary.txt")  # what data.tokenizer_path may name, or a folder with one


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Text, how it becomes tokens, and where they are kept."""

    section: ClassVar[str] = "data"

    source: SourceName = "stdlib"  # where the text comes from
    train_path: str = ""  # files: file, folder or glob of UTF-8 text, .gz too
    valid_path: str = ""  # files: the same for validation; empty: cut from the training text
    test_path: str = ""  # files: the same for testing; empty: cut from the training text
    tfds_name: str = ""  # tfds: data set, optionally with config and version, such as lm1b:1.1.0
    tfds_dir: str = ""  # tfds: folder of prepared data sets; empty: the library's default
    tfds_manual_dir: str = ""  # tfds: folder with the files of wikitext/* (zip or .tokens); empty: download
    tfds_text: str = "text"  # tfds: name of the text feature
    tfds_splits: tuple[str, ...] = ("train", "validation", "test")  # tfds: splits (or slices) for train, valid, test
    tokenizer: TokenizerName = "bytes"  # how text is divided into tokens
    bpe_vocab_size: int = 1024  # bpe: tokens in the vocabulary, special tokens included
    # file: a tokenizer.json or a vocabulary.txt (words, one a line), or a folder with one
    tokenizer_path: str = ""
    tokenizer_end: str = ""  # file: token that ends a document; empty: eos_token of the files beside tokenizer.json
    directory: str = "corpora"  # folder of prepared corpora

    def memory(self) -> int:
        """Returns the bytes of the vocabulary, from token to id and back: about 64 per token."""
        return 64 * self.bpe_vocab_size

    def check(self) -> None:
        """Raises ConfigError for paths that are missing, cannot exist, or do not fit the source."""
        for name in (
            "train_path",
            "valid_path",
            "test_path",
            "tfds_dir",
            "tfds_manual_dir",
            "tokenizer_path",
            "directory",
        ):
            path = getattr(self, name)
            require("\0" not in path, f"data.{name}", shown(path), "a path without null characters", "Correct it.")
        require(
            self.directory.strip() != "",
            "data.directory",
            repr(self.directory),
            "a folder",
            "Name one, such as corpora.",
        )
        require(
            not FILES.holds(self.source) or self.train_path != "",
            "data.train_path",
            "''",
            f"a file, folder or glob when data.source is {self.source!r}",
            "Pass --data.train-path PATH.",
        )
        require(
            self.source != "tfds" or self.tfds_name != "",
            "data.tfds_name",
            "''",
            "a data set's name when data.source is 'tfds'",
            "Pass --data.tfds-name NAME.",
        )
        require(
            len(self.tfds_splits) == 3,
            "data.tfds_splits",
            self.tfds_splits,
            "three splits, for train, valid and test",
            "Name three.",
        )
        require(
            self.tokenizer != "file" or self.tokenizer_path != "",
            "data.tokenizer_path",
            "''",
            "a tokenizer.json, a vocabulary.txt or a folder with one when data.tokenizer is 'file'",
            "Pass --data.tokenizer-path PATH.",
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
    """The update of the parameters and the schedule of the learning rate."""

    section: ClassVar[str] = "optimizer"

    name: Literal["adamw", "nag"] = "adamw"  # nag: Nesterov's accelerated gradient, as in fairseq
    peak_learning_rate: float = 1e-3  # learning rate after warm-up
    initial_learning_rate: float = 0.0  # learning rate at the start of warm-up
    final_learning_rate: float = 1e-4  # learning rate at the end of a cosine or linear schedule
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # learning rate after warm-up
    warmup_steps: int = 100  # updates of linear warm-up
    momentum: float = 0.99  # nag: decay of the accumulated gradient
    beta1: float = 0.9  # adamw: decay of the first moment
    beta2: float = 0.98  # adamw: decay of the second moment
    epsilon: float = 1e-8  # adamw: added to the square root of the second moment
    weight_decay: float = 0.1  # decoupled weight decay, on matrices only
    clip_norm: float = 1.0  # largest global gradient norm; 1e9 clips nothing

    def check(self) -> None:
        """Raises ConfigError where a learning rate exceeds the peak."""
        require(
            self.final_learning_rate <= self.peak_learning_rate or self.schedule == "constant",
            "optimizer.final_learning_rate",
            self.final_learning_rate,
            f"between 0 and the peak, {self.peak_learning_rate}",
            "Lower it.",
        )
        require(
            self.initial_learning_rate <= self.peak_learning_rate,
            "optimizer.initial_learning_rate",
            self.initial_learning_rate,
            f"between 0 and the peak, {self.peak_learning_rate}",
            "Lower it.",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Batches and updates, and how often they are logged, validated and saved."""

    section: ClassVar[str] = "train"

    train_length: int = 128  # tokens of a training sequence
    batch_size: int = 32  # sequences per update, over all devices
    gradient_accumulation: int = 1  # micro-batches per update, computed one after the other; must divide batch_size
    steps: int = 1000  # number of updates
    seed: int = 0  # seed of initial parameters, batch order and dropout
    log_every: int = 10  # steps between lines of metrics
    validate_every: int = 250  # steps between validations; 0: only at the end
    validate_tokens: int = 16_384  # validation tokens scored each time
    # validation lengths, tokens; empty: train_length; the best checkpoint is the best at the first of them
    validate_lengths: tuple[int, ...] = ()
    checkpoint_every: int = 250  # steps between checkpoints; the best is one of those that were validated
    max_to_keep: int = 2  # latest checkpoints kept, in addition to the best by validation loss

    def memory(self) -> int:
        """Returns the bytes of a batch's inputs and targets, or of a validation window's if these are more."""
        return INPUT_AND_TARGET * max(self.batch_size * self.train_length, *self.validate_lengths, 0)

    def check(self) -> None:
        """Raises ConfigError where a batch cannot be counted or divided."""
        require(
            self.batch_size * self.train_length <= COUNT,
            "train.batch_size",
            f"{self.batch_size:,} sequences of {self.train_length:,} tokens, which would take {gib(self.memory())}",
            f"at most {COUNT} tokens per update, the largest int32",
            "Lower it, or train.train_length.",
        )
        require(
            self.batch_size % self.gradient_accumulation == 0,
            "train.gradient_accumulation",
            f"{self.gradient_accumulation} micro-batches of a batch of {self.batch_size}",
            "a number that divides the batch",
            "Change train.gradient_accumulation or train.batch_size.",
        )


def parse_stride(stride: str, length: int) -> int:
    """Returns a stride in tokens at `length`: of "L" (non-overlapping), "L/k" (rounded down) or a number of tokens."""
    text = stride.strip()
    form = re.fullmatch(r"[Ll]|([Ll]/)?([0-9]{1,18})", text)  # int() would take digits of other scripts, too
    require(
        form is not None and (form[2] is None or int(form[2]) > 0 or not form[1]),
        "evaluate.strides",
        repr(stride),
        "'L', 'L/4' or a number of tokens",
        "Write one of these.",
    )
    if form[2] is None:
        return length
    if form[1]:
        return max(1, length // int(form[2]))
    require(
        int(text) > 0,
        "evaluate.strides",
        repr(stride),
        "1 token or more",
        "Raise it.",
    )
    require(
        int(text) <= length,
        "evaluate.strides",
        f"{text} tokens at length {length}",
        "1 to the length (a longer stride would leave tokens unscored)",
        "Lower the stride or raise the length.",
    )
    return int(text)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    """Held-out tokens and the windows in which they are scored."""

    section: ClassVar[str] = "evaluate"

    lengths: tuple[int, ...] = ()  # input lengths, tokens; empty: 1, 2, 4, 8 and 16 times the training length
    strides: tuple[str, ...] = ("L", "L/4")  # tokens between windows: L is non-overlapping, L/4 or 64 sliding
    # stride at the training length that the gain from far context is measured against; 1 is exact
    far_stride: str = "L/16"
    split: Literal["valid", "test"] = "valid"  # held-out split to score
    max_tokens: int = 0  # score only this many tokens from the start; 0: all
    batch_tokens: int = 8192  # tokens per batch of windows; at least one window
    memory_limit_gib: float = 0.0  # a length that needs more is recorded as out of memory; 0: the free memory
    checkpoint: Literal["best", "last"] = "best"  # checkpoint to evaluate
    attention: Attention = "auto"  # implementation of attention, whatever the model was trained with

    def memory(self) -> int:
        """Returns the bytes of the inputs and targets of a batch, which holds at least one window."""
        return INPUT_AND_TARGET * max(self.batch_tokens, *self.lengths, 0)

    def check(self) -> None:
        """Raises ConfigError for a memory limit or a stride that means nothing."""
        require(
            self.memory_limit_gib == 0 or self.memory_limit_gib >= 1e-6,
            "evaluate.memory_limit_gib",
            self.memory_limit_gib,
            "0, for the free memory, or at least 1e-6",
            "Raise it.",
        )
        for stride in (*self.strides, self.far_stride):
            parse_stride(stride, 2**30)

    def check_strides(self, train_length: int) -> None:
        """Raises ConfigError unless every stride fits every length at which it is used."""
        parse_stride(self.far_stride, train_length)
        for stride in self.strides:
            for length in self.lengths or (train_length,):
                parse_stride(stride, length)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """The device mesh: sizes of its axes, at most one of them -1 for the remaining devices."""

    section: ClassVar[str] = "mesh"

    data: int = -1  # devices with copies of the parameters and different sequences; -1: the rest
    fsdp: int = 1  # devices over which parameters and optimizer moments are sharded
    tensor: int = 1  # devices over which heads, MLP channels and vocabulary are sharded
    sequence: int = 1  # devices over which each sequence is sharded

    def check(self) -> None:
        """Raises ConfigError for sizes that no mesh has."""
        sizes = dataclasses.asdict(self)
        require(
            all(size >= 1 or size == -1 for size in sizes.values()) and list(sizes.values()).count(-1) <= 1,
            "mesh",
            ", ".join(f"{axis} {size}" for axis, size in sizes.items()),
            "sizes of 1 or more, at most one of them -1 (the remaining devices)",
            "Correct the sizes.",
        )
