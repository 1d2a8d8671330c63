"""Compares language models: python scripts/compare.py --models runs/quickstart/best gpt2"""

from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser

from smallm_hf.base.command_line import add_loading_arguments, exit_clearly, take
from smallm_hf.base.folders import require_writable
from smallm_hf.base.settings import Loading
from smallm_hf.comparison.configuration import SideBySide, read_benchmark, read_prompts

DESCRIPTION = "Gives several models the same prompts and text; encoder-decoders answer, masked models fill in a word."


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="folders or Hub ids")
    parser.add_argument("--config", type=Path, help="a recipe: its comparison.benchmark_model is compared too")
    parser.add_argument("--prompts", type=Path, help="a text file, one prompt per line (default: five of ours)")
    parser.add_argument("--data", help="text to score: a file, a folder, a Hub data set, or a run: its validation text")
    parser.add_argument("--skip_missing", action="store_true", help="leave out a model that cannot be loaded")
    parser.add_argument("--output_dir", type=Path, default=Path("comparison"), help="for .md, .json and .html")
    parser.add_class_arguments(SideBySide, as_group=False)
    add_loading_arguments(parser)
    given = parser.parse_args().as_dict()
    require_writable(given["output_dir"], "--output_dir", folder=True)
    models = given["models"] + ([read_benchmark(given["config"])] if given["config"] else [])
    prompts, questions, loading = read_prompts(given["prompts"]), take(SideBySide, given), asdict(take(Loading, given))

    from smallm_hf.comparison.comparing import compare_models
    from smallm_hf.comparison.report import report_comparison

    results = compare_models(models, prompts, given["data"], questions, loading, given["skip_missing"])
    report_comparison(results, given["output_dir"])


if __name__ == "__main__":
    exit_clearly(main)
