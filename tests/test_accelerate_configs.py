"""The launch files: what Accelerate makes of each, and that those for a CPU start what they say."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from smallm_hf.training import launch as launching
from smallm_hf.training.progress import read_records
from smallm_hf.training.sharding import sharding_plugin

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "configs" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
TRAIN = REPOSITORY / "scripts" / "train.py"


def read_by_accelerate(name: str, *words: str):
    """The settings that `accelerate launch` starts from, read and completed by itself."""
    arguments = launch_command_parser().parse_args(["--config_file", str(FOLDER / name), *words, str(TRAIN)])
    return _validate_launch_command(arguments)[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_each_file_and_leaves_precision_and_compiling_to_the_recipe(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision is None and config.dynamo_config == {}
    assert read_by_accelerate(path.name).mixed_precision == "no"  # `training.precision: auto` then decides
    assert f"configs/accelerate/{path.name} " in path.read_text()  # how it is used


@pytest.mark.parametrize(
    ("name", "words", "processes", "machines", "several", "cpu"),
    [
        ("cpu.yaml", [], 1, 1, False, True),
        ("cpu_2_processes.yaml", [], 2, 1, True, True),
        ("one_gpu.yaml", [], 1, 1, False, False),
        ("ddp.yaml", [], 2, 1, True, False),
        ("ddp.yaml", ["--num_processes", "8"], 8, 1, True, False),
        ("several_nodes.yaml", ["--machine_rank", "1"], 2, 2, True, False),
        ("fsdp2.yaml", ["--num_processes", "4"], 4, 1, False, False),
    ],
)
def test_each_file_starts_the_processes_it_says(name, words, processes, machines, several, cpu):
    launch = read_by_accelerate(name, *words)
    counts = (launch.num_processes, launch.num_machines)
    assert (*counts, launch.multi_gpu, launch.use_cpu) == (processes, machines, several, cpu)
    assert launch.use_fsdp == name.startswith("fsdp")
    assert not launch.use_megatron_lm and not launch.use_deepspeed
    if machines > 1:
        assert launch.machine_rank == 1 and launch.main_process_port == 29500


def test_what_the_fsdp_file_leaves_for_the_processes_is_what_the_training_wants(monkeypatch):
    for variable, value in prepare_multi_gpu_env(read_by_accelerate("fsdp2.yaml")).items():
        if variable.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(variable, value)
    monkeypatch.setattr(launching, "accelerator_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launching.check_launch()
    plugin = sharding_plugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy


def test_every_file_is_in_the_table_above_and_in_the_page_about_scaling():
    page = (REPOSITORY / "docs" / "scaling.md").read_text()
    names = {"cpu.yaml", "cpu_2_processes.yaml", "one_gpu.yaml", "ddp.yaml", "several_nodes.yaml", "fsdp2.yaml"}
    assert {path.name for path in FILES} == names
    assert all(f"`{name}`" in page for name in names)


# --- what they start -------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "text.txt").write_text("\n\n".join(f"The square of {i} is {i * i}." for i in range(300)))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    content = {
        "data": {"source": str(tmp_path / "text.txt"), "folder": str(tmp_path / "tokens"), "validation_ratio": 0.1},
        "model": {"vocab_size": 270, **sizes},
        "training": {
            **{"max_steps": 2, "context_length": 16, "batch_size": 4, "accumulation_steps": 2, "log_every": 1},
            **{"precision": "fp32", "compile": False, "sample_prompts": ["The"], "sample_tokens": 2},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(name: str, launching: list[str], recipe: Path, run: Path, **environment: str) -> subprocess.Popen:
    """One `accelerate launch` as the file's comment shows it."""
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", str(FOLDER / name)]
    words = ["--config", str(recipe), "--output_dir", str(run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *launching, str(TRAIN), *words], env={**os.environ, **environment}, **pipes)


def finish(process: subprocess.Popen) -> str:
    """What it said until its end."""
    try:
        return process.communicate(timeout=240)[0]
    finally:
        process.kill()


def test_two_processes_train_together_from_one_file(recipe, tmp_path):
    process = start("cpu_2_processes.yaml", [], recipe, tmp_path / "run", ACCELERATE_USE_CPU="true")
    said = finish(process)
    assert process.returncode == 0, said
    assert yaml.safe_load((tmp_path / "run" / "results.json").read_text())["processes"] == 2
    assert said.count("next:") == 1  # one voice


def test_one_process_in_place_of_two_is_refused_before_it_trains(recipe, tmp_path):
    file = tmp_path / "offered.yaml"  # what `accelerate config` writes for two processes on a CPU
    file.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 1\nnum_processes: 2\n")
    process = start(str(file), ["--quiet"], recipe, tmp_path / "run")
    said = finish(process)
    assert process.returncode != 0
    assert "error: accelerate was asked for several processes and has started one" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_machines_train_together_from_one_file(recipe, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [["--main_process_port", port, "--machine_rank", rank] for rank in "01"]
    launches = [
        start("several_nodes.yaml", each, recipe, tmp_path / "two", ACCELERATE_USE_CPU="true") for each in words
    ]
    said = [finish(process) for process in launches]
    assert [process.returncode for process in launches] == [0, 0], said
    one = start("cpu.yaml", [], recipe, tmp_path / "one")
    assert finish(one) and one.returncode == 0
    losses = [
        [record["loss"] for record in read_records(tmp_path / name, "metrics") if "loss" in record]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
