"""Training: the same numbers on every mesh, clean stops, and a log that can be read."""

import dataclasses
import functools
import importlib
import json
import signal
import struct
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from tensorboardX.proto.event_pb2 import Event

from alibi_jax import loop
from alibi_jax.config import Config, DataConfig, MeshConfig, TrainConfig, replace
from alibi_jax.config.limits import RANGES, Range
from alibi_jax.data.corpus import Corpus, open_corpus
from alibi_jax.errors import ConfigError, DataError, Diverged, Interrupted, MetricsError
from alibi_jax.model import TransformerLM
from alibi_jax.model.placement import tree_shardings
from alibi_jax.positions import alibi, alibi_slopes
from alibi_jax.positions.methods import POSITIONS
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.metrics import MetricsLog
from alibi_jax.run.signals import stop_requested
from alibi_jax.sharding import check_mesh, host_shard, make_mesh, place_rows, put_batch, shard
from alibi_jax.train import programs, restore_or, train
from conftest import TOLERANCE, assert_close
from runs import DROPOUT, saved_state, tiny_config

ONE, MESHES = (1, 1, 1, 1), [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 4, 1), (1, 1, 1, 8), (1, 2, 2, 2)]
PLACED = {  # where a parameter and both its moments lie: dimensions over mesh axes
    "embedding/table": P("tensor", "fsdp"),
    "attention/query": P("fsdp", "tensor", None),
    "attention/query_bias": P("tensor", None),
    "attention/out": P("tensor", None, "fsdp"),
    "mlp/up": P("fsdp", "tensor"),
    "mlp/down": P("tensor", "fsdp"),
    "mlp_norm/scale": P(None),
    "position/bucket_table": P(None, "tensor"),
}


def mesh_of(sizes):
    return make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])


def rows(seed: int, shape=(8, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.int32)


@functools.cache
def compiled(config: Config, sizes):
    """(mesh, what `programs` gives on it), compiled once a process: seconds each."""
    mesh = mesh_of(sizes)
    with jax.set_mesh(mesh):
        return mesh, programs(config, mesh)


def steps(config: Config, sizes, count: int = 3, first: int = 0, state=None):
    """(losses of `count` updates, the state after them) on a mesh, on batches that depend on the update alone."""
    mesh, (make_state, step, _) = compiled(config, sizes)
    with jax.set_mesh(mesh):
        state, losses = make_state() if state is None else state, []
        for i in range(first, first + count):
            state, metrics = step(state, place_rows(rows(2 * i)), place_rows(rows(2 * i + 1)))
            losses.append(float(metrics["loss"]))
    return losses, state


@functools.cache
def one_device(position: str, attention: str = "auto") -> list[float]:
    return steps(tiny_config(DataConfig(), {"position": position, "attention": attention}), ONE)[0]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_parameters_and_moments_lie_where_the_table_says(scan_layers):
    config = tiny_config(DataConfig(), {"position": "t5", "scan_layers": scan_layers})
    mesh = mesh_of((2, 2, 2, 1))
    with jax.set_mesh(mesh):
        state = programs(config, mesh).make_state()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    actual = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding for path, leaf in leaves}
    for name, spec in PLACED.items():
        stacked = scan_layers and not name.startswith(("embedding", "position"))
        expected = jax.NamedSharding(mesh, P(None, *spec) if stacked else spec)
        placed = {path: sharding for path, sharding in actual.items() if path.endswith("/" + name)}
        assert (
            len(placed) == 3 and sum("/mu/" in path for path in placed) == sum("/nu/" in path for path in placed) == 1
        )
        for path, sharding in placed.items():
            assert sharding.is_equivalent_to(expected, len(expected.spec)), f"{path}: {sharding.spec}"
    assert all(leaf.sharding.is_fully_replicated for _, leaf in leaves if leaf.ndim == 0)
    assert sum(leaf.ndim == 0 for _, leaf in leaves) >= 2


def test_alibi_learns_the_same_on_a_mesh():
    config = tiny_config(DataConfig(), {"attention": "blockwise"})
    assert_close(steps(config, (2, 1, 2, 2))[0], one_device("alibi", "blockwise"), "sharded loss")


def loss_and_gradients(position: str, sizes):
    """Mean nats of one batch and their gradient, as numpy arrays; the parameters' values do not depend on the mesh."""
    model = TransformerLM(tiny_config(DataConfig(), {"position": position, "attention": "blockwise"}).model)

    def loss(params, inputs, targets):
        return model.apply({"params": params}, inputs, targets, method="nats").mean()

    params, mesh = initial(position), mesh_of(sizes)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, tree_shardings(model.config, params, mesh))
        actual = jax.jit(jax.value_and_grad(loss))(placed, place_rows(rows(0)), place_rows(rows(1)))
    return jax.tree.map(np.asarray, actual)


@functools.cache
def initial(position: str):
    model = TransformerLM(tiny_config(DataConfig(), {"position": position}).model)
    return jax.device_get(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])


loss_and_gradients_alone = functools.cache(functools.partial(loss_and_gradients, sizes=ONE))


# Every axis with ALiBi; every method with all that split a model, and T5, whose bias has parameters, with either alone.
SPLIT = [
    *(("alibi", sizes) for sizes in MESHES),
    *((position, MESHES[-1]) for position in POSITIONS if position != "alibi"),
]


@pytest.mark.parametrize(("position", "sizes"), [*SPLIT, ("t5", MESHES[2]), ("t5", MESHES[3])])
def test_every_position_method_has_the_same_loss_and_gradients_on_every_mesh(position, sizes):
    actual, alone = loss_and_gradients(position, sizes), loss_and_gradients_alone(position)
    assert_close(actual[0], alone[0], "loss")
    jax.tree.map(functools.partial(assert_close, what="attention gradient"), actual[1], alone[1])


@pytest.mark.parametrize("sizes", [(2, 1, 2, 2), (1, 8, 1, 1), (1, 1, 1, 8), (1, 1, 4, 2)])
def test_a_shard_is_placed_where_the_mesh_wants_it(sizes):
    mesh, whole = mesh_of(sizes), rows(5)
    local = host_shard(whole.shape, mesh)
    placed = put_batch(whole[local.rows, local.columns], local)
    with jax.set_mesh(mesh):
        assert placed.sharding == place_rows(whole).sharding
    np.testing.assert_array_equal(placed, whole)
    parts = {str(part.index) for part in placed.addressable_shards}
    assert len(parts) == sizes[0] * sizes[1] * sizes[3], "split over batch and length"


def test_slopes_that_forgot_the_other_devices_would_show(monkeypatch):
    monkeypatch.setattr(alibi, "alibi_slopes", lambda heads, bias_max: np.tile(alibi_slopes(heads // 2, bias_max), 2))
    compiled.cache_clear()
    local = steps(tiny_config(DataConfig()), ONE)[0]
    compiled.cache_clear()
    monkeypatch.undo()
    assert np.abs(np.subtract(local, one_device("alibi"))).max() > 10 * TOLERANCE["sharded loss"]


@pytest.mark.versions
def test_saved_on_one_mesh_goes_on_upon_another(tmp_path):
    config = tiny_config(DataConfig())
    _, state = steps(config, (2, 2, 2, 1), 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state.params, {"step": state.step, "moments": state.optimizer}, None)
    checkpoints.wait()
    mesh, (make_state, _, shardings) = compiled(config, (1, 8, 1, 1))
    with jax.set_mesh(mesh):
        restored = restore_or(make_state, checkpoints, shardings)
    assert restored.params["embedding"]["table"].sharding.spec == P("tensor", "fsdp")
    losses, _ = steps(config, (1, 8, 1, 1), 1, first=2, state=restored)
    assert_close(losses, one_device("alibi")[2:], "sharded loss")


def test_constraint_acts_under_a_mesh_and_refuses_what_it_does_not_know():
    x = jnp.zeros((8, 4, 4, 2))
    constrained = jax.jit(lambda x: shard(2 * x, "batch", "length", "heads", "head_width"))
    mesh = mesh_of((2, 2, 2, 1))
    with jax.set_mesh(mesh):
        assert constrained(x).sharding.spec == P(("data", "fsdp"), None, "tensor")
        with pytest.raises(ValueError, match="got a dimension 'hands', expected one of .*heads"):
            shard(x, "batch", "length", "hands", "head_width")
    assert len(shard(x, "batch", "length", "heads", "head_width").devices()) == 1


def test_step_constrains_its_activations():
    mesh, (make_state, step, _) = compiled(tiny_config(DataConfig()), (2, 2, 2, 1))
    with jax.set_mesh(mesh):
        batch = place_rows(rows(0))
        text = step.lower(jax.eval_shape(make_state), batch, batch).as_text()
    heads = [line for line in text.splitlines() if "sharding_constraint" in line and "8x16x4x4xf32" in line]
    assert len(heads) >= 3 and all('"tensor"' in line for line in heads), "queries, keys and values are split by head"


def test_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="data 3 x fsdp 1 x tensor 1 x sequence 1 on 8 devices"):
        make_mesh(MeshConfig(data=3))
    config = tiny_config(DataConfig(), batch_size=12)
    with pytest.raises(ConfigError, match=r"batch_size.*got 12, expected a multiple of 8.*Use 16"):
        check_mesh(config, mesh_of((8, 1, 1, 1)))
    with pytest.raises(ConfigError, match=r"num_heads: got 4, expected a multiple of 8"):
        check_mesh(config, mesh_of((1, 1, 8, 1)))
    with pytest.raises(
        ConfigError, match=r"length: got 20, expected a multiple of 8, the devices along sequence. Use 24"
    ):
        check_mesh(replace(config, "train", train_length=20), mesh_of((1, 1, 1, 8)))


def test_parts_of_a_batch_add_up_to_it():
    config = tiny_config(DataConfig())
    config = replace(config, "optimizer", epsilon=1e-3)  # or Adam would turn rounding into whole steps
    (whole, one), (parts, four) = (steps(replace(config, "train", gradient_accumulation=n), ONE, 2) for n in (1, 4))
    assert_close(parts, whole, "loss")
    jax.tree.map(functools.partial(assert_close, what="loss"), four.params, one.params)
    jax.tree.map(functools.partial(assert_close, what="loss"), four.optimizer, one.optimizer)


def test_bfloat16_keeps_float32_parameters_and_learns():
    config = tiny_config(DataConfig(), {"compute_dtype": "bfloat16", "scan_layers": True, "remat": True})
    optimizer = dataclasses.replace(config.optimizer, peak_learning_rate=3e-2, schedule="constant")
    mesh = mesh_of(ONE)
    with jax.set_mesh(mesh):
        make_state, step, _ = programs(dataclasses.replace(config, optimizer=optimizer), mesh)
        state, batch, losses = make_state(), place_rows(rows(0)), []
        for _ in range(20):
            state, metrics = step(state, batch, batch)
            losses.append(float(metrics["loss"]))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.optimizer)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert losses[-1] < losses[0] - 1, losses


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def signal_at_step(monkeypatch, step: int) -> None:
    """SIGTERM while the batch of a step is placed."""
    calls, placed = iter(range(10**6)), loop.put_batch

    def put_batch_with_signal(*arguments):
        if next(calls) == 2 * (step - 1):
            signal.raise_signal(signal.SIGTERM)
        return placed(*arguments)

    monkeypatch.setattr(loop, "put_batch", put_batch_with_signal)


@pytest.mark.versions
def test_run_stops_when_asked_and_a_whole_run_is_left_alone(tiny_data, tmp_path, monkeypatch):
    config = tiny_config(tiny_data, DROPOUT, steps=4, validate_every=2, checkpoint_every=10)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 3)
        with pytest.raises(Interrupted, match=r"SIGTERM: step 3 of 4 is saved .*Run the same command to go on"):
            train(config, tmp_path / "run")
    assert Checkpoints(tmp_path / "run", read_only=True).latest() == 3
    with pytest.raises(ConfigError, match=r"optimizer\.beta1: 0\.9 -> 0\.5"):
        train(replace(config, "optimizer", beta1=0.5), tmp_path / "run")

    train(replace(replace(config, "mesh", fsdp=2), "evaluate", max_tokens=100), tmp_path / "run")
    actual = lines(tmp_path / "run")
    assert [line["step"] for line in actual] == [1, 2, 2, 3, 4, 4]
    measured = {"step", "loss", "bits_per_byte", "grad_norm", "parameter_norm", "learning_rate", "tokens_per_second"}
    assert set(actual[0]) == measured | {"flops_per_second"}
    assert set(actual[2]) == {"step", "valid_loss_16", "valid_bits_per_byte_16"}
    assert all(line.get("tokens_per_second", 1) > 0 for line in actual), "a speed of 0 was logged"
    assert actual[0]["bits_per_byte"] == pytest.approx(actual[0]["loss"] / np.log(2))

    before = (tmp_path / "run/metrics.jsonl").stat().st_mtime_ns
    train(config, tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").stat().st_mtime_ns == before


def test_checkpoints_come_as_often_as_asked_however_often_is_validated(tiny_data, tmp_path, monkeypatch):
    saved, save = [], Checkpoints.save

    def noted(self, step, params, optimizer, validation_nats):
        saved.append((step, validation_nats is not None))
        save(self, step, params, optimizer, validation_nats)

    monkeypatch.setattr(Checkpoints, "save", noted)
    train(tiny_config(tiny_data, steps=7, validate_every=2, checkpoint_every=3), tmp_path / "run")
    assert saved == [(3, False), (6, True), (7, True)]
    assert [line["step"] for line in lines(tmp_path / "run") if "valid_loss_16" in line] == [2, 4, 6, 7]


def test_between_train_and_its_step_is_the_loop_alone(tiny_data, tmp_path, monkeypatch):
    package = Path(loop.__file__).parent
    calls = []

    class Reached(Exception):
        pass

    def step(*_):
        calls.extend(frame.name for frame in traceback.extract_stack() if package in Path(frame.filename).parents)
        raise Reached

    monkeypatch.setattr(sys.modules[train.__module__], "train_step", step)
    with pytest.raises(Reached):
        train(tiny_config(tiny_data), tmp_path / "run")
    assert calls == ["train", "run_steps"]


def test_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setitem(RANGES, "optimizer.peak_learning_rate", Range(0, 1e30))  # a lower one needs more steps
    config = tiny_config(tiny_data, steps=20, checkpoint_every=1)
    config = replace(config, "optimizer", peak_learning_rate=1e30)
    with pytest.raises(Diverged, match=r"got parameter_norm inf at step 2, .*The checkpoint of step 1 is kept in"):
        train(config, tmp_path / "run")
    assert Checkpoints(tmp_path / "run", read_only=True).latest() == 1
    assert [line["step"] for line in lines(tmp_path / "run")] == [1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(saved_state(config, tmp_path / "run")))


def test_infinite_gradient_stops_before_anything_is_saved(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(optax.tree, "norm", lambda _: jnp.float32(jnp.inf))
    with pytest.raises(
        Diverged, match=r"grad_norm inf, parameter_norm inf at step 1, .*No checkpoint had been saved yet"
    ):
        train(tiny_config(tiny_data, checkpoint_every=1), tmp_path / "run")
    assert Checkpoints(tmp_path / "run", read_only=True).latest() is None


def test_run_that_no_device_holds_is_refused_before_any_work(tiny_data, tmp_path, monkeypatch):
    config = tiny_config(tiny_data)
    monkeypatch.setattr(importlib.import_module("alibi_jax.train"), "free_memory", lambda: 2**30)
    for change in ({"batch_size": 2**25, "validate_lengths": (16,)}, {"batch_size": 2**26}):
        with pytest.raises(
            ConfigError, match=r"memory: got .* GiB at least for [\d,]+ parameters and .* at most 1 GiB"
        ):
            train(replace(config, "train", **change), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"memory: got 32.1 GiB at least for 2,154,102,848 parameters"):
        train(replace(config, "model", width=2**14, num_layers=2), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "corpora").exists()


def test_bad_input_is_refused_before_any_work(tiny_data, tmp_path):
    for change, error, message in [
        ({"batch_size": 12}, ConfigError, "multiple of 8"),
        ({"train_length": 10**6}, DataError, r"train_length: got 1000000 with a training stream of \d+ tokens"),
    ]:
        with pytest.raises(error, match=message):
            train(tiny_config(tiny_data, **change), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        assert (tmp_path / "corpora").exists() == ("batch_size" not in change)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_id_past_the_vocabulary_is_refused_before_any_work(split, tiny_data, tmp_path, monkeypatch):
    """Where opening the corpus did not see it."""
    tokens = Corpus.tokens

    def altered(corpus, name):
        ids = np.array(tokens(corpus, name), np.int32)
        ids[700] = 300 if name == split else ids[700]
        return ids

    def opened(*arguments, **options):
        corpus = open_corpus(*arguments, **options)
        monkeypatch.setattr(Corpus, "tokens", altered)
        return corpus

    monkeypatch.setattr(sys.modules[train.__module__], "open_corpus", opened)
    with pytest.raises(
        DataError, match=rf"{split} split of .*: got token 300 at index 700, expected ids from 0 to 255"
    ):
        train(tiny_config(tiny_data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_signals_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_requested() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop == ["SIGTERM"] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def events(path) -> list[Event]:
    """A TensorBoard file: records of length, checksum, event, checksum."""
    content, actual = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        actual.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return actual


def test_log_drops_what_came_after_the_checkpoint(tmp_path):
    with_lines = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        with_lines.write(step, {"loss": step / 2})
    with_lines.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    again = MetricsLog(tmp_path, 2)
    again.write(3, {"loss": 7.0})
    again.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 7.0}]
    first, second = (events(path) for path in sorted((tmp_path / "tensorboard").iterdir()))
    assert first[0].file_version == "brain.Event:2"
    assert [(event.step, event.summary.value[0].tag) for event in first[1:]] == [(1, "loss"), (2, "loss"), (3, "loss")]
    assert second[1].step == 3 and second[1].session_log.status == second[1].session_log.START
    assert second[2].summary.value[0].simple_value == 7.0


def test_log_of_a_run_that_begins_anew_takes_the_place_of_the_other(tmp_path):
    for loss in (1.0, 2.0):
        log = MetricsLog(tmp_path, 0)
        log.write(1, {"loss": loss})
        log.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]
    first, second = (events(path) for path in sorted((tmp_path / "tensorboard").iterdir()))
    assert len(first) == 2 and second[1].session_log.status == second[1].session_log.START and second[1].step == 1


DAMAGED_LOGS = {
    "no step": b'{"loss": 2}',
    "null": b"null}",
    "text": b'{"step": "1"}',
    "list": b"[{}, {}",
    "binary": b"\xff\x00}",
    "deep": b'{"step":' * 100_000 + b"}",
}


@pytest.mark.parametrize("kind", DAMAGED_LOGS)
def test_log_that_is_damaged_is_named(tmp_path, kind):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + DAMAGED_LOGS[kind] + b"\n")
    with pytest.raises(MetricsError, match=r"got a line in .*metrics\.jsonl that cannot be read"):
        MetricsLog(tmp_path, 5)


def test_a_validation_length_without_a_full_window_is_said():
    train = TrainConfig(validate_lengths=(128, 512, 513), validate_tokens=512)
    assert len(loop.unfilled_lengths(train, 10_000)) == 1
    assert "512 tokens of text, where one full window of 513" in loop.unfilled_lengths(train, 10_000)[0]
    assert len(loop.unfilled_lengths(train, 200)) == 2  # of a short text
    assert loop.unfilled_lengths(TrainConfig(), 20) == []  # nobody asked for a length
