"""What each layer keeps for the backward pass with remat: a named choice, or "auto", the most that fits a device's memory.

"auto" goes by an estimate from sizes, because a model is traced before it is compiled. What a choice costs to the byte, `plan`
says. No choice changes a result beyond rounding.
"""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp

from alibi_jax.attention import SAVED_NAME
from alibi_jax.config import ModelConfig
from alibi_jax.config.sizes import STATE, matrices
from alibi_jax.plan.chips import chip_of
from alibi_jax.sharding import Device, device, local_size, num_shards

log = logging.getLogger(__name__)

ATTENTION = jax.checkpoint_policies.save_only_these_names(SAVED_NAME)
REMAT_SAVES = {  # beside each layer's input; those that recompute the least first
    "products": jax.checkpoint_policies.save_from_both_policies(  # attention's, and the products with parameters
        ATTENTION, jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
    "attention": ATTENTION,  # its output and log-sum-exp, so that attention, costly and no matrix product, is not recomputed
    "inputs": None,
}
HEADROOM = 0.75  # of the memory: an estimate may be a quarter too low (13.9 GiB for 18.3, without remat)
GPU_POOL = 0.75  # of a GPU's memory: what XLA takes of it unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
FLOAT32 = 4  # bytes
# arrays of the model's width, and of the MLP's (gated: twice as many), that a layer needs for its backward pass
WIDE, NARROW = 10, 2


def matrix_parameters(model: ModelConfig) -> int:
    """Returns the parameters of all matrices: attention, MLP and one embedding table."""
    return model.num_layers * matrices(model) + model.vocab_size * model.width


def _kept(model: ModelConfig, tensor: int) -> dict[str, float]:
    """Returns choice -> the channels of a token that a layer keeps on one of `tensor` devices, which split heads and MLP."""
    inputs = float(model.width)
    attention = inputs + model.width / tensor
    keys = model.kv_heads * model.head_width / (1 if model.kv_heads % tensor else tensor)
    hidden = (1 + model.gated_mlp) * model.mlp_width
    return {
        "inputs": inputs,
        "attention": attention,
        "products": attention + model.width + 2 * keys + (model.width + hidden) / tensor,  # output; k, v; q; hidden
    }


def estimated_peak(model: ModelConfig, rows: int, length: int) -> float:
    """Returns roughly the bytes of a device at the peak of a training step.

    `rows` sequences of `length` tokens are those of a micro-batch over all devices. Called inside `jax.set_mesh(mesh)`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    tokens = local_size(rows, "batch") * local_size(length, "length")
    size, tensor = jnp.dtype(model.compute_dtype).itemsize, num_shards(mesh, "heads")
    table = model.vocab_size * model.width
    state = STATE * matrix_parameters(model) / tensor / num_shards(mesh, "width")
    hidden = (1 + model.gated_mlp) * model.mlp_width / tensor
    layer = tokens * (WIDE * model.width + NARROW * hidden) * size
    kept = (model.num_layers + 1) * layer
    if model.remat:
        kept = model.num_layers * tokens * _kept(model, tensor)[model.remat_saves] * size + 2 * layer
    logits = 3 * min(model.logits_mib * 2**20, FLOAT32 * tokens * model.vocab_size / tensor)
    return state + kept + logits + (FLOAT32 + size) * table / tensor


def usable_bytes(device: Device) -> float:
    """Returns the bytes of memory that programs may have on one device; 0 where that is not known."""
    chip = chip_of(device.kind)
    if chip is None:
        return 0.0
    return chip.usable_bytes / chip.devices * (GPU_POOL if device.platform == "gpu" else 1)


@functools.cache
def _log_once(message: str, *arguments: object) -> None:
    log.info(message, *arguments)


def layers_keep(model: ModelConfig, rows: int, length: int) -> str:
    """Returns what each layer keeps for the backward pass: "all" without remat, else a key of REMAT_SAVES.

    For "auto" that is the one that recomputes the least of those that fit the device by `estimated_peak`, and "inputs" where
    its memory is not known. Called inside `jax.set_mesh(mesh)`, with the rows of a micro-batch.
    """
    if not model.remat or model.remat_saves != "auto":
        return model.remat_saves if model.remat else "all"
    limit = HEADROOM * usable_bytes(device())
    for saves in REMAT_SAVES:
        needed = estimated_peak(dataclasses.replace(model, remat_saves=saves), rows, length)
        if needed <= limit:
            break
    _log_once("remat: layers keep their %s for %d sequences of %d tokens", saves, rows, length)
    return saves
