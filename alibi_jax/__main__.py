"""The commands of alibi_jax: behind `alibi-jax`, `python -m alibi_jax` and main.py stands this one start."""

import sys

from alibi_jax.run.start import start


def main() -> None:
    """Runs the command that the process was started with, and ends the process with its exit status."""
    start()
    from alibi_jax.run.command import exit_with
    from alibi_jax.run.parse import parse  # after `start`, for it takes seconds

    exit_with(lambda: parse(sys.argv[1:]))


if __name__ == "__main__":
    main()
