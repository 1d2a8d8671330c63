"""The formats of local files: what each holds as documents, (id, metadata, parts of the text), read lazily.

How a table is read may depend on a `data.Source`: which column, and which separator and encoding if they are stated.
"""

import csv
import functools
import io
import itertools
import json
import operator
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from smallm_hf.base.errors import UserError, one_line, printable
from smallm_hf.data.configuration import Source
from smallm_hf.data.reading.files import (
    HTML_SUFFIXES,
    PIECE_CHARACTERS,
    ROW_SUFFIXES,
    ReadingReport,
    decoded,
    open_binary,
    open_text,
    suffix_of,
)
from smallm_hf.tokenizing.loading import EOS

SEPARATOR = EOS  # at the beginning or the end of a line of a text file it stands between documents
MARK = rf"(?:{re.escape(SEPARATOR)}|<\|startoftext\|>)"  # the other is gpt-2-simple's, in front of a document
MARKS_BEFORE, MARKS_BEHIND = re.compile(rf"\s*(?:{MARK}\s*)+"), re.compile(rf"(?:{MARK}\s*)+\Z")
CUT_MARKS = tuple(SEPARATOR[:length] for length in range(1, len(SEPARATOR) + 1))
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
CSV_SEPARATORS = ",;\t|"  # that are looked for, the commonest first
CSV_SAMPLE = 1 << 16  # characters at the beginning of a table by which its separator is guessed
SAID_SEPARATOR = re.compile(r"sep=(.)\r?\n?\Z")  # the first line of a table that Excel is meant to open
ONE_COLUMN = "\x1f"  # separates the fields of a table that has one column: it stands in no text
PAGE_BYTES = 512  # at the beginning of a file, in which it shows that it is a page

Found = tuple[str, dict, Iterable[str]]  # id, metadata, parts of the text


class _OtherTable(UserError):
    """A table without the text column."""


# --- texts and pages -------------------------------------------------------------------------------------------------


def split_documents(lines: Iterable[str], found_inside: Callable[[int], None] = int) -> Iterator[Iterator[str]]:
    """Yields the lines of each document of a text, between which `<|endoftext|>` stands at the edge of a line.

    In the middle of a line it is text that speaks of it, or a mistake. Each document has to be read before the next is
    asked for.

    Args:
        lines: each with its end; long ones in several parts.
        found_inside: called with the number of each line that has it in the middle.
    """
    document, line_number = 0, 1

    def numbered() -> Iterator[tuple[int, str]]:
        nonlocal document, line_number
        is_beginning = True
        for line in lines:
            if "oftext|>" in line:
                before = MARKS_BEFORE.match(line) if is_beginning else None
                behind = MARKS_BEHIND.search(line, before.end() if before else 0)
                document += bool(before)
                text = line[before.end() if before else 0 : behind.start() if behind else None]
                if SEPARATOR in text:
                    found_inside(line_number)
                if text.strip():
                    yield document, text
                document += bool(behind)
            else:
                yield document, line
            is_beginning = line.endswith("\n")
            line_number += is_beginning

    for _, numbers in itertools.groupby(numbered(), key=operator.itemgetter(0)):
        yield (line for _, line in numbers)


def _lines(path: Path, report: ReadingReport, encoding: str | None) -> Iterator[str]:
    """Yields lines, long ones in parts, none of which ends in the middle of a mark.

    Faults of the file show here, whoever reads the document.
    """
    with open_text(path, report, encoding) as file:
        while part := file.readline(PIECE_CHARACTERS):
            while part[-1] != "\n" and part.endswith(CUT_MARKS) and (more := file.readline(len(SEPARATOR))):
                part += more
            yield part


def _text_documents(path: Path, report: ReadingReport, encoding: str | None) -> Iterator[Iterable[str]]:
    with _marks_inside(path, report) as places:
        yield from split_documents(_lines(path, report, encoding), places.append)


@contextmanager
def _marks_inside(path: Path, report: ReadingReport) -> Iterator[list[int]]:
    """Takes the numbers of lines or rows in which `<|endoftext|>` separates nothing, and reports them at the end."""
    places = []
    try:
        yield places
    finally:
        if places:
            report.inner_marks.append(
                f"{printable(path.name)}: {len(places):,} of them, the first is number {places[0]}"
            )


def _whole_text(path: Path, report: ReadingReport, encoding: str | None) -> str:
    with open_text(path, report, encoding) as file:
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
    """Yields the text of each row; rows of role and content are one conversation, and so is a row of messages.

    A conversation that is empty or null is an empty document, which is counted.
    """
    turns = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict) and column not in row:
            if any(set(names) <= set(row) for names in TURNS):
                turns.append(_turn(row, path, number))
                continue
            chats = [row[name] for name in MESSAGES if name in row and isinstance(row[name], list | None)]
            if chats:
                messages = filter(None, next(filter(None, chats), []))
                yield _conversation(_turn(message, path, number) for message in messages)
                continue
        yield text_of(row, column, path, number)
    if turns:
        yield _conversation(turns)


def _conversation(turns: Iterable[tuple[str | None, str]]) -> str:
    """`role: content` of each message; nothing where none has any content."""
    turns = list(turns)
    if not any(content.strip() for _, content in turns):
        return ""
    return "\n\n".join(f"{role}: {content}" if role else content for role, content in turns)


def _turn(message: Any, path: Path, number: int) -> tuple[str | None, str]:
    """Role and content; that may be a list of parts, of which those of text are taken."""
    names = next((names for names in TURNS if isinstance(message, dict) and set(names) <= set(message)), None)
    if not names:
        raise UserError(f"{path} row {number} has a message without role and content; repair or remove the row")
    role, content = (message[name] for name in names)
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        content = "\n".join(part for part in parts if isinstance(part, str) and part)
    if not isinstance(content, str | None):
        raise UserError(f"{path} row {number} has {type(content).__name__} as the content of a message, not text")
    return role, content or ""


def text_of(row: Any, column: str, where: str | Path, number: int) -> str:
    """Returns what a row, the `number`-th of `where`, holds in the column; nothing where it holds null, or is null.

    Raises:
        UserError: no such column, or something else than text in it.
    """
    wrong = _OtherTable if number == 1 else UserError
    if row is None:
        return ""  # counted among the empty documents
    if not isinstance(row, dict):
        raise wrong(f"{where} row {number} is {type(row).__name__}, not an object with a {column!r} in it")
    if column not in row:
        raise wrong(
            f"{where} row {number} has no column {column!r}, only {', '.join(map(repr, row))[:300]}; "
            "set data.text_column to one of these"
        )
    if row[column] is None:
        return ""
    if not isinstance(row[column], str):
        raise UserError(
            f"{where} row {number} holds {type(row[column]).__name__} in column {column!r}, not text; "
            "set data.text_column to a column of strings or remove the row"
        )
    return row[column]


def in_parts(text: str) -> Iterator[str]:
    """Yields a text in parts of `PIECE_CHARACTERS`."""
    return (text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))


def _json_rows(path: Path, source: Source, report: ReadingReport) -> Iterator[Any]:
    """Yields one object after the other, whether they stand in lines, in an array, or printed over several lines."""
    decode = json.JSONDecoder().raw_decode
    between = re.compile(r"[\s,\[\]]*")
    buffer, position, number, line = "", 0, 0, 1  # the line in which the buffer begins
    with open_text(path, report, source.encoding) as file:
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


def _csv_rows(path: Path, source: Source, report: ReadingReport) -> Iterator[dict]:
    """Yields each row by the names of its columns."""
    csv.field_size_limit(LONGEST_ROW)  # the default of 128 KiB is shorter than many documents
    column, stated = source.text_column, source.separator
    with open_text(path, report, source.encoding, newline="") as file:
        lines = _bounded_lines(path, file)
        head = list(_head(lines))
        if head and (said := SAID_SEPARATOR.match(head[0])):
            stated, head = stated or said[1], head[1:]
        separator = stated or ("\t" if suffix_of(path) == ".tsv" else _guess_separator(head, column, path, report))
        rows = csv.reader(itertools.chain(head, lines), delimiter=separator or ONE_COLUMN, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            if column.isdigit() and not all(name.isdigit() for name in header):
                header, rows = [str(number) for number in range(1, len(header) + 1)], _Again(header, rows)
            for row in filter(None, rows):
                if len(header) == 1 and column not in header:
                    raise _OtherTable(
                        f"{path} has one column, {header[0][:300]!r}, and none {column!r}; set data.text_column, or "
                        "data.separator if something else stands between its columns"
                    )
                if len(row) != len(header):
                    raise UserError(
                        f"{path} line {rows.line_num} has {len(row)} fields, the header {len(header)}; put fields that "
                        f"hold separators in double quotes, or set data.separator, taken to be {separator!r}"
                    )
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise UserError(f"{path} line {rows.line_num} is not CSV ({error}); repair or remove it") from error


def _head(lines: Iterator[str]) -> Iterator[str]:
    """Yields the first lines, `CSV_SAMPLE` characters and the rest of the last."""
    characters = 0
    while characters < CSV_SAMPLE and (line := next(lines, "")):
        characters += len(line)
        yield line


def _guess_separator(head: list[str], column: str, path: Path, report: ReadingReport) -> str:
    """Returns what separates the fields of a table, or nothing if there is one column, by how it begins.

    It is what gives the header the column that is asked for, or else the most rows as many fields as the header. A
    guess, which is reported, is all but the comma that nothing speaks against.
    """
    found = {}
    for mark in CSV_SEPARATORS:
        rows, fault = [], 0
        try:
            for row in filter(None, csv.reader(head, delimiter=mark, strict=True)):
                rows.append(row)
        except csv.Error:  # a row goes on behind the sample, or this is not how it is written
            fault = 1
        if rows and len(rows[0]) > 1:
            alike = sum(len(row) == len(rows[0]) for row in rows[1:]) / max(1, len(rows[1:]) + fault)
            found[mark] = (column in map(str.strip, rows[0]), alike)
    best = max(found, key=found.get, default="")
    if head and (best != "," or len(found) > 1):
        shown = {"": "none, it has one column", "\t": "a tab"}.get(best, repr(best))
        report.guessed_separators.append(f"{printable(path.name)}: {shown}")
    return best


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


def _parquet_rows(path: Path, source: Source, report: ReadingReport) -> Iterator[dict]:
    import pyarrow  # here: a second of import that most runs can do without
    from pyarrow import parquet

    with open_binary(path) as file:
        try:
            # Either option alone still reads whole row groups, which may be the whole file, into memory.
            table = parquet.ParquetFile(file, buffer_size=PIECE_CHARACTERS, pre_buffer=False)
            columns = [source.text_column] if source.text_column in table.schema_arrow.names else None
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=columns, use_threads=False):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is not a readable parquet file ({reason}); fetch it again") from error


def _arrow_rows(path: Path, source: Source, report: ReadingReport) -> Iterator[dict]:
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
                batch = batch.select([column]) if (column := source.text_column) in batch.schema.names else batch
                for start in range(0, batch.num_rows, PARQUET_ROWS):
                    yield from batch.slice(start, PARQUET_ROWS).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is not a readable arrow file ({reason}); fetch it again") from error


def _saved_rows(folder: Path, column: str) -> Iterator[dict]:
    """Reads what `Dataset.save_to_disk` has left."""
    import datasets
    import pyarrow

    try:
        rows = datasets.load_from_disk(str(folder))
        rows = rows.select_columns([column]) if column in rows.column_names else rows
        for start in range(0, len(rows), PARQUET_ROWS):
            yield from rows.with_format("arrow")[start : start + PARQUET_ROWS].to_pylist()
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is not a readable data set of save_to_disk ({one_line(error)})") from error


ROW_READERS: dict[str, Callable[[Path, Source, ReadingReport], Iterator[Any]]] = {
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}


# --- all of them -----------------------------------------------------------------------------------------------------


def _read_file(path: Path, name: str, source: Source, report: ReadingReport) -> Iterator[Found]:
    """Yields each document of a file; a suffix we do not know means text, which may turn out to be a page."""
    suffix = suffix_of(path)
    if path.is_dir() or suffix in ROW_SUFFIXES:
        rows = _saved_rows(path, source.text_column) if path.is_dir() else ROW_READERS[suffix](path, source, report)
        with _marks_inside(path, report) as places:
            for number, text in enumerate(_texts(rows, source.text_column, path), start=1):
                if SEPARATOR in text:
                    places.append(number)
                yield f"{name}#{number}", {"file": name, "row": number}, in_parts(text)
    elif suffix in HTML_SUFFIXES or (suffix != ".epub" and _is_page(path)):
        text = _whole_text(path, report, source.encoding)
        yield f"{name}#1", {"file": name}, (_visible_text(path, page) for page in [text])
    elif suffix == ".epub":
        yield f"{name}#1", {"file": name}, _epub_chapters(path)
    else:
        for number, document in enumerate(_text_documents(path, report, source.encoding), start=1):
            yield f"{name}#{number}", {"file": name, "document": number}, document


def read_files(files: list[tuple[str, Path]], source: Source, skip: bool, report: ReadingReport) -> Iterator[Found]:
    """Reads file after file; a fault ends all, or with `skip` the file, of which what has been read is kept.

    Beside texts, a table without the text column is an index of them; beside other tables, a .json file without it says
    what they are.
    """
    has_texts = any(_format(path) not in ROW_SUFFIXES for _, path in files)
    has_tables = any(_format(path) != ".json" for _, path in files)

    def until_fault(parts: Iterable) -> Iterator:
        try:
            yield from parts
        except UserError as error:
            is_other = isinstance(error, _OtherTable) and (has_texts or (has_tables and suffix_of(path) == ".json"))
            if is_other:
                report.other_tables.append(name)
            elif skip:
                report.bad_files.append(str(error))
            else:
                raise

    for name, path in files:
        report.files += 1
        for id, metadata, parts in until_fault(_read_file(path, name, source, report)):
            yield id, metadata, until_fault(parts)


def _format(path: Path) -> str:
    """What names the format of an entry of `local_files`, of which a folder holds Arrow files."""
    return ".arrow" if path.is_dir() else suffix_of(path)
