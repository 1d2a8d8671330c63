"""Rules for any text: broken letters, blanks, remains of web pages, and lines that many documents have.

Each is a pure function from a text to its edits; `cleaning` says which run, and in which order.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

import ftfy
import ftfy.badness

from smallm_hf.data.cleaning.edits import Edit, Rule
from smallm_hf.data.reading.documents import Document

LINE_ENDS = re.compile(r"\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
CONTROLS = [*range(0x09), *range(0x0E, 0x1C), 0x1F, *range(0x7F, 0x85), *range(0x86, 0xA0)]
INVISIBLE = "".join(map(chr, [*CONTROLS, 0xAD, 0x200B, 0x2060, 0xFEFF, *range(0xFFF9, 0xFFFD)]))
NO_BREAK = "\xa0\u202f"
UNSEEN = re.compile(f"[{re.escape(INVISIBLE)}]+|[{NO_BREAK}]")
# A letter of several bytes, decoded one by one, is a run of these; ftfy's own test costs ten times as much.
SUSPECT = re.compile(r"[^\0-\x7f]{2}|[ÃÂ] ")
LOST_QUOTE = re.compile(r"â€(?=[\sA-Za-z,.!?]|\Z)")  # the last byte of ” is not in Windows-1252, and often dropped
NON_ASCII = re.compile(r"[^\0-\x7f]")
MENDING = ftfy.TextFixerConfig(uncurl_quotes=False)
TRAILING_SPACES = re.compile(r"(?<![ \t])[ \t]++(?=\n|\Z)")
LINE_WITH_END = re.compile(r"[^\n]*\n|[^\n]+")
BLANK_LINES = re.compile(r"\n{3,}")
CODE = r"(?P<code>```.*?(?:```|\Z)|`[^`\n]+`)"
ENTITY = r"(?P<entity>&(?:#\d{2,6}|#x[0-9a-fA-F]{2,5}|[a-zA-Z][a-zA-Z0-9]{1,15});|\#39;|\bquot;)"
BLOCK_TAGS = "p|br|hr|div|h[1-6]|li|ul|ol|tr|table|blockquote"
TAG_NAMES = f"{BLOCK_TAGS}|b|i|u|em|strong|span|a|font|img|td|th|tbody|small|sup|sub|center|strike"
ATTRIBUTE = r"""\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|&quot;[^<>]{0,300}?&quot;|[^\s<>&"']+)"""
TAG = rf"(?P<tag>(?:<|&lt;)/?(?P<name>(?i:{TAG_NAMES}))(?:{ATTRIBUTE})*\s*/?(?:>|&gt;))"
ENTITIES = re.compile(r"&#?\w+;")
WEB_PAGE = re.compile(r"(?is)\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b[^<>]*>")
HTML = re.compile(f"(?s){CODE}|{TAG}|{ENTITY}")
EDGE_LINES = 20  # at either end of a document, among which repeated lines are
SAMPLE_DOCUMENTS, SAMPLE_CHARACTERS = 5000, 1 << 26  # searched for them, whichever is reached first
FEWEST_REPEATS = 10  # that have a repeated line
REPEATED_WORDS = 3  # a shorter line does not count as repeated


def line_ends(text: str) -> Iterator[Edit]:
    """Ends all lines with a newline."""
    return ((*match.span(), "\n") for match in LINE_ENDS.finditer(text))


def invisible_characters(text: str) -> Iterator[Edit]:
    """Removes control characters, soft hyphens, byte order marks and spaces of no width; no-break spaces become spaces.

    Joiners stay: scripts and emoji are written with them.
    """
    if any(character in text for character in INVISIBLE + NO_BREAK):  # far quicker than the expression
        yield from ((*match.span(), " " if match[0] in NO_BREAK else "") for match in UNSEEN.finditer(text))


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


def is_html(text: str) -> bool:
    """Returns whether a text is the source of a web page, by how it begins."""
    return bool(WEB_PAGE.match(text))


def html_remains(text: str) -> Iterator[Edit]:
    """Decodes entities and removes the tags of web pages, also half-decoded ones; not in code between backticks."""
    if not ("<" in text or "#39;" in text or "quot;" in text or ENTITIES.search(text)):
        return
    for match in HTML.finditer(text):
        if match["tag"]:
            yield *match.span(), "\n" if re.fullmatch(BLOCK_TAGS, match["name"], re.IGNORECASE) else ""
        elif match["entity"]:
            lost = match[0][0] != "&"  # some pipelines put a space in place of the ampersand
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


def repeated_lines(known: frozenset[str]) -> Rule:
    """Returns the rule that removes lines found by `find_repeated_lines` from both ends of a document."""

    def repeated_lines(text: str) -> Iterator[Edit]:
        for start, line in _edge_lines(text) if known else ():
            if line.strip() in known:
                yield start, start + len(line), ""

    return repeated_lines


def _edge_lines(text: str) -> list[tuple[int, str]]:
    """(position, line with its end) of the first and the last lines."""
    lines = [(match.start(), match[0]) for match in LINE_WITH_END.finditer(text)]
    return lines[:EDGE_LINES] + lines[EDGE_LINES:][-EDGE_LINES:]


def find_repeated_lines(documents: Iterable[Document], share: float) -> frozenset[str]:
    """Finds the lines at the head or the foot of many of the first 5,000 documents.

    Args:
        documents: as they are read; those in several pieces are passed over, and so are rows and source code, where
            what is repeated belongs to each.
        share: of the documents that a line has to be in, and in at least 10.
    """
    if not share:
        return frozenset()
    counts, number, characters = Counter(), 0, 0
    for document in documents:
        characters += len(document.text)
        if number >= SAMPLE_DOCUMENTS or characters > SAMPLE_CHARACTERS:
            break
        if document.piece or not document.is_last or document.kind != "text":
            continue
        number += 1
        lines = {line.strip() for _, line in _edge_lines(document.text)}
        counts.update(line for line in lines if len(line.split()) >= REPEATED_WORDS)
    fewest = max(FEWEST_REPEATS, share * number)
    return frozenset(line for line, count in counts.items() if count >= fewest)
