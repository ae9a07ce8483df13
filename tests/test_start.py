"""A command begins with Ctrl-C handled and, on glibc, with memory in huge pages; it stays the same process."""

import json
import os
import signal
import subprocess
import sys

import pytest

from alibi_jax.errors import KILLED
from alibi_jax.run import start as module
from children import LIMIT

SAY = """
import json, os, signal, sys
from alibi_jax.run.start import start
before = os.environ.get("GLIBC_TUNABLES")
start()
blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(json.dumps([before, os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[1:], blocked, os.read(0, 9).decode()]))
os.kill(os.getpid(), signal.SIGINT)
"""


def run(tmp_path, **environment):
    """(what SAY prints, its number, its exit status)."""
    (tmp_path / "say.py").write_text(SAY)
    own = {name: value for name, value in os.environ.items() if name != module.TUNABLES}
    root = str(module.__file__).partition("/alibi_jax/")[0]
    process = subprocess.Popen(
        [sys.executable, tmp_path / "say.py", "a b", "ü"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=own | environment | {"PYTHONPATH": root},
    )
    text, _ = process.communicate(b"open", timeout=LIMIT)
    return json.loads(text), process.pid, process.returncode


@pytest.mark.skipif(module.platform.libc_ver()[0] != "glibc", reason="glibc alone has tunables")
def test_a_command_is_the_same_process_with_tunables(tmp_path):
    says, number, status = run(tmp_path)
    assert says == [module.HUGE_PAGES, module.HUGE_PAGES, number, ["a b", "ü"], False, "open"]
    assert status == KILLED


def test_tunables_of_the_user_stay(tmp_path):
    says, number, _ = run(tmp_path, GLIBC_TUNABLES="glibc.malloc.arena_max=2")
    assert says == ["glibc.malloc.arena_max=2"] * 2 + [number, ["a b", "ü"], False, "open"]


def test_what_is_not_started_again(monkeypatch):
    monkeypatch.delenv(module.TUNABLES, raising=False)
    assert not module.wants_huge_pages()  # JAX is loaded here
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(module.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    assert module.wants_huge_pages()
    monkeypatch.setattr(module.platform, "libc_ver", lambda: ("", ""))
    assert not module.wants_huge_pages()


def test_a_restart_that_fails_goes_on(monkeypatch):
    def fails(*_):
        raise OSError(7, "Argument list too long")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(module, "wants_huge_pages", lambda: True)
    monkeypatch.setattr(os, "execve", fails)
    try:
        module.start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
