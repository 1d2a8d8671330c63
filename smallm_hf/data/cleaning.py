"""Cleaning: what is no text of the document goes, what is broken is mended, and each removal can be shown.

A rule is a pure function from a text to its edits, `(start, end, new)`: nothing else is changed. `clean_text` applies
one rule after the other and keeps the edits, so that every removed word can be traced to a rule and to its place in
the raw text. General rules suit any text. Those for books run only on what is recognised as a Project Gutenberg file
(or as `cleaning.gutenberg` says).
"""

import html
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import ftfy
import ftfy.badness
import numpy as np

from smallm_hf.data.documents import Document, cut_pieces
from smallm_hf.errors import UserError

Edit = tuple[int, int, str]  # what stands from start to end becomes the string
Rule = Callable[[str], Iterable[Edit]]

WHOLE_CHARACTERS = 1 << 23  # a longer document is cleaned in parts of this size: no book is, and memory stays flat
EXAMPLES = 3  # shown in the report for each rule and reason
EXAMPLE_CHARACTERS = 160
EDGE_LINES = 20  # at either end of a document, where lines repeated over documents are looked for
SAMPLE_DOCUMENTS, SAMPLE_CHARACTERS = 5000, 1 << 26  # looked at for them, whichever is reached first
FEWEST_DOCUMENTS = 10  # that a repeated line stands in
REPEATED_WORDS = 3  # of the shortest line that may count as repeated


@dataclass(frozen=True)
class CleaningConfig:
    """What is cleaned, and which documents are left out.

    Args:
        enabled: off, documents are tokenised as they were read.
        gutenberg: whether the rules for Project Gutenberg's books run: on files recognised as such, on all, on none.
        html: whether entities (`&amp;`) are decoded and tags left over from web pages removed; code between backticks
            is not touched.
        repeated_lines: share of the documents, at least 10, in whose first or last 20 lines a line has to stand to be
            removed as boilerplate; 0 keeps all.
        min_words: a document of fewer is dropped.
        max_words: a document of more is dropped; null keeps all.
        max_symbols: largest share of characters that are ASCII punctuation.
        max_digits: largest share of characters that are ASCII digits.
        repetition: whether documents of 50 words or more are dropped by the repetition rules of Gopher (Rae et al.
            2021, table A1): duplicated lines and paragraphs, and n-grams said over and over. Made for pages of the web;
            reference works and children's stories repeat themselves for good reasons.
    """

    enabled: bool = True
    gutenberg: Literal["auto", "always", "never"] = "auto"
    html: bool = True
    repeated_lines: float = 0.5
    min_words: int = 0
    max_words: int | None = None
    max_symbols: float = 0.5
    max_digits: float = 0.5
    repetition: bool = False


@dataclass(frozen=True)
class Span:
    """A stretch of the raw text that a rule removed or changed, and what stands there now."""

    rule: str
    start: int
    end: int
    new: str


@dataclass(frozen=True)
class Cleaned:
    """A cleaned text and the edits that led to it, rule by rule, each rule's in positions of the text it was given."""

    text: str
    stages: tuple[tuple[str, list[Edit]], ...]
    is_book: bool

    def spans(self, rule: str | None = None) -> Iterator[Span]:
        """Yields the edits, or those of one rule, in positions of the raw text, rule by rule."""
        back: list[Callable[[int, bool], int]] = []
        for name, edits in self.stages:
            for start, end, new in edits if rule in (None, name) else ():
                for step in reversed(back):
                    start, end = step(start, True), step(end, False)
                yield Span(name, start, max(start, end), new)
            back.append(_back(edits))


def _back(edits: list[Edit]) -> Callable[[int, bool], int]:
    """Returns the way back through one rule: from a position behind it to the position before it."""
    starts, ends = np.array([edit[:2] for edit in edits]).T
    grown = np.cumsum([len(new) - (end - start) for start, end, new in edits])
    new_ends = ends + grown
    new_starts = new_ends - [len(new) for _, _, new in edits]

    def step(position: int, is_start: bool) -> int:
        index = int(np.searchsorted(new_starts, position, "right" if is_start else "left")) - 1
        if index < 0:
            return position
        if position < new_ends[index]:  # inside of what the rule put in
            return int(starts[index] if is_start else ends[index])
        return int(position - grown[index])

    return step


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """Returns the text with edits, which are in order and do not overlap, carried out."""
    parts, position = [], 0
    for start, end, new in edits:
        parts += [text[position:start], new]
        position = end
    return "".join(parts) + text[position:]


# --- rules for any text ----------------------------------------------------------------------------------------------

LINE_ENDS = re.compile(r"\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
INVISIBLE = re.compile(r"[\0-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ufff9-\ufffc]+|[\xa0\u202f]")
# A letter of two bytes or more, decoded as single ones, is a run of them; ftfy's own test costs ten times as much.
SUSPECT = re.compile(r"[^\0-\x7f]{2}|[ÃÂ] ")
LOST_QUOTE = re.compile(r"â€(?=[\sA-Za-z,.!?]|\Z)")  # the last byte of ” is no character of Windows-1252: many drop it
NON_ASCII = re.compile(r"[^\0-\x7f]")
MENDING = ftfy.TextFixerConfig(uncurl_quotes=False)
TRAILING_SPACES = re.compile(r"(?<![ \t])[ \t]++(?=\n|\Z)")
BLANK_LINES = re.compile(r"\n{3,}")
CODE = r"(?P<code>```.*?(?:```|\Z)|`[^`\n]+`)"
ENTITY = r"(?P<entity>&(?:#\d{2,6}|#x[0-9a-fA-F]{2,5}|[a-zA-Z][a-zA-Z0-9]{1,15});|\#39;|\bquot;)"
BLOCK_TAGS = "p|br|hr|div|h[1-6]|li|ul|ol|tr|table|blockquote"
TAG_NAMES = f"{BLOCK_TAGS}|b|i|u|em|strong|span|a|font|img|td|th|tbody|small|sup|sub|center|strike"
ATTRIBUTE = r"""\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|&quot;[^<>]{0,300}?&quot;|[^\s<>&"']+)"""
TAG = rf"(?P<tag>(?:<|&lt;)/?(?P<name>(?i:{TAG_NAMES}))(?:{ATTRIBUTE})*\s*/?(?:>|&gt;))"
ENTITIES = re.compile(r"&#?\w+;")
HTML = re.compile(f"{CODE}|{TAG}|{ENTITY}", re.DOTALL)


def line_ends(text: str) -> Iterator[Edit]:
    """Gives all lines the one end that is a newline."""
    return ((*match.span(), "\n") for match in LINE_ENDS.finditer(text))


def invisible_characters(text: str) -> Iterator[Edit]:
    """Removes control characters, soft hyphens, byte order marks and spaces of no width; no-break spaces become spaces.

    Joiners stay: scripts and emoji are written with them.
    """
    return ((*match.span(), " " if match[0] in "\xa0\u202f" else "") for match in INVISIBLE.finditer(text))


def broken_unicode(text: str) -> Iterator[Edit]:
    """Mends text that was decoded by the wrong encoding (mojibake) and composes letters with their accents (NFC).

    Curly quotes, widths and ligatures are left as they are.
    """
    if text.isascii():
        return
    is_normal, end = unicodedata.is_normalized("NFC", text), -1
    for match in (SUSPECT if is_normal else NON_ASCII).finditer(text):
        if match.start() > end:
            start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.start()) % (len(text) + 1)
            line = text[start:end]
            mended = LOST_QUOTE.sub("â€\x9d", line)
            mended = ftfy.fix_encoding(mended, MENDING) if ftfy.badness.is_bad(mended) else line
            mended = unicodedata.normalize("NFC", mended)
            if mended != line:
                yield start, end, mended


def html_remains(text: str) -> Iterator[Edit]:
    """Decodes entities and removes the tags of web pages, also half-decoded ones; not in code between backticks."""
    if not ("<" in text or "#39;" in text or "quot;" in text or ENTITIES.search(text)):
        return
    for match in HTML.finditer(text):
        if match["tag"]:
            yield *match.span(), "\n" if re.fullmatch(BLOCK_TAGS, match["name"], re.IGNORECASE) else ""
        elif match["entity"]:
            lost = match[0][0] != "&"  # some pipelines put a space in the place of the ampersand
            new = html.unescape(f"&{match[0]}" if lost else match[0])
            start = match.start() - (lost and text[match.start() - 1 : match.start()] == " ")
            if new[-1] != ";":
                yield start, match.end(), " " if new == "\xa0" else new


def trailing_spaces(text: str) -> Iterator[Edit]:
    """Removes blanks at the end of lines."""
    if " \n" in text or "\t\n" in text or text[-1:] in (" ", "\t"):
        yield from ((*match.span(), "") for match in TRAILING_SPACES.finditer(text))


def blank_lines(text: str) -> Iterator[Edit]:
    """Leaves one blank line where there are several."""
    return ((*match.span(), "\n\n") for match in BLANK_LINES.finditer(text))


def repeated_lines(text: str, known: frozenset[str]) -> Iterator[Edit]:
    """Removes the `known` lines from the first and the last lines of a document; see `find_repeated_lines`."""
    for start, line in _edge_lines(text) if known else ():
        if line.strip() in known:
            yield start, start + len(line), ""


def _edge_lines(text: str) -> list[tuple[int, str]]:
    """Returns (position, line with its end) of the first and the last lines."""
    head, position = [], 0
    while len(head) < EDGE_LINES and position < len(text):
        end = text.find("\n", position) + 1 or len(text)
        head.append((position, text[position:end]))
        position = end
    tail, end = [], len(text)
    while len(tail) < EDGE_LINES and end > position:
        start = text.rfind("\n", position, end - 1) + 1 or position
        tail.append((start, text[start:end]))
        end = start
    return head + tail[::-1]


def find_repeated_lines(documents: Iterable[Document], share: float) -> frozenset[str]:
    """Finds the lines that stand at the head or the foot of many of the first 5,000 documents.

    Args:
        documents: as they are read; those in several pieces are passed over.
        share: of the documents that a line has to stand in, and of at least 10.
    """
    if not share:
        return frozenset()
    counts, number, characters = Counter(), 0, 0
    for document in documents:
        characters += len(document.text)
        if number >= SAMPLE_DOCUMENTS or characters > SAMPLE_CHARACTERS:
            break
        if document.piece or not document.is_last:
            continue
        number += 1
        lines = {line.strip() for _, line in _edge_lines(document.text)}
        counts.update(line for line in lines if len(line.split()) >= REPEATED_WORDS)
    fewest = max(FEWEST_DOCUMENTS, share * number)
    return frozenset(line for line, count in counts.items() if count >= fewest)


# --- rules for books of Project Gutenberg ----------------------------------------------------------------------------

BLOCK = re.compile(r"[^\n]+(?:\n[^\n]+)*")  # lines between blank ones
PROJECT = r"PROJECT\s+GUTENBERG"
TITLE = r"(?:(?:(?!\n\n)[^*]){0,300}?\*{2,}[^\n]*|[^\n]*)"
START = re.compile(rf"^[ \t]*\*{{2,}}[ \t]*START OF (?:THE|THIS) {PROJECT}{TITLE}", re.MULTILINE | re.IGNORECASE)
END_OF_BOOK = re.compile(
    r"^[^\w\n]*(?:End|Ende|Fin|Fine|Einde)\b[^\n]{0,40}Proje[ck]t\s+Gutenberg", re.MULTILINE | re.IGNORECASE
)
END = re.compile(
    rf"{END_OF_BOOK.pattern}|^[^\w\n]*(?:START\W*THE SMALL PRINT|START: FULL LICENSE|This file should be named)",
    re.MULTILINE | re.IGNORECASE,
)
SMALL_PRINT_END = re.compile(r"^[^\n]*\*END\W*THE SMALL PRINT[^\n]*", re.MULTILINE | re.IGNORECASE)
BOILERPLATE = re.compile(
    r"Gutenberg|\be-?texts?\b|\be-?books?\b|\bdonations?\b|public domain|small print|pgdp\.net|Distributed Proofread",
    re.IGNORECASE,
)
CREDIT = re.compile(
    rf"\W*(?:This (?:e-?text|e-?book|file|book) was )?(?:(?:Produced|Prepared|Created|Transcribed|Scanned|Typed|Keyed|"
    r"Digiti[sz]ed|Proof(?:read|ed)|Converted|Etext scanned|HTML version) (?:and [\w-]+ )*(?:by|from)\b|"
    rf"E-?text (?:prepared|produced|created|scanned|typed|by)\b)|.*(?:{PROJECT}|Distributed Proofread|pgdp\.net|"
    r"\be-?texts?\b|gutenberg\.(?:org|net))",
    re.IGNORECASE | re.DOTALL,
)
NOTE_OF_TRANSCRIBER = re.compile(
    r"\W*(?:Original )?(?:Transcriber|Preparer|Proofreader|Digitizer|E-?text editor)s?['’]?s?['’]? (?:End)?notes?\b|"
    r"\W*(?:Typographical|Typos|Spelling|Printer['’]?s) errors?\b|\W*Notes? (?:from|by|of) the transcriber",
    re.IGNORECASE,
)
SIGNS = ("Gutenberg", "GUTENBERG", "Produced by", "E-text", "Etext", "SMALL PRINT", "pgdp.net", "[Illustration")
PROJECT_NEAR = re.compile(
    rf"\A.{{0,3000}}?{PROJECT}|^\W*(?:Produced by|E-?text prepared by) [A-Z]|pgdp\.net|^\W*\[Illustration\b",
    re.MULTILINE | re.IGNORECASE | re.DOTALL,
)
FRONT_CHARACTERS, BACK_CHARACTERS = 12_000, 6_000  # where credits and transcribers' notes stand
BRACKETS = r"(?:[^\[\]]|\[[^\[\]]{0,1000}\]){0,4000}+\]"  # a bracket that is never closed is no tag
TAGGED = "Illustration|Frontispiece|Picture|Image|Decoration|Drawing|Map|Music|Blank page"
TAGS = re.compile(rf"\[\W*(?:{TAGGED}|(?:Transcriber|Editor)['’]?s['’]? notes?)\b{BRACKETS}", re.IGNORECASE)
CONTENTS = re.compile(
    r"^[ \t]*[_=]*(?:table of |list of |the )?(?:contents|(?:full[- ]page )?illustrations)[.:_=]*[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
CONTENTS_CHARACTERS = 60_000
NUMERAL = r"[ivxlc]+|\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten|first|second|third|fourth|fifth"
NUMBERED = re.compile(
    rf"\W*(?:(?P<label>chapter|chap|book|part|stave|letter|volume|vol|act|scene|canto|section)\b\W*)?"
    rf"(?:(?P<number>{NUMERAL})(?![\w'’])\W*)?(?P<rest>.*)",
    re.IGNORECASE,
)
PAGE_AT_END = re.compile(r"[ .\t]{2,}(?:\d{1,4}|[ivxlc]{1,7})\.?[ \t]*$")
COLUMN_NAMES = re.compile(r"\W*(?:(?:chapter|chap|page|stave|no)\W*)+", re.IGNORECASE)
FOOTNOTE = re.compile(rf"\[Footnotes?\b{BRACKETS}", re.IGNORECASE)
FOOTNOTES_HEADING = re.compile(
    r"^[ \t]*(?:FOOT|END)?NOTES?[.:]*[ \t]*\n+(?=\s*[\[{(]?1\b)", re.MULTILINE | re.IGNORECASE
)
LABELLED = re.compile(
    r"[ \t]*(?P<label>[\[{(](?:\d{1,3}|[A-Z]|[*†‡]+)[\]})]|\d{1,3}[.)]?|\*[ ]?\(\d\)|[*†‡]{1,3})[ \t]*(?=\S)"
)
REFERENCE = re.compile(r"[\[{](?:\d{1,3}|[A-Z]|[*†‡]+)[\]}]|\((?:\d{1,3}|[*†‡]+)\)|\*[ ]?\(\d\)|[*†‡]{1,3}(?![\w*†‡])")
NOTE_DISTANCE = 40_000  # characters from a reference to a note at the end of its chapter
PAGE = re.compile(r"[\[{(][ \t]*(?:pg?|page)\b\.?[ \t]*(?:\d{1,4}|[ivxlc]+)[ \t]*[\]})](?:\d{1,4})?", re.IGNORECASE)
PAGE_LINE = re.compile(r"\n\s{0,20}[-\[]?[ \t]{0,80}(\d{1,4})[ \t]{0,20}[-\]]?\n\s{0,20}")
FEWEST_PAGES = 10
INTERRUPTED = 0.3  # share of the page numbers that stand inside a sentence
DECORATION = re.compile(r"^[ \t]*[*\-_=~#.·•—–+|^:][*\-_=~#.·•—–+|^: \t]*$", re.MULTILINE)
UNDERSCORE = re.compile(r"_(?<!__)(?![_{])")
BOLD = re.compile(r"=(?<![\w=]=)(?=[^\s=])(?:(?!\n\n)[^=])+?(?<=\S)=(?![\w=])")
HYPHENATED = re.compile(r"-(?<!--)\n[ \t]*([^\W\d_]+)")
LAST_WORD = re.compile(r"[^\W\d_][\w-]*\Z")
INNER_SPACES = re.compile(r"(?:  |\t)[ \t]*(?=\S)")
LONGEST_WRAP = 120  # a text of longer lines is not wrapped
FILLED = 0.85  # of the usual width is reached by a line with the word after it if the line ended for lack of room
SHORT = 0.6  # of the width: such a line ended for another reason
VERSE_CAPITALS = 0.7  # share of lines that begin with a capital letter in verse


def is_gutenberg(text: str) -> bool:
    """Tells whether a text is a file of Project Gutenberg, with its markers or with what is left of them."""
    if not any(sign in text for sign in SIGNS):
        return False
    head, tail = text[:FRONT_CHARACTERS], text[-FRONT_CHARACTERS:]
    return bool(PROJECT_NEAR.search(head) or END.search(tail) or SMALL_PRINT_END.search(text) or START.search(text))


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
        is_marked = small_print or re.search(PROJECT, text[: FRONT_CHARACTERS // 4], re.IGNORECASE)
        starts = [_behind_boilerplate(text, start, stop) if is_marked else 0]
    begin = 0
    for start, following in itertools.zip_longest(starts, starts[1:], fillvalue=len(text)):
        if start < begin:
            continue
        stop = _end_of_book(text, start, following)
        if small_print := SMALL_PRINT_END.search(text, start, following):  # at the beginning, or at the end?
            behind = _end_of_book(text, small_print.end(), following)
            if behind - small_print.end() > stop - start:
                start, stop = small_print.end(), behind
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
    gap_before = 0
    for block in BLOCK.finditer(text):
        gap, gap_before = block.start() - gap_before, block.end()
        in_front, at_back = block.start() < FRONT_CHARACTERS, block.end() > len(text) - BACK_CHARACTERS
        if not in_front and not at_back:
            in_note = False
            if ("Gutenberg" in block[0] or "GUTENBERG" in block[0]) and CREDIT.match(block[0]):
                yield *block.span(), ""
            continue
        if NOTE_OF_TRANSCRIBER.match(block[0]):
            in_note = "at back" if at_back and not in_front else "heading" if len(block[0]) < 60 else "note"
            yield *block.span(), ""
        elif in_note == "at back" or in_note == "heading" or (in_note == "note" and gap == 2 and block[0][0].isspace()):
            yield *block.span(), ""
            in_note = "at back" if in_note == "at back" else "note"
        else:
            in_note = False
            if CREDIT.match(block[0]):
                yield *block.span(), ""


def bracketed_tags(text: str) -> Iterator[Edit]:
    """Removes `[Illustration ...]`, `[Transcriber's note ...]` and their like, over lines and with brackets inside."""
    return ((*match.span(), "") for match in TAGS.finditer(text))


def tables_of_contents(text: str) -> Iterator[Edit]:
    """Removes tables of contents and lists of illustrations: from their heading to where the book begins.

    The book begins where the first entry, or after a gap another one, is the heading of a paragraph; or at the first
    paragraph that is no entry, and the headings above it. A line of the title page that is said again belongs to it.
    """
    position, known = 0, []
    for heading in CONTENTS.finditer(text):
        if heading.start() >= position and (end := _end_of_contents(text, heading.end(), known)):
            front = text[max(0, heading.start() - FRONT_CHARACTERS) : heading.start()]
            title_page = {line.strip().lower() for line in front.split("\n") if line.strip()}
            blocks = BLOCK.finditer(text, heading.end(), end)
            again = [block for block in blocks if block[0].strip().lower() in title_page]
            end = again[-1].start() if again and end - again[-1].end() < 200 else end
            yield heading.start(), end, ""
            position = end


def _end_of_contents(text: str, start: int, known: list[tuple[str, str, str]]) -> int | None:
    """Where the table that begins at `start` ends; its entries are put to those `known` from tables before it."""
    first, gaps, previous = None, [], start
    for block in BLOCK.finditer(text, start, min(start + CONTENTS_CHARACTERS, len(text))):
        lines = block[0].split("\n")
        if COLUMN_NAMES.fullmatch(lines[0]):
            lines = lines[1:]
        gap, previous = block.start() - previous, block.end()
        if not lines:
            continue
        if CONTENTS.match(lines[0]):
            return block.start() if gaps else None
        heading = _heading(lines[0])
        begins_book = first and _is_heading_of(heading, first)
        if gaps and (begins_book or (gap > 2 and any(_is_heading_of(heading, entry) for entry in known if entry[2]))):
            return block.start()
        if not _are_entries(lines):
            near = [start for start, gap in gaps[1:][-4:] if gap > 2]
            return (near[-1] if near else block.start()) if gaps else None
        headings = [_heading(line) for line in lines]
        first = first or headings[0]
        known += headings
        gaps.append((block.start(), gap))
    return None


def _heading(line: str) -> tuple[str, str, str]:
    """(label, number, words) of a heading or an entry, so that the two can be compared."""
    match = NUMBERED.match(PAGE_AT_END.sub("", line).lower())
    return match["label"] or "", match["number"] or "", " ".join(re.findall(r"\w+", match["rest"]))


def _is_heading_of(heading: tuple[str, str, str], entry: tuple[str, str, str]) -> bool:
    """Whether they are numbered alike, and one's words begin the other's; or have the same words and one no number."""
    (label, number, words), (other_label, other_number, other_words) = heading, entry
    if number and number == other_number and (label == other_label or not (label and other_label)):
        return (
            f"{words} ".startswith(f"{other_words} ")
            or f"{other_words} ".startswith(f"{words} ")
            or not (words and other_words)
        )
    return bool(words) and words == other_words and not (number and other_number)


def _are_entries(lines: list[str]) -> bool:
    """At least half of the lines are; or there is but a short one, and it is no sentence."""
    is_sentence = re.search(r"^\W*[\"“'‘]|[.!?][\"”'’]*$", lines[0].strip())
    return sum(map(_is_entry, lines)) * 2 >= len(lines) or (
        len(lines) == 1 and len(lines[0]) <= (40 if is_sentence else 80)
    )


def _is_entry(line: str) -> bool:
    """It is numbered, short, ends in the number of a page, or has more capitals than a sentence."""
    words = re.findall(r"[^\W\d_]{4,}", line)
    capitals = sum(word[0].isupper() for word in words)
    return bool(
        NUMBERED.match(line)["number"] or len(words) < 3 or capitals * 2 > len(words) or PAGE_AT_END.search(line)
    )


def footnotes(text: str) -> Iterator[Edit]:
    """Removes footnotes, at the page, the chapter or the end, and the references to them.

    A reference is followed by a paragraph that begins with its label; only a bracketed number inside a line is one
    without that.
    """
    edits = [(*match.span(), "") for match in FOOTNOTE.finditer(text)]
    at_end = set()
    for heading in FOOTNOTES_HEADING.finditer(text):
        end = heading.start()
        for block in BLOCK.finditer(text, heading.end()):
            match = LABELLED.match(block[0])
            if not match and not block[0][0].isspace():
                break
            if match:
                at_end.add(_bare(match["label"]))
            end = block.end()
        edits.append((heading.start(), end, ""))
    references = [match for match in REFERENCE.finditer(text) if _may_refer(text, match)]
    waiting = {}
    for match in references:
        waiting.setdefault(_bare(match[0]), []).append(match.start())
    answered = set()
    for block in BLOCK.finditer(text) if waiting else ():
        match = LABELLED.match(block[0])
        places = waiting.get(_bare(match["label"]), []) if match else []
        near = [place for place in places if 0 < block.start() - place < NOTE_DISTANCE]
        if near:
            found = near if _bare(match["label"]).isalnum() else near[-1:]  # each star has a note of its own
            answered.update(found)
            places[:] = [place for place in places if place not in found]
            edits.append((*block.span(), ""))
    for match in references:
        label = match[0]
        is_number = label[0] in "[{" and label[1:-1].isdigit()
        if match.start() in answered or is_number or (label[0] == "(" and _bare(label) in at_end):
            edits.append((_with_space(text, match), match.end(), ""))
    return _without_overlap(edits)


def _bare(label: str) -> str:
    return label.strip("[]{}().").replace(" ", "")


def _may_refer(text: str, match: re.Match) -> bool:
    """Not at the beginning of a line; in parentheses only after no space or at the end of a line; no row of stars."""
    start, end = match.span()
    if not text[text.rfind("\n", 0, start) + 1 : start].strip():
        return False
    if match[0][0] in "*†‡":
        return "*" not in text[max(0, start - 2) : start].strip() + text[end : end + 2].strip()
    return match[0][0] != "(" or text[start - 1] != " " or text[end : end + 1] in ("", "\n")


def _with_space(text: str, match: re.Match) -> int:
    """The start of what is removed, with the space before it if none is needed there."""
    follows = text[match.end() : match.end() + 1]
    return match.start() - (text[match.start() - 1 : match.start()] == " " and not follows.isalnum())


def _without_overlap(edits: list[Edit]) -> Iterator[Edit]:
    position = 0
    for edit in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if edit[0] >= position:
            yield edit
            position = edit[1]


def page_numbers(text: str) -> Iterator[Edit]:
    """Removes `[Pg 12]` and its like, and lone numbers on lines that count up and break sentences apart."""
    edits = [(_with_space(text, match), match.end(), "") for match in PAGE.finditer(text)]
    lines, last = [], 0
    for match in PAGE_LINE.finditer(text):
        number, before, after = (
            int(match[1]),
            text[match.start() - 1 : match.start()],
            text[match.end() : match.end() + 1],
        )
        if before and after and (not lines or last < number <= last + 20):
            last = number
            is_inside = after.islower() or before.islower() or before in ",;-"
            lines.append((*match.span(), "\n" if is_inside else "\n\n"))
    if len(lines) >= FEWEST_PAGES and sum(new == "\n" for _, _, new in lines) >= INTERRUPTED * len(lines):
        edits += lines
    return _without_overlap(edits)


def decorative_lines(text: str) -> Iterator[Edit]:
    """Removes lines of stars, dashes and dots; the paragraphs around them stay apart."""
    return ((*match.span(), "") for match in DECORATION.finditer(text) if len(re.findall(r"\S", match[0])) >= 3)


def emphasis(text: str) -> Iterator[Edit]:
    """Removes the underscores and equals signs that stand for italics and bold type; `snake_case` keeps its own."""
    places = [place for match in BOLD.finditer(text) for place in (match.start(), match.end() - 1)]
    places += [match.start() for match in UNDERSCORE.finditer(text) if not _is_inside_name(text, match.start())]
    return ((place, place + 1, "") for place in sorted(places))


def _is_inside_name(text: str, place: int) -> bool:
    """Whether an underscore is the only one of its word and has letters on both sides."""
    if not (text[place - 1 : place].isalnum() and text[place + 1 : place + 2].isalnum()):
        return False
    return "_" not in text[max(0, place - 80) : place].split()[-1] + text[place + 1 : place + 80].split()[0]


def hyphenation(text: str) -> Iterator[Edit]:
    """Joins words divided at the end of a line.

    The hyphen goes where the text has the whole word elsewhere; otherwise it stays beside what is a word by itself.
    """
    words = None
    for match in HYPHENATED.finditer(text):
        before = LAST_WORD.search(text, max(0, match.start() - 60), match.start())
        if before and match[1][0].islower():
            words = words or set(re.findall(r"[\w-]+", HYPHENATED.sub(" ", text).lower()))
            left, right = before[0].lower(), match[1].lower()
            are_words = right in words or (len(left) > 3 and left in words)
            is_compound = f"{left}-{right}" in words or (left + right not in words and are_words)
            yield match.start(), match.start(1), "-" if is_compound else ""


def hard_wraps(text: str) -> Iterator[Edit]:
    """Joins the lines of prose into paragraphs, and takes the indentation off; verse, plays and lists stay in lines.

    A line of prose ends where the next word had no room; a line of verse ends earlier, or all begin with capitals.
    """
    inner = [len(line) for block in BLOCK.finditer(text) for line in block[0].split("\n")[:-1]]
    width = float(np.percentile(inner, 90)) if inner else 0
    for block in BLOCK.finditer(text):
        lines = block[0].split("\n")
        indents = [len(line) - len(line.lstrip()) for line in lines]
        rooms = [len(line) + 1 + len(after.strip().split(" ", 1)[0]) for line, after in itertools.pairwise(lines)]
        is_prose = width <= LONGEST_WRAP and _is_prose(lines, indents, rooms, width)
        least, position = min(indents), block.start()
        needed = SHORT * min(width, max(map(len, lines))) if is_prose else FILLED * width
        for number, (line, indent) in enumerate(zip(lines, indents, strict=True)):
            deeper = number > 0 and indent >= indents[number - 1] + 2
            begins_small = line[indent : indent + 1].islower()
            # Prose goes on but where a paragraph begins; verse does in a line deeper than the one that had no room.
            goes_on = begins_small or not deeper if is_prose else begins_small and deeper
            if number and goes_on and rooms[number - 1] > needed:
                before = lines[number - 1]
                yield position - 1, position + indent, "" if before.endswith(("--", "—")) else " "
            elif strip := indent if is_prose or len(lines) == 1 else least:
                yield position, position + strip, ""
            position += len(line) + 1


def _is_prose(lines: list[str], indents: list[int], rooms: list[int], width: float) -> bool:
    if len(lines) == 1:
        return False
    capitals = sum(bool(re.match(r"\W*[A-Z]", line)) for line in lines[1:]) / len(rooms)
    full = sum(room > FILLED * width for room in rooms) / len(rooms)
    if full >= 0.6:
        return capitals < VERSE_CAPITALS or (len(rooms) < 4 and width > 55 and min(rooms) > 0.95 * width)
    narrow = max(map(len, lines))  # a letter or a quotation between wider margins
    is_set_in = len(lines) >= 4 and len(set(indents[1:])) == 1 and narrow > 0.5 * width
    return is_set_in and capitals < 0.5 and sum(room > FILLED * narrow for room in rooms) >= 0.8 * len(rooms)


def inner_spaces(text: str) -> Iterator[Edit]:
    """Leaves one space where several stand between words."""
    return (
        (*match.span(), " ") for match in INNER_SPACES.finditer(text) if text[match.start() - 1 : match.start()].strip()
    )


# Mojibake first: it is made of what the other two remove.
BEFORE: tuple[Rule, ...] = (broken_unicode, line_ends, invisible_characters)
GUTENBERG: tuple[Rule, ...] = (
    header_and_footer,
    bracketed_tags,
    credits_and_notes,
    tables_of_contents,
    decorative_lines,
    footnotes,
    page_numbers,
    emphasis,
    trailing_spaces,  # what the rules above have left of a line
    hyphenation,
    hard_wraps,
    inner_spaces,
)
AFTER: tuple[Rule, ...] = (trailing_spaces, blank_lines)


def clean_text(text: str, config: CleaningConfig, repeated: frozenset[str] = frozenset()) -> Cleaned:
    """Applies all rules that fit a text.

    Args:
        text: a document, whole if it can be: books are recognised by their beginning and end.
        config: which rules.
        repeated: lines found by `find_repeated_lines`.
    """
    stages = []

    def run(*rules: tuple[str, Rule]) -> None:
        nonlocal text
        for name, rule in rules:
            if edits := list(rule(text)):
                text = apply_edits(text, edits)
                stages.append((name, edits))

    run(*_named((*BEFORE, trailing_spaces)))
    is_book = config.gutenberg == "always" or (config.gutenberg == "auto" and is_gutenberg(text))
    run(*_named(GUTENBERG if is_book else ()))  # before what would take their marks for lines that many files have
    run(("repeated_lines", lambda text: repeated_lines(text, repeated)))
    run(*_named((*((html_remains,) if config.html else ()), *AFTER)))
    return Cleaned(text.strip(), tuple(stages), is_book)


def _named(rules: Iterable[Rule]) -> list[tuple[str, Rule]]:
    return [(rule.__name__, rule) for rule in rules]


# --- filters ---------------------------------------------------------------------------------------------------------

LETTERS_AND_BLANKS = bytes(byte for byte in range(128) if chr(byte).isalnum() or chr(byte).isspace())
DIGITS = b"0123456789"
FEWEST_WORDS = 50  # a shorter text repeats itself by chance
LARGEST_SHARES = {  # Rae et al. 2021, table A1
    "duplicated lines": 0.30,
    "characters in duplicated lines": 0.20,
    "duplicated paragraphs": 0.30,
    "characters in duplicated paragraphs": 0.20,
}
LARGEST_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}  # share of the characters in the commonest one
LARGEST_DUPLICATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # in all that come again


def why_dropped(text: str, config: CleaningConfig) -> tuple[str, str] | None:
    """Names the first filter that a text does not pass, and its numbers; None if it passes all.

    An empty text is not the filters' business.
    """
    words = text.split()
    if not words:
        return None
    if len(words) < config.min_words:
        return "too short", f"{len(words)} words, min_words={config.min_words}"
    if config.max_words is not None and len(words) > config.max_words:
        return "too long", f"{len(words)} words, max_words={config.max_words}"
    content = text.encode("ascii", "ignore")
    symbols = len(content.translate(None, LETTERS_AND_BLANKS)) / len(text)
    if symbols > config.max_symbols:
        return "symbols", f"{symbols:.3f} of the characters, max_symbols={config.max_symbols}"
    digits = (len(content) - len(content.translate(None, DIGITS))) / len(text)
    if digits > config.max_digits:
        return "digits", f"{digits:.3f} of the characters, max_digits={config.max_digits}"
    if config.repetition and len(words) >= FEWEST_WORDS:
        return _repetition(text, words)
    return None


def _repetition(text: str, words: list[str]) -> tuple[str, str] | None:
    for unit, separator in (("paragraphs", "\n\n"), ("lines", "\n")):
        parts = [part for part in map(str.strip, text.split(separator)) if part]
        again = Counter(parts)
        number = sum(count - 1 for count in again.values()) / len(parts)
        characters = sum((count - 1) * len(part) for part, count in again.items()) / len(text)
        for reason, share in ((f"duplicated {unit}", number), (f"characters in duplicated {unit}", characters)):
            if share > LARGEST_SHARES[reason]:
                return reason, f"share {share:.3f}, at most {LARGEST_SHARES[reason]}"
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    total = int(lengths.sum())
    for n, largest in LARGEST_TOP_NGRAM.items():
        _, first, counts = np.unique(_ngrams(hashes, n), return_index=True, return_counts=True)
        top = int(counts.argmax())
        share = counts[top] * lengths[first[top] : first[top] + n].sum() / total
        if counts[top] > 1 and share > largest:
            return f"one {n}-gram over and over", f"share {share:.3f}, at most {largest}"
    for n, largest in LARGEST_DUPLICATED_NGRAMS.items():
        share = _duplicated(hashes, lengths, n) / total
        if share > largest:
            return f"duplicated {n}-grams", f"share {share:.3f}, at most {largest}"
        if share <= min(LARGEST_DUPLICATED_NGRAMS.values()):
            return None  # what longer n-grams cover, shorter ones do
    return None


def _ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """One number for each run of `n` words, equal for equal runs."""
    number = len(hashes) - n + 1
    combined = hashes[:number].copy()
    for offset in range(1, n):
        combined = combined * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + number]
    return combined


def _duplicated(hashes: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters of the words that stand in an n-gram said before, each counted once."""
    combined = _ngrams(hashes, n)
    again = np.ones(len(combined), bool)
    again[np.unique(combined, return_index=True)[1]] = False
    covered = np.zeros(len(lengths) + 1, np.int64)
    starts = np.flatnonzero(again)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + n, -1)
    return int(lengths[np.cumsum(covered[:-1]) > 0].sum())


# --- the whole -------------------------------------------------------------------------------------------------------


@dataclass
class RuleReport:
    """What one rule did: its edits, the characters fewer they left, the documents touched, and examples."""

    edits: int = 0
    characters: int = 0
    documents: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class DropReport:
    """The documents dropped for one reason, and examples."""

    documents: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class CleaningReport:
    """What went in and came out, and why the rest did not."""

    documents_in: int = 0
    documents_out: int = 0
    words_in: int = 0
    words_out: int = 0
    gutenberg_books: int = 0
    rules: dict[str, RuleReport] = field(default_factory=dict)
    dropped: dict[str, DropReport] = field(default_factory=dict)
    repeated_lines: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as plain containers, for JSON."""
        return asdict(self)


class Cleaner:
    """Cleans a stream of documents and counts what happens to them in `report`.

    Args:
        config: which rules and filters.
        repeated: lines found by `find_repeated_lines`.

    Raises:
        UserError: a threshold that no document or every one would cross.
    """

    def __init__(self, config: CleaningConfig, repeated: frozenset[str] = frozenset()):
        for name in ("repeated_lines", "max_symbols", "max_digits"):
            if not 0 <= getattr(config, name) <= 1:
                raise UserError(f"cleaning.{name}={getattr(config, name)} is a share; set it between 0 and 1")
        if config.max_words is not None and config.max_words < max(1, config.min_words):
            raise UserError(
                f"cleaning.max_words={config.max_words} is below cleaning.min_words={config.min_words} and drops all; "
                "raise it or leave it out"
            )
        self.config, self.repeated = config, repeated
        self.report = CleaningReport(repeated_lines=sorted(repeated)[:100])

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents that remain, cleaned, in pieces; those that were empty stay so.

        A document is held whole, up to 8 million characters; one that is longer is cleaned in parts of that size and
        passes all filters.
        """
        for _, pieces in itertools.groupby(documents, key=lambda document: document.id):
            yield from self._document(pieces)

    def _document(self, pieces: Iterator[Document]) -> Iterator[Document]:
        first = next(pieces)
        parts = _parts(itertools.chain([first], pieces))
        part, is_whole = next(parts)
        self.report.documents_in += 1
        config = self.config
        text, is_book = self._clean(first.id, part, config)
        self.report.gutenberg_books += is_book
        why = why_dropped(text, config) if is_whole else None
        if not text and part.strip():
            why = ("nothing left", "all of it was removed by the rules")
        if why:
            dropped = self.report.dropped.setdefault(why[0], DropReport())
            dropped.documents += 1
            if len(dropped.examples) < EXAMPLES:
                dropped.examples.append({"id": first.id, "why": why[1], "begins": part[:EXAMPLE_CHARACTERS]})
            return
        config = replace(config, gutenberg="always" if is_book else "never")  # what it is shows at its beginning
        rest = (self._clean(first.id, part, config)[0] for part, _ in parts)
        for document in cut_pieces(first.id, first.metadata, itertools.chain([text], rest)):
            self.report.words_out += len(document.text.split())
            self.report.documents_out += document.is_last and bool(document.text or document.piece)
            yield document

    def _clean(self, id: str, text: str, config: CleaningConfig) -> tuple[str, bool]:
        self.report.words_in += len(text.split())
        cleaned = clean_text(text, config, self.repeated)
        for name in dict.fromkeys(name for name, _ in cleaned.stages):  # a rule may run twice
            self.report.rules.setdefault(name, RuleReport()).documents += 1
        for name, edits in cleaned.stages:
            rule = self.report.rules[name]
            rule.edits += len(edits)
            rule.characters += sum(end - start - len(new) for start, end, new in edits)
            if len(rule.examples) < EXAMPLES:
                rule.examples.append({"id": id, **_shown(text, next(cleaned.spans(name)))})
        return (text[: text[:1].isspace()] + cleaned.text if cleaned.text else ""), cleaned.is_book


def _shown(text: str, span: Span) -> dict[str, str]:
    removed = text[span.start : span.end]
    if len(removed) > EXAMPLE_CHARACTERS:
        removed = f"{removed[: EXAMPLE_CHARACTERS // 2]} [...] {removed[-EXAMPLE_CHARACTERS // 2 :]}"
    around = (text[max(0, span.start - 40) : span.start], text[span.end : span.end + 40])
    return {"before": around[0], "removed": removed, "became": span.new[:EXAMPLE_CHARACTERS], "behind": around[1]}


def _parts(pieces: Iterable[Document]) -> Iterator[tuple[str, bool]]:
    """Joins the pieces of a document to parts of `WHOLE_CHARACTERS`, and tells whether a part is all of it."""
    held, characters, is_first = [], 0, True
    for piece in pieces:
        if characters + len(piece.text) > WHOLE_CHARACTERS and held:
            yield "".join(held), False
            held, characters, is_first = [], 0, False
        held.append(piece.text)
        characters += len(piece.text)
    yield "".join(held), is_first
