"""Scores language models on text: python scripts/score.py --model runs/quickstart/best --data text.txt"""

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from smallm_hf.base.command_line import add_loading_arguments, exit_clearly, take
from smallm_hf.base.settings import Loading
from smallm_hf.evaluation.configuration import MinimalPairs, ScoringQuestions
from smallm_hf.scores import score_and_report

DESCRIPTION = "Scores language models on text, by a stated protocol, or causal ones on minimal pairs of sentences."


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model", nargs="+", required=True, help="folders, 'runs/x-seed*/best' or Hub ids")
    parser.add_argument("--against", metavar="MODEL", help="report how likely each model is better than this one")
    parser.add_argument("--data", help="a file, a folder, a Hub data set, or a run: its validation text")
    parser.add_class_arguments(MinimalPairs, as_group=False)
    parser.add_class_arguments(ScoringQuestions, as_group=False, skip={"top_k", "speed"})
    parser.add_argument("--top_k", nargs="+", type=PositiveInt, default=[1, 3], help="k of the top-k accuracies")
    parser.add_argument("--speed", action="store_true", help="time reading and writing")
    add_loading_arguments(parser)
    parser.add_argument("--output", help="a JSON file for the results, with versions and command")
    parser.add_argument("--report", help="an HTML page with all results")
    given = parser.parse_args().as_dict()
    questions, loading, pairs = (take(kind, given) for kind in (ScoringQuestions, Loading, MinimalPairs))
    score_and_report(questions, loading, pairs, **given)


if __name__ == "__main__":
    exit_clearly(main)
