"""Continues prompts, or talks."""

import sys
from dataclasses import asdict
from functools import partial

from smallm_hf.base.command_line import take
from smallm_hf.base.parser import CommandParser
from smallm_hf.base.settings import MODEL, Loading, Sampling, require_models
from smallm_hf.generation.configuration import PROMPT, Asked

DESCRIPTION = "Continues prompts, or answers them with an encoder-decoder, and shows each text while it is written."
EXAMPLES = (
    'generate --model runs/quickstart/best --prompt "The list"',
    'generate --model runs/quickstart/best --prompt "" --num_samples 3 --temperature 1',
    "generate --model runs/quickstart/best --prompt_file prompts.jsonl --json",
)


def main() -> None:
    """Writes what the line asks for."""
    parser = CommandParser(DESCRIPTION, EXAMPLES, usage="--model MODEL [--prompt TEXT ...] [OPTIONS]")
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help=PROMPT)
    parser.add_argument("--json", action="store_true", help="print an object for each text, one on a line")
    parser.add_class_arguments(Asked, as_group=False, skip={"prompt", "json"})
    parser.add_section("sampling", "How a text is continued: length, temperature, top_k, top_p, seed ...", Sampling)
    parser.add_loading()
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
