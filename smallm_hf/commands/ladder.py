"""Trains every rung of a ladder on one text and compares them."""

import sys

from smallm_hf.base.errors import UserError
from smallm_hf.experiments.configuration import parse_ladder


def main() -> None:
    """Trains the ladder that the line names."""
    ladder = parse_ladder(sys.argv[1:])

    from smallm_hf.experiments.ladder import climb  # torch: after the line has been read

    results = climb(ladder)
    if failed := results.get("failed"):
        raise UserError(f"{len(failed)} failed: {', '.join(failed)}; --resume tries again")
