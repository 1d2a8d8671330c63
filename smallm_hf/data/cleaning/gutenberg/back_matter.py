"""What follows the text of a book: its index and the publisher's advertisements."""

import re
from collections.abc import Iterator

from smallm_hf.data.cleaning.edits import Edit
from smallm_hf.data.cleaning.gutenberg.contents import ALONE, FEWEST_ENTRIES, are_entries
from smallm_hf.data.cleaning.gutenberg.frame import BLOCK, FRONT_CHARACTERS
from smallm_hf.data.cleaning.gutenberg.notes import GAP, NOTE_CHARACTERS

INDEX = re.compile(
    rf"(?im){ALONE}[ \t_=]*(?=[giacnsoprtí-])"
    r"(?:(?:(?:general|alphabetical|analytical|combined) )?index(?: (?:of|to)\b[^\n]{0,60})?|"
    r"(?:namen|sach|orts|personen)?-?register|table alphab[ée]tique|[íi]ndice (?:alfab[ée]tico|onom[áa]stico))"
    r"[.:_=]*[ \t]*$"
)
FEWEST_INDEXED, FEWEST_LETTERS = 10, 5
LONGEST_STEP = 5  # letters of the alphabet between two entries of an index
OUT_OF_ORDER = 5  # lines one after the other end an index
END_OF_STORY = re.compile(
    r"(?im)^[ \t_=*]*(?=[tfes])(?:the end|finis|fin|ende|slut|einde|"
    r"end of (?:the )?(?:\w+ )?(?:book|volume|vol|part)[^\n]{0,20})[\W_]*$"
)
BOOKS = "(?:other |new |recent |popular )*(?:works|books|novels|stories|publications)"
OTHER_BOOKS = re.compile(
    rf"^[ \t_=*]*(?=[bwnspor])(?:(?:{BOOKS} )?by the same (?:author|writer)|"
    rf"{BOOKS} (?:published )?by [^\n]{{4,50}})[\W_]*$",
    re.MULTILINE | re.IGNORECASE,
)
ADVERTISED = re.compile(rf"(?im){OTHER_BOOKS.pattern}|^[ \t_=*]*advertisements[\W_]*$")
TRADE = re.compile(
    r"(?i)\b(?:8vo|12mo|16mo|18mo|4to|octavo|quarto|cloth|gilt|paper covers|boards|postpaid|post[- ]free|net|price|"
    r"publish(?:ers?|ed)|print(?:ers?|ed)|press|illustrat(?:ed|ions) by|(?:new|second|third|\w+th) edition|thousand)\b|"
    r"\b\d+_?[sd]\b|\$ ?\d|£|\b\d+ ?(?:cents|cts)\b|& (?:co|sons)\b"
)
ADVERTISED_CHARACTERS = 60_000
OF_TRADE = 0.5  # share of the paragraphs that mention prices, formats and printers
WORDS_OF_TRADE = 0.025  # of all words


def indexes(text: str) -> Iterator[Edit]:
    """Removes an index from the last third: after its heading, many lines in alphabetical order."""
    for heading in INDEX.finditer(text, len(text) * 2 // 3):
        letters, missed, end = [], 0, heading.end()
        for match in re.finditer(r"(?<=\n)[\W_]{0,4}([^\W\d_])[^\n]*(?:\n[ \t]+[^\n]+)*", text[heading.end() :]):
            letter = match[1].lower()
            if letter in "abcd" if not letters else 0 <= ord(letter) - ord(letters[-1]) <= LONGEST_STEP:
                letters.append(letter)
                missed, end = 0, heading.end() + match.end()
            else:
                missed += 1
            if missed > OUT_OF_ORDER:
                break
        if len(letters) >= FEWEST_INDEXED and len(set(letters)) >= FEWEST_LETTERS:
            yield heading.start(), end, ""
            return


def advertisements(text: str) -> Iterator[Edit]:
    """Removes what a publisher put after the end of a book, or under a heading for other books at its back or front.

    At the back, half of the paragraphs up to the end are about prices, formats and printers, and in many words.
    """
    for heading in OTHER_BOOKS.finditer(text, 0, FRONT_CHARACTERS):
        gap = GAP.search(text, heading.end() + 2, heading.end() + NOTE_CHARACTERS)
        listed = [block[0].split("\n") for block in BLOCK.finditer(text, heading.end(), gap.start())] if gap else []
        if sum(map(len, listed)) >= FEWEST_ENTRIES - 1 and all(map(are_entries, listed)):
            yield heading.start(), gap.start(), ""
            break
    back = max(len(text) * 2 // 3, len(text) - ADVERTISED_CHARACTERS)
    ends = [match.end() for match in END_OF_STORY.finditer(text, back)][-1:]
    headings = [match.start() for match in ADVERTISED.finditer(text, max(back, FRONT_CHARACTERS))]
    for start in sorted(ends + headings):
        paragraphs = [block[0] for block in BLOCK.finditer(text, start)]
        found = [len(TRADE.findall(paragraph)) for paragraph in paragraphs]
        is_trade = sum(found) >= WORDS_OF_TRADE * len(text[start:].split()) and sum(map(bool, found)) >= OF_TRADE * len(
            found
        )
        if any(found) and is_trade:
            yield start, len(text), ""
            return
