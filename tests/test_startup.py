"""What is imported when: a command line is read without the heavy libraries, and transformers always knows us."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import smallm_hf
from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.base.registering import when_imported

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in [*(ROOT / "smallm_hf").rglob("configuration.py"), ROOT / "smallm_hf/config.py"]
)
# Each is a few tenths of a second of import or more.
HEAVY = ("torch", "transformers", "datasets", "evaluate", "sklearn", "matplotlib", "pandas", "scipy", "accelerate")
SCRIPTS = (
    "train",
    "prepare",
    "score",
    "compare",
    "generate",
    "plot",
    "publish",
    "export",
    "benchmark",
    "sweep",
    "ladder",
    "serve",
)
HELP = [
    *([script, "--help"] for script in SCRIPTS),
    *(["plot", kind, "--help"] for kind in ("runs", "attention", "embeddings", "tokens")),
    *(["benchmark", what, "--help"] for what in ("train", "data", "size", "generate", "serve", "soak")),
]
QUICK = ["--config", "configs/quickstart.yaml"]
# A line, and what its error says.
WRONG = [
    (["train", *QUICK, "--training.batch_sise", "3"], "did you mean --training.batch_size?"),
    (["train", *QUICK, "--training.batch_size", "many"], "training.batch_size=many is not of type"),
    (["train", *QUICK, "--training.batch_size", "0"], "training.batch_size=0 is out of range"),
    (["train", *QUICK, "--batching.stride", "0"], "batching.stride=0 is out of range"),
    (["train", *QUICK, "--logging.report_to", "tensorbord"], "did you mean tensorboard?"),
    (["train", *QUICK, "--hub.repo", "a/b/c"], "'a/b/c' is not a name for a repository"),
    (["train", "--config", "configs/nowhere.yaml"], "configs/nowhere.yaml: cannot be read"),
    (["train", "--config", "quikstart"], "did you mean --config quickstart?"),
    (["train", "--help", "trainin"], "there is no such section; its sections are data, cleaning"),
    (["prepare", *QUICK, "--cleaning.hmtl", "false"], "did you mean --cleaning.html?"),
    (["benchmark", "train", *QUICK, "--training.batch_sise", "3"], "did you mean --training.batch_size?"),
    (["sweep", *QUICK, "--vary", "training.sed=1,2"], "unknown option --training.sed; did you mean --training.seed?"),
    (
        ["ladder", "--config", "configs/ladder.yaml", "--rungs", "lstn"],
        "--rungs lstn: no such rung; configs/ladder.yaml",
    ),
    (["score", "--model", "x", "--data", "y", "--protocol", "pakced"], "Got value: pakced"),
    (["score", "--model", "x", "--data", "y", "--batch_size", "0"], "batch_size=0 is out of range"),
    (["score", "--model", "runs/nowhere/best", "--data", "y"], "runs/nowhere/best is not a folder"),
    (["score", "--model", "x", "--data", "nowhere.txt"], "nowhere.txt: no such file or folder"),
    (["compare", "--models", "x", "--temperature", "0"], "temperature=0.0 draws nothing"),
    (["compare", "--models", "x", "--prompts", "nowhere.txt"], "--prompts nowhere.txt: cannot be read"),
    (["generate", "--modle", "x"], "unknown option --modle; did you mean --model?"),
    (["generate", "--model", "x", "--top_p", "2"], "top_p=2.0 is out of range"),
    (["generate", "--model", "x", "--top_p", "y"], "--top_p: Expected a float. Got value: y"),
    (["generate", "--model", "runs/nowhere/best"], "runs/nowhere/best is not a folder"),
    (["serve", "--model", "runs/nowhere/best"], "runs/nowhere/best is not a folder"),
    (["serve", "--model", "x", "--port", "70000"], "port=70000 is out of range"),
    (["serve", "--model", "x", "--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines, and no API"),
    (["serve", "--model", "x", "--api_keys_file", "nowhere"], "--api_keys_file nowhere cannot be read"),
    (["plot", "token", "--model", "x"], "token is no kind of picture and no run; did you mean tokens?"),
    (["plot", "attention", "--model", "x"], "error: --text is missing; see --help"),
    (["plot", "tokens", "--model", "x"], "neither --text nor --data is given"),
    (["plot", "attention", "--model", "runs/nowhere/best", "--text", "a"], "runs/nowhere/best is not a folder"),
    (["publish", "--run", "runs/nowhere", "--repo", "a/b"], "runs/nowhere is not a run folder"),
    (["export", "--model", "x", "--to", "native", "--output_dir", "e", "--outtype", "f16"], "--outtype f16 is for"),
    (["export", "--model", "runs/nowhere/best", "--to", "native", "--output_dir", "e"], "is not a folder"),
]
RUN = """
import contextlib, importlib, io, json, runpy, sys

modules, lines, heavy = json.loads(sys.argv[1])
report = []

def noted(*seen):
    report.append([*seen, [name for name in heavy if name in sys.modules]])

for module in modules:
    importlib.import_module(module)
    noted(module)
for line in lines:
    sys.argv = [f"scripts/{line[0]}.py", *line[1:]]
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
    noted(line, status, out.getvalue(), error.getvalue())
print(json.dumps(report))
"""


def in_one_process(modules: list[str], lines: list[list[str]]) -> list[list]:
    """What each import, then each line, said and had imported; the first that imports too much is to blame."""
    command = [sys.executable, "-c", RUN, json.dumps([modules, lines, HEAVY])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def test_configuration_is_defined_and_help_printed_without_a_heavy_library():
    report = in_one_process(["smallm_hf", "smallm_hf.base.settings", *CONFIGURATION, "smallm_hf.api"], HELP)
    assert [seen[0] for seen in report if seen[-1]] == []
    for line, status, out, error, _ in report[-len(HELP) :]:
        assert (status, error) == (0, ""), line
        assert out.startswith("usage: "), line


def test_a_mistake_on_the_line_is_answered_without_a_heavy_library():
    report = in_one_process([], [line for line, _ in WRONG])
    assert [seen[0] for seen in report if seen[-1]] == []
    for (line, message), (_, status, out, error, _) in zip(WRONG, report, strict=True):
        assert (status, out, error.count("\n")) == (2, "", 1), line
        assert error.startswith("error: ") and message in error, line


def test_a_run_and_a_score_begin_without_what_only_some_of_them_use():
    unused = {"datasets", "evaluate", "sklearn", "matplotlib", "pandas"}
    code = f"import sys, smallm_hf.runs, smallm_hf.evaluation.model_scores; print(*{unused} & sys.modules.keys())"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split() == []


# --- transformers knows our classes ----------------------------------------------------------------------------------

ORDERS = {
    "ours first": (  # and somebody asks whether transformers is there before it is imported, from within
        "import importlib.util, smallm_hf; assert importlib.util.find_spec('transformers'); "
        "from transformers.generation import GenerationMixin; import transformers"
    ),
    "transformers first": "import transformers, smallm_hf",
    "unpickled": "import pickle; pickle.load(open('config.pickle', 'rb')); import transformers",
}
LOAD = """
config = transformers.AutoConfig.from_pretrained("model")
assert type(config).__module__ == "smallm_hf.models.configuration_smallm", type(config)
model = transformers.AutoModelForCausalLM.from_pretrained("model")
assert type(model).__module__ == "smallm_hf.models.modeling_smallm", type(model)
import smallm_hf
assert smallm_hf.SmaLLMConfig is type(config) and smallm_hf.SmaLLMForCausalLM is type(model)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`model`, which no native class can express, so that it is of type smallm, and its config pickled."""
    folder = tmp_path_factory.mktemp("registered")
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SmaLLMConfig(**sizes, preset="classic", norm_type="rms", max_position_embeddings=16)
    torch.manual_seed(0)
    SmaLLMForCausalLM(config).save_pretrained(folder / "model")
    assert json.loads((folder / "model/config.json").read_text())["model_type"] == "smallm"
    (folder / "config.pickle").write_bytes(pickle.dumps(config))
    return folder


@pytest.mark.parametrize("order", ORDERS)
def test_transformers_knows_our_classes_in_whatever_order_both_are_imported(folder, order):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{ORDERS[order]}\n{LOAD}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_package_lists_its_classes_before_they_are_imported():
    code = "import smallm_hf, sys; assert 'torch' not in sys.modules; print(*dir(smallm_hf))"
    listed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert {*smallm_hf.__all__, "__version__"} <= {*listed.split()}
    with pytest.raises(AttributeError, match="module 'smallm_hf' has no attribute 'SmallLM'"):
        smallm_hf.SmallLM  # noqa: B018


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A package `leader_lib` whose module `inner` imports it, and `follower_lib`, which uses it."""
    (tmp_path / "leader_lib").mkdir()
    (tmp_path / "leader_lib/__init__.py").write_text("from . import inner\nready = True\n")
    (tmp_path / "leader_lib/inner.py").write_text("import leader_lib\n")
    (tmp_path / "follower_lib.py").write_text("import leader_lib\nassert leader_lib.ready\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield tmp_path
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.split(".")[0] in ("leader_lib", "follower_lib")]:
        del sys.modules[name]


def test_a_module_follows_another_once_that_is_whole(library):
    before = len(sys.meta_path)
    when_imported("leader_lib", then="follower_lib")
    assert "follower_lib" not in sys.modules
    import leader_lib.inner

    assert leader_lib.ready and "follower_lib" in sys.modules
    assert leader_lib.__spec__.loader.get_source("leader_lib").startswith("from . import inner")
    assert len(sys.meta_path) == before  # nothing is left behind


def test_a_module_follows_at_once_where_the_other_is_there_already(library):
    import leader_lib  # noqa: F401

    when_imported("leader_lib", then="follower_lib")
    assert "follower_lib" in sys.modules


def test_a_module_that_is_not_installed_is_still_missing(library):
    when_imported("absent_lib", then="follower_lib")
    with pytest.raises(ModuleNotFoundError, match="No module named 'absent_lib'"):
        import absent_lib  # noqa: F401
