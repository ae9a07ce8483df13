"""How far does a head see, and how much of that can be proved? Blocks visited, bound by bound, beside an oracle.

  python -m experiments.reach --runs runs/quickstart/alibi runs/books --lengths 1024 4096 --out runs/reach

Takes queries and keys of every layer of trained ALiBi models on their own test text (and normal random ones), and counts, for
each head, which fraction of the causal blocks each bound of the skipped softmax mass would have visited, all at the same
tolerance. The oracle knows every score. Everything is computed in float64. `plan --attention-share` reads reach.csv. `--save`
also keeps one layer's inputs for benchmarks/attention.py.
"""

import csv
import dataclasses
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, Float64

from alibi_jax.attention.reach import DEFAULT_TOLERANCE, NEAREST
from alibi_jax.config import MeshConfig, load_config
from alibi_jax.data.corpus import open_corpus
from alibi_jax.errors import ConfigError
from alibi_jax.evaluate.run import load_params
from alibi_jax.model import TransformerLM
from alibi_jax.positions import alibi_slopes
from alibi_jax.positions.alibi import Alibi
from alibi_jax.run.command import exit_with
from alibi_jax.run.workdir import trained_on
from alibi_jax.sharding import make_mesh
from alibi_jax.storage import write_atomically

BLOCK = 128  # queries and keys of a block
PerBlock = Float64[np.ndarray, "L N"]  # for each query and block of keys
PerQuery = Float64[np.ndarray, " L"]
Layer = dict[str, Float[np.ndarray, "1 L H D"]]  # queries, keys, values


@dataclasses.dataclass(frozen=True)
class Head:
    """One head of one layer over a text: q (scaled by 1/sqrt(D)) and k [L, D] float64, and its slope."""

    q: Float64[np.ndarray, "L D"]
    k: Float64[np.ndarray, "L D"]
    slope: float

    def scores(self) -> Float64[np.ndarray, "L L"]:
        """Returns the scores with their bias, -inf after the query, [L, L]."""
        distances = np.arange(len(self.q))[:, None] - np.arange(len(self.q))[None, :]
        return np.where(distances >= 0, self.q @ self.k.T - self.slope * distances, -np.inf)


def log_sum(x: Float64[np.ndarray, "*rows n"]) -> Float64[np.ndarray, "*rows"]:
    """Returns the log of the sum of exp over the last axis."""
    largest = np.maximum(x.max(-1, keepdims=True), -1e300)
    with np.errstate(divide="ignore"):
        return np.squeeze(largest, -1) + np.log(np.exp(x - largest).sum(-1))


def block_masses(head: Head, bounds: PerBlock) -> PerBlock:
    """Returns an upper bound of the log mass of every block of keys [L, N], from one of its unbiased scores for each query."""
    length, blocks = bounds.shape
    nearest = np.maximum(np.arange(length)[:, None] - (np.arange(blocks) * BLOCK + BLOCK - 1)[None, :], 0)
    geometric = np.log(-np.expm1(-head.slope * BLOCK)) - np.log(-np.expm1(-head.slope))
    seen = (np.arange(blocks) * BLOCK)[None, :] <= np.arange(length)[:, None]
    return np.where(seen, bounds - head.slope * nearest + geometric, -np.inf)


def _fractions(log_masses: PerBlock, low: PerQuery) -> Float64[np.ndarray, "N N"]:
    """Largest fraction of a query's mass in a block of queries, for every block of keys, [N, N]."""
    fractions = np.exp(np.minimum(log_masses - low[:, None], 50.0))
    return fractions.reshape(-1, BLOCK, fractions.shape[1]).max(1)


def visited_in_a_range(log_masses: PerBlock, low: PerQuery, tolerance: float) -> float:
    """Returns the fraction of causal blocks visited if every block of queries skips the farthest blocks that it may."""
    skipped = (np.cumsum(_fractions(log_masses, low), 1) <= tolerance).sum(1)
    index = np.arange(len(skipped))
    return float((index - np.minimum(skipped, index) + 1).sum() / (index + 1).sum())


def visited_in_a_list(log_masses: PerBlock, low: PerQuery, tolerance: float) -> float:
    """Returns the same if it may skip any blocks, the lightest first."""
    fractions = _fractions(log_masses, low)
    kept = [i + 1 - (np.cumsum(np.sort(row[:i])) <= tolerance).sum() for i, row in enumerate(fractions)]
    return float(sum(kept) / sum(range(1, len(kept) + 1)))


def theorem(head: Head, tolerance: float) -> float:
    """Returns the fraction visited by W = (|q| K - own score + log(L / tolerance)) / m for each query, as first stated: its
    own score is all that is known."""
    length = len(head.q)
    largest = np.maximum.accumulate(np.linalg.norm(head.k, axis=-1))
    own = (head.q * head.k).sum(-1)
    reach = (np.linalg.norm(head.q, axis=-1) * largest - own + np.log(length / tolerance)) / head.slope
    first = (np.maximum(np.arange(length) - reach, 0) // BLOCK).reshape(-1, BLOCK).min(1)
    index = np.arange(len(first))
    return float((index - first + 1).sum() / (index + 1).sum())


def fractions_visited(head: Head, tolerance: float) -> dict[str, float]:
    """Returns bound -> fraction of causal blocks visited; each is sharper than the one before, or the same by another name."""
    scores = head.scores()
    length = len(head.q)
    blocks = length // BLOCK
    exact = log_sum(scores.reshape(length, blocks, BLOCK))
    distances = np.arange(length)[:, None] - np.arange(length)[None, :]
    own = head.q * head.k
    total = log_sum(exact)
    nearest = log_sum(np.where(distances < NEAREST, scores, -np.inf))
    near_block = log_sum(np.where(distances < BLOCK, scores, -np.inf))
    q_norms, k_norms = (np.linalg.norm(x, axis=-1) for x in (head.q, head.k))
    keys = head.k.reshape(blocks, BLOCK, -1)
    centres = keys.mean(1)
    radii = np.linalg.norm(keys - centres[:, None], axis=-1).max(1)
    running = np.repeat((q_norms * np.maximum.accumulate(k_norms))[:, None], blocks, 1)
    by_block = q_norms[:, None] * k_norms.reshape(blocks, BLOCK).max(1)[None]
    balls = np.minimum(by_block, head.q @ centres.T + q_norms[:, None] * radii[None])
    norm, block, ball = (block_masses(head, bounds) for bounds in (running, by_block, balls))
    in_range: Callable[..., float] = lambda masses, low: visited_in_a_range(masses, low, tolerance)  # noqa: E731
    return {
        "norms, own score (the theorem)": theorem(head, tolerance),
        "+ tail summed as a geometric series": in_range(norm, own.sum(-1)),
        f"+ mass of the nearest {NEAREST} keys (the kernels)": in_range(norm, nearest),
        f"+ mass of the nearest {BLOCK} keys": in_range(norm, near_block),
        "+ mass of all keys, known at the end (blockwise)": in_range(norm, total),
        "+ largest norm of each block": in_range(block, total),
        "+ a ball around each block": in_range(ball, total),
        "+ a list of blocks": visited_in_a_list(ball, total, tolerance),
        "oracle, range": in_range(exact, total),
        "oracle, list": visited_in_a_list(exact, total, tolerance),
    }


def trained_inputs(workdir: Path, length: int) -> list[Layer]:
    """Returns queries, keys, values [1, L, H, D] of every layer over the first `length` tokens of the run's test text."""
    config = load_config(workdir)
    model = config.model
    if model.position != "alibi" or Alibi.from_config(model) != Alibi(model.num_heads):
        raise ConfigError(
            f"{workdir}: got position {model.position!r}, expected alibi with the paper's slopes. Name such a run."
        )
    corpus = open_corpus(config.data, trained_on(workdir))
    tokens = jnp.asarray(np.asarray(corpus.tokens("test")[:length]), jnp.int32)[None]
    if tokens.shape[1] < length:
        raise ConfigError(f"{workdir}: got {tokens.shape[1]} test tokens, expected {length}. Ask for a shorter length.")
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        _, params = load_params(workdir, config, "best", corpus.fingerprint)
        run = jax.jit(
            lambda params: TransformerLM(config.model).apply({"params": params}, tokens, mutable="intermediates")
        )
        kept = run(params)[1]["intermediates"]
    if config.model.scan_layers:
        stacked = kept["layers"]["attention"]
        return [{name: np.asarray(stacked[name][0][i]) for name in stacked} for i in range(config.model.num_layers)]
    layers = [kept[f"layer_{i}"]["attention"] for i in range(config.model.num_layers)]
    return [{name: np.asarray(layer[name][0]) for name in layer} for layer in layers]


def random_inputs(length: int, heads: int = 8, width: int = 64) -> list[Layer]:
    """Returns normal random queries, keys, values [1, L, H, D] of one layer."""
    arrays = np.random.default_rng(0).normal(size=(3, 1, length, heads, width))
    return [dict(zip(("queries", "keys", "values"), arrays, strict=True))]


def heads_of(layer: Layer) -> list[Head]:
    """Returns the heads of one layer, with the paper's slopes; several may share their keys."""
    q, k = (layer[name][0].astype(np.float64).transpose(1, 0, 2) for name in ("queries", "keys"))
    keys = np.repeat(k, len(q) // len(k), axis=0)
    return [Head(q[h] / np.sqrt(q.shape[2]), keys[h], float(m)) for h, m in enumerate(alibi_slopes(len(q)))]


@dataclasses.dataclass(frozen=True)
class Reach:
    """Count the blocks each bound visits, on trained models and random inputs."""

    runs: tuple[Path, ...] = ()  # folders of trained ALiBi runs
    lengths: tuple[int, ...] = (1024, 4096)  # tokens of the inputs; multiples of 128
    tolerance: float = DEFAULT_TOLERANCE["float32"]  # largest fraction of a row's softmax mass that may be skipped
    out: Path = Path("runs/reach")  # folder of reach.csv and table.md
    save: Path | None = None  # also write q, k, v of the last run's last layer here, as .npz
    save_length: int = 16384  # tokens of those

    def inputs(self) -> Iterator[tuple[str, int, int, Layer]]:
        """Yields (model, length, layer, arrays)."""
        for length in self.lengths:
            if length % BLOCK:
                raise ConfigError(f"lengths: got {length}, expected a multiple of {BLOCK}. Round it.")
            for run in (None, *self.runs):
                name = "random" if run is None else run.name
                layers = random_inputs(length) if run is None else trained_inputs(run, length)
                for number, layer in enumerate(layers):
                    yield name, length, number, layer

    def __call__(self) -> str:
        rows = []
        for model, length, number, layer in self.inputs():
            for h, head in enumerate(heads_of(layer)):
                for bound, fraction in fractions_visited(head, self.tolerance).items():
                    rows.append((model, length, number, h, head.slope, bound, fraction))
            print(f"{model}, {length} tokens, layer {number}", file=sys.stderr)
        text = io.StringIO()
        csv.writer(text).writerows([("model", "length", "layer", "head", "slope", "bound", "share_visited"), *rows])
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / "reach.csv", text.getvalue())
        write_atomically(self.out / "table.md", table(rows))
        if self.save is not None:
            layer = (
                trained_inputs(self.runs[-1], self.save_length)[-1] if self.runs else random_inputs(self.save_length)[0]
            )
            q, k, v = (layer[name].astype(np.float32) for name in ("queries", "keys", "values"))
            np.savez(self.save, q=q, k=k, v=v)
        return f"{table(rows)}\n{self.out}/reach.csv"


def table(rows: list[tuple]) -> str:
    """Returns the mean fraction over layers and heads: a line for each bound, a column for each model and length."""
    columns = list(dict.fromkeys((row[0], row[1]) for row in rows))
    lines = ["| bound | " + " | ".join(f"{model}, {length:,}" for model, length in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for bound in dict.fromkeys(row[5] for row in rows):
        means = [np.mean([row[6] for row in rows if row[:2] == column and row[5] == bound]) for column in columns]
        lines.append(f"| {bound} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    exit_with(lambda: tyro.cli(Reach))
