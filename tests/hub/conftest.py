"""A Hub of one's own, and a tiny finished run to publish on it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import connected_hub
from running import train, write_recipe, write_stories


@pytest.fixture
def hub(tmp_path):
    with connected_hub(tmp_path / "home") as hub:
        yield hub


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """Six steps at a rate so high that the best weights are those of step 3; with figures; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    rates = {"learning_rate": 0.1, "muon_learning_rate": 1.0, "schedule": "constant"}
    recipe = write_recipe(folder, write_stories(folder), training={**rates, "sample_prompts": ["the cat", "", "/usr"]})
    train(recipe, folder / "tiny", figures=True)
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
