"""The benchmark on a GPU: its parts run here on small shapes, see a broken kernel, and none stops another."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from alibi_jax.attention import pallas_gpu
from benchmarks.gpu import __main__ as runner
from benchmarks.gpu import correctness, part, step
from benchmarks.gpu.cases import GROUPED, PLAIN_NAME, Case
from benchmarks.gpu.kernels import KERNELS, SERVED, our_kernels
from cuda import mesh_of

ROOT = Path(__file__).parents[1]
ABSENT = ("grain", "tyro", "tensorflow_datasets", "tokenizers", "tensorboardX")  # on the machines with a GPU
FEW = ("nothing skipped", PLAIN_NAME, "dropout of equal weights")


@pytest.fixture
def few_cases(monkeypatch):
    """A few cases, of a size that several blocks hold; programs traced before are forgotten."""
    several = [case for case in correctness.cases(True) if case.name in FEW and case.dtype == "float32"]
    monkeypatch.setattr(correctness, "cases", lambda interpret: several)
    correctness.outputs.clear_cache()
    yield several
    correctness.outputs.clear_cache()


def test_the_oracles_gradients_are_those_of_the_definition(few_cases):
    """With dropout, shared keys, a cache and rows that see no key."""
    shape = GROUPED._replace(queries=9, keys=12, width=8, q_offset=2)
    rated = Case("", "float32", shape, dropout_rate=0.3)
    for case in (rated, rated._replace(shape=shape._replace(causal=False), dropout_rate=0.0)):
        actual = correctness.outputs(*correctness.program("reference", case, True)[:5], correctness.make_inputs(case))
        for direction, x, y in zip(correctness.DIRECTIONS, actual, correctness.exact(case), strict=True):
            assert correctness.row("reference", case, direction, np.asarray(x, np.float64), y, "")["passed"], direction


def test_every_kernel_passes_and_every_error_stands_beside_its_tolerance(few_cases):
    rows = list(correctness.rows(True))
    assert all(row["passed"] for row in rows)
    compared = [row for row in rows if row["kernel"] == "pallas_gpu" and "error" in row]
    assert {row["case"] for row in compared} == set(FEW)
    assert {row["direction"] for row in compared} == set(correctness.DIRECTIONS)
    assert {row["against"] for row in compared} == {"float64", "all keys", "blockwise"}
    assert all(0 <= row["error"] <= row["tolerance"] for row in compared)
    served = [row for row in rows if row["case"] == SERVED]
    assert [(row["served"], row["of"]) for row in served if row["kernel"] == "pallas_gpu"] == [(3, 3)]


def test_a_kernel_with_a_wrong_slope_does_not_pass(few_cases, monkeypatch):
    scores = pallas_gpu._scores
    monkeypatch.setattr(
        pallas_gpu, "_scores", lambda kernel, q, k, slope, *rest: scores(kernel, q, k, 1.01 * slope, *rest)
    )
    monkeypatch.setattr(correctness, "KERNELS", ("pallas_gpu",))
    few_cases[:] = few_cases[:1]
    rows = [row for row in correctness.rows(True) if "error" in row]
    assert {(row["kernel"], row["direction"]) for row in rows if not row["passed"]} == {
        ("pallas_gpu", direction) for direction in correctness.DIRECTIONS
    }


def test_a_kernel_that_cannot_be_compiled_is_a_row_and_the_others_go_on(few_cases, monkeypatch):
    compiled = correctness.compiled

    def some(arguments):
        if arguments[0] == "pallas_gpu":
            raise ZeroDivisionError("no such instruction")
        return compiled(arguments)

    few_cases[:] = few_cases[:1]
    monkeypatch.setattr(correctness, "compiled", some)
    rows = list(correctness.rows(True))
    failed = [row for row in rows if row["kernel"] == "pallas_gpu" and row["case"] == few_cases[0].name]
    assert [(row["passed"], row["reason"]) for row in failed] == [(False, "ZeroDivisionError: no such instruction")]
    assert sum(row["kernel"] == "blockwise" and row["passed"] for row in rows) == 4


def test_nan_does_not_pass():
    case = correctness.cases(True)[0]
    nan, zeros = np.full(3, np.nan), np.zeros(3)
    assert not correctness.row("blockwise", case, "out", nan, zeros, "float64")["passed"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_the_correctness_part_compiles_is_lowered_for_cuda(dtype):
    cases = {case.name: case for case in correctness.cases(False) if case.dtype == dtype}
    programs = {name: correctness.program("pallas_gpu", case, False) for name, case in cases.items()}
    assert len(set(programs.values())) <= 8, "each takes seconds to compile"
    with jax.sharding.use_abstract_mesh(mesh_of()):
        for each in (programs[name] for name in ("D 80", "D 128, 8 heads, 4 of keys", "dropout")):
            text = correctness.outputs.trace(*each).lower(lowering_platforms=("cuda",)).as_text()
            assert step.kernel_calls(text) == 3, "forward, dq, and dk with dv"


def test_float32_itself_passes_the_case_that_is_not_causal():
    """The definition does not where queries come after all keys: scores of -100 are rounded to 1e-5."""
    case = next(each for each in correctness.cases(False) if each.name == "not causal" and each.dtype == "float32")
    results = correctness.outputs("reference", case.shape.causal, 0.0, None, False, correctness.make_inputs(case))
    rows = list(correctness.compare("reference", case, {("reference", case): results}, correctness.exact(case)))
    assert len(rows) == 4 and all(row["passed"] for row in rows)


def test_a_training_step_on_a_gpu_takes_the_kernel_by_itself_and_no_tf32():
    """XLA would round float32 to TF32 where a product does not say otherwise."""
    config = step.Setting(jax.devices()[0], step.MODEL, step.LENGTH).config()
    with jax.sharding.use_abstract_mesh(mesh_of()):
        text = step.lowered(config, lowering_platforms=("cuda",))
    assert step.kernel_calls(text) == 3 * step.MODEL.num_layers
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 10 and all("HIGHEST" in line for line in products)
    assert step.kernel_calls(step.lowered(config)) == 0, "on a CPU it takes none"


def test_a_step_and_its_evaluations_agree_with_the_definition():
    rows = list(step.rows(True))
    assert [row["what"].split()[0] for row in rows] == 2 * ["kernels", "loss", "grad_norm", "update", *4 * ["nats"]]
    assert all(row["passed"] for row in rows)
    assert max(row["error"] for row in rows if row.get("dtype") == "float32" and "error" in row) > 0


def test_a_step_with_another_attention_does_not_pass(monkeypatch):
    """As if the other device had computed another model."""
    setting = step.Setting(jax.devices()[0], dataclasses.replace(step.SMALL, attention="reference"), 32)
    state = step.make_state(setting)
    expected = dict(step.results(setting, state))
    other = setting._replace(model=dataclasses.replace(setting.model, bias_max=7.0))
    failed = [row["what"] for row in step.compare(other, expected, state) if not row["passed"]]
    assert failed == list(expected)


def test_rows_before_an_error_are_kept(tmp_path):
    def rows(interpret):
        yield {"case": "first", "error": np.float32(0.5), "passed": np.bool_(True)}
        yield {"case": "second", "error": float("nan"), "passed": False}
        raise ZeroDivisionError("out of luck")

    out = tmp_path / "parts" / "correctness.json"
    with pytest.raises(ZeroDivisionError):
        part.measure("correctness", rows, out, True)
    record = json.loads(out.read_text())
    assert record["rows"] == [
        {"case": "first", "error": 0.5, "passed": True},
        {"case": "second", "error": "nan", "passed": False},
    ]
    assert not record["finished"] and record["error"].endswith("ZeroDivisionError: out of luck\n")
    assert part.failures(record)[0] == "ZeroDivisionError: out of luck"
    assert {"versions", "commit", "command", "device", "machine", "date"} <= set(record)


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_a_part_by_itself_ends_with_1_where_a_row_did_not_pass(passed, status, tmp_path):
    arguments = ["--interpret", "--out", str(tmp_path / "part.json")]
    with pytest.raises(SystemExit) as ended:
        part.run_part("step", lambda interpret: iter([{"passed": passed}]), arguments)
    assert ended.value.code == status
    assert json.loads((tmp_path / "part.json").read_text())["finished"]


def test_a_part_that_times_nothing_does_without_autotuning(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    arguments = ["--interpret", "--out", str(tmp_path / "part.json")]
    for autotuned, expected in ((True, 0), (False, 1)):
        with pytest.raises(SystemExit):
            part.run_part("step", lambda interpret: iter([]), arguments, autotuned)
        assert os.environ["XLA_FLAGS"].split()[1:] == expected * ["--xla_gpu_autotune_level=0"]


def test_a_part_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="got the platform cpu, expected a GPU.*--interpret"):
        part.run_part("step", lambda interpret: iter([]), ["--out", str(tmp_path / "part.json")])


# A part in a few milliseconds: without JAX.
FAKE = """
import json, sys, time, subprocess
def say(finished, error=None):
    record = {"started": 0, "error": error, "finished": finished, "rows": [{"case": "first", "passed": True}]}
    open(sys.argv[-1], "w").write(json.dumps(record))
"""


def fake(tmp_path, code, seconds=30.0):
    """(what went wrong, the record) of a part with this code."""
    out = tmp_path / "part.json"
    problems = runner.run("fake", [sys.executable, "-c", FAKE + code], out, seconds)
    return problems, json.loads(out.read_text()) if out.exists() else None


def test_the_record_of_a_part_that_is_killed_is_whole_and_says_so(tmp_path):
    """What it started is killed too: it would hold the GPU."""
    child = f"import time; time.sleep(3); open({str(tmp_path / 'late')!r}, 'w')"
    start = time.monotonic()
    code = f"say(False); subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    problems, record = fake(tmp_path, code, 1.0)
    assert time.monotonic() - start < 20
    assert problems == ["fake: killed at its limit of 1 s"]
    assert record["error"] == "killed at its limit of 1 s" and record["rows"] == [{"case": "first", "passed": True}]
    time.sleep(max(0.0, 3.5 - (time.monotonic() - start)))
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("say(True)", []),
        ("say(False, 'Traceback\\nValueError: x'); sys.exit(1)", ["fake: ValueError: x"]),
        ("sys.exit(3)", ["fake: ended with status 3, and wrote nothing. What it printed says why."]),
        ("say(False); import os; os.abort()", ["fake: ended with status -6"]),
    ],
)
def test_what_went_wrong_in_a_part_is_one_line(code, problem, tmp_path):
    assert fake(tmp_path, code)[0] == problem


def test_a_part_that_fails_stops_no_other_and_the_report_is_made(tmp_path, monkeypatch, capfd):
    started = []

    limits = []

    def run_within(command, seconds):
        limits.append(seconds)
        module = command[2].removeprefix("benchmarks.gpu.")
        started.append(module)
        if module in ("correctness", "speed"):
            return "killed at its limit of 1 s"
        if module != "report":
            record = {"started": time.time(), "error": None, "finished": True, "rows": [{"passed": True}]}
            Path(command[-1]).parent.mkdir(parents=True, exist_ok=True)
            Path(command[-1]).write_text(json.dumps(record))
        return ""

    monkeypatch.setattr(runner, "run_within", run_within)
    assert runner.main(["--interpret", "--out", str(tmp_path)]) == 1
    assert started == ["correctness", "step", "speed", "training", "report"]
    printed = capfd.readouterr().out
    assert "speed: killed at its limit of 1 s, and wrote nothing" in printed and "2 problems" in printed
    started.clear()
    assert runner.main(["--interpret", "--only", "training,step", "--out", str(tmp_path)]) == 0
    assert started == ["step", "training", "report"]
    limits.clear()
    runner.main(["--interpret", "--only", "speed", "--times", "1.5", "--out", str(tmp_path)])
    assert limits == [1.5 * runner.PARTS["speed"] * runner.INTERPRETED_TIMES, runner.REPORT_SECONDS]


def correctness_of(*rows, **changes):
    """A record of the part `correctness`, of (kernel, case, passed), in bfloat16 but for the case "float32"."""
    rows = [dict(zip(("kernel", "case", "passed"), row, strict=True)) for row in rows]
    rows = [row | {"dtype": "float32" if row["case"] == "float32" else "bfloat16"} for row in rows]
    return {"rows": rows, "error": None, "finished": True, "interpret": True} | changes


@pytest.mark.parametrize(
    ("record", "reasons"),
    [
        (correctness_of(*((name, SERVED, True) for name in KERNELS)), {}),
        (
            correctness_of((KERNELS[0], "x", False), (KERNELS[0], SERVED, True), (KERNELS[1], SERVED, True)),
            {KERNELS[0]: "left out: 1 of 2 bfloat16 rows of its correctness did not pass"},
        ),
        (correctness_of((KERNELS[0], "float32", False), *((name, SERVED, True) for name in KERNELS)), {}),
        (
            correctness_of((KERNELS[0], SERVED, True), (KERNELS[1], "x", True), error="killed at its limit of 100 s"),
            {KERNELS[1]: "left out: its correctness did not finish (killed at its limit of 100 s)"},
        ),
        (
            correctness_of((KERNELS[0], SERVED, True), error="Traceback\nOSError: x\n", finished=False),
            {KERNELS[1]: "left out: its correctness did not finish (OSError: x)"},
        ),
    ],
    ids=["all passed", "one is wrong", "one is wrong in a type that is not timed", "one hangs", "one has no rows"],
)
def test_kernels_are_timed_that_passed_correctness(record, reasons, tmp_path, monkeypatch):
    """Also those of an earlier call; where there is no record of its kind, all."""
    commands = {}
    monkeypatch.setattr(runner, "run_within", lambda command, seconds: commands.update({command[2]: command}) or "")
    arguments = ["--interpret", "--out", str(tmp_path), "--only", "step,speed,training"]
    (tmp_path / "parts").mkdir()
    for written in (None, record, record | {"interpret": False}):
        if written is not None:
            (tmp_path / "parts" / "correctness.json").write_text(json.dumps(written))
        runner.main(arguments)
        expected = [f"--without={kernel}:{why}" for kernel, why in reasons.items()] if written is record else []
        for name in ("speed", "training"):
            assert [word for word in commands[f"benchmarks.gpu.{name}"] if "without" in word] == expected
        assert not any("without" in word for word in commands["benchmarks.gpu.step"])


def test_a_kernel_that_is_left_out_is_a_row_that_says_why(tmp_path, capsys):
    def rows(interpret, without):
        yield from ({"contender": name, "skipped": why} for name, why in our_kernels(interpret, without).items() if why)

    arguments = ["--interpret", "--without", f"{KERNELS[0]}: hangs", f"--without={KERNELS[1]}"]
    with pytest.raises(SystemExit) as ended:
        part.run_part("speed", rows, [*arguments, "--out", str(tmp_path / "speed.json")])
    assert ended.value.code == 0
    expected = {KERNELS[0]: "hangs", KERNELS[1]: "left out by --without"}
    record = json.loads((tmp_path / "speed.json").read_text())
    assert {row["contender"]: row["skipped"] for row in record["rows"]} == expected
    with pytest.raises(SystemExit):
        runner.main(["--without", "mosaic"])
    assert f"got 'mosaic', expected one of {', '.join(KERNELS)}" in capsys.readouterr().err


def test_the_parts_end_within_nine_minutes():
    assert sum(runner.PARTS.values()) + runner.REPORT_SECONDS <= 9 * 60


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        runner.main(["--only", "sped"])
    assert "got sped, expected some of correctness, step, speed, training" in capsys.readouterr().err


IMPORTS = f"""
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module("benchmarks.gpu." + name)
from benchmarks.gpu.__main__ import main
main(["--only", "step"])
"""


def test_nothing_is_imported_that_a_gpu_machine_lacks_and_one_without_a_gpu_is_refused():
    command = [sys.executable, "-c", IMPORTS, *runner.PARTS, "report"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert "make gpu: got the platform cpu, expected a GPU" in done.stderr, done.stderr
    assert done.returncode == 1 and not done.stdout
