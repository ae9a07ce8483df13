"""The report: what it reads, what its tables say, and that the page stands alone."""

import csv
import html.parser
import io
import math
import typing

import matplotlib.image
import numpy as np
import pytest

from alibi_jax.config import PositionName
from alibi_jax.evaluate import plots, report, tables
from alibi_jax.evaluate.page import gain_html
from alibi_jax.evaluate.records import write_records

TITLE = "Train <short> & test long"
TRAIN_LENGTH, NUM_TOKENS = 16, 256


def record(run, position, length, stride, perplexity=None, **changes):
    facts = {
        "run": run,
        "position": position,
        "train_length": TRAIN_LENGTH,
        "length": length,
        "stride": stride,
        "split": "valid",
        "num_tokens": NUM_TOKENS,
        "num_bytes": 3 * NUM_TOKENS,
        "nats_file": f"nats/{length}-{stride}.npy",
        "config": {"train": {"seed": 0}},
        "versions": {"jax": "0"},
        "corpus_fingerprint": "f00d",
        "checkpoint_step": 7,
        "parameters": 1234,
        "machine": "a <fast> machine",
        "date": "2026-01-01",
    }
    if perplexity is None:
        del facts["nats_file"]
        return {**facts, "status": "out of memory", "detail": "9 GiB & more", "seconds": 0.0, **changes}
    mean = math.log(perplexity)
    scores = {"mean_nats": mean, "perplexity": perplexity, "bits_per_byte": mean / 3, "standard_error": 0.01}
    return {**facts, "status": "ok", "detail": "", "seconds": 1.5, **scores, **changes}


GAIN = {"total": 0.5, "far_context": -0.25, "early_tokens": 0.75, "far_context_error": 0.0625}


def run_records(run, position, perplexities, stride=None):
    pairs = zip((16, 32, 64), perplexities, strict=True)
    return [record(run, position, length, stride or length, value) for length, value in pairs]


def some_records():
    alibi = run_records("alibi", "alibi", (8.0, 7.5, 7.25))
    alibi[2]["gain"] = GAIN
    slid = [record("alibi", "alibi", length, length // 4, 7.0) for length in (16, 32, 64)]
    return [*alibi, *slid, record("alibi", "alibi", 16, 1, 6.9), *run_records("t5", "t5", (7.0, 7.75, None))]


def write_sweep(folder, records):
    (folder / "nats").mkdir(parents=True)
    write_records(folder / "sweep.jsonl", records)
    for one in records:
        if one["status"] == "ok":
            nats = one["mean_nats"] + np.linspace(0.5, -0.5, NUM_TOKENS)
            np.save(folder / one["nats_file"], nats.astype(np.float32))
    return folder


class Page(html.parser.HTMLParser):
    """Tags that stay open, the text, and each table as rows of cells."""

    VOID: typing.ClassVar = {"meta", "img", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.tables, self.images = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return "".join(self.words)


def page_of(records, folder):
    return Page(report.write_report(records, folder, TITLE, "make quickstart").read_text(encoding="utf-8"))


def test_records_come_back_as_written_with_their_nats_found(tmp_path):
    write_sweep(tmp_path / "a", some_records())
    read = report.read_records([tmp_path / "a"])
    assert all(np.load(one["nats_file"]).shape == (NUM_TOKENS,) for one in read if one["status"] == "ok")
    assert [{**one, "nats_file": ""} for one in read] == [{**one, "nats_file": ""} for one in some_records()]


def test_a_folder_without_results_says_to_evaluate(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sweep\.jsonl.*Run evaluate"):
        report.read_records([tmp_path])


@pytest.mark.parametrize("line", ['{"run": "alibi", "posi', '{"run": "alibi"}'])
def test_a_corrupt_line_is_named(tmp_path, line):
    folder = write_sweep(tmp_path / "a", some_records()[:2])
    with (folder / "sweep.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=r"sweep\.jsonl, line 3"):
        report.read_records([folder])


def test_two_runs_under_one_label_are_refused(tmp_path):
    folders = [write_sweep(tmp_path / name, some_records()) for name in "ab"]
    with pytest.raises(ValueError, match="run 'alibi' at length 16, stride 16 again"):
        report.read_records(folders)


def test_csv_round_trip(tmp_path):
    report.write_report(some_records(), tmp_path, TITLE, "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text())))
    for row, one in zip(rows, some_records(), strict=True):
        flat = one | {f"gain_{name}": value for name, value in one.get("gain", {}).items()}
        for name, text in row.items():
            value = flat.get(name)
            assert text == "" if value is None else type(value)(text) == value


def test_summary_table_says_what_failed_and_fits_a_terminal():
    lines = tables.summary_table(some_records()).splitlines()
    assert lines[0].split() == ["run", "16", "(1x)", "32", "(2x)", "64", "(4x)"]
    assert lines[1].split() == ["alibi", "8.000", "7.500", "7.250"]
    assert lines[2].split() == ["t5", "7.000", "7.750", "out", "of", "memory"]
    many = [record("a-run-with-a-name", "alibi", 16 * k, 16 * k, 5.0 + k) for k in range(1, 30)]
    wide = tables.summary_table(many)
    assert max(map(len, wide.splitlines())) <= 100
    assert all(f"{5.0 + k:.3f}" in wide or f"{5.0 + k:.2f}" in wide for k in range(1, 30))


def test_markdown_table_marks_the_best_of_each_column():
    assert tables.markdown_table(some_records()).splitlines() == [
        "| run | 16 (1x) | 32 (2x) | 64 (4x) |",
        "| --- | ---: | ---: | ---: |",
        "| alibi | 8.000 | **7.500** | **7.250** |",
        "| t5 | **7.000** | 7.750 | out of memory |",
    ]


def test_the_page_stands_alone_and_escapes_what_it_is_given(tmp_path):
    page = page_of(some_records(), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.open == []
    assert "http://" not in text and "https://" not in text and "<link" not in text and "<script" not in text
    assert "Train &lt;short&gt; &amp; test long" in text and "<short>" not in text
    assert "a &lt;fast&gt; machine" in text and "9 GiB &amp; more" in text
    assert page.images and all(image.startswith("data:image/png;base64,") for image in page.images)
    assert "make quickstart" in page.text and "f00d" in page.text


def test_the_page_s_tables(tmp_path):
    whole, slid, gains = page_of(some_records(), tmp_path).tables
    assert whole[0] == ["run", "16 (1x)", "32 (2x)", "64 (4x)", "useful up to"]
    assert whole[1] == ["alibi", "8.000 ± 0.080", "7.500 ± 0.075", "7.250 ± 0.072", "64 (4x)"]
    assert whole[2] == ["t5", "7.000 ± 0.070", "7.750 ± 0.077", "out of memory", "16"]
    assert slid[1][:4] == ["alibi", *["7.000 ± 0.070"] * 3]
    assert gains[1] == ["alibi", "64", "+0.5000", "-0.2500 ± 0.0625", "+0.7500", "hurts"]


@pytest.mark.parametrize("far, verdict", [(0.2, "helps"), (-0.2, "hurts"), (0.1, "no clear effect")])
def test_the_verdict_needs_two_standard_errors(far, verdict):
    one = record("alibi", "alibi", 64, 64, 7.0, gain={**GAIN, "far_context": far})
    assert verdict in gain_html([one])


def test_the_page_has_loss_by_position_where_nats_are_at_hand(tmp_path):
    records = report.read_records([write_sweep(tmp_path / "a", some_records())])
    assert "Loss by position" in page_of(records, tmp_path / "with").text
    assert "Loss by position" not in page_of(some_records(), tmp_path / "without").text


def test_one_run_without_sliding_or_gains(tmp_path):
    page = page_of(run_records("alibi", "alibi", (8.0, 7.5, 7.25)), tmp_path)
    assert len(page.tables) == 1 and "Not measured" in page.text
    assert "<b>8.000" not in (tmp_path / "report.html").read_text()  # alone is not best


def test_runs_scored_on_different_text_carry_a_warning(tmp_path):
    records = some_records()
    assert "not scored on the same tokens" not in page_of(records, tmp_path).text
    records[-1]["corpus_fingerprint"] = "beef"
    assert "not scored on the same tokens" in page_of(records, tmp_path).text


def test_what_cannot_be_reported_is_refused_before_anything_is_written(tmp_path):
    other = record("alibi", "alibi", 16, 16, 8.0, split="test")
    for records, message in [
        ([], "splits"),
        ([*some_records(), other], "splits"),
        (some_records()[-1:], "none scored"),
    ]:
        with pytest.raises(ValueError, match=message):
            report.write_report(records, tmp_path / "out", TITLE, "")
    assert not (tmp_path / "out").exists()


def test_the_folder_holds_the_three_files_and_the_figure_s_size(tmp_path):
    seeds = [one for seed in range(2) for one in run_records(f"rotary-s{seed}", "rotary", (7.0 + seed, 9.0, 30.0))]
    report.write_report([*some_records(), *seeds], tmp_path, TITLE, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "extrapolation.png",
        "report.html",
        "sweep.csv",
        "table.md",
    ]
    assert matplotlib.image.imread(tmp_path / "extrapolation.png").shape[:2] == (700, 1600)


def test_a_panel_has_each_line_s_points_and_one_label_for_its_seeds():
    seeds = [one for seed in range(2) for one in run_records(f"rotary-s{seed}", "rotary", (7.0 + seed, 9.0, 30.0))]
    whole, slid = plots.extrapolation_figure([*some_records(), *seeds]).axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in whole.lines]
    for values in ([8.0, 7.5, 7.25], [7.0, 9.0, 30.0], [8.0, 9.0, 30.0]):
        assert ([16, 32, 64], values) in drawn
    assert ([16, 32], [7.0, 7.75]) in drawn and ([64], [7.75]) in drawn  # and the mark where T5 ran out of memory
    assert sorted(text.get_text() for text in whole.texts) == ["ALiBi", "T5 bias ≤ 32", "rotary"]
    assert [text.get_text() for text in whole.get_legend().get_texts()] == ["out of memory"]
    assert whole.get_ylim() == slid.get_ylim() and slid.get_title(loc="left") == "Sliding window, stride L/4"


def test_the_sliding_protocol_drawn_is_the_one_evaluated_most():
    whole = run_records("alibi", "alibi", (8.0, 7.5, 7.25))
    fine = record("alibi", "alibi", 16, 1, 6.9)
    fixed = run_records("alibi", "alibi", (7.0, 7.0, 7.0), stride=8)
    assert plots.sliding([*whole, fine]) == ("", [])
    assert plots.sliding([*whole, fine, *fixed]) == ("8", fixed)
    assert plots.sliding(some_records())[0] == "L/4"


def test_every_position_method_has_its_own_colour_and_marker():
    for table in (plots.COLOURS, plots.MARKERS):
        assert set(table) == set(typing.get_args(PositionName)) and len(set(table.values())) == len(table)


@pytest.mark.parametrize("low, high", [(3.1, 3.6), (5.0, 7.5), (5.0, 300.0), (17.0, 19.0), (2.0, 1e7)])
def test_ticks_are_several_and_inside(low, high):
    ticks = plots.readable_ticks(low, high)
    assert 2 <= len(ticks) <= 12 and all(low <= tick <= high for tick in ticks)


def test_labels_are_kept_apart_in_order_and_inside():
    placed = plots.spread([0.02, 0.01, 0.6, 0.99, 0.99], 0.1)
    assert np.all(np.diff(np.sort(placed)) > 0.099) and min(placed) >= 0 and max(placed) <= 1
    assert np.argsort(placed).tolist() == [1, 0, 2, 3, 4] and placed[2] == pytest.approx(0.6)


def test_log_bins_average_every_position_once():
    losses = np.random.default_rng(0).random(100)
    centres, means = plots.log_bins(losses)
    assert np.all(np.diff(centres) > 0) and centres[0] == 1 and centres[-1] < 100
    np.testing.assert_allclose(plots.log_bins(np.full(100, 3.0))[1], 3.0)
    assert means[0] == losses[0]
