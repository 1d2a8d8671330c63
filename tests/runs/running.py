"""Runs through the functions the scripts call."""

from pathlib import Path

from smallm_hf.config import parse_command_line
from smallm_hf.runs import train_run


def train(recipe: Path, output_dir: Path, *words: object) -> dict | None:
    arguments = ["--config", recipe, "--output_dir", output_dir, *words]
    return train_run(*parse_command_line("test", [str(word) for word in arguments], training=True))


def without_time(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")} for record in records]
