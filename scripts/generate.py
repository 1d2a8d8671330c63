"""Continues a prompt on the terminal: python scripts/generate.py --model runs/quickstart/best --prompt "The list" """

import functools

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from smallm_hf.command_line import exit_clearly
from smallm_hf.generation import stream
from smallm_hf.pretrained import load_causal_lm

DESCRIPTION = "Continues a prompt with a causal language model and shows the text while it is written."


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_function_arguments(load_causal_lm, as_group=False, skip={"trust_remote_code"})
    parser.add_argument("--trust_remote_code", action="store_true", help="run the modeling code that comes with it")
    parser.add_argument("--prompt", default="", help="the beginning; left out, the model begins by itself")
    parser.add_argument("--num_samples", type=PositiveInt, default=1, help="texts to write, each with the next seed")
    parser.add_function_arguments(stream, as_group=False, skip={"model", "tokenizer", "prompt", "write"})
    given = parser.parse_args().as_dict()

    loading = {name: given.pop(name) for name in ("model", "dtype", "device", "trust_remote_code")}
    prompt, num_samples, seed = (given.pop(name) for name in ("prompt", "num_samples", "seed"))
    model, tokenizer = load_causal_lm(**loading)
    write = functools.partial(print, end="", flush=True)
    for index in range(num_samples):
        if num_samples > 1:
            print(f"--- {index + 1} of {num_samples}, seed {seed + index}")
        write(prompt)
        stream(model, tokenizer, prompt, write, seed=seed + index, **given)
        print()


if __name__ == "__main__":
    exit_clearly(main)
