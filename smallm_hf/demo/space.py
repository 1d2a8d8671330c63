"""The page of a published model as a Space of the Hub: an app of two lines, with this package as it is here."""

import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, SpaceCardData, constants
from huggingface_hub.errors import RepositoryNotFoundError
from packaging.requirements import Requirement

import smallm_hf
from smallm_hf.base.errors import UserError
from smallm_hf.base.shipped import top_file
from smallm_hf.evaluation.page import fill_template
from smallm_hf.hub.configuration import check_repo_name
from smallm_hf.hub.publishing import send, show
from smallm_hf.hub.repository import Repository, hub_errors
from smallm_hf.serving.configuration import LIBRARIES

CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"  # the usual ones hold gigabytes for GPUs
SDK = "gradio"


def publish_space(model: str, space: str, *, private: bool = False, dry_run: bool = False) -> None:
    """Publishes the page of a model that is on the Hub, or with `dry_run` prints what would be published.

    Args:
        model: `user/name` of the model.
        space: `user/name`, or `name` in the namespace of the token.
        private: whether a Space that is created now is private.
        dry_run: prints files, sizes and card instead, without network or token.

    Raises:
        UserError: the model is not on the Hub, Gradio is not installed, or the Hub refuses.
    """
    for name in (model, space):
        check_repo_name(name)
    repository = None if dry_run else Repository.open(space, "space", private=private)
    if repository:
        _require_model(repository.api, model)
    with tempfile.TemporaryDirectory(prefix="smallm_hf-") as scratch:
        folder = Path(scratch, "space")
        stage_space(model, repository.id if repository else space, folder)
        if repository is None:
            show(space, constants.DEFAULT_REVISION, folder)
            return
        send(repository, folder, constants.DEFAULT_REVISION)
        repository.download(folder, constants.DEFAULT_REVISION, Path(scratch, "downloaded"))
    print(repository.url)


def _require_model(api: HfApi, model: str) -> None:
    with hub_errors(model):
        try:
            found = api.model_info(model)
        except RepositoryNotFoundError as error:
            raise UserError(
                f"{model} is not on the Hub, or this token may not see it; publish it first, with "
                f"smallm publish --run RUN --repo {model}"
            ) from error
    if found.private:
        print(f"{model} is private: in the settings of the Space, add a secret HF_TOKEN that may read it")


def stage_space(model: str, space: str, folder: Path) -> None:
    """Writes all that a Space holds into a folder that does not exist yet.

    Args:
        model: the id of the model.
        space: the id of the Space.
        folder: made here.
    """
    code = Path(smallm_hf.__file__).parent
    shutil.copytree(code, folder / code.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(top_file("LICENSE"), folder)
    card = SpaceCardData(
        title=space.split("/")[-1],
        emoji="📖",
        colorFrom="blue",
        colorTo="indigo",
        sdk=SDK,
        sdk_version=_installed(SDK),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        models=[model],
        license="apache-2.0",
    )
    for name, content in (
        ("README.md", fill_template("space.md", __package__, card=card.to_yaml(), model=model)),
        ("app.py", f"from smallm_hf.demo.page import launch\n\nlaunch({model!r})\n"),
        ("requirements.txt", "\n".join([CPU_WHEELS, *requirements()]) + "\n"),
    ):
        (folder / name).write_text(content, encoding="utf-8")


def requirements() -> list[str]:
    """What the package and its server need, in the versions installed here; the Hub installs Gradio by itself."""
    declared = map(Requirement, importlib.metadata.requires("smallm_hf") or ())
    named = [one.name for one in declared if one.marker is None]
    return [f"{name}=={_installed(name)}" for name in sorted({*named, *LIBRARIES["serve"]}, key=str.lower)]


def _installed(name: str) -> str:
    """A version without what it was built for, which is another one there."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f'a Space needs {name}, which is not installed here; pip install "smallm_hf[demo]"') from error
