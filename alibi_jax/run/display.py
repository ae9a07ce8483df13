"""How text from users, and numbers of any size, are shown: in a terminal, in Markdown, CSV, HTML and figures.

Labels, paths and titles are text and nothing else: no markup, no formulas, no commands to a terminal. Pure functions.
"""

import html
import math
import re

LONGEST = 48  # characters of a label in a table for the terminal or in a figure
FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")  # what begins one in a spreadsheet, wide forms too
MARKDOWN = re.compile(r"[\\`*\[\]<>&|~$]|(?<![^\W_])_")  # an underscore after a letter begins nothing
LARGEST_IN_FULL = 1e7  # numbers from here on are written with an exponent


def decoded(text: str) -> str:
    """The text without surrogates, so that it can be encoded and drawn.

    Under a locale that is not UTF-8 Python carries the bytes of an argument as surrogates: they are decoded as UTF-8. What
    is not UTF-8, and any other surrogate, becomes U+FFFD.
    """
    text = re.sub("[\udc80-\udcff]+", lambda bytes_: _from_bytes(bytes_[0]), text)
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _from_bytes(surrogates: str) -> str:
    return surrogates.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def plain(text: str, keep: str = "") -> str:
    r"""The text with every character that is not printable (control, bidirectional, line ends ...) escaped, such as \x1b.

    keep: characters left as they are, such as "\n" for text of several lines.
    """
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in decoded(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int = LONGEST) -> str:
    """At most `most` characters: the middle is left out, for labels often differ at their ends."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}\u2026{text[len(text) - end :]}"


def label(text: str) -> str:
    """A run's label for a terminal or a figure: one line, not long."""
    return shortened(plain(text))


def markdown_text(text: str) -> str:
    r"""The text for a paragraph or a table's cell in Markdown: markup is escaped with backslashes."""
    return MARKDOWN.sub(lambda match: "\\" + match[0], plain(text))


def markdown_code(text: str) -> str:
    """The text as Markdown's inline code, between more backticks than it has in a row."""
    text = plain(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def csv_cell(value: object) -> object:
    """A cell of a CSV file: text that a spreadsheet would take for a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    return ("'" if FORMULA.match(value) else "") + plain(value)


def html_text(text: str, keep: str = "") -> str:
    """The text for HTML, in an element or a quoted attribute."""
    return html.escape(plain(text, keep))


def number(value: float, digits: int, comma: str = ",", sign: str = "") -> str:
    """The value with `digits` decimals, or three significant digits with an exponent where it is large; "inf" and "nan"."""
    if math.isfinite(value) and abs(value) < LARGEST_IN_FULL:
        return f"{value:{sign}z{comma}.{digits}f}"
    return f"{value:{sign}.3g}"


def multiple(ratio: float) -> str:
    """A length over another, such as "8x" or "1,024x"."""
    return f"{ratio:,.0f}x" if ratio >= 1000 else f"{ratio:.3g}x"


def exponential(value: float) -> float:
    """e^value; inf where that is more than a float64 holds."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def perplexity_digits(value: float) -> int:
    """Decimals of a perplexity that are worth reading."""
    return 3 if value < 10 else 2 if value < 1000 else 0


def perplexity_number(value: float, comma: str = ",") -> str:
    """A perplexity with the decimals that are worth reading."""
    return number(value, perplexity_digits(value), comma)
