"""Scores language models on text."""

from dataclasses import fields

from jsonargparse.typing import PositiveInt

from smallm_hf.base.command_line import take
from smallm_hf.base.parser import CommandParser
from smallm_hf.base.settings import Loading
from smallm_hf.evaluation.configuration import MinimalPairs, Rules, ScoringQuestions
from smallm_hf.scores import score_and_report

DESCRIPTION = "Scores language models on text, by a stated protocol, or causal ones on minimal pairs of sentences."
EXAMPLES = (
    "score --model runs/quickstart/best --data my_text.txt",
    "score --model runs/quickstart/best gpt2 --data runs/quickstart --report scores.html",
    "score --model 'runs/seed*/best' --against gpt2 --data my_texts --output scores.json",
)
# The fields of ScoringQuestions that tell which text is read; the others but the rules are what else is asked.
READING = {"text_column", "documents", "source_column", "max_documents"}


def main() -> None:
    """Scores what the line names."""
    parser = CommandParser(DESCRIPTION, EXAMPLES, usage="--model MODEL [MODEL ...] --data DATA [OPTIONS]")
    parser.add_argument("--model", nargs="+", required=True, help="folders, 'runs/x-seed*/best' or Hub ids")
    parser.add_argument("--against", metavar="MODEL", help="report how likely each model is better than this one")
    parser.add_argument("--data", help="a file, a folder, a Hub data set, or a run: its validation text")
    parser.add_class_arguments(MinimalPairs, as_group=False)
    parser.add_argument("--output", metavar="FILE", help="a JSON file for the results, with versions and command")
    parser.add_argument("--report", metavar="FILE", help="an HTML page with all results")
    rules, asked = ({field.name for field in fields(kind)} for kind in (Rules, ScoringQuestions))
    speed = {name for name in asked if name.startswith("speed")}
    parser.add_section("reading", "Which text of the data is read", ScoringQuestions, only=READING)
    parser.add_section("protocol", "By which rules a text is scored", Rules)
    others = asked - rules - READING - speed - {"top_k"}
    more = parser.add_section("questions", "What else a model is asked", ScoringQuestions, only=others)
    more.add_argument("--top_k", nargs="+", type=PositiveInt, default=[1, 3], help="k of the top-k accuracies")
    timing = parser.add_section("speed", "How fast it reads and writes", ScoringQuestions, only=speed - {"speed"})
    timing.add_argument("--speed", action="store_true", help="time reading and writing")
    parser.add_loading()
    given = parser.parse_args().as_dict()
    questions, loading, pairs = (take(kind, given) for kind in (ScoringQuestions, Loading, MinimalPairs))
    score_and_report(questions, loading, pairs, **given)
