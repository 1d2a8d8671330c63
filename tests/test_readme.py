"""Every command of the README runs; what would take minutes is given less to do."""

import contextlib
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smallm_hf.benchmarks.servers import started

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# Made smaller, in the order the README runs them: later commands use the folders of earlier ones.
SMALLER = {
    "configs/quickstart.yaml": "--training.max_seconds 2 --training.sample_tokens 5 --training.evaluate_every null "
    "--training.validation_tokens 5000 --training.compile false",
    "configs/tinystories_4m.yaml": "--training.max_steps 2 --training.batch_size 2 --training.sample_tokens 5 "
    "--training.compile false --model.vocab_size 300 --model.hidden_size 32 --model.num_hidden_layers 1",
    "configs/finetune.yaml": "--training.max_steps 2 --training.sample_tokens 5 --training.compile false",
    "--resume": "--training.max_steps 3",
    "--training.cooldown_from": "--training.max_steps 3",
    "scripts/generate.py": "--max_new_tokens 5",
    "scripts/serve.py": "--compile false",
    "benchmark.py train": "--seconds 0.5 --turn 0.2 --against gpt2 --without --model.num_hidden_layers 1",
    "benchmark.py generate": "--quick",
    "benchmark.py data": "--quick",
}
API = "import smallm_hf"
SMALLER_PYTHON = {
    '"max_seconds": 60': '"max_seconds": 1, "batch_size": 2, "context_length": 32, "sample_tokens": 5, '
    '"validation_tokens": 5000, "compile": False',
}
INSTALLING = re.compile(r"pip install|pytest|ruff")  # what .ci/run does itself


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if not INSTALLING.search(part)]


@pytest.fixture
def checkout(tmp_path, gpt2_folder) -> Path:
    """A folder that looks like a clone to the commands, with texts of a user's own."""
    folder = tmp_path
    for name in ("scripts", "configs", "smallm_hf"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "gpt2").symlink_to(gpt2_folder)  # what a user has from the Hub
    draw = random.Random(0)
    words = ["".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(3)) for _ in range(900)]
    paragraphs = [" ".join(draw.choices(words, k=30)) for _ in range(400)]
    (folder / "my_text.txt").write_text("\n\n".join(paragraphs[:40]))
    (folder / "my_pairs.jsonl").write_text('{"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."}\n')
    (folder / "my_texts").mkdir()
    (folder / "my_texts" / "counting.txt").write_text("\n<|endoftext|>\n".join(paragraphs))
    import pandas

    pandas.DataFrame({"text": paragraphs}).to_parquet(folder / "stories.parquet")
    return folder


def smaller(command: str) -> str:
    for words, less in SMALLER.items():
        if words in command and "--dry_run" not in command and "--help" not in command and "prepare" not in command:
            command += " " + less
    if "--probe" in command:
        command += " --training.compile false"
    return command.replace("/step-2000", "/step-2")


@pytest.fixture
def servers():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.timeout(1200)  # some fifty processes
def test_every_command_runs(checkout, servers, monkeypatch, warm_bin):
    path = os.pathsep.join([str(warm_bin), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    monkeypatch.chdir(checkout)
    done = []
    for command in commands():
        if "scripts/serve.py" in command:  # until all commands have run
            words = shlex.split(smaller(command).replace("python", str(warm_bin / "python"), 1))
            server = servers.enter_context(started(command, words, "/ready"))
            done.append(command)
            continue
        if command.startswith("curl"):
            command = command.replace("http://127.0.0.1:8000", server.address)
        result = subprocess.run(
            smaller(command), shell=True, cwd=checkout, env=environment, capture_output=True, text=True, timeout=400
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        assert "choices" in result.stdout or not command.startswith("curl"), result.stdout
        done.append(command)
    servers.close()
    assert server.process.returncode == 0
    scripts = {word for command in done for word in shlex.split(command) if word.startswith("scripts/")}
    assert scripts == {f"scripts/{path.name}" for path in (REPOSITORY / "scripts").glob("*.py")}
    for block in blocks("python"):
        if API not in block:
            run_python(block, checkout, warm_bin)
    shutil.rmtree(checkout / "runs")


def test_what_the_scripts_do_runs_in_python(checkout, warm_bin):
    (block,) = [block for block in blocks("python") if API in block]
    for words, less in SMALLER_PYTHON.items():
        assert words in block
        block = block.replace(words, less)
    run_python(block, checkout, warm_bin)


def run_python(block: str, folder: Path, bin: Path) -> None:
    result = subprocess.run([bin / "python", "-c", block], cwd=folder, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, f"{block}\n{result.stderr[-2000:]}"


def test_the_table_of_recipes_states_the_counted_parameters():
    from smallm_hf.config import model_config
    from smallm_hf.pretrained import fresh_model
    from smallm_hf.training.plan import embedding_parameters

    paths = [
        path
        for path in (REPOSITORY / "configs").glob("*.yaml")
        if not path.stem.startswith(("ladder", "names_", "shakespeare_"))
    ]
    models = {path.name: yaml.safe_load(path.read_text())["model"] for path in paths}
    recipes = sorted(name for name, model in models.items() if "init_from" not in model)
    rows = dict(re.findall(r"^\| `(\w+\.yaml)` \| \w+ \| ([\d,]+ \([\d,]+\)) \|", README, flags=re.MULTILINE))
    assert sorted(rows) == recipes
    for name in recipes:
        model = fresh_model(model_config(models[name]), "meta")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert rows[name] == f"{parameters:,} ({embedding_parameters(model):,})", name


def test_the_quick_start_command_is_the_promised_one():
    train = "python scripts/train.py --config configs/quickstart.yaml"
    assert f"pip install -c constraints.txt -e . && {train}" in README
