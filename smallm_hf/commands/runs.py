"""Lists runs: what differs in their configs, and what they have reached."""

from pathlib import Path
from typing import Literal

from smallm_hf.base.parser import CommandParser
from smallm_hf.base.plain_json import json_text
from smallm_hf.run_table import as_csv, as_text, tabulate

DESCRIPTION = (
    "Lists the runs at or below a folder, the best first: where their configs differ, tokens, training time and "
    "bits per byte of the best validation, over the seeds where they alone differ."
)
EXAMPLES = ("runs", "runs runs/sweep-quickstart", "runs runs --format csv > runs.csv")


def main() -> None:
    """Lists what the line names."""
    parser = CommandParser(DESCRIPTION, EXAMPLES, usage="[FOLDER] [--format table|json|csv]")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="of runs, or one run")
    parser.add_argument("--format", type=Literal["table", "json", "csv"], default="table", help="how they are printed")
    given = parser.parse_args()
    found = tabulate(given.folder)
    if given.format == "json":
        print(json_text(found, indent=2))
    else:
        print(as_csv(found).rstrip("\n") if given.format == "csv" else as_text(found))
