"""The bundles of the TPU kernels: the reader of the compiler's texts, and that no visit has grown since they were committed."""

import importlib.metadata
import json
import shutil
import subprocess

import pytest

from alibi_jax.plan.attention import FIGURES
from benchmarks.tpu_schedule.__main__ import PASSES, RESULTS, Work, compile_all
from benchmarks.tpu_schedule.compiler import TOPOLOGIES, Case, kernel_and_pass, kernels_of
from benchmarks.tpu_schedule.dumps import Visit, read_program, read_schedule
from benchmarks.tpu_schedule.figures import LENGTHS, best, calls, passes

UNITS = "MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU"
CAPACITY = "    4     3     4     2     1     3     3     1     1     2"
KEY = """= control target key start
LH: loop header
LB: loop body
LE: loop exit
PB: predicated region body
PF: predicated region fallthrough
CT: control target
= control target key end

"""
# Cut from programs of splash attention and of ours for v5e: of each region a few bundles. A grid over all pairs of blocks.
GRID = """\
     0   :  { %s11027_s29 = smov 0  /* copy for cssa */ } /* Start region 87 :: End region 87 */
   0x1 LB: > { %20240 = sst [smem:[#allocation8_spill]] %s11027_s29 } /* Start region 92 :: Start region 33 */
   0x2   : > { %1005 = sbr.rel (%p8969_p6) target = $region36 }
   0x3   :  {}
   0x4   :  {}
   0x5   :  {}
   0x6   :  {} /* End region 34 */
   0x7   : > { %1043 = vst [vmem:[#allocation2] sm:$0xff] /*vst_source=*/%v10376_v0 } /* Start region 35 */
   0x8   : > { %1075 = vst.msk [vmem:[#allocation3] sm:$0xf] /*vm=*/%vm1, /*vst_source=*/%v10377_v1 } /* End region 35 */
   0x9 PF: > { %s1076_s8 = sld [smem:[#allocation8]] } /* Start/End empty region 36 :: Start region 37 :: Start region 38 */
   0xa   : > { %1109 = sbr.rel (%p8978_p0) target = $region40 }
   0xb   :  {}
   0xc   :  {}
   0xd   :  {}
   0xe   :  {} /* End region 38 */
   0xf   : > { %v3_v1 = vmatmul.bf16.gmra.mxu0 %v1_v3  ;;  %v4_v2 = vmax.f32 %v3_v1, %v2_v5 } /* Start region 39 */
  0x10   : > { %v5_v3 = vsel /*vm=*/%vm8_vm1, /*on_true_vy=*/%v4_v2, /*on_false_vx=*/-inf  ;;  %v6_v4 = vpow2.f32 %v5_v3 }
  0x11   : > { %8197 = vst [vmem:[#allocation45_spill] sm:$0xff] /*vst_source=*/%v6_v4 } /* End region 39 */
  0x12 PF: > { %p9365_p1 = scmp.ne.s32.totalorder %s3_s1, 7 } /* Start/End empty region 40 :: Start region 41 */
  0x13   : > { %8201 = sbr.rel (%p9365_p1) target = $region44 }
  0x14   :  {}
  0x15   :  {}
  0x16   :  {}
  0x17   :  {} /* End region 42 */
  0x18   : > { %9659 = vst [vmem:[%s11_s9] sm:$0xff] /*vst_source=*/%v9_v4 } /* End region 92 :: End region 43 */
  0x19 PF: > { %s44_s29 = sadd.s32 1, %s11027_s29 } /* Start/End empty region 44 :: Start region 6 :: End region 6 */
  0x1a   :  { %43 = sbr.rel (!%p41_p2) target = $region92 }
  0x1b   : > { %s1_s1 = smov %s44_s29 } /* size: (
base_bounds: (1, 8, 1, 1)
second_minor_factor: 1 */
  0x1c   :  {}
  0x1d   :  {}
  0x1e   :  {} /* End region 0 :: End region 3 :: End region 4 :: End region 91 */
  0x1f   :  { %9672 = vsyncpa [#allocation6], 1 } /* exit bundle: %splash_mha_fwd = custom-call(%copy) */
"""
GRID_USE = {0x7: {7: 1}, 0x8: {7: 1}, 0xF: {0: 5, 2: 1}, 0x10: {2: 3, 4: 1}, 0x11: {7: 1, 8: 1}, 0x18: {7: 1}}
# A grid over blocks of keys, and in it a loop over the visits, two kinds of them; then what is done at a block's last visit.
LOOP = """\
     0   :  { %17 = dma.hbm_to_smem /*hbm=*/%s15_s26, /*size_in_granules=*/16, /*dst_syncflagno=*/[#allocation9] }
   0x1 LB: > { %45227 = sst [smem:[#allocation39_spill]] %s25649_s28 } /* Start region 196 */
   0x2   : > { %v1_v1 = vmov 0.0 }
   0x3 LB: >> { %s45270_s14 = sld [smem:[#allocation57_spill]] } /* Start region 185 :: Start region 60 */
   0x4   : >> { %932 = sbr.rel (%p26321_p8) target = $region79 }
   0x5   :  {}
   0x6   :  {}
   0x7   :  {}
   0x8   :  {} /* End region 77 */
   0x9   : >> { %v20_v31 = vld [vmem:[%s25947_s18 + $0x38] sm:$0xff] } /* Start region 78 */
   0xa   : >> { %v21_v3 = vmatmul.bf16.gmra.mxu0 %v20_v31  ;;  %v22_v4 = vpow2.f32 %v21_v3 } /* End region 78 */
   0xb PF: >> { %p4606_p9 = scmp.ne.s32.totalorder %s26223_s5, 1 } /* Start/End empty region 79 :: Start region 80 */
   0xc   : >> { %4610 = sbr.rel (%p4607_p6) target = $region83 }
   0xd   :  {}
   0xe   :  {}
   0xf   :  {}
  0x10   :  {} /* End region 81 */
  0x11   : >> { %v23_v5 = vmatmul.bf16.gmra.mxu0 %v20_v31 } /* Start region 82 */
  0x12   : >> { %v24_v6 = vsel /*vm=*/%vm1_vm2, /*on_true_vy=*/%v23_v5, /*on_false_vx=*/-inf }
  0x13   : >> { %v25_v7 = vpow2.f32 %v24_v6 } /* End region 82 */
  0x14 PF: >> { %p1_p1 = scmp.ne.s32.totalorder %s1_s5, %s2_s6 } /* Start/End empty region 83 :: Start region 84 */
  0x15   : >> { %5610 = sbr.rel (%p1_p1) target = $region87 }
  0x16   :  {}
  0x17   :  {}
  0x18   :  {}
  0x19   :  {} /* End region 85 */
  0x1a   : >> { %6605 = vst [vmem:[#allocation2 + $0xa0] sm:$0xff] /*vst_source=*/%v4541_v46 } /* Start region 86 */
  0x1b PF: >> { %p514_p0 = scmp.ge.s32.totalorder %s26126_s1, %s26016_s20 } /* Start/End empty region 87 */
  0x1c   : > { %517 = sbr.rel (!%p514_p0) target = $region185 }
  0x1d   :  {}
  0x1e   :  {}
  0x1f   :  {}
  0x20   :  {} /* End region 178 :: End region 59 :: End region 184 */
  0x21   : > { %v18481_v39 = vld [vmem:[#allocation2 + $0xd8] sm:$0xff] }
  0x22   : > { %40 = sbr.rel (!%p38_p7) target = $region196 }
  0x23   :  {}
  0x24   :  {}
  0x25   :  {}
  0x26   : > { %s50975_s13 = sld [smem:[#allocation51_spill]] } /* End region 3 :: End region 4 :: End region 195 */
  0x27   :  {} /* exit bundle: %alibi_backward.1 = custom-call(%args) */
"""
LOOP_USE = {0x9: {5: 1}, 0xA: {0: 4, 4: 1}, 0x11: {0: 2}, 0x12: {2: 1}, 0x13: {4: 1}, 0x1A: {7: 1}, 0x21: {5: 1}}


def utilization(use: dict[int, dict[int, int]], bundles: int) -> str:
    rows = [" ".join(str(use.get(at, {}).get(unit, 0)) for unit in range(10)) for at in range(bundles)]
    return "\n".join(["== CAPACTIY:", UNITS, CAPACITY, "== UTILIZATION:", *rows, ""])


def schedule(text, use):
    return read_schedule(read_program(KEY + text, utilization(use, text.count(":  {") + text.count("> {"))))


def test_regions_of_a_grid_over_pairs():
    floors = {"MXU": 2, "XLU": 0, "VALU": 1, "VPOP": 0, "EUP": 1, "VLOAD": 0, "VSTORE": 1, "SALU": 0}
    visit = Visit(bundles=3, masked=True, maximum=True, loop=24, floors=floors, spills=1)
    regions = schedule(GRID, GRID_USE)
    assert regions.visits == [visit] and regions.every_pair
    assert (regions.program, regions.longest_piece) == (32, 8), (
        "from the branch, through four bundles, to where it leads"
    )
    assert (regions.start, regions.finish, regions.last, regions.between) == (2, 1, 0, 0)
    assert regions.start + regions.finish + visit.bundles + visit.loop == 30, "the loop"


def test_regions_of_a_loop_over_visits():
    regions = schedule(LOOP, LOOP_USE)
    assert [(visit.bundles, visit.masked, visit.maximum, visit.loop) for visit in regions.visits] == [
        (2, False, False, 24),
        (3, True, False, 24),
    ]
    assert not regions.every_pair and regions.visits[0].floors["MXU"] == 1
    assert (regions.program, regions.start, regions.finish, regions.last, regions.between) == (40, 2, 6, 1, 0)


@pytest.mark.parametrize(
    ("text", "use", "problem"),
    [
        (GRID, GRID_USE | {0x10: {2: 3}}, "got 0 visits in loops"),
        (GRID.replace("  0x13 ", "  0x14 "), GRID_USE, "got address 0x14 after 19 bundles"),
        (GRID + "  0x20   :  {}\n", GRID_USE, r"got \(32, 10\), expected 33 bundles"),
    ],
    ids=["no exponentials", "a bundle is missing", "another kernel's units"],
)
def test_other_texts_are_refused(text, use, problem):
    with pytest.raises(ValueError, match=problem):
        read_schedule(read_program(KEY + text, utilization(use, 32)))


def test_a_text_without_units_is_refused():
    with pytest.raises(ValueError, match="expected a table of units"):
        read_program(GRID, "")


@pytest.mark.parametrize(
    ("name", "kernel", "pass_name", "products", "by_keys"),
    [
        ("alibi_forward_kernel.1", "forward", "forward", 2, False),
        ("transpose_jvp_alibi_dq_kernel__.1", "dq", "backward", 3, False),
        ("alibi_backward.1", "backward", "backward", 5, True),
        ("splash_mha_fwd_residuals.1", "forward", "forward", 2, False),
        ("splash_mha_dkv_no_residuals.1", "dkv", "backward", 4, True),
    ],
)
def test_kernels_have_short_names(name, kernel, pass_name, products, by_keys):
    expected = {"kernel": kernel, "pass_name": pass_name, "products": products, "by_keys": by_keys}
    assert kernel_and_pass(name) == expected
    if kernel == "dkv":
        assert kernel_and_pass(name, fused=True) == expected | {"kernel": "backward", "products": 5}
    line = (
        f'  %{name} = (bf16[1,8]{{1,0}}, f32[1]{{0}}) custom-call(%a), custom_call_target="tpu_custom_call", b={{}}\n'
    )
    assert kernels_of("%a = f32[] add(%b, %c)\n" + line) == [name]


def row(**changes):
    visit = {"bundles": 100, "masked": True, "maximum": True, "loop": 10, "floors": {"MXU": 60}, "spills": 8}
    sizes = dict.fromkeys(("start", "finish", "last", "between"), 0)
    names = {"implementation": "splash", "chip": "v5e", "pass_name": "forward", "width": 128, "dtype": "bfloat16"}
    blocks = {
        "block_q": 512,
        "block_k": 512,
        "length": 4096,
        "kernel": "forward",
        "products": 2,
        "by_keys": False,
        "every_pair": True,
    }
    return names | blocks | sizes | {"visits": [visit]} | changes


def test_figures_are_for_as_many_scores_whatever_the_blocks():
    rows = [row(), row(block_k=1024), row(block_q=256, refused="too big"), row(dtype="float32")]
    small, large = passes(rows, "splash", "v5e", "forward", 128, "bfloat16")
    assert small.visit(False, False, loop=True) == 110 and large.visit(False, False, loop=True) == 55
    assert best([small, large]) is large and large.floor("MXU") == 30 and large.spills == 4
    assert small.peak() == pytest.approx(2 * 2 * 512 * 512 * 128 / (4 * 128 * 128 * 2), rel=0.003), "v5e's arrays"
    first, second = list(calls(rows, "splash", "v5e", "forward", 128, "bfloat16"))[:2]
    assert first == 8 * (72 * 100 + 128 * 10), "8 heads, 16 x 8 blocks, of which 72 are visited"
    assert 3.5 < second / first < 4


def test_the_plan_reads_what_is_committed_of_ours():
    figures = json.loads(FIGURES.read_text())
    rows = json.loads((RESULTS / f"{figures['compiler']}.json").read_text())["rows"]
    assert figures["rows"] == [row for row in rows if row["implementation"] == "ours"]


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_a_call_of_committed_bundles_grows_with_its_length(chip, pass_name):
    bundles = list(calls(json.loads(FIGURES.read_text())["rows"], "ours", chip, pass_name, 128, "bfloat16"))
    start = LENGTHS.index(32_768)
    growth = [late / early for early, late in zip(bundles[start:], bundles[start + 1 :], strict=False)]
    moves = growth.pop(1)  # from 65,536 tokens on the sums of dq no longer fit the core's memory
    assert len(growth) == 4 and max(growth) <= 2.1 and moves <= 2.2, (growth, moves)


INSTALLED = RESULTS / f"libtpu_{importlib.metadata.version('libtpu')}.json"
GROWTH = 1.03  # of a visit over the committed figure


@pytest.mark.skipif(not INSTALLED.exists(), reason=f"no figures are committed of {INSTALLED.stem}")
def test_no_visit_takes_more_bundles_than_committed(tmp_path, monkeypatch):
    """For one chip and width; the kernels are compiled in a process of their own, and nothing of it is left."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    wanted = {"implementation": "ours", "chip": "v5e", "width": 128, "dtype": "bfloat16", "length": 32_768}
    before = [row for row in json.loads(INSTALLED.read_text())["rows"] if wanted.items() <= row.items()]
    cases = tuple(Case(name, 128, "bfloat16", 32_768) for name in ("forward", "backward"))
    (after,) = compile_all([Work("ours", "v5e", cases)], 1)
    assert [row["kernel"] for row in after] == [row["kernel"] for row in before]
    for old, new in zip(before, after, strict=True):
        kinds = [(visit["masked"], visit["maximum"]) for visit in new["visits"]]
        assert kinds == [(visit["masked"], visit["maximum"]) for visit in old["visits"]]
        for kind, was, now in zip(kinds, old["visits"], new["visits"], strict=True):
            allowed = GROWTH * (was["bundles"] + was["loop"])
            assert now["bundles"] + now["loop"] <= allowed, f"{new['kernel']}, (masked, maximum) {kind}"
    assert not list(tmp_path.iterdir())


def test_a_process_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with pytest.raises(subprocess.CalledProcessError):
        list(compile_all([Work("ours", "v5e", (Case("forward", 128, "bfloat16", 128),))], 1))
    assert not list(tmp_path.iterdir())
