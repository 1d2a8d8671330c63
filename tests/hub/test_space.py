"""The page of a published model becomes a Space that holds all it needs."""

import importlib.metadata
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

import smallm_hf
from smallm_hf.base.errors import UserError
from smallm_hf.demo import page, space
from smallm_hf.demo.space import publish_space, requirements, stage_space
from smallm_hf.hub.configuration import asked_for

DEFAULTS = {"run": None, "repo": None, "space": None, "private": False, "dry_run": False, "verify_card": False} | {
    "exports": []
}
CODE = Path(smallm_hf.__file__).parent


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    """A package of one file, which is sent in no time."""
    file = tmp_path / "smallm_hf" / "__init__.py"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr(space.smallm_hf, "__file__", str(file))


@pytest.fixture
def model(hub):
    HfApi().create_repo("user/tiny", private=True)
    return "user/tiny"


def test_a_space_is_published_once_and_loads_the_model_that_it_names(hub, model, small_package, capsys):
    publish_space(model, "try-tiny")
    files = hub.files("user/try-tiny", kind="space")
    assert set(files) == {"README.md", "app.py", "requirements.txt", "LICENSE", "smallm_hf/__init__.py"}
    said = capsys.readouterr().out
    assert f"{hub.url}/spaces/user/try-tiny" in said
    assert "user/tiny is private: in the settings of the Space, add a secret HF_TOKEN" in said
    card = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    stated = {"title": "try-tiny", "sdk": "gradio", "app_file": "app.py", "models": [model], "license": "apache-2.0"}
    assert card.items() >= stated.items()
    assert card["sdk_version"] == importlib.metadata.version("gradio")
    assert card["python_version"] == ".".join(map(str, sys.version_info[:2]))
    received = hub.bytes_received
    publish_space(model, "user/try-tiny")
    assert hub.bytes_received == received and "main is up to date" in capsys.readouterr().out


def test_everything_to_install_has_the_version_that_is_installed_here():
    pinned = dict(line.split("==") for line in requirements())
    assert {"torch", "transformers", "huggingface_hub", "fastapi", "prometheus_client"} <= pinned.keys()
    assert all(importlib.metadata.version(name).partition("+")[0] == version for name, version in pinned.items())
    assert "gradio" not in pinned  # by sdk_version


def test_the_app_shows_the_page_of_the_model_by_the_package_beside_it(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(page, "launch", shown.append)
    stage_space("user/tiny", "user/try-tiny", tmp_path / "space")
    runpy.run_path(tmp_path / "space" / "app.py")
    assert shown == ["user/tiny"]
    code = {path.relative_to(CODE).as_posix() for path in CODE.rglob("*") if path.is_file()}
    copied = tmp_path / "space" / "smallm_hf"
    assert {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()} == {
        name for name in code if "__pycache__" not in name
    }


def test_a_dry_run_of_a_space_needs_neither_network_nor_token(monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    publish_space("user/tiny", "user/try-tiny", dry_run=True)
    said = capsys.readouterr().out
    assert "user/try-tiny, branch main:" in said and re.search(
        r"  app.py\n.*  smallm_hf/__init__.py\n", said, re.DOTALL
    )
    assert "sdk: gradio" in said and "# user/tiny to try" in said


def test_a_model_that_is_not_on_the_hub_has_no_space(hub):
    with pytest.raises(UserError, match="user/tiny is not on the Hub, or this token may not see it; publish it first"):
        publish_space("user/tiny", "user/try-tiny")
    assert not hub.repositories


def test_a_space_that_holds_something_else_is_left_alone(hub, model):
    api = HfApi()
    api.create_repo("user/other", repo_type="space", space_sdk="gradio")
    api.upload_file(path_or_fileobj=b"", path_in_repo="app.py", repo_id="user/other", repo_type="space")
    with pytest.raises(UserError, match=r"user/other holds something else \(app.py; no smallm_hf/__init__.py\)"):
        publish_space(model, "user/other")
    assert set(hub.files("user/other", kind="space")) == {"app.py"}


def test_without_gradio_there_is_nothing_to_pin(tmp_path, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(UserError, match=r'a Space needs gradio, which is not installed here; pip install "smallm_hf\['):
        stage_space("user/tiny", "user/try-tiny", tmp_path / "space")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"space": "user/try"}, "--repo names no repository"),
        ({"space": "user/try", "verify_card": True}, "--repo names no repository"),
        ({"space": "user/try", "repo": "user/tiny", "run": "runs/tiny"}, "--run has no meaning beside --space"),
        ({"space": "user/try", "repo": "user/tiny", "exports": ["a"]}, "--exports has no meaning beside --space"),
        ({"repo": "user/tiny"}, "--run names no run folder; give what train has written"),
        ({"verify_card": True}, "--run names no run folder"),
        ({}, "--repo names no repository"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        asked_for(DEFAULTS | given, DEFAULTS)


def test_a_space_alone_is_asked_for():
    given = {"space": "user/try", "repo": "user/tiny", "private": True, "dry_run": True}
    assert asked_for(DEFAULTS | given, DEFAULTS) == "space"
