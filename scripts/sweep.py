"""Trains a grid of settings and compares them: python scripts/sweep.py --config RECIPE --vary training.seed=1,2,3"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.sweep import main

if __name__ == "__main__":
    exit_clearly(main)
