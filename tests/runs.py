"""A run small enough for a test, and what it saved."""

import jax
import jax.numpy as jnp
import numpy as np

from alibi_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig, to_json
from alibi_jax.model import TransformerLM
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.origin import Origin
from alibi_jax.sharding import make_mesh
from alibi_jax.train import State, programs, restore_or

DROPOUT = {f"{place}_dropout": 0.1 for place in ("embedding", "residual", "attention", "activation")}


def tiny_config(data: DataConfig, model: dict | None = None, **train) -> Config:
    """One layer, 16 channels, 4 heads, 16 tokens; every size a multiple of 8 devices where it has to be."""
    sizes = {"train_length": 16, "batch_size": 8, "steps": 4, "log_every": 1, "validate_tokens": 256}
    return Config(
        model=ModelConfig(num_layers=1, width=16, num_heads=4, mlp_width=32, vocab_size=256, **(model or {})),
        data=data,
        optimizer=OptimizerConfig(warmup_steps=1),
        train=TrainConfig(**(sizes | {"validate_every": 0, "checkpoint_every": 2} | train)),
    )


def saved_state(config: Config, workdir) -> State:
    """The latest checkpoint of a run as numpy arrays."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        make_state, _, shardings = programs(config, mesh)
        state = restore_or(make_state, Checkpoints(workdir, read_only=True), shardings)
    return jax.tree.map(np.asarray, state)


def random_run(folder, model: dict, data: DataConfig | None = None, fingerprint: str = "") -> tuple[Config, dict]:
    """(config, parameters) of a run that was not trained: random parameters are its only checkpoint, of step 3."""
    config = Config(ModelConfig(**model), data or DataConfig(), train=TrainConfig(train_length=32))
    init = jax.jit(TransformerLM(config.model).init)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)
    checkpoints = Checkpoints(folder, origin=Origin(config, fingerprint))
    checkpoints.save(3, params, {"count": np.int32(3)}, None)
    checkpoints.close()
    (folder / "config.json").write_text(to_json(config))
    (folder / "corpus.txt").write_text(fingerprint)
    return config, params


def assert_identical(actual, expected) -> None:
    """Two trees agree in every bit."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
