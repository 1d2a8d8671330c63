"""Trains a grid of settings and compares them: python scripts/sweep.py --config RECIPE --vary training.seed=1,2,3"""

import sys

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.base.errors import UserError
from smallm_hf.experiments.configuration import parse_sweep


def main() -> None:
    grid, options = parse_sweep(sys.argv[1:])

    from smallm_hf.experiments.sweep import run_sweep  # torch: after the line has been read

    results = run_sweep(grid, options)
    if failed := results.get("failed"):
        raise UserError(f"{len(failed)} of {len(grid.configs)} runs failed: {', '.join(failed)}; --resume tries again")


if __name__ == "__main__":
    exit_clearly(main)
