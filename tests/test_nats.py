"""The two protocols to the token: every token once, with just the inputs PAPER-style windows give it."""

import dataclasses

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import strategies as st

from alibi_jax.config import MeshConfig, ModelConfig
from alibi_jax.errors import ConfigError
from alibi_jax.evaluate import nats as nats_module
from alibi_jax.evaluate.nats import token_nats, windows_per_batch
from alibi_jax.model import TransformerLM
from alibi_jax.sharding import make_mesh
from conftest import assert_close


class Uniform(nn.Module):
    """A model that knows nothing: all logits zero."""

    vocab_size: int = 50

    @nn.nowrap
    def nats(self, tokens, targets):
        return jnp.full(targets.shape, jnp.log(self.vocab_size))


def windows_by_definition(n, length, stride):
    """For each target: (inputs it sees, index of the first target whose input it sees), by the text of the protocol."""
    facts = {}
    for w in range(-(-n // stride)):
        start = max(0, (w + 1) * stride - length)
        for t in range(w * stride, min((w + 1) * stride, n)):
            assert t not in facts  # once
            facts[t] = (t - start + 1, start)
    assert len(facts) == n
    return [facts[t] for t in range(n)]


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_every_token_is_scored_once_with_the_protocols_inputs(n, length, data):
    stride, batch_size = data.draw(st.integers(1, length)), data.draw(st.integers(1, 5))
    inputs = np.arange(100, 100 + n)  # the input before target t is 99 + t; all targets are scored as token 0 or 1

    def fake(model, params, tokens, targets):
        return 1000.0 * np.arange(1, tokens.shape[1] + 1)[None, :] + tokens[:, :1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nats_module, "window_nats", fake)
        patch.setattr(nats_module, "place_rows", lambda rows: rows)
        got = token_nats(Uniform(200), {}, inputs, length=length, stride=stride, first_input=99, batch_size=batch_size)
    expected = [1000 * seen + 99 + start for seen, start in windows_by_definition(n, length, stride)]
    assert got.tolist() == expected


@pytest.mark.parametrize(("length", "stride"), [(16, 16), (16, 5), (64, 1), (200, 200)])
def test_uniform_logits_give_perplexity_exactly_v(length, stride):
    stream = np.random.default_rng(0).integers(0, 50, 101)
    scores = token_nats(Uniform(), {}, stream, length=length, stride=stride, first_input=0, batch_size=4)
    assert scores.dtype == np.float32
    assert_close(np.exp(scores.astype(np.float64).mean()) / 50, 1.0, "loss")


@pytest.fixture(scope="module")
def small():
    model = TransformerLM(ModelConfig(num_layers=1, width=16, num_heads=2, mlp_width=32, vocab_size=23))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]


STREAM = np.random.default_rng(1).integers(0, 23, 75)


def test_scores_equal_one_window_at_a_time_without_padding(small):
    """The same numbers from windows cut by hand, each applied alone at its own length."""
    model, params = small
    length, stride = 16, 4
    scores = token_nats(model, params, STREAM, length=length, stride=stride, first_input=3, batch_size=5)
    inputs = np.concatenate([[3], STREAM[:-1]])
    apply = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)))
    for t in (0, 3, 15, 30, 74):
        seen, start = windows_by_definition(75, length, stride)[t]
        log_p = apply(jnp.asarray(inputs[start : start + seen])[None])[0, -1]
        assert_close(scores[t], -log_p[STREAM[t]], "loss")


def test_sliding_with_stride_equal_to_length_is_non_overlapping(small):
    options = {"length": 16, "first_input": 0, "batch_size": 3}
    one, other = (token_nats(*small, STREAM, stride=stride, **options) for stride in (None, 16))
    assert (one == other).all()


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_padding_of_batches_and_windows_changes_nothing(small, batch_size):
    scores = token_nats(*small, STREAM, length=20, stride=7, first_input=0, batch_size=batch_size)
    assert_close(scores, token_nats(*small, STREAM, length=20, stride=7, first_input=0, batch_size=3), "loss")
    longer = token_nats(*small, np.pad(STREAM, (0, 40)), length=20, stride=7, first_input=0, batch_size=3)
    assert_close(longer[:75], scores, "loss")


def test_a_long_window_scores_as_the_whole_text_at_once(small):
    model, params = small
    scores = token_nats(model, params, STREAM, length=500, first_input=0, batch_size=1)
    inputs = jnp.asarray(np.concatenate([[0], STREAM[:-1]]))[None]
    log_p = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)))(inputs)[0]
    assert_close(scores, -np.take_along_axis(np.asarray(log_p), STREAM[:, None], 1)[:, 0], "loss")


def test_one_compilation_for_each_shape_whatever_the_stride(small, monkeypatch):
    traced = chex.assert_max_traces(nats_module.window_nats.__wrapped__, n=2)
    monkeypatch.setattr(nats_module, "window_nats", jax.jit(traced, static_argnums=0))
    for length in (8, 16):
        for stride in (1, 3, length):
            token_nats(*small, STREAM, length=length, stride=stride, first_input=0, batch_size=4)
    with pytest.raises(AssertionError, match="traced"):
        token_nats(*small, STREAM, length=9, first_input=0, batch_size=4)


@pytest.mark.parametrize("attention", ["reference", "blockwise"])
def test_sharded_over_eight_devices_it_scores_the_same(small, attention):
    from alibi_jax.config import MeshConfig
    from alibi_jax.sharding import make_mesh

    model, params = small
    model = model.clone(config=dataclasses.replace(model.config, attention=attention))
    alone = token_nats(model, params, STREAM, length=16, stride=5, first_input=0, batch_size=8)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2, sequence=2))):
        spread = token_nats(model, params, STREAM, length=16, stride=5, first_input=0, batch_size=8)
        with pytest.raises(ConfigError, match="batch: got 7, expected a multiple of 2, the devices.*Use 8"):
            token_nats(model, params, STREAM, length=16, first_input=0, batch_size=7)
        with pytest.raises(ConfigError, match="length: got 15, expected a multiple of 2, the devices"):
            token_nats(model, params, STREAM, length=15, first_input=0, batch_size=8)
    assert_close(spread, alone, "loss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length 0, expected at least 1"),
        ({"length": -5}, "length -5, expected at least 1"),
        ({"stride": 0}, "stride 0 at length 16"),
        ({"stride": 17}, "stride 17 at length 16, expected 1 to 16"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"stream": STREAM[:0]}, "empty stream"),
        ({"stream": np.where(np.arange(75) == 40, 23, STREAM)}, "token 23 at index 40, expected ids from 0 to 22"),
        ({"stream": np.where(np.arange(75) == 40, -1, STREAM)}, "token -1 at index 40"),
        ({"stream": STREAM.astype(np.float32)}, "float32 of shape"),
        ({"first_input": 23}, "first_input: got token 23"),
        ({"first_input": -1}, "first_input: got token -1"),
        ({"first_input": 1.0}, "first_input 1.0, expected an int"),
        ({"length": 2.5}, "length 2.5, expected an int"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_bad_input_is_refused_before_work(small, change, message, monkeypatch):
    monkeypatch.setattr(nats_module, "window_nats", None)
    options = {"stream": STREAM, "length": 16, "stride": 4, "batch_size": 4, "first_input": 0} | change
    with pytest.raises(ValueError, match=message):
        token_nats(*small, options.pop("stream"), **options)


def test_a_model_that_sees_later_tokens_is_refused():
    encoder = TransformerLM(ModelConfig(causal=False, vocab_size=23))
    with pytest.raises(ValueError, match="token_nats: got a model that is not causal"):
        token_nats(encoder, {}, STREAM, length=16, first_input=0, batch_size=4)


def test_a_batch_holds_a_window_for_each_device_and_a_multiple_of_them():
    assert [windows_per_batch(tokens, 512) for tokens in (1, 511, 8192, 8703)] == [1, 1, 16, 16]
    with jax.set_mesh(make_mesh(MeshConfig(data=4, fsdp=2))):
        assert [windows_per_batch(tokens, 512) for tokens in (1, 8192, 8704)] == [8, 16, 24]
