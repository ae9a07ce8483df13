"""Speed and memory beside peers, run with `python -m benchmarks.NAME`; figures are ratios of one run."""
