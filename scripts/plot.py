"""Draws pictures: python scripts/plot.py runs/quickstart, or attention, embeddings or tokens of a model."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from smallm_hf.command_line import exit_clearly
from smallm_hf.pictures.drawing import KINDS, OF_MODELS, draw
from smallm_hf.pretrained import load_causal_lm

DESCRIPTION = "Draws pictures of runs and models and prints their files; without a subcommand it is `runs`."
OPTIONS = {"allow_abbrev": False, "exit_on_error": False}


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, **OPTIONS)
    commands = parser.add_subcommands()
    for kind, function in KINDS.items():
        command = ArgumentParser(description=function.__doc__.splitlines()[0], **OPTIONS)
        if kind in OF_MODELS:
            command.add_function_arguments(load_causal_lm, as_group=False, skip={"trust_remote_code"})
            command.add_argument("--trust_remote_code", action="store_true", help="run modeling code that comes along")
            command.add_function_arguments(function, as_group=False, skip={"model", "tokenizer"})
        else:
            command.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, laid over each other")
            command.add_argument("--output_dir", type=Path, help="default: RUN/figures for one run, figures for more")
        commands.add_subcommand(kind, command, help=command.description)
    line = sys.argv[1:]
    given = parser.parse_args(line if {*line[:1]} & {"-h", "--help", *KINDS} else ["runs", *line])
    print(*draw(given.subcommand, **given[given.subcommand].as_dict()), sep="\n")


if __name__ == "__main__":
    exit_clearly(main)
