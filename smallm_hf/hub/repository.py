"""A repository of the Hub: whether this token may write to it, what it holds, uploads, tags and downloads."""

import filecmp
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.hub_access import require_hub
from smallm_hf.hub.configuration import check_repo_name

# A repository with this file in it is one of ours.
MARK_FILES = {"model": "results.json", "dataset": "meta.json", "space": "smallm_hf/__init__.py"}
Kind = Literal["model", "dataset", "space"]
GIT_FILE = ".gitattributes"  # the Hub's own


def find_token() -> str | None:
    """The user's token for the Hub; None without one, or without a home folder that could hold it."""
    try:
        return get_token()
    except OSError:  # HOME is not a folder, or not readable
        return None


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turns what the client raises inside the block into one line.

    Raises:
        UserError: the Hub refuses, or the connection fails.
    """
    try:
        yield
    except HfHubHTTPError as error:
        status, answer = error.response.status_code, " ".join((error.server_message or str(error)).split())[:300]
        if status == 401:
            reason = f"the Hub does not know this token ({answer}); run hf auth login or set HF_TOKEN"
        elif status == 403:
            reason = (
                f"this token may not write to {repo} ({answer}); create one with write permission there "
                f"at {constants.ENDPOINT}/settings/tokens"
            )
        else:
            reason = f"the Hub refuses {repo} with status {status}: {answer}"
        raise UserError(reason) from error
    except ValueError as error:
        if not str(error).startswith("Invalid metadata"):  # the Hub's verdict, in the client's words
            raise
        raise UserError(f"the Hub refuses the card of {repo}: {one_line(error)}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise UserError(
            f"the connection to the Hub broke off ({one_line(error)}); run the same command again: "
            "what has arrived is not sent a second time"
        ) from error


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub to write to; `open` finds it.

    Args:
        api: the client, with the token.
        id: `user/name`.
        kind: what it holds.
        private: whether it is created private.
    """

    api: HfApi
    id: str
    kind: Kind
    private: bool

    @classmethod
    def open(cls, repo: str, kind: Kind = "model", *, private: bool = False) -> "Repository":
        """Makes sure that a repository can be written to, and creates nothing.

        Raises:
            UserError: a name the Hub does not allow, no token, one that is not valid or read-only, no network, a
                repository that holds something else, or a public one where a private one is wanted.
        """
        check_repo_name(repo)
        if find_token() is None:
            raise UserError("there is no token for the Hub on this machine; run hf auth login or set HF_TOKEN")
        require_hub(f"the repository {repo}", "publish when it answers, or see with --dry_run what would be sent")
        api = HfApi(library_name="smallm_hf")
        with hub_errors(repo):
            account = api.whoami()
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(
                f"the token of {account['name']} is read-only; create one with write permission "
                f"at {constants.ENDPOINT}/settings/tokens, for hf auth login or HF_TOKEN"
            )
        repo = repo if "/" in repo else f"{account['name']}/{repo}"
        with hub_errors(repo):
            try:
                info = api.repo_info(repo, repo_type=kind)
            except RepositoryNotFoundError:
                return cls(api, repo, kind, private)
        held = sorted({sibling.rfilename for sibling in info.siblings} - {GIT_FILE})
        if held and MARK_FILES[kind] not in held:
            raise UserError(
                f"{repo} holds something else ({', '.join(held)[:100]}; no {MARK_FILES[kind]}); give another name"
            )
        if private and not info.private:
            raise UserError(f"{repo} exists and is public, not private; change that on the Hub or give another name")
        return cls(api, repo, kind, private)

    @property
    def url(self) -> str:
        """Its page."""
        return f"{constants.ENDPOINT}/{'' if self.kind == 'model' else f'{self.kind}s/'}{self.id}"

    def create(self, branch: str) -> None:
        """Creates the repository and a branch of it, unless they exist."""
        with hub_errors(self.id):
            options = {"space_sdk": "gradio"} if self.kind == "space" else {}
            self.api.create_repo(self.id, repo_type=self.kind, private=self.private or None, exist_ok=True, **options)
            if branch != constants.DEFAULT_REVISION:
                self.api.create_branch(self.id, repo_type=self.kind, branch=branch, exist_ok=True)

    def holds(self, folder: Path, revision: str) -> bool:
        """Whether a branch or tag has exactly the files of a folder, by their hashes."""
        with hub_errors(self.id):
            try:
                found = self.api.verify_repo_checksums(
                    self.id, repo_type=self.kind, revision=revision, local_dir=folder
                )
            except RevisionNotFoundError:
                return False
        return not (found.mismatches or found.extra_paths or set(found.missing_paths) - {GIT_FILE})

    def upload(
        self, folder: Path, branch: str, message: str, *, tag: str | None = None, only: Sequence[str] | None = None
    ) -> None:
        """Makes a branch hold exactly the files of a folder, or those that match `only`, and a tag point to that.

        What the Hub already has is not sent: unchanged files, and large ones that an earlier attempt brought there.
        """
        repo = {"repo_id": self.id, "repo_type": self.kind}
        with hub_errors(self.id):
            commit = self.api.upload_folder(
                **repo,
                folder_path=folder,
                revision=branch,
                commit_message=message,
                allow_patterns=only,
                delete_patterns="*",
            )
            if tag:
                with suppress(RevisionNotFoundError):
                    self.api.delete_tag(**repo, tag=tag)
                self.api.create_tag(**repo, tag=tag, revision=commit.oid)

    def download(self, folder: Path, revision: str, cache: Path) -> None:
        """Downloads a revision into an empty cache and makes sure that it is, byte for byte, what a folder holds.

        Raises:
            UserError: it is not.
        """
        with hub_errors(self.id):
            snapshot = self.api.snapshot_download(self.id, revision=revision, repo_type=self.kind, cache_dir=cache)
        _, different, missing = filecmp.cmpfiles(folder, snapshot, files_below(folder), shallow=False)
        if different or missing:
            raise UserError(f"{(different + missing)[0]} came back changed from {self.id}; publish it again")


def files_below(folder: Path) -> list[str]:
    """The names of all files of a folder, with `/` between their parts, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
