"""The kernels compiled for machines that are not here: by the TPU compiler whole, for GPUs as far as Triton's input. Which
cards the Triton kernels serve, and what happens where they cannot be had."""

import functools
import itertools
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.experimental.pallas import triton as pallas_triton
from jax.sharding import NamedSharding, PartitionSpec

from alibi_jax import attention
from alibi_jax.attention import attend, mosaic_gpu, triton_backend
from alibi_jax.config import MeshConfig, ModelConfig
from alibi_jax.model import TransformerLM
from alibi_jax.model.placement import tree_shardings
from alibi_jax.positions import LinearBias, alibi_slopes
from alibi_jax.sharding import Device, device, make_mesh
from benchmarks.shapes import GPU_SHAPES, TPU_SHAPES, Shape
from cuda import H100, mesh_of

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
    """Own part, neighbour's, and the loop of a head that looks farther: each a forward kernel and a backward one."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = make_mesh(MeshConfig(data=1, sequence=4), list(devices))
    placed = Format(Layout.AUTO, NamedSharding(mesh, PartitionSpec(None, "sequence")))
    arrays = [jax.ShapeDtypeStruct((1, 16_384, 4, LANES), jnp.bfloat16)] * 3
    with jax.set_mesh(mesh):
        step = functools.partial(forward_and_backward, LinearBias(alibi_slopes(4)), "pallas_tpu")
        compiled = jax.jit(step, in_shardings=placed, out_shardings=placed).lower(*arrays).compile()
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 6 and "collective-permute" in text
    part = 4096 * 4 * LANES * 2  # bytes of one device's queries
    assert compiled.memory_analysis().temp_size_in_bytes < 20 * part, (
        "[T, T] scores of one head alone would be 16 times it"
    )


NARROW, WIDE = TPU_SHAPES
EVERY = itertools.product(("v5e:2x2", "v5p:2x2x1", "v6e:2x2"), (jnp.bfloat16, jnp.float32), TPU_SHAPES)
COMPILED = {  # each generation, type and width at least once: 5 seconds of a core for one, in float32 10
    ("v5e:2x2", jnp.bfloat16, NARROW): (),
    ("v5p:2x2x1", jnp.bfloat16, WIDE): (),
    ("v6e:2x2", jnp.bfloat16, NARROW): pytest.mark.versions,
    ("v5e:2x2", jnp.float32, WIDE): (),
}


@pytest.mark.parametrize(
    ("topology", "dtype", "shape"),
    [pytest.param(*each, marks=COMPILED.get(each, pytest.mark.slow)) for each in EVERY],
    ids=lambda value: f"D{value.width}" if isinstance(value, Shape) else None,
)
def test_tpu_kernels_compile_and_take_linear_memory(topology, dtype, shape):
    compiled = compile_for_tpu(topology, shape, dtype)
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2, "forward and backward"
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 8 * jnp.dtype(dtype).itemsize * MIB, "an array like q; [H, L, L] in float32 would be 2,048 MiB"


@pytest.mark.parametrize("shape", [Shape(2, 1000, 1000, 6, 2, 80), Shape(1, 70, 3333, 2, 2, 256, 3263)])
def test_tpu_kernels_compile_with_dropout_shared_keys_and_a_cache(shape):
    text = compile_for_tpu(
        "v5e:2x2", shape, jnp.bfloat16, q_offset=shape.q_offset, dropout_rate=0.1, dropout_key=jax.random.key(0)
    ).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2


@pytest.mark.versions
def test_a_sharded_model_for_tpus_uses_the_kernel_by_itself(caplog):
    """ "auto" looks at the mesh, not at this machine; every device attends over its own rows and heads."""
    caplog.set_level("INFO")
    devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
    model = ModelConfig(
        num_layers=2,
        width=256,
        num_heads=4,
        mlp_width=512,
        vocab_size=256,
        scan_layers=True,
        remat=True,
        remat_saves="inputs",
        compute_dtype="bfloat16",
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
    assert text.count('custom_call_target="tpu_custom_call"') == 3, "forward, again for the backward pass, backward"
    assert "1024,1024]" not in text, "somebody's scores are there whole"


@pytest.mark.parametrize(
    ("dtype", "shape", "rate"),
    [
        (jnp.float32, GPU_SHAPES[0], 0.1),
        (jnp.bfloat16, GPU_SHAPES[4], 0.0),
        pytest.param(jnp.bfloat16, Shape(2, 300, 333, 6, 2, 80, 33), 0.1, marks=pytest.mark.versions),
        (jnp.float16, Shape(1, 200, 150, 2, 2, 64, 0, False), 0.0),
    ],
    ids=["float32, dropout", "bfloat16", "bfloat16, shared keys and dropout", "float16, encoder"],
)
def test_gpu_kernels_lower_to_triton(dtype, shape, rate):
    text = lower_for_cuda(shape, dtype, rate)
    assert text.count("__gpu$xla.gpu.triton") == 3, "forward, dq, and dk with dv"
    assert text.count("ex2.approx.ftz.f32") == 3, "the instruction alone"


@pytest.mark.parametrize(
    ("dtype", "shape", "rate"),
    [
        (jnp.bfloat16, Shape(2, 300, 333, 6, 2, 80, 33), 0.1),
        (jnp.float16, Shape(1, 200, 150, 2, 2, 64, 0, False), 0.0),
    ],
    ids=["bfloat16", "float16"],
)
@pytest.mark.versions
def test_gpu_kernels_lower_to_mosaic(dtype, shape, rate):
    text = lower_for_cuda(shape, dtype, rate, "mosaic_gpu")
    assert text.count("@mosaic_gpu_v2") == 3, "forward, dq, and dk with dv"


GOES_BY_NAME = hasattr(pallas_triton, "get_gpu_info")  # from 0.11 on jax lowers Triton for cards whose names it knows
AMPERE = Device("gpu", "NVIDIA A100-SXM4-80GB", (8, 0))
HOPPER = Device("gpu", H100, (9, 0))


@pytest.mark.parametrize(
    ("card", "chosen"),
    [
        (AMPERE, "pallas_gpu"),
        (Device("gpu", "NVIDIA L4", (8, 9)), "pallas_gpu"),
        (Device("gpu", "Orin", (8, 7)), "blockwise" if GOES_BY_NAME else "pallas_gpu"),
        (Device("gpu", "NVIDIA GeForce RTX 5090", (12, 0)), "pallas_gpu"),
        (Device("gpu", "NVIDIA of a later year", (14, 1)), "pallas_gpu"),
        (Device("gpu", "NVIDIA GeForce RTX 2080", (7, 5)), "blockwise"),
        (Device("gpu", "Tesla T4"), "blockwise"),
        (Device("gpu", "AMD Instinct MI300X"), "blockwise"),
        (Device("cpu", "cpu"), "blockwise"),
    ],
    ids=lambda value: value.kind if isinstance(value, Device) else None,
)
def test_auto_takes_the_triton_kernels_from_ampere_on(card, chosen, monkeypatch):
    monkeypatch.setattr(attention, "device", lambda: card)
    q = jnp.zeros((1, 256, 2, 16))
    assert attention._choose(q, q, LinearBias(alibi_slopes(2))) == chosen
    if chosen == "blockwise" and card.platform == "gpu":
        with pytest.raises(
            NotImplementedError, match=rf"cannot serve {card.kind}.*(from compute capability 8\.0 on|know)"
        ):
            attend(q, q, q, implementation="pallas_gpu")


@pytest.mark.parametrize(("kind", "known"), [("NVIDIA A10", True), ("NVIDIA of a later year", False)])
def test_auto_on_a_mesh_of_cards_that_are_not_here_takes_what_jax_can_lower(kind, known):
    q = jax.ShapeDtypeStruct((1, 256, 2, 16), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh_of(kind)):
        text = jax.jit(lambda q: attend(q, q, q)).trace(q).lower(lowering_platforms=("cuda",)).as_text()
    assert ("__gpu$xla.gpu.triton" in text) == (known or not GOES_BY_NAME)


def test_auto_takes_the_first_implementation_that_can_serve(monkeypatch):
    def named(name, reason, platform="gpu"):
        return attention.Implementation(name, platform=platform, obstacle=lambda card, interpret: reason)

    each = [named("other", None, "tpu"), named("not here", "so"), named("first", None), named("second", None)]
    monkeypatch.setattr(attention, "IMPLEMENTATIONS", {implementation.name: implementation for implementation in each})
    monkeypatch.setattr(attention, "device", lambda: AMPERE)
    q = jnp.zeros((1, 256, 2, 16))
    assert attention._choose(q, q, None) == "first"


@pytest.mark.parametrize("kind", ["NVIDIA L4", "Tesla T4", "AMD Instinct MI300X"])
def test_capability_of_a_mesh_is_that_of_a_local_device_of_the_same_kind(kind, monkeypatch):
    capabilities = {"NVIDIA A10": "8.6", "NVIDIA L4": "8.9", "AMD Instinct MI300X": "gfx942"}
    local = [types.SimpleNamespace(device_kind=name, compute_capability=text) for name, text in capabilities.items()]
    monkeypatch.setattr(jax, "local_devices", lambda: local)
    with jax.sharding.use_abstract_mesh(mesh_of(kind)):
        assert device() == ("gpu", kind, (8, 9) if kind == "NVIDIA L4" else None)


@pytest.mark.parametrize("module", [None, types.ModuleType("triton")], ids=["gone", "emptied"])
def test_a_jax_without_triton_leaves_blockwise_and_the_reason(module, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(attention.log, "propagate", True)
    monkeypatch.setattr(attention.log.parent, "propagate", True)
    attention._log_once.cache_clear()
    monkeypatch.setattr(attention, "device", lambda: AMPERE)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", module)
    for length in (256, 512):
        jax.eval_shape(lambda q: attend(q, q, q), jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32))
    assert "blockwise for 512 queries" in caplog.text
    assert caplog.text.count(f"without Pallas's Triton backend, which jax {jax.__version__} lacks") == 1
    with pytest.raises(NotImplementedError, match=r"pallas_gpu cannot serve without .*Install .*'auto'"):
        attend(*[jnp.zeros((1, 8, 2, 4))] * 3, implementation="pallas_gpu")
    attend(*[jnp.zeros((1, 8, 2, 4))] * 3, implementation="pallas_gpu", interpret=True)  # which needs no Triton


@pytest.mark.parametrize(
    ("triton", "dtype", "chosen"),
    [(True, jnp.bfloat16, "pallas_gpu"), (False, jnp.bfloat16, "mosaic_gpu"), (False, jnp.float32, "blockwise")],
)
def test_hopper_has_the_mosaic_kernels_where_a_jax_has_no_triton(triton, dtype, chosen, monkeypatch):
    monkeypatch.setattr(attention, "device", lambda: HOPPER)
    if not triton:
        monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    q = jnp.zeros((1, 256, 2, 16), dtype)
    assert attention._choose(q, q, LinearBias(alibi_slopes(2))) == chosen


def test_the_end_of_triton_is_one_line_of_the_log_and_no_other_warning_is_lost(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(triton_backend.log.parent.parent, "propagate", True)
    triton_backend._log_deprecation.cache_clear()
    for length in (64, 128):
        lower_for_cuda(Shape(1, length, length, 2, 2, 16), jnp.float32, 0.0)  # here warnings are errors
    assert caplog.text.count("Pallas's Triton backend") == 1
    with pytest.raises(DeprecationWarning):
        warnings.warn("The Pallas Mosaic backend is deprecated", DeprecationWarning, stacklevel=1)


def test_mosaic_kernels_refuse_other_types_and_cards():
    shape = Shape(1, 64, 64, 2, 2, 64)
    with pytest.raises(NotImplementedError, match="mosaic_gpu cannot serve float32 inputs.*bfloat16, float16.*auto"):
        lower_for_cuda(shape, jnp.float32, 0.0, "mosaic_gpu")
    with pytest.raises(NotImplementedError, match=r"NVIDIA A100-SXM4-80GB.*Hopper.*9\.0.*auto"):
        lower_for_cuda(shape, jnp.bfloat16, 0.0, "mosaic_gpu", AMPERE.kind)


def test_mosaic_kernels_say_which_jax_they_need(monkeypatch):
    obstacle = mosaic_gpu.IMPLEMENTATION.obstacle
    assert obstacle(HOPPER, False) is None
    without = types.ModuleType("mosaic_gpu")
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.mosaic_gpu", without)
    monkeypatch.setattr("jax.experimental.pallas.mosaic_gpu", without, raising=False)
    assert f"interpret=True on jax {jax.__version__}" in obstacle(HOPPER, True)
    monkeypatch.delattr("jax.experimental.pallas.mosaic_gpu")
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.mosaic_gpu", None)
    assert f"which jax {jax.__version__} cannot load" in obstacle(HOPPER, False)


def test_a_warning_of_others_is_not_repeated_because_attention_is_traced_again():
    """As it would be if each trace changed Python's filters."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            triton_backend.expect_deprecation()
            warnings.warn("of others", UserWarning, stacklevel=1)
            warnings.warn("The Pallas Triton backend is deprecated", DeprecationWarning, stacklevel=1)
    assert [str(each.message) for each in seen] == ["of others"]


def lower_for_cuda(shape: Shape, dtype, rate, implementation="pallas_gpu", kind=HOPPER.kind):
    sizes = [(shape.queries, shape.heads), *[(shape.keys, shape.key_heads)] * 2]
    arrays = [jax.ShapeDtypeStruct((shape.batch, *size, shape.width), dtype) for size in sizes]
    bias = LinearBias(alibi_slopes(shape.heads))
    options = {
        "q_offset": shape.q_offset,
        "causal": shape.causal,
        "dropout_rate": rate,
        "dropout_key": jax.random.key(0),
    }
    with jax.sharding.use_abstract_mesh(mesh_of(kind)):
        step = jax.jit(functools.partial(forward_and_backward, bias, implementation, **options))
        return step.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
