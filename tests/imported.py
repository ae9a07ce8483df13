"""A small random BLOOM as transformers saves it, and imported."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from alibi_jax.config import DataConfig
from alibi_jax.convert import bloom
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.importing import import_model
from alibi_jax.data.tokenizer import make_tokenizer


def bloom_folder(folder: Path, text: str, dtype: str = "float32", **fields) -> Path:
    """Writes a random BLOOM, with a byte-level BPE of the text, and returns its folder."""
    fields = {"vocab_size": 280, "hidden_size": 16, "n_layer": 2, "n_head": 4, "seq_length": 16} | fields
    tokenizer = make_tokenizer(DataConfig(tokenizer="bpe", bpe_vocab_size=270), [[text]])
    folder.mkdir(parents=True)
    for name, content in tokenizer.exported().items():
        (folder / name).write_text(content)
    (folder / "config.json").write_text(json.dumps({"model_type": "bloom"} | fields))
    generator = np.random.default_rng(0)
    model = bloom.architecture(Fields(fields, "config.json")).model
    arrays = {tensor.name: generator.normal(0, 0.3, tensor.shape) for tensor in bloom.tensors(model)}
    arrays = {name: jnp.asarray(array, dtype) for name, array in arrays.items() if name != "lm_head.weight"}
    save_file({name: np.asarray(array) for name, array in arrays.items()}, folder / "model.safetensors")
    return folder


def imported_bloom(folder: Path, text: str, dtype: str = "float32", **fields) -> Path:
    """Imports a random BLOOM into folder/bloom, and returns that folder."""
    workdir = folder / "bloom"
    import_model("bloom", bloom_folder(folder / "theirs", text, dtype, **fields), workdir)
    return workdir
