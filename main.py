"""The commands of alibi_jax, from a checkout: `python main.py --help`. Installed they are `alibi-jax`."""

from alibi_jax.__main__ import main

if __name__ == "__main__":
    main()
