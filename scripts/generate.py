"""Continues a prompt on the terminal: python scripts/generate.py --model runs/quickstart/best --prompt "The list" """

import functools
import sys
from typing import Literal

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from smallm_hf.allocation import keep_freed_memory
from smallm_hf.command_line import exit_clearly
from smallm_hf.generation import lay_out_for_decoding, stream, stream_samples
from smallm_hf.pretrained import load_causal_lm
from smallm_hf.terminal import print_piece
from smallm_hf.training.devices import resolve_decoding_compile

DESCRIPTION = "Continues a prompt with a causal language model and shows the text while it is written."
NOT_ASKED = {"model", "tokenizer", "prompt", "write", "compile", "heard"}


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_function_arguments(load_causal_lm, as_group=False, skip={"trust_remote_code"})
    parser.add_argument("--trust_remote_code", action="store_true", help="run the modeling code that comes with it")
    parser.add_argument("--prompt", default="", help="the beginning; left out, the model begins by itself")
    parser.add_argument("--num_samples", type=PositiveInt, default=1, help="texts to write, each with the next seed")
    compiling = "auto compiles the step where 10,000 tokens or more are asked for; it takes 10 to 20 s on a CPU"
    parser.add_argument("--compile", type=bool | Literal["auto"], default="auto", help=compiling)
    parser.add_function_arguments(stream, as_group=False, skip=NOT_ASKED)
    given = parser.parse_args().as_dict()
    loading = {name: given.pop(name) for name in ("model", "dtype", "device", "trust_remote_code")}
    tell = functools.partial(print, file=sys.stderr)  # the text alone goes to standard output
    tokens = given["num_samples"] * given["max_new_tokens"]
    given["compile"] = resolve_decoding_compile(given["compile"], tokens, tell)
    keep_freed_memory()  # logits of each token would else take new pages
    model, tokenizer = load_causal_lm(**loading)
    stream_samples(lay_out_for_decoding(model), tokenizer, write=print_piece, **given)


if __name__ == "__main__":
    exit_clearly(main)
