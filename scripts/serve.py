"""Serves a model over HTTP, as OpenAI's clients expect it: python scripts/serve.py --model runs/quickstart/best"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.serve import main

if __name__ == "__main__":
    exit_clearly(main)
