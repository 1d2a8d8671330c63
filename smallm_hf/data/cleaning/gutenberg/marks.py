"""What a transcriber put into the text of a book: tags, page numbers, decoration and marks of type."""

import itertools
import re
from collections.abc import Iterator

from smallm_hf.data.cleaning.edits import Edit, removal
from smallm_hf.data.cleaning.gutenberg.notes import NOTE_ABROAD

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
TAGS = re.compile(rf"(?i)\[\W*(?:{TAGGED}){BRACKETS}|(?<=\n\n)[ \t]*\[(?:{PICTURE}|Music)\][ \t]*(?=\n\n|\Z)")
NAME_OF_PICTURE = re.compile(  # what is left of a picture in a text made from a page of the web
    r"(?i)\n\n[ \t]*(\d{3,5}[a-z]|[\w-]+\.(?:jpe?g|png|gif)(?: \(\d+K\))?|Full Size)[ \t]*(?=\n\n|\Z)"
)
PAGE_TAG = re.compile(
    r"(?i)[\[{][ \t]*(?:pg?|page|pag|s(?=\.)|seite|bladz|blz)(?:\.?[ \t]*\d{1,4}|[. \t]+[ivxlc]+)[ \t]*[\]}]"
    r"(?:\d{1,4})?"
)
BRACKETED_PAGE = re.compile(r"[\[{](\d{1,4})[\]}]")
PAGE_LINE = re.compile(
    r"(?i)\n\s{0,20}[-\[{(|]?[ \t]{0,80}(?:(?:pg?|page)\.? {0,2})?(\d{1,4})[ \t]{0,20}[-\]})|]?\n\s{0,20}"
)
FEWEST_PAGES = 10
INTERRUPTED = 0.3  # share of the page numbers that stand inside a sentence
IN_ORDER = 0.9  # share of the bracketed numbers that are one more than the one before if they are pages
DECORATION = re.compile(r"(?m)^[ \t]*[*\-_=~#.·•—–+|^:][*\-_=~#.·•—–+|^: \t]*$")
UNDERSCORE = re.compile(r"_(?<!__)(?![_{])")
BOLD = re.compile(  # not what is counted, `#5`, or spoken of, `"#"`, nor a line of a table
    r"([=+~#])(?<![\w=+~#][=+~#])(?=[^\W\d]|[\"'“‘(])(?:(?!\n\n)[^=+~#])+?(?<=[^\s“‘(])(?!(?<=[\"'])[=+~#][\"'])\1(?![\w=+~#])"
)


def bracketed_tags(text: str) -> Iterator[Edit]:
    """Removes `[Illustration ...]`, `[Transcriber's note ...]` and the like, over lines and with brackets inside."""
    for match in TAGS.finditer(text):
        yield match.start(), match.end() + _is_line_of_paragraph(text, match), ""
    for match in NAME_OF_PICTURE.finditer(text):
        yield *match.span(1), ""


def _is_line_of_paragraph(text: str, match: re.Match) -> bool:
    """Whether there are lines of text directly above and below, which not even a blank line may part afterwards."""
    before, after = text[max(0, match.start() - 2) : match.start()], text[match.end() : match.end() + 2]
    return before[-1:] == after[:1] == "\n" and "\n\n" not in (before, after) and len(before + after) == 4


def page_numbers(text: str) -> list[Edit]:
    """Removes `[Pg 12]` and the like, bracketed numbers that count up, and lone ones that do and break sentences."""
    edits = [removal(text, match) for match in PAGE_TAG.finditer(text)]
    bracketed = list(BRACKETED_PAGE.finditer(text))
    if _count_up([int(match[1]) for match in bracketed]):
        edits += [removal(text, match) for match in bracketed]
    lines, last = [], 0
    for match in PAGE_LINE.finditer(text):
        number = int(match[1])
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        if before and after and (not lines or last < number <= last + 20):
            last = number
            is_inside = after.islower() or before.islower() or before in ",;-"
            lines.append((*match.span(), "\n" if is_inside else "\n\n"))
    if len(lines) >= FEWEST_PAGES and sum(new == "\n" for _, _, new in lines) >= INTERRUPTED * len(lines):
        edits += lines
    return edits


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
    for match in BOLD.finditer(text):
        yield match.start(), match.start() + 1, ""
        yield match.end() - 1, match.end(), ""
    for match in UNDERSCORE.finditer(text):
        if not _is_inside_name(text, match.start()):
            yield *match.span(), ""


def _is_inside_name(text: str, place: int) -> bool:
    """Whether an underscore is the only one of its word and has letters on both sides."""
    if not (text[place - 1 : place].isalnum() and text[place + 1 : place + 2].isalnum()):
        return False
    return "_" not in text[max(0, place - 80) : place].split()[-1] + text[place + 1 : place + 80].split()[0]
