"""Sources of text as a lazy stream of documents: local files, Hub data sets, and Python's own documentation.

The order and the ids are the same on every run, and no more than about a megabyte of a document is held at a time: a
longer one comes in consecutive pieces.
"""

import ast
import codecs
import csv
import functools
import glob
import gzip
import hashlib
import io
import itertools
import json
import math
import re
import sys
import sysconfig
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote
from xml.etree import ElementTree

from smallm_hf.errors import UserError, one_line
from smallm_hf.tokenization import EOS, require_hub, valid_unicode

PYTHON_DOCS = "python-docs"
SEPARATOR = EOS  # a line of a text file that is exactly this ends a document
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
SUFFIXES = (".txt", ".md", *HTML_SUFFIXES, ".epub", *ROW_SUFFIXES)
COMPRESSED = (".gz", ".zst")
PIECE_CHARACTERS = 1 << 20
BEFORE_LAST_WORD = re.compile(r".+(?=[ \n]\S)", re.DOTALL)  # greedy: found from the end
PARQUET_ROWS = 128  # decoded at a time; rows may be whole books
BINARY_SAMPLE_BYTES = 1 << 16
CONTROL_BYTES = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b"))
LARGEST_CONTROL_SHARE = 0.05
LARGEST_FOREIGN_SHARE = 0.25  # of the bytes of a block that are no UTF-8; more is no Western text in Windows-1252
LONGEST_ROW = 1 << 28  # characters of a JSON or CSV row, which has to be held whole
BYTE_ORDER_MARKS = {  # longest first: one begins with another
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WIDE = ("utf-16", "utf-32")
WESTERN = ("ascii", "iso8859-1", "cp1252")  # each holds the one before it
DECLARATION = re.compile(
    rb"(?:Character set encoding|charset|encoding)\s*[=:]\s*[\"']?\s*([\w-]+(?: [\d-]+)?)", re.IGNORECASE
)
DECLARED_BYTES = 4096  # at the beginning of a file, in which it says its encoding
SHOWN = 20  # wrong declarations, of as many files
UNSEEN_ELEMENTS = ["nav", "aside", "footer", "form", "button"]  # of a page, which are no text of it
MESSAGES = ("messages", "conversation", "conversations")  # columns of a chat export
NOT_DOCUMENTATION = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "pydoc_data", "lib2to3"}


@dataclass(frozen=True)
class Source:
    """One of several sources of a mixture; what is left out is as `data` has it.

    Args:
        source: as `data.source`.
        weight: its part of the tokens that a run trains on, over the sum of all weights; given for every source or for
            none, and then they train in proportion to their size.
        split: of a Hub data set.
        configuration: of a Hub data set.
        revision: of a Hub data set.
        text_column: column that holds the text.
    """

    source: str
    weight: float | None = None
    split: str | None = None
    configuration: str | None = None
    revision: str | None = None
    text_column: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from, and which part of it is kept for validation.

    Args:
        source: `python-docs` (the documentation inside this Python), a local file, folder or glob of .txt, .md, .html,
            .epub, .jsonl, .json, .csv, .tsv, .parquet, .arrow (also .gz, .zst), or the id of a Hub data set. Of a
            folder that holds texts, tables without the text column are passed over.
        sources: several of them in place of `source`, each with `source` and, if need be, `weight`, `split`,
            `configuration`, `revision` and `text_column`: '[{"source": "books", "weight": 2}, {"source": "a.jsonl",
            "weight": 1}]'.
        configuration: configuration of a Hub data set.
        revision: branch, tag or commit of a Hub data set.
        streaming: whether a Hub data set is read over the network while it is used, instead of downloaded first.
        split: split of a Hub data set to train on.
        text_column: column that holds the text, in everything but text files; in a .csv or .tsv without a header the
            number of the column, from 1. Chat exports (`messages`, or rows of `role` and `content`) need none.
        validation_source: another source to validate on; left out, validation is cut from `source`.
        validation_split: split of a Hub data set to validate on: of `validation_source` (then `validation` by default),
            or without one of `source`. Local files have no splits and take no notice.
        validation_ratio: share of `source` kept for validation when nothing else is given for it.
        folder: where the token files live; left out, a folder under `data/` named after these settings.
        on_bad_file: whether a local file that cannot be read is an error, or is left from the fault on and counted.
        workers: processes that clean and tokenise; left out, one for each core and each GiB of free memory. A text of
            less than 16 MB takes one.
        license: of the text, as the Hub spells it; for the model card.
        language: of the text, an ISO 639 code, several with commas between; for the model card.
    """

    source: str | None = PYTHON_DOCS
    sources: list[Source] | None = None
    configuration: str | None = None
    revision: str | None = None
    streaming: bool = False
    split: str = "train"
    text_column: str = "text"
    validation_source: str | None = None
    validation_split: str | None = None
    validation_ratio: float = 0.05
    folder: str | None = None
    on_bad_file: Literal["error", "skip"] = "error"
    workers: int | None = None
    license: str | None = None
    language: str | None = None

    def __post_init__(self):
        weights = [source.weight for source in self.sources or []]
        if self.sources is not None:
            if self.source not in (None, PYTHON_DOCS) or not weights:
                raise UserError(
                    f"data.source={self.source} and data.sources with {len(weights)} entries are both given; leave one "
                    "of them out"
                )
            object.__setattr__(self, "source", None)  # what only stood there by default
        elif self.source is None:
            raise UserError("data.source=null and no data.sources leave nothing to read; give one of them")
        if set(weights) != {None} and not all(weight and 0 < weight < math.inf for weight in weights):
            raise UserError(
                f"data.sources has the weights {weights}; give every source one above 0, or none to train on all in "
                "proportion to their size"
            )
        if self.workers is not None and self.workers < 1:
            raise UserError(f"data.workers={self.workers} processes do nothing; set it to 1 or more, or leave it out")

    @property
    def mixture(self) -> list[Source]:
        """The sources to train on, one or several, with everything stated."""
        names = ("split", "configuration", "revision", "text_column")
        return [
            replace(source, **{name: getattr(source, name) or getattr(self, name) for name in names})
            for source in self.sources or [Source(self.source)]
        ]

    @property
    def title(self) -> str:
        """The sources by name, for people."""
        if self.sources is None:
            return self.source
        paths = [PurePath(source.source) for source in self.sources]
        return " + ".join(path.name if path.is_absolute() else str(path) for path in paths)


@dataclass
class ReadingReport:
    """What was met while local files were read; counted anew by each reading.

    Args:
        files: how many were opened.
        encodings: how many of them had which encoding.
        foreign_bytes: bytes that were no UTF-8 and were read as Windows-1252.
        wrongly_declared: files that say another encoding than they have: "name: says this, is that", the first 20.
        bad_files: what was wrong with the files that were skipped.
        other_tables: tables without the text column that lie in a folder beside texts, such as an index of it.
    """

    files: int = 0
    encodings: dict[str, int] = field(default_factory=dict)
    foreign_bytes: int = 0
    wrongly_declared: list[str] = field(default_factory=list)
    bad_files: list[str] = field(default_factory=list)
    other_tables: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A document without surrounding whitespace, or one piece of a long one.

    Args:
        text: valid Unicode; empty if the source holds an empty document.
        id: unique within its source and equal on every run; the pieces of a document share it.
        metadata: where it was found.
        piece: 0, 1, ... within the document. The texts of all pieces, joined, are the document.
        is_last: no piece follows.
    """

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    piece: int = 0
    is_last: bool = True


# --- the whole -------------------------------------------------------------------------------------------------------


def read_documents(
    source: str,
    *,
    configuration: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    split: str = "train",
    text_column: str = "text",
    on_bad_file: Literal["error", "skip"] = "error",
    report: ReadingReport | None = None,
) -> Iterator[Document]:
    """Yields the documents of a source, in an order and with ids that are equal on every run; see `DataConfig`.

    Text is UTF-8, UTF-16 or UTF-32 by its byte order mark, or UTF-8; bytes that are none are read as Windows-1252.

    Raises:
        UserError: while reading, for a missing source, a missing column, values that are no text, binary files, bytes
            that are neither UTF-8 nor Windows-1252, damaged files, or a Hub that does not answer.
    """
    report = report or ReadingReport()
    if source == PYTHON_DOCS:
        found = python_docs()
    elif (files := local_files(source)) is not None:
        found = _read_files(files, text_column, on_bad_file == "skip", report)
    else:
        found = _read_hub(source, configuration, revision, split, streaming, text_column)
    for id, metadata, parts in found:
        yield from cut_pieces(id, metadata, parts)


def read_texts(source: str, **options) -> Iterator[str]:
    """Yields the same documents whole, as strings, leaving out empty ones; memory grows with the longest of them."""
    for _, pieces in itertools.groupby(read_documents(source, **options), key=lambda document: document.id):
        text = "".join(piece.text for piece in pieces)
        if text:
            yield text


def split_documents(lines: Iterable[str]) -> Iterator[Iterator[str]]:
    """Yields the lines of each document of a text: lines that are exactly `<|endoftext|>` stand between documents.

    Each document has to be read before the next is asked for.
    """
    for is_separator, document in itertools.groupby(lines, key=lambda line: line.rstrip() == SEPARATOR):
        if not is_separator:
            yield document


def cut_pieces(id: str, metadata: dict[str, Any], parts: Iterable[str]) -> Iterator[Document]:
    """Joins the parts of one text, strips it, and yields it in pieces of about `PIECE_CHARACTERS`; at least one.

    Pieces are cut just before the space or line end in front of a word. GPT-2's pre-tokenisation cuts there too, and
    takes the end of a text for such a place, so that the ids of the pieces, joined, are those of the text. Only a
    megabyte without such a place is cut elsewhere.
    """
    held, characters, enough, piece = [], 0, PIECE_CHARACTERS, 0
    for part in parts:
        held.append(part)
        characters += len(part)
        if characters < enough:
            continue
        text = "".join(held) if piece else "".join(held).lstrip()
        cut = _last_cut(text) if len(text) >= PIECE_CHARACTERS else 0
        if cut:
            yield Document(valid_unicode(text[:cut]), id, metadata, piece, is_last=False)
            piece += 1
        held, characters = [text[cut:]], len(text) - cut
        enough = max(PIECE_CHARACTERS, 2 * characters)  # so that a part is not looked at time and again
    text = "".join(held).rstrip()
    yield Document(valid_unicode(text if piece else text.lstrip()), id, metadata, piece)


def _last_cut(text: str) -> int:
    """Position before the last word and the space before it, or before the last letter; what follows is never blank."""
    match = BEFORE_LAST_WORD.match(text)
    return match.end() if match else max(0, len(text.rstrip()) - 1)


def fingerprint_source(
    source: str,
    *,
    configuration: str | None = None,
    revision: str | None = None,
    split: str = "train",
    contents: bool = False,
) -> str:
    """Returns a sha256 that changes when the source does.

    Local files count with names, sizes and times, or with `contents` with names and every byte; Python's documentation
    with the version and its files' sizes; a Hub data set with its name only: token files once made from it are used
    again without asking the Hub.
    """
    if source == PYTHON_DOCS:
        facts = [sys.version, *((name, path.stat().st_size) for name, path in _documented_modules())]
    elif (files := local_files(source)) is not None:
        facts = [(name, _sha256(path) if contents else _size_and_time(path)) for name, path in files]
    else:
        facts = [source, configuration, split, *([revision] if revision else [])]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


# --- local files -----------------------------------------------------------------------------------------------------


def local_files(source: str) -> list[tuple[str, Path]] | None:
    """Finds what a source means on this disk: (name below the source, path) of its files, in order of name.

    A folder gives all files below it with a known suffix. None if the source can only be a Hub data set.

    Raises:
        UserError: a path or glob without files.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        root, candidates = path, (file for file in path.rglob("*") if _suffix(file) in SUFFIXES)
    elif glob.has_magic(source):
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        candidates = map(Path, glob.glob(str(path), recursive=True))
    elif source.startswith((".", "~")) or path.is_absolute() or source.count("/") > 1 or _suffix(path) in SUFFIXES:
        raise UserError(f"data source {source}: no such file or folder; check the path (now in {Path.cwd()})")
    else:
        return None
    named = ((file.relative_to(root).as_posix(), file) for file in candidates if file.is_file())
    files = sorted((name, file) for name, file in named if not re.search(r"(^|/)\.", name))
    if not files:
        other = next((file.name for file in root.rglob("*") if file.is_file()), None) if path.is_dir() else None
        raise UserError(
            f"data source {source} has no {f'files of text, only such as {other}' if other else 'files'}; expected "
            f"some of *{', *'.join(SUFFIXES)} (also {', '.join(COMPRESSED)})"
        )
    return files


def has_splits(source: str) -> bool:
    """Returns whether a source is a Hub data set; a split is nothing to all others."""
    return source != PYTHON_DOCS and local_files(source) is None


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix in COMPRESSED else path.name).suffix.lower()


class _OtherTable(UserError):
    """A table without the text column."""


Found = tuple[str, dict, Iterable[str]]  # id, metadata, parts of the text


def _read_files(files: list[tuple[str, Path]], text_column: str, skip: bool, report: ReadingReport) -> Iterator[Found]:
    """Reads file after file; a fault ends all, or with `skip` the file, of which what has been read is kept."""
    has_texts = any(_suffix(path) not in ROW_SUFFIXES for _, path in files)

    def until_fault(parts: Iterable) -> Iterator:
        try:
            yield from parts
        except UserError as error:
            if isinstance(error, _OtherTable) and has_texts:
                report.other_tables.append(name)
            elif skip:
                report.bad_files.append(str(error))
            else:
                raise

    for name, path in files:
        report.files += 1
        for id, metadata, parts in until_fault(_read_file(path, name, text_column, report)):
            yield id, metadata, until_fault(parts)


def _read_file(path: Path, name: str, text_column: str, report: ReadingReport) -> Iterator[Found]:
    """Yields each document of a file; a suffix we do not know means text."""
    suffix = _suffix(path)
    if suffix in ROW_SUFFIXES:
        rows = ROW_READERS[suffix](path, text_column, report)
        for number, text in enumerate(_texts(rows, text_column, path), start=1):
            yield f"{name}#{number}", {"file": name, "row": number}, _parts(text)
    elif suffix in HTML_SUFFIXES:
        yield f"{name}#1", {"file": name}, (_visible_text(path, text) for text in [_whole_text(path, report)])
    elif suffix == ".epub":
        yield f"{name}#1", {"file": name}, _epub_chapters(path)
    else:
        for number, document in enumerate(split_documents(_lines(path, report)), start=1):
            yield f"{name}#{number}", {"file": name, "document": number}, document


def _lines(path: Path, report: ReadingReport) -> Iterator[str]:
    """Yields lines, long ones in parts; faults of the file show here, whoever reads the document."""
    with _open_text(path, report) as file:
        yield from iter(functools.partial(file.readline, PIECE_CHARACTERS), "")


def _whole_text(path: Path, report: ReadingReport) -> str:
    with _open_text(path, report) as file:
        text = file.read(LONGEST_ROW + 1)
    if len(text) > LONGEST_ROW:
        raise UserError(f"{path} is a page of more than {LONGEST_ROW} characters; cut it or give it as .txt")
    return text


def _visible_text(where: Path | str, markup: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    try:
        return extract_plain_text(markup, alt_texts=False, skip_elements=UNSEEN_ELEMENTS)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{where} is no readable page ({error}); remove it") from error


def _epub_chapters(path: Path) -> Iterator[str]:
    """Yields the chapters of an EPUB in reading order, as its package says it; the table of contents is none."""
    try:
        with _open_binary(path) as file, zipfile.ZipFile(file) as archive:
            container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
            package_name = next(node.get("full-path") for node in container.iter() if node.tag.endswith("}rootfile"))
            package = ElementTree.fromstring(archive.read(package_name))
            nodes = {
                kind: [n for n in package.iter() if n.tag.endswith(f"}}{kind}")]
                for kind in ("item", "itemref", "reference")
            }
            items = {node.get("id"): node for node in nodes["item"]}
            contents = {
                node.get("href", "").partition("#")[0] for node in nodes["reference"] if node.get("type") == "toc"
            }
            for reference in nodes["itemref"]:
                item = items[reference.get("idref")]
                is_navigation = "nav" in item.get("properties", "").split() or item.get("href") in contents
                if is_navigation or reference.get("linear") == "no" or "html" not in item.get("media-type", ""):
                    continue
                content = archive.read((PurePosixPath(package_name).parent / unquote(item.get("href"))).as_posix())
                yield _visible_text(path, _decode(path, content)).strip() + "\n\n"
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ElementTree.ParseError,
        KeyError,
        StopIteration,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise UserError(f"{path} is a broken EPUB ({' '.join(str(error).split())}); fetch it again") from error


def _decode(path: Path, content: bytes) -> str:
    as_utf8 = _ToUtf8(path, iter([content]), _encoding(content))
    return io.BufferedReader(as_utf8).read().decode("utf-8-sig")


def _texts(rows: Iterable[Any], column: str, path: Path) -> Iterator[str]:
    """Yields the text of each row; rows of role and content are one conversation, and so is a row of messages."""
    turns = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict) and column not in row:
            if {"role", "content"} <= set(row):
                turns.append(_turn(row, path, number))
                continue
            if messages := next((row[name] for name in MESSAGES if isinstance(row.get(name), list)), None):
                yield "\n\n".join(_turn(message, path, number) for message in messages)
                continue
        yield _value(row, column, path, number)
    if turns:
        yield "\n\n".join(turns)


def _turn(message: Any, path: Path, number: int) -> str:
    """`role: content`; content may be a list of parts, of which those of text are taken."""
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise UserError(f"{path} row {number} has a message without role and content; repair or remove the row")
    content = message["content"] or ""
    if isinstance(content, list):
        content = "\n".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    return f"{message['role']}: {content}"


def _value(row: Any, column: str, where: str | Path, number: int) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{where} row {number} is {type(row).__name__}, not an object with a {column!r} in it")
    if column not in row:
        raise (_OtherTable if number == 1 else UserError)(
            f"{where} row {number} has no column {column!r}, only {', '.join(map(repr, row))[:300]}; "
            "set data.text_column to one of these"
        )
    if row[column] is None:
        return ""  # counted among the empty documents
    if not isinstance(row[column], str):
        raise UserError(
            f"{where} row {number} holds {type(row[column]).__name__} in column {column!r}, not text; "
            "set data.text_column to a column of strings or remove the row"
        )
    return row[column]


def _parts(text: str) -> Iterator[str]:
    return (text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))


def _json_rows(path: Path, column: str, report: ReadingReport) -> Iterator[Any]:
    """Yields one object after the other, whether they stand in lines, in an array, or printed over several lines."""
    decode = json.JSONDecoder().raw_decode
    between = re.compile(r"[\s,\[\]]*")
    buffer, position, number, line = "", 0, 0, 1  # the line in which the buffer begins
    with _open_text(path, report) as file:
        while True:
            position = between.match(buffer, position).end()
            try:
                row, position = decode(buffer, position)
            except json.JSONDecodeError as error:
                # What is wrong only because the buffer ends is wrong at its end, or in a string that began before.
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16
                if unfinished and len(buffer) - position > LONGEST_ROW:
                    raise UserError(
                        f"{path} row {number + 1}, from line {line + buffer.count(chr(10), 0, position)} on, has more "
                        f"than {LONGEST_ROW} characters; cut it, or give it as .txt"
                    ) from error
                more = file.read(max(PIECE_CHARACTERS, len(buffer) - position)) if unfinished else ""
                if not more and position == len(buffer):
                    return
                if not more:
                    raise UserError(
                        f"{path} row {number + 1} is not JSON ({error.msg} in line "
                        f"{line + buffer.count(chr(10), 0, error.pos)}); repair or remove it"
                    ) from error
                line += buffer.count("\n", 0, position)
                buffer, position = buffer[position:] + more, 0
            else:
                number += 1
                yield row


def _csv_rows(path: Path, column: str, report: ReadingReport, **dialect) -> Iterator[dict]:
    csv.field_size_limit(LONGEST_ROW)  # the default of 128 KiB is shorter than many documents
    with _open_text(path, report, newline="") as file:
        rows = csv.reader(_bounded_lines(path, file), strict=True, **dialect)
        try:
            header = next(rows, [])
            if column.isdigit() and not all(name.isdigit() for name in header):
                header, rows = [str(number) for number in range(1, len(header) + 1)], _Again(header, rows)
            for row in filter(None, rows):
                if len(row) != len(header):
                    raise UserError(
                        f"{path} line {rows.line_num} has {len(row)} fields, the header {len(header)}; "
                        "put fields that hold separators in double quotes"
                    )
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise UserError(f"{path} line {rows.line_num} is not CSV ({error}); repair or remove it") from error


def _tsv_rows(path: Path, column: str, report: ReadingReport) -> Iterator[dict]:
    return _csv_rows(path, column, report, delimiter="\t")


def _bounded_lines(path: Path, file: io.TextIOBase) -> Iterator[str]:
    for number, line in enumerate(iter(functools.partial(file.readline, LONGEST_ROW), ""), start=1):
        if len(line) == LONGEST_ROW:
            raise UserError(f"{path} line {number} has {LONGEST_ROW} characters or more; break it, or give it as .txt")
        yield line


class _Again:
    """A reader of rows with its first one put back."""

    def __init__(self, first: list[str], rows):
        self.rows, self.all = rows, itertools.chain([first], rows)

    def __iter__(self):
        return self.all

    @property
    def line_num(self) -> int:
        return self.rows.line_num


def _parquet_rows(path: Path, column: str, report: ReadingReport) -> Iterator[dict]:
    import pyarrow  # here, and datasets below: a second of import that most runs can do without
    from pyarrow import parquet

    with _open_binary(path) as file:
        try:
            # Either option alone still reads whole row groups, which may be the whole file, into memory.
            table = parquet.ParquetFile(file, buffer_size=PIECE_CHARACTERS, pre_buffer=False)
            columns = [column] if column in table.schema_arrow.names else None
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=columns, use_threads=False):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is not a readable parquet file ({reason}); fetch it again") from error


def _arrow_rows(path: Path, column: str, report: ReadingReport) -> Iterator[dict]:
    """Reads both forms of Arrow files: the stream that `datasets` keeps in its cache, and the file with an index."""
    import pyarrow

    with _open_binary(path) as file:
        try:
            try:
                batches = pyarrow.ipc.open_stream(file)
            except pyarrow.ArrowInvalid:
                file.seek(0)
                whole = pyarrow.ipc.open_file(file)
                batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
            for batch in batches:
                batch = batch.select([column]) if column in batch.schema.names else batch
                for start in range(0, batch.num_rows, PARQUET_ROWS):
                    yield from batch.slice(start, PARQUET_ROWS).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is not a readable arrow file ({reason}); fetch it again") from error


ROW_READERS: dict[str, Callable[[Path, str, ReadingReport], Iterator[Any]]] = {
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}


# --- bytes and encodings ---------------------------------------------------------------------------------------------


@contextmanager
def _open_binary(path: Path) -> Iterator[io.BufferedIOBase]:
    try:
        with _decompressed(path) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch or compress it again") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); change its permissions") from error
    except OSError as error:
        if path.suffix != ".zst":
            raise UserError(f"{path} cannot be read ({one_line(error)}); repair or remove it") from error
        raise UserError(f"{path} is a damaged zstd file ({error}); fetch or compress it again") from error


def _decompressed(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


@contextmanager
def _open_text(path: Path, report: ReadingReport, newline: str | None = None) -> Iterator[io.TextIOBase]:
    """Opens a file as text, whatever its encoding, and reports which that was when it is closed."""
    with _open_binary(path) as file:
        sample = file.read(BINARY_SAMPLE_BYTES)
        encoding = _encoding(sample)
        controls = len(sample) - len(sample.translate(None, CONTROL_BYTES))
        if encoding not in WIDE and (b"\0" in sample or controls > LARGEST_CONTROL_SHARE * len(sample)):
            raise UserError(
                f"{path} looks like a binary file ({controls} control bytes in its first {len(sample)}); "
                "give text, or name a parquet or gzip file .parquet or .gz"
            )
        rest = iter(functools.partial(file.read, PIECE_CHARACTERS), b"")
        content = _ToUtf8(path, itertools.chain([sample], rest), encoding)
        with io.TextIOWrapper(io.BufferedReader(content), "utf-8-sig", newline=newline) as text:
            try:
                yield text
            finally:
                _report_encoding(path, sample, content, report)


def _encoding(sample: bytes) -> str:
    """UTF-8 unless a byte order mark says otherwise, or a declaration does that what follows agrees with."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if sample.startswith(mark):
            return encoding
    declared = _declared(sample)
    if declared in (None, "utf-8", *WESTERN, *WIDE):
        return "utf-8"
    try:
        codecs.utf_8_decode(sample, "strict", False)
    except UnicodeDecodeError:
        return declared
    return "utf-8"


def _declared(sample: bytes) -> str | None:
    """The encoding that a file says it has in its beginning, by its Python name; None if none that is known."""
    found = DECLARATION.search(sample[:DECLARED_BYTES])
    try:
        return codecs.lookup(found[1].decode().replace(" ", "-")).name if found else None
    except LookupError:
        return None


def _report_encoding(path: Path, sample: bytes, content: "_ToUtf8", report: ReadingReport) -> None:
    is_marked = sample.startswith(codecs.BOM_UTF8)
    plain = "ascii" if content.is_ascii else "utf-8 with byte order mark" if is_marked else "utf-8"
    found = content.encoding if content.encoding != "utf-8" else "windows-1252" if content.foreign else plain
    report.encodings[found] = report.encodings.get(found, 0) + 1
    report.foreign_bytes += content.foreign
    said = _declared(sample)
    agrees = said in (None, found.split()[0]) or found == "ascii" or (said in WESTERN and found == "windows-1252")
    if not agrees and len(report.wrongly_declared) < SHOWN:
        report.wrongly_declared.append(f"{path.name}: says {said}, is {found}")


class _ToUtf8(io.RawIOBase):
    """Bytes of any encoding as UTF-8; what was to be UTF-8 and is not is taken for Windows-1252, and counted.

    Raises:
        UserError: while reading, for bytes that are neither.
    """

    def __init__(self, path: Path, blocks: Iterator[bytes], encoding: str):
        self.path, self.blocks, self.encoding = path, blocks, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.ready, self.pending = b"", b""
        self.offset = self.foreign = 0
        self.line = 1
        self.is_ascii = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready:
            block = next(self.blocks, b"")
            self.is_ascii = self.is_ascii and block.isascii()
            self.ready = (self._utf8(block) if self.encoding == "utf-8" else self._other(block)).encode()
            if not block:
                break
        number = min(len(buffer), len(self.ready))
        buffer[:number], self.ready = self.ready[:number], self.ready[number:]
        return number

    def _other(self, block: bytes) -> str:
        try:
            return self.decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is damaged {self.encoding} ({error.reason}); save it again") from error

    def _utf8(self, block: bytes) -> str:
        content = memoryview(self.pending + block)
        parts, position, foreign, place = [], 0, 0, 0
        while True:
            try:
                text, used = codecs.utf_8_decode(content[position:], "strict", not block)
                break
            except UnicodeDecodeError as error:
                place = position + error.start
                try:
                    foreigner = bytes(content[place : place + 1]).decode("cp1252")
                except UnicodeDecodeError:
                    raise self._neither(content, place) from None
                parts += [str(content[position:place], "utf-8"), foreigner]
                position, foreign = place + 1, foreign + 1
        if foreign > LARGEST_FOREIGN_SHARE * len(content) + 16:
            raise self._neither(content, place)
        self.foreign += foreign
        self.offset += position + used
        self.line += block.count(b"\n")  # what is pending is part of a letter
        self.pending = bytes(content[position + used :])
        return "".join([*parts, text])

    def _neither(self, content: memoryview, place: int) -> UserError:
        line = self.line + bytes(content[:place]).count(b"\n")
        return UserError(
            f"{self.path} is neither UTF-8 nor Windows-1252: byte {self.offset + place} is 0x"
            f"{content[place]:02x} (line {line}); re-encode the file, for example iconv -f KOI8-R -t UTF-8"
        )


# --- the Hub ---------------------------------------------------------------------------------------------------------


def _read_hub(
    source: str, configuration: str | None, revision: str | None, split: str, streaming: bool, text_column: str
) -> Iterator[Found]:
    rows = _load_hub(source, configuration, split=split, revision=revision, streaming=streaming)
    if text_column in (rows.column_names or ()):  # a stream may not know them
        rows = rows.select_columns([text_column])
    for number, row in enumerate(rows, start=1):
        text = _value(row, text_column, source, number)
        yield f"{source}/{split}#{number}", {"data_set": source, "split": split, "row": number}, _parts(text)


def _load_hub(source: str, configuration: str | None, **options):
    """Loads one split: a stream, or memory-mapped from the local data sets cache, where a first use downloads it to."""
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    try:
        require_hub(
            f"data source {source} is no file or folder here; as a Hub data set it",
            "give a local file or folder, --data.source PATH (and --data.validation_source PATH)",
        )
    except UserError:
        datasets.config.HF_HUB_OFFLINE = True  # the cache alone, without retries
        with suppress(Exception):  # the cache has not got it, in whatever way that shows
            return datasets.load_dataset(source, configuration, **options)
        raise
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    try:
        return datasets.load_dataset(source, configuration, **options)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"data source {source} is no file or folder here, and as a Hub data set (configuration {configuration}, "
            f"split {options['split']}) it cannot be loaded: {reason}; check data.source, data.configuration, "
            "data.revision and data.split"
        ) from error


# --- Python's own documentation --------------------------------------------------------------------------------------


@functools.cache
def python_docs() -> tuple[tuple[str, dict, list[str]], ...]:
    """Returns (id, metadata, parts of the text) of the documentation inside this Python, about 2 MB.

    One document per module of the standard library, its docstrings under the names and signatures they explain, read
    from the source without importing it; and one per topic of `help()`.

    Raises:
        UserError: an installation without the library's source files.
    """
    found = []
    for name, path in _documented_modules():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in other people's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        sections = list(_docstrings(tree, name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")))
        if sections:
            found.append((name, {"file": name}, ["\n\n".join(sections)]))
    if not found:
        raise UserError(
            f"data source {PYTHON_DOCS}: this Python has no library sources in {sysconfig.get_path('stdlib')}; "
            "give a local file or folder, --data.source PATH"
        )
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        topics = {}
    return (*found, *((f"topics/{name}", {"topic": name}, [topics[name]]) for name in sorted(topics)))


def _documented_modules() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    modules = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    return sorted((name.as_posix(), path) for name, path in modules if NOT_DOCUMENTATION.isdisjoint(name.parts))


def _docstrings(node: ast.AST, name: str, signature: str = "") -> Iterator[str]:
    """Yields a heading and a docstring for the node and for all that is defined in it, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield f"{name}{signature}\n\n{docstring}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}", f"({ast.unparse(child.args)})")
        elif isinstance(child, ast.stmt | ast.excepthandler):
            yield from _docstrings(child, name)
