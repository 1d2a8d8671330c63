"""What Project Gutenberg puts around a book: recognised, and removed."""

import itertools
import re
from collections.abc import Iterator

from smallm_hf.data.cleaning.edits import Edit

BLOCK = re.compile(r"[^\n]+(?:\n[^\n]+)*")  # a paragraph: lines between blank ones
COLUMNS = re.compile(r"\S {4,}\S")  # of a table
FRONT_CHARACTERS = 12_000  # of a book, in which what precedes its text stands
PROJECT = r"PROJECT\s+GUTENBERG"
TITLE = r"(?:(?:(?!\n\n)[^*]){0,300}?\*{2,}[^\n]*|[^\n]*)"
FIELD = re.compile(r"^(?:Title|Author|Translator|Editor|Illustrator|Language):[ \t]*\S", re.MULTILINE | re.IGNORECASE)
FIELD_OF_FILE = re.compile(
    r"(?im)^(?:Release Date|Posting Date|Date first posted|Last Updated|Character set encoding|e-?Book No\.?):[ \t]*\S"
)
FIELDS_CHARACTERS = 2_000  # at the beginning, where both are
OPENING = re.compile(  # the first line but for fields or the title; other houses give books out in the same manner
    rf"(?im)\s*(?:{FIELD.pattern}[^\n]*\n\s*){{0,9}}(?:(?P<title>[^\n]{{1,80}})\n\s+(?=[^\n]*(?P=title)))?"
    rf"\**\s*(?:This is )?(?:(?:The |A )?{PROJECT}(?:['’]s?\b| "
    r"(?:(?:of )?(?:Australia|Canada) )?(?:e-?books?|e-?texts?|edition|works?|files?|version)\b)|"
    r"A Distributed Proofreaders Canada e-?book\b)"
)
TERMS = re.compile(  # of use, in the head of nearly every file
    r"(?im)^(?:This e-?(?:book|text) is (?:for the use of anyone|made available at no cost)|"
    r"\**Copyright laws are changing all over the world)"
)
START = re.compile(rf"(?im)^[ \t]*\*{{2,}}[ \t]*START OF (?:THE|THIS) {PROJECT}{TITLE}")
END_OF_BOOK = re.compile(
    r"^[^\w\n]*(?=[efsl])(?:End|Ende|Fin|Fine|Fim|Einde|Slut|Loppu)\b[^\n]{0,40}\bPro[\wéê]{3,6}\s+Gutenberg",
    re.MULTILINE | re.IGNORECASE,
)
END = re.compile(
    rf"(?im){END_OF_BOOK.pattern}|^[^\w\n]*(?:START\W*THE SMALL PRINT|START: FULL LICENSE|This file should be named)"
)
SMALL_PRINT_END = re.compile(r"(?im)^[^\n]*\*END\W*THE SMALL PRINT[^\n]*")
SMALL_PRINT = re.compile(r"(?ims)^[^\w\n]*SMALL PRINT!.*\bSMALL PRINT\b[^\n]*")
BOILERPLATE = re.compile(
    r"(?i)Gutenberg|\be-?texts?\b|\be-?books?\b|\bdonations?\b|public domain|small print|pgdp\.net|"
    r"Distributed Proofread|fadedpage|under copyright|copyright laws|Date first posted"
)


def is_gutenberg(text: str) -> bool:
    """Returns whether a text is a file of Project Gutenberg, by the marks around its books.

    A text that names, quotes or tells of one is not: a file begins with the line that names it or with the fields of
    its head, and has another mark where that belongs; or it begins with the start mark itself.
    """
    text = text.lstrip()
    if START.match(text):
        return True
    head = text[:FIELDS_CHARACTERS]
    start = START.search(text, 0, FRONT_CHARACTERS) or SMALL_PRINT_END.search(text, 0, len(text) // 2)
    has_fields = bool(FIELD.search(head))
    if OPENING.match(text):
        has_head = TERMS.search(head) or (has_fields and FIELD_OF_FILE.search(head))
        return bool(start or has_head or (has_fields and END.search(text)))
    return bool(FIELD.match(text) and start and END.search(text, start.end()))


def header_and_footer(text: str) -> Iterator[Edit]:
    """Removes Project Gutenberg's header, licence and footer, by the marks of any time, or by their words."""
    begin = 0
    for body in _bodies(text):
        if body.start > begin:
            yield begin, body.start, ""
        begin = body.stop
    if begin < len(text):
        yield begin, len(text), ""


def _bodies(text: str) -> Iterator[range]:
    """Yields where the text of the book is, or of each book where several files follow one another."""
    starts = [match.end() for match in START.finditer(text)]
    if not starts:
        ends = [match.start() for match in END_OF_BOOK.finditer(text)]
        stop = ends[-1] if ends else len(text)
        small_print = SMALL_PRINT_END.search(text, 0, stop if ends else len(text) // 2)
        start = small_print.end() if small_print else 0
        starts = [_behind_boilerplate(text, start, stop) if small_print or OPENING.match(text) else 0]
    begin = 0
    for start, following in itertools.zip_longest(starts, starts[1:], fillvalue=len(text)):
        if start < begin:
            continue
        stop = _end_of_book(text, start, following)
        if small_print := SMALL_PRINT_END.search(text, start, following):  # at the beginning, or at the end?
            behind = _end_of_book(text, small_print.end(), following)
            if behind - small_print.end() > stop - start:
                start, stop = small_print.end(), behind
        if small_print := SMALL_PRINT.search(text, start, min(stop, start + FRONT_CHARACTERS)):
            start = small_print.end()
        yield range(start, stop)
        begin = stop


def _end_of_book(text: str, start: int, stop: int) -> int:
    end = END.search(text, start, stop)
    return end.start() if end else stop


def _behind_boilerplate(text: str, start: int, stop: int) -> int:
    """Position after the last of the paragraphs about the file that follow closely on one another."""
    last = start
    for block in BLOCK.finditer(text, start, stop):
        if block.start() > last + FRONT_CHARACTERS // 4:
            break
        if BOILERPLATE.search(block[0]):
            last = block.end()
    return last
