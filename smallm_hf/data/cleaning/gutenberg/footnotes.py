"""Footnotes, and the references to them."""

import re

from smallm_hf.data.cleaning.edits import Edit, removal
from smallm_hf.data.cleaning.gutenberg.frame import BLOCK
from smallm_hf.data.cleaning.gutenberg.marks import BRACKETS

FOOTNOTE = re.compile(
    r"(?i)\[(?:Footnotes?|Fu(?:ß|ss)noten?|Voetnoot|Fodnote|Fotnot|(?:Note|Nota|Noot|Anmerkung)(?= ?\w{1,3}:))\b[ \t]*"
    rf"(?P<label>[\w*†‡]{{0,3}}){BRACKETS}"
)
FOOTNOTES_HEADING = re.compile(
    r"(?im)^[ \t_=]*(?=[FENVA])(?:(?:FOOT|END)?NOTES?|FU(?:ß|SS)NOTEN|VOETNOTEN|NOTAS|NOTEN?|ANMERKUNGEN)"
    r"[.:_=]*[ \t]*\n+(?=\s*(?:[\[{(]?1\b|\[[A*]\]))"
)
LABELLED = re.compile(
    r"[ \t]*(?P<label>[\[{(](?:\d{1,3}|[A-Z]|[*†‡]+)[\]})]|\d{1,3}[.)]?(?=[ \t])|\*[ ]?\(\d\)|[*†‡]{1,3})[ \t]*(?=\S)"
)
REFERENCE = re.compile(r"[\[{](?:\d{1,3}|[A-Z]|[*†‡]+)[\]}]|\((?:\d{1,3}|[*†‡]+)\)|\*[ ]?\(\d\)|[*†‡]{1,3}(?![\w*†‡])")
INDEXED_NAME = re.compile(r"\b\w\Z")  # a single letter, as in `a[1]`
LONGEST_NOTE = 4_000  # characters from one paragraph of a note to the next label
NOTE_DISTANCE = 40_000  # characters from a reference to a note at the end of its chapter


def footnotes(text: str) -> list[Edit]:
    """Removes footnotes, on the page, after the chapter or at the end, and the references to them.

    A reference is followed by a paragraph that begins with its label, near it or under a heading for notes. Where that
    may as well be an item of a list (`1. Of this`), only the reference goes.
    """
    references = [match for match in REFERENCE.finditer(text) if _may_refer(text, match)]
    waiting, answered = {}, set()
    for match in references:
        waiting.setdefault(match[0].replace(" ", ""), []).append(match.start())

    def answers(label: str, place: int) -> bool:
        """Whether a note at the place answers references with the label, which then wait no longer."""
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
            edits.append(removal(text, match))
    return edits


def _follows(label: str, last: str) -> bool:
    """Whether two labels in brackets are consecutive numbers."""
    return label[0] == "[" and last[:1] == "[" and _bare(label).isdigit() and _bare(last) == str(int(_bare(label)) - 1)


def _bare(label: str) -> str:
    return label.strip("[]{}().").replace(" ", "")


def _may_refer(text: str, match: re.Match) -> bool:
    """Not at the beginning of a line; in parentheses only without a space before it, or at the end of a line.

    Neither a row of stars nor an index, as in `x^{2}`, is a reference.
    """
    start, end = match.span()
    if not text[text.rfind("\n", 0, start) + 1 : start].strip() or text[start - 1] in "_^":
        return False
    if match[0][0] in "*†‡":
        return "*" not in text[max(0, start - 2) : start].strip() + text[end : end + 2].strip()
    return match[0][0] != "(" or text[start - 1] != " " or text[end : end + 1] in ("", "\n")
