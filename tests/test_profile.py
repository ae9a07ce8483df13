"""A trace that TensorBoard reads, and compilations that are told of."""

import gzip
import json
import logging

import jax
import jax.numpy as jnp
import pytest

from alibi_jax.errors import ConfigError
from alibi_jax.run.profile import Trace, compilation_check, parse_steps
from alibi_jax.train import train
from runs import tiny_config


def test_steps_are_parsed_or_refused():
    assert list(parse_steps("10-12")) == [10, 11, 12] and list(parse_steps("3-3")) == [3] and not parse_steps("")
    for text in ("12-10", "0-3", "7", "a-b"):
        with pytest.raises(ConfigError, match=rf"profile: got '{text}', expected first-last"):
            parse_steps(text)


@pytest.mark.versions
def test_a_run_traces_the_steps_asked_for(tiny_data, tmp_path):
    """As far as they go: it ends after the fourth."""
    train(tiny_config(tiny_data), tmp_path / "run", profile="3-9")
    (folder,) = (tmp_path / "run/tensorboard/plugins/profile").iterdir()
    assert len(list(folder.glob("*.xplane.pb"))) == 1  # what TensorBoard reads
    # The same events as JSON: jax.profiler.ProfileData aborts the process where warnings are errors.
    (trace,) = folder.glob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    numbers = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert set(numbers) == {"3", "4"}


def test_a_trace_of_steps_that_never_come_is_missed(tmp_path, caplog):
    trace = Trace(parse_steps("9-12"), tmp_path)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            with trace.step(step):
                pass
            trace.after(step, None)
        trace.close()
    assert "none of the steps 9 to 12 was taken here" in caplog.text


@pytest.mark.versions
def test_a_compilation_too_many_says_which_argument_changed(caplog):
    add = jax.jit(lambda state, batch: (state["a"] + batch.sum(), state))
    check = compilation_check(add, "state", "batch")
    state = {"a": jnp.zeros(3), "b": jnp.ones(2)}
    with caplog.at_level(logging.WARNING):
        for arguments in 3 * [(state, jnp.ones((4, 2)))]:
            add(*arguments)
            check(*arguments)
        assert not caplog.records
        arguments = state | {"b": jnp.ones(2, jnp.int32)}, jnp.ones((4, 3))
        add(*arguments)
        check(*arguments)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("compiled again: ") and "state/b: float32[2]" in message and "-> int32[2]" in message
    assert "batch: float32[4,2]" in message and "-> float32[4,3]" in message and "state/a" not in message
