"""What local files hold as documents, (id, metadata, parts of the text), read lazily; texts are cut into documents."""

import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallm_hf.base.errors import UserError, printable
from smallm_hf.data.configuration import Source
from smallm_hf.data.reading.decoding import open_text
from smallm_hf.data.reading.files import (
    CODE_SUFFIXES,
    HTML_SUFFIXES,
    OFFICE_LIBRARIES,
    PIECE_CHARACTERS,
    ROW_SUFFIXES,
    ReadingReport,
    suffix_of,
)
from smallm_hf.data.reading.office import NoOfficeText, office_text
from smallm_hf.data.reading.pages import epub_chapters, is_page, visible_text
from smallm_hf.data.reading.rows import OtherTable, Pair, pair_of, row_pairs, row_texts, text_of
from smallm_hf.tokenizing.loading import EOS

SEPARATOR = EOS  # between documents, at the beginning or the end of a line of a text file
MARK = rf"(?:{re.escape(SEPARATOR)}|<\|startoftext\|>)"  # the other is gpt-2-simple's, in front of a document
MARKS_BEFORE, MARKS_BEHIND = re.compile(rf"\s*(?:{MARK}\s*)+"), re.compile(rf"(?:{MARK}\s*)+\Z")
CUT_MARKS = tuple(SEPARATOR[:length] for length in range(1, len(SEPARATOR) + 1))
LONGEST_PAGE = 1 << 28  # characters of an HTML file, which is held whole

# Id, metadata, and the parts of the text; of a pair that alone.
Found = tuple[str, dict, Iterable[str] | Iterable[Pair]]


def read_files(
    files: list[tuple[str, Path]],
    source: Source,
    skip: bool,
    report: ReadingReport,
    run: tuple[int, int] | None = None,
) -> Iterator[Found]:
    """Reads file after file, or those of a run of them (see `file_runs`).

    A fault ends the reading, or with `skip` that of the file, after what came before it.

    Beside texts, a table without the text column is an index of them; beside other tables, a .json file without it
    describes them. Both are passed over. So is a damaged file of a word processor, or a PDF without text, beside files
    of other kinds.
    """
    suffixes = [".arrow" if path.is_dir() else suffix_of(path) for _, path in files]
    has_texts = any(suffix not in (*ROW_SUFFIXES, *CODE_SUFFIXES) for suffix in suffixes)
    has_tables = any(suffix != ".json" for suffix in suffixes)

    def until_fault(parts: Iterable) -> Iterator:
        try:
            yield from parts
        except UserError as error:
            if isinstance(error, NoOfficeText) and not set(suffixes) <= {*OFFICE_LIBRARIES}:
                report.bad_files.append(str(error))
                return
            if isinstance(error, OtherTable) and not is_alone:
                report.other_tables.append(name)
            elif skip:
                report.bad_files.append(str(error))
            else:
                raise

    for name, path in files[slice(*run)] if run else files:
        report.files += 1
        is_alone = not (has_texts or (has_tables and suffix_of(path) == ".json"))
        for id, metadata, parts in until_fault(_read_file(path, name, source, report, is_alone)):
            yield id, metadata, until_fault(parts)


def _read_file(path: Path, name: str, source: Source, report: ReadingReport, is_alone: bool = True) -> Iterator[Found]:
    """Yields each document of a file; an unknown suffix means text, which may turn out to be a page.

    Strings in JSON are documents where it `is_alone`; beside texts or tables they describe them.
    """
    suffix = suffix_of(path)
    if source.columns:
        if not (path.is_dir() or suffix in ROW_SUFFIXES):
            raise UserError(
                f"{path} is no table, and has no columns {' and '.join(source.columns)}; give one of "
                f"*{', *'.join(ROW_SUFFIXES)}, or a parallel text such as train.de and train.en"
            )
        with _nul_rows(path, report) as nul_rows:
            for number, pair in enumerate(row_pairs(path, source, report), start=1):
                if any("\0" in text for text in (pair[0], *pair[1])):
                    nul_rows.append(number)
                yield f"{name}#{number}", {"file": name, "row": number}, iter([pair])
    elif path.is_dir() or suffix in ROW_SUFFIXES:
        with _marks_inside(path, report) as places, _nul_rows(path, report) as nul_rows:
            for number, text in enumerate(row_texts(path, source, report, is_alone), start=1):
                if SEPARATOR in text:
                    places.append(number)
                if "\0" in text:
                    nul_rows.append(number)
                yield f"{name}#{number}", {"file": name, "row": number}, in_parts(text)
    elif suffix in OFFICE_LIBRARIES:
        yield f"{name}#1", {"file": name}, office_text(path)
    elif suffix == ".epub":
        yield f"{name}#1", {"file": name}, epub_chapters(path)
    elif suffix in HTML_SUFFIXES or is_page(path):
        with open_text(path, report, source.encoding) as file:
            markup = file.read(LONGEST_PAGE + 1)
        if len(markup) > LONGEST_PAGE:
            raise UserError(f"{path} is a page of more than {LONGEST_PAGE} characters; cut it or give it as .txt")
        yield f"{name}#1", {"file": name}, (visible_text(path, page) for page in [markup])
    else:
        with _marks_inside(path, report) as places:
            documents = split_documents(_lines(path, report, source.encoding), places.append)
            if source.documents:
                cut = (cut_lines(document, source.documents == "paragraph") for document in documents)
                documents = itertools.chain.from_iterable(cut)
            for number, document in enumerate(documents, start=1):
                yield f"{name}#{number}", {"file": name, "document": number}, document


def read_parallel(files: list[Path], source: Source, report: ReadingReport) -> Iterator[Found]:
    """Reads two texts line by line, each line of the second being the target of that of the first.

    Raises:
        UserError: one has more lines.
    """
    report.files += len(files)
    with open_text(files[0], report, source.encoding) as one, open_text(files[1], report, source.encoding) as other:
        number = 0
        for number, lines in enumerate(itertools.zip_longest(one, other), start=1):
            if None in lines:
                longer = number + sum(1 for _ in itertools.chain(one, other))
                shorter, longest = (files[0], files[1]) if lines[0] is None else (files[1], files[0])
                raise UserError(
                    f"{shorter} has {number - 1} lines and {longest} {longer}; the lines of a parallel text belong "
                    "together, so give files that have as many"
                )
            yield f"{files[0].name}#{number}", {"file": files[0].name, "row": number}, iter([(lines[0], [lines[1]])])


def parts_of(row: Any, source: Source, where: str, number: int) -> Iterator[str] | Iterator[Pair]:
    """The text or the pair of a row of a data set, as `Found` has it."""
    if source.columns:
        return iter([pair_of(row, source, where, number)])
    return in_parts(text_of(row, source.text_column, where, number))


def in_parts(text: str) -> Iterator[str]:
    """Yields a text in parts of `PIECE_CHARACTERS`."""
    return (text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))


@contextmanager
def _marks_inside(path: Path, report: ReadingReport) -> Iterator[list[int]]:
    """Collects the numbers of lines or rows in which `<|endoftext|>` separates nothing, and reports them at the end."""
    places = []
    try:
        yield places
    finally:
        if places:
            report.inner_marks.append(
                f"{printable(path.name)}: {len(places):,} of them, the first is number {places[0]}"
            )


@contextmanager
def _nul_rows(path: Path, report: ReadingReport) -> Iterator[list[int]]:
    """Collects the numbers of rows with NUL characters, written as an escape for example, and reports them at the end.

    Bytes of NUL in .csv and .tsv files are reported by `open_text`.
    """
    rows = []
    try:
        yield rows
    finally:
        if rows and suffix_of(path) not in (".csv", ".tsv"):
            report.nul_bytes.append(f"{printable(path.name)}: in {len(rows):,} rows, the first is number {rows[0]}")


def _lines(path: Path, report: ReadingReport, encoding: str | None) -> Iterator[str]:
    """Yields lines, long ones in parts, none of which ends in the middle of a mark."""
    with open_text(path, report, encoding) as file:
        while part := file.readline(PIECE_CHARACTERS):
            while part[-1] != "\n" and part.endswith(CUT_MARKS) and (more := file.readline(len(SEPARATOR))):
                part += more
            yield part


def split_documents(lines: Iterable[str], found_inside: Callable[[int], None] = int) -> Iterator[Iterator[str]]:
    """Yields the lines of each document of a text; each document has to be read before the next is asked for.

    `<|endoftext|>` separates documents at the edge of a line. In the middle of one it is text about it, or a mistake.

    Args:
        lines: each with its end; long ones in several parts.
        found_inside: called with the number of each line that has the mark in the middle.
    """
    document, line_number = 0, 1

    def numbered() -> Iterator[tuple[int, str]]:
        nonlocal document, line_number
        is_beginning = True
        for line in lines:
            if "oftext|>" in line:
                before = MARKS_BEFORE.match(line) if is_beginning else None
                start = before.end() if before else 0
                behind = MARKS_BEHIND.search(line, start)
                document += bool(before)
                text = line[start : behind.start() if behind else None]
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


def cut_lines(lines: Iterable[str], into_paragraphs: bool) -> Iterator[Iterator[str]]:
    """Yields each line of a text that is not blank, or with `into_paragraphs` each run of such lines, as a document.

    Args:
        lines: each with its end; long ones in several parts.
        into_paragraphs: whether only blank lines separate documents.
    """
    document, is_beginning = 0, True

    def numbered() -> Iterator[tuple[int, str]]:
        nonlocal document, is_beginning
        for part in lines:
            is_blank = is_beginning and part.isspace()
            document += is_beginning and (is_blank or not into_paragraphs)
            is_beginning = part.endswith("\n")
            if not is_blank:
                yield document, part

    for _, numbers in itertools.groupby(numbered(), key=operator.itemgetter(0)):
        yield (part for _, part in numbers)
