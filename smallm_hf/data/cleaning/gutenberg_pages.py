"""Rules for what stands on the pages of a book: pictures, footnotes, page numbers, marks of type, ends of lines."""

import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np

from smallm_hf.data.cleaning.edits import Edit
from smallm_hf.data.cleaning.gutenberg import BLOCK, NOTE_ABROAD

BRACKETS = r"(?:[^\[\]]|\[[^\[\]]{0,1000}\]){0,4000}+\]"  # a bracket that is never closed is no tag
PICTURE = "Picture|Image|Drawing|Figure|Map"
TAGGED = (
    r"(?:Illus(?:tr|trat(?:ions?|ie))?|Ilustra[cç][iã][oó]n?|Illustrazione|Abbildung|Frontispiece|Blank page|Sidenote|"
    rf"(?:This )?e-?text|(?:The )?End of [^\]\n]+ by|{NOTE_ABROAD}|"
    r"(?:Transcriber|Editor|Redactor)['’]?s?['’]? notes?)\b|"
    r"This (?:text|file) (?:uses|is in)\b(?=[^\]]{0,80}\b(?:UTF|Unicode|ASCII|encoding))|"
    # These may begin what the author put in brackets, too; the words of a song are his.
    r"(?:Decorations?|Decorative \w+|Ornament|(?:Head|Tail)-?piece|To face p\w*\.?(?: \w+)?)\s*(?=[:\]])|"
    rf"(?:(?:{PICTURE})(?: \d+| [ivxlc]+)?\.?\s*(?=:)|"
    rf"(?:{PICTURE}|Music(?:al)?)(?: \d+| [ivxlc]+| illustration| notation| score)\.?\s*(?=\]))"
)
TAGS = re.compile(
    rf"\[\W*(?:{TAGGED}){BRACKETS}|(?<=\n\n)[ \t]*\[(?:{PICTURE}|Music)\][ \t]*(?=\n\n|\Z)", re.IGNORECASE
)
NAME_OF_PICTURE = re.compile(  # what is left of a picture in a text made from a page of the web
    r"\n\n[ \t]*(\d{3,5}[a-z]|[\w-]+\.(?:jpe?g|png|gif)(?: \(\d+K\))?|Full Size)[ \t]*(?=\n\n|\Z)", re.IGNORECASE
)
FOOTNOTE = re.compile(
    r"\[(?:Footnotes?|Fu(?:ß|ss)noten?|Voetnoot|Fodnote|Fotnot|(?:Note|Nota|Noot|Anmerkung)(?= ?\w{1,3}:))\b[ \t]*"
    rf"(?P<label>[\w*†‡]{{0,3}}){BRACKETS}",
    re.IGNORECASE,
)
FOOTNOTES_HEADING = re.compile(
    r"^[ \t_=]*(?=[FENVA])(?:(?:FOOT|END)?NOTES?|FU(?:ß|SS)NOTEN|VOETNOTEN|NOTAS|NOTEN?|ANMERKUNGEN)[.:_=]*[ \t]*\n+"
    r"(?=\s*(?:[\[{(]?1\b|\[[A*]\]))",
    re.MULTILINE | re.IGNORECASE,
)
LABELLED = re.compile(
    r"[ \t]*(?P<label>[\[{(](?:\d{1,3}|[A-Z]|[*†‡]+)[\]})]|\d{1,3}[.)]?(?=[ \t])|\*[ ]?\(\d\)|[*†‡]{1,3})[ \t]*(?=\S)"
)
REFERENCE = re.compile(r"[\[{](?:\d{1,3}|[A-Z]|[*†‡]+)[\]}]|\((?:\d{1,3}|[*†‡]+)\)|\*[ ]?\(\d\)|[*†‡]{1,3}(?![\w*†‡])")
INDEXED_NAME = re.compile(r"\b\w\Z")  # a single letter, as in `a[1]`
LONGEST_NOTE = 4_000  # characters from one paragraph of a note to the next label
NOTE_DISTANCE = 40_000  # characters from a reference to a note at the end of its chapter
PAGE = re.compile(
    r"[\[{][ \t]*(?:pg?|page|pag|s(?=\.)|seite|bladz|blz)(?:\.?[ \t]*\d{1,4}|[. \t]+[ivxlc]+)[ \t]*[\]}](?:\d{1,4})?",
    re.IGNORECASE,
)
BRACKETED_PAGE = re.compile(r"[\[{](\d{1,4})[\]}]")
PAGE_LINE = re.compile(
    r"\n\s{0,20}[-\[{(|]?[ \t]{0,80}(?:(?:pg?|page)\.? {0,2})?(\d{1,4})[ \t]{0,20}[-\]})|]?\n\s{0,20}", re.IGNORECASE
)
FEWEST_PAGES = 10
INTERRUPTED = 0.3  # share of the page numbers that stand inside a sentence
IN_ORDER = 0.9  # share of the bracketed numbers that are one more than the one before if they are pages
DECORATION = re.compile(r"^[ \t]*[*\-_=~#.·•—–+|^:][*\-_=~#.·•—–+|^: \t]*$", re.MULTILINE)
UNDERSCORE = re.compile(r"_(?<!__)(?![_{])")
BOLD = re.compile(  # not what is counted, `#5`, or spoken of, `"#"`, nor a line of a table
    r"([=+~#])(?<![\w=+~#][=+~#])(?=[^\W\d]|[\"'“‘(])(?:(?!\n\n)[^=+~#])+?(?<=[^\s“‘(])(?!(?<=[\"'])[=+~#][\"'])\1(?![\w=+~#])"
)
HYPHENATED = re.compile(r"-(?<!--)\n[ \t]*([^\W\d_]+)")
LAST_WORD = re.compile(r"[^\W\d_][\w-]*\Z")
FIRST_LETTER = re.compile(r"[\W_]*(\w)")
COLUMNS = re.compile(r"\S {4,}\S")
MOST_CELLS = 0.6  # share of the lines of a table that have several cells
INNER_SPACES = re.compile(r"(?:  |\t)[ \t]*(?=\S)")
SHORTEST_WRAP, LONGEST_WRAP = 50, 120  # characters; a text of shorter lines is verse, one of longer ones not wrapped
FILLED = 0.85  # of the usual width is reached by a line with the word after it if the line ended for lack of room
SHORT = 0.6  # of the width: such a line ended for another reason
VERSE_CAPITALS = 0.7  # share of lines that begin with a capital letter in verse


def bracketed_tags(text: str) -> Iterator[Edit]:
    """Removes `[Illustration ...]`, `[Transcriber's note ...]` and their like, over lines and with brackets inside."""
    tags = ((match.start(), match.end() + _is_line_of_paragraph(text, match), "") for match in TAGS.finditer(text))
    names = ((*match.span(1), "") for match in NAME_OF_PICTURE.finditer(text))
    return _without_overlap(itertools.chain(tags, names))


def _is_line_of_paragraph(text: str, match: re.Match) -> bool:
    """Whether lines of text are directly above and below: nothing of it, not even a blank line, shall part them."""
    before, after = text[max(0, match.start() - 2) : match.start()], text[match.end() : match.end() + 2]
    return before[-1:] == after[:1] == "\n" and "\n\n" not in (before, after) and len(before + after) == 4


def footnotes(text: str) -> Iterator[Edit]:
    """Removes footnotes, at the page, the chapter or the end, and the references to them.

    A reference is followed by a paragraph that begins with its label, near or under a heading for notes. Where that may
    as well be one of a list (`1. Of this`), only the reference goes.
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
        end, last = heading.end(), ""
        for block in BLOCK.finditer(text, heading.end()):
            match = LABELLED.match(block[0])
            between = text[end : block.start()]
            if match and (not between.strip() or _follows(match["label"], last)):
                last = match["label"]
                at_end.add(_bare(last))
                end = block.end()
            elif block[0][0].isspace() and not between.strip():
                end = block.end()
            elif last[:1] != "[" or block.end() - end > LONGEST_NOTE or "\n" * 5 in between:
                break  # a paragraph without a label belongs to a note only if the next label follows soon
        edits.append((heading.start(), end, ""))
    for block in BLOCK.finditer(text) if waiting else ():
        match = LABELLED.match(block[0])
        if not match:
            continue
        label, place = match["label"].replace(" ", ""), block.start()
        if answers(label, place) or (not _bare(label).isalnum() and answers(f"[{label}]", place)):
            edits.append((*block.span(), ""))
        elif label[0].isdigit():
            for waits in (f"[{_bare(label)}]", f"{{{_bare(label)}}}"):
                near = [other for other in waiting.get(waits, []) if 0 < place - other < NOTE_DISTANCE]
                answered.update(other for other in near if not INDEXED_NAME.search(text, other - 2, other))
    for match in references:
        if match.start() in answered or (match[0][0] in "[{(" and _bare(match[0]) in at_end):
            edits.append((_with_space(text, match), match.end(), ""))
    return _without_overlap(edits)


def _follows(label: str, last: str) -> bool:
    """Whether two labels in brackets are numbers, one behind the other."""
    return label[0] == "[" and last[:1] == "[" and _bare(label).isdigit() and _bare(last) == str(int(_bare(label)) - 1)


def _bare(label: str) -> str:
    return label.strip("[]{}().").replace(" ", "")


def _may_refer(text: str, match: re.Match) -> bool:
    """Not at the beginning of a line; in parentheses only after no space or at the end of a line; no row of stars.

    An index, as in `x^{2}`, is none.
    """
    start, end = match.span()
    if not text[text.rfind("\n", 0, start) + 1 : start].strip() or text[start - 1] in "_^":
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
    return (
        (*match.span(), "")
        for match in DECORATION.finditer(text)
        if len(re.findall(r"\S", match[0])) >= 3 and not _is_rule_of_table(text, match)
    )


def _is_rule_of_table(text: str, match: re.Match) -> bool:
    """Whether a line of dashes stands directly under one that is cut into cells by `|`."""
    end = max(0, match.start() - 1)
    line = text[text.rfind("\n", 0, end) + 1 : end]
    return "|" in line and any(map(str.isalnum, line))


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
        is_table = _is_table(lines)
        is_prose = not is_table and SHORTEST_WRAP <= width <= LONGEST_WRAP and _is_prose(lines, indents, rooms, width)
        least, position = min(indents), block.start()
        needed = SHORT * min(width, max(map(len, lines))) if is_prose else FILLED * width
        for number, (line, indent) in enumerate(zip(lines, indents, strict=True)):
            deeper = number > 0 and indent >= indents[number - 1] + 2
            begins_small = line[indent : indent + 1].islower()
            # Prose goes on but where a paragraph begins; verse does in a line deeper than the one that had no room.
            goes_on = begins_small or not deeper if is_prose else begins_small and deeper
            if number and goes_on and not is_table and rooms[number - 1] > needed:
                before = lines[number - 1]
                yield position - 1, position + indent, "" if before.endswith(("--", "—")) else " "
            elif strip := indent if is_prose else least:
                yield position, position + strip, ""
            position += len(line) + 1


def _is_table(lines: list[str]) -> bool:
    cells = sum("|" in line or bool(COLUMNS.search(line)) for line in lines)
    return len(lines) > 1 and cells >= MOST_CELLS * len(lines)


def _is_prose(lines: list[str], indents: list[int], rooms: list[int], width: float) -> bool:
    capitals = sum(first[1].isupper() for first in map(FIRST_LETTER.match, lines[1:]) if first) / len(rooms)
    full = sum(room > FILLED * width for room in rooms) / len(rooms)
    if len(lines) > 2 and all(line.lstrip()[:1].isdigit() for line in lines):
        return False  # a list
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
