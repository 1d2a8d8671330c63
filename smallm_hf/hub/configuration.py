"""The `hub` section of a run config, and what a user states for the model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smallm_hf.base.errors import UserError, one_line

# What makes sense beside --space; all else is of a run.
OF_A_SPACE = {"repo", "space", "private", "dry_run"}


def asked_for(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Literal["run", "card", "space"]:
    """What `scripts/publish.py` is to do, by its options.

    Raises:
        UserError: one that is needed for that is missing, or has no meaning for it.
    """
    if given["run"] is not None and given["space"] is None:
        require_run(given["run"])
    if given["repo"] is None and (given["space"] is not None or not given["verify_card"]):
        raise UserError("--repo names no repository; give user/name, or --verify_card to check the card alone")
    if given["space"] is not None:
        if others := [name for name in given if name not in OF_A_SPACE and given[name] != defaults[name]]:
            raise UserError(
                f"--{others[0]} has no meaning beside --space, which publishes the page of a model that is on the Hub "
                "already; publish the run and the Space one after the other"
            )
        return "space"
    if given["run"] is None:
        raise UserError("--run names no run folder; give what train has written")
    return "card" if given["verify_card"] else "run"


def check_repo_name(repo: str) -> None:
    """Raises a UserError if the Hub does not allow a name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} is not a name for a repository of the Hub: {one_line(error)}; give user/name"
        ) from error


def require_run(run: Path) -> None:
    """Raises a UserError if a folder is not a run's."""
    if not (run / "config.yaml").is_file():
        is_inside = (run.parent / "config.yaml").is_file()
        meant = f"did you mean {run.parent}?" if is_inside else "give what train has written"
        raise UserError(f"{run} is not a run folder (no config.yaml); {meant}")


@dataclass(frozen=True)
class HubConfig:
    """Where a run's weights go on the Hugging Face Hub.

    Args:
        repo: `user/name`, or `name` in the namespace of the token.
        private: whether a repository that is created for the run is private.
        push_every: steps or tokens (see training.interval_unit) between two pushes of the weights to the repository's
            branch `training`; null leaves all to `publish`.
        license: of the weights, as the Hub spells it.
    """

    repo: str | None = None
    private: bool = False
    push_every: int | None = None
    license: str = "apache-2.0"

    def __post_init__(self) -> None:
        if self.repo is not None:
            check_repo_name(self.repo)
        if self.push_every is not None and self.push_every < 1:
            raise UserError(f"hub.push_every={self.push_every} is out of range; set it to a number above 0 or null")
        if self.push_every is not None and self.repo is None:
            raise UserError(f"hub.push_every={self.push_every} names no repository; set hub.repo to user/name")


@dataclass(frozen=True)
class Statements:
    """What a card says and no record knows.

    Args:
        license: of the weights, as the Hub spells it; default: hub.license of the run, else apache-2.0.
        data_license: of the training text; default: data.license of the run, or what is known of its data.source.
        data_set: Hub id of the training text, if the run read it from files.
        language: of the text, as an ISO 639 code; several separated by commas.
    """

    license: str | None = None
    data_license: str | None = None
    data_set: str | None = None
    language: str | None = None
