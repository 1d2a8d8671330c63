"""Draws pictures: python scripts/plot.py runs/quickstart, or attention, embeddings or tokens of a model."""

import sys
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser

from smallm_hf.base.command_line import add_loading_arguments, exit_clearly, take
from smallm_hf.base.settings import MODEL, Loading, require_models
from smallm_hf.pictures.configuration import OF_MODELS

DESCRIPTION = "Draws runs or a model and prints the files written; without a subcommand it is `runs`."
RUNS = "Draws loss, bits per byte, rate, gradient norm and throughput of runs, over tokens and over time."
OPTIONS = {"allow_abbrev": False, "exit_on_error": False}


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, **OPTIONS)
    commands = parser.add_subcommands()
    command = ArgumentParser(description=RUNS, **OPTIONS)
    command.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, drawn over each other")
    command.add_argument("--output_dir", type=Path, help="default: RUN/figures for one run, figures for more")
    commands.add_subcommand("runs", command, help=RUNS)
    for kind, pictures in OF_MODELS.items():
        command = ArgumentParser(description=pictures.__doc__.splitlines()[0], **OPTIONS)
        command.add_argument("--model", required=True, help=MODEL)
        add_loading_arguments(command)
        command.add_class_arguments(pictures, as_group=False)
        commands.add_subcommand(kind, command, help=command.description)
    line = sys.argv[1:]
    given = parser.parse_args(line if {*line[:1]} & {"-h", "--help", "runs", *OF_MODELS} else ["runs", *line])
    kind, asked = given.subcommand, given[given.subcommand].as_dict()
    if kind == "runs":
        from smallm_hf.plots import draw_runs

        print(*draw_runs(**asked), sep="\n")
        return
    model, loading, wanted = asked.pop("model"), take(Loading, asked), OF_MODELS[kind](**asked)
    require_models([model])

    from smallm_hf.pictures.drawing import draw_model

    print(*draw_model(model, asdict(loading), wanted), sep="\n")


if __name__ == "__main__":
    exit_clearly(main)
