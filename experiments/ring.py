"""What does a ring save that goes no farther than the reach? Bytes sent at 32,768 tokens over 8 devices.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.ring --runs runs/wikitext2/alibi-256 --out runs/ring

Counts what one device sends in attention of one layer and its gradient: every transfer in the compiled program, times how
often it happens. Where the data decide that, the ring itself is asked how many shards back each head looks: for queries and
keys of every layer of trained ALiBi models on their own test text, and for normal random ones. Beside it stand a full ring
(nothing skipped) and what the compiler does with the dense definition, which is to gather keys and values.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from alibi_jax.attention import attend, blockwise, ring
from alibi_jax.attention.collectives import ring_size
from alibi_jax.attention.implementation import Inputs, Options
from alibi_jax.attention.reach import DEFAULT_TOLERANCE
from alibi_jax.config import MeshConfig
from alibi_jax.errors import ConfigError
from alibi_jax.evaluate.tables import markdown
from alibi_jax.plan.collectives import Collective, collectives
from alibi_jax.plan.hlo import Program
from alibi_jax.positions import LinearBias, alibi_slopes
from alibi_jax.run.command import exit_with
from alibi_jax.run.invocation import recorded_command
from alibi_jax.sharding import make_mesh, on_each_device, shard
from alibi_jax.storage import write_atomically
from experiments.reach import random_inputs, trained_inputs

HEADS = "batch", "length", "heads", "head_width"
MIB = 2**20


def steps_of(q: jax.Array, k: jax.Array, slopes: jax.Array) -> list[int]:
    """Returns how many of the 8 shards before its own each head looks back."""
    options = Options(True, 0.0, DEFAULT_TOLERANCE[q.dtype.name])
    size = ring_size()  # here: on each device the mesh has no axis left

    def measure(q: jax.Array, k: jax.Array, slopes: jax.Array) -> jax.Array:
        inputs = Inputs(q, k, k, LinearBias(slopes), jnp.int32(0), jnp.zeros((1, q.shape[2], 2), jnp.uint32))
        return ring.steps_taken(blockwise.IMPLEMENTATION, size, options, inputs)

    run = functools.partial(on_each_device, measure, dimensions=(HEADS, HEADS, ("heads",)), output=("heads",))
    return np.asarray(jax.jit(lambda *inputs: run(inputs))(q, k, slopes)).tolist()


def program(q: jax.Array, slopes: jax.Array, **options) -> list[Collective]:
    """Returns the transfers of attention and its gradient, compiled."""

    def both(*inputs: jax.Array) -> tuple:
        q, k, v, d_out = (shard(x, *HEADS) for x in inputs)
        out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, bias=LinearBias(slopes), **options), q, k, v)
        return tuple(shard(x, *HEADS) for x in (out, *vjp(d_out)))

    return collectives(Program(jax.jit(both).lower(q, q, q, q).compile().as_text()))


def sent(transfers: list[Collective], steps: list[int]) -> tuple[float, float]:
    """Returns the bytes of the forward pass and, at most, of the backward pass.

    A loop whose length the data decide is one of a head's: it looks `steps` shards back, of which the first is not in the loop,
    and brings gradients home over as many. The backward pass takes these steps or fewer.
    """
    further = sum(step - 1 for step in steps), sum(step for step in steps if step > 1)
    sums = [0.0, 0.0]
    for transfer in transfers:
        backward = "transpose(" in transfer.op_name
        sums[backward] += transfer.sent * (further[backward] if transfer.times is None else transfer.times)
    return sums[0], sums[1]


@dataclasses.dataclass(frozen=True)
class Ring:
    """Count what a ring sends, on trained models and random inputs."""

    runs: tuple[Path, ...] = ()  # folders of trained ALiBi runs
    length: int = 32_768  # tokens, over all devices
    out: Path = Path("runs/ring")  # folder of results.md

    def layers(self) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Returns (name, queries and keys) of random numbers and of every layer of the runs."""
        named = [("normal random numbers", random_inputs(self.length)[0])]
        for run in self.runs:
            layers = trained_inputs(run, self.length)
            named += [(f"{run.parent.name}/{run.name}, layer {i + 1}", layer) for i, layer in enumerate(layers)]
        return named

    def rows(self) -> list[list[str]]:
        """Returns a row of the table for each layer."""
        rows = []
        programs = {}
        for name, layer in self.layers():
            q, k = (jnp.asarray(layer[key], jnp.float32) for key in ("queries", "keys"))
            slopes = jnp.asarray(alibi_slopes(q.shape[2]))
            if q.shape not in programs:
                kinds = {"implementation": "blockwise"}, {"implementation": "blockwise", "reach_tolerance": None}
                programs[q.shape] = [program(q, slopes, **kind) for kind in (*kinds, {"implementation": "reference"})]
            steps = steps_of(q, k, slopes)
            ours, full, gathered = (sent(transfers, steps) for transfers in programs[q.shape])
            shown = [f"{forward / MIB:.1f} + {backward / MIB:.1f}" for forward, backward in (ours, full, gathered)]
            rows.append([name, ", ".join(map(str, steps)), *shown, f"{sum(full) / sum(ours):.1f}"])
        return rows

    def __call__(self) -> str:
        if jax.device_count() % 8:
            raise ConfigError(f"devices: got {jax.device_count()}, expected 8. Set XLA_FLAGS as the docstring says.")
        with jax.set_mesh(make_mesh(MeshConfig(data=1, sequence=8), jax.devices()[:8])):
            rows = self.rows()
        heading = ["queries and keys", "shards each head looks back", "ring to the reach", "full ring", "dense"]
        heading.append("full ring over ours")
        text = HEADER.format(length=self.length, table=markdown(heading, rows), command=recorded_command())
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / "results.md", text)
        return text


HEADER = """# What a ring saves that goes no farther than the reach

{length:,} tokens over 8 devices, float32, batch 1: MiB that one device sends in attention of one layer, forward + backward (for
the ring to the reach at most). Each of 8 shards holds 4,096 tokens; a full ring looks 7 back. Counted in the compiled program.

{table}

`{command}`
"""


if __name__ == "__main__":
    exit_with(lambda: tyro.cli(Ring))
