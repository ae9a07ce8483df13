"""Part b: one training step and evaluations of a small ALiBi model on the GPU, against float32 on the CPU.

  python -m benchmarks.gpu.step --out runs/gpu/parts/step.json [--interpret]

The GPU takes what "auto" chooses, in float32 and in bfloat16; that it is a kernel is read from the lowered program. The CPU
takes the definition, `reference`, in float32; where JAX has no CPU device, the GPU computes that too. Both start from the
same parameters. AdamW's epsilon is far above rounding here, as a step of lr g / (|g| + epsilon) would else be a sign of noise;
and the activation is smooth: of 4 million numbers that ReLU sees, rounding puts one on the other side of 0, and its gradient
alone moves the update by 1.7e-4.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alibi_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from alibi_jax.evaluate.nats import token_nats
from alibi_jax.model import TransformerLM
from alibi_jax.optimizer import make_optimizer
from alibi_jax.train import State, init_state, train_step
from benchmarks.gpu.part import attempt, run_part
from benchmarks.tolerances import TOLERANCE

LENGTH, SMALL_LENGTH = 1024, 160  # tokens; above the 128 up to which "auto" is dense
BATCH = 2  # sequences
STREAM = 4  # lengths, of the text that is scored
KERNELS = ("custom_call @__gpu$xla.gpu.triton", "custom_call @mosaic_gpu")  # in a lowered program, those of Pallas
MODEL = ModelConfig(num_layers=2, width=256, num_heads=4, mlp_width=1024, vocab_size=512, activation="gelu_tanh")
SMALL = ModelConfig(num_layers=1, width=32, num_heads=2, mlp_width=64, vocab_size=64, activation="gelu_tanh")
OPTIMIZER = OptimizerConfig(epsilon=1e-3, warmup_steps=0, schedule="constant")


class Setting(NamedTuple):
    """Where and how the model is computed."""

    device: jax.Device
    model: ModelConfig
    length: int

    def config(self) -> Config:
        """Returns the config of a run that takes it."""
        return Config(
            model=self.model, optimizer=OPTIMIZER, train=TrainConfig(train_length=self.length, batch_size=BATCH)
        )


def make_step(config: Config) -> jax.stages.Wrapped:
    """Returns step(state, inputs, targets) -> (state, metrics), jitted."""
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    return jax.jit(functools.partial(train_step, config, TransformerLM(config.model), optimizer))


def make_state(setting: Setting) -> State:
    """Returns the state before the first step, as numpy arrays: devices may round normal numbers differently."""
    with jax.default_device(setting.device):
        return jax.device_get(jax.jit(_initial(setting.config()))())


def _initial(config: Config) -> Callable[[], State]:
    return functools.partial(
        init_state, config, TransformerLM(config.model), make_optimizer(config.optimizer, config.train.steps)
    )


def make_tokens(length: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (inputs and targets of a batch, a stream to score) of a text that repeats itself, in part."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, vocab_size, (32, 8))
    stream = words[rng.integers(0, len(words), length * max(BATCH, STREAM) // 8 + 1)].ravel().astype(np.int32)
    rows = stream[: BATCH * length + 1]
    return rows[:-1].reshape(BATCH, length), rows[1:].reshape(BATCH, length), stream[: STREAM * length]


def take_step(setting: Setting, state: State) -> dict[str, np.ndarray]:
    """Returns the loss in nats, the gradient's norm, and how far the parameters moved, in units of the learning rate."""
    step = make_step(setting.config())
    inputs, targets, _ = make_tokens(setting.length, setting.model.vocab_size)
    with jax.default_device(setting.device):
        after, metrics = jax.device_get(step(*jax.device_put((state, inputs, targets), setting.device)))
    moved = jax.tree.map(lambda x, y: ((x - y) / OPTIMIZER.peak_learning_rate).ravel(), after.params, state.params)
    return {
        "loss": metrics["loss"],
        "grad_norm": metrics["grad_norm"],
        "update": np.concatenate(jax.tree.leaves(moved)),
    }


def score(setting: Setting, state: State, times: int, stride: int | None) -> np.ndarray:
    """Returns the nats of every token at `times` the setting's length; a stride of None is the non-overlapping protocol."""
    *_, stream = make_tokens(setting.length, setting.model.vocab_size)
    params = jax.device_put(state.params, setting.device)
    options = {"length": times * setting.length, "stride": stride, "first_input": 0, "batch_size": 1}
    with jax.default_device(setting.device):
        return token_nats(TransformerLM(setting.model), params, stream, **options)


def results(setting: Setting, state: State) -> Iterator[tuple[str, Any]]:
    """Yields (what, numbers) of a step and of evaluations at two lengths by both protocols."""
    yield from take_step(setting, state).items()
    for times in (1, 2):
        for name, stride in (("non-overlapping", None), ("sliding", times * setting.length // 2)):
            what = f"nats at {times * setting.length} tokens, {name}"
            yield what, score(setting, state, times, stride)


def lowered(config: Config, **options: Any) -> str:
    """Returns the text of a training step as it is handed to the compiler; options: those of `jax.stages.Traced.lower`."""
    tokens = jax.ShapeDtypeStruct((BATCH, config.train.train_length), jnp.int32)
    return make_step(config).trace(jax.eval_shape(_initial(config)), tokens, tokens).lower(**options).as_text()


def kernel_calls(text: str) -> int:
    """Returns how many kernels of Pallas a lowered program calls."""
    return sum(text.count(name) for name in KERNELS)


def error_of(what: str, actual: Any, expected: Any) -> float:
    """Returns the largest error, in nats; of the update and of the gradient's norm, relative to its norm."""
    difference = np.asarray(actual, np.float64) - expected
    if what in ("update", "grad_norm"):
        return float(np.linalg.norm(difference) / np.linalg.norm(expected))
    return float(np.abs(difference).max())


def compare(setting: Setting, expected: dict[str, Any], state: State) -> Iterator[dict[str, Any]]:
    """Yields the rows of a setting; where a result cannot be had, those before it."""
    actual, start = results(setting, state), time.perf_counter()
    for what, exact in expected.items():
        values, reason = attempt(lambda: next(actual)[1])
        facts = {"what": what, "attention": setting.model.attention, "dtype": setting.model.compute_dtype}
        facts["seconds"], start = time.perf_counter() - start, time.perf_counter()
        if reason:
            yield facts | {"passed": False, "reason": reason}
            return
        error = error_of(what, values, exact)
        allowed = TOLERANCE[f"step {what.split()[0]} {setting.model.compute_dtype}"]
        yield facts | {"error": error, "tolerance": allowed, "passed": error <= allowed}


def other_device() -> jax.Device:
    """Returns the CPU, or the default device where JAX was started without."""
    with contextlib.suppress(RuntimeError):
        return jax.devices("cpu")[0]
    return jax.devices()[0]


def rows(interpret: bool) -> Iterator[dict[str, Any]]:
    """Yields whether the step calls kernels, then every result's error beside its tolerance. Without a GPU "auto" takes
    `blockwise`, and no kernel is asked for."""
    model, length = (SMALL, SMALL_LENGTH) if interpret else (MODEL, LENGTH)
    definition = dataclasses.replace(model, attention="reference", compute_dtype="float32")
    exactly = Setting(other_device(), definition, length)
    state = make_state(exactly)
    expected = dict(results(exactly, state))
    for dtype in ("float32", "bfloat16"):
        chosen = dataclasses.replace(model, attention="auto", compute_dtype=dtype)
        setting = Setting(jax.devices()[0], chosen, length)
        text, reason = attempt(functools.partial(lowered, setting.config()))
        calls = kernel_calls(text or "")
        facts = {"what": "kernels in the step", "dtype": dtype, "calls": calls, "reason": reason}
        yield facts | {"passed": calls > 0 or (interpret and not reason)}
        yield from compare(setting, expected, state)


if __name__ == "__main__":
    run_part("step", rows, autotuned=False)
