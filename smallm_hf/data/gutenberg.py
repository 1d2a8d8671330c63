"""Rules for books of Project Gutenberg: what was put around and into the text of a book is found and taken out.

Each is a pure function from a text to its edits; `cleaning` puts them in order.
"""

import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np

from smallm_hf.data.edits import Edit

BLOCK = re.compile(r"[^\n]+(?:\n[^\n]+)*")  # lines between blank ones
PROJECT = r"PROJECT\s+GUTENBERG"
TITLE = r"(?:(?:(?!\n\n)[^*]){0,300}?\*{2,}[^\n]*|[^\n]*)"
START = re.compile(rf"^[ \t]*\*{{2,}}[ \t]*START OF (?:THE|THIS) {PROJECT}{TITLE}", re.MULTILINE | re.IGNORECASE)
END_OF_BOOK = re.compile(
    r"^[^\w\n]*(?:End|Ende|Fin|Fine|Fim|Einde|Slut|Loppu)\b[^\n]{0,40}\bPro[\wéê]{3,6}\s+Gutenberg",
    re.MULTILINE | re.IGNORECASE,
)
END = re.compile(
    rf"{END_OF_BOOK.pattern}|^[^\w\n]*(?:START\W*THE SMALL PRINT|START: FULL LICENSE|This file should be named)",
    re.MULTILINE | re.IGNORECASE,
)
SMALL_PRINT_END = re.compile(r"^[^\n]*\*END\W*THE SMALL PRINT[^\n]*", re.MULTILINE | re.IGNORECASE)
SMALL_PRINT = re.compile(r"^[^\w\n]*SMALL PRINT!.*\bSMALL PRINT\b[^\n]*", re.MULTILINE | re.IGNORECASE | re.DOTALL)
BOILERPLATE = re.compile(
    r"Gutenberg|\be-?texts?\b|\be-?books?\b|\bdonations?\b|public domain|small print|pgdp\.net|Distributed Proofread",
    re.IGNORECASE,
)
CREDIT = re.compile(
    rf"\W*(?:This (?:e-?text|e-?book|file|book) was )?(?:(?:Produced|Prepared|Created|Transcribed|Scanned|Typed|Keyed|"
    r"Digiti[sz]ed|Proof(?:read|ed)|Converted|Etext scanned|HTML version) (?:and [\w-]+ )*(?:by|from)\b|"
    rf"E-?text (?:prepared|produced|created|scanned|typed|by)\b)|.*(?:{PROJECT}|Distributed Proofread|pgdp\.net|"
    r"\be-?texts?\b|gutenberg\.(?:org|net)|images of the original (?:pages|book) are available)",
    re.IGNORECASE | re.DOTALL,
)
NOTE_OF_TRANSCRIBER = re.compile(
    r"\W*(?:Original )?(?:Transcriber|Preparer|Proofreader|Digitizer|E-?text editor)s?['’]?s?['’]? (?:End)?notes?\b|"
    r"\W*(?:Typographical|Typos|Spelling|Printer['’]?s) errors?\b|\W*Notes? (?:from|by|of) the transcriber|"
    r"There are several editions of this e-?(?:book|text)\b.*",
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
SIGNS = ("Gutenberg", "GUTENBERG", "Produced by", "E-text", "Etext", "SMALL PRINT", "pgdp.net", "[Illustration")
PROJECT_NEAR = re.compile(
    rf"\A.{{0,3000}}?{PROJECT}|^\W*(?:Produced by|E-?text prepared by) [A-Z]|pgdp\.net|^\W*\[Illustration\b",
    re.MULTILINE | re.IGNORECASE | re.DOTALL,
)
FRONT_CHARACTERS, BACK_CHARACTERS = 12_000, 6_000  # where credits and transcribers' notes stand
GAP = re.compile(r"(?<=[^\n]\n\n)\n{2}")
NOTE_CHARACTERS = 4_000  # between the heading of a note and the gap behind it
BRACKETS = r"(?:[^\[\]]|\[[^\[\]]{0,1000}\]){0,4000}+\]"  # a bracket that is never closed is no tag
TAGGED = (
    r"(?:Illustrat(?:ion|ie)|Ilustra[cç][iã][oó]n?|Illustrazione|Abbildung|Frontispiece|Blank page|Sidenote|"
    r"(?:This )?e-?text|(?:Transcriber|Editor|Redactor)['’]?s?['’]? notes?)\b|"
    # These may begin what the author put in brackets, too.
    r"(?:Picture|Image|Decoration|Ornament|Drawing|Figure|Map|Music)(?: [\w.]+)?\s*(?=[:\]])"
)
TAGS = re.compile(rf"\[\W*(?:{TAGGED}){BRACKETS}", re.IGNORECASE)
NAME_OF_PICTURE = re.compile(  # what is left of a picture in a text made from a page of the web
    r"\n\n[ \t]*(\d{3,5}[a-z]|[\w-]+\.(?:jpe?g|png|gif)(?: \(\d+K\))?|Full Size)[ \t]*(?=\n\n|\Z)", re.IGNORECASE
)
PICTURES = "illustrations|plates|maps|figures|engravings|portraits|drawings|photographs|diagrams"
TABLE = (
    rf"(?:(?:a )?table of |the )?(?:contents|(?:full[- ]page )?illustrations)|list of (?:[\w-]+ ){{0,3}}(?:{PICTURES})|"
    r"inhalt(?:s(?:verzeichnis|übersicht))?|inhoud(?:sopgave)?|table des (?:matières|chapitres|gravures)|sommaire|"
    r"[íi]ndice|sum[áa]rio|contenido|tabla de (?:materias|contenidos)|innehåll|indhold|innhold|sisällys"
)
CONTENTS = re.compile(
    rf"^[ \t]*[_=]*(?:{TABLE})(?: (?:and|&) (?:contents|{PICTURES}))?"
    r"(?:[^\w\n]+(?:(?:of|to|for) )?(?:the )?(?:\w+ )?(?:vol|volume|part|book|chapters?)\b[^\n]{0,20}?)?[.:_=]*[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
CONTENTS_CHARACTERS = 60_000
NUMERAL = r"[ivxlc]+|\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten|first|second|third|fourth|fifth"
NUMBERED = re.compile(
    rf"\W*(?:(?P<label>chapter|chap|book|part|stave|letter|volume|vol|act|scene|canto|section)\b\W*)?"
    rf"(?:(?P<number>{NUMERAL})(?![\w'’])\W*)?(?P<rest>.*)",
    re.IGNORECASE,
)
PAGE_AT_END = re.compile(r"[ .\t]{2,}(?:\d{1,4}|[ivxlc]{1,7}|_?Frontispiece_?)\.?[ \t]*$")
COLUMN_NAMES = re.compile(
    r"\W*(?:(?:chapter|chap|cap|facing|to face|page|pag|stave|no|plate|fig|bladz|blz|seite|kapitel)\b\W*)+",
    re.IGNORECASE,
)
COLUMNS = re.compile(r"\S {4,}\S")
OTHER_LIST = re.compile(r"\W*list of\b", re.IGNORECASE)
FOOTNOTE = re.compile(rf"\[Footnotes?\b[ \t]*(?P<label>[\w*†‡]{{0,3}}){BRACKETS}", re.IGNORECASE)
FOOTNOTES_HEADING = re.compile(
    r"^[ \t]*(?:FOOT|END)?NOTES?[.:]*[ \t]*\n+(?=\s*[\[{(]?1\b)", re.MULTILINE | re.IGNORECASE
)
LABELLED = re.compile(
    r"[ \t]*(?P<label>[\[{(](?:\d{1,3}|[A-Z]|[*†‡]+)[\]})]|\d{1,3}[.)]?(?=[ \t])|\*[ ]?\(\d\)|[*†‡]{1,3})[ \t]*(?=\S)"
)
REFERENCE = re.compile(r"[\[{](?:\d{1,3}|[A-Z]|[*†‡]+)[\]}]|\((?:\d{1,3}|[*†‡]+)\)|\*[ ]?\(\d\)|[*†‡]{1,3}(?![\w*†‡])")
NOTE_DISTANCE = 40_000  # characters from a reference to a note at the end of its chapter
PAGE = re.compile(r"[\[{][ \t]*(?:pg?|page)\.?[ \t]*(?:\d{1,4}|[ivxlc]+)[ \t]*[\]}](?:\d{1,4})?", re.IGNORECASE)
BRACKETED_PAGE = re.compile(r"[\[{](\d{1,4})[\]}]")
PAGE_LINE = re.compile(
    r"\n\s{0,20}[-\[{(|]?[ \t]{0,80}(?:(?:pg?|page)\.? {0,2})?(\d{1,4})[ \t]{0,20}[-\]})|]?\n\s{0,20}", re.IGNORECASE
)
FEWEST_PAGES = 10
INTERRUPTED = 0.3  # share of the page numbers that stand inside a sentence
IN_ORDER = 0.9  # share of the bracketed numbers that are one more than the one before if they are pages
DECORATION = re.compile(r"^[ \t]*[*\-_=~#.·•—–+|^:][*\-_=~#.·•—–+|^: \t]*$", re.MULTILINE)
UNDERSCORE = re.compile(r"_(?<!__)(?![_{])")
BOLD = re.compile(r"=(?<![\w=]=)(?=[^\s=])(?:(?!\n\n)[^=])+?(?<=\S)=(?![\w=])")
HYPHENATED = re.compile(r"-(?<!--)\n[ \t]*([^\W\d_]+)")
LAST_WORD = re.compile(r"[^\W\d_][\w-]*\Z")
FIRST_LETTER = re.compile(r"[\W_]*(\w)")
INNER_SPACES = re.compile(r"(?:  |\t)[ \t]*(?=\S)")
SHORTEST_WRAP, LONGEST_WRAP = 50, 120  # characters; a text of shorter lines is verse, one of longer ones not wrapped
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
        if note := NOTE_OF_TRANSCRIBER.match(block[0]):
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
            if CREDIT.match(block[0]):
                yield *block.span(), ""


def _beginning_of_back(text: str) -> int:
    """Where the back of the book begins: with its last characters, or before them with a long list of corrections."""
    last = len(text) - BACK_CHARACTERS
    for block in BLOCK.finditer(text, len(text) * 9 // 10, max(0, last)):
        is_note = NOTE_OF_TRANSCRIBER.match(block[0])
        if is_note and len(CORRECTION.findall(text, block.end())) * 2 > text.count("\n", block.end()):
            return block.start()
    return last


def bracketed_tags(text: str) -> Iterator[Edit]:
    """Removes `[Illustration ...]`, `[Transcriber's note ...]` and their like, over lines and with brackets inside."""
    tags = ((*match.span(), "") for match in TAGS.finditer(text))
    names = ((*match.span(1), "") for match in NAME_OF_PICTURE.finditer(text))
    return _without_overlap(itertools.chain(tags, names))


def tables_of_contents(text: str) -> Iterator[Edit]:
    """Removes tables of contents and lists of illustrations: from their heading to where the book begins.

    The book begins where the first entry, or after a gap another one, is the heading of a paragraph; or at the first
    paragraph that is no entry, and the headings above it. A line of the title page that is said again belongs to it.
    """
    position, known = 0, []
    for heading in CONTENTS.finditer(text):
        if heading.start() >= position and (end := _end_of_contents(text, heading.end(), known)):
            front = text[max(0, heading.start() - FRONT_CHARACTERS) : heading.start()]
            title_page = {_words(line) for line in front.split("\n")} - {""}
            again = [block for block in BLOCK.finditer(text, heading.end(), end) if _words(block[0]) in title_page]
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
        if CONTENTS.match(lines[0]) or (gap > 2 and OTHER_LIST.match(lines[0]) and not PAGE_AT_END.search(lines[0])):
            return block.start() if gaps else None
        heading = _heading(lines[0])
        begins_book = first and _is_heading_of(heading, first)
        if gaps and (begins_book or (gap > 2 and any(_stands_for(heading, entry) for entry in known if entry[2]))):
            return block.start()
        if not _are_entries(lines):
            near = [start for start, gap in gaps[1:][-4:] if gap > 2]
            return (near[-1] if near else block.start()) if gaps else None
        headings = [_heading(line) for line in lines]
        first = first or headings[0]
        known += headings
        gaps.append((block.start(), gap))
    return len(text) if gaps and previous == len(text.rstrip()) else None


def _heading(line: str) -> tuple[str, str, str]:
    """(label, number, words) of a heading or an entry, so that the two can be compared."""
    match = NUMBERED.match(PAGE_AT_END.sub("", line).lower())
    return match["label"] or "", match["number"] or "", _words(match["rest"])


def _words(line: str) -> str:
    return " ".join(re.findall(r"\w+", line.lower()))


def _is_heading_of(heading: tuple[str, str, str], entry: tuple[str, str, str]) -> bool:
    """Whether they are numbered alike, and one's words begin the other's; or have the same words and one no number."""
    (label, number, words), (other_label, other_number, other_words) = heading, entry
    if number and number == other_number and (label == other_label or not (label and other_label)):
        if words and other_words:
            return f"{other_words} ".startswith(f"{words} ") or f"{words} ".startswith(f"{other_words} ")
        may_differ = not other_label if words else label not in ("volume", "vol")
        return label == other_label or may_differ
    return bool(words) and words == other_words and not (number and other_number)


def _stands_for(heading: tuple[str, str, str], entry: tuple[str, str, str]) -> bool:
    """Whether a heading, apart from what is before it, is that of the entry, of which it may leave words away."""
    _, number, words = heading
    is_begun = not number and " " in words and entry[2].startswith(f"{words} ")
    return is_begun or _is_heading_of(heading, entry)


def _are_entries(lines: list[str]) -> bool:
    """At least half of the lines are; or they are one, up to its page; or there is but a short one and no sentence."""
    is_sentence = re.search(r"^\W*[\"“'‘]|[.!?][\"”'’]*$", lines[0].strip())
    return (
        sum(map(_is_entry, lines)) * 2 >= len(lines)
        or bool(PAGE_AT_END.search(lines[-1]))
        or (len(lines) == 1 and len(lines[0]) <= (40 if is_sentence else 80))
    )


def _is_entry(line: str) -> bool:
    """It is numbered, short, in columns, ends in the number of a page, or has more capitals than a sentence."""
    words = re.findall(r"[^\W\d_]{4,}", line)
    capitals = sum(word[0].isupper() for word in words)
    is_short = len(words) < 3 or capitals * 2 > len(words)
    return bool(NUMBERED.match(line)["number"] or is_short or PAGE_AT_END.search(line) or COLUMNS.search(line))


def footnotes(text: str) -> Iterator[Edit]:
    """Removes footnotes, at the page, the chapter or the end, and the references to them.

    A reference is followed by a paragraph that begins with its label; only a bracketed number inside a line is one
    without that.
    """
    references = [match for match in REFERENCE.finditer(text) if _may_refer(text, match)]
    waiting, answered = {}, set()
    for match in references:
        waiting.setdefault(match[0].replace(" ", ""), []).append(match.start())

    def answers(label: str, place: int) -> bool:
        """Whether a note at the place is the one that references with the label wait for; they do no longer."""
        places = waiting.get(label, [])
        near = [reference for reference in places if 0 < place - reference < NOTE_DISTANCE]
        found = near if _bare(label).isalnum() else near[-1:]  # each star has a note of its own
        answered.update(found)
        places[:] = [reference for reference in places if reference not in found]
        return bool(found)

    edits = []
    for note in FOOTNOTE.finditer(text):
        edits.append((*note.span(), ""))
        any(answers(label.format(note["label"]), note.start()) for label in ("[{}]", "{{{}}}", "({})", "{}"))
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
    for block in BLOCK.finditer(text) if waiting else ():
        match = LABELLED.match(block[0])
        if match and answers(match["label"].replace(" ", ""), block.start()):
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


def _without_overlap(edits: Iterable[Edit]) -> Iterator[Edit]:
    position = 0
    for edit in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if edit[0] >= position:
            yield edit
            position = edit[1]


def page_numbers(text: str) -> Iterator[Edit]:
    """Removes `[Pg 12]` and its like, bracketed numbers that count up, and lone ones that do and break sentences."""
    edits = [(_with_space(text, match), match.end(), "") for match in PAGE.finditer(text)]
    bracketed = list(BRACKETED_PAGE.finditer(text))
    if _count_up([int(match[1]) for match in bracketed]):
        edits += [(_with_space(text, match), match.end(), "") for match in bracketed]
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


def _count_up(numbers: list[int]) -> bool:
    """Whether these are pages: many, and nearly all one more than the last; notes and references come in pairs."""
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    return len(numbers) >= FEWEST_PAGES and min(steps) > 0 and steps.count(1) >= IN_ORDER * len(steps)


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
        if len(lines) == 1:
            if indent := len(lines[0]) - len(lines[0].lstrip()):
                yield block.start(), block.start() + indent, ""
            continue
        indents = [len(line) - len(line.lstrip()) for line in lines]
        rooms = [len(line) + 1 + len(after.strip().split(" ", 1)[0]) for line, after in itertools.pairwise(lines)]
        is_prose = SHORTEST_WRAP <= width <= LONGEST_WRAP and _is_prose(lines, indents, rooms, width)
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
            elif strip := indent if is_prose else least:
                yield position, position + strip, ""
            position += len(line) + 1


def _is_prose(lines: list[str], indents: list[int], rooms: list[int], width: float) -> bool:
    capitals = sum(first[1].isupper() for first in map(FIRST_LETTER.match, lines[1:]) if first) / len(rooms)
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
