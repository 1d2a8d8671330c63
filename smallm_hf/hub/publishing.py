"""A finished run as one repository of the Hub, checked before and after.

`main` and the tag `best` hold the best weights, branch `checkpoints` and the tags `final` and `step-N` the others. Each
of these is a whole repository: weights that every tool loads, tokenizer, our code, card, licence and the run's records.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from smallm_hf.base.settings import RUN_MODELS
from smallm_hf.card import Weights, find_weights, read_results, resolve_statements
from smallm_hf.hub.checks import Check, check_card, check_elsewhere, check_record, load_own_class
from smallm_hf.hub.configuration import Statements, check_repo_name
from smallm_hf.hub.repository import Repository, files_below
from smallm_hf.hub.staging import choose_report, stage
from smallm_hf.hub.text import stage_text
from smallm_hf.training.checkpoints import list_checkpoints

SIDE_BRANCH = "checkpoints"


def publish(
    run: Path,
    repo: str,
    statements: Statements | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    checkpoints: bool = True,
    data_repo: str | None = None,
    exports: Sequence[Path] = (),
    include_report: bool = False,
    dry_run: bool = False,
) -> None:
    """Publishes a finished run, or with `dry_run` prints what would be published, without network or token.

    Args:
        run: the run folder.
        repo: `user/name`, or `name` in the namespace of the token.
        statements: what the card says and no record knows.
        private: whether a repository that is created now is private.
        revision: a branch that receives the best weights instead of main; tags are then left alone.
        checkpoints: whether each checkpoint that the run has kept becomes a tag too.
        data_repo: a data set that the text is published as; only for text that is yours to give away.
        exports: folders that scripts/export.py has made from best/, published beside it.
        include_report: whether report.html is published whatever text it quotes.
        dry_run: prints files, sizes and card instead.

    Raises:
        UserError: a run that is not finished or not whole, records that contradict each other, weights that do not load
            elsewhere, or a Hub that refuses.
    """
    check_repo_name(repo)
    names = ["best"] if revision else ["best", *(path.name for path in list_checkpoints(run) if checkpoints), "final"]
    results, published = _read_checked(run, names)
    report = choose_report(run, results, include_report)
    model = None if dry_run else Repository.open(repo, private=private)
    text = Repository.open(data_repo, "dataset", private=private) if model and data_repo else None
    repo, data_repo = model.id if model else repo, text.id if text else data_repo
    statements = statements or Statements()
    statements = replace(statements, data_set=statements.data_set or data_repo)
    if not resolve_statements(results, statements)["data_license"]:
        print(f"the licence of {results['data']['source']} is unknown, and the card says so: state it, --data_license")
    with tempfile.TemporaryDirectory(prefix="smallm_hf-") as scratch:
        folders = {name: Path(scratch, name) for name in names}
        for name, weights in published.items():
            stage(run, weights, folders[name], statements, repo, report=report, exports=exports, revisions=names)
        if data_repo:
            folders["text"] = Path(scratch, "text")
            stage_text(results, folders["text"], statements, data_repo)
        checks = [Check(str(folders[name]), folders[name], weights.folder) for name, weights in published.items()]
        difference = check_elsewhere(checks, Path(scratch, "here"))
        print(f"{run}: the card says what the records say; logits without smallm_hf differ by {difference:.1e} at most")
        if model:
            _send_all(model, text, folders, revision, checks[0].trained)
        else:
            show(repo, revision or constants.DEFAULT_REVISION, folders["best"], [] if revision else names)
            if data_repo:
                show(data_repo, constants.DEFAULT_REVISION, folders["text"])


def _read_checked(run: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Weights]]:
    """What `results.json` holds, and the sets of weights, of which best and final are compared with all records."""
    results, found = read_results(run), {name: find_weights(run, name) for name in names}
    for name in [name for name in names if name in RUN_MODELS]:
        check_record(run, results, found[name], load_own_class(found[name].folder))
        check_card(run, found[name])
    return results, found


def _send_all(
    model: Repository, text: Repository | None, folders: dict[str, Path], revision: str | None, trained: Path
) -> None:
    """Sends the staged `folders`, and downloads text and best weights, which were `trained`, to check what arrived."""
    home, main = folders["best"].with_name("downloaded"), constants.DEFAULT_REVISION
    if text:
        staged = folders.pop("text")
        send(text, staged, main)
        text.download(staged, main, home / "hub")
    for name, folder in folders.items():
        send(model, folder, revision or (main if name == "best" else SIDE_BRANCH), None if revision else name)
    model.download(folders["best"], revision or main, home / "hub")
    difference = check_elsewhere([Check(model.id, folders["best"], trained)], home, revision or main)
    print(f"downloaded into an empty cache: the same files, and logits that differ by {difference:.1e} at most")
    print("\n".join(repository.url for repository in (text, model) if repository))


def send(repository: Repository, folder: Path, branch: str, tag: str | None = None) -> None:
    """Makes a branch, and a tag, hold the files of a folder unless they do, and says so."""
    repository.create(branch)
    names = [name for name in (branch, tag) if name and name != SIDE_BRANCH]  # it moves on to the next weights
    if all(repository.holds(folder, name) for name in names):
        print(f"{repository.id}: {' and '.join(names)} is up to date")
        return
    repository.upload(folder, branch, f"Publish {tag or branch} with smallm_hf", tag=tag)
    sizes = [(folder / name).stat().st_size for name in files_below(folder)]
    print(f"{repository.id}: {' and '.join(names)} published, {len(sizes)} files, {sum(sizes):,} bytes")


def show(repo: str, branch: str, folder: Path, tags: Sequence[str] = ()) -> None:
    """Prints what would be published: names, sizes and the card."""
    print(f"\n{repo}, branch {branch}{', tags ' + ', '.join(tags) if tags else ''}:")
    sizes = {name: (folder / name).stat().st_size for name in files_below(folder)}
    for name, size in sizes.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(sizes.values()):>14,}  bytes in all\n\n" + (folder / "README.md").read_text(encoding="utf-8"))
