"""Cleaning: what is no text of the document goes, what is broken is mended, and each removal can be shown.

A rule is a pure function from a text to its edits, `(start, end, new)`: nothing else is changed. `clean_text` applies
one rule after the other and keeps the edits, so that every removed word can be traced to a rule and to its place in
the raw text. Those for any text stand in `general_rules`. Those for books run only on what is recognised as a Project
Gutenberg file (or as `cleaning.gutenberg` says), and stand in `gutenberg`, `gutenberg_lists` and `gutenberg_pages`.
Files of source code are left as they are.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from resiliparse.parse.lang import detect_fast, supported_langs

from smallm_hf.base.errors import UserError
from smallm_hf.data.cleaning import gutenberg, gutenberg_lists, gutenberg_pages
from smallm_hf.data.cleaning.edits import Cleaned, Rule, Span, apply_edits
from smallm_hf.data.cleaning.general_rules import (
    blank_lines,
    broken_unicode,
    html_remains,
    invisible_characters,
    is_html,
    line_ends,
    repeated_lines,
    trailing_spaces,
)
from smallm_hf.data.configuration import CleaningConfig
from smallm_hf.data.reading.documents import Document, Kind, cut_pieces, strip_start

WHOLE_CHARACTERS = 1 << 23  # a longer document is cleaned in parts of this size: no book is, and memory stays flat
EXAMPLES = 3  # shown in the report for each rule and reason
EXAMPLE_CHARACTERS = 160


# --- all rules, in their order ---------------------------------------------------------------------------------------

# Mojibake first: it is made of what the other two remove.
BEFORE: tuple[Rule, ...] = (broken_unicode, line_ends, invisible_characters)
GUTENBERG: tuple[Rule, ...] = (
    gutenberg.header_and_footer,
    gutenberg_pages.bracketed_tags,
    trailing_spaces,  # where a tag was alone in its line, that is now blank
    gutenberg.credits_and_notes,
    gutenberg_lists.tables_of_contents,
    gutenberg_lists.unnamed_tables,
    gutenberg_pages.decorative_lines,
    gutenberg_pages.page_numbers,  # before they are taken for references
    gutenberg_pages.footnotes,
    gutenberg_lists.indexes,
    gutenberg_lists.advertisements,  # at the end, where no index or footnote is now
    gutenberg_pages.emphasis,
    trailing_spaces,  # what the rules above have left of a line
    gutenberg_pages.hyphenation,
    gutenberg_pages.hard_wraps,
    gutenberg_pages.inner_spaces,
)
AFTER: tuple[Rule, ...] = (trailing_spaces, blank_lines)


def clean_text(
    text: str, config: CleaningConfig, repeated: frozenset[str] = frozenset(), kind: Kind = "text"
) -> Cleaned:
    """Applies all rules that fit a text.

    Args:
        text: a document, whole if it can be: books are recognised by their beginning and end.
        config: which rules.
        repeated: lines found by `general_rules.find_repeated_lines`.
        kind: of the document.
    """
    if kind == "code":
        return Cleaned(text, (), is_book=False)
    stages = []

    def run(*rules: tuple[str, Rule]) -> None:
        nonlocal text
        for name, rule in rules:
            if edits := list(rule(text)):
                text = apply_edits(text, edits)
                stages.append((name, edits))

    run(*_named((*BEFORE, trailing_spaces)))
    is_book = config.gutenberg == "always" or (config.gutenberg == "auto" and gutenberg.is_gutenberg(text))
    run(*_named(GUTENBERG if is_book else ()))  # before what would take their marks for lines that many files have
    if kind == "text":
        run(("repeated_lines", lambda text: repeated_lines(text, repeated)))
    has_markup = is_book or is_html(text) if config.html == "auto" else config.html
    run(*_named((*((html_remains,) if has_markup else ()), *AFTER)))
    return Cleaned(strip_start(text, kind).rstrip(), tuple(stages), is_book)


def _named(rules: Iterable[Rule]) -> list[tuple[str, Rule]]:
    return [(rule.__name__, rule) for rule in rules]


# --- filters ---------------------------------------------------------------------------------------------------------

UNSPACED = re.compile(  # letters of scripts that put no spaces between words
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
LETTERS_AND_BLANKS = bytes(byte for byte in range(128) if chr(byte).isalnum() or chr(byte).isspace())
DIGITS = b"0123456789"
FEWEST_CHARACTERS = 200  # in a shorter text a language is guessed
BEST_LANGUAGES, LANGUAGE_MARGIN = 5, 1.05  # one that is so nearly as likely as the likeliest may be it
FEWEST_WORDS = 50  # a shorter text repeats itself by chance
LARGEST_SHARES = {  # Rae et al. 2021, table A1
    "duplicated lines": 0.30,
    "characters in duplicated lines": 0.20,
    "duplicated paragraphs": 0.30,
    "characters in duplicated paragraphs": 0.20,
}
LARGEST_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}  # share of the characters in the commonest one
LARGEST_DUPLICATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # in all that come again


def why_dropped(text: str, config: CleaningConfig) -> tuple[str, str] | None:
    """Names the first filter that a text does not pass, and its numbers; None if it passes all.

    An empty text is not the filters' business.
    """
    words = text.split()
    if not words:
        return None
    number = _count_words(text, words)
    if number < config.min_words:
        return "too short", f"{number} words, min_words={config.min_words}"
    if config.max_words is not None and number > config.max_words:
        return "too long", f"{number} words, max_words={config.max_words}"
    content = text.encode("ascii", "ignore")
    symbols = len(content.translate(None, LETTERS_AND_BLANKS)) / len(text)
    if symbols > config.max_symbols:
        return "symbols", f"{symbols:.3f} of the characters, max_symbols={config.max_symbols}"
    digits = (len(content) - len(content.translate(None, DIGITS))) / len(text)
    if digits > config.max_digits:
        return "digits", f"{digits:.3f} of the characters, max_digits={config.max_digits}"
    if config.languages is not None and len(text) >= FEWEST_CHARACTERS:
        found = detect_fast(
            text.lower(), cutoff=1 << 30, n_results=BEST_LANGUAGES
        )  # (code, distance), the nearest first
        if not any(code in config.languages and far <= LANGUAGE_MARGIN * found[0][1] for code, far in found):
            return "language", f"{found[0][0]}, languages={config.languages}"
    if config.repetition and len(words) >= FEWEST_WORDS:
        return _repetition(text, words)
    return None


def _count_words(text: str, words: list[str]) -> int:
    """The words between spaces, of which those in a script without spaces are as many as their letters."""
    if text.isascii():
        return len(words)
    return sum(max(1, len(UNSPACED.findall(word))) for word in words)


def _repetition(text: str, words: list[str]) -> tuple[str, str] | None:
    for unit, separator in (("paragraphs", "\n\n"), ("lines", "\n")):
        parts = [part for part in map(str.strip, text.split(separator)) if part]
        again = Counter(parts)
        number = sum(count - 1 for count in again.values()) / len(parts)
        characters = sum((count - 1) * len(part) for part, count in again.items()) / len(text)
        for reason, share in ((f"duplicated {unit}", number), (f"characters in duplicated {unit}", characters)):
            if share > LARGEST_SHARES[reason]:
                return reason, f"share {share:.3f}, at most {LARGEST_SHARES[reason]}"
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    total = int(lengths.sum())
    for n, largest in LARGEST_TOP_NGRAM.items():
        _, first, counts = np.unique(_ngrams(hashes, n), return_index=True, return_counts=True)
        top = int(counts.argmax())
        share = counts[top] * lengths[first[top] : first[top] + n].sum() / total
        if counts[top] > 1 and share > largest:
            return f"one {n}-gram over and over", f"share {share:.3f}, at most {largest}"
    for n, largest in LARGEST_DUPLICATED_NGRAMS.items():
        share = _duplicated(hashes, lengths, n) / total
        if share > largest:
            return f"duplicated {n}-grams", f"share {share:.3f}, at most {largest}"
        if share <= min(LARGEST_DUPLICATED_NGRAMS.values()):
            return None  # what longer n-grams cover, shorter ones do
    return None


def _ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """One number for each run of `n` words, equal for equal runs."""
    number = len(hashes) - n + 1
    combined = hashes[:number].copy()
    for offset in range(1, n):
        combined = combined * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + number]
    return combined


def _duplicated(hashes: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters of the words that stand in an n-gram said before, each counted once."""
    combined = _ngrams(hashes, n)
    again = np.ones(len(combined), bool)
    again[np.unique(combined, return_index=True)[1]] = False
    covered = np.zeros(len(lengths) + 1, np.int64)
    starts = np.flatnonzero(again)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + n, -1)
    return int(lengths[np.cumsum(covered[:-1]) > 0].sum())


# --- the whole -------------------------------------------------------------------------------------------------------


@dataclass
class RuleReport:
    """What one rule did: its edits, the characters fewer they left, the documents touched, and examples."""

    edits: int = 0
    characters: int = 0
    documents: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class DropReport:
    """The documents dropped for one reason, and examples."""

    documents: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class CleaningReport:
    """What went in and came out, and why the rest did not."""

    documents_in: int = 0
    documents_out: int = 0
    words_in: int = 0
    words_out: int = 0
    gutenberg_books: int = 0
    rules: dict[str, RuleReport] = field(default_factory=dict)
    dropped: dict[str, DropReport] = field(default_factory=dict)
    repeated_lines: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as plain containers, for JSON."""
        return asdict(self)


class Cleaner:
    """Cleans a stream of documents and counts what happens to them in `report`.

    Args:
        config: which rules and filters.
        repeated: lines found by `general_rules.find_repeated_lines`.

    Raises:
        UserError: a threshold that no document or every one would cross.
    """

    def __init__(self, config: CleaningConfig, repeated: frozenset[str] = frozenset()):
        for name in ("repeated_lines", "max_symbols", "max_digits"):
            if not 0 <= getattr(config, name) <= 1:
                raise UserError(f"cleaning.{name}={getattr(config, name)} is a share; set it between 0 and 1")
        if config.max_words is not None and config.max_words < max(1, config.min_words):
            raise UserError(
                f"cleaning.max_words={config.max_words} is below cleaning.min_words={config.min_words} and drops all; "
                "raise it or leave it out"
            )
        for code in config.languages or ():
            if code not in supported_langs():
                raise UserError(
                    f"cleaning.languages has {code!r}, which is none of the codes that are told apart: "
                    f"{', '.join(supported_langs())}"
                )
        self.config, self.repeated = config, repeated
        self.report = CleaningReport(repeated_lines=sorted(repeated)[:100])

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents that remain, cleaned, in pieces; those that were empty stay so.

        A document is held whole, up to 8 million characters; one that is longer is cleaned in parts of that size and
        passes all filters.
        """
        for _, pieces in itertools.groupby(documents, key=lambda document: document.id):
            yield from self._document(pieces)

    def _document(self, pieces: Iterator[Document]) -> Iterator[Document]:
        first = next(pieces)
        parts = _parts(itertools.chain([first], pieces))
        part, is_whole = next(parts)
        self.report.documents_in += 1
        config = self.config
        text, is_book = self._clean(first, part, config)
        self.report.gutenberg_books += is_book
        why = why_dropped(text, config) if is_whole else None
        if not text and part.strip():
            why = ("nothing left", "all of it was removed by the rules")
        if why:
            dropped = self.report.dropped.setdefault(why[0], DropReport())
            dropped.documents += 1
            if len(dropped.examples) < EXAMPLES:
                dropped.examples.append({"id": first.id, "why": why[1], "begins": part[:EXAMPLE_CHARACTERS]})
            return
        config = replace(config, gutenberg="always" if is_book else "never")  # what it is shows at its beginning
        rest = (self._go_on(first, part, config) for part, _ in parts)
        for document in cut_pieces(first.id, first.metadata, itertools.chain([text], rest), first.kind):
            self.report.words_out += len(document.text.split())
            self.report.documents_out += document.is_last and bool(document.text or document.piece)
            yield document

    def _go_on(self, first: Document, part: str, config: CleaningConfig) -> str:
        """Cleans a later part, which is parted from the one before by the blank that it begins with."""
        text, _ = self._clean(first, part, config)
        blank = part[: part[:1].isspace()]
        return text if not text or text.startswith(blank) else blank + text

    def _clean(self, document: Document, text: str, config: CleaningConfig) -> tuple[str, bool]:
        self.report.words_in += len(text.split())
        cleaned = clean_text(text, config, self.repeated, document.kind)
        for name in dict.fromkeys(name for name, _ in cleaned.stages):  # a rule may run twice
            self.report.rules.setdefault(name, RuleReport()).documents += 1
        for name, edits in cleaned.stages:
            rule = self.report.rules[name]
            rule.edits += len(edits)
            rule.characters += sum(end - start - len(new) for start, end, new in edits)
            if len(rule.examples) < EXAMPLES:
                rule.examples.append({"id": document.id, **_shown(text, next(cleaned.spans(name)))})
        return cleaned.text, cleaned.is_book


def _shown(text: str, span: Span) -> dict[str, str]:
    removed = text[span.start : span.end]
    if len(removed) > EXAMPLE_CHARACTERS:
        removed = f"{removed[: EXAMPLE_CHARACTERS // 2]} [...] {removed[-EXAMPLE_CHARACTERS // 2 :]}"
    around = (text[max(0, span.start - 40) : span.start], text[span.end : span.end + 40])
    return {"before": around[0], "removed": removed, "became": span.new[:EXAMPLE_CHARACTERS], "behind": around[1]}


def _parts(pieces: Iterable[Document]) -> Iterator[tuple[str, bool]]:
    """Joins the pieces of a document to parts of `WHOLE_CHARACTERS`, and tells whether a part is all of it."""
    held, characters, is_first = [], 0, True
    for piece in pieces:
        if characters + len(piece.text) > WHOLE_CHARACTERS and held:
            yield "".join(held), False
            held, characters, is_first = [], 0, False
        held.append(piece.text)
        characters += len(piece.text)
    yield "".join(held), is_first
