"""What is read from compiled programs, against small ones whose collectives, bytes and loops are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from alibi_jax.config import MeshConfig
from alibi_jax.plan.collectives import Collective, collectives
from alibi_jax.plan.groups import along, between_slices, groups_of
from alibi_jax.plan.hlo import Program, Shape, arrays_in, shapes
from alibi_jax.plan.topology import find_topology, mesh_on
from alibi_jax.plan.traffic import hbm_bytes
from alibi_jax.sharding import AXES

KIB = 1024


def one_axis(devices) -> Mesh:
    return Mesh(np.array(devices), ("ring",), axis_types=(AxisType.Auto,))


def compile_mapped(function, mesh, *shapes_in) -> str:
    """The text of a function that each device of a ring runs on its own rows."""
    spec = PartitionSpec("ring")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    sharding = NamedSharding(mesh, spec)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape in shapes_in]
    return jax.jit(mapped).lower(*arrays).compile().as_text()


def sums(x):
    return jax.lax.psum(x, "ring")


def gathers_in_a_scan(x):
    def body(carry, row):
        return carry + jnp.sin(jax.lax.all_gather(row + carry, "ring")).sum(0), None

    return jax.lax.scan(body, jnp.zeros_like(x[0]), x)[0][None]


def passes_round(x):
    pairs = [(i, (i + 1) % jax.lax.axis_size("ring")) for i in range(jax.lax.axis_size("ring"))]
    return jax.lax.fori_loop(0, 7, lambda _, x: jnp.cos(jax.lax.ppermute(x, "ring", pairs)), x)


def asks_the_data(x):
    return jax.lax.while_loop(lambda x: jax.lax.pmax(x.sum(), "ring") < 9.0, lambda x: x + jax.lax.psum(x, "ring"), x)


PROGRAMS = [  # function, rows of the input, kind, bytes of the array, times, bytes sent each time by one of g devices
    (sums, 1, "all-reduce", lambda g: 4 * KIB, 1, lambda g: 2 * (g - 1) / g * 4 * KIB),
    (gathers_in_a_scan, 5, "all-gather", lambda g: g * 4 * KIB, 5, lambda g: (g - 1) * 4 * KIB),
    (passes_round, 1, "collective-permute", lambda g: 4 * KIB, 7, lambda g: 4 * KIB),
]


@pytest.fixture(params=["cpu:8", "v5e:2x2"])
def ring(request):
    return one_axis(find_topology(request.param).devices)


@pytest.mark.parametrize(
    "function, rows, kind, size, times, sent", PROGRAMS, ids=lambda value: getattr(value, "__name__", "")
)
def test_collectives_are_counted_with_their_bytes_and_loops(ring, function, rows, kind, size, times, sent):
    g = ring.size
    listed = collectives(Program(compile_mapped(function, ring, (rows * g, KIB))), dict(ring.shape))
    assert [(each.kind, each.times) for each in listed] == [(kind, times)]
    assert listed[0].bytes == size(g) and listed[0].axes == ("ring",)
    assert listed[0].sent == pytest.approx(sent(g))
    assert listed[0].place == ("once" if times == 1 else f"in a loop of {times}")


def test_a_loop_that_asks_the_data_has_no_count(ring):
    program = Program(compile_mapped(asks_the_data, ring, (ring.size, KIB)))
    listed = [each for each in collectives(program) if "depends on the data" in each.place]
    assert listed and all(each.times is None for each in listed)
    assert hbm_bytes(program)[1] > 0, "what one pass moves is returned beside the known bytes"


def test_of_a_slice_only_the_slice_is_moved():
    """Ten rows of two arrays read and ten written are three arrays moved, not thirty; and one made of zeros."""

    def rows(x):
        def body(i, y):
            return jax.lax.dynamic_update_index_in_dim(y, jnp.sin(x[i] + y[i]), i, 0)

        return jax.lax.fori_loop(0, 10, body, jnp.zeros_like(x))

    device = find_topology("v5e:2x2").devices[0]
    sharding = NamedSharding(one_axis([device]), PartitionSpec())
    array = jax.ShapeDtypeStruct((10, 4096, 1024), jnp.float32, sharding=sharding)
    with jax.set_mesh(one_axis([device])):
        moved, _ = hbm_bytes(Program(jax.jit(rows).lower(array).compile().as_text()))
    assert moved == pytest.approx(
        4 * 10 * 4096 * 1024 * 4, rel=1e-3
    )  # 160 MiB each: too much for the chip's own memory


def test_every_way_to_print_groups():
    pairs = [[0, 2, 4, 6], [1, 3, 5, 7]]
    for printed in (
        "replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add",
        "replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}",
        "replica_groups=mesh['a'=4,'b'=2] {'a'}, use_global_device_ids=true",
        "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, x",
        "replica_groups=mesh['a'=8] {'a':(1)4}, x",
        "replica_groups=mesh['a'=4,'b'=2], device_ids=(0,1,2,3,4,5,6,7) {'a'}",
    ):
        assert groups_of(printed, 8).tolist() == pairs, printed
    assert groups_of("replica_groups={}, x", 4).tolist() == [[0, 1, 2, 3]]
    assert groups_of("source_target_pairs={{0,1},{1,0}}, x", 2).tolist() == [[0, 1], [1, 0]]
    assert along(np.array(pairs), {"rows": 4, "columns": 2}) == ("rows",)
    assert along(np.array(pairs), {"rows": 2, "columns": 4}) == ("rows", "columns")


def test_shapes_and_memories():
    text = "(f32[8,128]{1,0:T(8,128)S(1)}, bf16[4]{0}, /*index=2*/pred[], f8e4m3fn[16]{0}, s4[3]{0})"
    arrays = arrays_in(text)
    assert [array.bytes for array in arrays] == [4096, 8, 1, 16, 2]
    assert [array.in_hbm for array in arrays] == [False, True, True, True, True]
    assert shapes(text) >= {("f32", (8, 128)), ("pred", ())}
    assert Shape("c64", (2, 2)).bytes == 32


def test_between_slices_each_array_leaves_once():
    """Two slices of four: half of what all eight gather is on the other side, and each device brings over its quarter."""
    common = {"axes": (), "times": 1, "place": "once", "arrays": "", "op_name": "", "purpose": ""}
    gather = Collective("all-gather", bytes=8000, group_size=8, slices=2, **common)
    assert gather.sent_between_slices == 1000 and gather.sent_inside_slices == 6000
    reduce = Collective("all-reduce", bytes=8000, group_size=8, slices=2, **common)
    assert reduce.sent_between_slices == 2000 and reduce.sent_inside_slices == 12000
    near = Collective("all-reduce", bytes=8000, group_size=8, slices=1, **common)
    assert near.sent_between_slices == 0 and near.sent == near.sent_inside_slices == 14000


def test_what_goes_over_the_data_centre_network():
    """Two slices of four, half the rows in each: a device sends its quarter of the product's parts to the other slice."""
    topology = find_topology("v5e:2x2", slices=2)
    mesh = mesh_on(MeshConfig(data=2, fsdp=4), topology)
    half, quarter = (NamedSharding(mesh, PartitionSpec(axis)) for axis in AXES[:2])
    rows = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=half)
    program = Program(jax.jit(lambda x: jnp.tanh(x.T @ x), out_shardings=quarter).lower(rows).compile().as_text())
    sent = collectives(program, dict(mesh.shape), [device.slice_index for device in mesh.devices.flat])
    assert [(each.kind, each.slices, each.axes, each.times) for each in sent] == [("all-reduce", 2, AXES[:1], 1)]
    assert sent[0].sent_between_slices == KIB * KIB and sent[0].sent_inside_slices == 0


def test_every_way_to_print_slices():
    key = "_xla_megascale_target="
    assert between_slices(f'{key}"{{1,2,3,4}}x{{0:3}}",_xla_megascale_transfer_type="ALL_REDUCE"') == (4, 4)
    assert between_slices(f'{key}"{{1:8}}x{{0:255}}",_xla_megascale_transfer_type="ALL_REDUCE"') == (8, 8)
    assert between_slices(f"{key}{{{{100000,200000}},{{100001,200001}}}},_xla_megascale_transfer_type=") == (2, 2)
    assert between_slices(f"{key}{{{{100000,100001,200000,200001}},{{300000}}}},_xla_megascale_transfer_type=") == (
        4,
        2,
    )


def test_a_reduce_scatter_is_told_from_an_all_reduce():
    """A weight's gradient, split as the weight is: a TPU's compiler prints an all-reduce in a fusion, sends half."""
    mesh = one_axis(find_topology("v5e:2x2").devices)
    split = NamedSharding(mesh, PartitionSpec("ring"))
    rows = jax.ShapeDtypeStruct((512, KIB), jnp.bfloat16, sharding=split)
    gradient = jax.jit(lambda x, y: jnp.tanh(x.T @ y), out_shardings=split)
    text = gradient.lower(rows, rows).compile().as_text()
    assert " reduce-scatter(" not in text and " all-reduce(" in text
    listed = collectives(Program(text))
    assert [each.kind for each in listed] == ["reduce-scatter"]
    assert listed[0].bytes == 2 * KIB * KIB and listed[0].sent == 0.75 * listed[0].bytes
