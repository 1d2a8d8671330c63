"""From settings to token files: found if they are there, otherwise made, stage by stage.

Each source is cleaned in parts (`stages`), `select` decides from all of them which documents train and which validate,
the tokenizer is trained or loaded, and the parts are tokenised and joined. Finished parts wait beside the folder until
all is done, so that after a kill the next run goes on from them. Then the folder is moved to its place: `meta.json` is
there, or nothing is.
"""

import hashlib
import heapq
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from smallm_hf.data.cleaning import find_repeated_lines
from smallm_hf.data.documents import Document
from smallm_hf.data.files import ReadingReport
from smallm_hf.data.packing import FORMAT, Meta, Side, SourceShare, TokenFiles, id_type, open_token_files
from smallm_hf.data.report import make_report, merged, readable
from smallm_hf.data.request import BPE, Input, Request, default_folder
from smallm_hf.data.selection import Features, Selection, check_split, select
from smallm_hf.data.splitting import SIDES, TRAIN, VALIDATION, InsidePlan, hash_fraction
from smallm_hf.data.stages import (
    ENTRIES,
    FEATURES,
    PARTS_FORMAT,
    REPORT,
    TEXT,
    WorkerKilled,
    Workers,
    clean_part,
    cut_parts,
    encode_part,
    read_part,
    write_documents,
)
from smallm_hf.errors import DiskFull, UserError, is_disk_full, one_line
from smallm_hf.folders import lock, replacing, require_writable, write_whole
from smallm_hf.tokenization import load_tokenizer, save_tokenizer, tokenizer_fingerprint, train_bpe

BPE_SAMPLE_CHARACTERS = 16_000_000  # more text changes few merges, and this bounds the trainer's memory
REPORT_SECONDS = 10
POLL_SECONDS = 0.5
COPIED_BYTES = 1 << 20  # at a time
IDENTITY = "identity.json"
PACKAGES = ("smallm_hf", "tokenizers", "tiktoken", "transformers", "datasets", "ftfy", "resiliparse", "rensa")

Report = Callable[[str], None]


def _silent(message: str) -> None:
    pass


# --- finding ---------------------------------------------------------------------------------------------------------


def find_or_prepare(
    request: Request,
    folder: str | os.PathLike | None,
    model_max_length: int,
    report: Report = _silent,
) -> TokenFiles:
    """Opens the token files of these settings, made now if there are none or the source has changed.

    Args:
        request: the settings.
        folder: where; otherwise `data.folder`, otherwise `default_folder`. Only the last is ever made anew.
        model_max_length: tokens, written into the saved tokenizer.
        report: called with lines of progress.

    Raises:
        UserError: a mistake in the settings or the source, or a given folder that holds something else.
    """
    given = folder or request.data.folder
    folder = Path(given) if given else default_folder(request)
    files = _find(request, folder, replaceable=not given)
    if files is None:
        require_writable(folder, "data.folder", folder=True)
        with lock(folder):  # another run may have made them by now
            files = _find(request, folder, replaceable=not given) or _prepare(request, folder, model_max_length, report)
    return request.weighted(files)


def _find(request: Request, folder: Path, replaceable: bool) -> TokenFiles | None:
    if not (folder / "meta.json").exists():
        return None
    files = open_token_files(folder)
    difference = request.difference(files.meta)
    if difference is None:
        return files
    if replaceable:
        return None
    raise UserError(f"{folder} holds token files with {difference}; give another data.folder or remove this one")


def wait_for_token_files(
    request: Request, folder: str | os.PathLike | None = None, timeout_seconds: float = 24 * 3600
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
        with suppress(UserError):  # not there yet, being replaced, or reported by the process that prepares
            files = open_token_files(folder)
            if files.meta != refused:  # comparing may read the whole source: once for each that appears
                if request.difference(files.meta) is None:
                    return request.weighted(files)
                refused = files.meta
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"no token files in {folder} after {timeout_seconds} seconds")


# --- preparing -------------------------------------------------------------------------------------------------------


def _prepare(request: Request, folder: Path, model_max_length: int, report: Report) -> TokenFiles:
    if folder.is_file() or (folder.is_dir() and not (folder / "meta.json").exists() and any(folder.iterdir())):
        raise UserError(f"{folder} holds other files and no token files; give another data.folder")
    _refuse_early(request)
    state = request.source_state(contents=False)
    with (
        _finished_parts(folder, _identity(request, state, model_max_length), report) as parts,
        Workers(request.data.workers) as workers,
        replacing(folder) as partial,
    ):
        _write(Preparation(request, parts, model_max_length, workers, report), state, partial)
    return open_token_files(folder)


def _identity(request: Request, state: str, model_max_length: int) -> str:
    """All that decides what finished parts hold."""
    decides = [PARTS_FORMAT, request.settings, request.given_tokenizer_sha256, state, model_max_length, _versions()]
    return json.dumps(decides)


def parts_folder(folder: Path) -> Path:
    """Where finished parts wait for the rest of the token files in `folder`."""
    return folder.with_name(f".{folder.name}.parts")


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _refuse_early(request: Request) -> None:
    """Finds, before any work, mistakes in tokenizer and split, and documents that train twice or validate too."""
    split = any(one.side is None for one in request.inputs)
    check_split(request.selection, request.data.validation_ratio if split else None)
    if request.tokenizer.source != BPE:
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


@contextmanager
def _finished_parts(folder: Path, identity: str, report: Report) -> Iterator[Path]:
    """A folder beside `folder` for what is finished: there again after a kill, gone after success or a user's mistake.

    Args:
        folder: of the token files.
        identity: all that decides what the parts hold; those of another identity are removed.
        report: called with a line of what is kept.
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


def join_preparation(
    request: Request, folder: Path, model_max_length: int, workers: Workers, report: Report = _silent
) -> "Preparation":
    """Opens the finished parts of token files that several machines make together; the first one makes their folder.

    Raises:
        UserError: the parts that are there belong to other settings or another text.
    """
    _refuse_early(request)
    parts = parts_folder(folder)
    identity = _identity(request, request.source_state(contents=False), model_max_length)
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
    return Preparation(request, parts, model_max_length, workers, report)


@dataclass
class Cleaned:
    """A source after cleaning: its parts on disk, and what happened to it."""

    input: Input
    parts: list[Path] = field(default_factory=list)
    reading: ReadingReport = field(default_factory=ReadingReport)

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """What each part reports."""
        return [json.loads((part / REPORT).read_text(encoding="utf-8")) for part in self.parts]

    def read(self, is_wanted: np.ndarray | None = None) -> Iterator[Document]:
        """Yields the cleaned documents of all parts, or those of the N that are wanted, (N,) bool."""
        if is_wanted is None:
            yield from itertools.chain.from_iterable(read_part(part / TEXT) for part in self.parts)
            return
        edges = np.cumsum([report["documents"] for report in self.reports])[:-1]
        for part, wanted_here in zip(self.parts, np.split(is_wanted, edges), strict=True):
            if wanted_here.any():
                yield from read_part(part / TEXT, wanted_here)


@dataclass
class Preparation:
    """The stages, each of which leaves finished parts on disk and does nothing that is done already.

    Args:
        request: the settings.
        parts: the folder of finished parts.
        model_max_length: tokens, written into the saved tokenizer.
        workers: who does the work.
        report: called with lines of progress.
    """

    request: Request
    parts: Path
    model_max_length: int
    workers: Workers
    report: Report = _silent

    def clean(self, rank: int = 0, world_size: int = 1) -> list[Cleaned]:
        """Reads every source here, and cleans it part by part wherever there is a worker.

        Args:
            rank: of this task among `world_size` that share the work; each does every `world_size`-th part.
            world_size: number of tasks.

        Raises:
            UserError: a source with no text in it, or none left; only the one task that does all can know.
        """
        cleaned = [self._clean(number, one, rank, world_size) for number, one in enumerate(self.request.inputs)]
        for one in cleaned if world_size == 1 else ():
            self._require_text(one)
        return cleaned

    def cleaned(self) -> list[Cleaned]:
        """The sources as `clean` left them."""
        names = (f"{number:02}-{'[0-9]' * 5}" for number in range(len(self.request.inputs)))
        return [
            Cleaned(one, sorted(self.parts.glob(name))) for one, name in zip(self.request.inputs, names, strict=True)
        ]

    def choose(self, cleaned: list[Cleaned]) -> Selection:
        """Decides which documents train and which validate, and keeps it."""
        folder = self.parts / "selection"
        if not folder.exists():
            selection = select(
                lambda number, is_wanted: cleaned[number].read(is_wanted),
                [[Features.load(part / FEATURES) for part in one.parts] for one in cleaned],
                [one.side for one in self.request.inputs],
                self.request.selection,
                self.request.data.validation_ratio,
                self.parts,
            )
            plans = {
                source: {"kind": plan.kind, "blocks": [(block.start, block.stop) for block in plan.blocks]}
                for source, plan in selection.plans.items()
            }
            with replacing(folder) as partial:
                for source, sides in enumerate(selection.sides):
                    np.save(partial / f"{source}.npy", sides)
                written = json.dumps({"report": selection.report, "plans": plans}, ensure_ascii=False)
                (partial / REPORT).write_text(written, encoding="utf-8")
        written = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        plans = {
            int(source): InsidePlan([range(*block) for block in plan["blocks"]], plan["kind"])
            for source, plan in written["plans"].items()
        }
        sides = [np.load(folder / f"{source}.npy") for source in range(len(cleaned))]
        return Selection(sides, written["report"], plans)

    def tokenizer(self, cleaned: list[Cleaned], selection: Selection) -> PreTrainedTokenizerFast:
        """The tokenizer as it lies among the finished parts, put there if it is not yet."""
        request, folder = self.request, self.parts / "tokenizer"
        if not folder.exists():
            if request.tokenizer.source == BPE:
                self.report(f"training a byte-level BPE of {request.vocab_size} entries")
                sided = (selection.sided(number, one.read()) for number, one in enumerate(cleaned))
                texts = (document.text for side, document in itertools.chain.from_iterable(sided) if side == TRAIN)
                tokenizer = train_bpe(_sample(texts, BPE_SAMPLE_CHARACTERS), request.vocab_size)
            else:
                tokenizer = request.given_tokenizer
            with replacing(folder) as partial:
                save_tokenizer(tokenizer, partial, self.model_max_length)
        return load_tokenizer(str(folder))

    def encode(
        self,
        cleaned: list[Cleaned],
        selection: Selection,
        tokenizer_sha256: str,
        rank: int = 0,
        world_size: int = 1,
    ) -> list[list[Path]]:
        """Tokenises every part; returns the folders of each source in their order."""
        encoded, numbers = [[] for _ in cleaned], itertools.count()

        def tasks() -> Iterator[tuple]:
            for number, one in enumerate(cleaned):
                first = 0
                whole = [(one.parts, sum(report["documents"] for report in one.reports))]
                each = [([part], report["documents"]) for part, report in zip(one.parts, one.reports, strict=True)]
                for texts, documents in whole if selection.is_inside(number) else each:
                    part = texts[0].with_name(f"{texts[0].name}.tokens")
                    encoded[number].append(part)
                    if next(numbers) % world_size == rank and not part.exists():
                        sides = [
                            one[first : first + documents] if other == number else one[:0]
                            for other, one in enumerate(selection.sides)
                        ]
                        mine = replace(selection, sides=sides, report={})
                        yield part, texts, mine, number, self.parts / "tokenizer", tokenizer_sha256
                    first += documents

        progress = _Progress("tokenised", self.report)
        for size in self.workers.map(encode_part, tasks()):
            progress.add(size)
        return encoded

    def _clean(self, number: int, one: Input, rank: int, world_size: int) -> Cleaned:
        request, cleaned = self.request, Cleaned(one)
        config, name = request.cleaning, one.source.source
        repeated = frozenset()
        if config.enabled:
            repeated = find_repeated_lines(request.read(one.source), config.repeated_lines)

        def tasks() -> Iterator[tuple]:
            for place, documents in enumerate(cut_parts(request.read(one.source, cleaned.reading))):
                part = self.parts / f"{number:02}-{place:05}"
                cleaned.parts.append(part)
                if part.exists() or place % world_size != rank:
                    deque(documents, maxlen=0)  # read past: it is done, or for another task
                else:
                    raw = part.with_suffix(".raw")
                    write_documents(raw, documents)
                    yield part, raw, config, repeated, request.selection

        progress = _Progress("cleaned", self.report)
        for size in self.workers.map(clean_part, tasks()):
            progress.add(size)
        for kind in ("bad_files", "other_tables"):
            if names := getattr(cleaned.reading, kind):
                self.report(f"{name}: {kind.replace('_', ' ')} passed over: {len(names)}, the first: {names[0]}")
        return cleaned

    def _require_text(self, one: Cleaned) -> None:
        if any(part["bytes"] for part in one.reports):
            return
        name = one.input.source.source
        cleaning = merged(one.reports).get("cleaning") or {}
        if dropped := cleaning.get("dropped"):
            reasons = ", ".join(f"{reason}: {drop['documents']}" for reason, drop in dropped.items())
            fix = "change these cleaning limits"
            if set(dropped) == {"nothing left"} and cleaning["repeated_lines"]:
                fix = "they are made of the same lines; give others, or set cleaning.repeated_lines to 0 to keep these"
            raise UserError(f"data source {name}: cleaning left no document ({reasons}); {fix}")
        raise UserError(f"data source {name} is empty: there is no text in it; give one that has some")


def _write(preparation: Preparation, state: str, folder: Path) -> None:
    """All stages; `folder` then holds token files."""
    request, seconds = preparation.request, {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        seconds[stage] = round(time.monotonic() - began, 1)

    with timed("cleaning"):
        cleaned = preparation.clean()
    with timed("selection"):
        selection = preparation.choose(cleaned)
    with timed("tokenizer"):
        tokenizer = preparation.tokenizer(cleaned, selection)
        tokenizer_sha256 = request.given_tokenizer_sha256 or tokenizer_fingerprint(tokenizer)
    with timed("tokens"):
        encoded = preparation.encode(cleaned, selection, tokenizer_sha256)
    with timed("joining"):
        shutil.copytree(preparation.parts / "tokenizer", folder / "tokenizer")
        counts, sides, shares = _join(request, encoded, folder)
    meta = Meta(
        format=FORMAT,
        settings=request.settings,
        vocab_size=len(tokenizer),
        dtype=id_type(len(tokenizer)).name,
        eos_token_id=tokenizer.eos_token_id,
        tokenizer_sha256=tokenizer_sha256,
        source_state=state,
        content_sha256=request.source_state(contents=True),
        **sides,
        sources=shares,
        versions=_versions(),
    )
    content = make_report(
        meta,
        sources=[(asdict(one.input.source), asdict(one.reading), merged(one.reports)) for one in cleaned],
        words=[np.concatenate([Features.load(part / FEATURES).words for part in one.parts]) for one in cleaned],
        selection=selection,
        encoded=counts,
        tokenizer=tokenizer,
        seconds=seconds,
    )
    (folder / "report.md").write_text(readable(content), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps(asdict(meta), indent=2) + "\n")


class _Progress:
    """Says from time to time how much is done, and how fast."""

    def __init__(self, verb: str, report: Report):
        self.verb, self.report, self.bytes = verb, report, 0
        self.began = self.reported = time.monotonic()

    def add(self, size: int) -> None:
        self.bytes += size
        now = time.monotonic()
        if now - self.reported > REPORT_SECONDS:
            self.reported, megabytes = now, self.bytes / 1e6
            self.report(f"{self.verb} {megabytes:.0f} MB of text ({megabytes / (now - self.began):.1f} MB/s)")


def _sample(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Yields the texts of smallest hash that fit: a sample from everywhere, equal on every run, in bounded memory."""
    kept, size = [], 0
    for text in texts:
        heapq.heappush(kept, (-hash_fraction(text), text))
        size += len(text)
        while size > characters and len(kept) > 1:
            size -= len(heapq.heappop(kept)[1])
    while kept:
        yield heapq.heappop(kept)[1]


def _join(
    request: Request, encoded: list[list[Path]], folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Side], list[SourceShare]]:
    """Joins the tokenised parts to the token files; returns the counts of each source, each side, and each share."""
    counts, hashes = [], {side: hashlib.sha256() for side in SIDES}
    with (folder / f"{TRAIN}.bin").open("wb") as train, (folder / f"{VALIDATION}.bin").open("wb") as validation:
        for parts in encoded:
            reports = [json.loads((part / REPORT).read_text(encoding="utf-8")) for part in parts]
            entries = sum(np.load(part / ENTRIES) for part in parts)
            counts.append({**merged(reports), "entries": dict(zip(SIDES, entries, strict=True))})
            for part in parts:
                for side, file in zip(SIDES, (train, validation), strict=True):
                    with (part / f"{side}.bin").open("rb") as ids:
                        while content := ids.read(COPIED_BYTES):
                            file.write(content)
                            hashes[side].update(content)
    names = ("tokens", "bytes", "documents", "empty_documents")
    sides = {
        side: Side(**{name: sum(one[side][name] for one in counts) for name in names}, sha256=hashes[side].hexdigest())
        for side in SIDES
    }
    for side, total in sides.items():
        if total.documents == 0:
            raise UserError(
                f"the {side} side of the split is empty, the other has {max(s.documents for s in sides.values())} "
                f"documents; give a {'data.source' if side == TRAIN else 'data.validation_source'} that holds text"
            )
    return counts, sides, _shares(request, counts)


def _shares(request: Request, counts: list[dict[str, Any]]) -> list[SourceShare]:
    shares, first_token = [], 0
    for place, (source, weight) in enumerate(zip(request.data.mixture, request.weights, strict=True)):
        mine = [(one, found) for one, found in zip(request.inputs, counts, strict=True) if one.place == place]
        train = mine[0][1][TRAIN]
        if weight is not None and not train["documents"]:
            raise UserError(
                f"of data.sources, {source.source} has weight {source.weight} and no document left to train on (they "
                "may all stand in another source); leave it out"
            )
        validation = {
            name: sum(found[VALIDATION][name] for _, found in mine) for name in ("tokens", "documents", "bytes")
        }
        shares.append(
            SourceShare(
                source.source,
                mine[0][0].source.split,
                weight,
                first_token,
                *(train[name] for name in ("tokens", "documents", "bytes")),
                **{f"validation_{name}": value for name, value in validation.items()},
            )
        )
        first_token += train["tokens"]
    return shares
