"""Scores language models on text: python scripts/score.py --model runs/quickstart/best --data text.txt"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.score import main

if __name__ == "__main__":
    exit_clearly(main)
