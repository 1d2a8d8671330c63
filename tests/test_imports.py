"""The picture of the package is a law: imports point one way."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import smallm_hf

ROOT = Path(smallm_hf.__file__).parent
# From the ground up. A line is a level; a module belongs to the longest name here that it begins with, its room, and
# imports rooms of lower levels, and modules of its own room.
LEVELS = """
base
models  tokenizing  inspection
families
pretrained
data.configuration
data.reading
data.cleaning
data.selection
data.token_files  data.batches
data
generation
evaluation
training.configuration  training.clock  training.stopping  hub.configuration
training
plots
comparison  export
pictures  card
hub
config
describing  material  resuming
runs  scores  run_table
api  benchmarks  experiments  serving
demo
serving.running
commands
__main__
"""
ROOMS = {room: number for number, line in enumerate(LEVELS.strip().splitlines()) for room in line.split()}


def room_of(module: str) -> str:
    """The room of `a.b`."""
    fits = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    assert fits, f"{module} has no level: add its room to LEVELS"
    return max(fits, key=len)


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "smallm_hf":
            inner = node.module.removeprefix("smallm_hf").removeprefix(".")
            names = [inner] if inner in modules() else [f"{inner}.{alias.name}".strip(".") for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name.removeprefix("smallm_hf.") for a in node.names if a.name.startswith("smallm_hf.")]
        else:
            continue
        found |= set(names)
    return found - set(smallm_hf.__all__) - {"__version__", "models"}


@cache
def modules() -> dict[str, Path]:
    """The modules of this package by their names inside of it."""
    paths = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def test_no_module_imports_another_room_of_its_level_or_of_a_higher_one():
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in imported(path)
        if room_of(name) != room_of(other) and ROOMS[room_of(other)] >= ROOMS[room_of(name)]
    ]
    assert wrong == []


def test_no_two_modules_import_each_other_in_a_circle():
    try:
        list(TopologicalSorter({name: imported(path) for name, path in modules().items()}).static_order())
    except CycleError as error:
        raise AssertionError(" imports ".join(error.args[1][::-1])) from None


CONTRIBUTING = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_picture_for_newcomers_is_the_law():
    assert re.search(r"```levels\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)[1].strip() == LEVELS.strip()


def test_what_a_newcomer_reads_is_there_and_at_most_six_files_each():
    ways = re.split(r"^### ", CONTRIBUTING.partition("## What to read")[2], flags=re.MULTILINE)[1:]
    assert len(ways) == 3
    for way in ways:
        files = re.findall(r"^\d\. `([^`]+)`: ", way, flags=re.MULTILINE)
        assert 2 <= len(files) <= 6
        assert [file for file in files if not (ROOT.parent / file).is_file()] == []


def test_the_code_that_travels_with_weights_imports_torch_transformers_and_siblings_only():
    allowed = {"torch", "transformers", "huggingface_hub", "json", "math", "os", "pathlib", "difflib", "dataclasses"}
    allowed |= {"collections", "inspect", "re", "typing"}
    for path in (ROOT / "models").glob("*_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, path
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and (path.parent / f"{node.module}.py").exists(), path
