"""The report: what it reads, what its tables say, and that the page stands alone."""

import csv
import dataclasses
import errno
import html.parser
import io
import json
import math
import re
import typing
import weakref

import matplotlib.image
import numpy as np
import pytest
from rich.cells import cell_len

from alibi_jax.config import EvaluateConfig
from alibi_jax.evaluate import axes, lines, plots, reader, report, statistics, tables
from alibi_jax.evaluate.lines import strict_json
from alibi_jax.evaluate.page import gain_html
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.records import FACTS, STATUSES, Record, fields_of, record_of, sliding
from alibi_jax.evaluate.results import write_records
from alibi_jax.evaluate.sweep import plan
from alibi_jax.evaluate.tables import warnings
from alibi_jax.positions.methods import POSITIONS
from alibi_jax.run import display

TITLE = "Train <short> & test long"
TRAIN_LENGTH, NUM_TOKENS = 16, 256


def fields(run, position, length, stride, scored_as=None, **changes):
    """A line of sweep.jsonl; without a perplexity it was not scored."""
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
    if scored_as is None:
        del facts["nats_file"]
        return {**facts, "status": "out of memory", "detail": "9 GiB & more", "seconds": 0.0, **changes}
    mean = math.log(scored_as)
    scores = {"mean_nats": mean, "perplexity": scored_as, "bits_per_byte": mean / 3, "standard_error": 0.01}
    return {**facts, "status": "ok", "detail": "", "seconds": 1.5, **scores, **changes}


def record(*facts, **changes):
    return record_of(fields(*facts, **changes))


def changed(record, **changes):
    """With other facts or statistics."""
    return record_of({**fields_of(record), **changes})


GAIN = {"total": 0.5, "far_context": -0.25, "early_tokens": 0.75, "far_context_error": 0.0625}


def run_records(run, position, perplexities, stride=None):
    pairs = zip((16, 32, 64), perplexities, strict=True)
    return [record(run, position, length, stride or length, value) for length, value in pairs]


def some_records():
    alibi = run_records("alibi", "alibi", (8.0, 7.5, 7.25))
    alibi[2] = changed(alibi[2], gain=GAIN)
    slid = [record("alibi", "alibi", length, length // 4, 7.0) for length in (16, 32, 64)]
    return [*alibi, *slid, record("alibi", "alibi", 16, 1, 6.9), *run_records("t5", "t5", (7.0, 7.75, None))]


def write_sweeps(folder, records, nats=True):
    """A folder of results for each run, with files of losses or, as after a copy, without; returns these folders."""
    for run in {one.run for one in records}:
        (folder / run / "nats").mkdir(parents=True)
        write_records(folder / run / "sweep.jsonl", [one for one in records if one.run == run])
    for one in records:
        if one.status == "ok" and nats:
            losses = one.statistics["mean_nats"] + np.linspace(0.5, -0.5, NUM_TOKENS)
            np.save(folder / one.run / one.nats_file, losses.astype(np.float32))
    return [folder / run for run in dict.fromkeys(one.run for one in records)]


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
    read = read_records(write_sweeps(tmp_path, some_records()))
    assert all(np.load(one.nats_file).shape == (NUM_TOKENS,) for one in read if one.status == "ok")
    assert [without_statistics(one) for one in read] == [without_statistics(one) for one in some_records()]


def without_statistics(record):
    return dataclasses.replace(record, nats_file=None, statistics={})


def test_statistics_are_those_of_the_losses_at_hand_else_those_on_the_line(tmp_path):
    records = [changed(one, standard_error=9.0) for one in some_records()[:2]]
    with_nats, without = (read_records(write_sweeps(tmp_path / str(nats), records, nats)) for nats in (True, False))
    for one, other in zip(with_nats, without, strict=True):
        losses = np.load(one.nats_file).astype(np.float64)
        assert one.statistics["mean_nats"] == losses.mean()
        assert one.statistics["perplexity"] == math.exp(losses.mean())
        assert one.statistics["bits_per_byte"] == pytest.approx(losses.sum() / math.log(2) / (3 * NUM_TOKENS))
        assert one.statistics["standard_error"] < 1 and other.statistics["standard_error"] == 9.0


def test_a_statistic_more_reaches_runs_scored_before(tmp_path, monkeypatch):
    """Where their losses are at hand; elsewhere the cell is empty."""
    for name, nats in (("with", True), ("without", False)):
        write_sweeps(tmp_path, [record(name, "alibi", 16, 16, 8.0)], nats)
    monkeypatch.setitem(statistics.STATISTICS, "median", lambda scored: float(np.median(scored.nats)))
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(read_records([tmp_path / "with", tmp_path / "without"])))))
    assert [row["median"] for row in rows] == [str(float(np.median(np.load(tmp_path / "with/nats/16-16.npy")))), ""]
    assert list(rows[0])[-1] == "median"
    assert rows[1]["perplexity"] == "8.0"


def test_each_array_is_loaded_once_and_few_are_held(tmp_path, monkeypatch):
    loaded, arrays, held, load = [], [], [], reader.load_nats

    def watched(path, one):
        held.append(sum(array() is not None for array in arrays))
        losses = load(path, one)
        loaded.append(path.name)
        arrays.append(weakref.ref(losses))
        return losses

    monkeypatch.setattr(reader, "load_nats", watched)
    pairs = plan(EvaluateConfig(lengths=(16, 32, 64, 128, 256)), TRAIN_LENGTH)
    folders = write_sweeps(tmp_path, [record("alibi", "alibi", *pair, 8.0) for pair in pairs])
    read = read_records(folders)
    assert [one.length for one in read if one.statistics.get("gain")] == [32, 64, 128, 256]
    assert loaded == [f"{length}-{stride}.npy" for length, stride in pairs]
    assert len(pairs) > 2 * reader.HELD >= 2 * max(held)


def test_a_folder_without_results_says_to_evaluate(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sweep\.jsonl.*evaluate wrote"):
        read_records([tmp_path])


@pytest.mark.parametrize("line", ['{"run": "alibi", "posi', '{"run": "alibi"}'])
def test_a_corrupt_line_is_named(tmp_path, line):
    (folder,) = write_sweeps(tmp_path, some_records()[:2])
    with (folder / "sweep.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=r"sweep\.jsonl, line 3"):
        read_records([folder])


def test_two_runs_under_one_label_are_refused(tmp_path):
    folders = [folder for name in "ab" for folder in write_sweeps(tmp_path / name, some_records())]
    with pytest.raises(ValueError, match="run 'alibi' at length 16, stride 16 again"):
        read_records(folders)


def test_csv_round_trip(tmp_path):
    report.write_report(some_records(), tmp_path, TITLE, "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text())))
    for row, one in zip(rows, some_records(), strict=True):
        gain = one.statistics.get("gain", {})
        flat = fields_of(one) | {f"gain_{name}": value for name, value in gain.items()}
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
    records = read_records(write_sweeps(tmp_path, some_records()))
    assert "Loss by position" in page_of(records, tmp_path / "with").text
    assert "Loss by position" not in page_of(some_records(), tmp_path / "without").text


def test_one_run_without_sliding_or_gains(tmp_path):
    page = page_of(run_records("alibi", "alibi", (8.0, 7.5, 7.25)), tmp_path)
    assert len(page.tables) == 1 and "Not measured" in page.text
    assert "<b>8.000" not in (tmp_path / "report.html").read_text()  # alone is not best


def test_runs_scored_on_different_text_carry_a_warning(tmp_path):
    records = some_records()
    assert "not scored on the same tokens" not in page_of(records, tmp_path).text
    records[-1] = changed(records[-1], corpus_fingerprint="beef")
    assert "not scored on the same tokens" in page_of(records, tmp_path).text
    assert len(warnings(records)) == 1


def test_many_unknown_words_carry_a_warning(tmp_path):
    records = some_records()
    for unknown, warned in ((0, False), (NUM_TOKENS // 20, False), (NUM_TOKENS // 8, True)):
        records[-1] = changed(records[-1], run="a <run>", unknown_words=unknown)
        page = page_of(records, tmp_path).text
        assert ("Many words scored are outside the vocabulary (a <run> 12.5%)" in page) == warned
    assert '"unknown_words": 32' in page


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


@pytest.mark.versions
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
    assert sliding([*whole, fine]) == ("", [])
    assert sliding([*whole, fine, *fixed]) == ("8", fixed)
    assert sliding(some_records())[0] == "L/4"


def test_every_position_method_has_its_own_colour_and_marker():
    assert set(axes.COLOURS) == set(axes.MARKERS) == set(POSITIONS)
    names = [*axes.FIXED_COLOURS, *(f"method {i}" for i in range(20))]
    colours = axes.one_for_each(names, axes.FIXED_COLOURS, axes.FURTHER_COLOURS)
    markers = axes.one_for_each(names, axes.FIXED_MARKERS, axes.FURTHER_MARKERS)
    assert len({(colours[name], markers[name]) for name in names}) == len(names)
    assert len({colours[name] for name in names[:10]}) == 10
    assert set(plots.FAILURE_MARKERS) == {*STATUSES, plots.INFINITE} - {"ok"}


@pytest.mark.parametrize("low, high", [(3.1, 3.6), (5.0, 7.5), (5.0, 300.0), (17.0, 19.0), (2.0, 1e7)])
def test_ticks_are_several_and_inside(low, high):
    ticks = axes.readable_ticks(low, high)
    assert 2 <= len(ticks) <= 12 and all(low <= tick <= high for tick in ticks)


def test_labels_are_kept_apart_in_order_and_inside():
    placed = axes.spread([0.02, 0.01, 0.6, 0.99, 0.99], 0.1)
    assert np.all(np.diff(np.sort(placed)) > 0.099) and min(placed) >= 0 and max(placed) <= 1
    assert np.argsort(placed).tolist() == [1, 0, 2, 3, 4] and placed[2] == pytest.approx(0.6)


def test_log_bins_average_every_position_once():
    losses = np.random.default_rng(0).random(100)
    centres, means = plots.log_bins(losses)
    assert np.all(np.diff(centres) > 0) and centres[0] == 1 and centres[-1] < 100
    np.testing.assert_allclose(plots.log_bins(np.full(100, 3.0))[1], 3.0)
    assert means[0] == losses[0]


LABELS = [
    "lr$1_$x",
    r"$\\frac{1}{$ \\alpha",
    "a|b",
    "line\none\r\n| --- |",
    "\x1b[31mred\x1b]0;title\x07 \x9b2J\0",
    "a\u202eb\u2066c\u2028d",
    "=1+1",
    "@SUM(A1)",
    "-1",
    "ünï ☃".encode().decode("ascii", "surrogateescape"),
    "half \ud800",
    "模型 🙂 مرحبا",
    "long " * 2_000,
    "<script>alert(1)</script> &amp; '\"",
    "{run} ${title} $title %s \\",
    'a, "b"; c',
    "[red]markup[/red] :smile:",
    " spaces  ",
    "-s0",
    "_x_ *y* `z` [l](u)",
]


def test_text_from_users_is_text_everywhere(tmp_path):
    """What is shown of each label is printable, and is one cell, one line, one text."""
    records = [one for label in LABELS for one in run_records(label, "alibi", (8.0, 7.5, None))]
    records = [changed(one, detail="=detail | with\nlines \x1b[31m") for one in records]
    title = "$title \x1b[31m <b> \udcff"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sweep.jsonl").write_text("".join(json.dumps(fields_of(one)) + "\n" for one in records))
    read = read_records([tmp_path / "in"])
    report.write_report(read, tmp_path / "out", title, "main.py report '$x\n\x1b'")
    shown = [display.plain(label) for label in LABELS]
    texts = {
        name: (tmp_path / "out" / name).read_bytes().decode("utf-8")
        for name in ("sweep.csv", "table.md", "report.html")
    }
    assert all(line.isprintable() for text in texts.values() for line in text.split("\n"))
    rows = list(csv.reader(io.StringIO(texts["sweep.csv"])))
    assert [row[0].removeprefix("'") for row in rows[1::3]] == shown
    assert not any(cell.lstrip()[:1] in set("=+@") or cell.startswith("-1") for row in rows for cell in row)
    lines = texts["table.md"].splitlines()
    assert len(lines) == 2 + len(LABELS)
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 5 for line in lines)
    page = Page(texts["report.html"])
    assert page.open == [] and "<script" not in texts["report.html"]
    assert [row[0] for row in page.tables[0][1:]] == shown
    assert display.plain(title) in page.text and r"main.py report '$x\n\x1b'" in page.text
    table = tables.summary_table(read).splitlines()
    assert len(table) == 1 + len(LABELS) and all(line.isprintable() and cell_len(line) <= 100 for line in table)
    assert len({cell_len(line) for line in table}) == 1
    drawn = [text for panel in plots.extrapolation_figure(read).axes for text in panel.texts]
    assert len(drawn) == len(LABELS) and not any(text.get_parse_math() or text.get_usetex() for text in drawn)
    assert all(text.get_text().isprintable() and len(text.get_text()) <= display.LONGEST + 5 for text in drawn)


def test_infinite_and_huge_perplexities_are_short_and_drawn_where_they_can_be(tmp_path):
    broken = [record("broken", "rotary", 16, 16, 9.0), record("broken", "rotary", 32, 32, 1e300)]
    broken += [record("broken", "rotary", 64, 64, 1.0, perplexity=math.inf, mean_nats=33_798.0)]
    gain = {**GAIN, "total": -1e38, "early_tokens": -0.0}
    worse = run_records("worse", "none", (1.0, 1.0, 1.0))
    worse = [changed(one, perplexity=math.inf, mean_nats=1e38, gain=gain) for one in worse]
    read = read_records(write_sweeps(tmp_path, [*some_records(), *broken, *worse], nats=False))
    assert [one.statistics["perplexity"] for one in read if one.run == "worse"] == [math.inf] * 3
    page = page_of(read, tmp_path / "out")
    assert page.tables[0][3] == ["broken", "9.000 ± 0.090", "1e+300 ± 1e+298", "inf", "16"]
    assert page.tables[0][4][1:4] == ["inf"] * 3
    assert ["worse", "64", "-1e+38", "-0.2500 ± 0.0625", "+0.0000", "hurts"] in page.tables[2]
    assert [line.split() for line in tables.summary_table(read).splitlines()[3:]] == [
        ["broken", "9.000", "1e+300", "inf"],
        ["worse", "inf", "inf", "inf"],
    ]
    assert "| broken | 9.000 | 1e+300 | inf |" in (tmp_path / "out" / "table.md").read_text()
    assert ",inf," in (tmp_path / "out" / "sweep.csv").read_text()
    whole, _ = plots.extrapolation_figure(read).axes
    assert len(whole.get_yticks()) <= 12 and whole.get_ylim()[1] < math.inf
    assert ([64], [1e300]) in [(list(line.get_xdata()), list(line.get_ydata())) for line in whole.lines]
    assert "perplexity inf" in [text.get_text() for text in whole.get_legend().get_texts()]
    assert axes.png_bytes(plots.extrapolation_figure(worse)).startswith(b"\x89PNG")  # where there is nothing to draw
    edge = [record("edge", "alibi", 16, 16, 1.7e308), record("edge", "alibi", 32, 32, 1.0)]
    assert axes.png_bytes(plots.extrapolation_figure(edge)).startswith(b"\x89PNG")


def test_a_length_far_past_the_text_is_told_from_one_that_was_scored(tmp_path):
    """Also where an older version recorded it as scored."""
    older = record("alibi", "alibi", 512, 512, 7.0)
    absurd = record("alibi", "alibi", 2**30, 2**30, status="refused", detail="too long")
    records = [*run_records("alibi", "alibi", (8.0, 7.5, 7.25)), older, absurd]
    read = read_records(write_sweeps(tmp_path, records, nats=False))
    page = page_of(read, tmp_path / "out")
    assert page.tables[0][1][-3:] == ["refused", "refused", "64 (4x)"]
    panel = plots.extrapolation_figure(read).axes[0]
    assert panel.get_xlim()[1] < 1024  # the first that was refused, not the absurd one
    assert ([512], [7.25]) in [(list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines]


def test_results_of_sliding_windows_alone_are_reported(tmp_path):
    slid = run_records("alibi", "alibi", (7.0, 7.1, 7.2), stride=8)
    page = page_of(slid, tmp_path)
    assert "Perplexity, sliding window, stride 8" in page.text and "Perplexity, non-overlapping" not in page.text
    assert page.tables[0][1][:2] == ["alibi", "7.000 ± 0.070"]
    assert tables.summary_table(slid).splitlines()[0] == "sliding window, stride 8"
    assert "| alibi | 7.000 | 7.100 | 7.200 |" in (tmp_path / "table.md").read_text()
    both = [record("alibi", "alibi", 8, 8, 9.0), *slid]  # stride 8 is non-overlapping at length 8
    assert [block.splitlines()[0] for block in tables.summary_table(both).split("\n\n")] == [
        "non-overlapping windows",
        "sliding window, stride 8",
    ]
    with pytest.raises(ValueError, match=r"none scored \(out of memory: 9 GiB & more\)"):
        report.write_report(run_records("a", "alibi", (None, None, None), stride=8), tmp_path, TITLE, "")


def test_a_damaged_array_is_named(tmp_path):
    (folder,) = write_sweeps(tmp_path, run_records("alibi", "alibi", (8.0, 7.5, 7.25)))
    path = folder / "nats" / "64-64.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"64-64\.npy: got no array .*Evaluate again with length 64 and stride 64"):
        report.write_report(read_records([folder]), tmp_path / "out", TITLE, "")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    records = run_records("alibi", "alibi", (8.0, 7.5, 7.25))
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="out: got .*cannot be written.*another --out"):
            report.write_report(records, out, TITLE, "")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report, "write_atomically", full)
    monkeypatch.setattr(plots, "extrapolation_figure", lambda _: plots.Figure())
    with pytest.raises(OSError, match=f"could not read or write in {tmp_path}: No space left.*--out"):
        report.write_report(records, tmp_path, TITLE, "")


BAD_LINES = {
    "no JSON": '{"run": ',
    "null": "null",
    "list": "[1]",
    "number": "7",
    "nothing in it": "{}",
    "nested": "[" * 100_000,
    "huge integer": '{"length": ' + "9" * 5_000 + "}",
}
BAD_FIELDS = {
    "run null": {"run": None},
    "position unknown": {"position": "polar"},
    "position list": {"position": []},
    "length text": {"length": "16"},
    "length true": {"length": True},
    "length zero": {"length": 0},
    "length half": {"length": 16.0},
    "length absurd": {"length": 2**31, "stride": 2**31},
    "stride past length": {"stride": 17},
    "train_length null": {"train_length": None},
    "status unknown": {"status": "fine"},
    "status list": {"status": ["ok"]},
    "perplexity NaN": {"perplexity": math.nan},
    "perplexity null": {"perplexity": None},
    "perplexity of another loss": {"perplexity": 1.0},
    "loss infinite": {"mean_nats": math.inf, "perplexity": math.inf},
    "loss huge": {"mean_nats": 10**400},
    "error text": {"standard_error": "0.1"},
    "array elsewhere": {"nats_file": "../../secret.npy"},
    "gain list": {"gain": [1]},
    "gain in part": {"gain": {"total": 1.0}},
    "config text": {"config": "x"},
    "section null": {"config": {"model": None}},
    "seconds text": {"seconds": "1"},
}


@pytest.mark.parametrize("case", [*BAD_LINES, *BAD_FIELDS])
def test_a_line_that_is_no_record_is_named(tmp_path, case):
    good = fields("alibi", "alibi", 16, 16, 8.0)
    bad = BAD_LINES[case] if case in BAD_LINES else json.dumps(good | BAD_FIELDS[case])
    (tmp_path / "sweep.jsonl").write_text(strict_json(fields("a", "alibi", 16, 16, 8.0)) + "\n\n" + bad + "\n")
    with pytest.raises(ValueError, match=r"sweep\.jsonl, line 3: got .*Evaluate again"):
        read_records([tmp_path])


@pytest.mark.parametrize("changes", [{"nats_file": "nats/16-16.npy"}, {"mean_nats": None}])
def test_what_a_line_says_beside_a_failure_is_not_used(tmp_path, changes):
    write_sweeps(tmp_path, [record("alibi", "alibi", 16, 16, 8.0)])
    line = strict_json(fields("alibi", "alibi", 16, 8) | changes)
    (tmp_path / "alibi" / "sweep.jsonl").write_text(line + "\n")
    (failed,) = read_records([tmp_path / "alibi"])
    assert failed.status == "out of memory" and failed.nats_file is None


def test_bytes_that_are_no_text_are_named(tmp_path):
    for content in (bytes(range(256)), b"\xff\xfe" + '{"run": "a"}'.encode("utf-16-le"), b"\0" * 100):
        (tmp_path / "sweep.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match=r"sweep\.jsonl, line 1: got what is not JSON"):
            read_records([tmp_path])


def test_lines_ended_in_another_way_are_read(tmp_path):
    line = strict_json(fields("alibi", "alibi", 16, 16, 8.0))
    (tmp_path / "sweep.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\r\n")
    assert len(read_records([tmp_path])) == 1


def test_what_a_line_must_hold_are_the_facts_that_a_record_needs():
    needed = {field.name for field in dataclasses.fields(Record) if field.default is dataclasses.MISSING}
    assert set(lines.ALWAYS) == needed - {"statistics"}
    assert {*lines.WHERE_KNOWN, *lines.WHERE_SCORED} <= {*FACTS, *statistics.STATISTICS}
