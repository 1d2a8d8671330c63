"""Writes a model for other programs."""

from smallm_hf.base.parser import CommandParser
from smallm_hf.export.exporting import describe_export, export_model

DESCRIPTION = "Writes a trained model for other programs, and compares it with its source before keeping it."
EXAMPLES = (
    "export --model runs/quickstart/best --to gguf --output_dir exports/gguf",
    "export --model runs/quickstart/best --to gguf --outtype q8_0 --output_dir exports/small",
    "export --model runs/quickstart/best --to native --output_dir exports/native",
)


def main() -> None:
    """Exports what the line names."""
    parser = CommandParser(
        DESCRIPTION, EXAMPLES, usage="--model MODEL --to native|gguf|onnx --output_dir DIR [OPTIONS]"
    )
    parser.add_function_arguments(export_model, as_group=False)
    given = parser.parse_args().as_dict()
    print(describe_export(export_model(**given), given["output_dir"]))
