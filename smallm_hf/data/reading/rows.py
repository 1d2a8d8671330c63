"""Tables, JSON, data sets and chats: the text of each row, read a few rows at a time.

How a table is read depends on a `data.Source`: which column, and which separator and encoding if they are stated.
"""

import csv
import functools
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallm_hf.base.errors import UserError, one_line, printable
from smallm_hf.data.configuration import Source
from smallm_hf.data.reading.decoding import open_binary, open_text
from smallm_hf.data.reading.files import PIECE_CHARACTERS, ReadingReport, suffix_of

LONGEST_ROW = 1 << 28  # characters of a JSON or CSV row, which is held whole
ROWS_AT_A_TIME = 128  # rows may be whole books
MESSAGES = ("messages", "conversation", "conversations")  # columns of a chat export
ROW_LISTS = ("rows", "data")  # under which an object holds rows
TURNS = (("role", "content"), ("from", "value"))  # what a message has
CSV_SEPARATORS = ",;\t|"  # that may be guessed, the commonest first
RARE_SEPARATORS = "^~¦\x01\x1e\x1f"  # that stand in few texts
NO_SEPARATORS = " _-.\"'\r\n"  # stand inside of names
CSV_SAMPLE = 1 << 16  # characters at the beginning of a table from which its separator is guessed
SAID_SEPARATOR = re.compile(r"sep=(.)\r?\n?\Z")  # the first line of a table made for Excel
PLACES = re.compile(r"{([^{}]+)}")  # of columns in a text that is made of several
ONE_COLUMN = "\x1f"  # separator of a table of one column: no text has it


class OtherTable(UserError):
    """A table without the text column."""


def row_texts(path: Path, source: Source, report: ReadingReport, has_strings: bool = True) -> Iterator[str]:
    """Yields the text of each row of a file of rows, or of a folder saved by `save_to_disk`.

    A list of strings is as many rows, if it `has_strings` that are texts. Rows of role and content are one
    conversation, and so is a row of messages. A conversation that is empty or null is an empty document, which is
    counted.

    Raises:
        UserError: a damaged file, no such column, or something other than text in it.
    """
    column, turns = source.text_column, []
    rows = itertools.chain.from_iterable(_unwrapped(row, column) for row in _rows(path, source, report))
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str) and has_strings:
            yield row
            continue
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


def _unwrapped(row: Any, column: str) -> Iterator[Any]:
    """The rows in an object that holds them as a list, as the Hub's server of rows gives them; any other as it is."""
    lists = [row[name] for name in ROW_LISTS if isinstance(row.get(name), list)] if _lacks(row, column) else []
    if not lists:
        yield row
        return
    for one in lists[0]:
        yield one["row"] if _lacks(one, column) and isinstance(one.get("row"), dict) else one


def _lacks(row: Any, column: str) -> bool:
    return isinstance(row, dict) and column not in row


Pair = tuple[str, list[str]]  # a source, and the targets that answer it, the best first


def row_pairs(path: Path, source: Source, report: ReadingReport) -> Iterator[Pair]:
    """Yields the pair in each row of a file of rows; a file of SQuAD gives one for each question.

    Raises:
        UserError: as `row_texts`.
    """
    rows = itertools.chain.from_iterable(map(_questions, _rows(path, source, report)))
    for number, row in enumerate(rows, start=1):
        yield pair_of(row, source, path, number)


def pair_of(row: Any, source: Source, where: str | Path, number: int) -> Pair:
    """Returns the pair in the `number`-th row of `where`; "" and none where something is null.

    Raises:
        UserError: no such column, or something other than text in it.
    """
    asked, written = (column if "{" in column else f"{{{column}}}" for column in source.columns)

    def texts(name: str) -> list[str]:
        return _texts_at(row, name, where, number)

    target = PLACES.fullmatch(written)
    targets = texts(target[1]) if target else [PLACES.sub(lambda place: "".join(texts(place[1])[:1]), written)]
    return PLACES.sub(lambda place: "".join(texts(place[1])[:1]), asked), targets


def _texts_at(row: Any, name: str, where: str | Path, number: int) -> list[str]:
    """The texts in a column, or in what a name with dots leads to."""
    steps, value = ([name] if isinstance(row, dict) and name in row else name.split(".")), row
    for step in steps:
        if not isinstance(value, dict) or step not in value:
            wrong = OtherTable if number == 1 else UserError
            held = ", ".join(map(repr, value))[:300] if isinstance(value, dict) else type(value).__name__
            raise wrong(
                f"{where} row {number} has no column {name!r}: there is {held} and no {step!r}; set data.source_column "
                "and data.target_column to what is there"
            )
        value = value[step]
    texts = [text for text in (value if isinstance(value, list) else [value]) if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{where} row {number} holds {type(texts[0]).__name__} in column {name!r}, not text; set "
            "data.source_column and data.target_column to columns of strings"
        )
    return texts


def _questions(row: Any) -> Iterator[Any]:
    """The questions in a file of SQuAD, as rows like those of the Hub's `squad`; any other row as it is."""
    articles = row.get("data") if isinstance(row, dict) else None
    if not (isinstance(articles, list) and articles and "paragraphs" in articles[0]):
        yield row
        return
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = {"text": [answer["text"] for answer in asked.get("answers", ())]}
                yield {"context": paragraph["context"], "question": asked["question"], "answers": answers}


def columns_read(source: Source) -> list[str]:
    """The columns of a table that are wanted of it."""
    names = [place for column in source.columns for place in PLACES.findall(column) or [column]]
    return list(dict.fromkeys(name.partition(".")[0] for name in names)) or [source.text_column]


def text_of(row: Any, column: str, where: str | Path, number: int) -> str:
    """Returns the text in a column of the `number`-th row of `where`; "" where the row or the text is null.

    Raises:
        UserError: no such column, or something other than text in it.
    """
    wrong = OtherTable if number == 1 else UserError
    if row is None:
        return ""
    if not isinstance(row, dict):
        raise wrong(f"{where} row {number} is {type(row).__name__}, not an object with a {column!r} in it")
    if column not in row:
        is_csv = suffix_of(Path(where)) in (".csv", ".tsv")
        numbered = ", or to the number of a column, from 1, if these are no header" if is_csv else ""
        raise wrong(
            f"{where} row {number} has no column {column!r}, only {', '.join(map(repr, row))[:300]}; "
            f"set text_column to one of these{numbered}"
        )
    if not isinstance(row[column], str | None):
        raise UserError(
            f"{where} row {number} holds {type(row[column]).__name__} in column {column!r}, not text; "
            "set text_column to a column of strings or remove the row"
        )
    return row[column] or ""


def _conversation(turns: Iterable[tuple[str | None, str]]) -> str:
    """`role: content` of each message; nothing where none has any content."""
    turns = list(turns)
    if not any(content.strip() for _, content in turns):
        return ""
    return "\n\n".join(f"{role}: {content}" if role else content for role, content in turns)


def _turn(message: Any, path: Path, number: int) -> tuple[str | None, str]:
    """Role and content of a message; of content in several parts those that are text."""
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


def _rows(path: Path, source: Source, report: ReadingReport) -> Iterator[Any]:
    columns = columns_read(source)
    if path.is_dir():
        return _saved_rows(path, columns)
    match suffix_of(path):
        case ".json" | ".jsonl":
            return _json_rows(path, source, report)
        case ".csv" | ".tsv":
            return _csv_rows(path, source, columns[0], report)
        case ".parquet":
            return _parquet_rows(path, columns)
    return _arrow_rows(path, columns)


# --- JSON ------------------------------------------------------------------------------------------------------------


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
                # An error only because the buffer ends is at its end, or in a string that began before.
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


# --- CSV -------------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, source: Source, column: str, report: ReadingReport) -> Iterator[dict]:
    """Yields each row by the names of its columns, or by their numbers if the first row has the text, too."""
    csv.field_size_limit(LONGEST_ROW)  # the default of 128 KiB is shorter than many documents
    stated = source.separator
    with open_text(path, report, source.encoding, newline="") as file:
        lines = _bounded_lines(path, file)
        head = list(_head(lines))
        if head and (said := SAID_SEPARATOR.match(head[0])):
            stated, head = stated or said[1], head[1:]
        separator = stated or _guess_separator(head, column, path, report)
        reader = csv.reader(itertools.chain(head, lines), delimiter=separator or ONE_COLUMN, strict=True)
        try:
            header, rows = [name.strip() for name in next(reader, [])], reader
            if column.isdigit() and not all(name.isdigit() for name in header):
                header, rows = [str(number + 1) for number in range(len(header))], itertools.chain([header], reader)
            for row in filter(None, rows):
                if len(header) == 1 and column not in header:
                    raise OtherTable(
                        f"{path} has one column, {header[0][:300]!r}, and none {column!r}; set data.text_column (to 1 "
                        "if that is no header), or data.separator if something else stands between its columns"
                    )
                if len(row) != len(header):
                    raise UserError(
                        f"{path} line {reader.line_num} has {len(row)} fields, the header {len(header)}; put fields "
                        f"that hold separators in double quotes, or set data.separator, taken to be {separator!r}"
                    )
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num} is not CSV ({error}); repair or remove it") from error


def _bounded_lines(path: Path, file: io.TextIOBase) -> Iterator[str]:
    for number, line in enumerate(iter(functools.partial(file.readline, LONGEST_ROW), ""), start=1):
        if len(line) == LONGEST_ROW:
            raise UserError(f"{path} line {number} has {LONGEST_ROW} characters or more; break it, or give it as .txt")
        yield line


def _head(lines: Iterator[str]) -> Iterator[str]:
    """Yields the first lines, `CSV_SAMPLE` characters and the rest of the last."""
    characters = 0
    while characters < CSV_SAMPLE and (line := next(lines, "")):
        characters += len(line)
        yield line


def _guess_separator(head: list[str], column: str, path: Path, report: ReadingReport) -> str:
    """Guesses the separator of a table from its first lines; "" if it has one column.

    It is the one that gives the header the text column, or else the most rows as many fields as the header. A mark that
    is rarely one has to do the first, or, where columns are numbered, give all rows as many fields. Any guess is
    reported but the usual one that nothing speaks against.
    """
    found, common = {}, "\t" if suffix_of(path) == ".tsv" else CSV_SEPARATORS
    others = dict.fromkeys(mark for mark in "".join(head[:1]) if not mark.isalnum() and mark not in NO_SEPARATORS)
    for mark in dict.fromkeys([*common, *CSV_SEPARATORS, *others]):
        rows, fault = [], 0
        try:
            for row in filter(None, csv.reader(head, delimiter=mark, strict=True)):
                rows.append(row)
        except csv.Error:  # a row goes on behind the sample, or this is not its separator
            fault = 1
        if rows and len(rows[0]) > 1:
            alike = sum(len(row) == len(rows[0]) for row in rows[1:]) / max(1, len(rows[1:]) + fault)
            has_column = column in map(str.strip, rows[0])
            is_regular = column.isdigit() and mark in RARE_SEPARATORS and alike == 1
            if mark in common or has_column or is_regular:
                found[mark] = (has_column, alike, mark in common)
    best = max(found, key=found.get, default="")
    if head and not (best and best in common[:1] and len(found) == 1):
        shown = {"": "none, it has one column", "\t": "a tab"}.get(best, repr(best))
        report.guessed_separators.append(f"{printable(path.name)}: {shown}")
    return best


# --- Arrow -----------------------------------------------------------------------------------------------------------


@contextmanager
def _open_arrow(path: Path, kind: str, *damage: type[Exception]) -> Iterator[io.BufferedIOBase]:
    import pyarrow  # here: a second of import that most runs can do without

    with open_binary(path) as file:
        try:
            yield file
        except (pyarrow.ArrowException, *damage) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is not a readable {kind} file ({reason}); fetch it again") from error


def _parquet_rows(path: Path, wanted: list[str]) -> Iterator[dict]:
    from pyarrow import parquet

    with _open_arrow(path, "parquet") as file:
        # Either option alone still reads whole row groups, which may be the whole file, into memory.
        table = parquet.ParquetFile(file, buffer_size=PIECE_CHARACTERS, pre_buffer=False)
        columns = wanted if {*wanted} <= {*table.schema_arrow.names} else None
        for batch in table.iter_batches(batch_size=ROWS_AT_A_TIME, columns=columns, use_threads=False):
            yield from batch.to_pylist()


def _arrow_rows(path: Path, wanted: list[str]) -> Iterator[dict]:
    """Reads both forms of Arrow files: the stream that `datasets` keeps in its cache, and the file with an index."""
    import pyarrow

    with _open_arrow(path, "arrow", OSError) as file:
        try:
            batches = pyarrow.ipc.open_stream(file)
        except pyarrow.ArrowInvalid:
            file.seek(0)
            whole = pyarrow.ipc.open_file(file)
            batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
        for batch in batches:
            batch = batch.select(wanted) if {*wanted} <= {*batch.schema.names} else batch
            for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                yield from batch.slice(start, ROWS_AT_A_TIME).to_pylist()


def _saved_rows(folder: Path, wanted: list[str]) -> Iterator[dict]:
    """Reads a folder saved by `Dataset.save_to_disk`."""
    import datasets
    import pyarrow

    try:
        rows = datasets.load_from_disk(str(folder))
        rows = rows.select_columns(wanted) if {*wanted} <= {*rows.column_names} else rows
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            yield from rows.with_format("arrow")[start : start + ROWS_AT_A_TIME].to_pylist()
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is not a readable data set of save_to_disk ({one_line(error)})") from error
