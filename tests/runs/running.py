"""Runs through the functions the scripts call."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from smallm_hf.config import parse_command_line
from smallm_hf.runs import train_run
from smallm_hf.training.checkpoints import list_checkpoints
from smallm_hf.training.progress import read_records


def train(recipe: Path, output_dir: Path, *words: object) -> dict | None:
    arguments = ["--config", recipe, "--output_dir", output_dir, *words]
    return train_run(*parse_command_line("test", [str(word) for word in arguments], training=True))


def without_time(records: list[dict]) -> list[dict]:
    """Records without what no run repeats: time, speed and memory."""
    measured = ("seconds", "tokens_per_second", "memory_bytes", "mfu")
    return [{name: value for name, value in record.items() if name not in measured} for record in records]


def outcome(run: Path) -> dict:
    """All that two equal runs must have in common, bit for bit."""
    state = json.loads((checkpoint := list_checkpoints(run)[-1]).joinpath("state.json").read_text())
    weights = {
        name: hashlib.sha256((run / name / "model.safetensors").read_bytes()).hexdigest() for name in ("best", "final")
    }
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    shards = [load_file(path) for path in sorted(checkpoint.glob("optimizer/*"))]  # where training was split
    return {
        "weights": weights,
        "optimizer": [tensor.tolist() for tensor in tensors([saved, shards])],
        "state": {name: value for name, value in state.items() if "seconds" not in name},
        "metrics": without_time(read_records(run, "metrics")),
        "samples": read_records(run, "samples"),
    }


def tensors(tree: object) -> Iterator[torch.Tensor]:
    """The tensors in nested dictionaries and lists, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ():
        yield from tensors(item)
