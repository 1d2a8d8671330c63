"""What cleaning would do to a few documents, before and after, shown and written nowhere."""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from smallm_hf.base.errors import UserError
from smallm_hf.data.cleaning.cleaning import WHOLE_CHARACTERS, clean_text
from smallm_hf.data.cleaning.edits import CleanedText
from smallm_hf.data.cleaning.filters import why_dropped
from smallm_hf.data.cleaning.general_rules import find_repeated_lines
from smallm_hf.data.configuration import PYTHON_DOCS, Source
from smallm_hf.data.reading.documents import Document, has_splits
from smallm_hf.data.reading.files import local_files
from smallm_hf.data.request import DataRequest
from smallm_hf.data.selection.splitting import hash_fraction

READ_CHARACTERS = 1 << 26  # of a single file or a Hub data set, from which the documents are drawn
HEAD_CHARACTERS = 500  # of a document before and after
SPANS = 3  # of each rule that are shown, the longest
SPAN_CHARACTERS = 300
AROUND_CHARACTERS = 50
REMOVED, PUT = "red strike", "green"


def show_preview(request: DataRequest, number: int, console: Console) -> None:
    """Shows documents of all sources before and after cleaning, with what each rule removes from them.

    Args:
        request: the settings.
        number: of documents, spread evenly over the sources and over each of them.
        console: to write to.

    Raises:
        UserError: a source that cannot be read or holds no text.
    """
    sources, config = [one.source for one in request.inputs if one.place is not None], request.cleaning
    for place, source in enumerate(sources):
        share = number * (place + 1) // len(sources) - number * place // len(sources)
        repeated = frozenset()
        if share and config.enabled:
            repeated = find_repeated_lines(request.read(source), config.repeated_lines)
        for document in _choose(request, source, share) if share else ():
            console.rule(Text(document.id, "bold"))
            if len(sources) > 1:
                console.print(Text(f"of {source.source}", "dim"))
            if config.enabled:
                cleaned = clean_text(document.text, config, repeated, document.kind)
                _show(console, document.text, cleaned, why_dropped(cleaned.text, config))
            else:
                console.print("Cleaning is off: the text stays as it is.", style="italic")
                console.print(Text(document.text[:HEAD_CHARACTERS]))


# --- choosing --------------------------------------------------------------------------------------------------------


def _choose(request: DataRequest, source: Source, number: int) -> list[Document]:
    """Draws documents: the first ones of files from all over a folder, or any from the beginning of one."""
    is_local = not has_splits(source.source, source.columns) and source.source != PYTHON_DOCS
    files = local_files(source.source, source.columns) if is_local and not source.columns else []
    found = _of_files(request, source, files, number) if len(files) > 1 else []
    if len(found) < number:
        placed = enumerate(_beginning(document.joined for document in request.read(source)))
        drawn = heapq.nsmallest(number, placed, key=lambda pair: hash_fraction(pair[1].id))
        found = [document for _, document in sorted(drawn, key=lambda pair: pair[0])]
    if not found:
        raise UserError(f"data source {source.source} is empty: there is no text in it; give one that has some")
    return found


def _of_files(request: DataRequest, source: Source, files: list, number: int) -> list[Document]:
    found = []
    for part in range(number):  # in each of as many stretches of the folder the first file that gives a document
        for name, path in files[len(files) * part // number : len(files) * (part + 1) // number]:
            with suppress(UserError, StopIteration):  # a file that cannot be read is named when the text is prepared
                first = next(_beginning(request.read(replace(source, source=str(path)))))
                found.append(replace(first, id=name))
                break
    return found


def _beginning(documents: Iterable[Document]) -> Iterator[Document]:
    """Yields whole documents that have text, each as far as it is cleaned at once, from the first `READ_CHARACTERS`."""
    read = 0
    for _, pieces in itertools.groupby(documents, key=lambda document: document.id):
        held, characters = [], 0
        for piece in pieces:
            if characters < WHOLE_CHARACTERS:
                held.append(piece.text)
            characters += len(piece.text)
        if characters:
            yield replace(piece, text="".join(held))
        read += characters
        if read > READ_CHARACTERS:
            return


# --- showing ---------------------------------------------------------------------------------------------------------


def _show(console: Console, text: str, cleaned: CleanedText, why: tuple[str, str] | None) -> None:
    fewer = len(text.split()) - len(cleaned.text.split())
    console.print(
        f"{len(text):,} characters before, {len(cleaned.text):,} after; {len(text.split()):,} words, {fewer:,} fewer"
        f"{'; a book of Project Gutenberg' if cleaned.is_book else ''}",
        highlight=False,
    )
    if why or not cleaned.text:
        reason = f"{why[0]} ({why[1]})" if why else "nothing is left of it"
        console.print(Text(f"dropped: {reason}", "bold red"))
    heads = Table.grid(expand=True, padding=(0, 1))
    heads.add_row(
        *(
            Panel(Text(one[:HEAD_CHARACTERS] + "…" * (len(one) > HEAD_CHARACTERS)), title=title)
            for title, one in (("before", text), ("after", cleaned.text))
        )
    )
    console.print(heads)
    counts = Counter()
    for name, edits in cleaned.stages:
        counts[name] += len(edits)
    for name, count in counts.items():
        console.print(Text.assemble((name, "bold cyan"), f": {count:,} {'change' if count == 1 else 'changes'}"))
        spans = sorted(cleaned.spans(name), key=lambda span: (span.start - span.end, span.start))[:SPANS]
        for span in sorted(spans, key=lambda span: span.start):
            console.print(
                Text.assemble(
                    "  ",
                    _line(text[max(0, span.start - AROUND_CHARACTERS) : span.start]),
                    (f"[-{_line(_short(text[span.start : span.end]))}-]", REMOVED),
                    (f"{{+{_line(_short(span.new))}+}}" if span.new else "", PUT),
                    _line(text[span.end : span.end + AROUND_CHARACTERS]),
                )
            )


def _short(text: str) -> str:
    if len(text) <= SPAN_CHARACTERS:
        return text
    half = SPAN_CHARACTERS // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _line(text: str) -> str:
    return text.replace("\n", "⏎")
