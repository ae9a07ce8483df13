"""Attention for Hopper GPUs by the kernels of mosaic_kernels.py (Pallas, Mosaic GPU): what they serve, and what they need.

They are the successors of pallas_gpu's, whose backend, Triton, a coming jax will not have. Where both can be had "auto" takes
those: on an H200 the one or the other is ahead by a few percent, and a model trains faster with those (pallas_gpu.py has the
figures). What holds: on an H200, with jax 0.11.2, they are within the tests' tolerances of float64, and no call hung; in Mosaic
GPU's interpreter they give what the reference gives, and race for no memory; jax 0.10.2 to 0.12 compile them for sm_90a, of
which 0.11.2 and 0.12 spill no register (but 44 to 52 bytes of dk, dv where heads of 128 have dropout). The interpreter
completes a product (wgmma) at once, so that it would miss a factor that is written over too early.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from alibi_jax.attention.implementation import Implementation, Inputs, Options, Residuals
from alibi_jax.attention.padded import padded_inputs, padded_residuals, with_row_bounds
from alibi_jax.sharding import Device

HOPPER = 9, 0  # the compute capability that has wgmma: neither older nor newer cards do
LEAST_WIDTH = 64  # channels: a row of 128 bytes, as the products want shared memory laid out


def _bias_by_key(options: Options, inputs: Inputs) -> bool:
    return options.causal and inputs.q.dtype != jnp.float32  # which only the interpreter takes, in tests


def _forward(options: Options, inputs: Inputs) -> tuple[Float[Array, "B T H D"], Float32[Array, "B H T"]]:
    from alibi_jax.attention import mosaic_kernels as kernels  # here, for its interface changes between versions of jax

    queries, width = inputs.q.shape[1], inputs.q.shape[3]
    kernel = kernels.Kernel(options, inputs.k.shape[1], width, _bias_by_key(options, inputs))
    out, logsumexp = kernels.run_forward(kernel, padded_inputs(options, inputs, kernel, LEAST_WIDTH))
    return out[:, :queries, :, :width], logsumexp[:, :, :queries]


def _backward(options: Options, inputs: Inputs, residuals: Residuals, wants_bias_gradient: bool) -> tuple:
    from alibi_jax.attention import mosaic_kernels as kernels

    queries, keys, width = inputs.q.shape[1], inputs.k.shape[1], inputs.q.shape[3]
    kernel = kernels.Kernel(options, keys, width, _bias_by_key(options, inputs))
    padded = padded_inputs(options, with_row_bounds(options, inputs), kernel, LEAST_WIDTH)
    arrays = padded, *padded_residuals(residuals, kernel.block_q, LEAST_WIDTH)
    dq, (dk, dv) = kernels.run_dq(kernel, *arrays), kernels.run_dkv(kernel, *arrays)
    return dq[:, :queries, :, :width], dk[:, :keys, :, :width], dv[:, :keys, :, :width], None


def _obstacle(card: Device, interpret: bool) -> str | None:
    """Returns why there is no Mosaic GPU kernel for a card: the card itself, or the installed jax."""
    if card.capability is None:  # it is not here, and known by its name
        hopper = card.kind.startswith(("NVIDIA H", "NVIDIA GH"))
    else:
        hopper = card.capability == HOPPER
    if not (interpret or hopper):
        return f"{card.kind} (it supports NVIDIA's Hopper cards, of compute capability 9.0)"
    try:
        from jax.experimental.pallas import mosaic_gpu as plgpu
    except ImportError as error:
        backend = f"Pallas's Mosaic GPU backend, which jax {jax.__version__} cannot load ({error})"
        return f"without {backend}. Install jax 0.10.2 to 0.12, which can"
    if interpret and not hasattr(plgpu, "InterpretGPUParams"):
        return f"interpret=True on jax {jax.__version__}, which interprets no Mosaic GPU kernel. Install jax 0.11.2 or later"
    return None


# The same function as `reference_attention`, with gradients for q, k and v. No float32: wgmma rounds it to 11 bits (tf32).
IMPLEMENTATION = Implementation(
    "mosaic_gpu",
    _forward,
    _backward,
    linear_bias_only=True,
    dtypes=("bfloat16", "float16"),
    largest_head_width=128,
    platform="gpu",
    obstacle=_obstacle,
)
