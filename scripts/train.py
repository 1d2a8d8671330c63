"""Trains a model: accelerate launch scripts/train.py --config configs/quickstart.yaml"""

import sys

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.config import parse_command_line


def main() -> None:
    config, options = parse_command_line(
        "Trains a language model and leaves it as a Hugging Face folder. Keys are set in the recipe or on the line, as "
        "--section.key value; the line wins.",
        sys.argv[1:],
        training=True,
    )
    from smallm_hf.runs import train_run  # torch: after the line has been read

    train_run(config, options)


if __name__ == "__main__":
    exit_clearly(main)
