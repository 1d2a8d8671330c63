"""Trains every rung of a ladder on one text and compares them: python scripts/ladder.py --config configs/ladder.yaml"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.ladder import main

if __name__ == "__main__":
    exit_clearly(main)
