"""A GPU that is not here, for programs that are traced and lowered for it."""

from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from alibi_jax.sharding import AXES

H100 = "NVIDIA H100 80GB HBM3"


def mesh_of(kind: str = H100) -> AbstractMesh:
    """Returns a mesh of one such GPU, of which a trace sees platform and kind."""
    card = AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    return AbstractMesh((1,) * len(AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=card)
