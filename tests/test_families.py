"""BTLM, Jais, Baichuan, Refact and the paper's fairseq models, imported from files, beside float64 oracles."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foreign_files
import foreign_models
import paper_model
import parity
from alibi_jax.config.sizes import parameter_count
from alibi_jax.convert import baichuan, btlm, fairseq
from alibi_jax.convert.families import FAMILIES
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.importing import import_model
from alibi_jax.convert.matching import check_tensors, todays_names
from alibi_jax.convert.stored import Stored
from alibi_jax.data.tokenizer import load_tokenizer
from alibi_jax.errors import ConfigError, WeightsError
from alibi_jax.model import TransformerLM
from alibi_jax.positions import alibi_slopes
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.origin import Origin
from foreign_files import BAICHUAN, BTLM, JAIS, LENGTH, PAPER, REFACT, VOCABULARY
from released import RELEASED
from torch_files import save_zip

LENGTHS = LENGTH, 4 * LENGTH
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, LENGTHS[-1])


def imported(family, source, run):
    """The config and the parameters of an imported model."""
    config = import_model(family, source, run)
    model = TransformerLM(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)
    return config, Checkpoints(run, read_only=True, origin=Origin(config, None)).restore(0, params=abstract)["params"]


@functools.partial(jax.jit, static_argnums=0)
def log_probabilities(model, params, tokens):
    """[L] -> [L, V]; compiled once for all models of one config."""
    return jax.nn.log_softmax(model.apply({"params": params}, tokens[None])[0])


def compare(tmp_path, source, oracle, options, family="auto"):
    """Imports a model, and adds its row to the parity table: ours and `oracle(tokens)` at the lengths."""
    config, params = imported(family, source, tmp_path / "run")
    assert config.train.train_length == LENGTH
    model, inputs = TransformerLM(config.model), [TOKENS[:length] for length in LENGTHS]
    pairs = {len(tokens): (log_probabilities(model, params, tokens), oracle(tokens)) for tokens in inputs}
    parity.compare(source.name, config.model.num_heads, options, "float64 numpy", pairs)
    return config


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (BTLM | {"alibi_scaling": {"type": "linear", "train_seq_len": LENGTH}}, "muP, slopes by the input's length"),
        (JAIS, "muP by its earlier names, slopes / 2"),
    ],
    ids=["btlm", "jais"],
)
def test_btlm_and_jais_have_the_log_probabilities_of_a_float64_model(tmp_path, config, options):
    weights = foreign_files.btlm_weights(config)
    source = foreign_files.save_folder(tmp_path / config["model_type"], config, weights)
    compare(tmp_path, source, functools.partial(foreign_models.btlm, weights, config), options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slopes_of_a_file_that_are_not_the_models_are_refused(dtype):
    tensors = btlm.tensors(model_of("jais", JAIS))
    right = alibi_slopes(5)[:, None].astype(jnp.dtype(dtype))
    for slopes, wrong in (right, False), (right * right.dtype.type(1.1), True):
        stored = Stored(Path("file"), dtype, slopes.shape, lambda slopes=slopes: slopes)
        with pytest.raises(WeightsError) as refused:
            check_tensors(tensors, {"relative_pe.slopes": stored}, "file")
        assert ("unlike what the model computes: relative_pe.slopes" in str(refused.value)) == wrong


@pytest.mark.parametrize("second", [False, True], ids=["13b", "2-13b"])
def test_baichuan_has_the_log_probabilities_of_a_float64_model(tmp_path, second, monkeypatch):
    """40 heads, which are no power of two; the output layer of the second has rows of length 1."""
    monkeypatch.setattr(baichuan, "VOCABULARY_2" if second else "VOCABULARY", VOCABULARY)
    weights = foreign_files.baichuan_weights(BAICHUAN)
    save = foreign_files.save_bin if second else foreign_files.save_folder
    source = save(tmp_path / "baichuan", BAICHUAN, weights)
    oracle = functools.partial(foreign_models.baichuan, weights, BAICHUAN, normalised_head=second)
    compare(tmp_path, source, oracle, "13B: plain output" if not second else "2-13B: output of unit rows")


def test_refact_has_the_log_probabilities_of_a_float64_model(tmp_path):
    weights = foreign_files.refact_weights(REFACT)
    source = foreign_files.save_folder(tmp_path / "refact", REFACT, weights)
    compare(
        tmp_path,
        source,
        functools.partial(foreign_models.refact, weights, REFACT),
        "one key head, LayerNorm without bias",
    )


@pytest.mark.parametrize("legacy", [True, False], ids=["args-legacy", "cfg-zip"])
def test_fairseq_has_the_log_probabilities_of_the_papers_model(tmp_path, legacy):
    """float16 tensors, in both of torch's formats and both of fairseq's ways to keep arguments; and the vocabulary."""
    model = foreign_files.paper_weights()
    checkpoint = (foreign_files.namespace if legacy else foreign_files.sections)(model)
    source = foreign_files.save_fairseq(tmp_path / "fairseq", checkpoint, legacy=legacy)
    oracle = functools.partial(paper_model.log_probabilities, model, num_heads=4, cutoffs=(20, 40))
    config = compare(tmp_path, source, oracle, "args, torch before 1.6" if legacy else "cfg, zip", family="fairseq")
    assert config.model.parameter_dtype == "float32"
    words = (tmp_path / "run" / "vocabulary.txt").read_text().split("\n")
    assert words[:5] == ["<s>", "<pad>", "<eos>", "<unk>", "word0"]
    assert words[VOCABULARY - 3 :] == [f"word{VOCABULARY - 7}", "madeupword0000", "madeupword0001", ""]
    np.testing.assert_array_equal(load_tokenizer(tmp_path / "run").encode("word0 word3 other <unk>\n"), [4, 7, 3, 3, 2])


def test_the_slopes_of_40_heads_are_those_of_32_and_every_second_of_64_unsorted():
    slopes = alibi_slopes(40)
    np.testing.assert_array_equal(slopes, foreign_models.slopes(40).astype(np.float32))
    np.testing.assert_array_equal(slopes[[0, 31, 32, 39]], np.float32(2.0 ** np.array([-1 / 4, -8, -1 / 8, -15 / 8])))


def model_of(family, config):
    """The model that a config describes, once every key of it is known."""
    fields = Fields(config, "config.json")
    model = FAMILIES[family].architecture(fields).model
    fields.refuse_rest()
    return model


@pytest.mark.parametrize("name", RELEASED)
def test_every_key_of_a_released_config_is_known_and_its_model_as_large_as_published(name):
    config, published, train_length, options = RELEASED[name]
    family = next(family for family in FAMILIES.values() if config["model_type"] in family.model_types)
    fields = Fields(config, "config.json")
    model, length = family.architecture(fields)
    fields.refuse_rest()
    assert length == train_length
    assert {option: getattr(model, option) for option in options} == options
    exact = isinstance(published, int)
    assert abs(parameter_count(model) - published) <= (0 if exact else 0.03 * published)


@pytest.mark.parametrize(
    ("family", "buffer"),
    [
        ("bloom", "h.1.self_attention.scale_mask_softmax.causal_mask"),
        ("falcon", "h.1.self_attention.scale_mask_softmax.causal_mask"),
        ("btlm", "h.1.attn.masked_bias"),
        ("jais", "h.1.attn.bias"),
    ],
)
def test_files_may_have_the_masks_of_attention_and_names_without_the_prefix(family, buffer):
    family = FAMILIES[family]
    for prefix in ("", family.prefix):
        names = [f"{prefix}{name}" for name in ("h.1.attn.out.weight", buffer)] + ["lm_head.weight"]
        kept = todays_names(family, {name: Stored(Path("file"), "bool", (), np.empty) for name in names})
        assert list(kept) == ["h.1.attn.out.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (
            "btlm",
            BTLM | {"position_embedding_type": "learned"},
            'position_embedding_type: got "learned", expected "alibi"',
        ),
        ("btlm", {n: v for n, v in BTLM.items() if n != "activation_function"}, "activation_function: got no such key"),
        ("btlm", BTLM | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: got true"),
        ("btlm", BTLM | {"mup_base": 256}, "unknown keys: mup_base"),
        ("btlm", BTLM | {"n_head": 64}, "n_head: got 64, expected a divisor of the width, 32"),
        ("btlm", BTLM | {"width_scale": 0.2}, "mup_width_scale: got 0.1 beside width_scale 0.2, expected the same"),
        (
            "jais",
            JAIS | {"alibi_scaling": {"type": "linear"}},
            "alibi_scaling: got .* expected one of factor and train",
        ),
        ("jais", JAIS | {"alibi_scaling": {"type": "ntk", "factor": 2.0}}, 'alibi_scaling: type: got "ntk"'),
        ("jais", JAIS | {"alibi_scaling": {"factor": 2.0, "base": 1}}, "alibi_scaling: got unknown keys: base"),
        (
            "baichuan",
            BAICHUAN | {"num_attention_heads": 32, "vocab_size": 64000},
            "got 32, expected 40, .*7B has rotary",
        ),
        ("baichuan", BAICHUAN, "vocab_size: got 61, expected 64000 .* or 125696"),
        ("refact", REFACT | {"multi_query": False}, "multi_query: got false, expected true"),
        (
            "fairseq",
            PAPER | {"vocab_size": 61, "decoder_normalize_before": False},
            "decoder_normalize_before: got false",
        ),
        ("fairseq", PAPER | {"vocab_size": 61, "adaptive_input_cutoff": "20"}, r"adaptive_input_cutoff: got \(20,\)"),
        (
            "fairseq",
            PAPER | {"vocab_size": 61, "adaptive_softmax_factor": 2.0},
            "adaptive_softmax_factor: got 2.0, exp",
        ),
        ("fairseq", PAPER | {"vocab_size": 61, "adaptive_softmax_cutoff": "all"}, "adaptive_softmax_cutoff: got 'all'"),
    ],
)
def test_configs_that_are_not_implemented_are_refused_by_the_name_of_the_key(family, config, message):
    with pytest.raises(ConfigError, match=message):
        model_of(family, config)


def test_what_a_fairseq_checkpoint_lacks_in_its_arguments_is_the_papers():
    model = model_of("fairseq", {"vocab_size": 267_744})
    assert parameter_count(model) == 246_933_504
    assert len(fairseq.tensors(model)) == 273 - 5  # the reference's files have five buffers as well
    assert (model.num_layers, model.num_heads, model.adaptive_cutoffs) == (16, 8, (20_000, 60_000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 5\n<unk> 3\n", "line 2: got '<unk> 3', expected a word of its own"),
        ("the 5\n<eos> 3\n", "line 2: got '<eos> 3'"),
        ("the 5\nthe 3\n", "line 2: got 'the 3'"),
        ("the\n", "line 1: got 'the'"),
        ("a 5\nb 4\nc 3\n", "got 7 words .* expected at most 6"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(tmp_path, text, message):
    (tmp_path / "dict.txt").write_text(text)
    with pytest.raises(WeightsError, match=message):
        fairseq.vocabulary(tmp_path / "dict.txt", 6)


def test_a_word_may_replace_one_of_the_same_letters_as_fairseq_allows(tmp_path):
    (tmp_path / "dict.txt").write_text("the 5\nthe 3 #fairseq:overwrite\n")
    assert fairseq.vocabulary(tmp_path / "dict.txt", 7)[4:] == ["the", "the", "madeupword0000"]


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"state_dict": {}}, "got an object without 'model', expected fairseq's checkpoint"),
        ({"model": {"decoder.embed_tokens.weight": np.ones((4, 4), np.float32)}}, "expected adaptive input"),
        ({"args": None, "cfg": None, "model": foreign_files.paper_weights()}, "got neither args nor cfg"),
    ],
    ids=["no model", "one table", "no arguments"],
)
def test_a_file_that_is_no_checkpoint_of_the_reference_is_refused(tmp_path, checkpoint, message):
    save_zip(tmp_path / "checkpoint.pt", checkpoint)
    with pytest.raises(WeightsError, match=message):
        fairseq.open_checkpoint(tmp_path)


def test_a_folder_of_several_checkpoints_is_refused(tmp_path):
    for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
        (tmp_path / name).touch()
    with pytest.raises(
        WeightsError, match=r"got 2 files \*\.pt \(checkpoint_best.pt, checkpoint_last.pt\), expected one"
    ):
        fairseq.open_checkpoint(tmp_path)
