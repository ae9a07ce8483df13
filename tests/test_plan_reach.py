"""The share of causal attention's blocks that a plan counts: a fraction, or what was measured on a run."""

from pathlib import Path

import pytest

from alibi_jax.errors import ConfigError
from alibi_jax.plan.reach import at_length, share_of

KERNELS = "+ mass of the nearest 8 keys (the kernels)"
HEADING = "model,length,layer,head,slope,bound,share_visited"


def reach_csv(folder: Path, *rows: str) -> Path:
    (folder / "reach.csv").write_text("\n".join([HEADING, *rows]) + "\n")
    return folder / "reach.csv"


def test_a_fraction_is_the_same_at_every_length():
    assert share_of(0.25)(1024) == share_of(0.25)(65_536) == 0.25


def test_the_mean_over_heads_of_the_model_that_visits_most(tmp_path):
    file = reach_csv(
        tmp_path,
        f"small,1024,0,0,0.5,{KERNELS},0.25",
        f"small,1024,0,1,0.1,{KERNELS},0.75",
        "small,1024,0,1,0.1,oracle,0.1",
        f"other,1024,0,0,0.5,{KERNELS},0.1",
        f"random,1024,0,0,0.5,{KERNELS},1.0",
    )
    assert share_of(file)(1024) == 0.5


def test_a_head_that_sees_as_many_keys_visits_a_smaller_share_of_a_longer_input(tmp_path):
    """A band of 1,000 tokens beside the diagonal, counted in the triangle; where all was visited, all is."""
    for length in (1000, 4000, 64_000):
        share = 1 - (1 - 1000 / length) ** 2
        assert at_length(1 - (1 - 1000 / 4000) ** 2, 4000, length) == pytest.approx(share)
    assert at_length(1.0, 4000, 64_000) == 1.0
    file = reach_csv(tmp_path, f"run,1024,0,0,0.5,{KERNELS},0.75", f"run,4096,0,0,0.5,{KERNELS},0.5")
    assert share_of(file)(512) == 1.0 > share_of(file)(2048) == at_length(0.75, 1024, 2048)
    assert share_of(file)(8192) == at_length(0.5, 4096, 8192)


def test_what_is_no_measurement_of_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="which is no file"):
        share_of(tmp_path / "reach.csv")
    with pytest.raises(ConfigError, match="without a trained model"):
        share_of(reach_csv(tmp_path, f"random,1024,0,0,0.5,{KERNELS},1.0"))
    (tmp_path / "reach.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="with columns a, b"):
        share_of(tmp_path / "reach.csv")


def test_the_committed_measurement_is_read():
    share = share_of(Path("experiments/results/reach/reach.csv"))
    assert 1 > share(1024) > share(4096) > share(65_536) > 0.1
