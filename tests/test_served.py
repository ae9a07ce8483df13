"""Attention that cannot serve a model here is refused by tracing alone."""

import jax
import pytest

from alibi_jax.config import MeshConfig, ModelConfig
from alibi_jax.errors import ConfigError
from alibi_jax.model.served import check_served
from alibi_jax.sharding import Device, make_mesh

SIZES = {"num_layers": 10_000, "width": 64, "num_heads": 4, "mlp_width": 64}  # of which one layer is traced


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu", "mosaic_gpu"])
@pytest.mark.parametrize("trained", [False, True], ids=["scored", "trained"])
def test_kernel_of_another_platform_is_refused_by_name(implementation, trained):
    config = ModelConfig(**SIZES, attention=implementation, attention_dropout=0.1)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        message = rf"model\.attention: got '{implementation}' at length 256 .*for cpu.*Pass --model\.attention auto\."
        with pytest.raises(ConfigError, match=message):
            check_served("model.attention", config, (256,), trained)


@pytest.mark.parametrize("attention", ["auto", "reference", "blockwise"])
def test_what_serves_every_device_passes(attention):
    config = ModelConfig(**SIZES, attention=attention, position="t5")
    with jax.set_mesh(make_mesh(MeshConfig())):
        check_served("model.attention", config, (256,), trained=True)


def test_length_past_a_table_is_not_a_question_of_attention():
    config = ModelConfig(**SIZES, attention="blockwise", position="learned", learned_length=16)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        check_served("attention", config, (16, 32), trained=False)


def test_gradient_that_a_kernel_lacks_is_refused(monkeypatch):
    monkeypatch.setattr("alibi_jax.attention.device", lambda: Device("tpu", "TPU v5e"))
    config = ModelConfig(**SIZES, attention="pallas_tpu", slopes="learned")
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        check_served("model.attention", config, (256,), trained=False)
        with pytest.raises(ConfigError, match="gradient of learned slopes"):
            check_served("model.attention", config, (256,), trained=True)
