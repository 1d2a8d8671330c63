"""The lines of a book: words divided at their ends, paragraphs broken into them, spaces inside them."""

import itertools
import re
from collections.abc import Iterator

import numpy as np

from smallm_hf.data.cleaning.edits import Edit
from smallm_hf.data.cleaning.gutenberg.frame import BLOCK, COLUMNS

HYPHENATED = re.compile(r"-(?<!--)\n[ \t]*([^\W\d_]+)")
LAST_WORD = re.compile(r"[^\W\d_][\w-]*\Z")
FIRST_LETTER = re.compile(r"[\W_]*(\w)")
MOST_CELLS = 0.6  # share of the lines of a table that have several cells
INNER_SPACES = re.compile(r"(?:  |\t)[ \t]*(?=\S)")
SHORTEST_WRAP, LONGEST_WRAP = 50, 120  # characters; text with shorter lines is verse, with longer ones not wrapped
FILLED = 0.85  # of the usual width is reached by a line with the word after it if the line ended for lack of room
SHORT = 0.6  # of the width: such a line ended for another reason
VERSE_CAPITALS = 0.7  # share of lines that begin with a capital letter in verse


def hyphenation(text: str) -> Iterator[Edit]:
    """Joins words divided at the end of a line.

    The hyphen goes where the text has the whole word elsewhere; otherwise it stays next to what is a word by itself.
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
    """Joins the lines of prose into paragraphs without indentation; verse, plays and lists keep their lines.

    A line of prose ends where the next word had no room; a line of verse ends earlier, or all begin with capitals.
    """
    inner = [len(line) for block in BLOCK.finditer(text) for line in block[0].split("\n")[:-1]]
    width = float(np.percentile(inner, 90)) if inner else 0
    for block in BLOCK.finditer(text):
        lines = block[0].split("\n")
        indents = [len(line) - len(line.lstrip()) for line in lines]
        rooms = [len(line) + 1 + len(after.strip().split(" ", 1)[0]) for line, after in itertools.pairwise(lines)]
        cells = sum("|" in line or bool(COLUMNS.search(line)) for line in lines)
        is_table = len(lines) > 1 and cells >= MOST_CELLS * len(lines)
        may_be_prose = len(lines) > 1 and not is_table and SHORTEST_WRAP <= width <= LONGEST_WRAP
        is_prose = may_be_prose and _is_prose(lines, indents, rooms, width)
        least, position = min(indents), block.start()
        needed = SHORT * min(width, max(map(len, lines))) if is_prose else FILLED * width
        for number, (line, indent) in enumerate(zip(lines, indents, strict=True)):
            deeper = number > 0 and indent >= indents[number - 1] + 2
            begins_small = line[indent : indent + 1].islower()
            # Prose goes on unless a paragraph begins; verse does in a line deeper than the one that had no room.
            goes_on = begins_small or not deeper if is_prose else begins_small and deeper
            if number and goes_on and not is_table and rooms[number - 1] > needed:
                before = lines[number - 1]
                yield position - 1, position + indent, "" if before.endswith(("--", "—")) else " "
            elif strip := indent if is_prose else least:
                yield position, position + strip, ""
            position += len(line) + 1


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
