"""A repository of the Hub that may be written to: whether it may, what it holds, one commit, a tag, back again."""

import filecmp
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.hub_access import require_hub
from smallm_hf.hub.configuration import check_repo_name

Kind = Literal["model", "dataset"]

MARKS = {"model": "results.json", "dataset": "meta.json"}  # a repository with this file in it is one of ours
GIT_FILE = ".gitattributes"  # the Hub's own


def find_token() -> str | None:
    """The user's token for the Hub; None where there is none, or no home folder that could hold it."""
    try:
        return get_token()
    except OSError:  # HOME is no folder, or closed to us
        return None


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Tells in one line what the Hub, or the way to it, answers to the block.

    Raises:
        UserError: in place of what the client raises.
    """
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        status, said = error.response.status_code, " ".join((error.server_message or str(error)).split())[:300]
        if status == 401:
            raise UserError(f"the Hub does not know this token ({said}); run hf auth login or set HF_TOKEN") from error
        if status == 403:
            raise UserError(
                f"this token may not write to {repo} ({said}); take one with write permission there, "
                f"from {constants.ENDPOINT}/settings/tokens"
            ) from error
        raise UserError(f"the Hub refuses {repo} with status {status}: {said}") from error
    except ValueError as error:
        if not str(error).startswith("Invalid metadata"):  # the Hub's judgement, in the client's words
            raise
        raise UserError(f"the Hub refuses the card of {repo}: {one_line(error)}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise UserError(
            f"the connection to the Hub broke off ({one_line(error)}); run the same command again: "
            "what has arrived is not sent a second time"
        ) from error


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, to be written to.

    Args:
        api: the client, with the token.
        id: `user/name`.
        kind: what it holds.
        exists: whether it was there when it was opened.
    """

    api: HfApi
    id: str
    kind: Literal["model", "dataset"]
    exists: bool

    @classmethod
    def open(cls, repo: str, kind: Literal["model", "dataset"] = "model", *, private: bool = False) -> "Repository":
        """Finds out that a repository can be written to, and makes nothing.

        Raises:
            UserError: a name the Hub does not allow, no token, one that is not valid or reads only, no network, a
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
                f"the token of {account['name']} may read only; take one with write permission, "
                f"from {constants.ENDPOINT}/settings/tokens, for hf auth login or HF_TOKEN"
            )
        repo = repo if "/" in repo else f"{account['name']}/{repo}"
        with hub_errors(repo):
            try:
                info = api.repo_info(repo, repo_type=kind)
            except RepositoryNotFoundError:
                return cls(api, repo, kind, exists=False)
        held = sorted({sibling.rfilename for sibling in info.siblings} - {GIT_FILE})
        if held and MARKS[kind] not in held:
            raise UserError(
                f"{repo} holds something else ({', '.join(held)[:100]}; no {MARKS[kind]}); give another name"
            )
        if private and not info.private:
            raise UserError(f"{repo} exists and is public, not private; change that on the Hub or give another name")
        return cls(api, repo, kind, exists=True)

    @property
    def url(self) -> str:
        """Its page."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"

    def make(self, branch: str, *, private: bool) -> None:
        """Makes the repository and a branch of it, unless they are there."""
        with hub_errors(self.id):
            if not self.exists:
                self.api.create_repo(self.id, repo_type=self.kind, private=private or None, exist_ok=True)
            if branch != constants.DEFAULT_REVISION:
                self.api.create_branch(self.id, repo_type=self.kind, branch=branch, exist_ok=True)

    def holds(self, folder: Path, revision: str) -> bool:
        """Whether a branch or tag has exactly the files of a folder, by their hashes."""
        with hub_errors(self.id):
            refs = self.api.list_repo_refs(self.id, repo_type=self.kind)
            if revision not in {ref.name for ref in (*refs.branches, *refs.tags)}:
                return False
            entries = self.api.list_repo_tree(self.id, recursive=True, revision=revision, repo_type=self.kind)
            remote = {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path != GIT_FILE}
        local = files_below(folder)
        return sorted(remote) == local and all(_is_same_file(folder / name, remote[name]) for name in local)

    def push(self, folder: Path, branch: str, message: str) -> str:
        """Makes a branch hold exactly the files of a folder, by one commit, and returns that commit.

        What the Hub has already is not sent: unchanged files, and large ones that an earlier attempt has brought there.
        """
        local = files_below(folder)
        with hub_errors(self.id):
            remote = self.api.list_repo_files(self.id, revision=branch, repo_type=self.kind)
            additions = [CommitOperationAdd(name, str(folder / name)) for name in local]
            deletions = [CommitOperationDelete(name) for name in remote if name not in {*local, GIT_FILE}]
            return self.api.create_commit(
                self.id, additions + deletions, commit_message=message, revision=branch, repo_type=self.kind
            ).oid

    def tag(self, name: str, commit: str) -> None:
        """Makes a tag point to a commit."""
        with hub_errors(self.id):
            tags = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.id, repo_type=self.kind).tags}
            if name in tags and tags[name] != commit:
                self.api.delete_tag(self.id, tag=name, repo_type=self.kind)
            if tags.get(name) != commit:
                self.api.create_tag(self.id, tag=name, revision=commit, repo_type=self.kind)

    def pull(self, folder: Path, revision: str, cache: Path) -> None:
        """Fetches a revision into an empty cache and makes sure that it is, byte for byte, what a folder holds.

        Raises:
            UserError: it is not.
        """
        with hub_errors(self.id):
            pulled = self.api.snapshot_download(self.id, revision=revision, repo_type=self.kind, cache_dir=cache)
        for name in files_below(folder):
            if not filecmp.cmp(folder / name, Path(pulled, name), shallow=False):
                raise UserError(f"{name} came back from {self.id} other than it was sent; publish it again")


def _is_same_file(path: Path, remote: RepoFile) -> bool:
    if remote.lfs is None:
        return git_hash(path.read_bytes()) == remote.blob_id
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == remote.lfs.sha256


def files_below(folder: Path) -> list[str]:
    """The names of all files of a folder, with `/` between their parts, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
