"""Publishes a finished run on the Hugging Face Hub: python scripts/publish.py --run runs/quickstart --repo user/name"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.publish import main

if __name__ == "__main__":
    exit_clearly(main)
