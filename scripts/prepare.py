"""Turns text into token files: python scripts/prepare.py --config configs/quickstart.yaml"""

import sys

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.config import parse_command_line


def main() -> None:
    config, options = parse_command_line(
        "Reads, cleans, splits and tokenises the text of a recipe into memory-mapped token files. train.py does so by "
        "itself when they are missing.",
        sys.argv[1:],
        training=False,
    )
    from smallm_hf.runs import prepare_run  # torch: after the line has been read

    prepare_run(config, options)


if __name__ == "__main__":
    exit_clearly(main)
