"""Training of a model of 110 million parameters on a GPU: ALiBi beside no position method, which has no bias to add and nothing
to skip.

Both take the real train step: bfloat16 activations, AdamW, TOKENS tokens a step, on the same attention kernels, in turns,
medians. MFU counts the operations of alibi_jax/model/flops.py, what the reach skips too, over the card's published dense
bfloat16 peak. With `--interpret` the model is tiny, and its attention is `reference`.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from alibi_jax.config import Config, ModelConfig, TrainConfig
from alibi_jax.config.sizes import parameter_count
from alibi_jax.model import TransformerLM
from alibi_jax.model.flops import peak_flops, train_flops_per_token
from alibi_jax.optimizer import make_optimizer
from alibi_jax.train import State, init_state, train_step
from benchmarks.gpu.kernels import ALL_TAKE_PART, our_kernels
from benchmarks.gpu.part import attempt, run_part
from benchmarks.gpu.programs import compile_each
from benchmarks.gpu.turns import in_turns

MODEL = ModelConfig(
    num_layers=12,
    width=768,
    num_heads=12,
    mlp_width=3072,
    vocab_size=32_768,
    compute_dtype="bfloat16",
    scan_layers=True,  # a layer is compiled once
    logits_mib=8192,  # no logits are recomputed
)
TINY = dataclasses.replace(MODEL, num_layers=2, width=32, num_heads=2, mlp_width=64, vocab_size=64)
LENGTHS, SMALL_LENGTHS = (1024, 4096, 16_384), (64,)
TOKENS, FEW_TOKENS = 32_768, 128  # a step
POSITIONS = ("none", "alibi")
TURNS, SECONDS = 5, 0.4  # of each model; a turn repeats steps for so long


def rows(interpret: bool, without: Mapping[str, str] = ALL_TAKE_PART) -> Iterator[dict[str, Any]]:
    """Yields a row for each length, attention and position method; without: kernel -> why it is left out."""
    model, lengths, tokens = (TINY, SMALL_LENGTHS, FEW_TOKENS) if interpret else (MODEL, LENGTHS, TOKENS)
    kernels = {"reference": ""} if interpret else our_kernels(interpret, without)
    yield from ({"attention": name, "skipped": why} for name, why in kernels.items() if why)
    _, make_state = make_step(make_config(model, "none", "reference", lengths[0], tokens))
    make_state = jax.jit(make_state)  # of all models: neither has parameters of positions
    for length in lengths:
        chosen = [(attention, position) for attention, why in kernels.items() if not why for position in POSITIONS]
        yield from measure({key: make_config(model, *reversed(key), length, tokens) for key in chosen}, make_state)


def make_config(model: ModelConfig, position: str, attention: str, length: int, tokens: int) -> Config:
    """Returns the config of a run with batches of `tokens` tokens."""
    model = dataclasses.replace(model, position=position, attention=attention)
    return Config(model=model, train=TrainConfig(train_length=length, batch_size=tokens // length))


def make_step(config: Config) -> tuple[jax.stages.Wrapped, Callable[[], State]]:
    """Returns (the jitted step, which consumes its state, a function that makes the state)."""
    model, optimizer = TransformerLM(config.model), make_optimizer(config.optimizer, config.train.steps)
    step = jax.jit(functools.partial(train_step, config, model, optimizer), donate_argnums=0)
    return step, functools.partial(init_state, config, model, optimizer)


def batch_shape(config: Config) -> jax.ShapeDtypeStruct:
    """Returns the shape of a batch of tokens."""
    return jax.ShapeDtypeStruct((config.train.batch_size, config.train.train_length), jnp.int32)


def lower(config: Config) -> Callable[[], jax.stages.Compiled]:
    """Returns what compiles the step, which is traced and lowered."""
    step, make_state = make_step(config)
    batch = batch_shape(config)
    return step.lower(jax.eval_shape(make_state), batch, batch).compile


class Run:
    """A model in training on one batch of random tokens: each call takes a step."""

    def __init__(self, config: Config, step: jax.stages.Compiled, make_state: Callable[[], State]):
        """Takes two steps; `loss` is that before them, in nats per token. FloatingPointError where one is not finite."""
        tokens = jax.random.randint(jax.random.key(1), batch_shape(config).shape, 0, config.model.vocab_size)
        self._step, self._state, self._batch = step, make_state(), (tokens, jnp.roll(tokens, -1, axis=1))
        self.loss, after = float(self()), float(self())  # the second shows the first one's gradients, too
        if not math.isfinite(self.loss + after):
            raise FloatingPointError(
                f"got losses of {self.loss:.4g} and, a step later, {after:.4g}, expected finite ones"
            )

    def __call__(self) -> jax.Array:
        """Returns the loss before the step, and does not wait for the device."""
        self._state, metrics = self._step(self._state, *self._batch)
        return metrics["loss"]


def measure(configs: dict[tuple[str, str], Config], make_state: Callable[[], State]) -> Iterator[dict[str, Any]]:
    """Yields a row for each (attention, position method) of one length."""
    started = compile_each({key: functools.partial(lower, config) for key, config in configs.items()})
    for key, (step, reason) in started.items():
        if not reason:
            started[key] = attempt(functools.partial(Run, configs[key], step, make_state))
    runs = {key: run for key, (run, reason) in started.items() if not reason}
    times = in_turns(runs, jax.block_until_ready, TURNS, SECONDS)
    seconds = {key: statistics.median(turns) for key, turns in times.items()}
    for key, config in configs.items():
        row = {"position": config.model.position, "attention": config.model.attention}
        row |= {"length": config.train.train_length, "batch": config.train.batch_size}
        row |= {"parameters": parameter_count(config.model), "loss": runs[key].loss if key in runs else None}
        row |= {"passed": key in runs, "reason": started[key][1]}
        yield row | speeds(config, seconds.get(key), seconds.get((key[0], "none")))


def speeds(config: Config, seconds: float | None, without: float | None) -> dict[str, float | None]:
    """Returns tokens/s, milliseconds a step, MFU, and the rate over that of the model without a position method.

    seconds: of a step; without: those of that model.
    """
    if seconds is None:
        return dict.fromkeys(("tokens_per_second", "milliseconds", "mfu", "over_none"))
    length, peak = config.train.train_length, peak_flops(jax.devices()[0].device_kind)
    rate = config.train.batch_size * length / seconds
    return {
        "tokens_per_second": rate,
        "milliseconds": 1000 * seconds,
        "mfu": rate * train_flops_per_token(config.model, length) / peak if peak else None,
        "over_none": without / seconds if without else None,
    }


if __name__ == "__main__":
    run_part("training", rows)
