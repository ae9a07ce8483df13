"""Small models of BTLM, Jais, Baichuan, Refact and the paper's fairseq in files of their true form: names, shapes, configs.

Weights are random; names and shapes are written out, so that a mapping with another name or order cannot agree with them.
"""

import argparse
import json

import numpy as np
from safetensors.numpy import save_file

import foreign_models
from torch_files import Name, Object, save_legacy, save_zip

VOCABULARY, LENGTH = 61, 16
CODE = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}, "initializer_range": 0.02, "use_cache": True}
BTLM = CODE | {
    "architectures": ["BTLMLMHeadModel"],
    "model_type": "btlm",
    "activation_function": "swiglu",
    "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "embd_pdrop": 0.0,
    "eos_token_id": 0,
    "layer_norm_epsilon": 1e-5,
    "mup_embeddings_scale": 14.6,
    "mup_output_alpha": 2.22,
    "mup_scale_qk_dot_by_d": True,
    "mup_width_scale": 0.1,
    "n_embd": 32,
    "n_head": 4,
    "n_inner": 43,
    "n_layer": 2,
    "n_positions": LENGTH,
    "position_embedding_type": "alibi",
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "vocab_size": VOCABULARY,
}
JAIS = {name: value for name, value in BTLM.items() if not name.startswith("mup_")} | {
    "architectures": ["JAISLMHeadModel"],
    "model_type": "jais",
    "embeddings_scale": 9.0,
    "scale_qk_dot_by_d": False,
    "width_scale": 0.25,
    "n_embd": 40,
    "n_head": 5,
    "alibi_scaling": {"type": "linear", "factor": 2.0},
}
BAICHUAN = CODE | {
    "architectures": ["BaichuanForCausalLM"],
    "model_type": "baichuan",
    "tokenizer_class": "BaichuanTokenizer",
    "hidden_act": "silu",
    "hidden_size": 80,
    "intermediate_size": 48,
    "model_max_length": LENGTH,
    "num_attention_heads": 40,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}
REFACT = CODE | {
    "architectures": ["GPTRefactForCausalLM"],
    "model_type": "gpt_refact",
    "attention_bias_in_fp32": True,
    "attention_softmax_in_fp32": True,
    "do_sample": True,
    "eos_token_id": 0,
    "layer_norm_epsilon": 1e-5,
    "multi_query": True,
    "n_embd": 32,
    "n_head": 4,
    "n_inner": None,
    "n_layer": 2,
    "n_positions": LENGTH,
    "scale_attention_softmax_in_fp32": True,
    "vocab_size": VOCABULARY,
}
PAPER = {  # the arguments of transformer_lm_wiki103, in small
    "arch": "transformer_lm_wiki103",
    "activation_fn": "relu",
    "adaptive_input": True,
    "adaptive_input_cutoff": "20,40",
    "adaptive_input_factor": 4.0,
    "adaptive_softmax_cutoff": "20,40",
    "adaptive_softmax_dropout": 0.2,
    "adaptive_softmax_factor": 4.0,
    "decoder_attention_heads": 4,
    "decoder_embed_dim": 32,
    "decoder_ffn_embed_dim": 48,
    "decoder_input_dim": 32,
    "decoder_layerdrop": 0.0,
    "decoder_layers": 2,
    "decoder_learned_pos": False,
    "decoder_normalize_before": True,
    "decoder_output_dim": 32,
    "dropout": 0.3,
    "no_decoder_final_norm": True,
    "no_token_positional_embeddings": False,
    "tie_adaptive_proj": True,
    "tie_adaptive_weights": True,
    "tokens_per_sample": LENGTH,
}


def drawn(shapes, seed=0):
    """Arrays of these shapes, float32: norms' weights near 1, biases and tables small, others that keep the size of inputs."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape)
        is_norm = len(shape) == 1 and name.endswith("weight")
        scale = 0.2 if len(shape) == 1 else 0.3 if shape[0] == VOCABULARY else min(shape) ** -0.5
        arrays[name] = (is_norm + scale * noise).astype(np.float32)
    return arrays


def normed(name, width, bias=True):
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def conv(name, inputs, outputs):
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def btlm_weights(config):
    """The tensors of a BTLM or Jais checkpoint, by name."""
    width, inner = config["n_embd"], config["n_inner"]
    shapes = {"transformer.wte.weight": (VOCABULARY, width)} | normed("transformer.ln_f", width)
    for i in range(config["n_layer"]):
        name = f"transformer.h.{i}"
        shapes |= normed(f"{name}.ln_1", width) | normed(f"{name}.ln_2", width)
        shapes |= conv(f"{name}.attn.c_attn", width, 3 * width) | conv(f"{name}.attn.c_proj", width, width)
        shapes |= conv(f"{name}.mlp.c_fc", width, inner) | conv(f"{name}.mlp.c_fc2", width, inner)
        shapes |= conv(f"{name}.mlp.c_proj", inner, width)
    slopes = foreign_models.slopes(config["n_head"])[:, None].astype(np.float32)
    mask = np.tri(LENGTH, dtype=np.uint8)[None, None]
    return drawn(shapes) | {"transformer.relative_pe.slopes": slopes, "transformer.h.0.attn.bias": mask}


def baichuan_weights(config):
    """The tensors of a Baichuan 13B checkpoint, by name."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (VOCABULARY, width), "lm_head.weight": (VOCABULARY, width)}
    shapes |= normed("model.norm", width, bias=False)
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}"
        shapes |= {f"{name}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
        shapes |= {
            f"{name}.self_attn.W_pack.weight": (3 * width, width),
            f"{name}.self_attn.o_proj.weight": (width, width),
        }
        shapes |= {f"{name}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": (width, inner)}
    return drawn(shapes)


def refact_weights(config):
    """The tensors of a Refact checkpoint, by name."""
    width, head_width, inner = config["n_embd"], config["n_embd"] // config["n_head"], 256
    shapes = {
        "transformer.wte.weight": (VOCABULARY, width),
        "lm_head.weight": (VOCABULARY, width),
        "ln_f.weight": (width,),
    }
    for i in range(config["n_layer"]):
        name = f"transformer.h.{i}"
        shapes |= {f"{name}.ln_1.weight": (width,), f"{name}.ln_2.weight": (width,)}
        shapes |= {f"{name}.attn.q.weight": (width, width), f"{name}.attn.kv.weight": (2 * head_width, width)}
        shapes |= {f"{name}.attn.c_proj.weight": (width, width), f"{name}.mlp.c_proj.weight": (width, inner)}
        shapes |= {f"{name}.mlp.gate_up_proj.weight": (2 * inner, width)}
    return drawn(shapes)


def paper_weights(dtype=np.float16):
    """The `model` of a checkpoint of the reference; tied tensors are one, as in its files."""
    width, shapes = 32, {"decoder.adaptive_softmax.head.class_proj.weight": (2, 32)}
    for b, (rows, narrow) in enumerate([(20, 32), (20, 8), (VOCABULARY - 40, 2)]):
        name = f"decoder.embed_tokens.embeddings.{b}"
        shapes |= {f"{name}.0.weight": (rows, narrow), f"{name}.1.weight": (width, narrow)}
    for i in range(2):
        name = f"decoder.layers.{i}"
        for part in ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"):
            shapes |= {f"{name}.{part}.weight": (width, width), f"{name}.{part}.bias": (width,)}
        shapes |= normed(f"{name}.self_attn_layer_norm", width) | normed(f"{name}.final_layer_norm", width)
        shapes |= {f"{name}.fc1.weight": (48, width), f"{name}.fc1.bias": (48,)}
        shapes |= {f"{name}.fc2.weight": (width, 48), f"{name}.fc2.bias": (width,)}
    model = {
        name: (0.5 * array if "embeddings" in name else array).astype(dtype) for name, array in drawn(shapes).items()
    }
    softmax, tables = "decoder.adaptive_softmax", "decoder.embed_tokens.embeddings"
    model[f"{softmax}.head.word_proj.weight"] = model[f"{tables}.0.0.weight"]
    for b in (1, 2):
        model[f"{softmax}.tail.{b - 1}.0.weight"] = model[f"{tables}.{b}.1.weight"]
        model[f"{softmax}.tail.{b - 1}.2.weight"] = model[f"{tables}.{b}.0.weight"]
    ones = {"decoder.version": np.array([3.0], dtype), f"{softmax}.version": np.array([1])}
    return (
        model
        | ones
        | {f"decoder.{name}._float_tensor": np.ones(1, dtype) for name in ("embed_tokens", "embed_positions")}
    )


def namespace(model):
    """A checkpoint as fairseq wrote it until 2020: the arguments of everything in one Namespace."""
    extra = {"train_iterator": {"epoch": 2, "iterations_in_epoch": 0}, "val_loss": 4.2, "best": 4.2}
    state = {"state": {0: {"momentum_buffer": np.ones(3, np.float32)}}, "param_groups": [{"lr": 1.0}]}
    args = argparse.Namespace(**PAPER, lr=[1.0], criterion="adaptive_loss", fp16=True, data="data-bin/wikitext-103")
    history = [{"criterion_name": "AdaptiveLoss", "optimizer_name": "FairseqNAG", "num_updates": 286_000}]
    checkpoint = {"args": args, "model": model, "optimizer_history": history, "extra_state": extra}
    return checkpoint | {"last_optimizer_state": state}


def sections(model):
    """A checkpoint as fairseq writes it since: cfg, with objects of omegaconf and of fairseq itself."""
    leaf = Name("omegaconf.nodes", "AnyNode")
    model_section = PAPER | {"tokens_per_sample": "${task.tokens_per_sample}"}
    content = {name: Object(leaf, {"_val": value, "_parent": None}) for name, value in model_section.items()}
    config = Object(
        Name("omegaconf.dictconfig", "DictConfig"), {"_content": content, "_parent": None, "_metadata": None}
    )
    task = Object(
        Name("fairseq.tasks.language_modeling", "LanguageModelingConfig"), {"tokens_per_sample": LENGTH, "seed": 1}
    )
    cfg = {"_name": None, "common": {"fp16": True}, "task": task, "model": config, "optimizer": {"lr": [1.0]}}
    return {"args": None, "cfg": cfg, "model": model, "task_state": {}, "extra_state": {"val_loss": 4.2}}


def save_folder(folder, config, weights):
    """Writes config.json and model.safetensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_bin(folder, config, weights):
    """Writes config.json and pytorch_model.bin."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_zip(folder / "pytorch_model.bin", weights)
    return folder


def words(count):
    """The lines of a dict.txt with this many words, in order of falling count."""
    return "".join(f"word{i} {1000 - i}\n" for i in range(count))


def save_fairseq(folder, checkpoint, *, legacy):
    """Writes a checkpoint and the dict.txt beside it, whose words leave two of the table's rows for padding."""
    folder.mkdir()
    (save_legacy if legacy else save_zip)(folder / "checkpoint_best.pt", checkpoint)
    (folder / "dict.txt").write_text(words(VOCABULARY - 4 - 2))
    return folder
