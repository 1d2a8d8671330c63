"""Rules for books of Project Gutenberg: what was put around and into the text of a book is found and taken out.

Each is a pure function from a text to its edits; `cleaning` puts them in order.
"""

import itertools
import re
from collections.abc import Iterator

import numpy as np

from smallm_hf.data.edits import Edit

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
