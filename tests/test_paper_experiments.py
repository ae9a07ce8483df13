"""The paper's questions, each script on a model small enough for a test; and what stands beside the paper's figures."""

import dataclasses
import json
import math
import re
import shutil
import time
from pathlib import Path

import jax
import pytest

from alibi_jax.config import load_config, replace, to_json
from alibi_jax.errors import ConfigError, Interrupted, Refused, ResultsError
from alibi_jax.evaluate.records import record_of
from alibi_jax.run.signals import stop_requested
from experiments import cost, domains, early_tokens, extrapolation, grid, paper, processes, slopes
from flags import QUICK
from runs import tiny_config


@pytest.fixture
def tiny(tiny_data, tmp_path, monkeypatch):
    """A recipe of seconds, and its results' folder."""
    monkeypatch.setattr("sys.orig_argv", ["/bin/python3", "-m", "experiments.some", "--out", "out"])
    monkeypatch.setattr("sys.argv", ["/x/experiments/some.py", "--out", "out"])
    config = replace(
        tiny_config(tiny_data, batch_size=16),
        "evaluate",
        lengths=(16, 32),
        strides=("L",),
        split="test",
        max_tokens=200,
    )
    (tmp_path / "tiny.json").write_text(to_json(config))
    return tmp_path / "tiny.json", tmp_path / "out"


def rows(text, heading):
    """The table under a heading of results.md: first cell -> the others."""
    table = text.partition(f"## {heading}\n\n")[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {cells[0][0]: cells[0][1:]} | {line[0]: line[1:] for line in cells[2:]}


def test_slopes_then_early_tokens_in_two_processes_and_again_without_repeating(tiny, tmp_path, monkeypatch):
    recipe, out = tiny
    assert len(jax.devices()) == 8
    monkeypatch.setenv("XLA_FLAGS", QUICK)  # of the others, which have a device each
    kinds = {name: config.model for name, config in slopes.Slopes(config=recipe, equal=(2,)).configs().items()}
    assert {name: (model.slopes, model.bias_max) for name, model in kinds.items()} == {
        "geometric_(paper)": ("geometric", 8.0),
        "learned": ("learned", 8.0),
        "bias_max_16": ("geometric", 16.0),
        "all_2^-2": ("equal", 2.0),
    }
    text = slopes.Slopes(config=recipe, out=out, equal=(), jobs=2)()
    names = {"geometric_(paper)", "learned", "bias_max_16"}
    assert set(rows(text, "Perplexity, non-overlapping")) == {"run", *names}
    for name in names:
        assert load_config(out / name).model == dataclasses.replace(kinds[name], vocab_size=256)
    divided = rows(text, "The paper's slopes divided by s at evaluation")
    assert divided["as trained"][0] == divided["divided by s"][0]  # s = 1
    assert divided["as trained"][1] != divided["divided by s"][1]
    before, after = (rows(text, "Slopes as learned")[name] for name in ("before", "after"))
    assert before == ["0.2500", "0.0625", "0.0156", "0.0039"] and after != before
    assert "`python -m experiments.some --out out`" in text and re.search(r"jax \d+\.\d+", text)

    changed = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoints/*")}
    again = slopes.Slopes(config=recipe, out=out, equal=(), jobs=1)()
    assert rows(again, "Perplexity, non-overlapping") == rows(text, "Perplexity, non-overlapping")
    assert changed == {path: path.stat().st_mtime_ns for path in out.rglob("checkpoints/*")}

    runs = (out / "learned", out / "bias_max_16")
    text = early_tokens.EarlyTokens(runs=runs, out=out / "early", times=(1, 2), max_tokens=100)()
    sliding, whole = (
        rows(text, f"Perplexity, {name}") for name in ("sliding window of stride 1", "non-overlapping windows")
    )
    assert set(sliding) == set(whole) == {"run", "learned", "bias_max_16"} and sliding["run"] == ["16", "32"]
    records = [json.loads(line) for line in (out / "early" / "learned" / "sweep.jsonl").read_text().splitlines()]
    assert {(r["length"], r["stride"]) for r in records} == {(16, 16), (16, 1), (32, 32), (32, 1)}
    assert sliding["learned"][0] == f"{next(r['perplexity'] for r in records if r['stride'] == 1):.2f}"
    assert (
        rows(text, "In the paper: WikiText-103, stride 1 beside non-overlapping")["T5 bias 512, sliding"][-1] == "30.77"
    )
    with pytest.raises(
        ResultsError, match=r"another evaluation .*bias_max"
    ):  # another model's results under the same name
        copied = shutil.copytree(runs[0], tmp_path / "bias_max_16")
        early_tokens.EarlyTokens(runs=(copied,), out=out / "early", times=(1, 2), max_tokens=100)()


def test_cost_measures_every_method_and_stands_beside_the_paper(tiny):
    recipe, out = tiny
    sizes = {"lengths": (16, 32), "tokens": 32, "width": 16, "num_layers": 1, "num_heads": 2, "repeats": 1}
    text = cost.Cost(config=recipe, out=out, positions=("sinusoidal", "alibi"), **sizes)()
    again = cost.Cost(config=recipe, out=out, positions=("sinusoidal", "alibi"), **sizes)()
    assert rows(again, "Training, MiB (over sinusoidal)") == rows(text, "Training, MiB (over sinusoidal)")
    with pytest.raises(ConfigError, match=r"cost\.json, measured with .*'repeats': 1.* expected none, or one with"):
        cost.Cost(config=recipe, out=out, positions=("sinusoidal", "alibi"), **(sizes | {"repeats": 2}))()
    with pytest.raises(ConfigError, match=r"positions: got \('alibi',\), expected sinusoidal among them"):
        cost.Cost(positions=("alibi",))()
    assert cost.Cost(config=Path("configs/wikitext2_small.py")).base().model.vocab_size == 40_000
    speed = rows(text, "Training, thousand tokens a second (over sinusoidal)")
    assert set(speed) == {"method", "sinusoidal", "alibi"} and all(
        cell.endswith("(1.00)") for cell in speed["sinusoidal"]
    )
    results = json.loads((out / "cost.json").read_text())["results"]
    assert [(r["position"], r["length"], r["batch"]) for r in results[2:]] == [("sinusoidal", 32, 1), ("alibi", 32, 1)]
    assert all(r["train_mib"] > r["evaluate_mib"] > 0 and len(r["train_seconds"]) == 1 for r in results)
    assert rows(text, "In the paper: memory, GB (over sinusoidal)")["t5"][0] == "16.9 (1.10)"


def failing(seconds, folder, label):
    """A run that waits, then cannot go on (at once), or says that it was asked to stop (and is let to save)."""
    if not seconds:
        raise FileNotFoundError("no such thing")
    with stop_requested() as stop:
        (folder / "ready").touch()
        while not stop:
            time.sleep(0.01)
        (folder / "saved").touch()
    raise Interrupted("saved")


def test_a_failing_run_lets_those_beside_it_save_and_starts_no_other(tmp_path):
    calls = [(1, tmp_path, "waits"), (0, tmp_path, "fails"), (0, tmp_path / "never", "is not begun")]
    with pytest.raises(SystemExit) as stopped:
        processes.spread(failing, calls, jobs=2)
    assert stopped.value.code == Refused.status
    assert (tmp_path / "saved").exists() or not (tmp_path / "ready").exists()
    with pytest.raises(ConfigError, match=r"jobs: got \d+ on cpu with \d+ cores to choose, expected"):
        processes.spread(failing, calls, jobs=10_000)


def test_what_is_finished_is_reported_from_the_second_run_on_in_the_order_of_the_runs(tiny_data, tmp_path, monkeypatch):
    def ends_in_another_order(_, calls, jobs, finished):
        for call in (calls[2], calls[0], calls[1]):
            finished(call)

    monkeypatch.setattr(grid, "spread", ends_in_another_order)
    configs, reports = dict.fromkeys("abc", tiny_config(tiny_data)), []
    folders = grid.train_and_evaluate(configs, tmp_path, 1, reports.append)
    assert folders == [tmp_path / name / "evaluation" / "valid" for name in "abc"]
    assert reports == [[folders[0], folders[2]]]


def test_domains_share_every_number_but_the_text():
    small = domains.Domains().bases()
    one, other = (dataclasses.asdict(config) for config in small.values())
    assert one.pop("data")["tokenizer"] == other.pop("data")["tokenizer"] == "bytes"
    assert one == other
    large = domains.Domains(paper=True).bases()
    differing = {"vocab_size", "adaptive_cutoffs", "adaptive_dropout"}
    wikitext, books = (dataclasses.asdict(config.model) for config in large.values())
    assert {name for name in wikitext if wikitext[name] != books[name]} == differing
    assert large["wikitext"].optimizer == large["books"].optimizer


def test_the_grid_names_every_run_and_keeps_the_tokens_of_an_update(tiny):
    recipe, _ = tiny
    configs = extrapolation.Extrapolation(config=recipe, train_lengths=(16, 32), more_seeds=(1, 2)).configs()
    assert len(configs) == 12 and {"alibi-16", "alibi-16-s1", "alibi-16-s2", "t5-32"} < set(configs)
    for config in configs.values():
        assert config.train.train_length * config.train.batch_size == 256
    assert configs["alibi-32"].evaluate.lengths == (32,)
    with pytest.raises(
        ConfigError, match=r"train_lengths: got 48 with 256 tokens an update on 8 devices, expected at most 32"
    ):
        extrapolation.Extrapolation(config=recipe, train_lengths=(48,)).configs()
    quick = extrapolation.Extrapolation(train_lengths=(128, 256)).configs()
    assert quick["alibi-256"].evaluate.lengths == ()  # still 1 to 16 times the training length
    full = extrapolation.Extrapolation(paper=True).configs()
    assert len(full) == 25 and full["t5-3072"].train.batch_size == 24
    assert full["t5-2048"].train.batch_size == 32  # of 36, what 8 devices can share
    assert full["alibi-512"].model == load_config("configs/wikitext103.py").model
    assert full["alibi-512"].evaluate.lengths[-1] == 15_512


def scored(run, length, perplexity):
    """A record of a run trained at 8 tokens."""
    facts = {"position": "alibi", "train_length": 8, "num_tokens": 100, "status": "ok", "detail": "", "split": "test"}
    facts |= {"checkpoint_step": 1, "corpus_fingerprint": "f00d", "perplexity": perplexity}
    return record_of({"run": run, "length": length, "stride": length, **facts})


def test_ratios_and_the_mean_over_seeds():
    beside = extrapolation.paper_ratios().splitlines()
    assert beside[0] == "| run | 1x | 1.98x | 2.95x | 6.86x | 14.7x | 30.3x |"
    assert beside[2].startswith("| sinusoidal | 1.000 | 2.172 |") and beside[2].endswith(" 20.250 |")
    assert beside[4].endswith("| 1.999 | – |")  # T5 ran out of memory
    runs = [("alibi-8", 4.0), ("alibi-8-s1", 5.0), ("alibi-8-s2", 6.0), ("t5-8", 7.0)]
    records = [scored(run, 8, value) for run, value in runs]
    ((heading, table),) = extrapolation.seeds_section(records).items()
    assert heading.startswith("Mean over seeds") and table.splitlines()[2] == "| alibi-8, 3 seeds | 5.000 ± 0.577 |"
    assert extrapolation.seeds_section(records[3:]) == {}


def test_the_papers_figures_agree_among_themselves():
    """The same run is in two of its tables."""
    by_length = paper.ALIBI_BY_TRAIN_LENGTH[512]
    assert paper.TRAINED_AT_512["alibi"][512] == by_length[512]
    assert paper.TRAINED_AT_512["sinusoidal"][512] == paper.SINUSOIDAL_AT_ITS_LENGTH[512]
    for row in paper.ALIBI_BY_TRAIN_LENGTH.values():
        assert list(row.values()) == sorted(row.values(), reverse=True)  # ALiBi's perplexity only falls with length


def test_domains_compare_bits_a_byte_on_each_text(tiny, monkeypatch):
    config = load_config(tiny[0])
    monkeypatch.setattr(domains.Domains, "bases", lambda self: {"wikitext": config, "books": config})
    text = domains.Domains(out=tiny[1], positions=("alibi",))()
    bits = rows(text, "Bits a byte, non-overlapping")
    assert set(bits) == {"run", "wikitext-alibi", "books-alibi"} and bits["wikitext-alibi"] == bits["books-alibi"]
    assert 0.5 < float(bits["books-alibi"][0]) < 16


def test_a_folder_of_text_is_where_recipes_read_from(tmp_path):
    books = grid.recipe("configs/books_small.py", tmp_path).data
    assert (books.train_path, books.test_path) == (str(tmp_path / "books/train"), str(tmp_path / "books/test"))
    assert grid.recipe("configs/wikitext2_small.py", tmp_path).data.tfds_manual_dir == str(tmp_path)
    (tmp_path / "one.json").write_text(to_json(replace(load_config("configs/books_small.py"), "data", valid_path="")))
    assert grid.recipe(tmp_path / "one.json", tmp_path).data.valid_path == ""  # still cut from the training text
    with pytest.raises(ConfigError, match=r"text: got .* whose text is Python's standard library"):
        grid.recipe("configs/quickstart.py", tmp_path)


def test_results_that_cannot_be_read_are_named(tmp_path):
    path, nothing = tmp_path / "kept.json", {"options": {}, "results": []}
    assert grid.read_kept(path, nothing) == nothing
    for content in (b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"options": {}}', b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ResultsError, match=r"kept\.json: got .*Remove the file to measure again"):
            grid.read_kept(path, nothing)
    path.write_text('{"options": {}, "results": [1], "command": []}')
    assert grid.read_kept(path, nothing)["results"] == [1]
    path.write_text("1.5\n2e-05\n")
    assert grid._minutes(path) == [1.5, 2e-05]
    path.write_text("1.5\nnan\n")
    with pytest.raises(ResultsError, match="expected a number of minutes"):
        grid._minutes(path)


def test_tables_of_experiments_have_short_numbers_and_labels_that_are_text():
    records = [
        scored(f"a|b-s{seed}", length, value)
        for seed, values in enumerate([(2.0, 1e300), (2.5, math.inf), (math.inf, math.inf)])
        for length, value in zip((8, 16), values, strict=True)
    ]
    assert extrapolation.ratios(records).splitlines()[2:] == [
        r"| a\|b-s0 | 1.000 | 5e+299 |",
        r"| a\|b-s1 | 1.000 | inf |",
        r"| a\|b-s2 | – | – |",
    ]
    assert extrapolation.mean_and_error([2.0, 2.5]) == "2.250 ± 0.250"
    assert extrapolation.mean_and_error([2.0, math.inf]) == "inf"
    assert extrapolation.mean_and_error([1e300, 3e300]) == "2e+300 ± inf"
    assert extrapolation.mean_and_error([1e308, 1e308]) == "inf"
    assert grid.by_length("run", {"x|y": {8: 1e12, 16: 12.345}}).splitlines()[-1] == r"| x\|y | 1e+12 | 12.35 |"
