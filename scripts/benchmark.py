"""Measures speed in turns with other ways: python scripts/benchmark.py train --config configs/quickstart.yaml"""

import argparse
from pathlib import Path

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.config import parse_command_line

WHAT = (
    "train: our step against others; data: prepare against datasets.map; size: large texts; generate: decoding; "
    "serve: our server against others; soak: our server under requests of every kind"
)
WITHOUT = "train: ours without any of bf16, compile, muon, logits, fused, length_warmup, kept_memory"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures our speed in turns with other ways.", allow_abbrev=False)
    parser.add_argument("what", choices=["train", "data", "size", "generate", "serve", "soak"], help=WHAT)
    parser.add_argument("--seconds", type=float, default=60.0, help="train: of each contestant (default: 60)")
    parser.add_argument("--turn", type=float, default=5.0, help="train: seconds before the next goes on (default: 5)")
    parser.add_argument("--against", nargs="*", default=["gpt2"], help="train: of gpt2, llama, qwen3, trainer")
    parser.add_argument("--without", nargs="*", default=[], help=WITHOUT)
    parser.add_argument("--threads", type=int, help="train: of each process on a CPU")
    parser.add_argument("--source", help="data: a .jsonl, .json, .parquet or .csv of texts; size: any text")
    parser.add_argument("--tokenizer", default="gpt2", help="data, size: gpt2, or the folder of one like it")
    parser.add_argument("--megabytes", type=float, default=60.0, help="size: of the source repeated (default: 60)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="data, size: processes (default: 1 2)")
    parser.add_argument("--model", help="generate, serve, soak: folder or Hub id")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 32], help="serve, soak: at once")
    parser.add_argument("--requests", type=int, default=10_000, help="soak: in all (default: 10000)")
    parser.add_argument("--quick", action="store_true", help="data, generate, serve: seconds, to see that it works")
    parser.add_argument("--output", type=Path, help="a JSON file for all measurements")
    given, config_words = parser.parse_known_args()  # train: the rest is --config FILE and --section.key VALUE
    if config_words and given.what != "train":
        parser.error(f"unknown option {config_words[0]}")
    needed = "source" if given.what in ("data", "size") else "model" if given.what != "train" else None
    if needed and getattr(given, needed) is None:
        parser.error(f"{given.what} needs --{needed}")

    run = parse_command_line("", config_words, training=False) if given.what == "train" else None

    from smallm_hf.benchmarks.showing import show

    show(run=run, **vars(given))


if __name__ == "__main__":
    exit_clearly(main)
