"""Token files: the corpus as two long rows of ids on disk, memory-mapped, with all that says what they hold.

    train.bin validation.bin   little-endian uint16 (up to 65,536 entries) or uint32, eos after each document
    meta.json                  `Meta`: what they were made from, counts and hashes
    tokenizer/                 the tokenizer that made them, as `AutoTokenizer` loads it
    report.json                the same for people, with what was cleaned away and why, and examples
    report.md                  the same to read

The folder is built beside its place and moved there when it is complete: `meta.json` is there, or nothing is.
"""

import hashlib
import heapq
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from smallm_hf.data.cleaning import Cleaner, CleaningConfig, find_repeated_lines
from smallm_hf.data.documents import (
    DataConfig,
    Document,
    ReadingReport,
    fingerprint_source,
    has_splits,
    read_documents,
)
from smallm_hf.data.splitting import SIDES, TRAIN, VALIDATION, Sided, hash_fraction, split_by_ratio
from smallm_hf.errors import UserError
from smallm_hf.folders import lock, replacing, require_writable
from smallm_hf.tokenization import (
    GPT2,
    GPT2_FINGERPRINT,
    TokenizerConfig,
    load_tokenizer,
    make_encoder,
    save_tokenizer,
    tokenizer_fingerprint,
    train_bpe,
)

FORMAT = 1  # of the folder; a change makes older ones unreadable
UINT16_ENTRIES = 1 << 16
BPE = "bpe"
BPE_SAMPLE_CHARACTERS = 16_000_000  # more text changes few merges, and this bounds the trainer's memory
BATCH_CHARACTERS = 1 << 21
REPORT_SECONDS = 10
EXAMPLES = 3  # documents of each side shown in the report
POLL_SECONDS = 0.5
DEFAULT_CLEANING = CleaningConfig()
NOT_DECIDING = ("folder", "streaming", "license", "language")  # settings of the data that change no id

Report = Callable[[str], None]


def _silent(message: str) -> None:
    pass


@dataclass(frozen=True)
class Side:
    """What one token file holds.

    Args:
        tokens: ids, one eos per document included.
        bytes: UTF-8 length of the text that went in, eos not counted.
        documents: number of documents, which is the number of eos.
        empty_documents: left out for having no text.
        sha256: of the file.
    """

    tokens: int
    bytes: int
    documents: int
    empty_documents: int
    sha256: str


@dataclass(frozen=True)
class Meta:
    """What token files hold and what they were made from (`meta.json`).

    Args:
        format: version of this layout.
        settings: the data and tokenizer settings that decide the ids.
        vocab_size: entries of the tokenizer.
        dtype: NumPy name of the ids' type, which is little-endian on disk.
        eos_token_id: closes every document.
        tokenizer_sha256: `tokenizer_fingerprint`.
        source_state: names, sizes and times of the source's files, hashed.
        content_sha256: names and contents of the source's files, hashed.
        train: the training side.
        validation: the validation side.
        versions: of Python and the libraries that had a part in it.
    """

    format: int
    settings: dict[str, Any]
    vocab_size: int
    dtype: str
    eos_token_id: int
    tokenizer_sha256: str
    source_state: str
    content_sha256: str
    train: Side
    validation: Side
    versions: dict[str, str]


@dataclass(frozen=True)
class TokenFiles:
    """An open folder of token files; the ids are memory-mapped and read-only."""

    folder: Path
    meta: Meta

    @cached_property
    def train(self) -> np.memmap:
        """The training ids, one-dimensional."""
        return self._map(TRAIN)

    @cached_property
    def validation(self) -> np.memmap:
        """The validation ids, one-dimensional."""
        return self._map(VALIDATION)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that made the ids.

        Raises:
            UserError: the one in the folder is another.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder}/tokenizer cannot be loaded; remove {self.folder} and prepare it again"
            ) from error
        self.check_tokenizer(tokenizer)
        return tokenizer

    def verify(self) -> None:
        """Reads both files and makes sure that they are what was written.

        Raises:
            UserError: one is not, with both fingerprints.
        """
        for name in SIDES:
            with (self.folder / f"{name}.bin").open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            written = getattr(self.meta, name).sha256
            if found != written:
                raise UserError(
                    f"{self.folder}/{name}.bin has sha256 {found[:12]}, its meta.json says {written[:12]}: it was "
                    f"changed after it was made; remove {self.folder} and prepare it again"
                )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Makes sure that a tokenizer, such as that of a model to go on with, is the one that made the ids.

        Raises:
            UserError: it is another.
        """
        found = tokenizer_fingerprint(tokenizer)
        if found != self.meta.tokenizer_sha256:
            raise UserError(
                f"the token files in {self.folder} were made by tokenizer {self.meta.tokenizer_sha256[:12]} "
                f"({self.meta.vocab_size} entries), not by {found[:12]} ({len(tokenizer)} entries); "
                "prepare them again in another data.folder"
            )

    def _map(self, side: str) -> np.memmap:
        return np.memmap(self.folder / f"{side}.bin", dtype=np.dtype(self.meta.dtype).newbyteorder("<"), mode="r")


# --- finding ---------------------------------------------------------------------------------------------------------


def find_or_prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocab_size: int,
    folder: str | os.PathLike | None,
    model_max_length: int,
    report: Report = _silent,
    cleaning: CleaningConfig = DEFAULT_CLEANING,
) -> TokenFiles:
    """Opens the token files of these settings, made now if there are none or the source has changed.

    Args:
        data: the source and its split.
        tokenizer: which tokenizer.
        vocab_size: its number of entries, in place of `tokenizer.vocab_size`.
        folder: where; otherwise `data.folder`, otherwise `default_folder`. Only the last is ever made anew.
        model_max_length: tokens, written into the saved tokenizer.
        report: called with lines of progress.
        cleaning: what is removed from the documents, and which are left out.

    Raises:
        UserError: a mistake in the settings or the source, or a given folder that holds something else.
    """
    request = _Request(data, tokenizer, vocab_size, cleaning)
    given = folder or data.folder
    folder = Path(given) if given else default_folder(data, tokenizer, vocab_size, cleaning=cleaning)
    files = _find(request, folder, replaceable=not given)
    if files is None:
        require_writable(folder, "data.folder", folder=True)
        with lock(folder):  # another run may have made them by now
            files = _find(request, folder, replaceable=not given) or _prepare(request, folder, model_max_length, report)
    return files


def _find(request: "_Request", folder: Path, replaceable: bool) -> TokenFiles | None:
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
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocab_size: int,
    folder: str | os.PathLike | None = None,
    timeout_seconds: float = 24 * 3600,
    cleaning: CleaningConfig = DEFAULT_CLEANING,
) -> TokenFiles:
    """Waits until another process has finished these token files, and opens them.

    Files of other settings, or of the source before it changed, that stand in their place are not taken for them.

    Raises:
        TimeoutError: they did not come.
    """
    request = _Request(data, tokenizer, vocab_size, cleaning)
    folder = Path(folder or data.folder or default_folder(data, tokenizer, vocab_size, cleaning=cleaning))
    deadline = time.monotonic() + timeout_seconds
    refused = None
    while time.monotonic() < deadline:
        with suppress(UserError):  # not there yet, being replaced, or reported by the process that prepares
            files = open_token_files(folder)
            if files.meta != refused:  # comparing may read the whole source: once for each that appears
                if request.difference(files.meta) is None:
                    return files
                refused = files.meta
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"no token files in {folder} after {timeout_seconds} seconds")


def open_token_files(folder: str | os.PathLike) -> TokenFiles:
    """Opens a finished folder of token files.

    Raises:
        UserError: no meta.json, one of another format, or token files that are not as long as it says.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "meta.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no token files (no meta.json); make them with scripts/prepare.py") from None
    except ValueError as error:
        raise UserError(f"{folder}/meta.json is damaged ({error}); remove {folder} and prepare it again") from error
    if content.get("format") != FORMAT:
        raise UserError(
            f"{folder} holds token files of format {content.get('format')}, this version reads {FORMAT}; "
            "remove it and prepare it again"
        )
    sides = {side: Side(**content[side]) for side in SIDES}
    meta = Meta(**{**content, **sides})
    for side in SIDES:
        path = folder / f"{side}.bin"
        expected = sides[side].tokens * np.dtype(meta.dtype).itemsize
        found = path.stat().st_size if path.exists() else 0
        if found != expected:
            raise UserError(
                f"{path} has {found} bytes, its meta.json says {expected}: it is truncated or of another run; "
                f"remove {folder} and prepare it again"
            )
    return TokenFiles(folder, meta)


def default_folder(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocab_size: int,
    root: str | os.PathLike = "data",
    cleaning: CleaningConfig = DEFAULT_CLEANING,
) -> Path:
    """Returns the folder under `root` that belongs to these settings: a readable name and a key of all of them."""
    settings = json.dumps(_settings(data, tokenizer, vocab_size, cleaning), sort_keys=True)
    name = re.sub(r"[^a-z0-9]+", "-", Path(data.source).stem.lower()).strip("-")[:40] or "text"
    return Path(root) / f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def _settings(
    data: DataConfig, tokenizer: TokenizerConfig, vocab_size: int, cleaning: CleaningConfig
) -> dict[str, Any]:
    settings = {f"data.{name}": value for name, value in asdict(data).items() if name not in NOT_DECIDING}
    settings |= {f"cleaning.{name}": value for name, value in asdict(cleaning).items()}
    return {**settings, "tokenizer.source": tokenizer.source, "model.vocab_size": vocab_size}


class _Request:
    """The settings of token files, and how to read what they ask for."""

    def __init__(self, data: DataConfig, tokenizer: TokenizerConfig, vocab_size: int, cleaning: CleaningConfig):
        self.data, self.tokenizer, self.vocab_size, self.cleaning = data, tokenizer, vocab_size, cleaning
        self.settings = _settings(data, tokenizer, vocab_size, cleaning)
        self.sources = [(data.source, data.split if has_splits(data.source) else "")]
        if data.validation_source:
            split = data.validation_split or VALIDATION
            self.sources.append((data.validation_source, split if has_splits(data.validation_source) else ""))
        elif data.validation_split and has_splits(data.source):
            self.sources.append((data.source, data.validation_split))

    def read(self, source: str, split: str, report: ReadingReport | None = None) -> Iterator[Document]:
        names = ("configuration", "revision", "streaming", "text_column", "on_bad_file")
        options = {name: getattr(self.data, name) for name in names}
        return read_documents(source, split=split, report=report, **options)

    def source_state(self, contents: bool) -> str:
        states = [
            fingerprint_source(
                source,
                configuration=self.data.configuration,
                revision=self.data.revision,
                split=split,
                contents=contents,
            )
            for source, split in self.sources
        ]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()

    @cached_property
    def given_tokenizer_sha256(self) -> str | None:
        if self.tokenizer.source == BPE:
            return None
        if self.tokenizer.source == GPT2:
            return GPT2_FINGERPRINT
        return tokenizer_fingerprint(load_tokenizer(self.tokenizer.source))

    def difference(self, meta: Meta) -> str | None:
        """Names the first thing in which token files are not what is asked for, with both values; None if none is."""
        for name, wanted in self.settings.items():
            if meta.settings.get(name) != wanted:
                return f"{name}={meta.settings.get(name)}, this run wants {wanted}"
        if self.given_tokenizer_sha256 not in (None, meta.tokenizer_sha256):
            wanted = self.given_tokenizer_sha256
            return f"tokenizer {meta.tokenizer_sha256[:12]}, {self.tokenizer.source} is now {wanted[:12]}"
        if self.source_state(contents=False) == meta.source_state:
            return None
        content = self.source_state(contents=True)  # copied or touched files have another time and the same bytes
        if content != meta.content_sha256:
            return f"content {meta.content_sha256[:12]}, {self.data.source} now has {content[:12]}"
        return None


# --- preparing -------------------------------------------------------------------------------------------------------


def _prepare(request: _Request, folder: Path, model_max_length: int, report: Report) -> TokenFiles:
    if folder.is_file() or (folder.is_dir() and not (folder / "meta.json").exists() and any(folder.iterdir())):
        raise UserError(f"{folder} holds other files and no token files; give another data.folder")
    with replacing(folder) as partial:
        _write(request, partial, model_max_length, report)
    return open_token_files(folder)


def _write(request: _Request, folder: Path, model_max_length: int, report: Report) -> None:
    began = time.monotonic()
    state = request.source_state(contents=False)
    _refuse_own_validation(request)
    texts = [_CleanedText(folder / f"cleaned-{number}.jsonl") for number in range(len(request.sources))]
    for text, (source, split) in zip(texts, request.sources, strict=True):
        text.write(request, source, split, report)
    cleaned_at = time.monotonic()
    read_sides = _plan_sides(request, texts)
    tokenizer = _make_tokenizer(request, read_sides, report)
    tokenized_from = time.monotonic()
    content = request.source_state(contents=True)
    writers = _encode(read_sides(), tokenizer, folder, report)
    ended = time.monotonic()
    for text in texts:
        text.path.unlink()
    sides = {side: writer.close() for side, writer in writers.items()}
    for side, counts in sides.items():
        if counts.documents == 0:
            raise UserError(
                f"the {side} side of the split is empty, the other has {max(s.documents for s in sides.values())} "
                f"documents; give a {'data.source' if side == TRAIN else 'data.validation_source'} that holds text"
            )
    save_tokenizer(tokenizer, folder / "tokenizer", model_max_length)
    packages = ("smallm_hf", "tokenizers", "tiktoken", "transformers", "datasets")
    meta = Meta(
        format=FORMAT,
        settings=request.settings,
        vocab_size=len(tokenizer),
        dtype=writers[TRAIN].dtype.name,
        eos_token_id=tokenizer.eos_token_id,
        tokenizer_sha256=tokenizer_fingerprint(tokenizer),
        source_state=state,
        content_sha256=content,
        **sides,
        versions={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}},
    )
    report_json = {
        "settings": request.settings,
        "sources": [
            {"source": source, "split": split, "reading": asdict(text.reading), "cleaning": text.cleaning}
            for text, (source, split) in zip(texts, request.sources, strict=True)
        ],
        **{
            side: {
                **asdict(counts),
                "bytes_per_token": round(counts.bytes / counts.tokens, 4),
                "share_of_bytes": round(counts.bytes / sum(s.bytes for s in sides.values()), 4),
                "examples": writers[side].examples,
            }
            for side, counts in sides.items()
        },
        "seconds": {
            "cleaning": round(cleaned_at - began, 1),
            "tokenizer": round(tokenized_from - cleaned_at, 1),
            "tokens": round(ended - tokenized_from, 1),
        },
    }
    (folder / "report.md").write_text(_readable(report_json), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report_json, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps(asdict(meta), indent=2) + "\n")


def _place(source: str) -> str:
    """A source by another name is the same: the full path of what is on this disk."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _refuse_own_validation(request: _Request) -> None:
    if len({(_place(source), split) for source, split in request.sources}) < len(request.sources):
        raise UserError(
            f"data.source={request.data.source} would be its own validation; give another data.validation_source, or "
            "leave it out to validate on data.validation_ratio of the source"
        )


@dataclass
class _CleanedText:
    """The cleaned documents of one source on disk: cleaned once, and read as often as splitting and packing need."""

    path: Path
    reading: ReadingReport = field(default_factory=ReadingReport)
    cleaning: dict[str, Any] | None = None  # `CleaningReport`; None where cleaning is off

    def write(self, request: _Request, source: str, split: str, report: Report) -> None:
        """Reads, cleans and keeps a source.

        Raises:
            UserError: no text in it, or none left.
        """
        documents = request.read(source, split, self.reading)
        cleaner = None
        if request.cleaning.enabled:
            sample = request.read(source, split)
            cleaner = Cleaner(request.cleaning, find_repeated_lines(sample, request.cleaning.repeated_lines))
            documents = cleaner(documents)
        began = reported = time.monotonic()
        characters = 0
        with self.path.open("w", encoding="utf-8") as file:
            for document in documents:
                file.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")
                characters += len(document.text)
                if time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    speed = characters / 1e6 / (reported - began)
                    report(f"cleaned {characters / 1e6:.0f} MB of text ({speed:.1f} MB/s)")
        self.cleaning = cleaner and asdict(cleaner.report)
        for kind in ("bad_files", "other_tables"):
            if names := getattr(self.reading, kind):
                report(f"{source}: {kind.replace('_', ' ')} passed over: {len(names)}, the first: {names[0]}")
        if characters:
            return
        if cleaner and cleaner.report.dropped:
            reasons = ", ".join(f"{reason}: {drop.documents}" for reason, drop in cleaner.report.dropped.items())
            raise UserError(
                f"data source {source}: cleaning left no document ({reasons}); change these cleaning limits"
            )
        raise UserError(f"data source {source} is empty: there is no text in it; give one that has some")

    def read(self) -> Iterator[Document]:
        with self.path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield Document(**json.loads(line))


def _plan_sides(request: _Request, texts: list[_CleanedText]) -> Callable[[], Sided]:
    """Returns a function that reads all documents with their sides."""
    if len(texts) == 1:
        return split_by_ratio(texts[0].read, request.data.validation_ratio)

    def read_sides() -> Sided:
        for side, text in zip(SIDES, texts, strict=True):
            for document in text.read():
                yield side, document

    return read_sides


def _make_tokenizer(request: _Request, read_sides: Callable[[], Sided], report: Report) -> PreTrainedTokenizerFast:
    if request.tokenizer.source == BPE:
        report(f"training a byte-level BPE of {request.vocab_size} entries")
        texts = (document.text for side, document in read_sides() if side == TRAIN)
        return train_bpe(_sample(texts, BPE_SAMPLE_CHARACTERS), request.vocab_size)
    tokenizer = load_tokenizer(request.tokenizer.source)
    if len(tokenizer) != request.vocab_size:
        raise UserError(
            f"model.vocab_size={request.vocab_size}, but tokenizer.source={request.tokenizer.source} has "
            f"{len(tokenizer)} entries; set model.vocab_size to {len(tokenizer)}"
        )
    return tokenizer


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


def _encode(documents: Sided, tokenizer: PreTrainedTokenizerFast, folder: Path, report: Report) -> dict[str, "_Writer"]:
    dtype = np.dtype("<u2" if len(tokenizer) <= UINT16_ENTRIES else "<u4")
    writers = {side: _Writer(folder / f"{side}.bin", dtype, tokenizer.eos_token_id) for side in SIDES}
    encode = make_encoder(tokenizer)
    began = reported = time.monotonic()
    for batch in _batches(documents):
        for (side, document), ids in zip(batch, encode([document.text for _, document in batch]), strict=True):
            writers[side].add(document, ids)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            megabytes = sum(writer.bytes for writer in writers.values()) / 1e6
            tokens = sum(writer.tokens for writer in writers.values()) / 1e6
            speed = megabytes / (reported - began)
            report(f"tokenised {megabytes:.0f} MB of text into {tokens:.1f}M tokens ({speed:.1f} MB/s)")
    return writers


def _batches(documents: Sided) -> Iterator[list[tuple[str, Document]]]:
    batch, characters = [], 0
    for side, document in documents:
        batch.append((side, document))
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Writer:
    """Appends documents to one token file, counting and hashing what goes in."""

    def __init__(self, path: Path, dtype: np.dtype, eos_token_id: int):
        self.file = path.open("wb")
        self.dtype, self.eos = dtype, np.array([eos_token_id], dtype).tobytes()
        self.sha256 = hashlib.sha256()
        self.tokens = self.bytes = self.documents = self.empty_documents = 0
        self.examples = []

    def add(self, document: Document, ids: Iterable[int]) -> None:
        if not document.text:
            self.empty_documents += 1
            return
        content = np.asarray(ids, self.dtype).tobytes() + (self.eos if document.is_last else b"")
        self.file.write(content)
        self.sha256.update(content)
        self.tokens += len(content) // self.dtype.itemsize
        self.bytes += len(document.text.encode())
        self.documents += document.is_last
        if len(self.examples) < EXAMPLES and document.piece == 0:
            self.examples.append({"id": document.id, "begins": document.text[:200]})

    def close(self) -> Side:
        self.file.close()
        return Side(self.tokens, self.bytes, self.documents, self.empty_documents, self.sha256.hexdigest())


# --- the report to read ----------------------------------------------------------------------------------------------


def _readable(report: dict[str, Any]) -> str:
    """Returns `report.json` as Markdown."""
    lines = ["# What these token files hold", ""]
    rows = [(side, report[side]) for side in SIDES]
    lines += _table(
        ["side", "documents", "tokens", "bytes", "bytes per token", "share of bytes"],
        [
            (side, r["documents"], r["tokens"], r["bytes"], r["bytes_per_token"], f"{r['share_of_bytes']:.2%}")
            for side, r in rows
        ],
    )
    for source in report["sources"]:
        lines += [f"## Source: {source['source']} {source['split']}".rstrip(), ""]
        reading, cleaning = source["reading"], source["cleaning"]
        if reading["files"]:
            lines += _table(["encoding", "files"], sorted(reading["encodings"].items()))
        lines += [f"- skipped: {fault}" for fault in reading["bad_files"]]
        lines += [f"- no text column, passed over: {name}" for name in reading["other_tables"]]
        lines += [f"- declared otherwise: {fault}" for fault in reading["wrongly_declared"]]
        lines += _readable_cleaning(cleaning) if cleaning else ["Cleaning was off.", ""]
    lines += ["## Seconds", "", *_table(["stage", "seconds"], list(report["seconds"].items()))]
    return "\n".join(lines)


def _readable_cleaning(cleaning: dict[str, Any]) -> list[str]:
    stages = [(name, cleaning[f"{name}_in"], cleaning[f"{name}_out"]) for name in ("documents", "words")]
    lines = ["", f"Books of Project Gutenberg: {cleaning['gutenberg_books']}", ""]
    lines += _table(["", "in", "out"], stages)
    rules = cleaning["rules"].items()
    changes = [(name, rule["edits"], rule["characters"], rule["documents"]) for name, rule in rules]
    lines += _table(["rule", "changes", "characters fewer", "documents"], changes)
    lines += _table(["dropped for", "documents"], [(why, d["documents"]) for why, d in cleaning["dropped"].items()])
    for name, rule in rules:
        lines += [f"### {name}", ""]
        lines += [
            f"- {e['id']}: {_code(e['before'])} ~~{_code(e['removed'])}~~ {_code(e['became'])} {_code(e['behind'])}"
            for e in rule["examples"]
        ]
        lines.append("")
    for why, dropped in cleaning["dropped"].items():
        lines += [f"### Dropped: {why}", ""]
        lines += [f"- {e['id']} ({e['why']}): {_code(e['begins'])}" for e in dropped["examples"]]
        lines.append("")
    return lines


def _table(header: list[str], rows: list[tuple]) -> list[str]:
    if not rows:
        return []
    return [" | ".join(map(str, row)) for row in (header, ["---"] * len(header), *rows)] + [""]


def _code(text: str) -> str:
    """Text as it is, in one line."""
    return f"`{text.replace('`', chr(39))}`".replace("\n", "⏎") if text else ""
