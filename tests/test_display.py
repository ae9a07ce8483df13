"""Text from users stays text wherever it is shown; numbers of any size stay short."""

import csv
import io
import logging
import math

import pytest

from alibi_jax.errors import ConfigError, Refused
from alibi_jax.run import display
from alibi_jax.run.command import run_command
from alibi_jax.run.progress import Bar, loss_text

TEXTS = {
    "plain": ("alibi-64-s1", "alibi-64-s1"),
    "letters": ("ünï ☃ 模型", "ünï ☃ 模型"),
    "lines": ("a\nb\r\tc\u2028d", r"a\nb\r\tc\u2028d"),
    "escape": ("\x1b[31mred\x1b]0;title\x07\x9b2J", r"\x1b[31mred\x1b]0;title\x07\x9b2J"),
    "bidirectional": ("a\u202eb\u2066c\u200f", r"a\u202eb\u2066c\u200f"),
    "argument of another locale": ("ünï ☃".encode().decode("ascii", "surrogateescape"), "ünï ☃"),
    "bytes that are no text": ("a\udcff\udce2b", "a��b"),
    "half a pair": ("a\ud800b\udfff", "a�b�"),
    "nothing": ("", ""),
    "null": ("a\0b", r"a\x00b"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_plain_text_is_printable_and_can_be_encoded(case):
    text, expected = TEXTS[case]
    assert display.plain(text) == expected
    assert display.plain(expected) == expected
    assert expected.isprintable() and expected.encode() is not None
    for show in (display.markdown_text, display.markdown_code, display.html_text, display.label, display.csv_cell):
        assert show(text).isprintable() and show(text).encode() is not None


def test_text_of_several_lines_keeps_them():
    assert display.plain("a\n\tb\x1b", keep="\n") == "a\n\\tb\\x1b"


def test_long_labels_keep_both_ends():
    text = "a" * 10_000 + "-s0"
    assert display.label(text) == "a" * 24 + "…" + "a" * 20 + "-s0"
    assert len(display.label(text)) == display.LONGEST
    assert display.label("a" * display.LONGEST) == "a" * display.LONGEST


def test_markdown_has_no_markup_of_a_label():
    assert display.markdown_text("a|b *c* `d` [e](f) <g> &amp; \\ ~h~ lr$1_$x _i_") == (
        r"a\|b \*c\* \`d\` \[e\](f) \<g\> \&amp; \\ \~h\~ lr\$1_\$x \_i_"
    )
    assert display.markdown_text("all_2^-2, bias_max_16_(paper): 5%") == "all_2^-2, bias_max_16_(paper): 5%"
    assert display.markdown_code("a") == "`a`"
    assert display.markdown_code("a ``b`\n") == "``` a ``b`\\n ```"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " \t=1", "\t1", "\uff1d1", "\n=1"])
def test_no_cell_of_a_spreadsheet_is_a_formula(text):
    assert display.csv_cell(text) == "'" + display.plain(text)


def test_cells_come_back_from_csv():
    cells = ['a, "b"; c', "d|e", -0.5, None, 3]
    buffer = io.StringIO()
    csv.writer(buffer).writerow(map(display.csv_cell, cells))
    assert next(csv.reader([buffer.getvalue()])) == ['a, "b"; c', "d|e", "-0.5", "", "3"]


def test_numbers_are_short_whatever_their_size():
    assert [display.perplexity_number(x) for x in (7.12345, 33.456, 12_345.6, 9_999_999.0)] == [
        *("7.123", "33.46", "12,346", "9,999,999"),
    ]
    assert [display.perplexity_number(x) for x in (1.2345e7, 1e300, math.inf, -math.inf, math.nan)] == [
        *("1.23e+07", "1e+300", "inf", "-inf", "nan"),
    ]
    assert display.number(-0.0, 3) == display.number(-1e-9, 3) == "0.000"
    assert display.number(1234.5, 1, comma="") == "1234.5"
    assert [display.number(x, 2, sign="+") for x in (1.0, -1.0, -0.0, 1e38)] == ["+1.00", "-1.00", "+0.00", "+1e+38"]
    assert display.exponential(709.0) == math.exp(709.0)
    assert display.exponential(709.8) == display.exponential(33_798.0) == math.inf


def test_the_bar_shows_labels_as_text_and_short_numbers(capsys):
    with Bar("train [red]a[/red] \x1b[31m:smile:\n", 1) as bar:
        bar.update(1, loss_text(33_798.0, 12.0))
    shown = capsys.readouterr().err
    assert "train [red]a[/red] \\x1b[31m:smile:\\n: 1/1 loss 33,798.000 nats  perplexity inf  12 tokens/s" in shown
    assert loss_text(2.0, 1000.4) == "loss 2.000 nats  perplexity 7.4  1,000 tokens/s"
    column = bar.progress.columns[0].render(bar.progress.tasks[0])
    assert column.plain == "train [red]a[/red] \\x1b[31m:smile:\\n" and column.spans == []


def test_what_a_command_says_is_text(capsys):
    """Its result, its errors and its log may hold paths and labels."""

    def command():
        logging.getLogger("alibi_jax").warning("%s: \x1b]0;log\x07\nline", "path\udcff")
        return "result \x1b[31m\nline"

    def refused():
        raise ConfigError("out: got \x1b[2J, expected a folder.")

    assert run_command(lambda: command) == 0
    assert run_command(lambda: refused) == Refused.status
    out, err = capsys.readouterr()
    assert out == "result \\x1b[31m\nline\n"
    assert err == "path�: \\x1b]0;log\\x07\nline\nerror: out: got \\x1b[2J, expected a folder.\n"
