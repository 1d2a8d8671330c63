"""Draws runs, or looks inside a model."""

import sys
from dataclasses import asdict
from pathlib import Path

from smallm_hf.base.command_line import take
from smallm_hf.base.errors import UserError
from smallm_hf.base.parser import CommandParser
from smallm_hf.base.settings import MODEL, Loading, require_models
from smallm_hf.base.wording import nearest
from smallm_hf.pictures.configuration import OF_MODELS

DESCRIPTION = "Draws runs or a model and prints the files written; without a subcommand it is `runs`."
RUNS = "Draws loss, bits per byte, rate, gradient norm and throughput of runs, over tokens and over time."
KINDS = ("runs", *OF_MODELS)
EXAMPLES = (
    "plot runs/quickstart runs/mine --output_dir figures",
    'plot tokens --model runs/quickstart/best --text "Return the number of items."',
    "plot embeddings --model runs/quickstart/best",
)


def main() -> None:
    """Draws what the line names."""
    parser = CommandParser(DESCRIPTION, EXAMPLES, usage="[runs|attention|embeddings|tokens] [OPTIONS]")
    commands = parser.add_subcommands(
        title="what is drawn", description="`plot KIND --help` shows the options of each."
    )
    for kind in KINDS:
        commands.add_subcommand(kind, command := _parser_of(kind), help=command.description)
        command.prog = f"{parser.prog} {kind}"
    line = sys.argv[1:]
    known = {*line[:1]} & {"-h", "--help", "--help_all", *KINDS}
    if line and not known and not Path(line[0]).exists() and (meant := nearest(line[0], KINDS)):
        raise UserError(f"{line[0]} is no kind of picture and no run{meant}")
    given = parser.parse_args(line if known else ["runs", *line])
    kind, asked = given.subcommand, given[given.subcommand].as_dict()
    if kind == "runs":
        from smallm_hf.plots import draw_runs

        print(*draw_runs(**asked), sep="\n")
        return
    model, loading, wanted = asked.pop("model"), take(Loading, asked), OF_MODELS[kind](**asked)
    require_models([model])

    from smallm_hf.pictures.drawing import draw_model

    print(*draw_model(model, asdict(loading), wanted), sep="\n")


def _parser_of(kind: str) -> CommandParser:
    if kind == "runs":
        parser = CommandParser(RUNS, EXAMPLES[:1], usage="RUN [RUN ...] [--output_dir DIR]")
        parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, drawn over each other")
        folder = "for the figures; left out, RUN/figures for one run, figures for more"
        parser.add_argument("--output_dir", type=Path, help=folder)
        return parser
    parser = CommandParser(OF_MODELS[kind].__doc__.splitlines()[0], usage="--model MODEL [OPTIONS]")
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_class_arguments(OF_MODELS[kind], as_group=False)
    parser.add_loading()
    return parser
