"""Rules for files of Project Gutenberg: what was put around the text of a book is found and taken out.

Each is a pure function from a text to its edits, as those in `gutenberg_lists` and `gutenberg_pages`; `cleaning` puts
them in order.
"""

import itertools
import re
from collections.abc import Iterator

from smallm_hf.data.cleaning.edits import Edit

BLOCK = re.compile(r"[^\n]+(?:\n[^\n]+)*")  # lines between blank ones
PROJECT = r"PROJECT\s+GUTENBERG"
TITLE = r"(?:(?:(?!\n\n)[^*]){0,300}?\*{2,}[^\n]*|[^\n]*)"
FIELD = re.compile(r"^(?:Title|Author|Translator|Editor|Illustrator|Language):[ \t]*\S", re.MULTILINE | re.IGNORECASE)
FIELD_OF_FILE = re.compile(
    r"^(?:Release Date|Posting Date|Date first posted|Last Updated|Character set encoding|e-?Book No\.?):[ \t]*\S",
    re.MULTILINE | re.IGNORECASE,
)
FIELDS_CHARACTERS = 2_000  # at the beginning, where both are
OPENING = re.compile(  # the first line but for fields or the title; other houses give books out in the same manner
    rf"\s*(?:{FIELD.pattern}[^\n]*\n\s*){{0,9}}(?:(?P<title>[^\n]{{1,80}})\n\s+(?=[^\n]*(?P=title)))?"
    rf"\**\s*(?:This is )?(?:(?:The |A )?{PROJECT}(?:['’]s?\b| "
    r"(?:(?:of )?(?:Australia|Canada) )?(?:e-?books?|e-?texts?|edition|works?|files?|version)\b)|"
    r"A Distributed Proofreaders Canada e-?book\b)",
    re.MULTILINE | re.IGNORECASE,
)
TERMS = re.compile(  # of use, in the head of nearly every file
    r"^(?:This e-?(?:book|text) is (?:for the use of anyone|made available at no cost)|"
    r"\**Copyright laws are changing all over the world)",
    re.MULTILINE | re.IGNORECASE,
)
START = re.compile(rf"^[ \t]*\*{{2,}}[ \t]*START OF (?:THE|THIS) {PROJECT}{TITLE}", re.MULTILINE | re.IGNORECASE)
END_OF_BOOK = re.compile(
    r"^[^\w\n]*(?=[efsl])(?:End|Ende|Fin|Fine|Fim|Einde|Slut|Loppu)\b[^\n]{0,40}\bPro[\wéê]{3,6}\s+Gutenberg",
    re.MULTILINE | re.IGNORECASE,
)
END = re.compile(
    rf"{END_OF_BOOK.pattern}|^[^\w\n]*(?:START\W*THE SMALL PRINT|START: FULL LICENSE|This file should be named)",
    re.MULTILINE | re.IGNORECASE,
)
SMALL_PRINT_END = re.compile(r"^[^\n]*\*END\W*THE SMALL PRINT[^\n]*", re.MULTILINE | re.IGNORECASE)
SMALL_PRINT = re.compile(r"^[^\w\n]*SMALL PRINT!.*\bSMALL PRINT\b[^\n]*", re.MULTILINE | re.IGNORECASE | re.DOTALL)
BOILERPLATE = re.compile(
    r"Gutenberg|\be-?texts?\b|\be-?books?\b|\bdonations?\b|public domain|small print|pgdp\.net|"
    r"Distributed Proofread|fadedpage|under copyright|copyright laws|Date first posted",
    re.IGNORECASE,
)
MADE = (
    r"(?:Produced|Prepared|Created|Transcribed|Scanned|Typed|Keyed|Digiti[sz]ed|Proof(?:read|ed)|Converted|"
    r"HTML version) (?:and [\w-]+ )*(?:by|from)\b"
)
CREDIT = re.compile(
    rf"\W*This (?:e-?text|e-?book) was {MADE}|\W*E-?text (?:prepared|produced|created|scanned|typed|by)\b|"
    rf".*(?:{PROJECT}|Distributed Proofread|pgdp\.net|\be-?texts?\b|gutenberg\.(?:org|net)|"
    r"images of the original (?:pages|book) are available)",
    re.IGNORECASE | re.DOTALL,
)
MAKERS = re.compile(rf"\W*(?:This (?:file|book) was )?{MADE}(?P<names>.*)", re.IGNORECASE | re.DOTALL)
SMALL_WORD = re.compile(
    r"(?<![\w@./-])(?!(?:an?|and|at|by|d[aeu]|den|der|for|from|in|of|the|v[ao]n|with)\b)[^\W\d_A-Z]"
)
ON_MAKING = re.compile(
    r"\b(?:\d{4}\b[^.]*\bedition|e-?mail|proofread\w*|html|https?|OCR|(?:scanned|page) images|"
    r"images (?:generously )?made available)\b|@",
    re.IGNORECASE,
)
NOTE_ABROAD = (  # the same in the languages of the neighbours: `Anmerkungen zur Transkription`, `Nota del transcriptor`
    r"(?:(?:An|Be)m(?:erk|ærk|ärk)ning\w*|Anmerkung\w*|Hinweise?|Not(?:er?|en|as?|es)|Noot|Opmerking(?:en)?|Aantekening(?:en)?|"
    r"Huomautu\w*) (?:(?:zur|sur|d[aeiou]|du|des|del|della|van|till?|om) )?(?:l[ae] |l['’]|de |den |het )?"
    r"(?:tran?s[ck]ri|bewerk|afskriv|avskri|overzet)\w+|"
    r"(?:Afskriver|Avskriver|Bewerker|Transkri)\w* ?(?:bem|an[mt]|no[ot])\w+"
)
NOTE_OF_TRANSCRIBER = re.compile(
    r"\W*(?:Original )?(?:Transcriber|Preparer|Proofreader|Digitizer|E-?text editor)s?['’]?s?['’]?\s+(?:\w+ )?"
    r"(?:(?:End)?notes?|amendments|corrections|changes|errata|remarks)\b|"
    r"\W*(?:Typographical|Typos|Spelling|Printer['’]?s) errors?\b(?=\W*$|[^\n]*:\W*$|.*\b(?:transcriber|e-?text)\b)|"
    r"\W*(?:Notes?|Errata|Corrections|Changes|Amendments)\W+(?:\w+ ){0,3}(?:from|by|of) (?:the )?transcriber|"
    rf"\W*{NOTE_ABROAD}|There are several editions of this e-?(?:book|text)\b.*",
    re.IGNORECASE | re.DOTALL,
)
ON_THE_FILE = re.compile(
    r"\b(?:transcri\w+|typographical|e-?text|html|ascii|utf-?8|unicode|italics?|underscores?|hyphenation|misspell\w*)\b|"
    r"\b(?:spelling|punctuation)\b.*\b(?:original|retained|corrected|kept)\b",
    re.IGNORECASE | re.DOTALL,
)
CORRECTION = re.compile(
    r"\b(?:pages?|line|changed|corrected|original|printed|typo|reads?|replaced|inserted|added|removed|missing)\b",
    re.IGNORECASE,
)
ERRORS = re.compile(
    r"\b(?:errors?|corrections?|misprints?|typos?|spellings?|punctuation|hyphenation|inconsisten\w+)\b", re.IGNORECASE
)
# What an entry of a list of corrections has, and a sentence of a story has not: a place, or two readings.
ENTRY = re.compile(
    r"^\W*(?:pages?|pp?\.|pg|lines?|chapter|vol\w*|part) ?[\divxlc]+\b.*|.*(?:=>|->|→).*|"
    r".*[\"“”'‘’]\W*\b(?:changed|corrected|amended|replaced|altered|read|should (?:be|read))\b.*",
    re.IGNORECASE,
)
CHANGES = re.compile(  # a heading or a sentence that may begin a list of errors
    r"\W*(?:(?P<heading>(?:list of )?(?:errata|corrigenda|corrections|changes|misprints)\W*(?:\n|$))|"
    r"(?:the following|these|minor|obvious|inconsistent|variant|archaic|spelling|punctuation|hyphenation|"
    r"im folgenden)\b.{0,300}\b(?:corrected|changed?|made|retained|preserved|kept|amended|noted|printed|unchanged|"
    r"angeführt)\b)",
    re.IGNORECASE | re.DOTALL,
)
FRONT_CHARACTERS, BACK_CHARACTERS = 12_000, 6_000  # where credits and transcribers' notes stand
GAP = re.compile(r"(?<=[^\n]\n\n)\n{2}")
NOTE_CHARACTERS = 4_000  # between the heading of a note and the gap behind it


def is_gutenberg(text: str) -> bool:
    """Tells whether a text is a file of Project Gutenberg, by the marks that stand around its books.

    One that is named, quoted or told of is none: a file begins with the line that names it or with the fields of its
    head, and has another mark where that belongs; or it begins with the mark of the beginning itself.
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
    """Removes Project Gutenberg's header, licence and footer, by their marks of all times, or by their words."""
    begin = 0
    for body in _bodies(text):
        if body.start > begin:
            yield begin, body.start, ""
        begin = body.stop
    if begin < len(text):
        yield begin, len(text), ""


def _bodies(text: str) -> Iterator[range]:
    """Yields where the text of the book is; several times if several files stand one after the other."""
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
    """Position behind the last of the paragraphs about the file that follow closely on one another."""
    last = start
    for block in BLOCK.finditer(text, start, stop):
        if block.start() > last + FRONT_CHARACTERS // 4:
            break
        if BOILERPLATE.search(block[0]):
            last = block.end()
    return last


def credits_and_notes(text: str) -> Iterator[Edit]:
    """Removes who produced the file, and transcribers' notes, from the beginning and the end of the book.

    A paragraph about Project Gutenberg goes wherever it stands.
    """
    in_note = False
    gap_before = note_stop = 0
    back = _beginning_of_back(text)
    for block in BLOCK.finditer(text):
        gap, gap_before = block.start() - gap_before, block.end()
        in_front, at_back = block.start() < FRONT_CHARACTERS, block.end() > back
        if not in_front and not at_back:
            in_note = False
            if ("Gutenberg" in block[0] or "GUTENBERG" in block[0]) and CREDIT.match(block[0]):
                yield *block.span(), ""
            continue
        if note := NOTE_OF_TRANSCRIBER.match(block[0]) or _list_of_changes(text, block, at_back):
            is_heading = block[0].rstrip().endswith(":") or not re.search(r"\w", block[0][note.end() :])
            in_note = "at back" if at_back and not in_front else "heading" if is_heading else "note"
            if in_note == "heading" and (gap_behind := GAP.search(text, block.end(), block.end() + NOTE_CHARACTERS)):
                note_stop = gap_behind.start()
            yield *block.span(), ""
        elif (
            in_note in ("at back", "heading")
            or block.start() < note_stop
            or (in_note == "note" and gap == 2 and (block[0][0].isspace() or ON_THE_FILE.search(block[0])))
        ):
            yield *block.span(), ""
            in_note = "at back" if in_note == "at back" else "note"
        else:
            in_note = False
            if _is_credit(block[0]):
                yield *block.span(), ""


def _is_credit(block: str) -> bool:
    """It speaks of the file; or it says by whom that was made, in names alone, as a sentence may begin so, too."""
    makers = MAKERS.match(block)
    return bool(CREDIT.match(block) or (makers and (not SMALL_WORD.search(makers["names"]) or ON_MAKING.search(block))))


def _list_of_changes(text: str, block: re.Match, at_back: bool) -> re.Match | None:
    """A heading of errata, or a sentence about them at the back, if what follows is a list or speaks of the file."""
    match = CHANGES.match(block[0])
    if not match or not (at_back or match.end() >= len(block[0])):
        return None
    rest = text[block.end() : block.end() + NOTE_CHARACTERS].strip()
    entries = [bool(ENTRY.fullmatch(line)) for line in rest.split("\n") if line.strip()]
    if entries[:1] == [True] and sum(entries) * 2 > len(entries):
        return match
    is_on_errors = match["heading"] or ERRORS.search(block[0])
    said = block[0] + rest.split("\n\n")[0]
    return match if at_back and is_on_errors and ON_THE_FILE.search(said) else None


def _beginning_of_back(text: str) -> int:
    """Where the back of the book begins: with its last characters, or before them with a long list of corrections."""
    last = len(text) - BACK_CHARACTERS
    for block in BLOCK.finditer(text, len(text) * 9 // 10, max(0, last)):
        is_note = NOTE_OF_TRANSCRIBER.match(block[0])
        if is_note and len(CORRECTION.findall(text, block.end())) * 2 > text.count("\n", block.end()):
            return block.start()
    return last
