"""What every implementation of attention is given beside its arrays."""

from typing import NamedTuple


class Options(NamedTuple):
    """What is fixed when attention is traced."""

    causal: bool
    dropout_rate: float
    reach_tolerance: float | None  # largest share of a row's softmax mass that may be skipped; None: skip nothing
    interpret: bool = False  # run a Pallas kernel step by step, on any device
