"""Turns text into token files."""

import sys

from smallm_hf.config import parse_command_line

EXAMPLES = (
    "prepare --config quickstart",
    "prepare --config tinystories_4m --data.source my_texts --output_dir data/mine",
    "prepare --config tinystories_4m --data.source my_texts --preview 5",
)


def main() -> None:
    """Prepares the text that the line describes."""
    config, options = parse_command_line(
        "Reads, cleans, splits and tokenises the text of a recipe into memory-mapped token files. `train` does so by "
        "itself when they are missing.",
        sys.argv[1:],
        training=False,
        examples=EXAMPLES,
    )
    from smallm_hf.runs import prepare_run  # torch: after the line has been read

    prepare_run(config, options)
