"""The scripts as a user starts them: one process, a launcher, several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from running import BIN, TRAIN

from smallm_hf.training.progress import read_records

REPOSITORY = Path(__file__).resolve().parent.parent


def run(*command: object, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command to its end; one that hangs is aborted, and says where its processes stood."""
    variables = {**os.environ, "PYTHONFAULTHANDLER": "1", **environment}
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.send_signal(signal.SIGABRT)
            out, err = process.communicate(timeout=60)
            raise TimeoutError(
                f"{command} did not end within {seconds} seconds\n{out[-3000:]}\n{err[-9000:]}"
            ) from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"Line {i} says that {i * i} is the square of {i}." for i in range(300))
    )
    content = {
        "data": {"source": str(tmp_path / "text.txt"), "folder": str(tmp_path / "tokens"), "validation_ratio": 0.1},
        "model": {
            "vocab_size": 270,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
        },
        "training": {
            "max_steps": 4,
            "context_length": 16,
            "batch_size": 4,
            "accumulation_steps": 2,
            "log_every": 1,
            "precision": "fp32",
            "compile": False,
            "sample_prompts": ["Line"],
            "sample_tokens": 5,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_mistake_ends_the_script_with_one_line_and_status_2(recipe, tmp_path):
    result = run(sys.executable, TRAIN, "--config", recipe, "--training.max_step", 3, "--output_dir", tmp_path / "run")
    assert result.returncode == 2
    assert result.stderr == "error: unknown option --training.max_step; did you mean --training.max_steps?\n"
    assert not (tmp_path / "run").exists()


def test_through_a_launcher_the_line_is_the_last_our_process_prints(recipe, tmp_path):
    command = [BIN / "accelerate", "launch", "--quiet", TRAIN, "--config", recipe, "--output_dir", tmp_path / "run"]
    result = run(*command, "--model.vocab_size", 100)
    assert result.returncode != 0
    assert "error: model.vocab_size=100 is below 257" in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["prepare.py", "train.py", "score.py", "generate.py"])
def test_every_script_explains_itself(script):
    result = run(sys.executable, REPOSITORY / "scripts" / script, "--help")
    assert result.returncode == 0
    assert "usage:" in result.stdout and "--" in result.stdout
    assert "Traceback" not in result.stderr


def test_two_processes_share_an_update_and_end_like_one(recipe, tmp_path):
    words = ["--config", recipe, "--training.optimizer", "adamw"]
    alone = run(BIN / "accelerate", "launch", "--quiet", TRAIN, *words, "--output_dir", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    launcher = [BIN / "torchrun", "--standalone", "--nproc_per_node", 2]
    shared = run(*launcher, TRAIN, *words, "--output_dir", tmp_path / "two")
    assert shared.returncode == 0, shared.stderr
    one, two = read_records(tmp_path / "one", "metrics"), read_records(tmp_path / "two", "metrics")
    assert [record["step"] for record in two] == [1, 2, 3, 4, 4]
    for mine, theirs in zip(one, two, strict=True):
        for name in {"loss", "gradient_norm", "validation_loss", "validation_bits_per_byte"} & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
        assert theirs["tokens"] == mine["tokens"]
    assert shared.stdout.count("next:") == 1  # one voice


def test_accelerate_starts_two_processes_on_a_cpu_as_the_readme_says(recipe, tmp_path):
    launcher = [BIN / "accelerate", "launch", "--quiet", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0]
    timed = ["--training.max_seconds", 1, "--training.max_steps", "null"]  # both must find the end together
    words = ["--config", recipe, "--output_dir", tmp_path / "run", *timed]
    result = run(*launcher, TRAIN, *words, ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "run" / "results.json").read_text()
    assert yaml.safe_load(text)["processes"] == 2


def test_processes_that_do_not_divide_the_accumulation_are_refused(recipe, tmp_path):
    launcher = [BIN / "torchrun", "--standalone", "--nproc_per_node", 2]
    words = ["--config", recipe, "--training.accumulation_steps", 3, "--output_dir", tmp_path / "run"]
    result = run(*launcher, TRAIN, *words)
    assert result.returncode != 0
    assert "error: training.accumulation_steps=3 is shared by 2 processes and does not divide" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_loss_that_one_process_alone_lost_stops_all_and_is_told(recipe, tmp_path):
    (tmp_path / "poisoned.py").write_text(
        "import os, runpy, sys\n"
        "from smallm_hf.training.objectives import LanguageModelling\n"
        "forward = LanguageModelling.forward\n"
        "if os.environ['RANK'] == '1':\n"
        "    LanguageModelling.forward = lambda self, **batch: forward(self, **batch) * float('nan')\n"
        f"runpy.run_path({TRAIN!r}, run_name='__main__')\n"
    )
    launcher = [BIN / "torchrun", "--standalone", "--nproc_per_node", 2]
    words = ["--config", recipe, "--output_dir", tmp_path / "run", "--training.max_skipped_steps", 2]
    result = run(*launcher, tmp_path / "poisoned.py", *words)
    assert result.returncode != 0
    assert result.stderr.count("error: the last 2 updates had no usable loss or gradient (loss nan") == 1


@pytest.mark.parametrize(
    ("key", "value", "alternative"),
    [
        ("--data.source", "nobody/nothing", "--data.source PATH"),
        ("--tokenizer.source", "nobody/nothing", "tokenizer.source=bpe"),
    ],
)
def test_an_unreachable_hub_fails_soon_and_names_the_local_alternative(recipe, tmp_path, key, value, alternative):
    began = time.monotonic()
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    result = run(sys.executable, TRAIN, "--config", recipe, key, value, "--output_dir", tmp_path / "run", **closed)
    seconds = time.monotonic() - began
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "cannot be reached" in result.stderr and alternative in result.stderr
    assert seconds < 40  # ten of them for the Hub, the rest for importing torch on a busy machine
