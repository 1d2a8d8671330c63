"""From settings to token files: found if they are there, otherwise made, stage by stage (`Stages`).

Finished parts wait in a folder beside that of the token files until all is done, so that after a kill the next run goes
on from them; after success, or a mistake that another run would make again, they are gone. The token files are then
moved to their place: `meta.json` is there, or nothing is.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from smallm_hf.base.errors import DiskFull, UserError, is_disk_full, one_line
from smallm_hf.base.folders import lock, replacing, require_writable, write_whole
from smallm_hf.base.plain_json import write_json
from smallm_hf.data.report import as_markdown, make_report
from smallm_hf.data.request import DataRequest, default_folder
from smallm_hf.data.selection.select import check_split
from smallm_hf.data.selection.splitting import SIDES, VALIDATION
from smallm_hf.data.stages import PARTS_FORMAT, Stages
from smallm_hf.data.token_files import FORMAT, Meta, TokenFiles, Unfit, id_type, open_token_files
from smallm_hf.data.workers import WorkerKilled, Workers
from smallm_hf.tokenizing.loading import tokenizer_fingerprint
from smallm_hf.tokenizing.schemes import SCHEMES

POLL_SECONDS = 0.5
HARDLY_USED = 0.1  # share of the entries below which it is said
IDENTITY = "identity.json"
PACKAGES = ("smallm_hf", "tokenizers", "tiktoken", "transformers", "datasets", "ftfy", "resiliparse", "rensa")

Report = Callable[[str], None]


def _silent(message: str) -> None:
    pass


# --- finding ---------------------------------------------------------------------------------------------------------


def find_or_prepare(
    request: DataRequest,
    folder: str | os.PathLike | None,
    model_max_length: int,
    report: Report = _silent,
) -> TokenFiles:
    """Opens the token files of these settings, or makes them: if there are none, or of an older format or source.

    Args:
        request: the settings.
        folder: of the token files; otherwise `data.folder`, otherwise `default_folder`, which alone is ever replaced.
        model_max_length: tokens, written into the saved tokenizer.
        report: called with lines of progress.

    Raises:
        UserError: a mistake in the settings or the source, a source that changes meanwhile, or a given folder that
            holds something else.
    """
    given = folder or request.data.folder
    folder = Path(given) if given else default_folder(request)
    files = _find(request, folder, replaceable=not given)
    if files is None:
        require_writable(folder, "data.folder", folder=True)
        with lock(folder):  # another run may have made them by now
            files = _find(request, folder, replaceable=not given) or _prepare(request, folder, model_max_length, report)
    return request.weighted(files)


def _find(request: DataRequest, folder: Path, replaceable: bool) -> TokenFiles | None:
    if not (folder / "meta.json").exists():
        return None
    try:
        files = open_token_files(folder)
        if difference := request.difference(files.meta):
            raise Unfit(f"{folder} holds token files with {difference}; give another data.folder or remove this one")
    except Unfit:
        if replaceable:
            return None
        raise
    return files


def wait_for_token_files(
    request: DataRequest, folder: str | os.PathLike | None = None, timeout_seconds: float = 24 * 3600
) -> TokenFiles:
    """Waits until another process has finished these token files, and opens them.

    Files of other settings, or of the source before it changed, that stand in their place are not taken for them.

    Raises:
        TimeoutError: they did not come.
    """
    folder = Path(folder or request.data.folder or default_folder(request))
    deadline = time.monotonic() + timeout_seconds
    refused = None
    while time.monotonic() < deadline:
        with suppress(UserError):  # not there yet, being replaced, or reported by the process that makes them
            files = open_token_files(folder)
            if files.meta != refused:  # comparing may read the whole source: once for each that appears
                if request.difference(files.meta) is None:
                    return request.weighted(files)
                refused = files.meta
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"no token files in {folder} after {timeout_seconds} seconds")


# --- making -----------------------------------------------------------------------------------------------------------


def _prepare(request: DataRequest, folder: Path, model_max_length: int, report: Report) -> TokenFiles:
    if folder.is_file() or (folder.is_dir() and not (folder / "meta.json").exists() and any(folder.iterdir())):
        raise UserError(f"{folder} holds other files and no token files; give another data.folder")
    _refuse_early(request)
    state, content = (request.source_state(contents) for contents in (False, True))  # before any of it is read
    with (
        _finished_parts(folder, _identity(request, state, model_max_length), report) as parts,
        Workers(request.data.workers) as workers,
        replacing(folder) as partial,
    ):
        _write(Stages(request, parts, model_max_length, workers, report), state, content, partial)
        if (now := request.source_state(contents=True)) != content:
            raise UserError(
                f"{request.data.title} was changed while it was prepared (content {content[:12]} before, {now[:12]} "
                "now); run again when nothing writes to it any more"
            )
    return open_token_files(folder)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _refuse_early(request: DataRequest) -> None:
    """Refuses, before any work, a wrong tokenizer or split, and documents that train twice or validate too."""
    split = any(one.side is None for one in request.inputs)
    check_split(request.selection, request.data.validation_ratio if split else None)
    if request.tokenizer.source not in SCHEMES:
        _ = request.given_tokenizer
    seen = {}
    for one in request.inputs:
        path = Path(one.source.source).expanduser()  # by another name it is the same
        place = str(path.resolve()) if path.exists() else one.source.source
        key = replace(one.source, source=place, weight=None)
        if key not in seen:
            seen[key] = one
        elif one.side == SIDES.index(VALIDATION):
            raise UserError(
                f"data.source={seen[key].source.source} would be its own validation; give another "
                "data.validation_source, or leave it out to validate on data.validation_ratio of the source"
            )
        else:
            raise UserError(
                f"data.sources has {one.source.source} twice; leave one out, and to train more on it raise its weight"
            )


def _write(stages: Stages, state: str, content: str, folder: Path) -> None:
    """Goes through all stages; `folder` then holds the token files of sources of this state and content."""
    request, seconds = stages.request, {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        seconds[stage] = round(time.monotonic() - began, 1)

    with timed("cleaning"):
        cleaned = stages.clean()
    with timed("selection"):
        selection = stages.choose(cleaned)
    with timed("tokenizer"):
        tokenizer = stages.tokenizer(cleaned, selection)
        tokenizer_sha256 = request.given_tokenizer_sha256 or tokenizer_fingerprint(tokenizer)
    with timed("tokens"):
        encoded = stages.encode(cleaned, selection, tokenizer_sha256)
    with timed("joining"):
        counts, sides, shares = stages.join(encoded, folder)
    meta = Meta(
        format=FORMAT,
        settings=request.settings,
        vocab_size=len(tokenizer),
        dtype=id_type(len(tokenizer)).name,
        eos_token_id=tokenizer.eos_token_id,
        tokenizer_sha256=tokenizer_sha256,
        source_state=state,
        content_sha256=content,
        **sides,
        sources=shares,
        versions=_versions(),
    )
    report = make_report(meta, cleaned, selection, counts, tokenizer, seconds)
    duplicates, leaked = report["selection"]["duplicates"], report["selection"]["leakage"]["documents_left_validation"]
    for setting, number in (
        (f"duplicates={request.selection.duplicates}", duplicates["dropped"]),
        (f"max_leakage={request.selection.max_leakage}", leaked),
    ):
        if number:
            stages.report(f"selection.{setting} leaves out {number:,} of {duplicates['documents']:,} documents")
    if any(one.side is None for one in request.inputs):
        total = meta.train.bytes + meta.validation.bytes
        stages.report(
            f"validation has {meta.validation.documents:,} of {meta.train.documents + meta.validation.documents:,} "
            f"documents and {meta.validation.bytes / total:.2%} of the bytes; data.validation_ratio="
            f"{request.data.validation_ratio} asked for {request.data.validation_ratio:.2%}"
        )
    entries, used = (report["tokenizer"][name] for name in ("entries", "used_entries"))
    if used < HARDLY_USED * entries and not report["tokenizer"]["lossless"]:
        stages.report(
            f"the training text uses {used:,} of the tokenizer's {entries:,} entries; is it made for this text?"
        )
    for side, rate in report["tokenizer"]["unknown_rate"].items():
        if rate:
            stages.report(f"{rate:.4%} of the {side} tokens are unknown ones, which stand for what has no entry")
    (folder / "report.md").write_text(as_markdown(report), encoding="utf-8")
    write_json(folder / "report.json", report)
    write_json(folder / "meta.json", asdict(meta))


# --- finished parts --------------------------------------------------------------------------------------------------


def parts_folder(folder: Path) -> Path:
    """Where finished parts wait for the rest of the token files in `folder`."""
    return folder.with_name(f".{folder.name}.parts")


def _identity(request: DataRequest, state: str, model_max_length: int) -> str:
    """All that decides what finished parts hold."""
    decides = [PARTS_FORMAT, request.settings, request.given_tokenizer_sha256, state, model_max_length, _versions()]
    return json.dumps(decides)


@contextmanager
def _finished_parts(folder: Path, identity: str, report: Report) -> Iterator[Path]:
    """The parts of one process and its workers; those of another identity are removed.

    Raises:
        DiskFull: in place of another error that means it.
    """
    parts = parts_folder(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    written = parts / IDENTITY
    if not (written.is_file() and written.read_text(encoding="utf-8") == identity):
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_whole(written, identity)
    try:
        yield parts
    except BaseException as error:
        is_full = isinstance(error, OSError) and is_disk_full(error)
        if isinstance(error, WorkerKilled) or not (isinstance(error, UserError) or is_full):
            report(f"what is finished waits in {parts}; the same command goes on from there")
            raise
        shutil.rmtree(parts, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # somebody else writes there too
                parent.rmdir()
        if is_full:
            raise DiskFull(f"no space left to write {folder} ({one_line(error)}); free some and run again") from error
        raise
    shutil.rmtree(parts)


def shared_stages(
    request: DataRequest, folder: Path, model_max_length: int, workers: Workers, report: Report = _silent
) -> Stages:
    """The stages of token files that several machines make together; the first one makes the folder of their parts.

    Raises:
        UserError: the parts that are there belong to other settings or another text.
    """
    _refuse_early(request)
    identity = _identity(request, request.source_state(contents=False), model_max_length)
    parts = parts_folder(folder)
    parts.mkdir(parents=True, exist_ok=True)
    written = parts / IDENTITY
    if not written.exists():
        fresh = parts / uuid.uuid4().hex  # several tasks may do so at once
        fresh.write_text(identity, encoding="utf-8")
        fresh.replace(written)
    if written.read_text(encoding="utf-8") != identity:
        raise UserError(
            f"{parts} holds parts of other settings, another text or other versions of the software; remove it"
        )
    return Stages(request, parts, model_max_length, workers, report)
