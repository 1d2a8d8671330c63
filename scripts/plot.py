"""Draws pictures: python scripts/plot.py runs/quickstart, or attention, embeddings or tokens of a model."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from smallm_hf.command_line import exit_clearly
from smallm_hf.evaluation.families import load_scorable
from smallm_hf.pictures import attention, embeddings, tokens
from smallm_hf.plots import draw_runs
from smallm_hf.pretrained import load_causal_lm

DESCRIPTION = "Draws pictures of runs and models and prints their files; without a subcommand it is `runs`."
OF_MODELS = (attention.draw_attention, embeddings.draw_embeddings, tokens.draw_tokens)
DRAW = {draw.__name__.removeprefix("draw_"): draw for draw in (draw_runs, *OF_MODELS)}
OPTIONS = {"allow_abbrev": False, "exit_on_error": False}


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, **OPTIONS)
    commands = parser.add_subcommands()
    for name, draw in DRAW.items():
        command = ArgumentParser(description=draw.__doc__.splitlines()[0], **OPTIONS)
        if draw in OF_MODELS:
            command.add_function_arguments(load_causal_lm, as_group=False, skip={"trust_remote_code"})
            command.add_argument("--trust_remote_code", action="store_true", help="run modeling code that comes along")
            command.add_function_arguments(draw, as_group=False, skip={"model", "tokenizer"})
        else:
            command.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, laid over each other")
            command.add_argument("--output_dir", type=Path, help="default: RUN/figures for one run, figures for more")
        commands.add_subcommand(name, command, help=command.description)
    line = sys.argv[1:]
    given = parser.parse_args(line if {*line[:1]} & {"-h", "--help", *DRAW} else ["runs", *line])
    draw, asked = DRAW[given.subcommand], given[given.subcommand].as_dict()
    loading = {name: asked.pop(name) for name in ("model", "dtype", "device", "trust_remote_code") if name in asked}
    print(*draw(*(load_scorable(**loading) if loading else ()), **asked), sep="\n")


if __name__ == "__main__":
    exit_clearly(main)
