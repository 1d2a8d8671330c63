"""Trains every rung of a ladder on one text and compares them: python scripts/ladder.py --config configs/ladder.yaml"""

import sys

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.base.errors import UserError
from smallm_hf.experiments.configuration import parse_ladder


def main() -> None:
    ladder = parse_ladder(sys.argv[1:])

    from smallm_hf.experiments.ladder import climb  # torch: after the line has been read

    results = climb(ladder)
    if failed := results.get("failed"):
        raise UserError(f"{len(failed)} failed: {', '.join(failed)}; --resume tries again")


if __name__ == "__main__":
    exit_clearly(main)
