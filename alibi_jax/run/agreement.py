"""Compares, before a run starts, what has to be the same on all its hosts: different programs would wait for each other."""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import jax

from alibi_jax.errors import ConfigError
from alibi_jax.run.exchange import first_host_first, from_first_host
from alibi_jax.run.hosts import several

PACKAGE = Path(__file__).parents[1]  # the folder of alibi_jax
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")
OWN_FLAGS = ("--xla_force_host_platform_device_count", "--xla_dump")  # of XLA, which each host may have its own of


def check_same(**own: Any) -> None:
    """Raises ConfigError on all hosts, which names the values, where one host has other values or programs than the first.

    own: values that JSON can hold.
    """
    if not several():
        return
    text = json.dumps(own | software())
    first = from_first_host(text)
    with first_host_first():
        differing = differences(json.loads(first), json.loads(text))
        if differing:
            raise ConfigError(
                f"hosts: got {'; '.join(differing)} (first host -> host {jax.process_index()}), expected the same on all "
                "hosts. Correct the options, the environment or the installation."
            )


def software() -> dict[str, Any]:
    """Returns what compiled programs depend on beside a config: versions, this package's text, JAX's settings, XLA's flags."""
    names = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    texts = [name.encode() + (PACKAGE / name).read_bytes() for name in names if not name.startswith("configs/")]
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(OWN_FLAGS)]
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "alibi_jax": hashlib.sha256(b"".join(texts)).hexdigest()[:12],
        "settings": {name: getattr(jax.config, name) for name in SETTINGS},
        "XLA_FLAGS": " ".join(sorted(flags)),
        "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
        "device": jax.local_devices()[0].device_kind,
    }


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Returns "a.b: 1 -> 2" for each value that differs between nested dicts; two NaNs are the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [*one, *(key for key in other if key not in one)]
        return [
            line
            for key in names
            for line in differences(one.get(key, "none"), other.get(key, "none"), f"{name}.{key}" if name else key)
        ]
    same = one == other or json.dumps(one) == json.dumps(other)
    return [] if same else [f"{name}: {one} -> {other}"]
