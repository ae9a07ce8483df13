"""The report of the GPU benchmark, of records with made-up numbers that stay in this file."""

import json
import sys

import pytest

from alibi_jax.model import flops
from benchmarks.gpu import part, readme, report, speed, tables, training
from benchmarks.gpu.kernels import SERVED

CARD = "NVIDIA H100 80GB HBM3"
OURS, FLEX, CUDNN = "pallas_gpu", "FlexAttention", "cuDNN, no bias"


def made_up(name, rows, **changes):
    """A part's record as `part.measure` writes it."""
    facts = {"part": name, "command": f"python -m benchmarks.gpu.{name}", "commit": "abc", "interpret": False}
    facts |= {"versions": {"jax": "0.11.2", "torch": "2.11.0"}, "machine": "none", "date": "2026-12-01T10:00:00+00:00"}
    facts |= {"device": {"kind": CARD, "platform": "gpu", "capability": "9.0", "driver": "1"}, "started": 1.0}
    return facts | {"seconds": 9.0, "finished": True, "error": None, "rows": rows} | changes


def made_up_speed():
    """Rows of all settings; at 128k tokens FlexAttention fails."""
    rows = [{"contender": "tokamax", "skipped": "the package tokamax is not installed"}]
    rates = {OURS: 300.0, FLEX: 400.0, CUDNN: 600.0}
    for length, width in speed.ORDER:
        for direction in speed.PRODUCTS:
            for kind, visited in (("random", 8192 / (8192 + length)), ("trained", 12_000 / (12_000 + length))):
                setting = speed.Setting(direction, length, width, 16, kind)
                for name, rate in rates.items():
                    fraction = visited if name == OURS else 1.0
                    seconds = speed.PRODUCTS[direction] * 16 * width * length**2 * fraction / rate / 1e12
                    failed = name == FLEX and length == 131_072
                    facts = {"contender": name, **setting._asdict(), "visited": fraction}
                    facts |= {"passed": not failed, "reason": "RuntimeError: out of memory" if failed else ""}
                    rows.append(facts | speed.speeds(setting, fraction, None if failed else [seconds]))
    return rows


def made_up_correctness():
    row = {"case": "D 64", "kernel": OURS, "dtype": "bfloat16", "against": "float64", "tolerance": 0.02}
    rows = [row | {"direction": name, "error": e, "passed": True} for name, e in (("out", 0.004), ("dk", 0.01))]
    failed = {"case": "D 80", "kernel": OURS, "dtype": "bfloat16", "passed": False, "reason": "ValueError: no"}
    facts = {"served": 9, "of": 10, "reason": "NotImplementedError: float32", "passed": True}
    last = {"case": SERVED, "kernel": OURS, "dtype": "all"} | facts
    return [*rows, row | {"direction": "dv", "error": "nan", "passed": False}, failed, last]


def made_up_training():
    config = {p: training.make_config(training.MODEL, p, OURS, 1024, 32_768) for p in ("none", "alibi")}
    row = {"attention": OURS, "length": 1024, "batch": 32, "parameters": 110_000_000, "loss": 10.0, "passed": True}
    seconds = {"none": 32_768 / 4e5, "alibi": 32_768 / 3.8e5}
    return [
        row | {"position": p, "reason": ""} | training.speeds(config[p], seconds[p], seconds["none"]) for p in config
    ]


def write_parts(folder, *records):
    for record in records:
        (folder / "parts" / f"{record['part']}.json").write_text(json.dumps(record))


@pytest.fixture(autouse=True)
def peak_of_the_card(monkeypatch):
    """Rates were measured on CARD, which is not the device of the tests."""
    for module in (speed, training):
        monkeypatch.setattr(module, "peak_flops", lambda _: flops.peak_flops(CARD))


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    """(folder, what the report printed) of a card's record without the part `step`, its training cut."""
    (tmp_path / "parts").mkdir()
    cut = made_up("training", made_up_training(), finished=False, error="killed at its limit of 110 s")
    several = made_up("speed", made_up_speed()), made_up("correctness", made_up_correctness(), started=0.0), cut
    write_parts(tmp_path, *several)
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path)])
    report.main()
    return tmp_path, capsys.readouterr().out


def test_report_writes_record_tables_and_figure_of_a_card_and_day(written):
    folder, _ = written
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {f"nvidia-h100-80gb-hbm3-2026-12-01{suffix}" for suffix in (".json", ".md", ".png")}
    record = json.loads(next(folder.glob("*.json")).read_text())
    assert list(record) == ["correctness", "speed", "training"]


def test_page_says_what_is_missing_what_was_cut_and_what_failed(written):
    text = next(written[0].glob("*.md")).read_text()
    assert "| step | \u2013 | \u2013 | not run | \u2013 | \u2013 |" in text
    assert "killed at its limit of 110 s" in text
    assert "- tokamax: the package tokamax is not installed" in text
    assert "- FlexAttention, forward, 64, random, 131072: RuntimeError: out of memory" in text
    assert "- pallas_gpu, bfloat16, D 64, dv: error nan of 0.02" in text
    assert "- pallas_gpu, bfloat16, D 80: ValueError: no" in text
    assert "| 2 of 5 rows did not pass |" in text
    assert "- pallas_gpu served 9 of 10 cases; the last that it refused: NotImplementedError: float32\n" in text


def test_page_has_the_worst_error_over_its_tolerance_and_ratios_to_ours(written):
    text = next(written[0].glob("*.md")).read_text()
    assert "| pallas_gpu | bfloat16 | 4 | 2 | 0.50 | D 64, dk: 0.01 of 0.02 |" in text
    line = next(x for x in text.splitlines() if x.startswith("| forward+backward | 64 | random | 8,192 | 0.500 |"))
    assert "(1.50x) |" in line and line.endswith("(1.00x) |")
    line = next(x for x in reversed(text.splitlines()) if x.startswith("| forward | 128 | trained | 131,072 |"))
    assert line.endswith("| 3,577 (30%) | \u2013 | 600 (61%) |")
    mfu = 4e5 * flops.train_flops_per_token(training.MODEL, 1024) / 989e12
    assert f"| 1,024 | pallas_gpu | 400,000 | {mfu:.1%} | 380,000 |" in text and "| 0.950 |" in text


def test_without_a_kernel_of_ours_there_are_no_ratios():
    peers = [row for row in made_up_speed() if row["contender"] in (FLEX, CUDNN)]
    assert "x)" not in tables.speed_table(peers, tables.milliseconds)
    assert readme.correctness_line({}) == readme.training_line({}) == readme.speed_table({}) == ""


def test_readme_section_is_short_and_made_from_the_record(written):
    folder, printed = written
    text = printed.partition("\n\n")[2]
    assert (
        text.strip()
        == readme.section(report.join(folder / "parts"), folder / "nvidia-h100-80gb-hbm3-2026-12-01").strip()
    )
    assert f"`make gpu` on one {CARD}, 2026-12-01, jax 0.11.2" in text
    assert "2 of 4 comparisons" in text and "0.95 at 1,024 tokens" in text and "step: not run" in text
    assert text.count("\n| ") == 8 and "forward" in text


def test_readme_says_that_no_gpu_has_run_it_where_none_has():
    interpreted = {"speed": made_up("speed", made_up_speed(), interpret=True)}
    assert readme.section({}, part.ROOT) == readme.section(interpreted, part.ROOT) == f"{readme.NOT_RUN}\n"
    assert "no results of a GPU" in tables.page("x", interpreted, None)


def test_parts_of_another_card_are_left_out_and_no_part_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    other = made_up("speed", [], device={"kind": "NVIDIA A100", "platform": "gpu"}, started=0.0)
    write_parts(tmp_path, other, made_up("training", []))
    assert list(report.join(tmp_path / "parts")) == ["training"]
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match=r"got no results, expected .*make gpu"):
        report.main()
