"""The console command: every script by its name, recipes by theirs, help that fits on a screen; from a wheel too."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from smallm_hf import __version__
from smallm_hf.__main__ import COMMANDS, main
from smallm_hf.base import shipped
from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.base.recipes import read_recipe
from smallm_hf.config import SECTIONS, TYPES, parse_command_line
from smallm_hf.pictures.configuration import OF_MODELS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {path.stem: path for path in (ROOT / "scripts").glob("*.py")}


@pytest.fixture
def smallm(monkeypatch, capsys):
    """Runs the command in this process; gives its status, standard output and the errors."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["smallm", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
        return status, *capsys.readouterr()

    return run


def test_every_command_has_its_module_and_every_script_is_one_of_them():
    modules = {path.stem for path in (ROOT / "smallm_hf" / "commands").glob("*.py")} - {"__init__"}
    assert modules == COMMANDS.keys()
    assert SCRIPTS.keys() == COMMANDS.keys() - {"runs", "recipes"}
    for name, path in SCRIPTS.items():
        text = path.read_text()
        assert f"from smallm_hf.commands.{name} import main" in text and len(text.splitlines()) <= 40, name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_on_a_screen_and_shows_three_examples_that_the_command_knows(smallm, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, error = smallm(name, "--help")
    assert (status, error) == (0, "")
    assert len(out.splitlines()) < 60
    assert out.startswith(f"usage: smallm {name} ")
    assert "<class" not in out
    examples = out.partition("examples:\n")[2].splitlines()
    assert len(examples) == 3
    assert all(example.startswith(f"  smallm {name}") for example in examples)
    kinds = [kind for kind in ("runs", *OF_MODELS) if name == "plot"]
    shown = "".join(smallm(name, *kind, "--help_all")[1] for kind in ([], *([kind] for kind in kinds)))
    options = {*re.findall(r"--[\w.]+", shown), "--config", *(f"--{key}" for key in TYPES), "--model.hidden_act"}
    assert {word for line in examples for word in line.split() if word.startswith("--")} <= options


def test_a_section_is_shown_alone_and_all_of_them_together(smallm):
    section, everything = smallm("train", "--help", "training")[1], smallm("train", "--help_all")[1]
    assert "--training.max_steps" in section and "--data." not in section and "usage" not in section
    assert all(f"--{name}." in everything for name in SECTIONS)
    assert "--training.batch_size" not in smallm("train", "--help")[1]


def test_prepare_shows_its_own_keys_alone(smallm):
    keys = re.findall(r"^  --(\w+)\.", smallm("prepare", "--help_all")[1], flags=re.MULTILINE)
    assert {*keys} == {"data", "cleaning", "selection", "tokenizer", "model"}


def test_examples_are_written_as_the_command_was_called(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS["export"]), "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPTS["export"]), run_name="__main__")
    assert "  python scripts/export.py --model runs/quickstart/best --to gguf" in capsys.readouterr().out


def test_the_command_names_its_commands_and_what_was_probably_meant(smallm):
    status, out, _ = smallm()
    assert status == 0 and all(f"  {name} " in out for name in COMMANDS)
    assert smallm("--version")[1] == f"{__version__}\n"
    assert smallm("trian")[::2] == (2, "error: trian is not a command; did you mean train?; see smallm --help\n")


def test_a_result_knows_the_words_of_its_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["smallm train", "--output_dir", "my runs/a"])
    assert environment()["command"] == ["smallm", "train", "--output_dir", "my runs/a"]


def test_recipes_are_listed_and_printed(smallm):
    status, out, _ = smallm("recipes")
    assert status == 0 and {line.split()[0] for line in out.splitlines()[:-2]} == set(shipped.recipes())
    assert smallm("recipes", "quickstart")[1] == (ROOT / "configs" / "quickstart.yaml").read_text()
    assert smallm("recipes", "quikstart")[2] == "error: there is no recipe quikstart; did you mean quickstart?\n"


def test_a_recipe_is_found_by_its_name_and_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, options = parse_command_line("", ["--config", "quickstart"], training=True)
    assert named == parse_command_line("", ["--config", str(ROOT / "configs/quickstart.yaml")], training=True)[0]
    assert options.output_dir == Path("runs/quickstart")
    Path("quickstart").write_text("training: {max_steps: 3}\n")
    assert read_recipe("quickstart", {}) == {"training": {"max_steps": 3}}
    with pytest.raises(
        UserError, match=r"configs/quickstart.yaml: cannot be read .*did you mean --config quickstart\?"
    ):
        read_recipe("configs/quickstart.yaml", {})


def test_an_installation_without_its_checkout_has_the_recipes_where_it_put_them(tmp_path, monkeypatch):
    placed = tmp_path / "share" / "smallm_hf" / "configs"
    (placed / "accelerate").mkdir(parents=True)
    for name in ("mine.yaml", "accelerate/cpu.yaml"):
        (placed / name).write_text("training: {max_steps: 3}\n")
    (tmp_path / "smallm_hf-9.dist-info").mkdir()
    (tmp_path / "smallm_hf-9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: smallm_hf\nVersion: 9\n")
    record = "".join(
        f"share/smallm_hf/configs/{name},,\n" for name in ("mine.yaml", "accelerate/cpu.yaml", "gone.yaml")
    )
    (tmp_path / "smallm_hf-9.dist-info" / "RECORD").write_text(record)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(shipped, "TOP", tmp_path)
    assert shipped.recipes() == {"mine": placed / "mine.yaml"}
    assert read_recipe("mine", {}) == {"training": {"max_steps": 3}}


@pytest.mark.slow
def test_a_wheel_in_an_empty_folder_has_everything(tmp_path):
    """Built without the network, and installed beside the libraries of this environment."""
    source, empty = tmp_path / "source", tmp_path / "empty"
    for name in ("smallm_hf", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "model_card.md"):
        shutil.copy(ROOT / name, source)
    empty.mkdir()
    pip = [sys.executable, "-m", "pip"]
    wheel = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source]
    subprocess.run([*pip, *wheel], check=True)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (built,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", built], check=True)
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True
    )
    libraries = Path(pytest.__file__).parents[1]
    Path(site.stdout.strip(), "libraries.pth").write_text(f"{libraries}\n")

    def run(*words: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(python.with_name("smallm")), *words]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    small = ["--training.max_steps", "2", "--training.max_seconds", "null", "--training.compile", "false"]
    small += ["--training.batch_size", "2", "--training.validation_tokens", "2000", "--training.sample_tokens", "4"]
    (empty / "my.txt").write_text("One fish, two fish, red fish, blue fish.\n\n" * 200)
    text = ["--data.source", "my.txt", "--model.vocab_size", "270", "--selection.duplicates", "keep"]
    assert "quickstart" in run("recipes")
    printed = run("train", "--config", "quickstart", *text, *small)
    generate = next(line for line in printed.splitlines() if line.strip().startswith("smallm generate"))
    assert "--model runs/quickstart/best" in generate
    assert run("generate", "--model", "runs/quickstart/best", "--prompt", "One", "--max_new_tokens", "3").startswith(
        "One"
    )
    assert "quickstart" in run("runs")
    scoring = ["--data", "my.txt", "--report", "scores.html"]
    assert "written to scores.html" in run("score", "--model", "runs/quickstart/best", *scoring)
    assert "card" in run("publish", "--run", "runs/quickstart", "--verify_card")
    assert run("ladder", "--config", "ladder", "--data.source", "my.txt", "--dry_run")
