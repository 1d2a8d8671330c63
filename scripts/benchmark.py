"""Measures speed in turns with other ways: python scripts/benchmark.py train --config configs/quickstart.yaml"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.benchmark import main

if __name__ == "__main__":
    exit_clearly(main)
