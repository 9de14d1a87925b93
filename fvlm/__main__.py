"""`python -m fvlm STAGE [--setting S]`: what every DVC stage and every Snakemake rule calls."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
