"""A Hub of one's own, and a tiny finished run to publish on it."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from loopback_hub import connected_hub

from smallm_hf.config import parse_command_line
from smallm_hf.runs import train_run

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "red", "bird", "near", "its", "blue", "house"]


@pytest.fixture
def hub(tmp_path):
    with connected_hub(tmp_path / "home") as hub:
        yield hub


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """Six steps at a rate so high that the best weights are those of step 3; with figures; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=40)) + "." for _ in range(60)]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(texts) + "\n")
    model = {"vocab_size": 280, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    training = {
        **{"learning_rate": 0.1, "muon_learning_rate": 1.0, "schedule": "constant"},
        **{"max_steps": 6, "context_length": 32, "batch_size": 4, "evaluate_every": 3, "checkpoint_every": 3},
        **{"sample_prompts": ["the cat", "", "/usr"], "sample_tokens": 5, "precision": "fp32", "compile": False},
    }
    recipe = {
        "data": {"source": str(folder / "stories.txt"), "validation_ratio": 0.2, "folder": str(folder / "tokens")},
        "model": {**model, "max_position_embeddings": 32},
        "training": training,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "tiny")]
    train_run(*parse_command_line("test", arguments, training=True))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state(**({"reset_partial_state": True} if state is AcceleratorState else {}))
    return folder / "tiny"


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "tiny"))


@pytest.fixture
def elsewhere():
    """Runs Python code in a process that cannot import this package and has our environment; gives its output."""

    def run_code(code: str) -> str:
        block = "import sys; sys.modules['smallm_hf'] = None\n"
        command = [sys.executable, "-I", "-c", block + code]
        result = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=200)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run_code
