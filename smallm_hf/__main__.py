"""The console command `smallm`, also `python -m smallm_hf`: everything that scripts/ does, and two commands more."""

import importlib
import sys

from smallm_hf import __version__
from smallm_hf.base.command_line import exit_clearly
from smallm_hf.base.errors import UserError
from smallm_hf.base.wording import nearest

COMMANDS = {
    "train": "train a model",
    "prepare": "turn text into token files, which train does by itself",
    "generate": "continue prompts, or talk",
    "score": "score models on a text, or on minimal pairs",
    "compare": "lay models side by side",
    "plot": "draw runs, or look inside a model",
    "runs": "list runs: what differs, and how they ended",
    "recipes": "list the recipes that --config takes by name",
    "sweep": "train a grid of settings and compare them",
    "ladder": "train from n-grams to transformers on one text",
    "publish": "publish a run on the Hugging Face Hub",
    "export": "write a model for other programs",
    "serve": "serve a model over HTTP",
    "benchmark": "measure speed in turns with other ways",
}
EXAMPLES = """examples:
  smallm train --config quickstart
  smallm generate --model runs/quickstart/best --prompt "Return the"
  smallm score --model runs/quickstart/best --data my_text.txt
"""


def main() -> None:
    """Does what the first word says, with the rest of the line."""
    exit_clearly(_main)


def _main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        print(__version__)
    elif name in ("-h", "--help"):
        print("usage: smallm COMMAND [OPTIONS]\n\nSmall language models, trained from scratch.\n")
        print(*(f"  {command:<11}{does}" for command, does in COMMANDS.items()), sep="\n")
        print(f"\nsmallm COMMAND --help shows the options of a command.\n\n{EXAMPLES}", end="")
    elif name in COMMANDS:
        sys.argv[:2] = [f"smallm {name}"]
        importlib.import_module(f"smallm_hf.commands.{name}").main()
    else:
        raise UserError(f"{name} is not a command{nearest(name, COMMANDS)}; see smallm --help")


if __name__ == "__main__":
    main()
