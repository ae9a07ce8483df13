"""Speed of scoring text with an imported model beside transformers, whose files it was imported from: a random BLOOM.

Both score the same windows of the same tokens, in float32: the loss of every token, non-overlapping. Ours is the evaluation's
own function, token_nats, with what `alibi-jax import` wrote. Theirs is the model as from_pretrained loads it, in inference mode
and without a key-value cache, then cross_entropy; also under torch.compile. They take turns in one run; a time is the median of
several turns. Losses must agree.
"""

import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import tyro
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from alibi_jax.config import Config, MeshConfig, load_config
from alibi_jax.convert.importing import import_model
from alibi_jax.evaluate.nats import token_nats
from alibi_jax.evaluate.run import load_params
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.evaluate.tables import markdown
from alibi_jax.model import TransformerLM
from alibi_jax.run.invocation import recorded_command
from alibi_jax.sharding import make_mesh
from alibi_jax.storage import write_atomically
from benchmarks.bloom import make_bloom

SAME_NATS = 1e-4  # largest difference of a token's; they agree to about 1e-5
PAUSE = 0.1  # seconds between turns, so that the threads of the one before are asleep


@dataclasses.dataclass(frozen=True)
class Options:
    """Scoring with an imported BLOOM, and with BLOOM in transformers, in turns."""

    lengths: tuple[int, ...] = (1024, 4096)  # input lengths, tokens
    tokens: int = 8192  # tokens scored by a turn
    batch_tokens: int = 4096  # tokens of a batch of windows, where the length divides it
    repeats: int = 5  # timed turns of each, after one that is not
    width: int = 768  # channels of the residual stream; the MLP has four times as many
    num_layers: int = 12  # transformer layers
    num_heads: int = 12  # attention heads
    vocab_size: int = 32_768  # rows of the tied embedding
    compiled: bool = True  # also BLOOM under torch.compile
    out: Path | None = None  # also write the results into this folder, as speed.json and speed.md


def make_ours(config: Config, params: Any, stream: np.ndarray, length: int, batch: int) -> Callable[[], np.ndarray]:
    """A function that scores the stream with the imported model and returns the nats of every token."""
    model = TransformerLM(config.model)
    return lambda: token_nats(model, params, stream, length=length, first_input=0, batch_size=batch)


def make_peer(
    model: torch.nn.Module, stream: np.ndarray, length: int, batch: int, compiled: bool
) -> Callable[[], np.ndarray]:
    """The same of BLOOM."""

    def nats(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(inputs, use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")

    forward = torch.compile(nats, dynamic=False) if compiled else nats
    inputs = torch.tensor(np.append(0, stream[:-1]).reshape(-1, batch, length), dtype=torch.int64)
    targets = torch.tensor(stream.reshape(-1, batch, length), dtype=torch.int64)

    def take() -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([forward(*pair).numpy() for pair in zip(inputs, targets, strict=True)])

    return take


def imported(options: Options, folder: Path) -> tuple[Config, Any]:
    """Returns (config, parameters) of BLOOM as transformers saves it, imported; its files are in folder/theirs."""
    sizes = options.width, options.num_layers, options.num_heads, options.vocab_size
    make_bloom(*sizes).save_pretrained(folder / "theirs")
    import_model("bloom", folder / "theirs", folder / "ours", train_length=options.lengths[0])
    config = load_config(folder / "ours")
    return config, load_params(folder / "ours", config, "last")[1]


def measure(options: Options, contenders: dict[str, Callable[[], np.ndarray]], length: int) -> dict[str, Any]:
    """All at one length, in turns: each one's median seconds, their range, and tokens a second."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    nats = {name: take() for name, take in contenders.items()}
    apart = max(float(np.abs(each - nats["ours"]).max()) for each in nats.values())
    if apart > SAME_NATS:
        raise ValueError(f"nats: got {apart:.2g} apart, expected at most {SAME_NATS}. They do not compute the same.")
    for _ in range(options.repeats):
        for name, take in contenders.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            take()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(part) for name, part in times.items()}
    return {
        "length": length,
        "seconds": medians,
        "fastest_and_slowest": {name: (min(part), max(part)) for name, part in times.items()},
        "tokens_per_second": {name: options.tokens / median for name, median in medians.items()},
        "times_ours": {name: median / medians["ours"] for name, median in medians.items()},
        "largest_difference": apart,
        "load": os.getloadavg()[0],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Returns tokens a second by length and contender in Markdown, and how many times as long as ours each takes."""
    rows = [
        [
            f"{result['length']:,}",
            *(
                f"{speed:,.0f} ({result['times_ours'][name]:.2f}x)"
                for name, speed in result["tokens_per_second"].items()
            ),
        ]
        for result in results
    ]
    return markdown(["length", *results[0]["seconds"]], rows)


def page(options: Options, record: dict[str, Any]) -> str:
    """Returns the page of results."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    loads = ", ".join(f"{result['load']:.1f}" for result in record["results"])
    apart = max(result["largest_difference"] for result in record["results"])
    return f"""# An imported model beside transformers: tokens scored a second

{table(record["results"])}

In brackets: time over ours. A BLOOM of {record["parameters"]:,} random parameters ({options.num_layers} layers,
{options.width} channels, {options.num_heads} heads, {options.vocab_size:,} tokens), float32, {options.tokens:,} tokens in
non-overlapping windows, medians of {options.repeats} turns each, alternating; no token's loss differs by more than {apart:.1e}
nats.

`{record["command"]}`

{record["machine"]}, {os.cpu_count()} CPU cores, load over the last minute {loads}; {versions}; {record["date"][:10]}.
Where the load is above the number of cores, other programs were at work: the ratios hold, the tokens a second are low.
"""


def measure_all(options: Options) -> dict[str, Any]:
    """Returns the results at all lengths and where they come from, each printed when it is there."""
    stream = np.random.default_rng(0).integers(options.vocab_size, size=options.tokens)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        config, params = imported(options, Path(folder))
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "theirs").eval()
    for length in options.lengths:
        batch = max(1, options.batch_tokens // length)
        contenders = {"ours": make_ours(config, params, stream, length, batch)}
        contenders["BLOOM"] = make_peer(theirs, stream, length, batch, compiled=False)
        if options.compiled:
            contenders["BLOOM compiled"] = make_peer(theirs, stream, length, batch, compiled=True)
        results.append(measure(options, contenders, length))
        print(table(results[-1:]), flush=True)
    facts = provenance()
    facts["versions"] |= {name: version(name) for name in ("torch", "transformers")}
    count = sum(x.size for x in jax.tree.leaves(params))
    asked = {"command": recorded_command(), "options": dataclasses.asdict(options), "parameters": count}
    return asked | facts | {"results": results}


def main(options: Options) -> None:
    """Prints the table, and writes it where asked to."""
    torch.set_num_threads(os.cpu_count())
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        record = measure_all(options)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out / "speed.json", json.dumps(record, default=str) + "\n")
        write_atomically(options.out / "speed.md", page(options, record))


if __name__ == "__main__":
    main(tyro.cli(Options))
