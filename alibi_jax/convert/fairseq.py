"""The ALiBi paper's own checkpoints: fairseq's transformer_lm with adaptive input and softmax, as for WikiText-103.

A checkpoint is a .pt file of torch with its arguments beside the tensors, and dict.txt, the words by falling count. Neither
slopes nor any other trace of ALiBi are in it: the family means models that were trained with ALiBi.
"""

import dataclasses
import itertools
import logging
import re
from pathlib import Path
from typing import Any

from alibi_jax.config import ModelConfig
from alibi_jax.convert.family import Architecture, Family, Tensor
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.layouts import affine, linear, norm, same
from alibi_jax.convert.pickled import load_pickled, plain, tensors_of
from alibi_jax.convert.source import Opened
from alibi_jax.errors import ConfigError, WeightsError, listed, require, shown

logger = logging.getLogger("alibi_jax")

DICTIONARY, VOCABULARY = "dict.txt", "vocabulary.txt"  # fairseq's, and that of our `words` tokenizer
SPECIAL = ("<s>", "<pad>", "<eos>", "<unk>")  # ids 0 to 3 of every fairseq dictionary; <eos> is its </s>
TAKEN = ("<eos>", "<unk>")  # of a `words` vocabulary: no word of a text can be one of them
LINE = re.compile(r"(\S+) \d+( #fairseq:overwrite)?\s*")  # of dict.txt; with the flag, a word may repeat an earlier one
# of fairseq's arguments those that say what a decoder computes; hundreds of others are about data and training
MODEL_ARGUMENTS = re.compile(
    "(activation_fn|alibi|no_decoder_final_norm|no_scale_embedding|tokens_per_sample|(self|past|future)_target)|"
    "(adaptive|base|char|character|decoder|layernorm|scale|share|tie)_.*"
)
IMPLEMENTED = {  # the values of arguments; the first is theirs where a checkpoint lacks them
    **dict.fromkeys(("adaptive_input", "tie_adaptive_weights", "tie_adaptive_proj", "alibi"), (True,)),
    **dict.fromkeys(("decoder_normalize_before", "no_decoder_final_norm"), (True,)),
    **dict.fromkeys(("no_scale_embedding", "decoder_learned_pos", "character_embeddings"), (False, None)),
    **dict.fromkeys(("layernorm_embedding", "scale_fc", "scale_attn", "scale_heads", "scale_resids"), (False, None)),
    **dict.fromkeys(("self_target", "past_target", "future_target"), (False, None)),
    **dict.fromkeys(("decoder_layers_to_keep", "decoder_xformers_att_config"), (None,)),
    "activation_fn": ("relu",),
    "base_layers": (0, None),
}
TABLE = re.compile(r"decoder\.embed_tokens\.embeddings\.\d+\.0\.weight")


def architecture(fields: Fields) -> Architecture:
    """Returns the model that a checkpoint's arguments describe; what they lack is as in the paper's WikiText-103 recipe."""
    for name, values in IMPLEMENTED.items():
        fields.expect(name, *values)
    # they act in training alone, or belong to embeddings of characters, to base layers, to one table without clusters
    fields.ignore("adaptive_softmax_dropout", "decoder_layerdrop", "base_sublayers", "base_shuffle")
    fields.ignore("character_filters", "character_embedding_dim", "char_embedder_highway_layers")
    fields.ignore("share_decoder_input_output_embed")
    width = fields.take(int, "decoder_embed_dim", default=1024)
    for name in ("decoder_input_dim", "decoder_output_dim"):
        fields.expect(name, width)
    cutoffs, factor = _clusters(fields)
    model = ModelConfig(
        num_layers=fields.take(int, "decoder_layers", default=16),
        width=width,
        num_heads=fields.take(int, "decoder_attention_heads", default=8),
        mlp_width=fields.take(int, "decoder_ffn_embed_dim", default=4096),
        vocab_size=fields.take(int, "vocab_size"),
        final_norm=False,
        adaptive_cutoffs=cutoffs,
        adaptive_factor=factor,
    )
    return Architecture(model, fields.take((int, type(None)), "tokens_per_sample", default=None))


def _clusters(fields: Fields) -> tuple[tuple[int, ...], int]:
    """Returns the first token id of each cluster but the first, and the factor between their widths."""
    cutoffs = _cutoffs(fields, "adaptive_softmax_cutoff", (20_000, 60_000))
    factor = fields.take(float, "adaptive_input_factor", default=4)
    for name, value, shared in (
        ("adaptive_input_cutoff", _cutoffs(fields, "adaptive_input_cutoff", cutoffs), cutoffs),
        ("adaptive_softmax_factor", fields.take(float, "adaptive_softmax_factor", default=factor), factor),
    ):
        at, do = f"{fields.where}: {name}", "The model cannot be imported exactly."
        require(value == shared, at, shown(value), f"{shown(shared)}, shared by input and softmax", do)
    require(factor % 1 == 0, f"{fields.where}: adaptive_input_factor", factor, "a whole number", do)
    return cutoffs, int(factor)


def _cutoffs(fields: Fields, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Returns cutoffs as token ids: fairseq keeps them as text, "20000,60000", or as a list."""
    value = fields.take((str, list, type(None)), name, default=None)
    if value is None:
        return default
    numbers = value.split(",") if isinstance(value, str) else map(str, value)
    try:
        return tuple(map(int, numbers))
    except ValueError:
        raise ConfigError(
            f"{fields.where}: {name}: got {shown(value)}, expected token ids, such as 20000,60000."
        ) from None


def _layer(i: int, model: ModelConfig) -> list[Tensor]:
    width, hidden, heads = (model.width,), (model.mlp_width,), (model.num_heads, model.head_width)
    name, path = f"layers.{i}", f"layer_{i}"
    return [
        *norm(f"{name}.self_attn_layer_norm", f"{path}/attention_norm", model.width),
        *affine(f"{name}.self_attn.q_proj", f"{path}/attention/query", width, heads),
        *affine(f"{name}.self_attn.k_proj", f"{path}/attention/key", width, heads),
        *affine(f"{name}.self_attn.v_proj", f"{path}/attention/value", width, heads),
        *affine(f"{name}.self_attn.out_proj", f"{path}/attention/out", heads, width),
        *norm(f"{name}.final_layer_norm", f"{path}/mlp_norm", model.width),
        *affine(f"{name}.fc1", f"{path}/mlp/up", width, hidden),
        *affine(f"{name}.fc2", f"{path}/mlp/down", hidden, width),
    ]


def _cluster(b: int, model: ModelConfig) -> list[Tensor]:
    """Returns the tensors of one cluster: its table and projection, and the softmax's second copies of them."""
    cluster = model.clusters[b]
    embedding, softmax = f"embed_tokens.embeddings.{b}", "adaptive_softmax"

    def table(name: str, *, tied: bool = False) -> Tensor:
        return same(f"{name}.weight", f"embedding/table_{b}", (cluster.size, cluster.width), tied=tied)

    def projection(name: str, *, tied: bool = False) -> Tensor:
        tensor = linear(f"{name}.weight", f"embedding/projection_{b}", (cluster.width,), (model.width,))
        return dataclasses.replace(tensor, tied=tied)

    tail = f"{softmax}.tail.{b - 1}"
    copies = [projection(f"{tail}.0", tied=True), table(f"{tail}.2", tied=True)]
    copies = copies if b > 0 else [table(f"{softmax}.head.word_proj", tied=True)]
    return [table(f"{embedding}.0"), projection(f"{embedding}.1"), *copies]


def tensors(model: ModelConfig) -> list[Tensor]:
    """Returns the tensors of a fairseq checkpoint."""
    tails = len(model.adaptive_cutoffs)
    return [
        *(tensor for b in range(1 + tails) for tensor in _cluster(b, model)),
        same("adaptive_softmax.head.class_proj.weight", "softmax/classes", (tails, model.width)),
        *(tensor for i in range(model.num_layers) for tensor in _layer(i, model)),
    ]


def open_checkpoint(path: Path) -> Opened:
    """Returns the checkpoint of a .pt file, or of a folder with one, and the vocabulary of the dict.txt beside it.

    WeightsError where there is not one such file, or it is broken or another model's.
    """
    file = _checkpoint_file(path)
    loaded = load_pickled(file)
    if not isinstance(loaded, dict) or "model" not in loaded:
        raise WeightsError(f"{file}: got an object without 'model', expected fairseq's checkpoint. Check the path.")
    stored = tensors_of(loaded["model"], file)
    rows = sum(tensor.shape[0] for name, tensor in stored.items() if TABLE.fullmatch(name))
    if not rows:
        raise WeightsError(
            f"{file}: got no tensor decoder.embed_tokens.embeddings.0.0.weight, expected adaptive input, as the paper's "
            "WikiText-103 models have. Other fairseq models cannot be imported."
        )
    arguments = {name: value for name, value in _arguments(loaded, file).items() if MODEL_ARGUMENTS.fullmatch(name)}
    fields = Fields(arguments | {"vocab_size": rows}, f"{file}: arguments")
    dictionary = file.parent / DICTIONARY
    if not dictionary.is_file():
        logger.warning("import: no %s beside %s: the model comes without its vocabulary", DICTIONARY, file)
        return Opened(fields, stored, [file], {})
    words = vocabulary(dictionary, rows)
    written = "".join(f"{word}\n" for word in words).encode()
    return Opened(fields, stored, [file, dictionary], {VOCABULARY: written})


def _checkpoint_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.pt"))
    if len(files) != 1:
        names = listed(file.name for file in files) or "none"
        raise WeightsError(f"{path}: got {len(files)} files *.pt ({names}), expected one. Name the file itself.")
    return files[0]


def _arguments(loaded: dict[str, Any], file: Path) -> dict[str, Any]:
    """Returns the arguments of the model and its task: a Namespace `args` until 2020, sections of `cfg` since."""
    if loaded.get("args") is not None:
        sections = [plain(loaded["args"])]
    else:
        config = plain(loaded.get("cfg"))
        sections = [config.get("task"), config.get("model")] if isinstance(config, dict) else [None]
    if not all(isinstance(section, dict) for section in sections):
        raise WeightsError(
            f"{file}: got neither args nor cfg with task and model, expected the model's arguments. Save it as fairseq does."
        )
    # the model's section refers to the task's: "${task.tokens_per_sample}"
    own = (item for section in sections for item in section.items() if not str(item[1]).startswith("${"))
    return dict(own)


def vocabulary(dictionary: Path, rows: int) -> list[str]:
    """Returns the words of a dict.txt by token id, for a `words` tokenizer: <s>, <pad>, <eos>, <unk>, then the file's in order.

    A table with more rows is filled with fairseq's own padding: madeupword0000, madeupword0001. WeightsError for a line that is
    no word with its count, a word that is there twice, one that stands for <eos> or <unk>, and more words than rows.
    """
    try:
        lines = dictionary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise WeightsError(
            f"{dictionary}: got bytes that are not UTF-8 ({error}), expected words. Copy it again."
        ) from None
    words, seen = list(SPECIAL), {"<s>", "<pad>", "</s>", *TAKEN}
    for number, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        word, overwrites = match.groups() if match else ("", None)
        if not word or word in TAKEN or (word in seen and not overwrites):
            raise WeightsError(
                f"{dictionary}, line {number}: got {shown(line)}, expected a word of its own and its count: {', '.join(TAKEN)} "
                "end a line and stand for other words, and no word is there twice. Copy the file again."
            )
        words.append(word)
        seen.add(word)
    if len(words) > rows:
        raise WeightsError(
            f"{dictionary}: got {len(words):,} words with fairseq's own four, expected at most {rows:,}, the rows of the "
            "embedding. Copy the dict.txt that the model was trained with."
        )
    padding = (word for i in itertools.count() if (word := f"madeupword{i:04d}") not in seen)
    return words + list(itertools.islice(padding, rows - len(words)))


FAMILY = Family(
    "fairseq",
    (),  # no config.json
    architecture,
    tensors,
    prefix="decoder.",
    open=open_checkpoint,
    # buffers that remember a device or a version; tables of sines, which ALiBi's models do not use
    harmless=r".*_float_tensor|.*version|embed_positions\.weights",
)
