"""Continues prompts, or talks: python scripts/generate.py --model runs/quickstart/best --prompt "The list" """

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.generate import main

if __name__ == "__main__":
    exit_clearly(main)
