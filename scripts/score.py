"""Scores language models on text: python scripts/score.py --model runs/quickstart/best --data text.txt"""

from dataclasses import fields

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from smallm_hf.command_line import exit_clearly
from smallm_hf.evaluation.configuration import Questions
from smallm_hf.settings import Loading

DESCRIPTION = "Scores causal, seq2seq and masked language models on text, by a stated protocol."


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model", nargs="+", required=True, help="folders, 'runs/x-seed*/best' or Hub ids")
    parser.add_argument("--against", metavar="MODEL", help="tell how surely each is better than this one")
    parser.add_argument("--data", required=True, help="a file, a folder, a Hub data set, or a run: its validation text")
    parser.add_class_arguments(Questions, as_group=False, skip={"top_k", "speed"})
    parser.add_argument("--top_k", nargs="+", type=PositiveInt, default=[1, 3], help="k of the top-k accuracies")
    parser.add_argument("--speed", action="store_true", help="time reading and writing")
    parser.add_class_arguments(Loading, as_group=False)
    parser.add_argument("--output", help="a JSON file for the result, with the versions and the command it came from")
    parser.add_argument("--report", help="an HTML page that shows all of it")
    given = parser.parse_args().as_dict()
    questions = Questions(**{field.name: given.pop(field.name) for field in fields(Questions)})
    loading = {field.name: given.pop(field.name) for field in fields(Loading)}

    from smallm_hf.evaluation.evaluating import evaluate_and_report
    from smallm_hf.training.devices import hardware

    draw = None
    if given["report"]:
        from smallm_hf.pictures.gallery import gallery as draw  # matplotlib
    evaluate_and_report(questions, loading, hardware, draw, **given)


if __name__ == "__main__":
    exit_clearly(main)
