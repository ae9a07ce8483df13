"""Training of a model of 110 million parameters on a GPU: ALiBi beside no position method, which has no bias to add and nothing
to skip.

Both take the real train step: bfloat16 activations, AdamW, TOKENS tokens a step, on the same attention kernels, in turns,
medians. MFU counts the operations of alibi_jax/model/flops.py, what the reach skips too, over the card's published dense
bfloat16 peak. With `--interpret` the model is tiny, and its attention is `reference`.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from alibi_jax.config import Config, ModelConfig, TrainConfig
from alibi_jax.config.sizes import parameter_count
from alibi_jax.model import TransformerLM
from alibi_jax.model.flops import peak_flops, train_flops_per_token
from alibi_jax.optimizer import make_optimizer
from alibi_jax.train import State, init_state, train_step
from benchmarks.gpu.contenders import our_kernels
from benchmarks.gpu.part import attempt, run_part
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
TURNS, SECONDS = 5, 0.4  # of each model; a turn repeats steps for so long


def rows(interpret: bool) -> Iterator[dict[str, Any]]:
    """Yields a row for each length, attention and position method."""
    model, lengths, tokens = (TINY, SMALL_LENGTHS, FEW_TOKENS) if interpret else (MODEL, LENGTHS, TOKENS)
    kernels = {"reference": ""} if interpret else our_kernels(interpret)
    yield from ({"attention": name, "skipped": why} for name, why in kernels.items() if why)
    for length in lengths:
        for attention in (name for name, why in kernels.items() if not why):
            yield from measure(model, attention, length, tokens)


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


class Run:
    """A model in training on one batch of random tokens: each call takes a step and returns the loss before it."""

    def __init__(self, config: Config):
        """Traces and lowers the step."""
        self.config = config
        step, self._make_state = make_step(config)
        batch = batch_shape(config)
        self._lowered = step.lower(jax.eval_shape(self._make_state), batch, batch)

    def start(self) -> float:
        """Compiles, makes the state, takes a step, and returns its loss in nats per token."""
        self._step = self._lowered.compile()
        self._state = jax.jit(self._make_state)()
        tokens = jax.random.randint(jax.random.key(1), batch_shape(self.config).shape, 0, self.config.model.vocab_size)
        self._batch = tokens, jnp.roll(tokens, -1, axis=1)
        return float(self())

    def __call__(self) -> jax.Array:
        """Returns before the device has finished."""
        self._state, metrics = self._step(self._state, *self._batch)
        return metrics["loss"]


def measure(model: ModelConfig, attention: str, length: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of one length and attention."""
    configs = {position: make_config(model, position, attention, length, tokens) for position in ("none", "alibi")}
    lowered = {position: attempt(functools.partial(Run, config)) for position, config in configs.items()}
    with ThreadPoolExecutor() as pool:
        futures = {position: pool.submit(attempt, run.start) for position, (run, _) in lowered.items() if run}
    started = {position: future.result() for position, future in futures.items()}
    reasons = {position: started[position][1] if run else reason for position, (run, reason) in lowered.items()}
    runs = {position: lowered[position][0] for position, reason in reasons.items() if not reason}
    times = in_turns(runs, jax.block_until_ready, TURNS, SECONDS)
    rates = {position: tokens / statistics.median(seconds) for position, seconds in times.items()}
    for position, config in configs.items():
        row = {"position": position, "attention": attention, "length": length, "batch": config.train.batch_size}
        row |= {"parameters": parameter_count(config.model), "loss": started.get(position, (None,))[0]}
        row |= {"passed": not reasons[position], "reason": reasons[position]}
        yield row | speeds(config, rates.get(position), rates.get("none"))


def speeds(config: Config, rate: float | None, without: float | None) -> dict[str, float | None]:
    """Returns tokens/s, milliseconds a step, MFU, and the rate over that of the model without a position method."""
    if rate is None:
        return dict.fromkeys(("tokens_per_second", "milliseconds", "mfu", "over_none"))
    peak, length = peak_flops(jax.devices()[0].device_kind), config.train.train_length
    return {
        "tokens_per_second": rate,
        "milliseconds": 1000 * config.train.batch_size * length / rate,
        "mfu": rate * train_flops_per_token(config.model, length) / peak if peak else None,
        "over_none": rate / without if without else None,
    }


if __name__ == "__main__":
    run_part("training", rows)
