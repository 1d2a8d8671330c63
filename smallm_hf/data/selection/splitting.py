"""Which text trains and which validates: by a hash of each document, by its rare words, by its place, or inside few."""

import hashlib
import io
import itertools
import math
import re
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from smallm_hf.base.errors import UserError
from smallm_hf.data.reading.documents import Document, cut_pieces
from smallm_hf.data.selection.ngrams import Read, read_vocabularies

TRAIN, VALIDATION = SIDES = ("train", "validation")
FEWEST_DOCUMENTS = 20  # in a source; fewer are split inside
FEW_VALIDATE = 1000  # documents; of fewer on validation the hash alone may leave another share than was asked for
BLOCKS = 10  # places in the text that validation is then taken from
KINDS = PARAGRAPHS, LINES, WORDS = ("paragraphs", "lines", "words")  # what it may be cut into, best first
CHARACTERS = "characters"  # what a tail is cut from
VOCABULARY_BITS = 22  # of the number of a word; words that share them count as one
RARE = 10  # times the least number of documents that can be split at the ratio: words in more are not rare
WORD_AND_BLANKS = re.compile(r"\S+\s*|\s+")


def hash_fraction(text: str) -> float:
    """Returns a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def split_by_hash(hashes: np.ndarray, ratio: float) -> np.ndarray:
    """Returns which documents validate by their hashes alone, (N,) bool.

    Args:
        hashes: (N,) uint64, of each document or of the one that it goes with.
        ratio: approximate share of the documents that validates.

    Raises:
        UserError: one side is empty.
    """
    fractions = hashes / 2**64
    validates = fractions < ratio
    lowest, highest = fractions.min(), fractions.max()
    if lowest == highest:
        fix = "all are equal, so give data.validation_source"
    elif lowest >= ratio:
        fix = f"raise it to {math.floor(lowest * 1e4 + 1) / 1e4}"
    else:
        fix = f"lower it to {math.floor(highest * 1e4) / 1e4}"
    if validates.all() or not validates.any():
        side = TRAIN if validates.all() else VALIDATION
        raise UserError(f"data.validation_ratio={ratio} leaves the {side} side of {len(hashes)} documents empty; {fix}")
    return validates


def split_by_size(hashes: np.ndarray, sizes: np.ndarray, ratio: float) -> np.ndarray:
    """Returns which documents validate so that their bytes come near the ratio, (N,) bool.

    In the order of their hashes, each validates that still fits; then single ones change sides while that is nearer.

    Args:
        hashes: (N,) uint64, of each document or of the one that it goes with.
        sizes: (N,) int64, bytes of each document.
        ratio: share of the bytes that validates.

    Raises:
        UserError: as `split_by_hash`.
    """
    kinds, places = np.unique(hashes, return_inverse=True)
    if len(kinds) == 1:
        return split_by_hash(hashes, ratio)  # which says so
    grouped = np.bincount(places, weights=sizes).astype(np.int64)
    wanted, held = ratio * grouped.sum(), 0
    validates = np.zeros(len(kinds), bool)
    for kind, size in enumerate(grouped):
        if held + size <= wanted:
            validates[kind], held = True, held + size
    while True:  # the one move that brings it nearest, until none does
        missing = wanted - grouped[validates].sum()
        moved = np.abs(missing + np.where(validates, grouped, -grouped))
        best = moved.argmin()
        leaves_both = 0 < validates.sum() + (-1 if validates[best] else 1) < len(kinds)
        if moved[best] >= abs(missing) or not leaves_both:
            break
        validates[best] ^= True
    if validates.all() or not validates.any():
        validates[grouped.argmin()] ^= True
    return validates[places]


def split_by_rare_words(read: Read, followed: np.ndarray, ratio: float) -> np.ndarray:
    """Returns which documents validate so that rare words are spread evenly over both sides, (N,) bool.

    Rare words are those in 1/`ratio` to 10/`ratio` documents. Each document goes to the side that leaves the smaller
    sum, over its rare words, of squared deviations from the ratio, each divided by the word's number of documents; the
    numbers of documents, of words, and of words still rarer are kept to the ratio in the same way. This one greedy pass
    in reading order has the aim of iterative stratification (Sechidis et al. 2011), which would have to hold all
    documents; memory is about 100 MB for any number of them.

    Args:
        read: starts reading the documents; called twice.
        followed: (N,) int64, each document itself, or the earlier one that it has to go with.
        ratio: share of the documents that validates.

    Raises:
        UserError: there are too few documents.
    """
    least = math.ceil(1 / min(ratio, 1 - ratio))
    documents = np.zeros(1 << VOCABULARY_BITS, np.int32)
    number = sizes = 0
    for vocabulary in read_vocabularies(read(), VOCABULARY_BITS):
        documents[vocabulary] += 1
        number, sizes = number + 1, sizes + len(vocabulary)
    is_rare = (documents >= least) & (documents <= RARE * least)
    if number < max(FEWEST_DOCUMENTS, 2 * least) or not is_rare.any():
        raise UserError(
            f"selection.split=stratified has {number} documents with {is_rare.sum()} words that stand in {least} to "
            f"{RARE * least} of them, too few for data.validation_ratio={ratio}; set selection.split to random, give "
            f"{max(FEWEST_DOCUMENTS, 2 * least)} documents or more, or a ratio nearer 0.5"
        )
    weights = np.where(is_rare, 1 / np.maximum(documents, 1), 0).astype(np.float32)
    is_rarer = (documents > 0) & (documents < least)
    all_weight = is_rare.sum() / number  # what the rare words of a document weigh together, on average
    means = np.array([1, sizes / number, documents[is_rarer].sum() / number or 1])
    excess = np.zeros(len(documents), np.float32)  # documents on validation beyond the ratio that hold a word
    excess_sizes = np.zeros(3)  # documents, their words and rarer words there beyond the ratio, in shares of the mean
    validates = np.zeros(number, bool)
    for ordinal, vocabulary in enumerate(read_vocabularies(read(), VOCABULARY_BITS)):
        rare = vocabulary[is_rare[vocabulary]]
        size = np.array([1, len(vocabulary), is_rarer[vocabulary].sum()]) / means
        growth = weights[rare] @ (2 * excess[rare] + 1 - 2 * ratio)
        growth += all_weight * (size @ (2 * excess_sizes + size * (1 - 2 * ratio)))
        validates[ordinal] = growth < 0 if followed[ordinal] == ordinal else validates[followed[ordinal]]
        excess[rare] += validates[ordinal] - ratio
        excess_sizes += size * (validates[ordinal] - ratio)
    return validates


def split_by_place(sizes: np.ndarray, sources: np.ndarray, ratio: float) -> np.ndarray:
    """Returns which documents validate, (N,) bool: of each source the last, but for the very first of its documents.

    Args:
        sizes: (N,) int64, bytes of each document, in reading order.
        sources: (N,) int, the number of its source.
        ratio: share of the size of a source that validates, less what is missing to a whole document.
    """
    validates = np.zeros(len(sizes), bool)
    for source in np.unique(sources):
        here = np.flatnonzero(sources == source)[1:]
        total = sizes[sources == source].sum()
        validates[here] = np.cumsum(sizes[here][::-1])[::-1] <= ratio * total
        validates[here[-1:]] = True
    return validates


@dataclass(frozen=True)
class InsidePlan:
    """How few documents are cut into both sides: which of their consecutive units of one kind validate."""

    blocks: list[range]
    kind: str

    def __call__(self, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """Yields the same documents as (side, document) pairs, each run of units a document of its own."""
        if self.kind == CHARACTERS:
            yield from _cut_tail(documents, self.blocks[0].start)
            return
        edges = [edge for block in self.blocks for edge in (block.start, block.stop)]

        def id_and_side(item: tuple[Document, int, str]) -> tuple[str, str]:
            document, unit, _ = item
            return document.id, VALIDATION if bisect(edges, unit) % 2 else TRAIN  # past a start and not its stop

        runs = itertools.groupby(_units(documents, self.kind), id_and_side)
        for number, ((id, side), run) in enumerate(runs, start=1):
            for piece in cut_pieces(f"{id}:{number}", {"part_of": id}, (part for _, _, part in run)):
                yield side, piece


def plan_inside(read: Read, ratio: float) -> InsidePlan:
    """Decides how to cut few documents into both sides.

    They are cut into runs of paragraphs (of lines if there are no blank ones, of words if there are no lines);
    validation gets up to 10 runs, spread evenly.

    Raises:
        UserError: not even two words.
    """
    for kind in KINDS:
        number = 1 + max((unit for _, unit, _ in _units(read(), kind)), default=-1)
        if number > 1:
            return InsidePlan(validation_blocks(number, ratio), kind)
    raise UserError(
        "the data source has fewer than two words, nothing to split into train and validation; "
        "give more text or data.validation_source"
    )


def plan_tail(read: Read, ratio: float) -> InsidePlan:
    """Decides at which character few documents are cut, so that the last `ratio` of their characters validates.

    The cut is at `int((1 - ratio) * characters)`, whatever stands there.

    Raises:
        UserError: one side would be empty.
    """
    characters = sum(len(document.text) for document in read())
    cut = int((1 - ratio) * characters)
    if not 0 < cut < characters:
        raise UserError(
            f"data.validation_ratio={ratio} of {characters} characters leaves one side empty; give more text, another "
            "ratio or data.validation_source"
        )
    return InsidePlan([range(cut, characters)], CHARACTERS)


def _cut_tail(documents: Iterable[Document], cut: int) -> Iterator[tuple[str, Document]]:
    """Yields the same text as (side, document) pairs, validation from a character on; no blanks are stripped there."""
    stop = first_piece = 0
    for document in documents:
        start, text = stop, document.text
        stop += len(text)
        kept = min(max(cut - start, 0), len(text))
        if kept or not text:
            is_last = document.is_last or stop >= cut
            yield TRAIN, replace(document, id=f"{document.id}:1", text=text[:kept], is_last=is_last)
        if kept < len(text):
            if document.piece == 0 or start <= cut:
                first_piece = document.piece
            piece = document.piece - first_piece
            yield VALIDATION, replace(document, id=f"{document.id}:2", text=text[kept:], piece=piece)


def validation_blocks(units: int, ratio: float) -> list[range]:
    """Returns which of `units` (2 or more) units validate: up to `BLOCKS` ranges, each in the middle of an equal part.

    Together they hold `ratio` of the units, but at least one and not all.
    """
    chosen = min(max(round(units * ratio), 1), units - 1)
    number = min(BLOCKS, chosen)
    blocks = []
    for block in range(number):
        start, stop = units * block // number, units * (block + 1) // number
        length = chosen * (block + 1) // number - chosen * block // number
        first = start + (stop - start - length) // 2
        blocks.append(range(first, first + length))
    return blocks


def _units(documents: Iterable[Document], kind: str) -> Iterator[tuple[Document, int, str]]:
    """Yields the text in small parts, each with its document and the number of its unit in the source.

    Blank lines belong to the unit before them. Pieces may end anywhere, so state is kept from one to the next.
    """
    unit = -1
    after_blank = has_text = False
    for document in documents:
        if document.piece == 0:
            after_blank, has_text = True, False
        for part in WORD_AND_BLANKS.findall(document.text) if kind == WORDS else io.StringIO(document.text):
            if not has_text and not part.isspace():
                has_text = True
                unit += kind != PARAGRAPHS or after_blank
            yield document, unit, part
            if kind == WORDS or part.endswith("\n"):
                after_blank, has_text = not has_text, False
