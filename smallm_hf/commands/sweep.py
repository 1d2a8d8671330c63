"""Trains a grid of settings and compares them."""

import sys

from smallm_hf.base.errors import UserError
from smallm_hf.experiments.configuration import parse_sweep


def main() -> None:
    """Trains the grid that the line describes."""
    grid, options = parse_sweep(sys.argv[1:])

    from smallm_hf.experiments.sweep import run_sweep  # torch: after the line has been read

    results = run_sweep(grid, options)
    if failed := results.get("failed"):
        raise UserError(f"{len(failed)} of {len(grid.configs)} runs failed: {', '.join(failed)}; --resume tries again")
