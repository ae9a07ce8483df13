"""Foreign checkpoints become folders of runs, or one clear error and nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from alibi_jax.config import load_config
from alibi_jax.convert.importing import import_model
from alibi_jax.evaluate.run import load_params
from alibi_jax.sharding import make_mesh

WIDTH, HEADS, ROWS, LAYERS = 16, 2, 40, 2
CONFIG = {
    "model_type": "bloom",
    "hidden_size": WIDTH,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "vocab_size": ROWS,
    "seq_length": 8,
    "torch_dtype": "float32",
}


def norm(name):
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def bloom_shapes():
    shapes = {"word_embeddings.weight": (ROWS, WIDTH), **norm("word_embeddings_layernorm"), **norm("ln_f")}
    for i in range(LAYERS):
        shapes |= norm(f"h.{i}.input_layernorm") | norm(f"h.{i}.post_attention_layernorm")
        shapes |= linear(f"h.{i}.self_attention.query_key_value", 3 * WIDTH, WIDTH)
        shapes |= linear(f"h.{i}.self_attention.dense", WIDTH, WIDTH)
        shapes |= linear(f"h.{i}.mlp.dense_h_to_4h", 4 * WIDTH, WIDTH) | linear(
            f"h.{i}.mlp.dense_4h_to_h", WIDTH, 4 * WIDTH
        )
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def bloom_tensors(dtype="float32"):
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(jnp.dtype(dtype)) for name, shape in bloom_shapes().items()}


def write(folder, tensors, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors, folder / "model.safetensors")
    return folder


def parameters(workdir):
    """The parameters of the checkpoint in an imported folder."""
    config = load_config(workdir)
    with jax.set_mesh(make_mesh(config.mesh)):
        return load_params(workdir, config, "best")[1]


def test_a_bloom_becomes_the_folder_of_a_run(tmp_path):
    tensors = bloom_tensors()
    config = import_model("auto", write(tmp_path / "source", tensors), tmp_path / "run")
    assert load_config(tmp_path / "run") == config
    assert (config.model.parameter_dtype, config.model.scan_layers, config.train.train_length) == ("float32", True, 8)
    up = parameters(tmp_path / "run")["layers"]["mlp"]["up"]
    np.testing.assert_array_equal(up[1], tensors["transformer.h.1.mlp.dense_h_to_4h.weight"].T)
