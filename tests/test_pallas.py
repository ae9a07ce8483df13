"""The kernels compiled for machines that are not here: by the TPU compiler whole, for GPUs as far as Triton's input."""

import functools
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from alibi_jax.attention import attend, pallas_gpu
from alibi_jax.config import MeshConfig, ModelConfig
from alibi_jax.model import TransformerLM
from alibi_jax.model.placement import tree_shardings
from alibi_jax.positions import LinearBias, alibi_slopes
from alibi_jax.sharding import make_mesh
from benchmarks.shapes import GPU_SHAPES, TPU_SHAPES, Shape

TOPOLOGIES = ["v5e:2x2", "v5p:2x2x1", pytest.param("v6e:2x2", marks=pytest.mark.versions)]
LANES = 128  # a TPU stores a row of fewer numbers as so many
MIB = 2**20


@pytest.fixture(autouse=True)
def quick_compiles():
    """The TPU compiler's first level: a sixth of the time, nearly the same memory."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O1")
    yield
    jax.config.update("jax_optimization_level", before)


def forward_and_backward(bias, implementation, q, k, v, **options):
    out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, bias=bias, implementation=implementation, **options), q, k, v)
    return out, vjp(out)


def compile_for_tpu(topology, shape: Shape, dtype, **options):
    """Inputs and outputs lie as the compiler likes, as they do between a model's products: elsewhere it would copy them, and
    newer compilers (libtpu 0.0.50) no longer hide copies in the memory of the outputs."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = make_mesh(MeshConfig(), list(devices)[:1])
    placed = Format(Layout.AUTO, NamedSharding(mesh, PartitionSpec()))
    sizes = [(shape.queries, shape.heads), *[(shape.keys, shape.key_heads)] * 2]
    arrays = [jax.ShapeDtypeStruct((shape.batch, *size, shape.width), dtype) for size in sizes]
    bias = LinearBias(alibi_slopes(shape.heads))
    with jax.set_mesh(mesh):
        step = functools.partial(forward_and_backward, bias, "pallas_tpu", **options)
        return jax.jit(step, in_shardings=placed, out_shardings=placed).lower(*arrays).compile()


def test_a_ring_of_tpus_compiles_with_the_kernels_in_linear_memory():
    """Own part, neighbour's, and the loop of a head that looks farther: each a forward kernel and two backward ones."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = make_mesh(MeshConfig(data=1, sequence=4), list(devices))
    placed = Format(Layout.AUTO, NamedSharding(mesh, PartitionSpec(None, "sequence")))
    arrays = [jax.ShapeDtypeStruct((1, 16_384, 4, LANES), jnp.bfloat16)] * 3
    with jax.set_mesh(mesh):
        step = functools.partial(forward_and_backward, LinearBias(alibi_slopes(4)), "pallas_tpu")
        compiled = jax.jit(step, in_shardings=placed, out_shardings=placed).lower(*arrays).compile()
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 9 and "collective-permute" in text
    part = 4096 * 4 * LANES * 2  # bytes of one device's queries
    assert compiled.memory_analysis().temp_size_in_bytes < 20 * part, (
        "[T, T] scores of one head alone would be 16 times it"
    )


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", TPU_SHAPES, ids=lambda shape: f"D{shape.width}")
def test_tpu_kernels_compile_and_take_linear_memory(topology, dtype, shape):
    compiled = compile_for_tpu(topology, shape, dtype)
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3, "forward, dq, and dk with dv"
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 32 * jnp.dtype(dtype).itemsize * MIB, (
        "four arrays like q; [H, L, L] in float32 would be 2,048 MiB"
    )


@pytest.mark.parametrize("shape", [Shape(2, 1000, 1000, 6, 2, 80), Shape(1, 70, 3333, 2, 2, 256, 3263)])
def test_tpu_kernels_compile_with_dropout_shared_keys_and_a_cache(shape):
    text = compile_for_tpu(
        "v5e:2x2", shape, jnp.bfloat16, q_offset=shape.q_offset, dropout_rate=0.1, dropout_key=jax.random.key(0)
    ).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.versions
def test_a_sharded_model_for_tpus_uses_the_kernel_by_itself(caplog):
    """ "auto" looks at the mesh, not at this machine; every device attends over its own rows and heads."""
    caplog.set_level("INFO")
    devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
    model = ModelConfig(
        num_layers=2, width=256, num_heads=4, mlp_width=512, vocab_size=256, scan_layers=True, remat=True
    )
    mesh = make_mesh(MeshConfig(data=2, tensor=2), devices)
    tokens = jax.ShapeDtypeStruct((4, 1024), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    lm, key = TransformerLM(model), jax.random.key(0)
    shapes = jax.eval_shape(lm.init, key, jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]
    with jax.set_mesh(mesh):
        placed = tree_shardings(model, shapes, mesh)
        params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)
        grad = jax.jit(jax.grad(lambda params, tokens: lm.apply({"params": params}, tokens).mean()))
        text = grad.lower(params, tokens).compile().as_text()
    assert "pallas_tpu for 1024 queries" in caplog.text
    assert text.count('custom_call_target="tpu_custom_call"') == 4, "forward, forward again for remat, and two backward"
    assert "1024,1024]" not in text, "somebody's scores are there whole"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "shape", [*GPU_SHAPES[::4], Shape(2, 300, 333, 6, 2, 80, 33), Shape(1, 200, 150, 2, 2, 64, 0, False)]
)
@pytest.mark.parametrize("rate", [0.0, pytest.param(0.1, marks=pytest.mark.versions)])
def test_gpu_kernels_lower_to_triton(dtype, shape, rate):
    text = lower_for_cuda(shape, dtype, rate)
    assert text.count("__gpu$xla.gpu.triton") == 3, "forward, dq, and dk with dv"


def test_the_end_of_triton_is_one_line_of_the_log_and_no_other_warning_is_lost(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(pallas_gpu.log.parent.parent, "propagate", True)
    pallas_gpu._log_deprecation.cache_clear()
    for length in (64, 128):
        lower_for_cuda(Shape(1, length, length, 2, 2, 16), jnp.float32, 0.0)  # here warnings are errors
    assert caplog.text.count("Pallas's Triton backend") == 1
    with pytest.raises(DeprecationWarning):
        warnings.warn("The Pallas Mosaic backend is deprecated", DeprecationWarning, stacklevel=1)


def lower_for_cuda(shape: Shape, dtype, rate):
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    sizes = [(shape.queries, shape.heads), *[(shape.keys, shape.key_heads)] * 2]
    arrays = [jax.ShapeDtypeStruct((shape.batch, *size, shape.width), dtype) for size in sizes]
    bias = LinearBias(alibi_slopes(shape.heads))
    options = {
        "q_offset": shape.q_offset,
        "causal": shape.causal,
        "dropout_rate": rate,
        "dropout_key": jax.random.key(0),
    }
    with jax.sharding.use_abstract_mesh(mesh):
        step = jax.jit(functools.partial(forward_and_backward, bias, "pallas_gpu", **options))
        return step.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
