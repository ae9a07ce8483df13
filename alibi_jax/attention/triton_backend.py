"""Pallas's Triton backend, on which the kernels of pallas_gpu.py run: which cards it serves, with which jax, and its end.

Pallas deprecates it from jax 0.11 on. It is imported where it is needed, for some day it will be gone.
"""

import functools
import logging
import re
import warnings

import jax

from alibi_jax.attention.tiles import OLDEST
from alibi_jax.sharding import Device

log = logging.getLogger(__name__)

# The filter of the warning that says so, as Python keeps it: (action, message, category, module, line).
DEPRECATION = (
    "ignore",
    re.compile("The Pallas Triton backend is deprecated", re.IGNORECASE),
    DeprecationWarning,
    None,
    0,
)


def obstacle(card: Device, interpret: bool) -> str | None:
    """Returns why there is no Triton kernel for a card: the card itself, or the installed jax."""
    if interpret:
        return None
    if card.capability is None:  # it is not here, and known by its name
        serves, known = card.kind.startswith("NVIDIA"), ""
    else:
        serves, known = card.capability >= OLDEST, ", of compute capability {}.{}".format(*card.capability)
    if not serves:
        return f"{card.kind}{known} (it supports NVIDIA's cards from compute capability {OLDEST[0]}.{OLDEST[1]} on)"
    try:
        from jax.experimental.pallas.triton import CompilerParams, elementwise_inline_asm  # noqa: F401
    except ImportError as error:
        return f"without Pallas's Triton backend, which jax {jax.__version__} lacks ({error}). Install jax 0.12, which has it"
    return _unknown_to_jax(card)


def _unknown_to_jax(card: Device) -> str | None:
    """Returns why jax cannot lower Triton for a card: from 0.11 on it goes by the name where NVIDIA's card is not here."""
    from jax.experimental.pallas import triton

    here = card.capability is not None and card.kind.startswith("NVIDIA")
    if here or not hasattr(triton, "get_gpu_info"):
        return None
    try:
        triton.get_gpu_info()
    except ValueError as error:
        return f"{card.kind}, a name that jax {jax.__version__} does not know ({error})"
    return None


@functools.cache
def _log_deprecation() -> None:
    log.info(
        "attention: pallas_gpu runs on Pallas's Triton backend, which a jax later than %s will not have. Without it "
        "'auto' takes mosaic_gpu on Hopper, blockwise on other cards.",
        jax.__version__,
    )


def expect_deprecation() -> None:
    """Turns jax's DeprecationWarning about the Triton backend, that one message alone, into one line of our log.

    It comes with every kernel, when it is lowered: after pallas_gpu's code has returned, so that only a filter of the whole
    process reaches it. It asks for another backend, which no user of attend() can choose. Whatever filter the caller has set
    since stands behind it; where it is the first already it stays, for each change makes Python repeat all other warnings.
    """
    if warnings.filters[:1] != [DEPRECATION]:
        warnings.filterwarnings("ignore", DEPRECATION[1].pattern, DeprecationWarning)
    _log_deprecation()
