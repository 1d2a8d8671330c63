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
import re
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallm_hf.errors import UserError
from smallm_hf.tokenization import EOS, require_hub, valid_unicode

PYTHON_DOCS = "python-docs"
SEPARATOR = EOS  # a line of a text file that is exactly this ends a document
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
SUFFIXES = (".txt", *ROW_SUFFIXES)
PIECE_CHARACTERS = 1 << 20
BEFORE_LAST_WORD = re.compile(r".+(?=[ \n]\S)", re.DOTALL)  # greedy: found from the end
PARQUET_ROWS = 128  # decoded at a time; rows may be whole books
BINARY_SAMPLE_BYTES = 1 << 16
CONTROL_BYTES = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b"))
LARGEST_CONTROL_SHARE = 0.05
NOT_DOCUMENTATION = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "pydoc_data", "lib2to3"}


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from, and which part of it is kept for validation.

    Args:
        source: `python-docs` (the documentation inside this Python), a local file, folder or glob of .txt, .jsonl,
            .json, .csv, .parquet (also .gz), or the id of a Hub data set.
        configuration: configuration of a Hub data set.
        split: split of a Hub data set to train on.
        text_column: column that holds the text, in everything but text files.
        validation_source: another source to validate on; left out, validation is cut from `source`.
        validation_split: split of a Hub data set to validate on: of `validation_source` (then `validation` by default),
            or without one of `source`. Local files have no splits and take no notice.
        validation_ratio: share of `source` kept for validation when nothing else is given for it.
        folder: where the token files live; left out, a folder under `data/` named after these settings.
    """

    source: str = PYTHON_DOCS
    configuration: str | None = None
    split: str = "train"
    text_column: str = "text"
    validation_source: str | None = None
    validation_split: str | None = None
    validation_ratio: float = 0.05
    folder: str | None = None


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
    source: str, *, configuration: str | None = None, split: str = "train", text_column: str = "text"
) -> Iterator[Document]:
    """Yields the documents of a source, in an order and with ids that are equal on every run; see `DataConfig`.

    Raises:
        UserError: while reading, for a missing source, a missing column, values that are no text, binary files, bytes
            that are not UTF-8, damaged files, or a Hub that does not answer.
    """
    if source == PYTHON_DOCS:
        found = python_docs()
    elif (files := local_files(source)) is not None:
        found = itertools.chain.from_iterable(_read_file(path, name, text_column) for name, path in files)
    else:
        found = _read_hub(source, configuration, split, text_column)
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
    source: str, *, configuration: str | None = None, split: str = "train", contents: bool = False
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
        facts = [source, configuration, split]
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
        raise UserError(f"data source {source} has no files; expected some of *{', *'.join(SUFFIXES)} (also .gz)")
    return files


def has_splits(source: str) -> bool:
    """Returns whether a source is a Hub data set; a split is nothing to all others."""
    return source != PYTHON_DOCS and local_files(source) is None


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def _read_file(path: Path, name: str, text_column: str) -> Iterator[tuple[str, dict, Iterable[str]]]:
    """Yields (id, metadata, parts of the text) for each document of a file; a suffix we do not know means text."""
    rows = {".json": _json_rows, ".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}.get(_suffix(path))
    if rows:
        for number, row in enumerate(rows(path, text_column), start=1):
            yield f"{name}#{number}", {"file": name, "row": number}, _parts(_value(row, text_column, path, number))
        return
    for number, document in enumerate(split_documents(_lines(path)), start=1):
        yield f"{name}#{number}", {"file": name, "document": number}, document


def _lines(path: Path) -> Iterator[str]:
    """Yields lines, long ones in parts; faults of the file show here, whoever reads the document."""
    with _open_text(path) as file:
        yield from iter(functools.partial(file.readline, PIECE_CHARACTERS), "")


def _value(row: Any, column: str, where: str | Path, number: int) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{where} row {number} is {type(row).__name__}, not an object with a {column!r} in it")
    if column not in row:
        raise UserError(
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


def _json_rows(path: Path, column: str) -> Iterator[Any]:
    """Yields one object after the other, whether they stand in lines, in an array, or printed over several lines."""
    decode = json.JSONDecoder().raw_decode
    between = re.compile(r"[\s,\[\]]*")
    buffer, position, number = "", 0, 0
    with _open_text(path) as file:
        while True:
            position = between.match(buffer, position).end()
            try:
                row, position = decode(buffer, position)
            except json.JSONDecodeError as error:
                # What is wrong only because the buffer ends is wrong at its end, or in a string that began before.
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16
                more = file.read(max(PIECE_CHARACTERS, len(buffer) - position)) if unfinished else ""
                if not more and position == len(buffer):
                    return
                if not more:
                    raise UserError(
                        f"{path} row {number + 1} is not JSON ({error.msg}); repair or remove it"
                    ) from error
                buffer, position = buffer[position:] + more, 0
            else:
                number += 1
                yield row


def _csv_rows(path: Path, column: str) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than many documents
    with _open_text(path, newline="") as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                if None in row:
                    raise UserError(
                        f"{path} line {rows.line_num} has {len(rows.fieldnames) + len(row[None])} fields, the header "
                        f"{len(rows.fieldnames)}; put fields that hold commas in double quotes"
                    )
                yield row
        except csv.Error as error:
            raise UserError(f"{path} line {rows.line_num} is not CSV ({error}); repair or remove it") from error


def _parquet_rows(path: Path, column: str) -> Iterator[dict]:
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


@contextmanager
def _open_binary(path: Path) -> Iterator[io.BufferedIOBase]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch or compress it again") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); change its permissions") from error


@contextmanager
def _open_text(path: Path, newline: str | None = None) -> Iterator[io.TextIOBase]:
    with _open_binary(path) as file:
        sample = file.read(BINARY_SAMPLE_BYTES)
        controls = len(sample) - len(sample.translate(None, CONTROL_BYTES))
        if b"\0" in sample or controls > LARGEST_CONTROL_SHARE * len(sample):
            raise UserError(
                f"{path} looks like a binary file ({controls} control bytes in its first {len(sample)}); "
                "give UTF-8 text, or name a parquet or gzip file .parquet or .gz"
            )
        file.seek(0)
        with io.TextIOWrapper(file, "utf-8-sig", newline=newline) as text:
            try:
                yield text
            except UnicodeDecodeError as error:
                offset, byte = _undecodable_byte(path)
                raise UserError(
                    f"{path} is not UTF-8: byte {offset} is 0x{byte:02x}; re-encode the file, for example "
                    "iconv -f WINDOWS-1252 -t UTF-8"
                ) from error


def _undecodable_byte(path: Path) -> tuple[int, int]:
    """The text layer knows the place within its own buffer only; so the file is read once more."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    before = 0
    with _open_binary(path) as file:
        while True:
            pending = decoder.getstate()[0]
            block = file.read(PIECE_CHARACTERS)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return before - len(pending) + error.start, (pending + block)[error.start]
            before += len(block)


# --- the Hub ---------------------------------------------------------------------------------------------------------


def _read_hub(source: str, configuration: str | None, split: str, text_column: str):
    rows = _load_hub(source, configuration, split)
    if text_column in rows.column_names:
        rows = rows.select_columns([text_column])
    for number, row in enumerate(rows, start=1):
        text = _value(row, text_column, source, number)
        yield f"{source}/{split}#{number}", {"data_set": source, "split": split, "row": number}, _parts(text)


def _load_hub(source: str, configuration: str | None, split: str):
    """Loads one split, memory-mapped from the local data sets cache, where a first use downloads it to."""
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
            return datasets.load_dataset(source, configuration, split=split)
        raise
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    try:
        return datasets.load_dataset(source, configuration, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"data source {source} is no file or folder here, and as a Hub data set (configuration {configuration}, "
            f"split {split}) it cannot be loaded: {reason}; check data.source, data.configuration and data.split"
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
