"""Compares language models side by side."""

from dataclasses import asdict, fields
from pathlib import Path

from smallm_hf.base.command_line import take
from smallm_hf.base.folders import require_writable
from smallm_hf.base.parser import CommandParser
from smallm_hf.base.settings import Loading
from smallm_hf.comparison.configuration import SideBySide, read_benchmark, read_prompts
from smallm_hf.evaluation.configuration import Rules

DESCRIPTION = "Gives several models the same prompts and text; encoder-decoders answer, masked models fill in a word."
EXAMPLES = (
    "compare --models runs/quickstart/best gpt2",
    "compare --models runs/a/best runs/b/best --data my_text.txt --output_dir comparison",
    "compare --models runs/quickstart/best --prompts prompts.txt --num_samples 4",
)


def main() -> None:
    """Compares what the line names."""
    parser = CommandParser(DESCRIPTION, EXAMPLES, usage="--models MODEL [MODEL ...] [OPTIONS]")
    parser.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="folders or Hub ids")
    parser.add_argument("--config", type=Path, help="a recipe: its comparison.benchmark_model is compared too")
    parser.add_argument("--prompts", type=Path, help="a text file, one prompt per line; left out, five of ours")
    parser.add_argument("--data", help="text to score: a file, a folder, a Hub data set, or a run: its validation text")
    parser.add_argument("--skip_missing", action="store_true", help="leave out a model that cannot be loaded")
    parser.add_argument("--output_dir", type=Path, default=Path("comparison"), help="for .md, .json and .html")
    rules = {field.name for field in fields(Rules)}
    parser.add_section("questions", "What every model is asked", SideBySide, skip=rules)
    parser.add_section("protocol", "By which rules the text is scored", Rules)
    parser.add_loading()
    given = parser.parse_args().as_dict()
    require_writable(given["output_dir"], "--output_dir", folder=True)
    models = given["models"] + ([read_benchmark(given["config"])] if given["config"] else [])
    prompts, questions, loading = read_prompts(given["prompts"]), take(SideBySide, given), asdict(take(Loading, given))

    from smallm_hf.comparison.comparing import compare_models
    from smallm_hf.comparison.report import report_comparison

    results = compare_models(models, prompts, given["data"], questions, loading, given["skip_missing"])
    report_comparison(results, given["output_dir"])
