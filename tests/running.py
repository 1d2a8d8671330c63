"""Small runs, through the functions the scripts call, and what they leave."""

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from smallm_hf import plots
from smallm_hf.config import parse_command_line
from smallm_hf.runs import train_run
from smallm_hf.training.checkpoints import list_checkpoints
from smallm_hf.training.loop import TrainingLoop
from smallm_hf.training.progress import read_records

BIN = Path(sys.executable).parent
TRAIN = str(Path(__file__).resolve().parent.parent / "scripts" / "train.py")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "red", "bird", "near", "its", "blue", "house"]
# A recipe of a few seconds.
RECIPE = {
    "data": {"validation_ratio": 0.2},
    "model": {
        "vocab_size": 280,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    },
    "training": {
        "max_steps": 6,
        "context_length": 32,
        "batch_size": 4,
        "evaluate_every": 3,
        "checkpoint_every": 3,
        "sample_prompts": ["the cat", ""],
        "sample_tokens": 5,
        "precision": "fp32",
        "compile": False,
    },
}

# Words for a longer one: dropout, accumulation, validations, samples and records at steps of their own, in the second
# epoch of 13 steps each.
HARD = [
    *("--model.preset", "classic", "--model.dropout", 0.2),
    *("--training.batch_size", 2, "--training.accumulation_steps", 2, "--training.max_steps", 20),
    *("--training.evaluate_every", 4, "--training.sample_every", 5, "--training.checkpoint_every", 6),
    *("--training.log_every", 3, "--training.keep_checkpoints", 9),
]


def write_stories(folder: Path) -> Path:
    """Sixty short documents of a few words."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=40)) + "." for _ in range(60)]
    path = folder / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(texts) + "\n")
    return path


def write_recipe(folder: Path, source: Path, **sections: dict[str, Any]) -> Path:
    """`RECIPE` for a text, with other keys in its sections."""
    content = {name: RECIPE.get(name, {}) | sections.get(name, {}) for name in RECIPE | sections}
    content["data"] |= {"source": str(source), "folder": str(folder / "tokens")}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def carrying_a_state(recipe: Path) -> Path:
    """The recipe with a recurrent model that reads on from window to window and drops something of everything."""
    content = yaml.safe_load(recipe.read_text())
    dropout = {"embedding_dropout": 0.1, "hidden_dropout": 0.1, "recurrent_dropout": 0.2}
    content["model"] = {"vocab_size": 280, "model_type": "recurrent", "hidden_size": 24, **dropout}
    content["batching"] = {"carry_state": True}
    recipe.write_text(yaml.safe_dump(content))
    return recipe


def train(recipe: Path | None, output_dir: Path, *words: object, figures: bool = False) -> dict | None:
    """A run, without the figures, which take longer than these runs; without a recipe that of the folder is taken."""
    arguments = [*(["--config", recipe] if recipe else []), "--output_dir", output_dir, *words]
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr(plots, "draw_runs", lambda folders: [])
        return train_run(*parse_command_line("test", [str(word) for word in arguments], training=True))


def forget_accelerator() -> None:
    """Accelerate remembers the first Accelerator of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def interrupt_at(monkeypatch, step: int, where: str = "advance") -> None:
    """Sends SIGTERM to this process in the middle of a step."""
    method = getattr(TrainingLoop, where)

    def interrupted(self, *arguments):
        if self.state.step == step:
            monkeypatch.setattr(TrainingLoop, where, method)
            os.kill(os.getpid(), signal.SIGTERM)
        return method(self, *arguments)

    monkeypatch.setattr(TrainingLoop, where, interrupted)


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
