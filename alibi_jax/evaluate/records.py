"""What an evaluation keeps of one length and stride: facts, the file of its losses, and statistics of these."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alibi_jax.positions.methods import POSITIONS

STATUSES = ("ok", "out of memory", "refused", "not finite")
MANY_UNKNOWN = 0.05  # of the tokens: with more unknown words than that a warning stands beside the numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The evaluation of a run at one (length, stride): a line of sweep.jsonl.

    Every field but `statistics` is a fact. A fact that older versions did not keep is None where they wrote the line.
    """

    run: str  # its label
    position: str  # its position method
    train_length: int  # tokens
    length: int  # of a window, tokens
    stride: int  # tokens that a window scores
    num_tokens: int  # scored
    status: str  # one of STATUSES
    detail: str  # why there are no losses; where there are, the memory that a device needed
    split: str
    checkpoint_step: int
    corpus_fingerprint: str
    num_bytes: int | None = None  # UTF-8 bytes of the text scored
    unknown_words: int | None = None  # tokens scored that stand for words outside the vocabulary
    parameters: int | None = None  # of the model
    seconds: float | None = None  # that scoring took
    nats_file: str | None = None  # of the losses, float32 [num_tokens]; None: there are none
    nats_crc32: int | None = None  # of these
    config: Mapping[str, Any] | None = None  # section -> field -> value
    versions: Mapping[str, str] | None = None  # package -> version
    machine: str | None = None
    date: str | None = None  # ISO 8601
    statistics: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # name -> value

    @property
    def pair(self) -> tuple[int, int]:
        """(length, stride), which names a record among those of one evaluation."""
        return self.length, self.stride


FACTS = tuple(field.name for field in dataclasses.fields(Record) if field.name != "statistics")


def record_of(fields: Mapping[str, Any]) -> Record:
    """Returns the record of these fields; those that are no facts are its statistics."""
    facts = {name: value for name, value in fields.items() if name in FACTS}
    statistics = {name: value for name, value in fields.items() if name not in FACTS}
    return Record(**facts, statistics=statistics)


def fields_of(record: Record) -> dict[str, Any]:
    """Returns the facts that a record has, and its statistics, by name: the opposite of `record_of`."""
    facts = {name: value for name, value in vars(record).items() if name in FACTS and value is not None}
    return {**facts, **record.statistics}


def line_name(record: Record) -> str:
    """Returns the label of a run in figures: without its seed, and the method's name where that is all it says."""
    name = re.sub(r"(?<=.)-s\d+$", "", record.run)
    return POSITIONS[name].label if name in POSITIONS else name


def non_overlapping(records: Iterable[Record]) -> list[Record]:
    """Returns the records whose stride is their length."""
    return [record for record in records if record.stride == record.length]


def sliding(records: Sequence[Record]) -> tuple[str, list[Record]]:
    """Returns (name, records) of the sliding protocol, "L/4" or a fixed "64", evaluated most; of equals the finest.

    ("", []) where no protocol spans more than one length though the non-overlapping one does: a single stride at the
    training length is there to measure far context, not to be drawn.
    """
    candidates = [record for record in records if record.stride < record.length]
    protocols = {}
    for divisor in sorted({round(record.length / record.stride) for record in candidates}, reverse=True):
        fraction = [record for record in candidates if record.stride == max(1, record.length // divisor)]
        protocols[f"L/{divisor}"] = fraction
    for stride in sorted({record.stride for record in candidates}):
        protocols[str(stride)] = [record for record in candidates if record.stride == stride]
    name, chosen = max(protocols.items(), key=lambda protocol: len(protocol[1]), default=("", []))
    span, whole = ({record.length for record in some} for some in (chosen, non_overlapping(records)))
    return (name, chosen) if len(span) > 1 or len(whole) <= 1 else ("", [])


def unknown_rate(record: Record) -> float:
    """Returns unknown words per token scored; 0 where the record does not count them."""
    return (record.unknown_words or 0) / record.num_tokens


def full_window(length: int, stride: int) -> int:
    """Returns the tokens a text needs for one full window: it ends at a multiple of the stride and is `length` long."""
    return -(-length // stride) * stride


def too_short(length: int, stride: int, num_tokens: int) -> str:
    """Returns why a text of so many tokens says nothing of a length; "" where at least one window is full."""
    needed = full_window(length, stride)
    if num_tokens >= needed:
        return ""
    return (
        f"{num_tokens:,} tokens of text, where one full window of {length:,} at stride {stride:,} needs {needed:,}: no token "
        "would be read with so many before it"
    )


def nats_file(length: int, stride: int) -> str:
    """Returns the name of the file of a (length, stride)'s losses in a folder of results."""
    return f"nats/{length}-{stride}.npy"
