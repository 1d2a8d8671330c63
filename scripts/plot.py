"""Draws pictures: python scripts/plot.py runs/quickstart, or attention, embeddings or tokens of a model."""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.plot import main

if __name__ == "__main__":
    exit_clearly(main)
