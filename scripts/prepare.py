"""Turns text into token files: python scripts/prepare.py --config configs/quickstart.yaml"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.prepare import main

if __name__ == "__main__":
    exit_clearly(main)
