"""What `--version` prints: the versions of the package and of JAX, and the devices that JAX sees."""

import collections

import jax

from alibi_jax import __version__


def version_text() -> str:
    """Returns the versions and devices on two lines."""
    return f"alibi_jax {__version__}, jax {jax.__version__}\ndevices: {_devices()}"


def _devices() -> str:
    """Returns the devices, such as "8 TPU v5 lite"; where an accelerator does not start, JAX's reason."""
    try:
        devices = jax.devices()
    except RuntimeError as error:
        return f"none ({str(error).partition(chr(10))[0]})"
    kinds = collections.Counter(device.device_kind for device in devices)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())
