"""Trains a model."""

import sys

from smallm_hf.config import parse_command_line

EXAMPLES = (
    "train --config quickstart",
    "train --config my_recipe.yaml --training.max_steps 2000 --output_dir runs/mine",
    "train --resume --output_dir runs/mine",
)


def main() -> None:
    """Trains what the line describes."""
    config, options = parse_command_line(
        "Trains a language model and leaves it as a Hugging Face folder. Keys are set in the recipe or on the line, as "
        "--section.key VALUE; the line wins.",
        sys.argv[1:],
        training=True,
        examples=EXAMPLES,
    )
    from smallm_hf.runs import train_run  # torch: after the line has been read

    train_run(config, options)
