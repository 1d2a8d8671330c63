"""Draws the metrics of runs: python scripts/plot.py runs/quickstart"""

from pathlib import Path

from jsonargparse import ArgumentParser

from smallm_hf.command_line import exit_clearly
from smallm_hf.plots import draw_runs

DESCRIPTION = "Draws loss, bits per byte, rate, gradient norm and throughput of runs, over tokens and over time."


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, laid over each other")
    parser.add_argument("--output_dir", type=Path, help="default: RUN/figures for one run, figures for several")
    given = parser.parse_args()
    for file in draw_runs(given.runs, given.output_dir):
        print(file)


if __name__ == "__main__":
    exit_clearly(main)
