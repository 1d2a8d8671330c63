"""The picture of the package is a law: imports point one way."""

import ast
from pathlib import Path

import smallm_hf

ROOT = Path(smallm_hf.__file__).parent
LEVELS = [
    ["errors", "terminal", "allocation", "arithmetic", "folders", "plain_json", "recipes", "registering", "settings"],
    ["command_line", "tokenization", "models", "pretrained"],
    ["environment", "data", "evaluation", "generation", "training.optimization", "training.progress"],
    [
        "training.configuration",
        "training.devices",
        "training.checkpoints",
        "training.clock",
        "training.loss",
        "training.saving",
        "training.sharding",
        "training.stopping",
        "training.tracking",
        "training.update",
        "training.validation",
        "training.watch",
        "training.zero",
    ],
    [
        "training.loop",
        "training.plan",
        "training.probe",
        "config",
        "card",
        "plots",
        "pictures",
        "export",
        "hub",
        "comparison",
    ],
    ["describing", "resuming"],
    ["runs", "benchmarks"],
]


def level(module: str) -> int:
    """The level of `a.b` by its longest listed prefix."""
    fits = [i for i, names in enumerate(LEVELS) for name in names if module == name or module.startswith(name + ".")]
    assert fits, f"{module} has no level: add it to LEVELS"
    return max(fits)


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            # `from smallm_hf import runs` names the module behind the import.
            package = node.module == "smallm_hf"
            names = [f"smallm_hf.{alias.name}" for alias in node.names] if package else [node.module or ""]
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.removeprefix("smallm_hf.") for name in names if name.startswith("smallm_hf.")}
    found -= set(smallm_hf.__all__) | {"__version__"}
    return found


def modules() -> dict[str, Path]:
    paths = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def test_no_module_imports_one_of_a_higher_level():
    upward = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in imported(path)
        if level(other) > level(name)
    ]
    assert upward == []


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
