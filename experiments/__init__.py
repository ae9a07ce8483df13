"""One script for each question, run with `python -m experiments.NAME`; README.md here says which answers what."""

import sys

from alibi_jax.run.start import start

if sys.argv[0] == "-m":  # Python sets this while it looks for the module to run, so nothing heavy has been imported
    start()
