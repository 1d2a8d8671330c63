"""The formats of local files: what each holds as documents, (id, metadata, parts of the text), read lazily."""

import csv
import functools
import io
import itertools
import json
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from smallm_hf.data.files import (
    HTML_SUFFIXES,
    PIECE_CHARACTERS,
    ROW_SUFFIXES,
    ReadingReport,
    decoded,
    open_binary,
    open_text,
    suffix_of,
)
from smallm_hf.errors import UserError
from smallm_hf.tokenization import EOS

SEPARATOR = EOS  # a line of a text file that is exactly this ends a document
PARQUET_ROWS = 128  # decoded at a time; rows may be whole books
LONGEST_ROW = 1 << 28  # characters of a JSON or CSV row, which has to be held whole
# Of a page, which are no text of it; the last are the numbers of the printed pages that a book was made from.
UNSEEN_ELEMENTS = [
    "nav",
    "aside",
    "footer",
    "form",
    "button",
    ".pagenum",
    ".pageno",
    ".pagenumber",
    ".x-ebookmaker-pageno",
]
MESSAGES = ("messages", "conversation", "conversations")  # columns of a chat export
TURNS = (("role", "content"), ("from", "value"))  # what a message has
PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+)?html\b", re.IGNORECASE)
PAGE_BYTES = 512  # at the beginning of a file, in which it shows that it is a page

Found = tuple[str, dict, Iterable[str]]  # id, metadata, parts of the text


class _OtherTable(UserError):
    """A table without the text column."""


# --- texts and pages -------------------------------------------------------------------------------------------------


def split_documents(lines: Iterable[str]) -> Iterator[Iterator[str]]:
    """Yields the lines of each document of a text: lines that are exactly `<|endoftext|>` stand between documents.

    Each document has to be read before the next is asked for.
    """
    for is_separator, document in itertools.groupby(lines, key=lambda line: line.rstrip() == SEPARATOR):
        if not is_separator:
            yield document


def _lines(path: Path, report: ReadingReport) -> Iterator[str]:
    """Yields lines, long ones in parts; faults of the file show here, whoever reads the document."""
    with open_text(path, report) as file:
        yield from iter(functools.partial(file.readline, PIECE_CHARACTERS), "")


def _whole_text(path: Path, report: ReadingReport) -> str:
    with open_text(path, report) as file:
        text = file.read(LONGEST_ROW + 1)
    if len(text) > LONGEST_ROW:
        raise UserError(f"{path} is a page of more than {LONGEST_ROW} characters; cut it or give it as .txt")
    return text


def _is_page(path: Path) -> bool:
    with open_binary(path) as file:
        return bool(PAGE.match(file.read(PAGE_BYTES)))


def _visible_text(where: Path | str, markup: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    try:
        return extract_plain_text(markup, alt_texts=False, skip_elements=UNSEEN_ELEMENTS)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{where} is no readable page ({error}); remove it") from error


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]


def _epub_chapters(path: Path) -> Iterator[str]:
    """Yields the chapters of an EPUB in reading order, as its package says it; the table of contents is none."""
    try:
        with open_binary(path) as file, zipfile.ZipFile(file) as archive:
            container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
            package_name = next(node.get("full-path") for node in container.iter() if _tag(node) == "rootfile")
            package = ElementTree.fromstring(archive.read(package_name))
            nodes = {
                kind: [node for node in package.iter() if _tag(node) == kind]
                for kind in ("item", "itemref", "reference")
            }
            items = {node.get("id"): node for node in nodes["item"]}
            contents = {
                node.get("href", "").partition("#")[0] for node in nodes["reference"] if node.get("type") == "toc"
            }
            if not nodes["itemref"]:
                raise KeyError("no chapters in its spine")
            for reference in nodes["itemref"]:
                item = items[reference.get("idref")]
                is_navigation = "nav" in item.get("properties", "").split() or item.get("href") in contents
                if is_navigation or reference.get("linear") == "no" or "html" not in item.get("media-type", ""):
                    continue
                href = unquote(item.get("href").partition("#")[0])
                content = archive.read(posixpath.normpath(posixpath.join(posixpath.dirname(package_name), href)))
                yield _visible_text(path, decoded(path, content)).strip() + "\n\n"
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


# --- rows ------------------------------------------------------------------------------------------------------------


def _texts(rows: Iterable[Any], column: str, path: Path) -> Iterator[str]:
    """Yields the text of each row; rows of role and content are one conversation, and so is a row of messages."""
    turns = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict) and column not in row:
            if any(set(names) <= set(row) for names in TURNS):
                turns.append(_turn(row, path, number))
                continue
            if messages := next((row[name] for name in MESSAGES if isinstance(row.get(name), list)), None):
                yield "\n\n".join(_turn(message, path, number) for message in messages)
                continue
        yield text_of(row, column, path, number)
    if turns:
        yield "\n\n".join(turns)


def _turn(message: Any, path: Path, number: int) -> str:
    """`role: content`; content may be a list of parts, of which those of text are taken."""
    names = next((names for names in TURNS if isinstance(message, dict) and set(names) <= set(message)), None)
    if not names:
        raise UserError(f"{path} row {number} has a message without role and content; repair or remove the row")
    role, content = (message[name] for name in names)
    if isinstance(content, list):
        parts = (part if isinstance(part, str) else part.get("text") for part in content)
        content = "\n".join(filter(None, parts))
    if not isinstance(content, str | None):
        raise UserError(f"{path} row {number} has {type(content).__name__} as the content of a message, not text")
    return f"{role}: {content or ''}"


def text_of(row: Any, column: str, where: str | Path, number: int) -> str:
    """Returns what a row, the `number`-th of `where`, holds in the column; nothing where it holds null.

    Raises:
        UserError: no such column, or something else than text in it.
    """
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


def in_parts(text: str) -> Iterator[str]:
    """Yields a text in parts of `PIECE_CHARACTERS`."""
    return (text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))


def _json_rows(path: Path, column: str, report: ReadingReport) -> Iterator[Any]:
    """Yields one object after the other, whether they stand in lines, in an array, or printed over several lines."""
    decode = json.JSONDecoder().raw_decode
    between = re.compile(r"[\s,\[\]]*")
    buffer, position, number, line = "", 0, 0, 1  # the line in which the buffer begins
    with open_text(path, report) as file:
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


def _csv_rows(path: Path, column: str, report: ReadingReport, separators: str = ",;\t") -> Iterator[dict]:
    """Yields each row by the names of its columns; the first of the separators that the first line has is the one."""
    csv.field_size_limit(LONGEST_ROW)  # the default of 128 KiB is shorter than many documents
    with open_text(path, report, newline="") as file:
        lines = _bounded_lines(path, file)
        first = next(lines, "")
        separator = next((mark for mark in separators if mark in first), separators[0])
        rows = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
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
    return _csv_rows(path, column, report, separators="\t")


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
    import pyarrow  # here: a second of import that most runs can do without
    from pyarrow import parquet

    with open_binary(path) as file:
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

    with open_binary(path) as file:
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


# --- all of them -----------------------------------------------------------------------------------------------------


def _read_file(path: Path, name: str, text_column: str, report: ReadingReport) -> Iterator[Found]:
    """Yields each document of a file; a suffix we do not know means text, which may turn out to be a page."""
    suffix = suffix_of(path)
    if suffix in ROW_SUFFIXES:
        rows = ROW_READERS[suffix](path, text_column, report)
        for number, text in enumerate(_texts(rows, text_column, path), start=1):
            yield f"{name}#{number}", {"file": name, "row": number}, in_parts(text)
    elif suffix in HTML_SUFFIXES or (suffix != ".epub" and _is_page(path)):
        yield f"{name}#1", {"file": name}, (_visible_text(path, text) for text in [_whole_text(path, report)])
    elif suffix == ".epub":
        yield f"{name}#1", {"file": name}, _epub_chapters(path)
    else:
        for number, document in enumerate(split_documents(_lines(path, report)), start=1):
            yield f"{name}#{number}", {"file": name, "document": number}, document


def read_files(files: list[tuple[str, Path]], text_column: str, skip: bool, report: ReadingReport) -> Iterator[Found]:
    """Reads file after file; a fault ends all, or with `skip` the file, of which what has been read is kept."""
    has_texts = any(suffix_of(path) not in ROW_SUFFIXES for _, path in files)

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
