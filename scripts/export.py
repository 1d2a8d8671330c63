"""Writes a model for other programs: python scripts/export.py --model RUN/best --to gguf --output_dir DIR"""

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.commands.export import main

if __name__ == "__main__":
    exit_clearly(main)
