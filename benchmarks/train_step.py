"""Speed of a training step beside the nearest model others wrote: BLOOM of transformers (PyTorch), which is ALiBi too.
And beside our own model without any position method, which has no bias to add, and nothing to skip.

A step is forward, loss, backward, clip of the global norm and AdamW, in float32 without dropout. Ours, BLOOM as it is and
BLOOM under torch.compile take turns in one run; a time is the median of several turns. All start from the same weights
and see the same tokens, so their losses at the last turn must agree; they do to about 1e-6.

The peer as it is here, each choice the faster of what there is on a CPU or in its favour: "eager" attention, as
transformers offers no other for BLOOM (sdpa, flex and flash raise ValueError); no key-value cache; contiguous int64
tokens; the loss straight from the logits, without the copy the model's own `labels` makes; AdamW fused; gradients set to
None; clip over all tensors at once; one compilation for each shape.
"""

import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from torch.nn.functional import cross_entropy

from alibi_jax.config import Config, OptimizerConfig, TrainConfig
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.model import TransformerLM
from alibi_jax.optimizer import make_optimizer
from alibi_jax.run.invocation import recorded_command
from alibi_jax.storage import write_atomically
from alibi_jax.train import State, train_step
from benchmarks.bloom import make_bloom, model_config, params_of_bloom, torch_adamw

SAME_LOSS = 1e-4  # nats; they agree to about 1e-6
NO_POSITION = "no bias"  # our model without a position method
PAUSE = 0.1  # seconds between turns, so that the threads of the one before are asleep


@dataclasses.dataclass(frozen=True)
class Options:
    """A training step of alibi_jax and of BLOOM, in turns."""

    lengths: tuple[int, ...] = (256, 1024, 4096)  # input lengths, tokens
    tokens: int = 4096  # tokens of a step, where the length divides it; at least one sequence
    repeats: int = 3  # timed turns of each, after one that is not
    width: int = 256  # channels of the residual stream; the MLP has four times as many
    num_layers: int = 2  # transformer layers
    num_heads: int = 8  # attention heads
    vocab_size: int = 4096  # rows of the tied embedding
    attention: str = "auto"  # ours: implementation of attention
    compiled: bool = True  # also BLOOM under torch.compile; its compilation takes most of the run
    out: Path | None = None  # also write the results there, as JSON


def make_ours(config: Config, params: Any, inputs: np.ndarray, targets: np.ndarray) -> Callable[[], float]:
    """A function that takes one step, waits for all of it, and returns the loss before the step."""
    model, optimizer = TransformerLM(config.model), make_optimizer(config.optimizer, config.train.steps)
    step = jax.jit(functools.partial(train_step, config, model, optimizer), donate_argnums=0)
    params = jax.tree.map(jnp.copy, params)  # the step donates them
    state = State(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    batch = jnp.asarray(inputs, jnp.int32), jnp.asarray(targets, jnp.int32)

    def take() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, *batch))
        return float(metrics["loss"])

    return take


def make_peer(
    config: Config, model: torch.nn.Module, inputs: np.ndarray, targets: np.ndarray, compiled: bool
) -> Callable[[], float]:
    """The same of BLOOM."""
    optimizer = torch_adamw(model, config.optimizer)
    batch = torch.tensor(inputs, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64)

    def mean_nats(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())

    forward = torch.compile(mean_nats, dynamic=False) if compiled else mean_nats

    def take() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm, foreach=True)
        optimizer.step()
        return loss.item()

    return take


def make_contenders(options: Options, length: int, batch: int) -> tuple[dict[str, Callable[[], float]], int]:
    """Name -> a function that takes one step, and the number of parameters of each."""
    sizes = options.width, options.num_layers, options.num_heads, options.vocab_size
    optimizer = OptimizerConfig(schedule="constant", warmup_steps=0)
    train = TrainConfig(train_length=length, batch_size=batch)
    config = Config(model=model_config(*sizes, attention=options.attention), optimizer=optimizer, train=train)
    rows = np.random.default_rng(0).integers(options.vocab_size, size=(batch, length + 1))
    data = np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
    models = [make_bloom(*sizes) for _ in range(1 + options.compiled)]
    params = params_of_bloom(models[0])
    count, theirs = (sum(x.size for x in jax.tree.leaves(params)), sum(x.numel() for x in models[0].parameters()))
    if count != theirs:
        raise ValueError(
            f"parameters: got {count:,} of ours and {theirs:,} of BLOOM, expected as many. Correct bloom.py."
        )
    contenders = {"ours": make_ours(config, params, *data)}
    without = dataclasses.replace(config, model=dataclasses.replace(config.model, position="none"))
    contenders[NO_POSITION] = make_ours(without, params, *data)
    for compiled, model in enumerate(models):
        contenders["compiled" if compiled else "BLOOM"] = make_peer(config, model, *data, bool(compiled))
    return contenders, count


def measure(options: Options, length: int) -> dict[str, Any]:
    """All at one length, in turns: each one's median milliseconds, their range, and its loss at the last step."""
    batch = max(1, options.tokens // length)
    contenders, count = make_contenders(options, length, batch)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    losses = {name: take() for name, take in contenders.items()}
    for _ in range(options.repeats):
        for name, take in contenders.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            losses[name] = take()
            times[name].append(1000 * (time.perf_counter() - start))
    same = [loss for name, loss in losses.items() if name != NO_POSITION]
    if max(same) - min(same) > SAME_LOSS:
        raise ValueError(f"losses: got {losses}, expected the same from all. They do not compute the same step.")
    medians = {name: statistics.median(part) for name, part in times.items()}
    return {
        "length": length,
        "batch": batch,
        "parameters": count,
        "milliseconds": medians,
        "fastest_and_slowest": {name: (min(part), max(part)) for name, part in times.items()},
        "tokens_per_second": {name: 1000 * batch * length / median for name, median in medians.items()},
        "times_ours": {name: median / medians["ours"] for name, median in medians.items()},
        "loss": losses,
    }


def table(result: dict[str, Any]) -> str:
    """The lines of one length: each contender's time, throughput, time over ours, and loss."""
    columns = result["milliseconds"], result["tokens_per_second"], result["times_ours"], result["loss"]
    where = f"{result['length']:>6} {result['batch']:>5}"
    return "\n".join(
        f"{where} {name:<9}{{:>9,.0f}}{{:>10,.0f}}{{:>9.2f}}{{:>10.5f}}".format(*(column[name] for column in columns))
        for name in result["loss"]
    )


def main(options: Options) -> None:
    """Prints the table, and writes it where asked to."""
    torch.set_num_threads(os.cpu_count())
    print(f"length batch {'model':<9}{'ms':>9}{'tokens/s':>10}{'x ours':>9}{'loss':>10}")
    results = []
    for length in options.lengths:
        results.append(measure(options, length))
        print(table(results[-1]), flush=True)
    print(f"parameters of each: {results[-1]['parameters']:,}")
    if options.out is not None:
        facts = provenance()
        facts["versions"] |= {name: version(name) for name in ("torch", "transformers")}
        record = {"command": recorded_command(), "options": dataclasses.asdict(options), **facts, "results": results}
        write_atomically(options.out, json.dumps(record, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
