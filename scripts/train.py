"""Trains a model: python scripts/train.py --config configs/quickstart.yaml"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.train import main

if __name__ == "__main__":
    exit_clearly(main)
