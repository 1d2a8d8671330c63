"""Writes a model for other programs: python scripts/export.py --model RUN/best --to gguf --output_dir DIR"""

from jsonargparse import ArgumentParser

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.export.exporting import describe_export, export_model

DESCRIPTION = "Writes a trained model for other programs, and compares it with its source before keeping it."


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_function_arguments(export_model, as_group=False)
    given = parser.parse_args().as_dict()
    print(describe_export(export_model(**given), given["output_dir"]))


if __name__ == "__main__":
    exit_clearly(main)
