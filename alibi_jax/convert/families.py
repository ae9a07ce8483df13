"""The families of checkpoints, by their names on the command line."""

from alibi_jax.convert import bloom, falcon, mpt
from alibi_jax.convert.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (bloom.FAMILY, falcon.FAMILY, mpt.FAMILY)}
