"""The families of checkpoints, by their names on the command line."""

from alibi_jax.convert import baichuan, bloom, btlm, fairseq, falcon, mpt, own, refact
from alibi_jax.convert.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        bloom.FAMILY,
        mpt.FAMILY,
        falcon.FAMILY,
        btlm.BTLM,
        btlm.JAIS,
        baichuan.FAMILY,
        refact.FAMILY,
        fairseq.FAMILY,
        own.FAMILY,
    )
}
