"""A recipe of a few seconds, and the walls between runs in one process."""

import random
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState

from smallm_hf import plots


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate remembers the first Accelerator of a process; each run is its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """Drawing takes longer than these runs; one test below draws, and tests/test_plots.py."""
    draw = plots.draw_runs
    monkeypatch.setattr(plots, "draw_runs", lambda folders: [])
    return lambda: monkeypatch.setattr(plots, "draw_runs", draw)


@pytest.fixture(scope="session")
def stories(tmp_path_factory) -> Path:
    """Sixty short documents of a few words."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "red", "bird", "near", "its", "blue", "house"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=40)) + "." for _ in range(60)]
    path = tmp_path_factory.mktemp("stories") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(texts) + "\n")
    return path


@pytest.fixture
def recipe(tmp_path, stories) -> Path:
    content = {
        "data": {"source": str(stories), "validation_ratio": 0.2, "folder": str(tmp_path / "tokens")},
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
            "log_every": 2,
            "evaluate_every": 3,
            "checkpoint_every": 3,
            "sample_prompts": ["the cat", ""],
            "sample_tokens": 5,
            "precision": "fp32",
            "compile": False,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
