"""Measures speed in turns with other ways."""

import sys
from pathlib import Path

from smallm_hf.base.errors import UserError
from smallm_hf.base.parser import CommandParser
from smallm_hf.config import CommandOptions, read_config, split_line

KINDS = ("train", "data", "size", "generate", "serve", "soak")
DESCRIPTION = (
    "Measures our speed in turns with other ways. train: our step against others; data: prepare against datasets.map; "
    "size: large texts; generate: decoding; serve: our server against others; soak: our server under requests of every "
    "kind. Of train, keys of a recipe are options too."
)
WITHOUT = "train: ours without any of bf16, compile, muon, logits, fused, length_warmup, kept_memory"
EXAMPLES = (
    "benchmark train --config quickstart --seconds 60 --against gpt2 trainer --without compile",
    "benchmark generate --model runs/quickstart/best",
    "benchmark data --source stories.parquet",
)


def main() -> None:
    """Measures what the line names."""
    parser = CommandParser(DESCRIPTION, EXAMPLES, usage=f"{'|'.join(KINDS)} [OPTIONS]")
    parser.add_argument("what", choices=KINDS, help="what is measured")
    parser.add_argument("--seconds", type=float, default=60.0, help="train: of each contestant")
    parser.add_argument("--turn", type=float, default=5.0, help="train: seconds before the next goes on")
    parser.add_argument("--against", nargs="*", default=["gpt2"], help="train: of gpt2, llama, qwen3, trainer")
    parser.add_argument("--without", nargs="*", default=[], help=WITHOUT)
    parser.add_argument("--threads", type=int, help="train: of each process on a CPU")
    parser.add_argument("--source", help="data: a .jsonl, .json, .parquet or .csv of texts; size: any text")
    parser.add_argument("--tokenizer", default="gpt2", help="data, size: gpt2, or the folder of one like it")
    parser.add_argument("--megabytes", type=float, default=60.0, help="size: of the source repeated")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="data, size: processes")
    parser.add_argument("--model", help="generate, serve, soak: folder or Hub id")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 32], help="serve, soak: at once")
    parser.add_argument("--requests", type=int, default=10_000, help="soak: in all")
    parser.add_argument("--quick", action="store_true", help="data, generate, serve: seconds, to see that it works")
    parser.add_argument("--output", type=Path, help="a JSON file for all measurements")
    recipes, keys, others = split_line(sys.argv[1:], parser.options)
    given = parser.parse_args(others).as_dict()
    what = given["what"]
    if what != "train" and (recipes or keys):
        raise UserError(f"benchmark {what} reads no recipe; leave out --{'config' if recipes else keys[0][0]}")
    needed = "source" if what in ("data", "size") else "model" if what != "train" else None
    if needed and given[needed] is None:
        raise UserError(f"benchmark {what} needs --{needed}")
    run = (read_config(recipes, keys), CommandOptions(None)) if what == "train" else None

    from smallm_hf.benchmarks.showing import show

    show(run=run, **given)
