"""Who takes part in the comparison of speed: our kernels, and what JAX, cuDNN, PyTorch and tokamax offer on a GPU.

Each in its favour: inputs lie as it likes them, masks are made outside the timing, and nothing is compiled inside it.
XLA's dense attention makes its bias [H, L, L] itself, which its compiler fuses. cuDNN's takes no such bias in linear memory, so
it has none. FlexAttention is compiled once a head width, for lengths that its compiler does not know (`dynamic=True`), as a
compilation a length would take minutes; that these are multiples of 128 it is told by an option, and so its kernels check no
bounds. tokamax takes ALiBi as a bias [H, 1, L] of the keys alone: a shift of a row drops out of the softmax.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alibi_jax.attention import attend
from alibi_jax.positions import LinearBias
from benchmarks.gpu.inputs import BLOCK, Inputs, make_inputs
from benchmarks.gpu.kernels import our_kernels
from benchmarks.gpu.part import attempt

FIRST_LENGTH = 5 * BLOCK  # that FlexAttention is compiled with, tokens
Direction = Literal["forward", "forward+backward"]
Call = Callable[[], Any]  # returns (out,) or (dq, dk, dv), each like q, before the device has finished
Bind = Callable[[Inputs], Call]
Lower = Callable[
    [Direction, Inputs], Callable[[], Bind]
]  # (direction, shapes of the inputs) -> a function that compiles
Attention = Callable[[Array, Array, Array, Array], Array]  # (q, k, v, slopes) -> out


class Contender(NamedTuple):
    """One way to compute attention."""

    name: str
    lower: Lower
    computes: Literal["visited", "causal", "all"] = "causal"  # which of the blocks of scores
    biased: bool = True  # computes ALiBi
    lengths: tuple[int, int] = (0, 2**30)  # shortest and longest it is timed at, tokens
    missing: str = ""  # why it cannot be had; "" where it can


def program(attention: Attention, direction: Direction) -> Callable[..., tuple[Array, ...]]:
    """Returns a function of `Inputs` that computes the output, or the gradients for q, k and v."""

    def forward(*inputs: Array) -> tuple[Array, ...]:
        q, k, v, _, slopes = inputs
        return (attention(q, k, v, slopes),)

    def backward(*inputs: Array) -> tuple[Array, ...]:
        q, k, v, weight, slopes = inputs
        return jax.vjp(lambda q, k, v: attention(q, k, v, slopes), q, k, v)[1](weight)

    return forward if direction == "forward" else backward


def of_jax(name: str, attention: Attention, **facts: Any) -> Contender:
    """Returns the contender of a JAX function."""

    def lower(direction: Direction, shapes: Inputs) -> Callable[[], Bind]:
        lowered = jax.jit(program(attention, direction)).lower(*shapes)

        def compile_() -> Bind:
            compiled = lowered.compile()
            return lambda inputs: lambda: compiled(*inputs)

        return compile_

    return Contender(name, lower, **facts)


def ours(implementation: str, interpret: bool, reach: bool = True) -> Attention:
    """Returns our attention by one implementation; without `reach` it skips nothing."""

    def attention(q: Array, k: Array, v: Array, slopes: Array) -> Array:
        tolerance = "auto" if reach else None
        bias = LinearBias(slopes)
        return attend(q, k, v, bias=bias, implementation=implementation, reach_tolerance=tolerance, interpret=interpret)

    return attention


def cudnn(q: Array, k: Array, v: Array, slopes: Array) -> Array:
    """Returns causal attention by cuDNN, without a bias."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def xla(q: Array, k: Array, v: Array, slopes: Array) -> Array:
    """Returns ALiBi attention by plain products and a softmax: dense, its scores float32."""
    positions = jnp.arange(q.shape[1])
    bias = LinearBias(slopes).block(positions, positions)[None]
    return jax.nn.dot_product_attention(q, k, v, bias=bias, is_causal=True, implementation="xla")


def tokamax(q: Array, k: Array, v: Array, slopes: Array) -> Array:
    """Returns ALiBi attention by tokamax's Mosaic GPU kernel."""
    from tokamax import dot_product_attention

    bias = slopes[None, :, None, None] * jnp.arange(k.shape[1], dtype=jnp.float32)[None, None, None]
    return dot_product_attention(q, k, v, bias=bias, is_causal=True, implementation="mosaic")


def causal_block_mask(length: int, place: str) -> Any:
    """Returns FlexAttention's mask of causal blocks: partial ones on the diagonal, full ones before it.

    The same as create_block_mask makes by looking at all [L, L] pairs, which takes it a compilation.
    """
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    count = length // BLOCK
    index = torch.arange(count, dtype=torch.int32, device=place)
    diagonal = index[:, None].expand(count, count)  # of the first alone, the rest is not read
    before = index[None].expand(count, count)
    partial = torch.ones_like(index)[None, None], diagonal[None, None].contiguous()
    full = index[None, None].contiguous(), before[None, None].contiguous()
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=lambda b, h, q, k: q >= k)


def flex_call(attention: Callable, direction: Direction, inputs: Inputs, place: str) -> Call:
    """Returns a call of FlexAttention, compiled or not, with an ALiBi score_mod."""
    import torch

    arrays = [torch.from_dlpack(x).transpose(1, 2).contiguous() for x in inputs[:4]]
    slopes = torch.from_dlpack(inputs.slopes).clone()
    *qkv, weight = arrays
    mask = causal_block_mask(inputs.q.shape[1], place)
    for x in qkv:
        x.requires_grad_(direction != "forward")

    def forward() -> Any:
        return attention(
            *qkv,
            score_mod=lambda score, b, h, q, k: score - slopes[h] * (q - k),
            block_mask=mask,
            kernel_options={"IS_DIVISIBLE": True},
        )

    if direction == "forward":
        return lambda: (forward(),)
    return lambda: torch.autograd.grad(forward(), qkv, weight)


def lower_flex(place: str) -> Lower:
    """Returns what makes calls of FlexAttention; the first time it compiles, once for each direction and head width."""

    def lower(direction: Direction, shapes: Inputs) -> Callable[[], Bind]:
        reason = first_flex_call(direction, *shapes.q.shape[2:], place)
        if reason:
            raise RuntimeError(reason)
        return lambda: lambda inputs: flex_call(compiled_flex(), direction, inputs, place)

    return lower


@functools.cache
def first_flex_call(direction: Direction, heads: int, width: int, place: str) -> str:
    """Calls FlexAttention, so that it is compiled, and returns why it could not be, or "". Kept, as it may take a minute.

    At FIRST_LENGTH no two dimensions are equal: the compiler would take those for one, and compile anew where they differ.
    """
    inputs = make_inputs(FIRST_LENGTH, heads, width, False)
    return attempt(lambda: wait(flex_call(compiled_flex(), direction, inputs, place)()))[1]


@functools.cache
def compiled_flex() -> Callable:
    """Returns FlexAttention as it will be compiled when it is called."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def as_jax(outputs: Any) -> list[Float[Array, "B L H D"]]:
    """Returns a call's outputs as JAX arrays, PyTorch's [B, H, L, D] turned."""
    if isinstance(outputs[0], jax.Array):
        return list(outputs)
    return [jnp.from_dlpack(x.detach().transpose(1, 2).contiguous()) for x in outputs]


def wait(outputs: Any) -> None:
    """Returns when the device has computed a call's outputs."""
    if isinstance(outputs[0], jax.Array):
        jax.block_until_ready(outputs)
        return
    import torch

    if outputs[0].is_cuda:
        torch.cuda.synchronize()


def not_installed(package: str) -> str:
    """Returns why a package cannot be had, or ""."""
    return "" if importlib.util.find_spec(package) else f"the package {package} is not installed"


def make_contenders(interpret: bool, without: Mapping[str, str]) -> list[Contender]:
    """Returns all contenders, ours first; with `interpret` those that this machine can run without a GPU.

    without: kernel of ours -> why it is left out.
    """
    kernels = our_kernels(interpret, without)
    contenders = [of_jax(name, ours(name, interpret), computes="visited", missing=why) for name, why in kernels.items()]
    dense = of_jax("XLA, dense", xla, computes="all", lengths=(0, 8192))
    if interpret:
        return [*contenders, dense]
    at_32k = {"lengths": (32768, 32768)}
    for name, why in kernels.items():
        contenders.append(of_jax(f"{name}, nothing skipped", ours(name, False, False), **at_32k, missing=why))
    flex = Contender("FlexAttention", lower_flex("cuda"), missing=not_installed("torch"))
    peers = [flex, of_jax("cuDNN, no bias", cudnn, biased=False), dense]
    # tokamax 0.0.17's backward pass holds the bias's gradient as float32 [H, L, L]: 4 GiB at 8,192 tokens, 64 at 32,768
    return [*contenders, *peers, of_jax("tokamax", tokamax, lengths=(0, 8192), missing=not_installed("tokamax"))]
