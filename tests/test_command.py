"""What a command prints, whatever the terminal's encoding and whatever is in names."""

import io
import sys

import pytest

from alibi_jax.errors import ConfigError
from alibi_jax.run.command import run_command


@pytest.fixture
def terminal(monkeypatch):
    """Replaces the terminal by one of some encoding; returns what was printed to (stdout, stderr) as bytes."""

    def open_as(encoding):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        return streams

    return open_as


def printed(streams) -> list[bytes]:
    for stream in streams:
        stream.flush()
    return [stream.buffer.getvalue() for stream in streams]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_text_that_a_terminal_cannot_show_is_written_as_numbers(terminal, encoding):
    streams = terminal(encoding)
    assert run_command(lambda: lambda: "ünï ☃ \udcc3\udcbc") == 0
    text = printed(streams)[0].decode(encoding)
    assert (
        text == {"latin-1": "ünï \\u2603 ü\n", "ascii": "\\xfcn\\xef \\u2603 \\xfc\n", "utf-8": "ünï ☃ ü\n"}[encoding]
    )


def test_error_is_text_and_no_command_to_the_terminal(terminal):
    def refuse():
        raise ConfigError("workdir: got a\x1b[2Jb ☃ \udcff, expected a name")

    streams = terminal("latin-1")
    assert run_command(lambda: refuse) == 2
    assert printed(streams)[1] == b"error: workdir: got a\\x1b[2Jb \\u2603 \\ufffd, expected a name\n"
