"""Sources of text as a lazy stream of documents: local files, Hub data sets, and Python's own documentation.

The order and the ids are the same on every run, and only about a megabyte of a document is held at a time: a longer one
comes in consecutive pieces.
"""

import functools
import hashlib
import itertools
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import file_sha256
from smallm_hf.data.configuration import PYTHON_DOCS, Source
from smallm_hf.data.reading.files import (
    CODE_SUFFIXES,
    PIECE_CHARACTERS,
    ReadingReport,
    local_files,
    parallel_texts,
    saved_splits,
    suffix_of,
)
from smallm_hf.data.reading.formats import read_files, read_parallel
from smallm_hf.data.reading.hub import read_hub
from smallm_hf.data.reading.python_docs import documented_modules, python_docs
from smallm_hf.data.reading.rows import Pair
from smallm_hf.tokenizing.encoding import valid_unicode

INDENTED = re.compile(r"[ \t]+\S[^\n]*\n(?:[ \t]*\n)*[ \t]+\S")  # a line and the next one that is not blank
BEFORE_LAST_WORD = re.compile(r".+(?=[ \n]\S)", re.DOTALL)  # greedy: found from the end
TextKind = Literal["text", "row", "code"]


@dataclass(frozen=True)
class Document:
    """A document without surrounding whitespace (see `strip_start`), or one piece of a long one.

    Args:
        text: valid Unicode; empty if the source holds an empty document.
        id: unique within its source and equal on every run; the pieces of a document share it.
        metadata: where it was found.
        piece: 0, 1, ... within the document. The texts of all pieces, joined, are the document.
        is_last: no piece follows.
        kind: a text of its own; a row of a table, conversations included; or a file of source code.
        target: of a pair, what answers the text, which is its source. It is in one piece.
    """

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    piece: int = 0
    is_last: bool = True
    kind: TextKind = "text"
    target: str | None = None

    @property
    def halves(self) -> tuple["Document", ...]:
        """Source and target of a pair as two documents; of any other the document itself."""
        if self.target is None:
            return (self,)
        return replace(self, target=None), replace(self, text=self.target, target=None)

    @property
    def joined(self) -> "Document":
        """A pair as one text, for what looks at it as a whole; any other as it is."""
        return self if self.target is None else replace(self, text=f"{self.text}\n{self.target}", target=None)


def strip_start(text: str, kind: TextKind) -> str:
    """Strips leading whitespace; where this may be code, an indented line keeps its own if the next one is indented."""
    stripped = text.lstrip()
    line = text.rfind("\n", 0, len(text) - len(stripped)) + 1
    return text[line:] if kind != "text" and INDENTED.match(text, line) else stripped


def cut_pieces(
    id: str, metadata: dict[str, Any], parts: Iterable[str], kind: TextKind | None = None
) -> Iterator[Document]:
    """Joins the parts of one text, strips it, and yields it in pieces of about `PIECE_CHARACTERS`; at least one.

    Without a `kind`, the metadata decides it.

    Pieces are cut just before the space or line end in front of a word. GPT-2's pre-tokenisation cuts there too, and
    takes the end of a text for such a place, so that the ids of the pieces, joined, are those of the text. Only a
    megabyte without such a place is cut elsewhere.
    """
    if kind is None:
        is_code = suffix_of(Path(metadata.get("file", ""))) in CODE_SUFFIXES
        kind = "row" if "row" in metadata else "code" if is_code else "text"
    held, characters, enough, piece = [], 0, PIECE_CHARACTERS, 0
    for part in parts:
        held.append(part)
        characters += len(part)
        if characters < enough:
            continue
        text = "".join(held) if piece else strip_start("".join(held), kind)
        cut = _last_cut(text) if len(text) >= PIECE_CHARACTERS else 0
        if cut:
            yield Document(valid_unicode(text[:cut]), id, metadata, piece, is_last=False, kind=kind)
            piece += 1
        held, characters = [text[cut:]], len(text) - cut
        enough = max(PIECE_CHARACTERS, 2 * characters)  # so that a part is not searched time and again
    text = "".join(held).rstrip()
    yield Document(valid_unicode(text if piece else strip_start(text, kind)), id, metadata, piece, kind=kind)


def _pair(id: str, metadata: dict[str, Any], pair: Pair, report: ReadingReport) -> Iterator[Document]:
    """Yields a pair as a document, with all its targets in the metadata; one without source or target is reported."""
    source, *targets = (valid_unicode(text.strip()) for text in (pair[0], *pair[1]))
    if not source or not targets or not targets[0]:
        report.empty_pairs.append(id)
        return
    yield Document(source, id, metadata | {"targets": targets}, kind="row", target=targets[0])


def _last_cut(text: str) -> int:
    """Position before the last word and the space before it, or before the last letter; what follows is never blank."""
    match = BEFORE_LAST_WORD.match(text)
    return match.end() if match else max(0, len(text.rstrip()) - 1)


def read_documents(
    source: str,
    *,
    configuration: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    split: str = "train",
    text_column: str = "text",
    source_column: str | None = None,
    target_column: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    documents: Literal["line", "paragraph"] | None = None,
    on_bad_file: Literal["error", "skip"] = "error",
    report: ReadingReport | None = None,
    run: tuple[int, int] | None = None,
) -> Iterator[Document]:
    """Yields the documents of a source, in an order and with ids that are equal on every run; see `DataConfig`.

    With source and target column, a document is a pair, of which all targets are in the metadata (`targets`).
    Text is UTF-8, UTF-16 or UTF-32 by its byte order mark, or UTF-8; the encoding of any other is stated or guessed.
    Without a `report`, guesses and omissions are logged at the end. With a `run` of `file_runs`, only these files are
    read.

    Raises:
        UserError: while reading, for a missing source, a missing column, values that are not text, binary files, bytes
            of no known encoding, damaged files, or a Hub that does not answer.
    """
    reading = ReadingReport() if report is None else report
    how = Source(
        source,
        split=split,
        configuration=configuration,
        revision=revision,
        text_column=text_column,
        source_column=source_column,
        target_column=target_column,
        encoding=encoding,
        separator=separator,
        documents=documents,
    )
    if source == PYTHON_DOCS:
        found = python_docs()
    elif parallel := parallel_texts(source, how.columns):
        found = read_parallel(parallel, how, reading)
    elif (files := local_files(source, report=None if run and run[0] else reading)) is not None:
        if (splits := saved_splits(source)) is not None:
            if split not in splits:
                raise UserError(
                    f"data source {source} has no split {split!r}, only {splits}; set data.split to one of these"
                )
            files = [(name, path) for name, path in files if name == split]
        found = read_files(files, how, on_bad_file == "skip", reading, run)
    else:
        found = read_hub(how, streaming)
    try:
        for id, metadata, parts in found:
            if how.columns:
                for pair in parts:
                    yield from _pair(id, metadata, pair, reading)
            else:
                yield from cut_pieces(id, metadata, parts)
    finally:
        for line in reading.lines if report is None else ():
            _log_once(f"{source}: {line}")


@functools.cache
def _log_once(line: str) -> None:
    logging.getLogger(__name__).warning(line)


def read_texts(source: str, **options) -> Iterator[str]:
    """Yields the same documents whole, as strings, without empty ones; memory grows with the longest of them."""
    for _, pieces in itertools.groupby(read_documents(source, **options), key=lambda document: document.id):
        text = "".join(piece.text for piece in pieces)
        if text:
            yield text


def has_splits(source: str, columns: Sequence[str] = ()) -> bool:
    """Returns whether a source is a data set of the Hub or a saved `DatasetDict`; others have no splits."""
    return source != PYTHON_DOCS and (local_files(source, columns) is None or saved_splits(source) is not None)


def fingerprint_source(
    source: str,
    *,
    configuration: str | None = None,
    revision: str | None = None,
    split: str = "train",
    columns: Sequence[str] = (),
    contents: bool = False,
) -> str:
    """Returns a sha256 that changes when the source does.

    Local files count with names, sizes and times, or with `contents` with names and every byte; Python's documentation
    with the version and its files' sizes; a Hub data set with its name only: token files made from it are used again
    without asking the Hub.
    """
    if source == PYTHON_DOCS:
        facts = [sys.version, *((name, path.stat().st_size) for name, path in documented_modules())]
    elif (found := local_files(source, columns)) is not None:
        files = ((name, file) for name, path in found for file in (sorted(path.iterdir()) if path.is_dir() else [path]))
        facts = [(name, _state(path, contents)) for name, path in files]
    else:
        facts = [source, configuration, split, *([revision] if revision else [])]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _state(path: Path, contents: bool) -> str | tuple[int, int]:
    if not contents:
        return path.stat().st_size, path.stat().st_mtime_ns
    return file_sha256(path)
