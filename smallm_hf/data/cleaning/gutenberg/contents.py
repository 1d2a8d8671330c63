"""Tables of contents and lists of illustrations, with a heading or without one."""

import re
from collections.abc import Iterator

from smallm_hf.data.cleaning.edits import Edit
from smallm_hf.data.cleaning.gutenberg.frame import BLOCK, COLUMNS, FRONT_CHARACTERS

ALONE = r"^(?<![^\n]\n)"  # a heading is not the last line of a paragraph
PICTURES = "illustrations|plates|maps|figures|engravings|portraits|drawings|photographs|diagrams"
TABLE = (
    rf"(?:(?:a )?table of |the )?(?:contents|(?:full[- ]page )?illustrations)|"
    rf"list of (?:[\w-]+ ){{0,3}}(?:{PICTURES}|chapters|stories|poems)|"
    r"inhalt(?:s(?:verzeichnis|übersicht))?|inhoud(?:sopgave)?|table des (?:matières|chapitres|gravures)|sommaire|"
    r"[íi]ndice|sum[áa]rio|contenido|tabla de (?:materias|contenidos)|innehåll|indhold|innhold|sisällys"
)
CONTENTS = re.compile(
    rf"(?im){ALONE}[ \t]*[_=]*(?=[atcflisí])(?:{TABLE})(?: (?:and|&) (?:contents|{PICTURES}))?"
    r"(?:[^\w\n]+(?:(?:of|to|for) )?(?:the )?(?:\w+ )?(?:vol|volume|part|book|chapters?)\b[^\n]{0,20}?)?[.:_=]*[ \t]*$"
)
CONTENTS_CHARACTERS = 60_000
NEAR_END = 200  # characters from a repeated title to the end of the table
NUMERAL = r"[ivxlc]+|\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten|first|second|third|fourth|fifth"
NUMBERED = re.compile(
    rf"(?i)\W*(?:(?P<label>chapter|chap|book|part|stave|letter|volume|vol|act|scene|canto|section)\b\W*)?"
    rf"(?:(?P<number>{NUMERAL})(?![\w'’])\W*)?(?P<rest>.*)"
)
PAGE_AT_END = re.compile(r"[ .\t]{2,}(?:\d{1,4}|[ivxlc]{1,7}|_?Frontispiece_?)\.?[ \t]*$")
MYSELF = re.compile(r"\W*I [a-z]")
COLUMN_NAMES = re.compile(
    r"(?i)\W*(?:(?:chapters?|chap|cap|facing|to face|page|pag|stave|no|plate|fig|bladz|blz|seite|kapitel)\b\W*)+"
)
PAGE_OF_NUMBERED = re.compile(r"(?=\W*(?:[IVXLC]+|\d{1,3})[.)]? ).*\S(?: {3,80}|[ .]{4,80})(\d{1,4})[ \t]*$")
OTHER_LIST = re.compile(r"(?i)\W*list of\b")
TOPICS = re.compile(r"--|—| – ")
LONGEST_TOPIC = 15  # words
LONGEST_SUMMARY = 12  # lines of what a chapter is about
GOES_ON = 0.7  # share of the lines that begin with a small letter in prose
MOSTLY = 0.5  # share of paragraphs that are entries where headings stand between them
WORD_AND_NUMBER = re.compile(r"^\W*\w+\W+(?:[IVXLC]+|\d{1,3})\b\W*")
LINE = re.compile(r"\S[^\n]*")
SINGLE_LINE = re.compile(r"(?<=\n\n)[ \t]*([^\n]{1,80})(?=\n\n)")
FEWEST_ENTRIES = 4
FOUND = 0.75  # share of the lines of a table without a heading that are numbered, and of those found again


def tables_of_contents(text: str) -> Iterator[Edit]:
    """Removes tables of contents and lists of illustrations: from their heading to where the book begins.

    The book begins where the first entry, or after a gap another one, is the heading of a paragraph; or at the first
    paragraph that is not an entry, with the headings above it. A repeated line of the title page belongs to the book.
    """
    position, known, front = 0, [], ""
    for heading in CONTENTS.finditer(text):
        if heading.start() >= position and (end := _end_of_contents(text, heading.end(), known)):
            front = (front + text[position : heading.start()])[-FRONT_CHARACTERS:]
            end = _repeated_title(text, heading.end(), end, front)
            yield heading.start(), end, ""
            position = end


def _repeated_title(text: str, start: int, end: int, front: str) -> int:
    """Where the title is repeated before `end`: a line of `front`, or set off and in several parts; otherwise `end`."""
    title_page, said = {_words(line) for line in front.split("\n")} - {""}, f" {_words(front)} "
    previous, parts = start, None
    for block in BLOCK.finditer(text, start, end):
        is_set_off = "\n\n\n" in text[previous : block.start()] or text.startswith("\n\n\n", block.end())
        words, previous = _words(block[0]), block.end()
        is_part = f" {words} " in said and (parts is not None or (is_set_off and " " in words))
        parts = (block.start() if parts is None else parts) if is_part else None
        if words in title_page and end - block.end() < NEAR_END:
            return block.start() if parts is None else parts
    return end if parts is None or end - parts > NEAR_END else parts


def _end_of_contents(text: str, start: int, known: list[tuple[str, str, str]]) -> int | None:
    """Where the table that begins at `start` ends; its entries are added to those `known` from earlier tables."""
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
            return _second_table(text, block) or block.start()
        if not are_entries(lines):
            near = [start for start, gap in gaps[1:][-4:] if gap > 2]
            return (near[-1] if near else block.start()) if gaps else None
        headings = [_heading(line) for line in lines]
        first = first or headings[0]
        known += headings
        gaps.append((block.start(), gap))
    return len(text) if gaps and previous == len(text.rstrip()) else None


def _second_table(text: str, heading: re.Match) -> int | None:
    """Where the heading comes again after nothing but entries: it began a second table, not the book."""
    line = heading[0].split("\n")[0].strip()
    stop = heading.end() + CONTENTS_CHARACTERS
    again = re.compile(rf"(?m)^[ \t]*{re.escape(line)}[ \t]*$").search(text, heading.end(), stop)
    if not again or not _heading(line)[2]:
        return None
    between = [block[0].split("\n") for block in BLOCK.finditer(text, heading.end(), again.start())]
    is_table = len(between) >= FEWEST_ENTRIES and max(map(len, between)) <= LONGEST_SUMMARY
    return again.start() if is_table and sum(map(are_entries, between)) >= MOSTLY * len(between) else None


def _heading(line: str) -> tuple[str, str, str]:
    """(label, number, words) of a heading or an entry, to compare them by."""
    match = NUMBERED.match(PAGE_AT_END.sub("", line).lower())
    return match["label"] or "", match["number"] or "", _words(match["rest"])


def _words(line: str) -> str:
    return " ".join(re.findall(r"\w+", line.lower().replace("&", "and")))


def _is_heading_of(heading: tuple[str, str, str], entry: tuple[str, str, str]) -> bool:
    """Whether both have the same number and the words of one begin the other's; or the same words and one no number."""
    (label, number, words), (other_label, other_number, other_words) = heading, entry
    if number and number == other_number and (label == other_label or not (label and other_label)):
        if words and other_words:
            return f"{other_words} ".startswith(f"{words} ") or f"{words} ".startswith(f"{other_words} ")
        may_differ = not other_label if words else label not in ("volume", "vol")
        return label == other_label or may_differ
    return bool(words) and words == other_words and not (number and other_number)


def _stands_for(heading: tuple[str, str, str], entry: tuple[str, str, str]) -> bool:
    """Whether a heading is that of the entry wherever it is found; it may leave out the entry's last words."""
    _, number, words = heading
    is_begun = not number and " " in words and entry[2].startswith(f"{words} ")
    return is_begun or _is_heading_of(heading, entry)


def are_entries(lines: list[str]) -> bool:
    """Whether a paragraph is made of entries: half of its lines are, or it is one, or topics, or a single short line.

    A paragraph is not if most of its lines go on in small letters.
    """
    if PAGE_AT_END.search(lines[-1]) or _are_topics(" ".join(lines)):
        return True
    if len(lines) == 1:
        is_sentence = re.search(r"^\W*[\"“'‘]|[.!?][\"”'’]*$", lines[0].strip())
        return len(lines[0]) <= (40 if is_sentence else 80) or _is_entry(lines[0])
    counted = lines[:-1] if len(lines) > 2 else lines  # the last line of prose is short, too
    goes_on = sum(line.strip()[:1].islower() for line in lines[1:])
    is_prose = len(lines) > 3 and goes_on >= GOES_ON * (len(lines) - 1)
    return not is_prose and sum(map(_is_entry, counted)) * 2 >= len(lines)


def _are_topics(paragraph: str) -> bool:
    """Whether it lists what a chapter is about, between dashes: each topic is short and begins with a capital."""
    topics = [topic.strip(" \"'“‘_([") for topic in TOPICS.split(paragraph)]
    return len(topics) > 1 and all(
        topic and not topic[0].islower() and len(topic.split()) <= LONGEST_TOPIC for topic in topics
    )


def _is_entry(line: str) -> bool:
    """Whether it is numbered, short, in columns, ends in a page number, or has more capitals than a sentence."""
    words = re.findall(r"[^\W\d_]{4,}", line)
    capitals = sum(word[0].isupper() for word in words)
    is_short = len(words) < 3 or capitals * 2 > len(words)
    return bool(is_short or _is_numbered(line) or COLUMNS.search(line))


def _is_numbered(line: str) -> bool:
    """Whether it begins with a number, or ends in a page number; `I` may also be a person."""
    return bool((NUMBERED.match(line)["number"] and not MYSELF.match(line)) or PAGE_AT_END.search(line))


def unnamed_tables(text: str) -> Iterator[Edit]:
    """Removes tables of contents without a heading from the front, and the names of their columns.

    Their lines are numbered and end in pages that count up; or each is a later heading, once and in order. A list of
    persons is not a table: their names come more than once, or in no order, or never on a line of their own.
    """
    lines = list(LINE.finditer(text, 0, min(FRONT_CHARACTERS, len(text))))
    numbered = [index for index, line in enumerate(lines) if _is_numbered(line[0])]
    spans = (after - before for before, after in zip(numbered, numbered[FEWEST_ENTRIES - 1 :], strict=False))
    if not any(span < 2 * FEWEST_ENTRIES for span in spans):
        return  # far quicker than to look for all that may be a heading
    pages = {index: int(page[1]) for index in numbered if (page := PAGE_OF_NUMBERED.match(lines[index][0]))}
    headings = _headings_later(text, lines)
    tables = [run for run in _runs(text, lines, pages) if len(run) > FEWEST_ENTRIES]
    for run in _runs(text, lines, headings):
        entries = [_is_numbered(line[0]) for line in lines[run[0] : run[-1] + 1]]
        is_found = min(len(run), sum(entries)) >= FOUND * len(entries) and len(run) >= FEWEST_ENTRIES
        if is_found and lines[run[-1]].end() < headings[run[0]]:
            tables.append(run)
    position = 0
    for first, last in sorted((run[0], run[-1]) for run in tables):
        while first and _is_near(text, lines, first - 1, first) and _may_begin_table(lines[first - 1][0]):
            first -= 1
        if lines[first].start() >= position:
            position = lines[last].end()
            yield text.rfind("\n", 0, lines[first].start()) + 1, position, ""


def _headings_later(text: str, lines: list[re.Match]) -> dict[int, int]:
    """The place of the heading that a line names, for the lines that name exactly one after them."""
    places: dict[str, list[int]] = {}
    for match in SINGLE_LINE.finditer(text):
        for name in {*_names(match[1])}:
            places.setdefault(name, []).append(match.start())
    found = {}
    for index, line in enumerate(lines):
        later = {place for name in _names(line[0]) for place in places.get(name, ()) if place > line.end()}
        if len(later) == 1:
            found[index] = later.pop()
    return found


def _runs(text: str, lines: list[re.Match], places: dict[int, int]) -> list[list[int]]:
    """Runs of lines near each other whose places are in order; a single entry between them may have none."""
    runs: list[list[int]] = []
    for index, place in places.items():
        last = runs[-1][-1] if runs else index
        goes_on = index - last == 1 or (index - last == 2 and _is_entry(lines[last + 1][0]))
        if goes_on and place >= places[last] and _is_near(text, lines, last, index):
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _is_near(text: str, lines: list[re.Match], before: int, index: int) -> bool:
    return "\n\n\n\n" not in text[lines[before].end() : lines[index].start()]


def _may_begin_table(line: str) -> bool:
    return bool(_is_numbered(line) or COLUMN_NAMES.fullmatch(line))


def _names(line: str) -> Iterator[str]:
    """What the heading of an entry may be called: all of it, or what follows its number if anything does."""
    line = PAGE_AT_END.sub("", line)
    if rest := _heading(WORD_AND_NUMBER.sub("", line))[2]:
        yield from (_words(line), rest)
