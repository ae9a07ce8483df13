"""One script for each question, run with `python -m experiments.NAME`; README.md here says which answers what."""
