"""Who made the file of a book, and transcribers' notes: at its front and its back."""

import re
from collections.abc import Iterator

from smallm_hf.data.cleaning.edits import Edit
from smallm_hf.data.cleaning.gutenberg.frame import BLOCK, FRONT_CHARACTERS, PROJECT

BACK_CHARACTERS = 6_000
NOTE_CHARACTERS = 4_000  # from the heading of a note to the gap after it
GAP = re.compile(r"(?<=[^\n]\n\n)\n{2}")
MADE = (
    r"(?:Produced|Prepared|Created|Transcribed|Scanned|Typed|Keyed|Digiti[sz]ed|Proof(?:read|ed)|Converted|"
    r"HTML version) (?:and [\w-]+ )*(?:by|from)\b"
)
CREDIT = re.compile(
    rf"(?is)\W*This (?:e-?text|e-?book) was {MADE}|\W*E-?text (?:prepared|produced|created|scanned|typed|by)\b|"
    rf".*(?:{PROJECT}|Distributed Proofread|pgdp\.net|\be-?texts?\b|gutenberg\.(?:org|net)|"
    r"images of the original (?:pages|book) are available)"
)
MAKERS = re.compile(rf"(?is)\W*(?:This (?:file|book) was )?{MADE}(?P<names>.*)")
SMALL_WORD = re.compile(
    r"(?<![\w@./-])(?!(?:an?|and|at|by|d[aeu]|den|der|for|from|in|of|the|v[ao]n|with)\b)[^\W\d_A-Z]"
)
ON_MAKING = re.compile(
    r"(?i)\b(?:\d{4}\b[^.]*\bedition|e-?mail|proofread\w*|html|https?|OCR|(?:scanned|page) images|"
    r"images (?:generously )?made available)\b|@"
)
NOTE_ABROAD = (  # in other languages: `Anmerkungen zur Transkription`, `Nota del transcriptor`
    r"(?:(?:An|Be)m(?:erk|ærk|ärk)ning\w*|Anmerkung\w*|Hinweise?|Not(?:er?|en|as?|es)|Noot|Opmerking(?:en)?|Aantekening(?:en)?|"
    r"Huomautu\w*) (?:(?:zur|sur|d[aeiou]|du|des|del|della|van|till?|om) )?(?:l[ae] |l['’]|de |den |het )?"
    r"(?:tran?s[ck]ri|bewerk|afskriv|avskri|overzet)\w+|"
    r"(?:Afskriver|Avskriver|Bewerker|Transkri)\w* ?(?:bem|an[mt]|no[ot])\w+"
)
NOTE_OF_TRANSCRIBER = re.compile(
    r"(?is)\W*(?:Original )?(?:Transcriber|Preparer|Proofreader|Digitizer|E-?text editor)s?['’]?s?['’]?\s+(?:\w+ )?"
    r"(?:(?:End)?notes?|amendments|corrections|changes|errata|remarks)\b|"
    r"\W*(?:Typographical|Typos|Spelling|Printer['’]?s) errors?\b(?=\W*$|[^\n]*:\W*$|.*\b(?:transcriber|e-?text)\b)|"
    r"\W*(?:Notes?|Errata|Corrections|Changes|Amendments)\W+(?:\w+ ){0,3}(?:from|by|of) (?:the )?transcriber|"
    rf"\W*{NOTE_ABROAD}|There are several editions of this e-?(?:book|text)\b.*"
)
ON_THE_FILE = re.compile(
    r"(?is)\b(?:transcri\w+|typographical|e-?text|html|ascii|utf-?8|unicode|italics?|underscores?|hyphenation|misspell\w*)\b|"
    r"\b(?:spelling|punctuation)\b.*\b(?:original|retained|corrected|kept)\b"
)
CORRECTION = re.compile(
    r"(?i)\b(?:pages?|line|changed|corrected|original|printed|typo|reads?|replaced|inserted|added|removed|missing)\b"
)
ERRORS = re.compile(
    r"(?i)\b(?:errors?|corrections?|misprints?|typos?|spellings?|punctuation|hyphenation|inconsisten\w+)\b"
)
# An entry of a list of corrections has a place, or two readings; a sentence of a story does not.
ENTRY = re.compile(
    r"(?i)^\W*(?:pages?|pp?\.|pg|lines?|chapter|vol\w*|part) ?[\divxlc]+\b.*|.*(?:=>|->|→).*|"
    r".*[\"“”'‘’]\W*\b(?:changed|corrected|amended|replaced|altered|read|should (?:be|read))\b.*"
)
CHANGES = re.compile(  # a heading or a sentence that may begin a list of errors
    r"(?is)\W*(?:(?P<heading>(?:list of )?(?:errata|corrigenda|corrections|changes|misprints)\W*(?:\n|$))|"
    r"(?:the following|these|minor|obvious|inconsistent|variant|archaic|spelling|punctuation|hyphenation|"
    r"im folgenden)\b.{0,300}\b(?:corrected|changed?|made|retained|preserved|kept|amended|noted|printed|unchanged|"
    r"angeführt)\b)"
)


def credits_and_notes(text: str) -> Iterator[Edit]:
    """Removes credits for the file, and transcribers' notes, from the front and the back of the book.

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
        if note := NOTE_OF_TRANSCRIBER.match(block[0]) or _list_of_changes(text, block, at_back):
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
            if _is_credit(block[0]):
                yield *block.span(), ""


def _is_credit(block: str) -> bool:
    """Whether it is about the file, or says who made it, in names alone, as a sentence may begin so, too."""
    makers = MAKERS.match(block)
    return bool(CREDIT.match(block) or (makers and (not SMALL_WORD.search(makers["names"]) or ON_MAKING.search(block))))


def _list_of_changes(text: str, block: re.Match, at_back: bool) -> re.Match | None:
    """A heading of errata, or a sentence about them at the back, if what follows is a list or about the file."""
    match = CHANGES.match(block[0])
    if not match or not (at_back or match.end() >= len(block[0])):
        return None
    rest = text[block.end() : block.end() + NOTE_CHARACTERS].strip()
    entries = [bool(ENTRY.fullmatch(line)) for line in rest.split("\n") if line.strip()]
    if entries[:1] == [True] and sum(entries) * 2 > len(entries):
        return match
    is_on_errors = match["heading"] or ERRORS.search(block[0])
    said = block[0] + rest.split("\n\n")[0]
    return match if at_back and is_on_errors and ON_THE_FILE.search(said) else None


def _beginning_of_back(text: str) -> int:
    """Where the back of the book begins: at its last characters, or earlier at a long list of corrections."""
    last = len(text) - BACK_CHARACTERS
    for block in BLOCK.finditer(text, len(text) * 9 // 10, max(0, last)):
        is_note = NOTE_OF_TRANSCRIBER.match(block[0])
        if is_note and len(CORRECTION.findall(text, block.end())) * 2 > text.count("\n", block.end()):
            return block.start()
    return last
