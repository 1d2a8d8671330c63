"""Continues a prompt on the terminal: python scripts/generate.py --model runs/quickstart/best --prompt "The list" """

import functools
import sys
from dataclasses import asdict
from typing import Literal

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from smallm_hf.base.allocation import keep_freed_memory
from smallm_hf.base.command_line import add_loading_arguments, exit_clearly, take
from smallm_hf.base.settings import MODEL, Loading, Sampling, require_models
from smallm_hf.base.terminal import print_piece

DESCRIPTION = "Continues a prompt, or answers it with an encoder-decoder, and shows the text while it is written."


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model", required=True, help=MODEL)
    add_loading_arguments(parser)
    parser.add_argument(
        "--prompt", default="", help="the beginning, or what an encoder reads; left out, the model begins by itself"
    )
    parser.add_argument("--num_samples", type=PositiveInt, default=1, help="texts to write, each with the next seed")
    compiling = "auto compiles the step where 10,000 tokens or more are asked for; it takes 10 to 20 s on a CPU"
    parser.add_argument("--compile", type=bool | Literal["auto"], default="auto", help=compiling)
    parser.add_class_arguments(Sampling, as_group=False)
    given = parser.parse_args().as_dict()
    model, loading, sampling = given.pop("model"), take(Loading, given), take(Sampling, given)
    require_models([model])

    from smallm_hf.generation.engine import Engine, stream_samples
    from smallm_hf.generation.request import Request
    from smallm_hf.generation.steps import lay_out_for_decoding
    from smallm_hf.pretrained import load_writer
    from smallm_hf.training.devices import resolve_decoding_compile

    tell = functools.partial(print, file=sys.stderr)  # the text alone goes to standard output
    tokens = given["num_samples"] * sampling.max_new_tokens
    compiled = resolve_decoding_compile(given["compile"], tokens, tell)
    keep_freed_memory()  # logits of each token would else take new pages
    loaded, tokenizer = load_writer(model, **asdict(loading))
    engine = Engine(lay_out_for_decoding(loaded), tokenizer, compile=compiled)
    request = Request(given["prompt"], **asdict(sampling))
    stream_samples(engine, request, print_piece, num_samples=given["num_samples"])


if __name__ == "__main__":
    exit_clearly(main)
