"""Scores a language model on text: python scripts/score.py --model runs/quickstart/best --data text.txt"""

import itertools
from pathlib import Path

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from smallm_hf.command_line import exit_clearly
from smallm_hf.data.documents import local_files, read_texts
from smallm_hf.environment import environment
from smallm_hf.evaluation.scoring import report_scores, score_documents
from smallm_hf.folders import require_writable
from smallm_hf.pretrained import load_causal_lm

DESCRIPTION = "Scores any causal language model on text: loss, perplexity, bits per byte, top-1 and top-3 accuracy."


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_function_arguments(load_causal_lm, as_group=False, skip={"trust_remote_code"})
    parser.add_argument("--trust_remote_code", action="store_true", help="run the modeling code that comes with it")
    parser.add_argument("--data", required=True, help=".txt, .jsonl, .json, .csv or .parquet, or a folder of them")
    parser.add_argument("--text_column", default="text", help="column that holds the text, in all but text files")
    parser.add_argument("--max_documents", type=PositiveInt, help="score only this many, from the beginning")
    given_otherwise = {"model", "tokenizer", "texts", "show_progress"}
    parser.add_function_arguments(score_documents, as_group=False, skip=given_otherwise)
    parser.add_argument("--output", help="a JSON file for the result, with the versions and the command it came from")
    given = parser.parse_args().as_dict()

    local_files(given["data"])  # a wrong path is told before a model is loaded
    if given["output"]:
        require_writable(Path(given["output"]), "--output", folder=False)
    texts = itertools.islice(read_texts(given["data"], text_column=given["text_column"]), given["max_documents"])
    loading = {name: given[name] for name in ("model", "dtype", "device", "trust_remote_code")}
    options = {name: given[name] for name in ("protocol", "context_length", "batch_size")}
    scores = score_documents(*load_causal_lm(**loading), texts, **options, show_progress=True)
    report_scores(scores, given["output"], data=given["data"], **environment())


if __name__ == "__main__":
    exit_clearly(main)
