"""A finished run as one repository of the Hub, checked before and after.

`main` and the tag `best` hold the best weights, branch `checkpoints` and the tags `final` and `step-N` the others. Each
of these is a whole repository: weights that every tool loads, tokenizer, our code, card, licence and the run's records.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants

from smallm_hf.card import find_weights, read_results, resolve_statements
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
    """Publishes a finished run, or with `dry_run` shows what would be published.

    Args:
        run: the run folder.
        repo: `user/name`, or `name` in the namespace of the token.
        statements: what the card says and no record knows.
        private: whether a repository that is made now is private.
        revision: a branch that gets the best weights in place of main; tags are then left alone.
        checkpoints: whether each checkpoint that the run has kept becomes a tag too.
        data_repo: publishes the text too, as a data set of this name; only for text that is yours to give away.
        exports: folders that scripts/export.py has made from best/, published beside it.
        include_report: whether report.html is published though it quotes another text than the run's validation text.
        dry_run: show files, sizes and card; needs no network and no token.

    Raises:
        UserError: a run that is not finished or not whole, records that contradict each other, weights that do not load
            elsewhere, or a Hub that refuses.
    """
    check_repo_name(repo)
    results = read_results(run)
    names = ["best"] if revision else ["best", *(path.name for path in list_checkpoints(run) if checkpoints), "final"]
    published = {name: find_weights(run, name) for name in names}
    for name in [name for name in ("best", "final") if name in names]:
        check_record(run, results, published[name], load_own_class(published[name].folder))
        check_card(run, published[name])
    report = choose_report(run, results, include_report)
    model = text = None
    if not dry_run:
        model = Repository.open(repo, private=private)
        text = Repository.open(data_repo, "dataset", private=private) if data_repo else None
    repo, data_repo = model.id if model else repo, text.id if text else data_repo
    statements = statements or Statements()
    statements = replace(statements, data_set=statements.data_set or data_repo)
    with tempfile.TemporaryDirectory(prefix="smallm_hf-") as scratch:
        folders = {name: Path(scratch, name) for name in ("here", "pulled", "text", *names)}
        for folder in folders.values():
            folder.mkdir()
        if data_repo:
            stage_text(results, folders["text"], statements, data_repo)
        for name, weights in published.items():
            revisions = [other for other in names if other != name]
            beside = exports if name == "best" else ()
            stage(run, weights, folders[name], statements, repo, report=report, exports=beside, revisions=revisions)
        checks = [Check(str(folders[name]), folders[name], published[name].folder) for name in names]
        difference = check_elsewhere(checks, folders["here"])
        print(f"{run}: the card says what the records say; logits without smallm_hf differ by {difference:.1e} at most")
        if not resolve_statements(results, statements)["data_license"]:
            source = results["data"]["source"]
            print(f"the licence of {source} is unknown, and the card says so: state it, --data_license")
        branch = revision or constants.DEFAULT_REVISION
        if not model:
            show(repo, branch, folders["best"], [] if revision else names)
            if data_repo:
                show(data_repo, constants.DEFAULT_REVISION, folders["text"])
            return
        if text:
            text.make(constants.DEFAULT_REVISION, private=private)
            send(text, folders["text"], constants.DEFAULT_REVISION)
            text.pull(folders["text"], constants.DEFAULT_REVISION, folders["pulled"] / "hub")
        model.make(branch, private=private)
        send(model, folders["best"], branch, tag=None if revision else "best")
        for name in names[1:]:
            model.make(SIDE_BRANCH, private=private)
            send(model, folders[name], SIDE_BRANCH, tag=name)
        model.pull(folders["best"], branch, folders["pulled"] / "hub")
        difference = check_elsewhere([Check(repo, folders["best"], run / "best")], folders["pulled"], revision=branch)
        print(f"pulled into an empty cache: the same files, and logits that differ by {difference:.1e} at most")
    print("\n".join(repository.url for repository in (text, model) if repository))


def send(repository: Repository, folder: Path, branch: str, tag: str | None = None) -> None:
    """Brings the files of a folder to a branch, and a tag to them, unless they are there, and says so."""
    names = [name for name in (branch, tag) if name and name != SIDE_BRANCH]  # that one goes on to the next weights
    if all(repository.holds(folder, name) for name in names):
        print(f"{repository.id}: {' and '.join(names)} is up to date")
        return
    commit = repository.push(folder, branch, f"Publish {tag or branch} with smallm_hf")
    if tag:
        repository.tag(tag, commit)
    size = sum((folder / name).stat().st_size for name in files_below(folder))
    print(f"{repository.id}: {' and '.join(names)} published, {len(files_below(folder))} files, {size:,} bytes")


def show(repo: str, branch: str, folder: Path, tags: Sequence[str] = ()) -> None:
    """Prints what would be published: names, sizes and the card."""
    print(f"\n{repo}, branch {branch}{', tags ' + ', '.join(tags) if tags else ''}:")
    sizes = {name: (folder / name).stat().st_size for name in files_below(folder)}
    for name, size in sizes.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(sizes.values()):>14,}  bytes in all\n\n" + (folder / "README.md").read_text(encoding="utf-8"))
