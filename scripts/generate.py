"""Continues prompts, or talks: python scripts/generate.py --model runs/quickstart/best --prompt "The list" """

import sys
from dataclasses import asdict
from functools import partial

from jsonargparse import ArgumentParser

from smallm_hf.base.command_line import add_loading_arguments, exit_clearly, take
from smallm_hf.base.settings import MODEL, Loading, Sampling, require_models
from smallm_hf.generation.configuration import PROMPT, Asked

DESCRIPTION = "Continues prompts, or answers them with an encoder-decoder, and shows each text while it is written."


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model", required=True, help=MODEL)
    add_loading_arguments(parser)
    parser.add_argument("--prompt", nargs="+", action="extend", help=PROMPT)
    parser.add_argument("--json", action="store_true", help="print an object for each text, one on a line")
    parser.add_class_arguments(Asked, as_group=False, skip={"prompt", "json"})
    parser.add_class_arguments(Sampling, as_group=False)
    given = parser.parse_args().as_dict()
    model, loading, sampling, asked = given["model"], *(take(kind, given) for kind in (Loading, Sampling, Asked))
    require_models([model])
    prompts = asked.read_prompts()

    from smallm_hf.generation.session import write_on_terminal
    from smallm_hf.training.devices import resolve_decoding_compile

    tokens = len(prompts or ()) * asked.num_samples * sampling.max_new_tokens
    tell = partial(print, file=sys.stderr)  # the text alone goes to standard output
    compiled = resolve_decoding_compile(asked.compile, tokens, tell)
    write_on_terminal(model, asdict(loading), prompts, sampling, asked, compile=compiled)


if __name__ == "__main__":
    exit_clearly(main)
