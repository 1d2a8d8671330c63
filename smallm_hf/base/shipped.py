"""Files from the top of the checkout that an installation has too: recipes, the template of the card, the licence."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from smallm_hf.base.errors import UserError

TOP = Path(__file__).resolve().parents[2]  # of the checkout, if this is one
RECIPES = "configs"


def top_file(name: str) -> Path:
    """A file from the top of the checkout, or from where the installation has put it.

    Raises:
        UserError: the installation lacks it.
    """
    if _is_checkout():
        return TOP / name
    if found := next(_installed(name), None):
        return found
    raise UserError(f"this installation of smallm_hf lacks {name}; install it from a checkout with pip install -e .")


def recipes() -> dict[str, Path]:
    """The recipes that come with this package, by the names that `--config` knows; empty where they are missing."""
    files = (TOP / RECIPES).glob("*.yaml") if _is_checkout() else _installed(f"{RECIPES}/*.yaml")
    return {path.stem: path for path in sorted(files)}


def _is_checkout() -> bool:
    return (TOP / "setup.cfg").is_file()


def _installed(pattern: str) -> Iterator[Path]:
    """The files of the installation whose paths end like this."""
    try:
        files = importlib.metadata.files("smallm_hf") or ()
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.match(pattern) and (path := Path(file.locate()).resolve()).is_file():
            yield path
