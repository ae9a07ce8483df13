"""How much memory does the loss over a large vocabulary take, whole and in chunks? Compiled only, nothing is run.

  python -m benchmarks.loss_memory

The gradient of the summed nats of 9,216 tokens (18 x 512) over WikiText-103's 267,744 tokens, float32, width 1,024: temporary
memory by the compiler's count, with all logits at once and with `logits_mib` 256, plain and adaptive (cutoffs 20,000, 60,000).
"""

import jax
import jax.numpy as jnp

from alibi_jax.model.loss import Weights, target_nats

WIDTHS, SIZES = (1024, 256, 64), (20_000, 40_000, 207_744)
ALL, CHUNKS = 2**20, 256  # logits_mib


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Returns the shape and type of a float32 array."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def mebibytes(features: list, weights: Weights, mib: int) -> int:
    """Returns the temporary memory (MiB) of the compiled gradient with at most `mib` MiB of logits held at once."""

    def total(features: list, weights: Weights) -> jax.Array:
        return target_nats(features, jnp.zeros((18, 512), jnp.int32), weights, logits_mib=mib).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(features, weights).compile()
    return round(compiled.memory_analysis().temp_size_in_bytes / 2**20)


def main() -> None:
    """Prints the memory of both softmaxes, with all logits at once and in chunks."""
    plain = [floats(18, 512, WIDTHS[0])], Weights([floats(sum(SIZES), WIDTHS[0])], None)
    tables = [floats(size, width) for size, width in zip(SIZES, WIDTHS, strict=True)]
    adaptive = [floats(18, 512, width) for width in WIDTHS], Weights(tables, floats(2, WIDTHS[0]))
    for name, (features, weights) in {"plain": plain, "adaptive": adaptive}.items():
        for mib in (ALL, CHUNKS):
            print(
                f"{name:<9}{'all logits' if mib == ALL else f'{mib} MiB':>11}{mebibytes(features, weights, mib):>8,} MiB"
            )


if __name__ == "__main__":
    main()
