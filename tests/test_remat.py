"""What layers keep with remat: what fits the device that is traced for, by an estimate, or what the config names."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from alibi_jax.config import Config, MeshConfig, ModelConfig, TrainConfig, load_config
from alibi_jax.model import TransformerLM
from alibi_jax.model.remat import REMAT_SAVES, estimated_peak, layers_keep, usable_bytes
from alibi_jax.plan.memory import activation_bytes
from alibi_jax.plan.plan import with_vocabulary
from alibi_jax.plan.topology import find_topology, mesh_on
from alibi_jax.sharding import Device, make_mesh

SMALL = ModelConfig(num_layers=2, width=64, num_heads=2, mlp_width=128, vocab_size=50, scan_layers=True, remat=True)


@pytest.mark.parametrize(
    "name, keeps",
    [
        ("v5e:16x16", "products"),
        ("v5e:8x8", "attention"),
        ("v5e:4x4", "inputs"),
        ("v6e:8x8", "products"),
        ("cpu:8", "inputs"),
    ],
)
def test_the_largest_recipe_keeps_what_fits(name, keeps):
    """A million tokens a step: the fewer the chips, the more tokens each holds. Of a CPU the memory is not known."""
    config = with_vocabulary(load_config("configs/cc100_1b3.py"))
    rows, length = config.train.batch_size, config.train.train_length
    with jax.set_mesh(mesh_on(config.mesh, find_topology(name))):
        assert layers_keep(config.model, rows, length) == keeps
        for named in REMAT_SAVES:
            assert layers_keep(dataclasses.replace(config.model, remat_saves=named), rows, length) == named
        assert layers_keep(dataclasses.replace(config.model, remat=False), rows, length) == "all"


def test_the_memory_of_a_device():
    sizes = [usable_bytes(Device(*names)) for names in (("gpu", "NVIDIA H200"), ("tpu", "TPU7x"), ("cpu", "cpu"))]
    assert sizes == [0.75 * 141e9, 189.5 * 2**30 / 2, 0.0], "of a GPU what XLA takes; jax shows a TPU7x as two devices"


def test_an_estimate_grows_with_what_is_kept():
    deep = dataclasses.replace(SMALL, num_layers=24)
    choices = [{"remat": False}, *({"remat_saves": saves} for saves in REMAT_SAVES)]
    sizes = [estimated_peak(dataclasses.replace(deep, **choice), 8, 256) for choice in choices]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 1, "gated_mlp": True}], ids=["plain", "gated, one key head"])
def test_the_products_that_are_kept_are_those_counted(changes):
    """By JAX's own count of what the forward pass leaves to the backward pass; heads over two devices, as many as layers."""
    models = [dataclasses.replace(SMALL, remat_saves=saves, **changes) for saves in ("products", "attention")]
    params = jax.eval_shape(TransformerLM(models[0]).init, jax.random.key(0), jnp.zeros((1, 8), int))["params"]
    with jax.set_mesh(make_mesh(MeshConfig(tensor=2), jax.devices()[:2])):
        kept = [activation_bytes(Config(model=m, train=TrainConfig(32 * 7, 3)), params) for m in models]
        estimated = [estimated_peak(m, 3, 32 * 7) for m in models]
    assert kept[0] - kept[1] == estimated[0] - estimated[1]


@pytest.mark.parametrize("name, keeps, other", [("v5e:2x2", "products", "inputs"), ("cpu:4", "inputs", "products")])
def test_a_model_is_traced_with_what_fits(name, keeps, other):
    """The gradient's program with "auto" is that with the name it stands for, on a chip and on this machine's processor."""
    tokens = jax.ShapeDtypeStruct((4, 32), jnp.int32)

    def products(saves: str) -> int:
        model = TransformerLM(dataclasses.replace(SMALL, remat_saves=saves, attention="reference"))
        params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), tokens)["params"]
        loss = lambda params, x: model.apply({"params": params}, x, x, method="nats").sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params, tokens)).count(" dot_general[")

    with jax.set_mesh(mesh_on(MeshConfig(), find_topology(name))):
        assert products("auto") == products(keeps) != products(other)
