"""Compares language models: python scripts/compare.py --models runs/quickstart/best gpt2"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.compare import main

if __name__ == "__main__":
    exit_clearly(main)
