"""Cleaning a stream of documents: rules remove what is not text and repair what is broken, filters drop documents.

A rule is a pure function from a text to its edits, `(start, end, new)`; nothing else is changed. `clean_text` applies
one rule after the other and keeps the edits, so that every removed word can be traced to a rule and to its place in
the raw text. `general_rules` are for any text. Those of `gutenberg` are for books, and run only on what is recognised
as a Project Gutenberg file (or as `cleaning.gutenberg` says). Files of source code are left as they are.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from resiliparse.parse.lang import supported_langs

from smallm_hf.base.errors import UserError
from smallm_hf.data.cleaning.edits import CleanedText, Rule, Span, apply_rule
from smallm_hf.data.cleaning.filters import why_dropped
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
from smallm_hf.data.cleaning.gutenberg.back_matter import advertisements, indexes
from smallm_hf.data.cleaning.gutenberg.contents import tables_of_contents, unnamed_tables
from smallm_hf.data.cleaning.gutenberg.footnotes import footnotes
from smallm_hf.data.cleaning.gutenberg.frame import header_and_footer, is_gutenberg
from smallm_hf.data.cleaning.gutenberg.lines import hard_wraps, hyphenation, inner_spaces
from smallm_hf.data.cleaning.gutenberg.marks import bracketed_tags, decorative_lines, emphasis, page_numbers
from smallm_hf.data.cleaning.gutenberg.notes import credits_and_notes
from smallm_hf.data.configuration import CleaningConfig
from smallm_hf.data.reading.documents import Document, TextKind, cut_pieces, strip_start

WHOLE_CHARACTERS = 1 << 23  # a longer document, as no book is, is cleaned in parts of this size to bound memory
EXAMPLES = 3  # in the report for each rule and reason
EXAMPLE_CHARACTERS = 160
MUCH = 0.05  # share of the words of a document that the rules removed, above which it is named

# Mojibake first: it is made of what the next two remove.
BEFORE: tuple[Rule, ...] = (broken_unicode, line_ends, invisible_characters, trailing_spaces)
GUTENBERG: tuple[Rule, ...] = (
    header_and_footer,
    bracketed_tags,
    trailing_spaces,  # a line that was only a tag is now blank
    credits_and_notes,
    tables_of_contents,
    unnamed_tables,
    decorative_lines,
    page_numbers,  # before they are taken for references
    footnotes,
    indexes,
    advertisements,  # at the end, where no index or footnote is now
    emphasis,
    trailing_spaces,  # left by the rules above
    hyphenation,
    hard_wraps,
    inner_spaces,
)
AFTER: tuple[Rule, ...] = (trailing_spaces, blank_lines)


def clean_text(
    text: str, config: CleaningConfig, repeated: frozenset[str] = frozenset(), kind: TextKind = "text"
) -> CleanedText:
    """Applies all rules that fit a text.

    Args:
        text: a document, whole if it can be: books are recognised by their beginning and end.
        config: which rules.
        repeated: lines found by `general_rules.find_repeated_lines`.
        kind: of the document.
    """
    if kind == "code":
        return CleanedText(text, (), is_book=False)
    stages = []

    def run(*rules: Rule) -> None:
        nonlocal text
        for rule in rules:
            text, edits = apply_rule(rule, text)
            if edits:
                stages.append((rule.__name__, edits))

    run(*BEFORE)
    is_book = config.gutenberg == "always" or (config.gutenberg == "auto" and is_gutenberg(text))
    if is_book:
        run(*GUTENBERG)  # before repeated lines, which the marks of many books are
    if kind == "text":
        run(repeated_lines(repeated))
    if is_book or is_html(text) if config.html == "auto" else config.html:
        run(html_remains)
    run(*AFTER)
    return CleanedText(strip_start(text, kind).rstrip(), tuple(stages), is_book)


@dataclass
class RuleReport:
    """What one rule did: its edits, how many characters fewer they left, the documents it changed, and examples."""

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
    """What went in and came out, what each rule did, and why documents were dropped."""

    documents_in: int = 0
    documents_out: int = 0
    words_in: int = 0
    words_out: int = 0
    gutenberg_books: int = 0
    rules: dict[str, RuleReport] = field(default_factory=dict)
    dropped: dict[str, DropReport] = field(default_factory=dict)
    repeated_lines: list[str] = field(default_factory=list)
    lost_much: int = 0
    lost_much_no_book: int = 0
    largest_losses: list[dict[str, Any]] = field(default_factory=list)

    def add_text(self, id: str, text: str, cleaned: CleanedText) -> None:
        """Counts a text, whole or part of a document, that was cleaned."""
        words = len(text.split())
        self.words_in += words
        self._add_loss(id, text, words, cleaned)
        for name in dict.fromkeys(name for name, _ in cleaned.stages):  # a rule may run twice
            self.rules.setdefault(name, RuleReport()).documents += 1
        for name, edits in cleaned.stages:
            rule = self.rules[name]
            rule.edits += len(edits)
            rule.characters += sum(end - start - len(new) for start, end, new in edits)
            if len(rule.examples) < EXAMPLES:
                rule.examples.append({"id": id, **_shown(text, next(cleaned.spans(name)))})

    def _add_loss(self, id: str, text: str, words: int, cleaned: CleanedText) -> None:
        lost = words - len(cleaned.text.split()) if cleaned.stages else 0
        if lost <= MUCH * words:
            return
        self.lost_much += 1
        self.lost_much_no_book += not cleaned.is_book
        fewer = Counter()
        for name, edits in cleaned.stages:
            fewer[name] += sum(end - start - len(new) for start, end, new in edits)
        rule = max(fewer, key=fewer.__getitem__)
        largest = max(cleaned.spans(rule), key=lambda span: span.end - span.start)
        loss = {"id": id, "words": words, "lost": lost, "share": lost / words, "rule": rule, "is_book": cleaned.is_book}
        self.largest_losses = largest_losses([*self.largest_losses, loss | _shown(text, largest)])

    def add_dropped(self, id: str, text: str, reason: str, numbers: str) -> None:
        """Counts a document that is dropped."""
        dropped = self.dropped.setdefault(reason, DropReport())
        dropped.documents += 1
        if len(dropped.examples) < EXAMPLES:
            dropped.examples.append({"id": id, "why": numbers, "begins": text[:EXAMPLE_CHARACTERS]})


def largest_losses(losses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the losses to show: of texts that are no book first, and of these the largest shares."""
    return sorted(losses, key=lambda loss: (loss["is_book"], -loss["share"], loss["id"]))[:EXAMPLES]


def _shown(text: str, span: Span) -> dict[str, str]:
    removed = text[span.start : span.end]
    if len(removed) > EXAMPLE_CHARACTERS:
        removed = f"{removed[: EXAMPLE_CHARACTERS // 2]} [...] {removed[-EXAMPLE_CHARACTERS // 2 :]}"
    around = (text[max(0, span.start - 40) : span.start], text[span.end : span.end + 40])
    return {"before": around[0], "removed": removed, "became": span.new[:EXAMPLE_CHARACTERS], "behind": around[1]}


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
                    f"cleaning.languages has {code!r}, which is not one of the known codes: "
                    f"{', '.join(supported_langs())}"
                )
        self.config, self.repeated = config, repeated
        self.report = CleaningReport(repeated_lines=sorted(repeated)[:100])

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents that remain, cleaned, in pieces; those that were empty stay so.

        A document is held whole, up to 8 million characters; a longer one is cleaned in parts of that size and passes
        all filters.
        """
        for _, pieces in itertools.groupby(documents, key=lambda document: document.id):
            yield from self._document(pieces)

    def _document(self, pieces: Iterator[Document]) -> Iterator[Document]:
        first = next(pieces)
        if first.target is not None:
            yield from self._pair(first)
            return
        parts = _parts(itertools.chain([first], pieces))
        raw, is_whole = next(parts)
        cleaned = self._clean(first, raw, self.config)
        self.report.documents_in += 1
        self.report.gutenberg_books += cleaned.is_book
        why = why_dropped(cleaned.text, self.config) if is_whole else None
        if not cleaned.text and raw.strip():
            why = ("nothing left", "all of it was removed by the rules")
        if why:
            self.report.add_dropped(first.id, raw, *why)
            return
        # Whether it is a book shows at its beginning.
        config = replace(self.config, gutenberg="always" if cleaned.is_book else "never")
        rest = (self._go_on(first, part, config) for part, _ in parts)
        for document in cut_pieces(first.id, first.metadata, itertools.chain([cleaned.text], rest), first.kind):
            self.report.words_out += len(document.text.split())
            self.report.documents_out += document.is_last and bool(document.text or document.piece)
            yield document

    def _pair(self, pair: Document) -> Iterator[Document]:
        """A pair with both its texts cleaned; filters look at them together, and what one of them loses both do."""
        source, target = (self._clean(pair, half.text, self.config).text for half in pair.halves)
        cleaned = replace(pair, text=source, target=target)
        self.report.documents_in += 1
        why = why_dropped(cleaned.joined.text, self.config)
        if not source or not target:
            why = ("nothing left", "all of the source or of the target was removed by the rules")
        if why:
            self.report.add_dropped(pair.id, pair.joined.text, *why)
            return
        self.report.words_out += len(cleaned.joined.text.split())
        self.report.documents_out += 1
        yield cleaned

    def _go_on(self, first: Document, part: str, config: CleaningConfig) -> str:
        """Cleans a later part, keeping the blank at its beginning that separates it from the part before."""
        text = self._clean(first, part, config).text
        blank = part[: part[:1].isspace()]
        return text if not text or text.startswith(blank) else blank + text

    def _clean(self, document: Document, text: str, config: CleaningConfig) -> CleanedText:
        cleaned = clean_text(text, config, self.repeated, document.kind)
        self.report.add_text(document.id, text, cleaned)
        return cleaned


def _parts(pieces: Iterable[Document]) -> Iterator[tuple[str, bool]]:
    """Joins the pieces of a document into parts of `WHOLE_CHARACTERS`; True with a part that is the whole document."""
    held, characters, is_first = [], 0, True
    for piece in pieces:
        if characters + len(piece.text) > WHOLE_CHARACTERS and held:
            yield "".join(held), False
            held, characters, is_first = [], 0, False
        held.append(piece.text)
        characters += len(piece.text)
    yield "".join(held), is_first
